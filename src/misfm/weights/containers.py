"""What lies around the tensors in checkpoints of nnssl and nnU-Net, recognised by the keys.

Both keep the network under ``network_weights``. nnssl's released files add an adaptation plan; its raw
training checkpoints and nnU-Net's hold everything else in ``init_args``. Any field may be absent: where plan
and tensors disagree the readers of this package believe the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from misfm.documents import read_json
from misfm.errors import WeightsError
from misfm.settings import PositiveShape, Spacing

PLAN_FILE = "adaptation_plan.json"
"""A copy of the plan that nnssl releases beside a checkpoint."""

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What compiling, sharding and checkpointing put into names, in front of what they wrap and in any order."""
PARALLEL = "module"
"""What data-parallel training puts in front; elsewhere it may be the name of a layer."""

METHODS = {
    "simmim": "simmim",
    "evamae": "mae",
    "basemae": "mae",
    "spark": "s3d",
    "volumefusion": "openmind-vf",
    "voco": "voco",
    "modelgenesis": "models-genesis",
    "modelsgenesis": "models-genesis",
    "simclr": "simclr",
    "swinunetr": "swinunetr",
}
"""Part of the name of an nnssl trainer -> pretext task."""


@dataclass(frozen=True)
class Origin:
    """What a container says about its network; None where it does not.

    Attributes:
        project: who wrote it; a mapping of tensors has no container.
        trainer: class that trained it.
        pretext: pretext task; None where it was trained on label maps, or for a mapping.
        architecture: class name of the network.
        architecture_options: keyword arguments of that class, as the plan has them.
        in_channels: image channels.
        patch_size: voxels of a training patch.
        spacing: mm of the training scans.
        z_scored: whether intensities were z-scored.
        steps: training steps taken.
        transposed: whether its axes are in another order than those of files; patch and spacing are, too.
    """

    project: Literal["nnssl", "nnU-Net", "mapping"] = "mapping"
    trainer: str | None = None
    pretext: str | None = None
    architecture: str | None = None
    architecture_options: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int | None = None
    patch_size: PositiveShape | None = None
    spacing: Spacing | None = None
    z_scored: bool = False
    steps: int | None = None
    transposed: bool = False


def network_tensors(content: Mapping[str, object]) -> dict[str, Tensor]:
    """The network's tensors under the names it gave them, whether in a container or a plain mapping."""
    state = content.get("network_weights", content)
    if not isinstance(state, Mapping):
        return {}
    return named_tensors(state)


def named_tensors(state: Mapping[Any, object]) -> dict[str, Tensor]:
    """The tensors of a mapping under their names, without what wrappers of the network put into these."""
    return {_unwrapped(str(name)): value for name, value in state.items() if isinstance(value, Tensor)}


def origin_of(content: Mapping[str, object]) -> Origin:
    """Read what the container records; a mapping of tensors records nothing."""
    if "network_weights" not in content:
        return Origin()
    trainer = content.get("trainer_name")
    arguments = _mapping(content.get("init_args"))
    adaptation = _mapping(content.get("nnssl_adaptation_plan"))
    supervised = "plans" in arguments
    plan = _mapping(adaptation.get("pretrain_plan") or arguments.get("plans") or arguments.get("plan"))
    configuration = _configuration(plan, arguments.get("configuration") if supervised else None)
    architecture = _mapping(adaptation.get("architecture_plans") or configuration.get("architecture"))
    epochs = content.get("current_epoch")
    order = plan.get("transpose_forward")
    return Origin(
        project="nnU-Net" if supervised else "nnssl",
        trainer=str(trainer) if trainer else None,
        pretext=None if supervised or not trainer else _method(str(trainer)),
        architecture=architecture.get("arch_class_name") or architecture.get("network_class_name"),
        architecture_options=_mapping(
            architecture.get("arch_kwargs") or adaptation.get("architecture_kwargs")
        ),
        in_channels=adaptation.get("pretrain_num_input_channels"),
        patch_size=_triple(adaptation.get("pretrain_patch_size") or configuration.get("patch_size"), int),
        spacing=_triple(configuration.get("spacing"), float),
        z_scored=set(configuration.get("normalization_schemes") or []) == {"ZScoreNormalization"},
        steps=250 * epochs if isinstance(epochs, int) else None,
        transposed=order is not None and list(order) != [0, 1, 2],
    )


def with_plan_beside(content: dict[str, object], path: Path) -> dict[str, object]:
    """Add the adaptation plan that lies beside a checkpoint to a container that lacks its own.

    Raises:
        WeightsError: that file is no JSON object.
    """
    beside = path.parent / PLAN_FILE
    if "network_weights" not in content or "nnssl_adaptation_plan" in content or not beside.is_file():
        return content
    try:
        plan = dict(read_json(beside))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{beside} is no adaptation plan ({error}); remove it or copy it again."
        ) from error
    trainer = plan.pop("trainer_name", None)
    return {"trainer_name": trainer, **content, "nnssl_adaptation_plan": plan}


def _unwrapped(name: str) -> str:
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == PARALLEL:
        del parts[0]
    return ".".join(parts)


def _method(trainer: str) -> str:
    lowered = trainer.lower()
    return next((method for part, method in METHODS.items() if part in lowered), trainer)


def _configuration(plan: Mapping[str, Any], name: object) -> Mapping[str, Any]:
    """The named configuration with what it inherits; the first one without a name.

    nnssl's plans hold one configuration, under a name that its release tool changes.
    """
    configurations = _mapping(plan.get("configurations"))
    chosen = _mapping(configurations.get(str(name), next(iter(configurations.values()), None)))
    parent = chosen.get("inherits_from")
    inherited = _mapping(configurations.get(parent)) if parent is not None else {}
    return {**inherited, **chosen}


def _mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def _triple(value: object, kind: type[int] | type[float]) -> Any:
    """Three positive numbers from a tuple or, in files that went through JSON, a list; else None."""
    if not isinstance(value, Sequence) or len(value) != 3:
        return None
    numbers = [kind(number) for number in value if isinstance(number, int | float) and number > 0]
    return tuple(numbers) if len(numbers) == 3 else None

"""Loading weights into a network, with a report of what came from where; nothing is skipped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from misfm.errors import ConfigError, WeightsError
from misfm.models import Backbone
from misfm.volume import Shape
from misfm.weights.adapt import ENCODER, AdaptContext, adapt
from misfm.weights.formats import ForeignInfo, Translation
from misfm.weights.source import Opened, Source, open_source

SMALLEST_MATCH = 0.1  # of a backbone's parameters; less is another network, not a transfer
BACKBONE = "backbone."
HEAD_TAKEN = (
    "The head was taken as well, since the number of classes agrees and the weights do not say that it comes "
    "from a pretext task; if it does, the first fine-tuning steps will have to unlearn it."
)
DECODER = "backbone.decoder."


class Entry(NamedTuple):
    """A tensor by its name in the network; one that has no place there, by its name in the source."""

    name: str
    shape: tuple[int, ...]


class AdaptedEntry(NamedTuple):
    """A tensor that was changed to fit."""

    name: str
    shape: tuple[int, ...]
    how: str


@dataclass
class TransferReport:
    """What :func:`load` did.

    Attributes:
        source: where the weights came from.
        loaded: tensors taken as they are.
        adapted: tensors changed to fit, and how.
        reinitialised: tensors of the network that the source did not fill; they keep their fresh values.
        unused: tensors of the source that the network did not take.
        pretrained_parameters: how many parameters of the network come from the source ...
        num_parameters: ... out of this many.
        notes: what else the reader noticed, in sentences.
    """

    source: str
    loaded: list[Entry] = field(default_factory=list)
    adapted: list[AdaptedEntry] = field(default_factory=list)
    reinitialised: list[Entry] = field(default_factory=list)
    unused: list[Entry] = field(default_factory=list)
    pretrained_parameters: int = 0
    num_parameters: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        share = self.pretrained_parameters / max(self.num_parameters, 1)
        lines = [f"{share:.1%} of {self.num_parameters:,} parameters come from {self.source}."]
        for title, entries in (
            ("loaded", self.loaded),
            ("reinitialised", self.reinitialised),
            ("unused", self.unused),
        ):
            if entries:
                lines.append(f"  {title:<14}{len(entries)} tensors: {_by_module(entries)}")
        lines += [f"  {'adapted':<14}{entry.name} {entry.shape}: {entry.how}" for entry in self.adapted]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def _by_module(entries: list[Entry], longest: int = 8) -> str:
    """Names down to the second module and how many tensors each has, the largest first."""
    counts = Counter(
        ".".join(entry.name.removeprefix(BACKBONE).split(".")[:2]) for entry in entries
    ).most_common()
    shown = [f"{module} ({count})" for module, count in counts[:longest]]
    return ", ".join(shown) + (f" and {len(counts) - longest} more modules" if len(counts) > longest else "")


def load(
    model: nn.Module, source: Source, *, transfer: Literal["all", "encoder", "backbone"] = "all"
) -> TransferReport:
    """Fill a network with weights, in place.

    A tensor of the backbone is taken where its name and shape fit. The stem is adapted to another number of
    image channels: it answers to equal channels as before. The head is taken, with ``transfer="all"``, if and
    only if all its tensors fit and the weights do not say that they come from a pretext task; a PyMIC file or
    a mapping cannot say so, hence its head is taken where the number of classes agrees, as PyMIC does, and
    the report says so.

    Args:
        model: a network from :func:`misfm.models.create`; its values stay as they are if anything is raised.
        source: a weights file, a run folder, a published name (``misfm info published``), an
            ``hf://owner/repo[@revision]``, or a mapping name -> tensor with our names or those of a known
            other project.
        transfer: ``"encoder"`` leaves decoder and head unchanged, ``"backbone"`` the head.

    Raises:
        ConfigError: another ``transfer``.
        WeightsError: the source cannot be read, has values that are not numbers, or belongs to another
            network: it fits less than a tenth of the backbone, or has another position index.
    """
    if transfer not in ("all", "encoder", "backbone"):
        raise ConfigError(f"Weights transfer as 'all', 'encoder' or 'backbone', got '{transfer}'.")
    opened = open_source(source)
    backbone = cast(Backbone, model.get_submodule("backbone"))
    translation = opened.translated(backbone)

    noticed = opened.info.notes if isinstance(opened.info, ForeignInfo) else ()
    report = TransferReport(opened.label, notes=[*noticed, *translation.notes])
    scope = ENCODER if transfer == "encoder" else BACKBONE
    wanted = model.state_dict()
    names = {name for name in wanted if name.startswith(scope)}
    if transfer == "all" and _head_fits(wanted, translation.tensors, opened):
        names |= {name for name in wanted if not name.startswith(BACKBONE)}
        if opened.format is not None:
            report.notes.append(HEAD_TAKEN)
    recorded = opened.info.network.options if opened.info else None
    context = _context(opened, backbone, recorded)
    taken = _match(wanted, names, translation, context, report)
    report.unused = [
        Entry(n, tuple(tensor.shape)) for n, tensor in translation.tensors.items() if n not in taken
    ]
    has_decoder = any(name.startswith(DECODER) for name in translation.tensors)
    _check_match(opened, backbone, taken, scope if has_decoder else ENCODER)
    _check_values(opened, taken)

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    report.num_parameters = sum(sizes.values())
    report.pretrained_parameters = sum(size for name, size in sizes.items() if name in taken)
    report.notes += backbone.adopt(recorded, source=opened.label)
    with torch.no_grad():
        for name, tensor in taken.items():
            wanted[name].copy_(tensor)
    return report


def _match(
    wanted: Mapping[str, Tensor],
    names: set[str],
    translation: Translation,
    context: AdaptContext,
    report: TransferReport,
) -> dict[str, Tensor]:
    """The tensors to take among ``names``, shaped as wanted, each noted in the report."""
    taken: dict[str, Tensor] = {}
    for name, target in wanted.items():
        tensor = translation.tensors.get(name) if name in names else None
        entry = Entry(name, tuple(target.shape))
        how = translation.adapted.get(name)
        if tensor is not None:
            fitted = adapt(name, tensor, target, context) if name.startswith(BACKBONE) else None
            unchanged = tensor if tensor.shape == target.shape else None
            tensor, fitting = fitted or (unchanged, None)
            how = ", ".join(filter(None, (how, fitting)))
        if tensor is None:
            report.reinitialised.append(entry)
            continue
        taken[name] = tensor
        if how:
            report.adapted.append(AdaptedEntry(*entry, how))
        else:
            report.loaded.append(entry)
    return taken


def _context(opened: Opened, backbone: Backbone, options: Mapping[str, Any] | None) -> AdaptContext:
    grid = backbone.grid
    patch_size = opened.info.patch_size if opened.info else None
    recorded: Shape | None = None
    if grid is not None and patch_size is not None and backbone.input_size is not None:
        token = [side // count for side, count in zip(backbone.input_size, grid, strict=True)]
        d, h, w = (side // width for side, width in zip(patch_size, token, strict=True))
        recorded = (d, h, w)
    return AdaptContext(f"{BACKBONE}{backbone.stem_weight}", grid, recorded, backbone.token_axes(options))


def _head_fits(wanted: Mapping[str, Tensor], offered: Mapping[str, Tensor], opened: Opened) -> bool:
    if opened.info is not None and opened.info.pretext is not None:
        return False
    head = {name: tensor for name, tensor in wanted.items() if not name.startswith(BACKBONE)}
    return all(name in offered and offered[name].shape == tensor.shape for name, tensor in head.items())


def _check_values(opened: Opened, taken: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in taken.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{opened.label} holds infinite or undefined values, first in {broken[0]}.")


def _check_match(opened: Opened, backbone: Backbone, taken: Mapping[str, Tensor], scope: str) -> None:
    """Refuse weights that hardly fit the part of the backbone they are for."""
    sizes = {f"{BACKBONE}{name}": parameter.numel() for name, parameter in backbone.named_parameters()}
    sizes = {name: size for name, size in sizes.items() if name.startswith(scope)}
    share = sum(size for name, size in sizes.items() if name in taken) / max(sum(sizes.values()), 1)
    if share < SMALLEST_MATCH:
        known = f"network '{opened.info.network.name}'" if opened.info else "an unknown network"
        example = next(iter(opened.tensors), "none")
        raise WeightsError(
            f"{opened.label} has weights of {known} (such as {example}) that fit {share:.0%} of this "
            f"{type(backbone).__name__}; create the network they were trained with."
        )

"""Labels and folders of models as nnU-Net has them: read from its checkpoints, written for its commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misfm.data.dataset_json import parse_labels
from misfm.errors import DataError
from misfm.weights.file import WeightsInfo

FOLD = "fold_0"
TRAINER = "nnUNetTrainer"
"""Whose network and inference are those of all ResEnc."""
CHANNELS = {"ct": "CT", "nonorm": "noNorm", "rescale_to_0_1": "rescale_to_0_1", "rgb_to_0_1": "rgb_to_0_1"}
"""What nnU-Net calls channels that have a rule of their own."""


def read_labels(content: Mapping[str, object], num_classes: int) -> dict[str, Any]:
    """What nnU-Net's labels or regions are, as fields of a description; none where that was not recorded.

    Where outputs are regions that misfm does not understand, nothing is said of intensities either: nobody
    may take them for classes and predict.

    Args:
        content: of the checkpoint.
        num_classes: outputs of its head.
    """
    arguments = content.get("init_args")
    dataset = arguments.get("dataset_json") if isinstance(arguments, Mapping) else None
    if not isinstance(dataset, Mapping):
        return {}
    try:
        scheme = parse_labels(dataset, Path("dataset.json"))
    except DataError:
        labels = dataset.get("labels")
        several = isinstance(labels, Mapping) and any(isinstance(own, list) for own in labels.values())
        return {"intensity": {}} if several else {}
    if scheme.num_outputs != num_classes:
        return {"intensity": {}} if scheme.has_regions else {}
    values = () if scheme.is_numbered else scheme.output_values
    return {
        "label_names": scheme.output_names,
        "label_values": values,
        "regions_class_order": scheme.order,
    }


def describe_dataset(info: WeightsInfo) -> dict[str, Any]:
    """Return the ``dataset.json`` of weights that label.

    nnU-Net wants labels 0, 1, 2, … and regions in the order in which they are painted; the values of regions
    are kept, since it only paints with them.
    """
    scheme, rules = info.scheme, info.rules
    each = rules if len(rules) == info.in_channels else rules[:1] * info.in_channels
    names = info.channel_names or tuple(CHANNELS.get(rule.kind, rule.kind.upper()) for rule in each)
    labels: dict[str, int | list[int]] = {"background": 0}
    if scheme.has_regions:
        labels |= {name: own[0] if len(own) == 1 else list(own) for name, own in scheme.values.items()}
    else:
        labels |= {name: number for number, name in enumerate(scheme.values, start=1)}
    return {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": labels,
        **({"regions_class_order": list(scheme.order)} if scheme.has_regions else {}),
        "numTraining": 0 if info.data is None else info.data.count,
        "file_ending": ".nii.gz",
    }


def model_of(
    info: WeightsInfo, tensors: Mapping[str, Any], plans: Mapping[str, Any], configuration: str
) -> dict[str, Any]:
    """Return the content of a checkpoint from which nnU-Net predicts.

    Args:
        info: description of the weights.
        tensors: by nnU-Net's names.
        plans: as written beside it.
        configuration: the one of ``plans`` that is the network's.
    """
    axes = tuple("DHW".index(axis) for axis in info.mirror_axes)
    return {
        "network_weights": dict(tensors),
        "trainer_name": TRAINER,
        "init_args": {
            "plans": dict(plans),
            "configuration": configuration,
            "fold": 0,
            "dataset_json": describe_dataset(info),
        },
        "inference_allowed_mirroring_axes": axes or None,
    }


def notes_on(info: WeightsInfo) -> list[str]:
    """Say how to label with the folder, and in what its masks differ from misfm's."""
    notes = [
        "",
        f"The network labels already: nnUNetv2_predict_from_modelfolder -i SCANS -o MASKS -m . -f {FOLD[-1]}",
        "takes its head as well. Masks are misfm's but for rounding where scans have the spacing above and",
        "axial slices; nnU-Net resamples with cubic splines, and looks beyond the patient's box.",
    ]
    if any(rule.kind in ("mr", "pet") for rule in info.rules):
        notes += [
            "Its z-scores are of the whole image, misfm's of the patient: masks of these channels do differ.",
            "They are equal for CT, and for channels that dataset.json called noNorm in training.",
        ]
    scheme = info.scheme
    if not scheme.has_regions and not scheme.is_numbered:
        pairs = ", ".join(f"{value} {new}" for new, (value,) in enumerate(scheme.values.values(), start=1))
        notes.append(
            f"nnU-Net numbers labels without gaps: of our values, {pairs.replace(' ', ' becomes ')}."
        )
    return notes

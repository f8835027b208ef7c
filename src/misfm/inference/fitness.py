"""Whether a scan is like those that weights were trained on, before a label map misleads.

What a scan says of itself and the weights contradict, such as MR for a network of CT, is refused. Intensities
and sizes can deceive, so what they speak of is a warning. Weights that say nothing of the scans of their
training, such as published ones, are compared by what they say of their input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from misfm.data.appearance import Appearance, ChannelRanges, ScanRanges, appearance_of
from misfm.data.intensity import IntensityRule
from misfm.data.preprocess import canonical, content_box
from misfm.errors import DataError
from misfm.volume import FloatTriple, Volume, triple
from misfm.weights import WeightsInfo

_ALONG = ("from foot to head", "from front to back", "from side to side")
_MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET", "NM": "scintigraphy", "US": "ultrasound"}
"""DICOM modalities that leave no doubt, in words; others, such as OT, are no evidence."""
_MOST, _LEAST = 2.0, 1 / 3
"""Extent of a patient's box over the largest and smallest of the training, beyond which is far outside."""
_COARSER, _FINER = 2.5, 0.1
"""Likewise the spacing; finer voxels lose nothing when resampled, and so fine are wrong units only."""
_COARSER_THAN_INPUT = 5.0
"""Spacing over that of the network's input, where nothing else is known."""
_NEAR_HU = 300.0
"""How much brighter than all of the training the darkest voxels of a CT may be."""


class MisfitError(DataError):
    """A scan of another kind than the weights are for."""


def misfits(
    volume: Volume, modalities: Sequence[str | None], info: WeightsInfo, *, force: bool = False
) -> list[str]:
    """Say what of a scan does not fit the weights, a sentence each.

    Args:
        volume: (C, D, H, W), voxels as in the file; as many channels as the weights take.
        modalities: what each channel says that it is, as DICOM does; None where it says nothing.
        info: description of the weights.
        force: make a warning of what would be refused.

    Raises:
        MisfitError: a channel says that it is of another modality than the weights are for.
    """
    found: list[str] = []
    ranges = info.scan_ranges
    several = len(info.rules) > 1
    for number, (rule, channel) in enumerate(zip(info.rules, volume.data, strict=True)):
        name = f"channel {number}" if several else "the scan"
        known = ranges.channels[number] if ranges is not None and number < len(ranges.channels) else None
        seen = appearance_of(channel)
        said = _contradiction(name, modalities[number], rule, known if seen.is_ct else None)
        if said and not force:
            raise MisfitError(f"{said}; if that is wrong, --force labels it all the same.")
        if said:
            found.append(f"{said}; labelled all the same, as --force says.")
        elif channel.min() < channel.max():  # an empty channel stands for one that was not taken
            found += _intensities(name, seen, rule, known)
    upright = canonical(volume)
    found += _spacing(upright.spacing, ranges, info)
    if ranges is not None:
        box = content_box(upright, [rule.kind for rule in info.rules])
        found += _extent(triple(n * s for n, s in zip(box.size, upright.spacing, strict=True)), ranges)
    return found


def _contradiction(name: str, modality: str | None, rule: IntensityRule, known: ChannelRanges | None) -> str:
    """What a channel says of itself that the weights are not for; nothing where it may fit."""
    own = (modality or "").strip().upper()
    if own not in _MODALITIES:
        return ""
    is_ct_network = rule.kind == "ct"
    if is_ct_network and own != "CT":
        return f"{name} is {_MODALITIES[own]} by its header and the weights are for CT"
    if rule.kind == "pet" and own in ("CT", "MR"):
        return f"{name} is {own} by its header and the weights are for PET"
    # Of voxels that do not look like CT nothing is known here: what converts MR may leave a header of CT.
    if own == "CT" and not is_ct_network and known is not None and not known.is_ct:
        return f"{name} is CT by its header and the weights were trained on other scans"
    return ""


def _intensities(
    name: str, seen: Appearance, rule: IntensityRule, known: ChannelRanges | None
) -> Iterator[str]:
    numbers = f"({seen.darkest:.4g} to {seen.brightest:.4g})"
    if rule.kind == "ct":
        if not seen.is_ct and not (known and not known.is_ct and known.holds(seen)):
            yield (
                f"the values of {name} {numbers} are no HU of CT, which the weights are for: they may be "
                "scaled, lack the rescale intercept of -1024, or be of another modality."
            )
        elif known and seen.darkest > known.darkest[1] + _NEAR_HU:
            yield (
                f"{name} has hardly a voxel below {seen.darkest:.4g} HU, and all of the training did, "
                f"down to {known.darkest[1]:.4g}: it may be clipped, or cut out of a larger one."
            )
    elif seen.is_ct and not seen.doubt and not (known and known.is_ct):
        yield f"{name} looks like CT {numbers} and the weights are for other scans."
    elif rule.kind in _UNSCALED and known and not known.holds(seen):
        yield (
            f"the values of {name} {numbers} are far from those of the training "
            f"({known.darkest[0]:.4g} to {known.brightest[1]:.4g}), and the weights take them unscaled."
        )


_UNSCALED = ("nonorm", "rgb_to_0_1")
"""Kinds of channels whose intensities are not normalised by the scan."""


def _spacing(spacing: FloatTriple, ranges: ScanRanges | None, info: WeightsInfo) -> Iterator[str]:
    for axis, value in enumerate(spacing):
        if ranges is not None:
            least, most = ranges.spacing[axis]
            if value > _COARSER * most or value < _FINER * least:
                yield (
                    f"its voxels are {value:.3g} mm {_ALONG[axis]}, and {_between(least, most)} mm in "
                    "training."
                )
        elif info.spacing is not None and value > _COARSER_THAN_INPUT * info.spacing[axis]:
            yield (
                f"its voxels are {value:.3g} mm {_ALONG[axis]}, and {info.spacing[axis]:.3g} mm in the input "
                "of the network."
            )


def _extent(extent: FloatTriple, ranges: ScanRanges) -> Iterator[str]:
    for axis, value in enumerate(extent):
        least, most = ranges.extent[axis]
        if value > _MOST * most or value < _LEAST * least:
            yield (
                f"it shows {value:.0f} mm of the patient {_ALONG[axis]}, and scans of the training "
                f"{_between(round(least), round(most))} mm."
            )


def _between(least: float, most: float) -> str:
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"

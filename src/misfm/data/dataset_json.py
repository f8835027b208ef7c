"""``dataset.json`` as nnU-Net (version 2) and the Medical Segmentation Decathlon (version 1) write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misfm.data.label_scheme import MOST_LABELS, LabelScheme
from misfm.documents import read_json
from misfm.errors import DataError
from misfm.settings import shown

MOST_CHANNELS = 1000
"""Of a dataset."""


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with or without a byte-order mark.

    Raises:
        DataError: no such file, or one that holds something else.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give the folder of a dataset in nnU-Net format.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object; correct it.")
    return content


def parse_channels(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the names of the channels in their order.

    Raises:
        DataError: they are not there, or not numbered.
    """
    try:
        channels = content["channel_names"] if "channel_names" in content else content["modality"]
        names = tuple(str(channels[key]) for key in sorted(channels, key=int))
        if not 0 < len(names) <= MOST_CHANNELS:
            raise ValueError("none, or too many")
        return names
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} must hold 'channel_names' as nnU-Net wants them.") from error


def parse_file_ending(content: Mapping[str, Any], path: Path) -> str:
    """Return the ending of images and label maps.

    Raises:
        DataError: none that the name of a file can have.
    """
    ending = str(content.get("file_ending", ".nii.gz"))
    if not re.fullmatch(r"\.[\w.+-]{1,30}", ending):
        raise DataError(f"{path} gives file_ending as {shown(ending)}; write one such as '.nii.gz'.")
    return ending


def parse_labels(content: Mapping[str, Any], path: Path) -> LabelScheme:
    """Return what the labels of a dataset are: regions as they are listed, others by their values.

    Args:
        content: of the file: ``{"liver": 1, "ignore": 2}``, or ``{"1": "liver"}`` in version 1. Where any
            label has several values, ``{"whole_tumour": [1, 2], "core": 2}``, all of them are regions, and
            ``regions_class_order`` says what a mask has for each.
        path: the file, for messages.

    Raises:
        DataError: another form, a value that is no whole number or stands twice, the name "all", or an order
            of regions that does not fit.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict):
        raise DataError(f'{path} must hold \'labels\' such as {{"background": 0, "liver": 1}}; correct it.')
    if len(labels) > MOST_LABELS:
        raise DataError(f"{path} names {len(labels):,} labels; {MOST_LABELS:,} are the most: correct it.")
    if all(re.fullmatch("[0-9]{1,9}", key) and isinstance(value, str) for key, value in labels.items()):
        labels = {value: int(key) for key, value in labels.items()}
    if "all" in labels:
        raise DataError(f"{path} calls a label 'all', which is the name of the mean over labels: rename it.")
    values = {str(name): _values(name, value, path) for name, value in labels.items()}
    ignore = values.pop("ignore", (None,))
    taken = [frozenset(own) for own in values.values()]
    if len(ignore) > 1 or len(set(taken)) < len(taken) or any(ignore[0] in own for own in taken):
        raise DataError(f"{path} must give every label its own value: {shown(labels)}.")
    background = next((name for name, own in values.items() if own == (0,)), None)
    inside = {name: own for name, own in values.items() if own != (0,)}
    if any(len(own) > 1 for own in inside.values()):
        order = _order(content, inside, path)
    else:
        order, inside = (), dict(sorted(inside.items(), key=lambda item: item[1]))
    return LabelScheme(values=inside, order=order, ignore=ignore[0], background=background)


def _values(name: object, value: object, path: Path) -> tuple[int, ...]:
    """Return the values of a label, one or those of a region, ascending."""
    listed = value if isinstance(value, list) else [value]
    whole = [int(one) if isinstance(one, float) and one.is_integer() else one for one in listed]
    found = [one for one in whole if isinstance(one, int) and not isinstance(one, bool)]
    if not found or len(found) < len(listed) or not 0 <= min(found) <= max(found) <= MOST_LABELS:
        raise DataError(
            f"{path} gives label {shown(name)} the value {shown(value)}; labels are whole numbers from 0 to "
            f"{MOST_LABELS:,}, and regions are lists of these."
        )
    if len(found) > 1 and 0 in found:
        raise DataError(
            f"{path} counts value 0, the background, to the region {shown(name)}; take it out of there."
        )
    return tuple(sorted(set(found)))


def _order(content: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]], path: Path) -> tuple[int, ...]:
    """Return what a mask has for each region."""
    order = content.get("regions_class_order")
    whole = isinstance(order, list) and all(type(value) is int for value in order)
    if order is None or not whole or len(order) != len(regions):
        raise DataError(
            f"{path} has regions, so it must hold 'regions_class_order' with a value for each label but the "
            f"background, {len(regions)} in all: what masks have where that region is, later ones over "
            "earlier ones."
        )
    for (name, own), value in zip(regions.items(), order, strict=True):
        if value not in own or order.count(value) > 1:
            raise DataError(
                f"{path} gives region {shown(name)} the value {value} in 'regions_class_order', from which "
                f"masks could not be read back: choose one of its own, {shown(list(own))}, that no other has."
            )
    listed = list(regions.items())
    for place, (name, own) in enumerate(listed):
        for over, held in listed[place + 1 :]:
            if set(held) > set(own):
                raise DataError(
                    f"{path} lists region {shown(over)} after {shown(name)}, which lies within it, so masks "
                    f"would have the former alone: list {shown(over)} first, in 'regions_class_order', too."
                )
    return tuple(order)

"""``dataset.json`` as nnU-Net (version 2) and the Medical Segmentation Decathlon (version 1) write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misfm.documents import read_json
from misfm.errors import DataError
from misfm.settings import shown

MOST_LABELS, MOST_CHANNELS = 2**15 - 1, 1000
"""Of a dataset: label maps are kept in 16 bits."""


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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


def parse_labels(content: Mapping[str, Any], path: Path) -> tuple[dict[str, int], int | None]:
    """Return the value of each label, in the order of the file, and the value to ignore if there is one.

    Args:
        content: of the file: ``{"liver": 1, "ignore": 2}``, or ``{"1": "liver"}`` in version 1.
        path: the file, for messages.

    Raises:
        DataError: another form, a region, a value that is no whole number or stands twice, or the name "all".
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
    for name, value in labels.items():
        if isinstance(value, list):
            raise DataError(
                f"{path} defines label {shown(name)} as a region {shown(value)}; only single labels are "
                "supported."
            )
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST_LABELS:
            raise DataError(
                f"{path} gives label {shown(name)} the value {shown(value)}; labels are whole numbers up to "
                f"{MOST_LABELS:,}."
            )
    values = {str(name): value for name, value in labels.items()}
    ignore = values.pop("ignore", None)
    if len(set(values.values())) < len(values):
        raise DataError(f"{path} must give every label its own value: {shown(labels)}.")
    return values, ignore

"""``dataset.json`` as nnU-Net (version 2) and the Medical Segmentation Decathlon (version 1) write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misfm.documents import read_json
from misfm.errors import DataError


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
        return tuple(str(channels[key]) for key in sorted(channels, key=int))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} must hold 'channel_names' as nnU-Net wants them.") from error


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
    if all(str(key).isdecimal() and isinstance(value, str) for key, value in labels.items()):
        labels = {value: int(key) for key, value in labels.items()}
    if "all" in labels:
        raise DataError(f"{path} calls a label 'all', which is the name of the mean over labels: rename it.")
    for name, value in labels.items():
        if isinstance(value, list):
            raise DataError(
                f"{path} defines label '{name}' as a region {value}; only single labels are supported."
            )
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{path} gives label '{name}' the value {value!r}; labels are whole numbers.")
    values = {str(name): value for name, value in labels.items()}
    ignore = values.pop("ignore", None)
    if len(set(values.values())) < len(values):
        raise DataError(f"{path} must give every label its own value: {labels}.")
    return values, ignore

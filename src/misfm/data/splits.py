"""Files of splits: which cases train and which validate, as nnU-Net's ``splits_final.json`` has it."""

from __future__ import annotations

from pathlib import Path

from misfm.documents import parse_json
from misfm.errors import ConfigError
from misfm.files import read_checked

Split = dict[str, list[str]]
"""Names of the cases to train on (``train``) and to validate on (``val``)."""


def read_split(path: Path) -> list[Split]:
    """Read a file in the form of nnU-Net's ``splits_final.json``: [{"train": names, "val": names}, …].

    Raises:
        ConfigError: no such file, or another form.
    """
    try:
        splits = parse_json(read_checked(path))
        folds = [splits] if isinstance(splits, dict) else list(splits)
        parsed = [{part: [str(name) for name in fold[part]] for part in ("train", "val")} for fold in folds]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f'{path} is not a split; expected [{{"train": [names], "val": [names]}}, …] in JSON.'
        ) from error
    if not parsed:
        raise ConfigError(f"{path} holds no fold; write at least one, or leave the file out.")
    return parsed

"""``predictions.json``: which label map is whose, made by what, and what there is to know about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from misfm.documents import Malformed, read_json
from misfm.errors import ConfigError, DataError
from misfm.files import checksum, write_json
from misfm.locks import hold
from misfm.terminal import logger

FILE_NAME = "predictions.json"
FORMAT_VERSION = 1
UNCERTAINTY = "uncertainty"
"""What the map of uncertainty is called, and the end of its file's name."""
WRITTEN = "written"
"""In the file: checksum of every label map ever written, by its name; also where its case failed since, or
other weights made it, for it may have been corrected by hand."""
CHECKSUM = "checksum"
"""In the file: of the rest, for what is taken as done must not have changed."""


@dataclass(frozen=True)
class CaseSource:
    """What a case was made of.

    Attributes:
        source: the scan's file, or the UID of its DICOM series; a list of several channels.
        path: file or folder of the scan.
        stamp: of the scan's files, size and time.
    """

    source: str | list[str]
    path: str
    stamp: str


@dataclass(frozen=True)
class CaseResult:
    """What ``predictions.json`` says of a case, and of its source.

    Attributes:
        of: the scan.
        mask: name of its label map's file.
        labels: name to value; a region has a list of values.
        volume_ml: name to millilitres.
        warnings: what there is to note about the scan or its label map, a sentence each.
        more: further findings by their names, such as further files.
        crc32: checksum of the label map's file.
    """

    of: CaseSource
    mask: str
    labels: dict[str, int | list[int]]
    volume_ml: dict[str, float]
    crc32: int
    warnings: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What the file holds: the fields, those of the scan and of ``more`` among them."""
        fields = asdict(self)
        return {**fields.pop("of"), **fields.pop("more"), **fields}


class Predictions:
    """The file in a folder of label maps; several processes may predict into one folder at a time.

    Args:
        folder: of the label maps.
        weights: path or name and hash of each of the weights.
        made_with: what label maps depend on beside weights and scan.
    """

    def __init__(self, folder: Path, weights: Mapping[str, str], made_with: Mapping[str, Any]) -> None:
        self.path = folder / FILE_NAME
        self._known: dict[str, Any] = {}
        self._changed: set[str] = set()
        self._forgotten: dict[str, Any] = {}
        self._head = {
            "format_version": FORMAT_VERSION,
            "weights": [{"source": source, "sha256": digest} for source, digest in weights.items()],
            "made_with": dict(made_with),
        }

    def masks(self) -> set[Path]:
        """The label maps that were ever written here, and maps beside those listed, whoever made them."""
        folder, content = self.path.parent.resolve(), _read(self.path)
        maps = {str(case[UNCERTAINTY]) for case in _cases(content).values() if UNCERTAINTY in case}
        return {folder / name for name in maps | _written(content).keys()}

    def begin(self) -> None:
        """Go on with what is there, if the same weights made it; else begin anew.

        Label maps of other weights stay until new ones take their places, and are listed no longer.
        """
        with self._locked():
            content = _read(self.path)
            written = _written(content)
            self._changed = _changed_files(self.path.parent, written)
            if content is not None and not self._is_mine(content):
                logger.info(
                    "%s: %d label map(s) there were made by other weights or options; they are made again "
                    "where their scans are given, and listed no longer.",
                    self.path.parent,
                    len(_cases(content)),
                )
                content = None
            self._write({**(content or {**self._head, "cases": {}, "failed": {}}), WRITTEN: written})
            self._known = _cases(content)

    def finished(self, case: str, source: CaseSource) -> dict[str, Any] | None:
        """What was known at the beginning of a case that is done: of the same scan, by the same weights."""
        found = self._known.get(case, {})
        is_same = (found.get("source"), found.get("stamp")) == (source.source, source.stamp)
        mask = self.path.parent / str(found.get("mask"))
        return found if is_same and mask.is_file() and mask.name not in self._changed else None

    def check_mask(self, case: str, mask: str, source: CaseSource) -> list[str]:
        """Say, as a warning, whose label map a new one takes the place of, if that is another scan's.

        Raises:
            DataError: somebody has changed the label map that is there, as by hand; it is not overwritten.
        """
        if mask in self._changed:
            raise DataError(
                f"{self.path.parent / mask} was changed after misfm wrote it; move it away, or delete it, "
                "to have it made again."
            )
        before = self._known.get(case, {}).get("path")
        if before in (None, source.path):
            return []
        return [f"{mask} was the label map of {before} before and is that of {source.path} now."]

    def writing(self, mask: str) -> None:
        """Forget a label map that is about to be written: a stop right after must not look like a change."""
        with self._locked():
            content = self._mine()
            crc32 = content[WRITTEN].pop(mask, None)
            if crc32 is not None:
                self._forgotten[mask] = crc32
                self._write(content)

    def remember(self) -> None:
        """Know again the label maps that were not written after all: they are as they were."""
        folder = self.path.parent
        there = {name: crc32 for name, crc32 in self._forgotten.items() if (folder / name).is_file()}
        self._forgotten.clear()
        same = {name: crc32 for name, crc32 in there.items() if _is_file_of(folder / name, crc32)}
        if same:
            with self._locked():
                content = self._mine()
                self._write({**content, WRITTEN: {**same, **content[WRITTEN]}})

    def add(self, case: str, result: CaseResult) -> None:
        """Note what became of a case, at once on disk."""
        self._forgotten.pop(result.mask, None)
        self._update(case, result.as_json(), None)

    def fail(self, case: str, reason: str) -> None:
        """Note why there is no label map of a case."""
        self._update(case, None, reason)

    def _update(self, case: str, result: dict[str, Any] | None, reason: str | None) -> None:
        with self._locked():
            content = self._mine()
            if result is not None:
                content[WRITTEN][result["mask"]] = result["crc32"]
            for part, value in (("cases", result), ("failed", reason)):
                content.setdefault(part, {}).pop(case, None)
                if value is not None:
                    content[part][case] = value
            self._write(content)

    def _mine(self) -> dict[str, Any]:
        """The content.

        Raises:
            ConfigError: another command has begun anew.
        """
        content = _read(self.path)
        if content is None or not self._is_mine(content):
            raise ConfigError(
                f"{self.path} was changed by another command meanwhile, with other weights or options; "
                "give each an output folder of its own."
            )
        return {**content, WRITTEN: _written(content)}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.path.with_name(f".{FILE_NAME}.lock")
        with hold(lock, f"{lock} is held by this process already.", waiting=lambda: None, remove=True):
            yield

    def _is_mine(self, content: Mapping[str, Any]) -> bool:
        """Whether the same weights, wherever they lie, made what is listed, in the same way."""
        return _hashes(content) == _hashes(self._head) and all(
            content.get(name) == self._head[name] for name in ("format_version", "made_with")
        )

    def _write(self, content: Mapping[str, Any]) -> None:
        write_json(self.path, {**content, CHECKSUM: _checksum(content)})


def _read(path: Path) -> dict[str, Any] | None:
    """The content, None where there is no such file.

    Raises:
        DataError: it is not as it was written.
    """
    try:
        content = read_json(path, paths=True)
        if content.pop(CHECKSUM, None) != _checksum(content):
            raise Malformed("it is not as misfm wrote it")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it, and the label maps there are made again."
        ) from error
    return dict(content)


def read_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what ``predictions.json`` says of each case in a folder of label maps; see :class:`CaseResult`.

    Raises:
        DataError: there is none, or it is damaged.
    """
    content = _read(folder / FILE_NAME)
    if content is None:
        raise DataError(f"{folder} holds no {FILE_NAME}; give a folder that 'misfm predict' wrote.")
    return _cases(content)


def outdated(folder: Path, masks: Iterable[str]) -> str | None:
    """Say, in a sentence, which of the label maps in a folder its ``predictions.json`` does not list.

    These are what an earlier command left where a newer one failed or was not given the scan. None where all
    are listed, or there is no such file.
    """
    try:
        content = _read(folder / FILE_NAME)
    except DataError:
        return f"{folder / FILE_NAME} cannot be read: of which weights label maps there are is not known."
    if content is None:
        return None
    listed = {str(case.get("mask")) for case in _cases(content).values()}
    others = sorted(set(masks) - listed)
    if not others:
        return None
    some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return (
        f"{folder / FILE_NAME} does not list {some}, or says that the case failed: what is there is probably "
        "of an earlier command, and not of the weights that made the others."
    )


def _checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of everything else, however it is laid out."""
    return checksum(json.dumps(content, sort_keys=True).encode())


def _cases(content: Mapping[str, Any] | None) -> dict[str, Any]:
    cases = (content or {}).get("cases")
    return {name: of for name, of in cases.items() if isinstance(of, dict)} if isinstance(cases, dict) else {}


def _written(content: Mapping[str, Any] | None) -> dict[str, Any]:
    """CRC-32 of each label map as last written, by its name; files of earlier versions list cases alone."""
    written = (content or {}).get(WRITTEN)
    listed = {str(case.get("mask")): case.get("crc32") for case in _cases(content).values()}
    return dict(written) if isinstance(written, dict) else listed


def _changed_files(folder: Path, written: Mapping[str, Any]) -> set[str]:
    """Names of the label maps that are not as they were written."""
    there = {name: folder / name for name in written if Path(name).name == name and (folder / name).is_file()}
    return {name for name, path in there.items() if not _is_file_of(path, written[name])}


def _is_file_of(path: Path, crc32: Any) -> bool:
    return bool(checksum(path.read_bytes()) == crc32)


def _hashes(content: Mapping[str, Any]) -> list[str]:
    weights = content.get("weights")
    return sorted(str(one.get("sha256")) for one in weights) if isinstance(weights, list) else []

"""The contract every reader follows; a new family of formats is one new file in this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from misfm.registry import Registry
from misfm.volume import Volume, empty_volume


class Reader(ABC):
    """Reads the files of a family of formats.

    Readers raise whatever their library raises about a damaged file: ``read_volume`` makes one sentence of
    it. A library that prints remarks is kept quiet while it reads (:mod:`misfm.data.quiet`); nothing that
    belongs to the whole process is left changed. What a header promises is compared with what the file holds
    before memory is taken for it (``check_shape``, :mod:`misfm.data.readers.content`), and no file is opened
    that a header names before it is known to be one (``check_regular``).
    """

    title: ClassVar[str]
    """What a format is called in messages, e.g. ``"NIfTI"``."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Ends of the names, in lower case and with the dot, of the files that it reads."""

    def recognises(self, path: Path) -> bool:
        """Whether the content of ``path`` is of this format.

        Asked of folders, of files whose name tells no format, and where the reader that the name tells fails.
        """
        return False

    @abstractmethod
    def read(self, path: Path) -> Volume:
        """Read one scan on the file's own grid.

        Args:
            path: exists; a file with one of the suffixes, or what ``recognises`` said yes to.

        Returns:
            Volume (1, D, H, W); ``misfm.data.checks`` has the checks that every scan passes, ``make_volume``
            being the last of them.

        Raises:
            DataError: no scan that can be used.
            Exception: whatever the library raises.
        """

    def grid(self, path: Path) -> Volume:
        """Read the grid of a scan, by its header alone where that can be done.

        Args and errors are those of :meth:`read`.

        Returns:
            A volume (1, D, H, W) whose voxels mean nothing.
        """
        volume = self.read(path)
        return empty_volume(volume.shape, volume.affine)

    def beside(self, path: Path) -> list[Path]:
        """Further files that a file needs, such as that of the voxels of a header."""
        return []


@dataclass(frozen=True)
class Series(ABC):
    """Files that are one scan together, in the order of their paths.

    Attributes:
        uid: DICOM's SeriesInstanceUID, or what else names the series; two patients may share one.
        files: at least one.
        modality: a hint of what kind of scan it is, such as DICOM's ``CT``.
        study_uid: DICOM's StudyInstanceUID; empty where there is none.
        patient_id: DICOM's PatientID; names the patient, so it goes into no store, log or weights.
        part: which of several scans in one series it is, such as ``"time 2"``; empty where there is one.
        notes: what :meth:`read` had to repair, a clause each that names no file; filled in by it.
    """

    uid: str
    files: tuple[Path, ...]
    modality: str | None
    study_uid: str = ""
    patient_id: str = ""
    part: str = ""
    notes: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def number(self) -> str:
        """What people call the series by within its study, such as DICOM's SeriesNumber; may be empty."""
        return ""

    @abstractmethod
    def read(self) -> Volume:
        """Read the scan; see :meth:`Reader.read`."""


@dataclass(frozen=True)
class Listing:
    """What files of a format hold.

    Attributes:
        series: the scans, in the order of their files.
        damaged: files that cannot be read.
        passed: files that hold no scan, by what they are instead, in words for people.
    """

    series: list[Series]
    damaged: list[Path] = field(default_factory=list)
    passed: dict[str, list[Path]] = field(default_factory=dict)


class SeriesReader(Reader):
    """Reads formats in which one scan is many files."""

    @abstractmethod
    def list_series(self, files: Iterable[Path]) -> Listing:
        """Group files that this reader takes, wherever they lie; what is no scan is passed over."""

    @abstractmethod
    def series_at(self, path: Path) -> Series:
        """Return the series of a folder that holds one, or the series that one file belongs to.

        Raises:
            DataError: no series there, or several in a folder.
        """

    def read(self, path: Path) -> Volume:
        """Read the series of a folder, or the one that a file belongs to."""
        return self.series_at(path).read()


READERS: Registry[type[Reader]] = Registry("reader", "misfm.data.readers")

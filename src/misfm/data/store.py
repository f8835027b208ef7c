"""The store: a folder of preprocessed volumes whose patches are read without loading the volume.

``store.json`` holds the format and the settings, ``index.sqlite`` the records, ``volumes/ID.b2nd`` an image,
``volumes/ID.label.b2nd`` its label map and ``volumes/ID.anon.b2nd`` the mask of what was removed to make
the patient unknown, where there are any, and ``volumes/ID.places`` where patches may be centred. A volume
belongs to the store once its row is committed, which happens after its files are complete on disk: a killed
ingest leaves at most files that the next overwrites.

Everything has a checksum, which is verified when it is read; of a file, the first time a process reads it.
Stores of format 1 had none: they are read unchecked, and whatever next adds to them adds the checksums.
Those of format 2 had the places in the index, where they stay until a volume is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm import locks
from misfm.data.checksums import MAKE_AGAIN, checksum_of, checksum_of_json
from misfm.data.index import Index
from misfm.data.quarantine import Evidence, Release, now
from misfm.data.record import Checks, Entry, IngestSettings, Record
from misfm.data.records import Records, fingerprint_of
from misfm.data.remote import RemoteFolder
from misfm.data.volume_files import ANONYMISED, IMAGE, LABEL, Places, VolumeFiles, damaged
from misfm.documents import read_json
from misfm.errors import ConfigError, DataError
from misfm.files import make_folder, remove_leftovers, write_json
from misfm.settings import as_option
from misfm.terminal import logger
from misfm.volume import Box, Volume

FORMAT_VERSION = 3
UNCHECKED_VERSION = 1
_READ = (UNCHECKED_VERSION, 2, FORMAT_VERSION)


class Store:
    """An existing store; make one with ``Store.create``, ``Store.open`` or, to add to it, ``Store.writing``.

    Reading opens its files anew each time (0.2 ms), so one store serves any number of threads and forks.

    Attributes:
        path: the folder.
        settings: how its volumes were made.
        pseudonymous: whether it knows scans by pseudonyms only.
    """

    def __init__(
        self,
        path: Path,
        settings: IngestSettings,
        *,
        version: int = FORMAT_VERSION,
        pseudonymous: bool = False,
        source: RemoteFolder | None = None,
    ) -> None:
        self.path = path
        self.settings = settings
        self.pseudonymous = pseudonymous
        self._version = version
        self._source = source
        self._files = VolumeFiles(path / "volumes", source)
        self._index = Index(
            path / "index.sqlite",
            checked=version != UNCHECKED_VERSION,
            numbered=version == FORMAT_VERSION,
        )

    @classmethod
    @contextmanager
    def writing(
        cls, path: str | Path, settings: IngestSettings, *, pseudonymous: bool = False
    ) -> Iterator[Store]:
        """Make a store, or open one, for this process alone to add to; another one's end is waited for.

        What killed processes left half-written is removed. Readers never wait.

        Args:
            path: the folder.
            settings: those of the store.
            pseudonymous: scans come with pseudonyms; a store has all of them so, or none.

        Raises:
            ConfigError: a store with other settings is there, or one with names instead of pseudonyms.
            DataError: the folder cannot be written, or what is there is damaged.
        """
        path = Path(path)

        def waiting() -> None:
            logger.info("Another process adds to the store %s: waiting until it is done.", path)

        with locks.hold(path / ".lock", f"Another process adds to the store {path}.", waiting=waiting):
            store = cls.create(path, settings, pseudonymous=pseudonymous)
            remove_leftovers(path / "volumes")
            store._files.clear_parking()
            yield store
            store._files.clear_parking()
            store.records()  # leaves columns to those who read, where there are many

    @classmethod
    def create(cls, path: str | Path, settings: IngestSettings, *, pseudonymous: bool = False) -> Store:
        """Make a store, or open the one that is there if its settings are the same; see ``writing``.

        Raises:
            ConfigError: a store with other settings is there, or one with names instead of pseudonyms.
            DataError: the folder cannot be written, or what is there is damaged.
        """
        path = Path(path)
        exists = (path / "store.json").exists()
        store = cls.open(path) if exists else cls(path, settings, pseudonymous=pseudonymous)
        if store.settings != settings:
            raise ConfigError(
                f"The store {path} was made with {describe_settings(store.settings)}, not "
                f"{describe_settings(settings)}; use the same settings or another folder."
            )
        if store.pseudonymous != pseudonymous:
            raise ConfigError(
                f"The store {path} knows scans by pseudonyms; give their key file with --pseudonyms."
                if store.pseudonymous
                else f"The store {path} knows scans by their names; choose another folder for pseudonyms."
            )
        make_folder(path / "volumes")
        store._index.create()
        if store._version == FORMAT_VERSION and exists:
            return store
        if not store.is_checked:
            store._add_checksums()
        content = {"format_version": FORMAT_VERSION, "settings": settings.model_dump(mode="json")}
        content["pseudonymous"] = pseudonymous
        write_json(path / "store.json", {**content, "checksum": checksum_of_json(content)})
        return cls(path, settings, pseudonymous=pseudonymous)

    @classmethod
    def open(cls, path: str | Path, *, source: RemoteFolder | None = None) -> Store:
        """Open a store.

        Args:
            path: the folder.
            source: where files come from that are not in it, for it has copies only.

        Raises:
            DataError: no store there, one of a newer format, or settings that were damaged.
        """
        path = Path(path)
        try:
            content = read_json(path / "store.json")
            version, checksum = content["format_version"], content.pop("checksum", None)
            is_damaged = version != UNCHECKED_VERSION and checksum != checksum_of_json(content)
            settings = None if is_damaged else IngestSettings(**content["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if (path / "index.sqlite").exists() and (path / "store.json").exists():
                raise _damaged_settings(path) from error
            raise DataError(
                f"{path} is not a store; make one with 'misfm ingest SOURCE --store {path}'."
            ) from error
        if version not in _READ:
            raise DataError(
                f"The store {path} has format {version}, not {FORMAT_VERSION}; ingest its scans again."
            )
        if settings is None:
            raise _damaged_settings(path)
        pseudonymous = bool(content.get("pseudonymous"))
        return cls(path, settings, version=version, pseudonymous=pseudonymous, source=source)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of the folder; of several that are read as one, of each."""
        return (self._source.url.rpartition("/")[2] if self._source else self.path.resolve().name,)

    @property
    def is_checked(self) -> bool:
        """Whether what it holds has checksums."""
        return self._index.checked

    def add(self, entry: Entry, stamp: str = "") -> Record:
        """Add a volume: its files first, then its row; one from the same source is replaced.

        Args:
            entry: see ``make_entry``.
            stamp: state of the source file, see ``is_known``.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        record = self._files.write(entry)
        self._files.remove(self._index.add(record, stamp))
        return record

    def discard(self, entry: Entry) -> None:
        """Remove what a worker parked of an entry that will not be added."""
        self._files.discard(entry)

    def records(self) -> Records:
        """All volumes, ordered by case name, then id."""
        return self._index.records()

    def find(self, fingerprint: str) -> Record | None:
        """The volume made from voxels with this fingerprint, if any."""
        return self._index.find(fingerprint)

    def read(self, record: Record) -> Volume:
        """The whole image (C, D, H, W) as stored."""
        box = Box((0, 0, 0), record.shape)
        return Volume(self.read_patch(record, box)[0], record.affine)

    def read_label(self, record: Record) -> Volume:
        """The whole label map (1, D, H, W); see ``read_label_patch``."""
        box = Box((0, 0, 0), record.shape)
        return Volume(self.read_label_patch(record, box)[0], record.affine)

    def read_patch(self, record: Record, box: Box) -> tuple[NDArray[Any], Box]:
        """Read part of an image, decompressing only the blocks it touches.

        Args:
            record: one of ``records()``.
            box: the part; where it reaches outside the volume it gets the lowest value (air, background).

        Returns:
            Voxels (C, d, h, w) as stored, int16 or float32, not normalised; and which part of the patch lies
            inside the volume.

        Raises:
            DataError: a damaged store.
        """
        return self._files.read(record, IMAGE, box)

    def read_label_patch(self, record: Record, box: Box) -> tuple[NDArray[Any], Box]:
        """Read part of a label map, (1, d, h, w) padded with 0; see ``read_patch``.

        Raises:
            DataError: a volume without label map, or a damaged store.
        """
        if record.labels is None:
            raise DataError(
                f"Case {record.case} of the store {self.path} has no label map; use labelled cases."
            )
        return self._files.read(record, LABEL, box)

    def read_anonymised_patch(self, record: Record, box: Box) -> NDArray[np.bool_]:
        """Which voxels (d, h, w) of a box were removed to make the patient unknown; none outside the volume.

        Raises:
            DataError: a damaged store.
        """
        if not record.anonymised:
            return np.zeros(box.size, dtype=np.bool_)
        mask, _ = self._files.read(record, ANONYMISED, box)
        hidden: NDArray[np.bool_] = mask[0].astype(np.bool_)
        return hidden

    def anchors(self, record: Record) -> NDArray[np.int16]:
        """Coordinates (N, 3) of up to 4096 random content voxels (body, not air) of an image."""
        return self._places(record, "anchors").reshape(-1, 3)

    def label_anchors(self, record: Record) -> dict[int, NDArray[np.int16]]:
        """Coordinates (N, 3) of up to 1024 random voxels of each label, the background left out."""
        rows = self._places(record, "label_anchors").reshape(-1, 4)
        return {int(value): rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])}

    def fingerprint(self) -> str:
        """Hash of what the store holds, whatever the order it came in."""
        return fingerprint_of(self.records())

    def is_known(self, source: str, stamp: str) -> bool:
        """Whether a source was ingested in this very state (``stamp``: its size and time of change)."""
        return self._index.find_source(source, stamp) is not None

    def faults_of(self, record: Record) -> list[str]:
        """What of a volume is missing or not as it was written."""
        return [*self._files.faults_of(record), *self._faults_of_places(record)]

    def is_whole(self, record: Record) -> bool:
        """Whether what is stored of a volume is there and as it was written; tells what is not."""
        faults = self.faults_of(record)
        for fault in faults:
            logger.warning("%s: making it again from %s.", fault, record.source)
        return not faults

    def has(self, source: str, stamp: str) -> bool:
        """Whether a source was ingested in this very state, and what came of it is whole."""
        record = self._index.find_source(source, stamp)
        return record is not None and self.is_whole(record)

    def add_duplicate(self, source: str, stamp: str, record: Record) -> None:
        """Note that a source holds the same voxels as a volume that is there; what it held before goes."""
        self._files.remove(self._index.add_duplicate(source, stamp, record))

    def quarantine(self, source: str, reason: str, evidence: Evidence | None = None) -> None:
        """Note that a source cannot be used and why, forgotten once it can; what it held before goes."""
        self._files.remove(self._index.quarantine(source, reason, evidence))

    def quarantined(self) -> list[tuple[str, str]]:
        """Sources that could not be used, each with the reason, ordered by source."""
        return self._index.quarantined()

    def evidence(self) -> dict[str, Evidence]:
        """What is known of quarantined sources; nothing of those that an earlier version refused."""
        return self._index.evidence()

    def release(self, name: str) -> Release:
        """Put a quarantined scan back: the next ingest takes it, unless its files have changed by then.

        Args:
            name: its source, or the last part of that.

        Raises:
            ConfigError: no quarantined scan has this name, or several have.
            DataError: it cannot be used, whatever somebody who has looked at it says.
        """
        reasons = dict(self.quarantined())
        found = [source for source in reasons if name in (source, Path(source).name)]
        if len(found) != 1:
            raise ConfigError(
                f"{name} names {len(found)} of the {len(reasons)} quarantined scans of {self.path}; give the "
                f"source of one, as 'misfm info {self.path} --quarantine' lists them."
            )
        (source,) = found
        evidence = self.evidence().get(source)
        if evidence is None or not evidence.is_judgement:
            raise DataError(
                f"{source} cannot be released, for nobody can judge otherwise: {reasons[source].rstrip('.')}."
            )
        release = Release(source=source, stamp=evidence.stamp, reason=reasons[source], when=now())
        self._index.release(release)
        return release

    def released(self) -> list[Release]:
        """Scans that were put back, ordered by source; what was quarantined again is among them."""
        return self._index.released()

    def faults(self) -> list[str]:
        """Read all files and the whole index again, and say in a sentence each what is wrong with them."""
        faults, records = self._index.examine()
        for record in records:
            faults += [str(damaged(record, fault)) for fault in self._files.faults_of(record, again=True)]
            faults += [str(damaged(record, fault)) for fault in self._faults_of_places(record)]
        return faults

    def _places(self, record: Record, kind: Places) -> NDArray[np.int16]:
        """Where patches of a volume may be centred, as rows of coordinates or as the index has them."""
        places = self._files.places(record, kind)
        if places is None:
            places = self._index.blob(record, kind)
        if places is None:
            raise damaged(record, f"{self._files.places_path(record.id)} is missing")
        return places

    def _faults_of_places(self, record: Record) -> Iterator[str]:
        kinds: tuple[Places, ...] = ("anchors", "label_anchors")
        for kind in kinds:
            try:
                self._places(record, kind)
            except DataError as error:
                yield str(error).partition(";")[0]
                return

    def _add_checksums(self) -> None:
        """Give a store of format 1 checksums of what it holds now."""
        logger.info("The store %s has no checksums yet: adding them.", self.path)
        sealed = []
        for record in self.records():
            image, label, anonymised = self._files.checksums(record).values()
            assert image is not None  # every volume has one
            checks = Checks(
                image=image,
                label=label,
                anonymised=anonymised,
                anchors=checksum_of(self._places(record, "anchors").tobytes()),
                label_anchors=checksum_of(self._places(record, "label_anchors").tobytes()),
            )
            sealed.append(record.model_copy(update={"checks": checks}))
        self._index.seal(sealed)


def _damaged_settings(path: Path) -> DataError:
    return DataError(f"{path / 'store.json'} is damaged; delete the store and {MAKE_AGAIN}.")


def describe_settings(settings: IngestSettings) -> str:
    """Say in words how the volumes of a store were made."""
    channels = " and channels together" if settings.channels == "together" else ""
    return f"spacing {as_option(settings.spacing)} and intensity {settings.intensity}{channels}"

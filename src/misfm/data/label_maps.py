"""Label maps in the place of scans: ``--store labels:DIR`` pretrains on shapes, images are drawn for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfm.data.fingerprint import fingerprint
from misfm.data.intensity import ct_normalisation, parse_intensity
from misfm.data.preprocess import canonical, content_box, resample
from misfm.data.readers import read_volume
from misfm.data.record import Entry, IngestSettings, Origin, Record, make_entry
from misfm.data.scan import ScanSource
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.files import write_json
from misfm.synthesis.label_table import FIRST, LabelTable, order
from misfm.terminal import logger
from misfm.volume import Volume

SPACINGS = (1.0, 2.0, 3.5)
"""mm: each label map is kept at these, so that patches show details and whole heads."""
NAMES = "labels.json"
"""Beside label maps: {"names": {"17": "left hippocampus", …}}; what has no name is drawn, not segmented."""
TABLE = "label_table.json"
BODY, AIR = 40, -1000
"""HU of the image that stands in for the one that nobody took: it only shows where the body is."""


def find_label_maps(folder: Path) -> list[Path]:
    """Return the label maps of a folder, sorted.

    Raises:
        DataError: no folder, or fewer than two label maps in it.
    """
    found = sorted(path for path in folder.glob("*.nii*") if path.suffix in (".nii", ".gz"))
    if len(found) < 2:
        raise DataError(
            f"{folder} holds {len(found)} label map(s) (*.nii, *.nii.gz); pretraining needs at least two, "
            "one of them to measure progress on."
        )
    return found


def read_names(folder: Path) -> dict[int, str] | None:
    """Return the names in ``labels.json``, None where there is no such file.

    Raises:
        DataError: a file of another form.
    """
    path = folder / NAMES
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_bytes())["names"]
        return {int(value): str(name) for value, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is not a list of names: write {{"names": {{"1": "liver"}}}} in it.'
        ) from error


def read_table(folder: Path) -> LabelTable:
    """Return what the values in the label maps of a store mean that :func:`ingest_label_maps` wrote to.

    Args:
        folder: the store's.
    """
    path = folder / TABLE
    return LabelTable.model_validate_json(path.read_bytes()) if path.exists() else LabelTable()


def ingest_label_maps(folder: Path, store: Store) -> None:
    """Bring the label maps of a folder into a store, at several spacings; those that are there are skipped.

    Raises:
        DataError: no label maps, a file that cannot be read or holds something else, or more than 200 labels.
        ConfigError: the store was made when they had other labels.
    """
    paths = find_label_maps(folder)
    pending = [path for path in paths if not is_there(path, store)]
    if not pending:
        return
    logger.info("reading %d label maps", len(pending))
    values = values_of(paths)
    names = read_names(folder) or {value: f"label {value}" for value in values}
    table = LabelTable.of(values, names)
    if len(table.names) > 200:
        raise DataError(f"{folder} has {len(table.names)} labels; misfm draws 200 at the most: join some.")
    if len(store.records()) and read_table(store.path) not in (LabelTable(), table):
        raise ConfigError(
            f"The label maps in {folder} have other labels than when {store.path} was made from them: delete "
            "it and the run, or choose another --out."
        )
    write_json(store.path / TABLE, table.model_dump(mode="json"))
    known, others = order(values, names)
    stored = {value: FIRST + place for place, value in enumerate([*known, *others], start=1)}
    for path in pending:
        for entry in entries_of(path, stored, len(known), store.settings):
            store.add(entry, ScanSource(path, path.name).stamp)


def values_of(paths: Sequence[Path]) -> list[int]:
    """Label values of all maps together, sorted."""
    found: set[int] = set()
    for path in paths:
        found |= {int(value) for value in np.unique(read_label_map(path).data)}
    return sorted(found)


def read_label_map(path: Path) -> Volume:
    """Read a label map in canonical orientation.

    Raises:
        DataError: an unreadable file, or values that are not whole numbers from 0 to 65,535.
    """
    volume = read_volume(path)
    data = volume.data
    if len(data) > 1 or data.min() < 0 or data.max() > 65535 or (data != np.rint(data)).any():
        raise DataError(
            f"{path} is no label map: its values are not whole numbers from 0 on; take it out of there."
        )
    return canonical(volume.with_data(data.astype(np.uint16)))


def spacings_of(label_map: Volume) -> list[float]:
    """Return the spacings, mm, at which a label map is kept: none much finer than it is, and one at least."""
    own = min(label_map.spacing)
    return [spacing for spacing in SPACINGS if spacing > 0.7 * own] or [own]


def is_there(path: Path, store: Store) -> bool:
    """Whether a label map is in a store at all spacings; the last bears the name of the file alone."""
    return store.is_known(str(path.absolute()), ScanSource(path, path.name).stamp)


def entries_of(
    path: Path, stored: Mapping[int, int], num_targets: int, settings: IngestSettings
) -> Iterator[Entry]:
    """Yield a label map at each spacing; all have the fingerprint of the file's own voxels."""
    whole = read_label_map(path)
    translate = np.full(65536, FIRST, dtype=np.uint8)
    for value, new in stored.items():
        translate[value] = new
    box = content_box(whole.with_data(as_ct(whole.data > 0)), "ct")
    seen, rule = fingerprint(whole), parse_intensity(settings.intensity)
    assert rule is not None
    targets = range(FIRST + 1, FIRST + 1 + num_targets)
    *finer, last = spacings_of(whole)
    for spacing in (*finer, last):
        label = resample(whole.crop(box), (spacing,) * 3, label=True)
        label = label.with_data(translate[label.data])
        source = str(path.absolute()) + (f" at {spacing:g} mm" if spacing != last else "")
        origin = Origin(path.name.partition(".")[0], source, seen)
        image = label.with_data(as_ct(label.data > FIRST))
        entry = make_entry(origin, image, label, "ct", (ct_normalisation(rule),), settings)
        yield replace(entry, anchors=balanced(entry, targets))


def as_ct(body: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Return an image in HU that shows where the body is, and nothing else."""
    return np.where(body, BODY, AIR).astype(np.int16)


def balanced(entry: Entry, targets: range) -> NDArray[np.int16]:
    """Return places for patches: the body's, and as many of targets, of each structure as of any other."""
    rows = entry.label_anchors
    present = [rows[rows[:, 0] == value, 1:] for value in targets if (rows[:, 0] == value).any()]
    if not present:
        return entry.anchors
    each = max(1, len(entry.anchors) // len(present))
    return np.concatenate([entry.anchors, *(np.resize(places, (each, 3)) for places in present)])


def is_of_people(record: Record) -> bool:
    """Whether a volume of a store is a person's label map."""
    return record.labels is not None and max(record.labels) >= FIRST

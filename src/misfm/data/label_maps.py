"""Label maps in the place of scans: ``--store labels:DIR`` pretrains on shapes, images are drawn for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfm.data.checksums import checksum_of_json
from misfm.data.fingerprint import fingerprint
from misfm.data.intensity import ct_normalisation
from misfm.data.intensity_text import rules_for
from misfm.data.preprocess import canonical, content_box, resample
from misfm.data.readers import read_volume
from misfm.data.record import Entry, IngestSettings, Origin, Record, make_entry
from misfm.data.records import Records
from misfm.data.scan import ScanSource
from misfm.data.store import Store
from misfm.documents import Malformed, read_json
from misfm.errors import ConfigError, DataError
from misfm.files import write_json
from misfm.synthesis.label_table import FIRST, LabelTable, order
from misfm.terminal import logger
from misfm.text import one_line, path_text
from misfm.volume import Volume

SPACINGS = (1.0, 2.0, 3.5)
"""mm: each label map is kept at these, so that patches show details and whole heads."""
NAMES = "labels.json"
"""Beside label maps: {"names": {"17": "left hippocampus", …}}; what has no name is drawn, not segmented."""
TABLE = "label_table.json"
AT, MOST = " at ", 200
"""Between the name of a file and the spacing it is kept at; labels that are drawn at the most."""
LONGEST = 200
"""Characters of a name."""
BODY, AIR = 40, -1000
"""HU of the image that stands in for the one that nobody took: it only shows where the body is."""


def find_label_maps(folder: Path) -> list[Path]:
    """Return the label maps of a folder, sorted.

    Raises:
        ConfigError: no such folder.
        DataError: fewer than two label maps in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"--store labels:DIR takes a folder of label maps, and '{folder}' is none.")
    found = sorted(path for path in folder.glob("[!.]*") if path.name.endswith((".nii", ".nii.gz")))
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
        names = read_json(path)["names"]
        found = {int(value): str(name) for value, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is not a list of names: write {{"names": {{"1": "liver"}}}} in it.'
        ) from error
    long = [name for name in found.values() if len(name) > LONGEST]
    if long:
        raise DataError(f"{path} has a name of {len(long[0]):,} characters: {LONGEST} are the most.")
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        raise DataError(f"{path} calls several values '{twice[0]}': give each a name of its own, or none.")
    return found


def read_table(store: Store) -> LabelTable:
    """Return what the values in the label maps of a store mean that :func:`ingest_label_maps` wrote to.

    Raises:
        DataError: the file is damaged, or gone.
    """
    path, folder = store.path / TABLE, store.path
    if not path.exists():
        if of_people(store.records()).any():
            raise DataError(
                f"{path} is gone, which has the names of the store's labels; give the label maps again as "
                "--store labels:DIR, or delete the store."
            )
        return LabelTable()
    try:
        content = dict(read_json(path))
        known = content.pop("checksum", None)
        if known not in (None, checksum_of_json(content)):  # those of misfm 0.1.0 have none
            raise Malformed("its checksum differs")
        return LabelTable.model_validate(content)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged; delete the store {folder} and the run.") from error


def write_table(folder: Path, table: LabelTable) -> None:
    """Write what :func:`read_table` reads, with a checksum."""
    content = table.model_dump(mode="json")
    write_json(folder / TABLE, {**content, "checksum": checksum_of_json(content)})


def ingest_label_maps(folder: Path, store: Store) -> None:
    """Bring the label maps of a folder into a store, at several spacings; those that are there are skipped.

    Raises:
        DataError: no label maps, a file that cannot be read or holds something else, no value that has a
            name, or more than 200 labels.
        ConfigError: the store was made when label maps or names were others; some that came later are fine.
    """
    with Store.writing(store.path, store.settings) as store:
        paths, names = find_label_maps(folder), read_names(folder)
        check_same(folder, paths, names, store)
        lost = {record.source.partition(AT)[0] for record in store.records() if not store.is_whole(record)}
        pending = [path for path in paths if path_text(path.absolute()) in lost or not is_there(path, store)]
        if pending or not (store.path / TABLE).exists():
            add_label_maps(folder, paths, pending, names, store)


def add_label_maps(
    folder: Path,
    paths: Sequence[Path],
    pending: Sequence[Path],
    names: Mapping[int, str] | None,
    store: Store,
) -> None:
    """Bring the label maps ``pending``, some of ``paths``, into a store, and write what their values mean."""
    logger.info("reading %d of %d label maps", len(pending), len(paths))
    values = values_of(paths)
    named = {value: f"label {value}" for value in values} if names is None else names
    table = LabelTable.of(values, named)
    check_table(folder, table, names, values)
    before = read_table(store) if (store.path / TABLE).exists() else LabelTable()
    if store.records() and before not in (LabelTable(), table):
        raise changed(folder, store)
    write_json(store.path / NAMES, names)
    write_table(store.path, table)
    known, others = order(values, named)
    stored = {value: FIRST + place for place, value in enumerate([*known, *others], start=1)}
    for path in pending:
        for entry in entries_of(path, stored, len(known), store.settings):
            store.add(entry, stamp_of(path))


def check_same(folder: Path, paths: Sequence[Path], names: Mapping[int, str] | None, store: Store) -> None:
    """Check that what a store holds of people is what the folder holds.

    Raises:
        ConfigError: a label map is gone or another one, or names have changed.
    """
    records = store.records()
    sources = records.take(of_people(records)).sources
    stamps = {path_text(path.absolute()): stamp_of(path) for path in paths}
    files = [source.partition(AT)[0] for source in sources]
    same = all(
        file in stamps and store.is_known(source, stamps[file])
        for file, source in zip(files, sources, strict=True)
    )
    try:
        before = read_json(store.path / NAMES) if (store.path / NAMES).exists() else None
    except (OSError, Malformed) as error:
        raise changed(folder, store) from error
    now = None if names is None else {str(value): name for value, name in names.items()}
    if sources and not (same and before == now):
        raise changed(folder, store)


def changed(folder: Path, store: Store) -> ConfigError:
    """Say that a store no longer fits the label maps it was made from."""
    return ConfigError(
        f"Label maps or names in {folder} have changed since {store.path} was made from them: delete it and "
        "the run, or choose another --out."
    )


def check_table(
    folder: Path, table: LabelTable, names: Mapping[int, str] | None, values: Sequence[int]
) -> None:
    """Check that there is something to segment, and tell what is odd about the names.

    Raises:
        DataError: no value has a name, or there are too many.
    """
    if not table.num_targets:
        raise DataError(
            f"No value in the label maps of {folder} has a name in {NAMES}: there is nothing to segment."
        )
    if len(table.names) - 1 > MOST:
        raise DataError(
            f"{folder} has {len(table.names) - 1} labels; misfm draws {MOST} at the most: join some."
        )
    missing = sorted(set(names or ()) - set(values) - {0})
    if missing:
        logger.warning("%s names values that no label map holds, such as %d.", folder / NAMES, missing[0])
    if alone := table.unpaired():
        logger.warning("'%s' has no counterpart on the other side, so nothing is mirrored.", alone[0])


def values_of(paths: Sequence[Path]) -> list[int]:
    """Label values of all maps together, sorted.

    Raises:
        DataError: a file that cannot be read, or is no label map, or an empty one.
    """
    found: set[int] = set()
    for path in paths:
        own = {int(value) for value in np.unique(read_label_map(path).data)}
        if own == {0}:
            raise DataError(f"{path} holds no label: take it out of there.")
        found |= own
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
            f"{path} is no label map: its values are not whole numbers from 0 to 65,535; take it out of"
            " there."
        )
    return canonical(volume.with_data(data.astype(np.uint16)))


def spacings_of(label_map: Volume) -> list[float]:
    """Return the spacings, mm, at which a label map is kept: none much finer than it is, and one at least."""
    own = min(label_map.spacing)
    return [spacing for spacing in SPACINGS if spacing > 0.7 * own] or [own]


def is_there(path: Path, store: Store) -> bool:
    """Whether a label map is in a store at all spacings; the last bears the name of the file alone."""
    return store.is_known(path_text(path.absolute()), stamp_of(path))


def stamp_of(path: Path) -> str:
    """Size and time of change of a file."""
    return ScanSource(path, path.name).stamp


def entries_of(
    path: Path, stored: Mapping[int, int], num_targets: int, settings: IngestSettings
) -> Iterator[Entry]:
    """Yield a label map at each spacing; all have the fingerprint of the file's own voxels."""
    whole = read_label_map(path)
    translate = np.full(65536, FIRST, dtype=np.uint8)
    for value, new in stored.items():
        translate[value] = new
    box = content_box(whole.with_data(as_ct(whole.data > 0)), ["ct"])
    seen, (rule,) = fingerprint(whole), rules_for(settings.intensity, ["ct"])
    targets = range(FIRST + 1, FIRST + 1 + num_targets)
    spacings = spacings_of(whole)
    for spacing in spacings:
        label = resample(whole.crop(box), (spacing,) * 3, label=True)
        label = label.with_data(translate[label.data])
        source = path_text(path.absolute()) + (f"{AT}{spacing:g} mm" if spacing != spacings[-1] else "")
        origin = Origin(one_line(path.name.removesuffix(".gz").removesuffix(".nii")), source, seen)
        image = label.with_data(as_ct(label.data > FIRST))
        entry = make_entry(origin, image, label, ["ct"], (ct_normalisation(rule),), settings)
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


def of_people(records: Sequence[Record]) -> NDArray[np.bool_]:
    """Whether each volume is a person's label map, whose background, too, has a value of its own."""
    found: NDArray[np.bool_] = Records.of(records).least_labels >= FIRST
    return found

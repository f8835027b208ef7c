"""What a store of 110,000 volumes costs before a single voxel is read: listing, splitting and drawing.

    python benchmarks/store_scale.py --work FOLDER [--volumes 110000]

Fills the index of a store with records such as those of CT and MR from a dozen data sets, without the files
of the volumes (but for the places of a few, to read them), and measures each thing in a process of its own:
seconds of the processor, so what else the machine does counts little, and memory on top of an idle one.
*format 2* is the same store with the places in the index, as before; read by the checkout at --before (its
``src``), and by this one. Prints one JSON line; writes benchmarks/results/store_scale.json and
store_scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
SOURCE = Path(__file__).parents[1] / "src"
BATCH = 4
DRAWS = 200
SETS = tuple(f"ds{number:06d}" for number in range(12))
PLACED = 64
"""Volumes of format 3 whose places are written."""


def main() -> None:
    """Fill the stores, measure, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="made where missing; holds the stores")
    parser.add_argument("--volumes", type=int, default=110_000)
    parser.add_argument("--before", type=Path, help="src of a checkout that writes format 2")
    parser.add_argument("--part", choices=PARTS, help="of the measurement; for this script itself")
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments.store)))
        return
    rows: dict[str, Any] = {"volumes": arguments.volumes}
    for layout in (2, 3):
        store = arguments.work / f"format_{layout}"
        if not (store / "store.json").exists():
            fill(store, arguments.volumes, layout)
    for name, layout, source in (
        ("format 2, before", 2, arguments.before),
        ("format 2", 2, SOURCE),
        ("format 3", 3, SOURCE),
    ):
        store = arguments.work / f"format_{layout}"
        if source is not None:
            rows[name] = {**sizes(store), **measure(store, source, arguments.volumes)}
    print(json.dumps(rows))
    if arguments.volumes >= 100_000:
        write(rows)


def fill(folder: Path, count: int, layout: int) -> None:
    """Write a store of ``count`` volumes without their voxels."""
    from misfm.data.checksums import checksum_of_json
    from misfm.data.columns import row_check
    from misfm.data.index import Index
    from misfm.data.record import IngestSettings
    from misfm.files import make_folder, write_json

    make_folder(folder / "volumes")
    index = Index(folder / "index.sqlite")
    index.create()
    generator = np.random.default_rng(0)
    total = 0
    with index._transaction(write=True) as database:
        for number in range(count):
            record, places = volume(number, generator)
            if layout == 3 and number < PLACED:
                write_places(folder, record, places)
            columns = (record.id, record.case, record.source, record.fingerprint, record.model_dump_json())
            check = row_check(columns)
            total ^= check
            held = (places.tobytes(), b"") if layout == 2 else (None, None)
            database.execute("INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*columns, *held, check))
            database.execute("INSERT INTO sources VALUES (?, ?, ?)", (record.source, "123 456", record.id))
        database.execute("UPDATE tally SET volumes = ?, checks = ?", (count, total))
        database.execute(f"PRAGMA user_version = {7 if layout == 3 else 0}")
    settings = IngestSettings(spacing=(1.5, 1.5, 1.5)).model_dump(mode="json")
    content = {"format_version": layout, "settings": settings, "pseudonymous": False}
    write_json(folder / "store.json", {**content, "checksum": checksum_of_json(content)})


def volume(number: int, generator: np.random.Generator) -> tuple[Any, Any]:
    """Return the record of a volume, and 4096 places in it, (N, 3) int16."""
    from misfm.data.checksums import checksum_of
    from misfm.data.intensity import Normalisation
    from misfm.data.record import Checks, Record

    numbers = generator.integers(0, 2**63, 12)
    shape = tuple(int(side) for side in generator.integers(90, 330, 3))
    flat = np.sort(generator.integers(0, shape[0] * shape[1] * shape[2], 4096))
    places = np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int16)
    is_ct = number % 3 == 0
    rule = Normalisation(lower=-1000, upper=1000, shift=0, scale=1000)
    if not is_ct:
        low, high, mean, spread = sorted(generator.normal(300, 200, 4).tolist())
        rule = Normalisation(lower=low, upper=high, shift=mean, scale=spread)
    name = f"sub-{number:06d}_ses-{number % 7:02d}_{'CT' if is_ct else 'T1w'}"
    record = Record(
        id=f"{int(numbers[0]):016x}{number:08x}",
        case=name,
        source=f"/data/collections/{SETS[number % len(SETS)]}/sub-{number:06d}/anat/{name}.nii.gz",
        channels=1,
        shape=shape,
        spacing=(1.5, 1.5, 1.5),
        rows=((-1.5, 0, 0, *generator.normal(0, 90, 1)), (0, -1.5, 0, 4), (0, 0, 1.5, 5), (0, 0, 0, 1)),
        kind="ct" if is_ct else "mr",
        normalisation=(rule,),
        lowest=(-1024.0 if is_ct else 0.0,),
        labels=None,
        fingerprint="v2:" + "".join(f"{int(part):016x}" for part in numbers[1:5]),
        checks=Checks(
            image=(int(numbers[5]) >> 32, int(numbers[6]) >> 38),
            label=None,
            anonymised=None,
            anchors=checksum_of(places.tobytes()),
            label_anchors=checksum_of(b""),
        ),
    )
    return record, places


def write_places(folder: Path, record: Any, places: Any) -> None:
    """Write the places of a volume beside where its voxels would be."""
    from misfm.data.places import pack_places

    content = pack_places(places, np.empty((0, 4), dtype=np.int16), record.shape)
    (folder / "volumes" / f"{record.id}.places").write_bytes(content)


def sizes(store: Path) -> dict[str, float]:
    """Bytes on disk: of the index, of its columns where there are any, of the places of all volumes."""
    places = [path.stat().st_size for path in (store / "volumes").iterdir()]
    columns = store / ".index.columns"
    found = {"index, MB": (store / "index.sqlite").stat().st_size / 1e6}
    if columns.exists():
        found["columns, MB"] = columns.stat().st_size / 1e6
    if places:
        found["places beside a volume, kB"] = float(np.mean(places)) / 1e3
    return {name: round(value, 2) for name, value in found.items()}


def measure(store: Path, source: Path, count: int) -> dict[str, float]:
    """Measure each part in a process of its own, that imports misfm from ``source``."""
    found: dict[str, float] = {}
    for part in PARTS:
        command = [sys.executable, __file__, "--work", ".", "--part", part, "--store", str(store)]
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found.update(json.loads(done.stdout.splitlines()[-1]))
    return found


def list_first(path: Path) -> dict[str, float]:
    """List all volumes in a process that finds no columns, as the first after a change does."""
    from misfm.data.store import Store

    (path / ".index.columns").unlink(missing_ok=True)
    seconds, memory = spent(lambda: Store.open(path).records())
    return {"list after a change, s": seconds, "list after a change, MB": memory}


def list_again(path: Path) -> dict[str, float]:
    """List all volumes as every other process does, and touch one."""
    from misfm.data.store import Store

    seconds, memory = spent(lambda: Store.open(path).records()[12345 % 1000].shape)
    return {"list, ms": 1e3 * seconds, "list, MB": memory}


def split(path: Path) -> dict[str, float]:
    """Split into training and held-out volumes as a pretraining does, and fingerprint both."""
    from misfm.config import PretrainSettings
    from misfm.data.store import Store
    from misfm.planning.volumes import check_channels, ids_of, scans_of, split_records
    from misfm.resolve import resolve

    settings = resolve(PretrainSettings, recipe="small", options={"store": str(path)}, assignments=[])
    store = Store.open(path)

    def work() -> None:
        parts = split_records(store.records(), settings)
        for part in parts:
            check_channels(part, str(path))
        ids_of(*parts)
        scans_of(parts[0])

    seconds, memory = spent(work)
    return {"split, s": seconds, "split, MB": memory}


def draw(path: Path) -> dict[str, float]:
    """Draw which volumes make up a batch, and a place in each."""
    from misfm import seeding
    from misfm.data import patches
    from misfm.data.store import Store
    from misfm.seeding import generator_for

    store = Store.open(path)
    records = store.records()
    placed = list(records[:PLACED]) if path.name == "format_2" else with_places(path, records)

    def batches() -> None:
        for step in range(DRAWS):
            generator = generator_for(0, "patches", step)
            if hasattr(patches, "draw_records"):  # of the checkout before
                patches.draw_records(records, BATCH, generator)
            else:
                [records[place] for place in seeding.draw_different(len(records), BATCH, generator)]

    def boxes() -> None:
        for step in range(DRAWS):
            record = placed[step % len(placed)]
            patches.draw_box(store.anchors(record), record.shape, (64, 64, 64), generator_for(0, step))

    batches()
    boxes()
    return {
        "draw the volumes of a batch, ms": 1e3 * spent(batches)[0] / DRAWS,
        "draw a place, ms": 1e3 * spent(boxes)[0] / DRAWS,
    }


def with_places(path: Path, records: Any) -> list[Any]:
    """Return volumes whose places can be read: all of format 2, some of format 3."""
    if path.name == "format_2":
        return list(records[:PLACED])
    there = {file.stem for file in (path / "volumes").iterdir()}
    return [records[place] for place, identity in enumerate(records.ids) if identity in there]


def spent(work: Any) -> tuple[float, float]:
    """Return the seconds of the processor that something takes, and the MB that the process grows by."""
    before = resident()
    start = time.process_time()
    kept = work()
    seconds = time.process_time() - start
    del kept
    return round(seconds, 5), round(peak() - before, 1)


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    """MB that this process had in memory at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def write(rows: dict[str, Any]) -> None:
    """Write results as JSON and as a table."""
    from misfm.files import write_json, write_text

    write_json(RESULTS / "store_scale.json", rows)
    columns = [name for name in rows if isinstance(rows[name], dict)]
    measures = list(dict.fromkeys(name for column in columns for name in rows[column]))
    lines = [f"| {rows['volumes']:,} volumes | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in measures:
        cells = [f"{rows[column][name]:.4g}" if name in rows[column] else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_text(RESULTS / "store_scale.md", "\n".join(lines) + "\n")


PARTS = {"list_first": list_first, "list_again": list_again, "split": split, "draw": draw}

if __name__ == "__main__":
    main()

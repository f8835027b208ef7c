"""Generated anatomy in the place of scans: ``--store phantom`` pretrains without any data."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from misfm.data.checks import REVERSED
from misfm.data.dataset import Dataset
from misfm.data.ingest import ingest_dataset
from misfm.data.label_maps import find_label_maps, ingest_label_maps
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.data.writers import write_label_map
from misfm.documents import Malformed, read_json
from misfm.errors import ConfigError
from misfm.files import make_folder, write_bytes, write_json
from misfm.synthesis.generate import TO_PRETRAIN_ON, PhantomSettings, generate_phantom
from misfm.synthesis.structures import NUM_ORGANS, NUM_STRUCTURES, ORGAN_NAMES
from misfm.terminal import logger
from misfm.volume import Volume

PREFIX, LABELS = "phantom", "labels"
DEFAULT_NUM_VOLUMES, MOST_VOLUMES = 200, 100_000
FOLDER = "phantoms"
"""Appended to the name of the run folder, beside which the generated store lies."""
SETTINGS = IngestSettings(spacing="native", intensity="ct:-200,600")


def is_generated(store: str) -> bool:
    """Whether the name of a store asks for generated anatomy, or for images drawn for label maps."""
    return store.partition(":")[0] in (PREFIX, LABELS) and not Path(store).exists()


def open_store(store: str, out: Path) -> Store:
    """Open a store, or generate one with label maps beside the run; generated once, and the same every time.

    ``phantom:COUNT``, ``labels:DIR`` and ``phantom:COUNT+labels:DIR`` are generated; all else is a folder.

    Raises:
        DataError: no store there, or no label maps.
        ConfigError: ``phantom:`` followed by anything but a number from 2 to 100,000.
    """
    if not is_generated(store):
        return Store.open(store)
    phantoms, folder = parts_of(store)
    if phantoms is not None:
        made = generate(num_volumes(phantoms), out, SETTINGS)
    else:
        made = Store.create(out.with_name(f"{out.name}-{FOLDER}") / "store", SETTINGS)
    if folder is not None:
        ingest_label_maps(folder, made)
    return made


def parts_of(store: str) -> tuple[str | None, Path | None]:
    """Return what the name of a store asks for: generated anatomy and a folder of label maps, None if not.

    Raises:
        ConfigError: ``labels:`` without a folder.
        DataError: too few label maps in it.
    """
    both = re.fullmatch(rf"(?:({PREFIX}[^+]*)\+)?{LABELS}:(.*?)(?:\+({PREFIX}(?::\d*)?))?", store)
    if both is None:
        return store, None
    if not both[2]:
        raise ConfigError(f"--store {LABELS}:DIR takes a folder of label maps.")
    find_label_maps(Path(both[2]))
    return both[1] or both[3], Path(both[2])


def num_volumes(store: str) -> int:
    """Return how many volumes the name of a store asks for.

    Raises:
        ConfigError: ``phantom:`` followed by anything but a number of two or more.
    """
    phantoms, _ = parts_of(store)
    _, _, text = (phantoms or PREFIX).partition(":")
    count = text or str(DEFAULT_NUM_VOLUMES)
    if not count.isdecimal() or len(count) > len(str(MOST_VOLUMES)) or not 2 <= int(count) <= MOST_VOLUMES:
        raise ConfigError(f"--store {PREFIX}:COUNT takes a number from 2 to {MOST_VOLUMES}, got '{text}'.")
    return int(count)


def generate_beside(scans: Store, count: int, out: Path) -> Store:
    """Generate volumes to learn from together with scans, their intensities prepared by the same rule.

    Raises:
        ConfigError: see :func:`check_beside`.
    """
    check_beside(scans)
    rule = scans.settings.intensity
    intensity = scans.records()[0].kind if rule == "auto" else rule
    return generate(count, out, IngestSettings(spacing="native", intensity=intensity))


def check_beside(scans: Store) -> None:
    """Check that generated anatomy goes with scans.

    Raises:
        ConfigError: the scans have several channels, or are CT and MR, and generated anatomy is neither.
    """
    looks, _ = scans.records().looks
    if len({look.kinds[0] for look in looks}) > 1 or any(len(look.kinds) > 1 for look in looks):
        raise ConfigError(
            "Generated anatomy goes with scans of one channel and one kind, CT or MR: ingest them into "
            "stores of their own, or take another pretext task."
        )


def _known(made_with: Path) -> Any:
    """What a store was generated with; None where its note is damaged."""
    try:
        return read_json(made_with)
    except (OSError, Malformed):
        return None


def generate(count: int, out: Path, settings: IngestSettings) -> Store:
    """Generate at least ``count`` volumes into a store beside the run, unless they are there.

    Raises:
        ConfigError: those that are there, from an earlier run of that name, have other intensities or are
            of another version of the generator.
    """
    folder = out.with_name(f"{out.name}-{FOLDER}")
    made_with = folder / "phantoms.json"
    look = {
        "structures": NUM_STRUCTURES,
        "regions": [region.model_dump(mode="json") for region in TO_PRETRAIN_ON],
    }
    if not (folder / "store").exists():
        write_json(made_with, look)
    elif not made_with.exists() or _known(made_with) != look:
        raise ConfigError(
            f"{folder} was generated by another version of misfm: delete it and the run, or choose another "
            "--out."
        )
    store = Store.create(folder / "store", settings)
    shares = [(count + i) // len(TO_PRETRAIN_ON) for i in range(len(TO_PRETRAIN_ON))]
    names = [
        case_name(region, "tr", i)
        for region, share in zip(TO_PRETRAIN_ON, shares, strict=True)
        for i in range(share)
    ]
    missing = set(names) - {record.case for record in store.records() if store.is_whole(record)}
    scratch = folder / "dataset"
    # What a killed generation left there may be cut short, and more than is asked for now.
    shutil.rmtree(scratch, ignore_errors=True)
    if missing:
        logger.info("generating %d scans", count)
        for seed, (region, share) in enumerate(zip(TO_PRETRAIN_ON, shares, strict=True)):
            write_phantom_dataset(scratch, num_train=share, num_test=0, seed=seed, settings=region)
        dataset = Dataset.open(scratch)
        cases = [case for case in dataset.cases() if case.name in missing]
        ingest_dataset(dataset, cases, store.path, settings)
        shutil.rmtree(scratch)
    return store


def write_phantom_dataset(
    dataset_dir: Path, *, num_train: int, num_test: int, seed: int, settings: PhantomSettings | None = None
) -> None:
    """Write a labelled dataset in nnU-Net's layout: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json.

    Case ``i`` of a part depends on ``seed``, ``i`` and the settings, not on how many there are. Written
    into one folder, cases of two regions stand side by side.

    Raises:
        DataError: the folder cannot be written.
    """
    settings = settings or PhantomSettings()
    for part, (suffix, count) in enumerate((("Tr", num_train), ("Ts", num_test))):
        make_folder(dataset_dir / f"images{suffix}")
        for i in range(count):
            image, label = generate_phantom(settings, np.random.default_rng((seed, part, i)))
            name = case_name(settings, suffix.lower(), i)
            _write_scan(dataset_dir / f"images{suffix}" / f"{name}_0000.nii.gz", image)
            write_label_map(dataset_dir / f"labels{suffix}" / f"{name}.nii.gz", label)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **label_names(settings)},
        "numTraining": len(list((dataset_dir / "imagesTr").iterdir())),
        "file_ending": ".nii.gz",
    }
    write_json(dataset_dir / "dataset.json", description)


def case_name(settings: PhantomSettings, part: str, i: int) -> str:
    """Name of a case; ``part`` is "tr" or "ts"."""
    prefix = "phantom" if settings.region == "trunk" else settings.region
    return f"{prefix}_{part}_{i:03d}"


def label_names(settings: PhantomSettings) -> dict[str, int]:
    """Names and values of the labels: of organs, and of other structures by their number."""
    organs = {name: value for value, name in ORGAN_NAMES.items()}
    if settings.labels == "organs":
        return organs
    others = range(NUM_ORGANS + 1, NUM_STRUCTURES + 1)
    return organs | {f"structure_{value}": value for value in others}


def write_phantom_scans(
    scan_dir: Path, num_scans: int, seed: int, settings: PhantomSettings | None = None
) -> None:
    """Write unlabelled scans, none of which occurs in a dataset of the same seed.

    Raises:
        DataError: the folder cannot be written.
    """
    settings = settings or PhantomSettings()
    make_folder(scan_dir)
    for i in range(num_scans):
        image, _ = generate_phantom(settings, np.random.default_rng((seed, 2, i)))
        _write_scan(scan_dir / f"scan_{i:04d}.nii.gz", image)


def _write_scan(path: Path, image: Volume) -> None:
    file = nib.Nifti1Image(image.data[0].transpose(2, 1, 0), image.affine[:, REVERSED])
    file.header.set_xyzt_units("mm")
    # Noise hardly compresses, so the fastest level; the fixed time stamp makes equal scans equal files.
    write_bytes(path, gzip.compress(file.to_bytes(), compresslevel=1, mtime=0))

r"""Seconds per patch read of a store, beside nnU-Net's reading of the same volumes, in turns.

    git clone https://github.com/MIC-DKFZ/nnUNet && python benchmarks/patch_reads.py --nnunet nnUNet \
        --store STORE [--patch-size 64 128 128]

Volumes are those of a store, or CT-like ones without ``--store``. nnU-Net keeps them as float32, normalised,
in blocks and chunks by its own formula for the patch size, with the filter that it chooses itself; both
read the same boxes from files in the page cache, one thread each, misfm by what :meth:`Store.read_patch` ends
up calling. The floor is decompressing as many bytes as the blocks have that a patch touches, without opening
a file or copying voxels into place. Prints one JSON line: :mod:`measure`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import blosc2
import numpy as np
from measure import Floor, alternate, cpu_seconds, report
from numpy.typing import NDArray
from volume_fusion import Absent, ct_like

from misfm.data.open_volumes import opened, read_box
from misfm.data.record import pack
from misfm.data.store import Store
from misfm.volume import Box, Shape, triple


def import_nnunet(path: Path | None) -> ModuleType:
    """Return nnU-Net's module of preprocessed data; what it imports beyond need is stood in for."""
    if path is not None:
        sys.path.insert(0, str(path))
    while True:
        try:
            return importlib.import_module("nnunetv2.training.dataloading.nnunet_dataset")
        except ModuleNotFoundError as error:
            if error.name is None or error.name == "nnunetv2":
                raise SystemExit("nnU-Net was not found: give its checkout with --nnunet.") from error
            sys.modules[error.name] = Absent(error.name)


def volumes_of(store: Path | None, most: int) -> list[NDArray[np.int16]]:
    """Return (C, D, H, W) volumes, as they are stored."""
    if store is None:
        made = (ct_like(seed).numpy() * 2000 for seed in range(most))
        return [np.asarray(voxels.round(), np.int16) for voxels in made]
    opened_store = Store.open(store)
    records = opened_store.records()[:most]
    return [
        opened_store.read_patch(record, Box((0, 0, 0), record.shape))[0].astype(np.int16)
        for record in records
    ]


def write_both(nnunet: ModuleType, folder: Path, volumes: list[NDArray[np.int16]], size: Shape) -> None:
    """Write each volume as misfm and as nnU-Net do."""
    nnunet.write_pickle = lambda *_: None  # type: ignore[attr-defined]  # of properties, which nobody reads
    for number, voxels in enumerate(volumes):
        (folder / f"{number}.b2nd").write_bytes(pack(voxels))
        image = ((voxels - voxels.mean()) / voxels.std()).astype(np.float32)
        blocks, chunks = nnunet.comp_blosc2_params(image.shape, size)
        nnunet.nnUNetDatasetBlosc2.save_case(
            *(image, np.zeros(image.shape, np.int16), {}, str(folder / f"nnunet_{number}")),
            **{"chunks": chunks, "blocks": blocks},
        )


def touched(array: Any, box: Box) -> float:
    """Seconds to decompress, in whole chunks, as many voxels as lie in the blocks that a box touches."""
    sides = [
        (-(-stop // side) - start // side) * side
        for start, stop, side in zip(box.start, box.stop, array.blocks[1:], strict=True)
    ]
    began = cpu_seconds()
    array.schunk.decompress_chunk(0)
    spent = cpu_seconds() - began
    return spent * array.shape[0] * float(np.prod(sides)) / float(np.prod(array.chunks))


def main() -> None:
    """Measure and print the line."""
    parser = argparse.ArgumentParser(description="Time patch reads beside nnU-Net's.")
    parser.add_argument("--nnunet", type=Path, help="folder of an nnU-Net checkout")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--patch-size", type=int, nargs=3, default=[64, 128, 128])
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    nnunet, size = import_nnunet(args.nnunet), triple(args.patch_size)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        volumes = volumes_of(args.store, args.volumes)
        write_both(nnunet, folder, volumes, size)
        boxes = []
        for number, voxels in enumerate(volumes):
            side = [min(a, b) for a, b in zip(size, voxels.shape[1:], strict=True)]
            starts = (rng.integers(0, b - a + 1) for a, b in zip(side, voxels.shape[1:], strict=True))
            boxes.append((number, Box(triple(int(start) for start in starts), triple(side))))

        def misfm_reads(_: int) -> None:
            for number, box in boxes:
                read_box(opened(folder / f"{number}.b2nd"), box)

        def misfm_opens(_: int) -> None:
            for number, box in boxes:
                file = str(folder / f"{number}.b2nd")
                read_box(blosc2.open(file, mode="r", mmap_mode="r", dparams={"nthreads": 1}), box)

        def nnunet_reads(_: int) -> None:
            for number, box in boxes:
                path = str(folder / f"nnunet_{number}.b2nd")
                array = blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, mmap_mode="r")
                array[:, *box.slices]

        actions = {"misfm": misfm_reads, "misfm, opening the file": misfm_opens, "nnU-Net": nnunet_reads}
        times = alternate(actions, rounds=args.rounds, count=len(boxes))
        floors = [touched(opened(folder / f"{number}.b2nd"), box) for number, box in boxes * 3]
        megabytes = {
            name: sum(file.stat().st_size for file in folder.glob(pattern)) / 1e6 / len(volumes)
            for name, pattern in (("misfm", "[0-9]*.b2nd"), ("nnU-Net", "nnunet_*[0-9].b2nd"))
        }
    report(
        "patch_reads",
        times,
        per=f"patch of {'x'.join(map(str, size))}",
        floor=Floor("decompressing the blocks that a patch touches", float(np.median(floors))),
        megabytes_per_volume={name: round(value, 2) for name, value in megabytes.items()},
        store=str(args.store or "CT-like volumes of 128x256x256"),
    )


if __name__ == "__main__":
    main()

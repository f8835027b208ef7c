"""Fetch the public data of the studies and convert them, divided into the very same cases.

    python benchmarks/data.py fetch DATA                           # hippocampus and head-neck
    python benchmarks/data.py fetch DATA left-atrium               # has to be asked for: see below
    python benchmarks/data.py convert DATA head-neck open-kbp.zip  # from what you have already
    python benchmarks/data.py check DATA                           # are these the voxels of the studies?

| name | source | licence | makes |
| --- | --- | --- | --- |
| hippocampus | Medical Segmentation Decathlon, Task04_Hippocampus.tar, 28 MB | CC-BY-SA-4.0 | Dataset001_Hippocampus, unlabelled/hippocampus |
| head-neck | github.com/ababier/open-kbp, the files needed, 600 MB in 770 requests | MIT | Dataset002_HeadNeckCT, unlabelled/head_neck_ct |
| left-atrium | github.com/yulequan/UA-MT, 230 MB; needs h5py | none stated | Dataset003_LeftAtrium |

For the left atrium no licence is stated: measure with it, and redistribute neither scans nor weights made from
them. A source to convert is a folder, a tar or zip archive, or a git directory. Downloads go to DATA/sources,
are taken up where they stopped, and can be deleted afterwards. Who is in which part: ``data_splits.json``.
"""  # noqa: E501

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from data_sources import Read, download, from_address, open_source
from numpy.typing import NDArray

Splits = dict[str, Any]
"""Names of cases: train, val, test, unlabelled, and few: lists of train by their length."""

SPLITS = Path(__file__).with_name("data_splits.json")
GITHUB = "https://raw.githubusercontent.com"
OPEN_KBP = f"{GITHUB}/ababier/open-kbp/ce625e62f3b04203f22bd9d1634f3e8fb0245e46"
UA_MT = f"{GITHUB}/yulequan/UA-MT/88ed29ad794f877122e542a7fa9505a76fa83515"
DECATHLON = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar"
DECATHLON_MD5 = "9d24dba78a72977dbd1d2e110310f31b"
FOLDERS = {
    "hippocampus": ("Dataset001_Hippocampus", "unlabelled/hippocampus"),
    "head-neck": ("Dataset002_HeadNeckCT", "unlabelled/head_neck_ct"),
    "left-atrium": ("Dataset003_LeftAtrium",),
}

GRID = 128
"""Voxels along each side of OpenKBP's grid."""
HU_OFFSET, MAX_HU = 1024, 3071
"""Metal goes far beyond what 12 bits hold, and is clipped there."""
NOT_CLIPPED = ("kbp_261",)
"""Its 14 voxels of metal were left as they are when the data of the studies were made."""
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")
LA_SPACING = 0.625
LA_SCALE = 200
LA_VALIDATION = 10
LA_FEW = (1, 2, 4, 5, 8, 10, 16, 20)


def main() -> None:
    """Fetch, convert or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download and convert")
    fetching.add_argument("data", type=Path)
    fetching.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FOLDERS))
    converting = commands.add_parser("convert", help="convert a source that is here already")
    converting.add_argument("data", type=Path)
    converting.add_argument("name", choices=FOLDERS)
    converting.add_argument("source", type=Path)
    commands.add_parser("check", help="compare with the data of the studies").add_argument("data", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "convert":
        convert(arguments.name, open_source(arguments.source), arguments.data)
    elif arguments.command == "fetch":
        names = arguments.names or ["hippocampus", "head-neck"]
        if unknown := [name for name in names if name not in FOLDERS]:
            parser.error(f"no data set is called {unknown[0]}; there are {', '.join(FOLDERS)}")
        for name in names:
            convert(name, download_source(name, arguments.data / "sources"), arguments.data)
    else:
        checked = [check(name, arguments.data) for name in FOLDERS]
        raise SystemExit(0 if all(checked) else 1)


def download_source(name: str, sources: Path) -> Read:
    """Download the archive of a data set; of a repository, each file when it is read."""
    if name == "hippocampus":
        archive = sources / "Task04_Hippocampus.tar"
        download(DECATHLON, archive, md5=DECATHLON_MD5)
        return open_source(archive)
    return from_address(OPEN_KBP if name == "head-neck" else UA_MT, sources / name)


def convert(name: str, read: Read, data: Path) -> None:
    """Make the folders of one data set in ``data``, and compare them with those of the studies."""
    print(f"{name}: converting to {data / FOLDERS[name][0]}", flush=True)
    if name == "left-atrium":
        convert_left_atrium(read, data)
    else:
        splits = json.loads(SPLITS.read_text(encoding="utf-8"))[name]
        {"hippocampus": convert_hippocampus, "head-neck": convert_head_neck}[name](read, splits, data)
    check(name, data)


def convert_hippocampus(read: Read, splits: Splits, data: Path) -> None:
    """Copy files of the Decathlon's training part as they are; its own test part has no public labels."""
    dataset, unlabelled = (data / folder for folder in FOLDERS["hippocampus"])
    for part, name in labelled_cases(splits):
        for kind, target in case_paths(dataset, part, name).items():
            write(target, read(f"{kind}Tr/{name}.nii.gz"))
    for name in splits["unlabelled"]:
        write(unlabelled / f"{name}.nii.gz", read(f"imagesTr/{name}.nii.gz"))
    write_description(
        dataset,
        splits,
        channel="MRI",
        labels=("background", "anterior", "posterior"),
        licence="CC-BY-SA-4.0 (Medical Segmentation Decathlon Task04)",
        reference="Antonelli et al. 2022; Simpson et al. 2019",
    )


def convert_head_neck(read: Read, splits: Splits, data: Path) -> None:
    """Turn OpenKBP's lists of voxels into CT in HU, cropped to the body, and label maps of five organs."""
    dataset, unlabelled = (data / folder for folder in FOLDERS["head-neck"])
    for part, name in labelled_cases(splits):
        image, affine, box = open_kbp_scan(read, name)
        labels = open_kbp_labels(read, name)[box]
        paths = case_paths(dataset, part, name)
        write_nifti(paths["images"], image, affine)
        write_nifti(paths["labels"], labels, affine)
    for name in splits["unlabelled"]:
        image, affine, _ = open_kbp_scan(read, name)
        write_nifti(unlabelled / f"{name}.nii.gz", image, affine)
    write_description(
        dataset,
        splits,
        channel="CT",
        labels=("background", "brainstem", "spinal_cord", "right_parotid", "left_parotid", "mandible"),
        licence="MIT (ababier/open-kbp, data in the repository); CT originate from TCIA collections",
        reference="Babier et al. 2021 Med Phys 48:5549; Clark et al. 2013 (TCIA)",
    )


def open_kbp_folder(name: str) -> str:
    """Where OpenKBP keeps the patient that we call ``kbp_NNN``."""
    number = int(name.removeprefix("kbp_"))
    part = "train" if number <= 200 else "validation" if number <= 240 else "test"
    return f"provided-data/{part}-pats/pt_{number}"


def open_kbp_scan(read: Read, name: str) -> tuple[NDArray[np.int16], NDArray[Any], tuple[slice, ...]]:
    """The CT in HU around the body, its affine, and the box it was cut from.

    OpenKBP lists the voxels of the body by flat index, HU + 1024, on a grid of 128 x 128 x 128 whose axes run
    backwards, to the left and downwards. No position is given: the centre of the grid becomes the origin.
    """
    folder = open_kbp_folder(name)
    indices, values = sparse(read(f"{folder}/ct.csv"))
    grid = np.zeros(GRID**3, np.int16)
    grid[indices] = np.round(values)
    grid = grid.reshape(GRID, GRID, GRID)
    box = tuple(
        slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(grid)
    )  # of values above 0, that is of all but air of -1024 HU
    spacing = np.loadtxt(io.BytesIO(read(f"{folder}/voxel_dimensions.csv")))
    first = spacing * ((GRID - 1) / 2 - np.array([side.start for side in box]))
    affine = np.diag([0.0, 0.0, -spacing[2], 1.0])
    affine[1, 0], affine[0, 1] = -spacing[0], -spacing[1]
    affine[:3, 3] = first[[1, 0, 2]]
    voxels = grid[box] - np.int16(HU_OFFSET)
    return voxels if name in NOT_CLIPPED else np.minimum(voxels, np.int16(MAX_HU)), affine, box


def open_kbp_labels(read: Read, name: str) -> NDArray[np.uint8]:
    """The label map of the five organs on the whole grid; where two overlap, the later one stays."""
    labels = np.zeros(GRID**3, np.uint8)
    for value, organ in enumerate(ORGANS, start=1):
        labels[sparse(read(f"{open_kbp_folder(name)}/{organ}.csv"))[0]] = value
    return labels.reshape(GRID, GRID, GRID)


def sparse(content: bytes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Flat indices and values of one of OpenKBP's CSV files; a mask has no values, which become NaN."""
    rows = [line.split(b",") for line in content.splitlines()[1:] if line]
    values = [float(value) if value else np.nan for _, value in rows]
    return np.array([int(index) for index, _ in rows], np.int64), np.array(values)


def convert_left_atrium(read: Read, data: Path) -> None:
    """Store normalised LGE-MR as integers, by the published lists; the last ten of train become val."""
    try:
        import h5py
    except ImportError:
        raise SystemExit("The scans are HDF5 files: pip install h5py, and start again.") from None
    (folder,) = FOLDERS["left-atrium"]
    train, test = (
        [f"la_{name}" for name in read(f"data/{part}.list").decode().split()] for part in ("train", "test")
    )
    splits = {"train": train[:-LA_VALIDATION], "val": train[-LA_VALIDATION:], "test": test}
    splits["few"] = {str(number): train[:number] for number in LA_FEW if number <= len(splits["train"])}
    affine = np.diag([-LA_SPACING, -LA_SPACING, LA_SPACING, 1.0])  # arrays run to the left, backwards and up
    for part, name in labelled_cases(splits):
        scan = read(f"data/2018LA_Seg_Training Set/{name.removeprefix('la_')}/mri_norm2.h5")
        with h5py.File(io.BytesIO(scan)) as file:
            image, labels = file["image"][...], file["label"][...]
        paths = case_paths(data / folder, part, name)
        whole = np.round((image - image.min()) * LA_SCALE).astype(np.int16)
        write_nifti(paths["images"], whole, affine)
        write_nifti(paths["labels"], labels.astype(np.uint8), affine)
    write_description(
        data / folder,
        splits,
        channel="MR",
        labels=("background", "left_atrium"),
        licence="none stated (yulequan/UA-MT): measure only, redistribute nothing",
        reference="Xiong et al. 2021; Yu et al. 2019",
    )


def labelled_cases(splits: Splits) -> list[tuple[str, str]]:
    """Labelled cases with the ending of their folders."""
    return [("Tr", name) for name in [*splits["train"], *splits["val"]]] + [
        ("Ts", name) for name in splits["test"]
    ]


def case_paths(dataset: Path, part: str, name: str) -> dict[str, Path]:
    """Where image and label map of a case belong."""
    return {
        "images": dataset / f"images{part}" / f"{name}_0000.nii.gz",
        "labels": dataset / f"labels{part}" / f"{name}.nii.gz",
    }


def write_description(
    dataset: Path, splits: Splits, *, channel: str, labels: Sequence[str], licence: str, reference: str
) -> None:
    """Write what makes a folder a dataset; last of all, so that half a conversion is not taken for one."""
    parts = {"train": splits["train"], "val": splits["val"]}
    contents: dict[str, Any] = {
        "fewshot.json": splits["few"],
        "splits_final.json": [parts],
        "dataset.json": {
            "channel_names": {"0": channel},
            "labels": {label: value for value, label in enumerate(labels)},
            "numTraining": len(parts["train"]) + len(parts["val"]),
            "file_ending": ".nii.gz",
            "licence": licence,
            "reference": reference,
        },
    }
    for name, content in contents.items():
        write(dataset / name, json.dumps(content, indent=1).encode())


def write_nifti(path: Path, voxels: NDArray[Any], affine: NDArray[Any]) -> None:
    """Write a NIfTI file in millimetres."""
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    part = path.with_name(f"part-{path.name}")
    part.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, part)
    part.replace(path)


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def check(name: str, data: Path) -> bool:
    """Say whether a data set, where there is one, has the voxels and cases of the studies."""
    if not (data / FOLDERS[name][0] / "dataset.json").exists():
        print(f"{name}: not in {data}")
        return True
    same = digest(name, data) == json.loads(SPLITS.read_text(encoding="utf-8"))["sha256"][name]
    print(f"{name}: {'the data of the studies' if same else 'NOT the data of the studies'}")
    return same


def digest(name: str, data: Path) -> str:
    """A hash of names, voxels, affines and division: of what files hold, not of how it is packed."""
    whole = hashlib.sha256()
    for folder in FOLDERS[name]:
        for path in sorted((data / folder).rglob("*.nii.gz")):
            image = nib.load(path)
            voxels = np.ascontiguousarray(image.dataobj)
            # Millimetres with three decimals do not fall between two of these whole numbers.
            place = np.floor(image.affine * 100 + 0.337).astype(int).tolist()
            whole.update(f"{path.relative_to(data)} {voxels.shape} {voxels.dtype.str} {place}".encode())
            whole.update(voxels.tobytes())
    for file in ("splits_final.json", "fewshot.json"):
        content = json.loads((data / FOLDERS[name][0] / file).read_text(encoding="utf-8"))
        whole.update(json.dumps(content, sort_keys=True).encode())
    return whole.hexdigest()


if __name__ == "__main__":
    main()

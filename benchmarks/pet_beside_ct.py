"""A dataset of real CT with a simulated PET beside it, to try channels of different kinds from end to end.

    python benchmarks/pet_beside_ct.py shared/data/Dataset002_HeadNeckCT Dataset201_PETCT
    misfm ingest Dataset201_PETCT --store both --channels together --intensity ct:-200,600/pet --spacing 4,4,4
    misfm pretrain --store both --out runs/both --steps 200
    misfm finetune --dataset Dataset201_PETCT --weights runs/both --out runs/lesions --steps 400
    misfm predict --run runs/lesions --input Dataset201_PETCT/imagesTs --output masks
    misfm evaluate --predictions masks --references Dataset201_PETCT/labelsTs --out scores.json

Uptake is one in the body, ten in the brainstem and the parotid glands, and four to twelve in one to three
lesions, balls of 8 to 16 mm elsewhere in soft tissue; blurred to 6 mm, with noise, in Bq/ml, of another scale
in each case. Lesions do not show on CT, and hot organs differ from them by what is on CT.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from misfm.data.dataset import Dataset
from misfm.data.preprocess import canonical, resample
from misfm.volume import Volume

SPACING = (4.0, 4.0, 4.0)
HOT_ORGANS = ("brainstem", "parotid")


def simulate(
    ct: NDArray[np.float32], hot: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return uptake (D, H, W) in Bq/ml and the mask of the lesions, for a CT in HU and its hot organs."""
    body = ndimage.binary_fill_holes(ndimage.binary_opening(ct > -300))
    tissue = ndimage.binary_erosion(body, iterations=2) & (ct > -50) & (ct < 150)
    tissue &= ~ndimage.binary_dilation(hot, iterations=3)
    uptake = np.where(body, 1.0, 0.02) * generator.gamma(20, 1 / 20, ct.shape)
    uptake[hot] = 10
    lesions = np.zeros_like(body)
    places = np.argwhere(tissue)
    for _ in range(generator.integers(1, 4)):
        away = np.indices(ct.shape).reshape(3, -1).T - places[generator.integers(len(places))]
        ball = ((away * SPACING) ** 2).sum(1).reshape(ct.shape) < generator.uniform(8, 16) ** 2
        uptake[ball & body] = generator.uniform(4, 12)
        lesions |= ball & body
    uptake = ndimage.gaussian_filter(uptake, 6 / 2.355 / SPACING[0])
    uptake += generator.normal(0, 0.05, ct.shape)
    return (uptake.clip(0) * generator.uniform(500, 5000)).astype(np.float32), lesions


def save(path: Path, voxels: NDArray[Any], volume: Volume) -> None:
    """Write voxels (D, H, W) on the grid of a volume as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]), path)


def main() -> None:
    """Write the dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="labelled CT in nnU-Net's layout")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=8)
    parser.add_argument("--test", type=int, default=8)
    options = parser.parse_args()
    dataset = Dataset.open(options.source)
    hot = [value for value, name in dataset.label_names.items() if any(word in name for word in HOT_ORGANS)]
    cases = dataset.cases()[: options.train + options.test]
    for number, case in enumerate(cases):
        image, label = dataset.read_case(case)
        assert label is not None
        image = resample(canonical(image), SPACING)
        organs = resample(canonical(label), SPACING, label=True)
        generator = np.random.default_rng(number)
        uptake, lesions = simulate(image.data[0], np.isin(organs.data[0], hot), generator)
        part = "Tr" if number < options.train else "Ts"
        folder, name = options.out, case.name
        save(folder / f"images{part}" / f"{name}_0000.nii.gz", image.data[0].astype(np.int16), image)
        save(folder / f"images{part}" / f"{name}_0001.nii.gz", uptake, image)
        save(folder / f"labels{part}" / f"{name}.nii.gz", lesions.astype(np.uint8), image)
    content = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": min(options.train, len(cases)),
        "file_ending": ".nii.gz",
    }
    (options.out / "dataset.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()

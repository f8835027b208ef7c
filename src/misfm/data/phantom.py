"""Generated CT scans: something to try, test and pretrain on without any download."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Annotated, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from misfm.data import canvas as parts
from misfm.data import head_neck, trunk
from misfm.data.canvas import Canvas, smooth_field
from misfm.data.writers import write_label_map
from misfm.errors import DataError
from misfm.files import write_bytes, write_json
from misfm.settings import Settings, Size, Spacing
from misfm.volume import Volume

LABEL_NAMES = {
    parts.LIVER: "liver",
    parts.LEFT_KIDNEY: "left_kidney",
    parts.RIGHT_KIDNEY: "right_kidney",
    parts.SPINAL_CORD: "spinal_cord",
    parts.AORTA: "aorta",
}
"""Label values and names of the organs; other structures have the values after them in ``canvas``."""

NonNegative = Annotated[float, Field(ge=0)]


class PhantomSettings(Settings):
    """What generated scans look like. Ranges are uniform and inclusive."""

    shape: Size = Field(default=(64, 64, 64), description="Voxels along (D, H, W). Default 64 each.")
    spacing: Spacing = Field(
        default=(5.0, 5.0, 5.0), description="Mean mm per voxel along (D, H, W). Default 5 each."
    )
    spacing_jitter: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.15, description="Largest relative change of each spacing. Default 0.15."
    )
    region: Literal["trunk", "head_neck"] = Field(
        default="trunk", description="Part of the body that is shown. Default trunk."
    )
    half_width: tuple[NonNegative, NonNegative] = Field(
        default=(135.0, 165.0),
        description="Half the width of the trunk, or of the head (68 to 84), mm. Default 135 to 165.",
    )
    rotation_degrees: NonNegative = Field(
        default=7.0, description="Largest tilt about each axis, degrees. Default 7."
    )
    deformation: NonNegative = Field(
        default=0.05, description="Bending of the anatomy (deviation), share of half the width. Default 0.05."
    )
    num_bowel_loops: Annotated[int, Field(ge=0)] = Field(
        default=9, description="Loops of bowel in the lower belly of a trunk. Default 9."
    )
    enhancement: tuple[NonNegative, NonNegative] = Field(
        default=(0.0, 1.0), description="Contrast medium, 0 none to 1 arterial. Default 0 to 1."
    )
    noise: tuple[NonNegative, NonNegative] = Field(
        default=(8.0, 28.0), description="Standard deviation of the noise, HU. Default 8 to 28."
    )
    labels: Literal["organs", "structures"] = Field(
        default="organs", description="Label five organs of the trunk, or all structures. Default organs."
    )


_VARIED = PhantomSettings(spacing_jitter=0.3, rotation_degrees=15.0, deformation=0.07, labels="structures")
TO_PRETRAIN_ON = (
    _VARIED.model_copy(update={"spacing": (4.5, 4.5, 4.5)}),
    _VARIED.model_copy(
        update={
            "region": "head_neck",
            "half_width": (68.0, 84.0),
            "shape": (80, 64, 64),
            "spacing": (3.0, 4.0, 4.0),
        }
    ),
)
"""More to tell apart, and more varied than people are: what is learnt has to fit other parts of the body."""


def generate_phantom(
    settings: PhantomSettings, generator: np.random.Generator | int
) -> tuple[Volume, Volume]:
    """Generate a case.

    Args:
        settings: size and looks.
        generator: source of randomness, or a seed.

    Returns:
        Image (1, D, H, W) int16 in HU and label map (1, D, H, W) uint8, where organs have the values of
        ``LABEL_NAMES`` and other structures those of :mod:`misfm.data.canvas`; both in orientation SPL with
        the affine of the drawn spacing.
    """
    rng = generator if isinstance(generator, np.random.Generator) else np.random.default_rng(generator)
    jitter = settings.spacing_jitter
    spacing = np.array(settings.spacing) * rng.uniform(1 - jitter, 1 + jitter, 3)
    canvas = _empty_canvas(settings, spacing / rng.uniform(*settings.half_width), rng)
    medium = rng.uniform(*settings.enhancement)
    if settings.region == "head_neck":
        head_neck.draw(canvas, rng, medium)
    else:
        trunk.draw(canvas, rng, medium, settings.num_bowel_loops)
    # Reconstruction correlates noise within a slice: each voxel shares with its neighbours.
    noise = rng.standard_normal(settings.shape, np.float32)
    noise += np.roll(noise, 1, 1) + np.roll(noise, 1, 2)
    image = canvas.image + noise * np.float32(rng.uniform(*settings.noise) / math.sqrt(3))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (spacing[0], -spacing[1], -spacing[2], 1)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(settings.shape) - 1) / 2 + rng.uniform(-50, 50, 3)
    voxels = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    if settings.labels == "organs":
        canvas.label[canvas.label > parts.NUM_ORGANS] = 0
    return Volume(voxels[None], affine), Volume(canvas.label[None], affine)


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
        _make_dir(dataset_dir / f"images{suffix}")
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
    organs = {name: value for value, name in LABEL_NAMES.items()}
    if settings.labels == "organs":
        return organs
    others = range(parts.NUM_ORGANS + 1, parts.NUM_STRUCTURES + 1)
    return organs | {f"structure_{value}": value for value in others}


def write_phantom_scans(
    scan_dir: Path, num_scans: int, seed: int, settings: PhantomSettings | None = None
) -> None:
    """Write unlabelled scans, none of which occurs in a dataset of the same seed.

    Raises:
        DataError: the folder cannot be written.
    """
    settings = settings or PhantomSettings()
    _make_dir(scan_dir)
    for i in range(num_scans):
        image, _ = generate_phantom(settings, np.random.default_rng((seed, 2, i)))
        _write_scan(scan_dir / f"scan_{i:04d}.nii.gz", image)


def _empty_canvas(settings: PhantomSettings, step: NDArray[np.float64], rng: np.random.Generator) -> Canvas:
    """Lay out a scan of air: voxel positions, tilted, shifted and bent."""
    shape = settings.shape
    shift = rng.uniform(-0.06, 0.06, 3)
    if settings.region == "head_neck":
        shift[0] -= rng.uniform(0.2, 1.2)  # how much of head and chest is seen varies from scan to scan
    axes = [((np.arange(n) - (n - 1) / 2) * d).astype(np.float32) for n, d in zip(shape, step, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    a, b, c = np.radians(settings.rotation_degrees) * rng.uniform(-1, 1, 3)
    tilt, triangle = np.linalg.qr([[1, -c, b], [c, 1, -a], [-b, a, 1]])
    tilt = (tilt * np.sign(np.diag(triangle))).astype(np.float32)
    up, back, left = (
        tilt[i, 0] * grid[0]
        + tilt[i, 1] * grid[1]
        + tilt[i, 2] * grid[2]
        + np.float32(shift[i])
        + np.float32(settings.deformation) * smooth_field(shape, 3, rng)
        + np.float32(settings.deformation / 5) * smooth_field(shape, 8, rng)
        for i in range(3)
    )
    first = [float(axis[0] + offset) for axis, offset in zip(axes, shift, strict=True)]
    return Canvas(
        image=np.full(shape, -1000, np.float32),
        label=np.zeros(shape, np.uint8),
        up=up,
        back=back,
        left=left,
        texture=smooth_field(shape, 16, rng),
        wobble=smooth_field(shape, 9, rng),
        wall=np.zeros(shape, np.float32),
        edge=float(np.max(step) * rng.uniform(1.0, 1.6)),
        first=(first[0], first[1], first[2]),
        step=(float(step[0]), float(step[1]), float(step[2])),
    )


def _write_scan(path: Path, image: Volume) -> None:
    file = nib.Nifti1Image(image.data[0].transpose(2, 1, 0), image.affine[:, [2, 1, 0, 3]])
    file.header.set_xyzt_units("mm")
    # Noise hardly compresses, so the fastest level; the fixed time stamp makes equal scans equal files.
    write_bytes(path, gzip.compress(file.to_bytes(), compresslevel=1, mtime=0))


def _make_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error

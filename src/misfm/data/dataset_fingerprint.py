"""What a dataset's images are, found out in one reading of each.

Plan, search for leaks and ingest all ask here, so that none of them reads an image that another has read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from misfm.data.appearance import Appearance, ScanRanges, appearance_of, ranges_of
from misfm.data.dataset import Case, Dataset
from misfm.data.fingerprint import SCHEME, fingerprint, short_fingerprint
from misfm.data.preprocess import canonical, content_box
from misfm.data.readers import read_volume
from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.files import read_checked_json, write_checked_json
from misfm.settings import PositiveShape, Settings, Spacing
from misfm.terminal import logger
from misfm.volume import Shape, Volume

FILE = "dataset_fingerprint.json"
"""In the folder of a run: what is known of each image, so that a resumed run need not read it."""
MAX_MEASURED = 32
"""Cases whose grids a plan follows from."""
KEPT_BYTES = 2 * 2**30
"""Voxels kept in memory until they are ingested; what is more than that is read again."""


class ImageFingerprint(Settings):
    """What one image is."""

    stamp: str
    """State of the file, see :attr:`misfm.data.scan.ScanSource.stamp`."""
    shape: PositiveShape
    """Voxels along (D, H, W), in canonical orientation."""
    spacing: Spacing
    """mm per voxel along (D, H, W), likewise."""
    content: PositiveShape | None
    """Voxels along (D, H, W) of the box around the patient; only of channels in ``imagesTr`` that show
    best where it is."""
    scan: str
    """Fingerprint of the voxels; empty where they are all equal. An empty channel stands for one that was not
    taken, in many cases of some datasets: it identifies no scan."""
    appearance: Appearance | None = None
    """Where its intensities lie; null where an older version looked at it."""


@dataclass
class DatasetFingerprint:
    """Grids, content and identity of a dataset's images; each image is read when it is first asked for.

    Attributes:
        dataset: theirs.
        images: what is known, by path.
        to_ingest: images whose voxels are kept once they are read, until :meth:`read` hands them out.
    """

    dataset: Dataset
    images: dict[str, ImageFingerprint] = field(default_factory=dict)
    to_ingest: frozenset[Path] = frozenset()
    _kept: dict[Path, Volume] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, dataset: Dataset, folder: Path) -> DatasetFingerprint:
        """Take over what a folder tells; nothing where it tells nothing, or nothing that can be used."""
        return cls(dataset, known_images(folder))

    def save(self, folder: Path) -> None:
        """Keep what is known in a folder."""
        write_checked_json(
            folder / FILE, {path: one.model_dump(mode="json") for path, one in sorted(self.images.items())}
        )

    def keep(self, cases: Iterable[Case]) -> None:
        """Keep the voxels of these cases' images once they are read: they are to be ingested."""
        self.to_ingest |= {path for case in cases for path in case.image_paths}

    def forget(self) -> None:
        """Let go of all voxels."""
        self.to_ingest = frozenset()
        self._kept.clear()

    def image(self, path: Path) -> ImageFingerprint:
        """Return what an image is, read unless it is known in its present state.

        Raises:
            DataError: it cannot be read.
        """
        stamp = ScanSource(path, path.name).stamp
        known = self.images.get(str(path))
        if known is None or known.stamp != stamp:
            known = self._look(path, stamp)
            self.images[str(path)] = known
        return known

    def add(self, cases: Sequence[Case], *, skip_damaged: bool = False) -> None:
        """Find out about all images of cases.

        Images that are missing are left out: reading their case will tell. So are, with a warning, those that
        cannot be read if they are to be skipped.

        Raises:
            DataError: an image that cannot be read.
        """
        paths = [path for case in cases for path in case.image_paths if path.exists()]
        if new := sum(str(path) not in self.images for path in paths):
            logger.info("comparing the content of %d images of the dataset", new)
        for path in paths:
            try:
                self.image(path)
            except DataError as error:
                if not skip_damaged:
                    raise
                logger.warning("not compared with what is learnt from: %s", error)

    def scans(self, case: Case) -> list[str]:
        """Short fingerprints of the channels of a case, without those that are not known or show nothing."""
        found = (self.images.get(str(path)) for path in case.image_paths)
        return [short_fingerprint(one.scan) for one in found if one is not None and one.scan]

    def scan(self, case: Case) -> str | None:
        """Return the fingerprint of a case of one channel as it is now; None if it is empty or has more.

        Raises:
            DataError: the image cannot be read.
        """
        single = len(case.image_paths) == 1 and case.image_paths[0].exists()
        return (self.image(case.image_paths[0]).scan or None) if single else None

    def read(self, path: Path) -> Volume:
        """Return the voxels of an image, which are let go of if they were kept.

        Raises:
            DataError: it cannot be read.
        """
        kept = self._kept.pop(path, None)
        return read_volume(path) if kept is None else kept

    def ranges(self, cases: Iterable[Case]) -> ScanRanges | None:
        """Sum up what the images of cases are like; None unless something is known of each channel."""
        known = [[self.images.get(str(path)) for path in case.image_paths] for case in cases]
        outlines = [images[self.outlining] for images in known]
        grids = [
            (one.spacing, [n * s for n, s in zip(one.content, one.spacing, strict=True)])
            for one in outlines
            if one is not None and one.content is not None
        ]
        channels = [
            [one.appearance for one in images if one is not None and one.scan and one.appearance is not None]
            for images in zip(*known, strict=True)
        ]
        return ranges_of(grids, channels)

    @property
    def measured(self) -> list[ImageFingerprint]:
        """Channels, one of each, of up to 32 evenly chosen cases of ``imagesTr``: CT, or the first.

        Raises:
            DataError: one that cannot be read.
        """
        cases = self.dataset.cases()
        some = cases[:: -(-len(cases) // MAX_MEASURED)]
        return [self.image(case.image_paths[self.outlining]) for case in some]

    @property
    def outlining(self) -> int:
        """Number of the channel that shows best where the patient is: the first CT, without one the first."""
        kinds = self.dataset.kinds
        return kinds.index("ct") if "ct" in kinds else 0

    @property
    def spacing(self) -> Spacing:
        """The median spacing of :attr:`measured`, mm along (D, H, W)."""
        spacings = np.array([image.spacing for image in self.measured])
        d, h, w = (round(float(value), 4) for value in np.median(spacings, axis=0))
        return d, h, w

    def shape(self, spacing: Spacing | Literal["native"]) -> Shape:
        """Return the median sides of the patients in :attr:`measured`, in voxels of ``spacing``."""
        shapes = np.array([image.content or image.shape for image in self.measured], dtype=np.float64)
        if spacing != "native":
            shapes = shapes * np.array([image.spacing for image in self.measured]) / spacing
        d, h, w = (max(1, round(float(side))) for side in np.median(shapes, axis=0))
        return d, h, w

    def _look(self, path: Path, stamp: str) -> ImageFingerprint:
        volume = read_volume(path)
        upright = canonical(volume)
        channel = f"_{self.outlining:04d}{self.dataset.file_ending}"
        outlines = path.parent.name == "imagesTr" and path.name.endswith(channel)
        empty = volume.data.min() == volume.data.max()
        held = sum(kept.data.nbytes for kept in self._kept.values())
        if path in self.to_ingest and held + volume.data.nbytes <= KEPT_BYTES:
            self._kept[path] = volume
        return ImageFingerprint(
            stamp=stamp,
            shape=upright.shape,
            spacing=upright.spacing,
            content=content_box(upright, [self.dataset.kinds[self.outlining]]).size if outlines else None,
            scan="" if empty else fingerprint(volume),
            appearance=appearance_of(volume.data),
        )


def known_images(folder: Path) -> dict[str, ImageFingerprint]:
    """Return what the folder of a run tells of images, by path; nothing where that cannot be used."""
    try:
        content = read_checked_json(folder / FILE, paths=True)
        images = {str(path): ImageFingerprint.model_validate(one) for path, one in content.items()}
    except (OSError, ValueError, AttributeError, ValidationError, DataError):
        return {}
    return {path: one for path, one in images.items() if one.scan == "" or one.scan.startswith(SCHEME)}

"""Where each image of a DICOM file lies: one in a classic file, many in an enhanced multi-frame one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.multival import MultiValue

from misfm.data.checks import readable
from misfm.errors import DataError

TAGS = [
    *("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID"),
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "ConcatenationUID", "Rows", "Columns"),
    *("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "FrameOfReferenceUID"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "TriggerTime"),
    *("NominalPercentageOfCardiacPhase", "AcquisitionNumber", "AcquisitionTime"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
"""All that is read of a header before its pixels are."""
_CLASSIC = {
    "Rows": 1,
    "Columns": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
}
"""What says where the pixels of a slice lie, and how many numbers each tag holds."""
_ENHANCED = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
"""The functional groups that hold them in a multi-frame file."""
_CLASSIC_VOLUMES = (
    ("time", "TemporalPositionIdentifier"),
    ("echo", "EchoNumbers"),
    ("echo", "EchoTime"),
    ("b-value", "DiffusionBValue"),
    ("phase", "NominalPercentageOfCardiacPhase"),
    ("trigger", "TriggerTime"),
    ("kind", "ImageType"),
    ("acquisition", "AcquisitionNumber"),
)
_ENHANCED_VOLUMES = (
    ("stack", "FrameContentSequence", "StackID"),
    ("time", "FrameContentSequence", "TemporalPositionIndex"),
    ("echo", "MREchoSequence", "EffectiveEchoTime"),
    ("b-value", "MRDiffusionSequence", "DiffusionBValue"),
    ("phase", "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("kind", "MRImageFrameTypeSequence", "FrameType"),
    ("kind", "CTImageFrameTypeSequence", "FrameType"),
    ("acquisition", "FrameContentSequence", "FrameAcquisitionNumber"),
)
"""What tells the scans in one series apart where several images lie in one place, most telling first."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image and its place in the patient.

    Attributes:
        file: that holds it.
        index: which of the file's images it is, from 0.
        uid: SOPInstanceUID; the file's name where there is none.
        shape: rows and columns.
        position: (3,) LPS millimetres of its first pixel.
        row: (3,) unit vector along a row of pixels, LPS.
        column: (3,) unit vector down a column.
        spacing: millimetres between rows and between columns.
        rescale: slope and intercept.
        is_inverted: its lowest values are shown white (MONOCHROME1).
        volume: name and value of what tells the scans of a series apart.
    """

    file: Path
    index: int
    uid: str
    shape: tuple[int, int]
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    rescale: tuple[float, float]
    is_inverted: bool
    volume: tuple[tuple[str, str], ...]

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the image."""
        return np.asarray(np.cross(self.row, self.column))

    @property
    def distance(self) -> float:
        """Millimetres along the normal."""
        return float(self.position @ self.normal)

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for the same image stored twice under two names, and no other."""
        return self.uid, self.index, *self.position.tolist()

    @property
    def place(self) -> tuple[float, ...]:
        """Where it lies, in hundredths of a millimetre."""
        return tuple(np.round(self.position, 2) + 0.0)


def frames_of(file: Path, header: Any) -> list[Frame]:
    """Return the images of a file.

    Args:
        file: for messages.
        header: with ``TAGS``.

    Raises:
        DataError: a colour image, or one whose place in the patient is missing or damaged.
    """
    with readable(file):
        count, samples = (int(header.get(tag) or 1) for tag in ("NumberOfFrames", "SamplesPerPixel"))
        per_frame = list(header.get("PerFrameFunctionalGroupsSequence") or ())
        shared = list(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    if samples > 1:
        raise DataError(
            f"{file} holds colour (RGB) voxels; only scans with one real number a voxel can be used."
        )
    if not per_frame and count == 1:
        return [_classic(file, header)]
    if len(per_frame) != count:
        raise DataError(
            f"{file} is a multi-frame DICOM file of {count} images that says of {len(per_frame)} where they "
            "lie; convert it to NIfTI first, for example with dcm2niix."
        )
    return [_enhanced(file, header, index, [one, *shared]) for index, one in enumerate(per_frame)]


def _classic(file: Path, header: Any) -> Frame:
    with readable(file):
        volume = tuple((name, _text(header.get(tag))) for name, tag in _CLASSIC_VOLUMES)
    return _frame(file, header, 0, header.get, volume)


def _enhanced(file: Path, header: Any, index: int, groups: Sequence[Any]) -> Frame:
    def group(name: str) -> Any:
        """The frame's own values before those of all frames."""
        found = (one.get(name) for one in groups)
        return next((sequence[0] for sequence in found if sequence), {})

    def value(tag: str) -> Any:
        if tag in _ENHANCED:
            return group(_ENHANCED[tag]).get(tag)
        if tag in ("RescaleSlope", "RescaleIntercept"):
            own = group("PixelValueTransformationSequence").get(tag)
            return header.get(tag) if own is None else own
        return header.get(tag)

    with readable(file):
        volume = tuple((name, _text(group(where).get(tag))) for name, where, tag in _ENHANCED_VOLUMES)
    return _frame(file, header, index, value, volume)


def _frame(
    file: Path, header: Any, index: int, value: Callable[[str], Any], volume: tuple[tuple[str, str], ...]
) -> Frame:
    numbers = {}
    for tag, count in _CLASSIC.items():
        with readable(file):
            numbers[tag] = np.array(value(tag), dtype=float).ravel()  # a missing tag is one NaN
        if len(numbers[tag]) != count or not np.isfinite(numbers[tag]).all():
            raise DataError(f"{file} is no slice of a 3D scan: its {tag} is missing or damaged.")
    cosines = numbers["ImageOrientationPatient"].reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if lengths.min() == 0 or np.linalg.norm(np.cross(*cosines)) < 1e-3 * lengths.prod():
        raise DataError(f"{file} has a singular ImageOrientationPatient; repair its header.")
    row, column = cosines / lengths[:, None]
    height, width = numbers["PixelSpacing"].tolist()
    with readable(file):
        slope, intercept = value("RescaleSlope"), value("RescaleIntercept")
        return Frame(
            file=file,
            index=index,
            uid=str(header.get("SOPInstanceUID") or file),
            shape=(int(numbers["Rows"][0]), int(numbers["Columns"][0])),
            position=numbers["ImagePositionPatient"],
            row=row,
            column=column,
            spacing=(height, width),
            rescale=(float(1 if slope in (None, "") else slope) or 1.0, float(intercept or 0)),
            is_inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
            volume=volume,
        )


def _text(value: Any) -> str:
    if isinstance(value, MultiValue):
        return "/".join(map(str, value))
    return "" if value is None else str(value)

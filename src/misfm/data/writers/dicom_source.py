"""What objects of DICOM take over from the series that they refer to: patient, study, frame of reference."""

from __future__ import annotations

import hashlib
import uuid
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom

from misfm.data.checks import readable
from misfm.data.readers.base import Series
from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.text import one_line

MANUFACTURER = "misfm"
_LONGEST = 64
"""Characters of most texts in DICOM."""
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
TAKEN_OVER = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""What every object has to have, if only empty."""
_SHAPE = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
"""What the images of a series share that lie in one volume."""


def check_source(scan: ScanSource, title: str) -> None:
    """Check that a scan is of DICOM and has the identifiers that an object refers to it by.

    Args:
        scan: what was, or will be, labelled.
        title: what the object is called in messages, such as "an RT structure set".

    Raises:
        DataError: it is not, or has not.
    """
    if scan.series is None:
        raise DataError(
            f"{scan.path} is no DICOM, and {title} refers to the images of a study; choose --format nifti or "
            "nrrd."
        )
    header = _read(scan.series.files[0])
    missing = [tag for tag in _NEEDED if not header.get(tag)]
    if missing:
        raise DataError(
            f"{scan.path} has no {', no '.join(missing)}, by which {title} would refer to it; choose "
            "--format nifti or nrrd."
        )


def source_images(series: Series) -> list[Any]:
    """The images of a series without their pixels, those of another size than most left out."""
    headers = [_read(file) for file in series.files]
    usual = Counter(_shape(header) for header in headers).most_common(1)[0][0]
    images = [header for header in headers if _shape(header) == usual]
    for image in images:
        texts = {tag: str(image.get(tag) or "") for tag in TAKEN_OVER}
        image.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, for names of labels in any script
        for tag, text in texts.items():
            setattr(image, tag, text)
    return images


def uid_of(*parts: str) -> str:
    """A UID that is the same for the same parts, so that an object that is made again is no other one."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def series_number(image: Any) -> int:
    """The number of a series that was made of an image's: beyond those that scanners give."""
    with suppress(TypeError, ValueError):
        return 1000 + int(image.get("SeriesNumber"))
    return 1000


def shown(text: str) -> str:
    """A text as long as DICOM takes most, without what separates values there."""
    return one_line(text).replace("\\", "/")[:_LONGEST]


def _read(file: Path) -> Any:
    with readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)


def _shape(header: Any) -> tuple[str, ...]:
    return tuple(str(header.get(tag)) for tag in _SHAPE)

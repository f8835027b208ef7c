"""RT structure sets: the outlines of labels in the slices of the series, for planning systems."""

from __future__ import annotations

import importlib.metadata
import io
import itertools
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from misfm.data.checks import LPS_TO_RAS
from misfm.data.scan import ScanSource
from misfm.data.writers.base import WRITERS, LabelledScan, Labels, MaskWriter, label_voxels, numbered
from misfm.data.writers.coding import coding_of
from misfm.data.writers.dicom_source import (
    MANUFACTURER,
    TAKEN_OVER,
    check_source,
    series_number,
    shown,
    source_images,
    uid_of,
)
from misfm.data.writers.names import colour_of
from misfm.files import write_bytes
from misfm.volume import Affine

_DIGITS = 4
"""Of millimetres: a tenth of a micrometre, in the 16 characters that DICOM has for a number."""
_CUT = 0.37
"""Where a cut begins, of the way from a corner to the next."""
_SAME_PLANE = 0.01
"""mm between a slice of the label map and the image that it was drawn on."""

Points = NDArray[np.float64]
"""(N, 2): column and row, in pixels, of the corners of a closed outline."""


@WRITERS.register("rtstruct")
class RtStructWriter(MaskWriter):
    """Writes ``CASE.dcm``: closed planar outlines half a pixel around each label, slice by slice.

    Pixels whose centre lies within an outline are those of the label. A hole is joined to the outline around
    it by a cut of no width, as the standard has it.
    """

    suffix = ".dcm"

    def check(self, scan: ScanSource) -> None:
        """Only what came from DICOM, with its identifiers, can be referred to."""
        check_source(scan, "an RT structure set")

    def values(self, labels: Labels) -> dict[str, int | list[int]]:
        """The numbers of the regions of interest."""
        return numbered(labels)

    def write(self, path: Path, labelled: LabelledScan) -> None:
        """Write the structure set of one series."""
        assert labelled.scan.series is not None
        images = source_images(labelled.scan.series)
        voxels = label_voxels(path, labelled.label_map)
        place = LPS_TO_RAS @ labelled.label_map.affine
        planes = _images_of_planes(images, place, len(voxels))
        dataset = _structure_set(labelled, images)
        for number, (name, values) in enumerate(labelled.labels.items(), 1):
            contours = [
                _contour(outline, plane, place, planes[plane])
                for plane, pixels in enumerate(voxels)
                for outline in outlines(np.isin(pixels, values))
            ]
            _add_region(dataset, number, name, contours)
        content = io.BytesIO()
        dataset.save_as(content, enforce_file_format=True)
        write_bytes(path, content.getvalue())


def outlines(mask: NDArray[np.bool_]) -> Iterator[Points]:
    """Outlines of a mask (H, W), holes joined to what is around them."""
    if not mask.any():
        return
    generator = contourpy.contour_generator(
        z=np.pad(mask, 1).astype(np.float64), fill_type=contourpy.FillType.OuterOffset
    )
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        loops = [points[a : b - 1] - 1 for a, b in itertools.pairwise(offsets)]
        outer = loops[0]
        for hole in loops[1:]:
            outer = _joined(outer, hole)
        yield outer


def _joined(outer: Points, hole: Points) -> Points:
    """One outline around both, by a cut where they are nearest, and back the same way.

    Corners lie on lines through centres of pixels, along which a cut would leave it to rounding whether these
    are inside, so it begins and ends between corners.
    """
    from_outer, from_hole = (one + _CUT * (np.roll(one, -1, axis=0) - one) for one in (outer, hole))
    distances = ((from_outer[:, None] - from_hole[None]) ** 2).sum(axis=-1)
    there, here = np.unravel_index(int(distances.argmin()), distances.shape)
    a, b = from_outer[there : there + 1], from_hole[here : here + 1]
    around = np.roll(hole, -(int(here) + 1), axis=0)
    return np.concatenate([outer[: there + 1], a, b, around, b, a, outer[there + 1 :]])


def _contour(outline: Points, plane: int, place: Affine, image: Any | None) -> Dataset:
    """An outline in the patient."""
    columns, rows = outline.T
    index = np.stack([np.full(len(outline), plane), rows, columns, np.ones(len(outline))])
    points = (place @ index)[:3].T
    contour = Dataset()
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f"{value + 0.0:.{_DIGITS}f}" for value in points.ravel()]
    if image is not None:
        contour.ContourImageSequence = [_reference(image)]
    return contour


def _images_of_planes(images: list[Any], place: Affine, count: int) -> list[Any | None]:
    """The image of each slice of the label map; None where it lies between images, or they are one file."""
    found: list[Any | None] = [None] * count
    inverse = np.linalg.inv(place)
    tolerance = _SAME_PLANE / np.linalg.norm(place[:3, 0])
    for image in images if "NumberOfFrames" not in images[0] else []:
        position = [float(value) for value in image.ImagePositionPatient]
        plane = float((inverse @ [*position, 1.0])[0])
        if abs(plane - round(plane)) <= tolerance and 0 <= round(plane) < count:
            found[round(plane)] = image
    return found


def _reference(image: Any) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return reference


def _structure_set(labelled: LabelledScan, images: list[Any]) -> Dataset:
    """A structure set without regions, of the patient and study of the images."""
    first, now = images[0], datetime.now()
    parts = [first.SeriesInstanceUID, *labelled.weights.values(), *labelled.labels]
    dataset = Dataset()
    for tag in (*TAKEN_OVER, "StudyInstanceUID", "FrameOfReferenceUID", "SpecificCharacterSet"):
        if tag in first:
            dataset[tag] = first[tag]
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = uid_of("RTSTRUCT", *parts, labelled.digest)
    dataset.SeriesInstanceUID = uid_of("RTSTRUCT series", *parts)
    dataset.SeriesNumber = series_number(first)
    dataset.SeriesDescription = shown(f"{MANUFACTURER}: {', '.join(labelled.labels)}")
    dataset.Modality = "RTSTRUCT"
    dataset.OperatorsName = dataset.PositionReferenceIndicator = ""
    dataset.Manufacturer = dataset.ManufacturerModelName = MANUFACTURER
    dataset.SoftwareVersions = importlib.metadata.version("misfm")
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel = MANUFACTURER
    dataset.StructureSetDescription = "; ".join(
        shown(f"{name}: {digest}") for name, digest in labelled.weights.items()
    )
    dataset.StructureSetDate = now.strftime("%Y%m%d")
    dataset.StructureSetTime = now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(images)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    dataset.file_meta = FileMetaDataset()
    # The lengths of explicit ones have 16 bits, too few for long outlines.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def _frame_of_reference(images: list[Any]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(image) for image in images]
    study = Dataset()
    study.ReferencedSOPClassUID = (
        "1.2.840.10008.3.1.2.3.1"  # detached study management, as RT objects have it
    )
    study.ReferencedSOPInstanceUID = images[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _add_region(dataset: Dataset, number: int, name: str, contours: list[Dataset]) -> None:
    """Add a region of interest with its outlines, and what it is in codes."""
    region, drawn, observed, code = Dataset(), Dataset(), Dataset(), Dataset()
    region.ROINumber = drawn.ReferencedROINumber = observed.ReferencedROINumber = number
    region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    region.ROIName = shown(name)
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    drawn.ROIDisplayColor = list(colour_of(number - 1))
    if contours:
        drawn.ContourSequence = contours
    observed.ObservationNumber = number
    observed.RTROIInterpretedType = observed.ROIInterpreter = ""
    coding = coding_of(name).type
    code.CodeValue, code.CodingSchemeDesignator = coding.value, coding.scheme_designator
    code.CodeMeaning = shown(coding.meaning)
    observed.RTROIIdentificationCodeSequence = [code]
    dataset.StructureSetROISequence.append(region)
    dataset.ROIContourSequence.append(drawn)
    dataset.RTROIObservationsSequence.append(observed)

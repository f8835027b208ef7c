"""Writes DICOM as scanners, archives and planning systems do: classic and enhanced series, SEG, RTSTRUCT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SPACING = (0.8, 0.5)
"""Of rows and columns, mm."""
ORIGIN = (10.0, 20.0, 30.0)
"""Of the first pixel of the first slice, LPS mm."""
AXIAL = (1, 0, 0, 0, 1, 0)

Voxels = NDArray[np.integer[Any]]


def object_of(kind: str, **tags: Any) -> FileDataset:
    """An object without pixels that has what all have."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(kind)
    meta.MediaStorageSOPInstanceUID = tags.pop("SOPInstanceUID", None) or generate_uid()
    one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.4"
    one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "P1", "Nobody^", "", ""
    one.StudyID = one.AccessionNumber = one.StudyDate = one.StudyTime = one.ReferringPhysicianName = ""
    one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 1, 1
    for name, value in tags.items():
        setattr(one, name, value)
    return one


def pixels_of(one: Dataset, pixels: Voxels) -> None:
    """Give an object the stored values (H, W) or (N, H, W)."""
    one.Rows, one.Columns = pixels.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation = (
        1,
        one.get("PhotometricInterpretation", "MONOCHROME2"),
    )
    one.BitsAllocated, one.PixelRepresentation = 16, 0
    one.BitsStored = one.get("BitsStored", 16)
    one.HighBit = one.BitsStored - 1
    one.PixelData = pixels.astype("<u2").tobytes()


def write_slice(
    path: Path,
    pixels: Voxels,
    position: Sequence[float],
    *,
    orientation: Sequence[float] = AXIAL,
    **tags: Any,
) -> None:
    """Write one classic slice of stored values (H, W), HU being 1024 less."""
    one = object_of(tags.pop("SOPClassUID", CTImageStorage), **tags)
    one.ImagePositionPatient = [round(float(value), 5) for value in position]
    one.ImageOrientationPatient = [round(float(value), 6) for value in orientation]
    one.PixelSpacing, one.SliceThickness = tags.get("PixelSpacing", list(SPACING)), 3
    one.RescaleSlope, one.RescaleIntercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", -1024)
    pixels_of(one, pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path, stored: Voxels, *, depths: Sequence[float] | None = None, tilt: float = 0.0, **tags: Any
) -> Path:
    """Write a classic axial series, file names running against the slices.

    Args:
        folder: made where missing.
        stored: (D, H, W) values.
        depths: of the slices, mm; else 3 mm apart.
        tilt: mm that each mm of depth moves slices along their columns.
        tags: of every slice.
    """
    for number, pixels in enumerate(stored):
        depth = 3.0 * number if depths is None else depths[number]
        position = np.array(ORIGIN) + np.array([0, tilt * depth, depth])
        name = folder / f"{tags.get('SeriesInstanceUID', '1.2.3')}-{999 - number}.dcm"
        write_slice(name, pixels, position, **{"InstanceNumber": number + 1, **tags})
    return folder


def write_enhanced(
    path: Path,
    stored: Voxels,
    *,
    depths: Sequence[float] | None = None,
    rescale: Sequence[tuple[float, float]] = (),
    times: int = 1,
    spacing: Sequence[float] = SPACING,
    **tags: Any,
) -> Path:
    """Write all slices into one enhanced multi-frame file.

    Args:
        path: of the file.
        stored: (D, H, W) values, all slices of the first time before those of the next.
        depths: of the slices of one time, mm; else 3 mm apart.
        rescale: slope and intercept of each frame; else those of all, 1 and -1024.
        times: how many volumes there are.
        spacing: of rows and columns, mm.
        tags: of the file.
    """
    one = object_of(tags.pop("SOPClassUID", EnhancedCTImageStorage), **tags)
    one.NumberOfFrames = len(stored)
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([_with(PixelSpacing=list(spacing), SliceThickness=3)])
    shared.PlaneOrientationSequence = Items([_with(ImageOrientationPatient=list(AXIAL))])
    if not rescale:
        shared.PixelValueTransformationSequence = Items([_with(RescaleSlope=1, RescaleIntercept=-1024)])
    one.SharedFunctionalGroupsSequence = Items([shared])
    frames, slices = [], len(stored) // times
    for number in range(len(stored)):
        depth = 3.0 * (number % slices) if depths is None else depths[number % slices]
        frame = Dataset()
        frame.PlanePositionSequence = Items(
            [_with(ImagePositionPatient=[ORIGIN[0], ORIGIN[1], round(ORIGIN[2] + depth, 5)])]
        )
        frame.FrameContentSequence = Items([_with(TemporalPositionIndex=1 + number // slices, StackID="1")])
        if rescale:
            slope, intercept = rescale[number]
            frame.PixelValueTransformationSequence = Items(
                [_with(RescaleSlope=slope, RescaleIntercept=intercept)]
            )
        frames.append(frame)
    one.PerFrameFunctionalGroupsSequence = Items(frames)
    pixels_of(one, stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def write_packed(
    folder: Path, frames: Sequence[bytes], shape: tuple[int, int], syntax: str, **tags: Any
) -> Path:
    """Write a series of slices that somebody else has packed, one frame a slice."""
    write_series(folder, np.zeros((len(frames), *shape), np.uint16), **tags)
    for file, frame in zip(sorted(folder.iterdir(), reverse=True), frames, strict=True):
        one = pydicom.dcmread(file)
        one.file_meta.TransferSyntaxUID = UID(syntax)
        one.PixelData = encapsulate([frame])
        one["PixelData"].VR = "OB"
        one.save_as(file, enforce_file_format=True)
    return folder


def write_seg(path: Path, folder: Path, labels: Voxels, names: Mapping[int, str], **options: Any) -> Path:
    """Write a SEG of the series in a folder by highdicom.

    Args:
        path: of the file.
        folder: with the slices.
        labels: (D, H, W) label map, in the order of the slices' positions.
        names: of its values.
        options: of ``highdicom.seg.Segmentation``, such as its kind.
    """
    from highdicom.seg import (
        SegmentAlgorithmTypeValues,
        Segmentation,
        SegmentationTypeValues,
        SegmentDescription,
    )
    from highdicom.sr.coding import CodedConcept

    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    if len(slices) > 1:
        slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    tissue = CodedConcept("85756007", "SCT", "Tissue")
    descriptions = [
        SegmentDescription(number, name, tissue, tissue, SegmentAlgorithmTypeValues.MANUAL)
        for number, name in enumerate(names.values(), start=1)
    ]
    values = np.zeros(labels.shape, np.uint8)
    for number, value in enumerate(names, start=1):
        values[labels == value] = number
    kind = options.pop("kind", SegmentationTypeValues.BINARY)
    one = Segmentation(
        source_images=slices,
        pixel_array=values,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="misfm",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path)
    return path


def write_rtstruct(
    path: Path,
    structures: Mapping[str, Sequence[NDArray[np.float64]]],
    *,
    series: str = "1.2.3",
    **tags: Any,
) -> Path:
    """Write an RTSTRUCT.

    Args:
        path: of the file.
        structures: contours of each, (N, 3) LPS mm.
        series: that it refers to.
        tags: of the object.
    """
    one = object_of(RTSTRUCT, Modality="RTSTRUCT", SeriesInstanceUID=generate_uid(), **tags)
    reference = _with(SeriesInstanceUID=series)
    study = _with(RTReferencedSeriesSequence=Items([reference]))
    space = _with(FrameOfReferenceUID="1.2.4", RTReferencedStudySequence=Items([study]))
    one.ReferencedFrameOfReferenceSequence = Items([space])
    one.StructureSetROISequence = Items(
        [_with(ROINumber=number, ROIName=name) for number, name in enumerate(structures, start=1)]
    )
    drawn = []
    for number, contours in enumerate(structures.values(), start=1):
        items = Items([_contour(points) for points in contours])
        drawn.append(_with(ReferencedROINumber=number, ContourSequence=items))
    one.ROIContourSequence = Items(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def _contour(points: NDArray[np.float64]) -> Dataset:
    data = [f"{value:.4f}".rstrip("0").rstrip(".") for value in points.ravel()]
    return _with(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(points), ContourData=data)


def _with(**tags: Any) -> Dataset:
    one = Dataset()
    for name, value in tags.items():
        setattr(one, name, value)
    return one

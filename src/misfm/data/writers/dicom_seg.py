"""DICOM segmentation objects: the way back to the study, for every PACS and viewer."""

from __future__ import annotations

import importlib.metadata
import io
import warnings
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from misfm.data.checks import LPS_TO_RAS
from misfm.data.quiet import quiet_logger
from misfm.data.scan import ScanSource
from misfm.data.writers.base import WRITERS, LabelledScan, Labels, MaskWriter, label_voxels, numbered, overlap
from misfm.data.writers.coding import coding_of
from misfm.data.writers.dicom_source import (
    MANUFACTURER,
    check_source,
    series_number,
    shown,
    source_images,
    uid_of,
)
from misfm.data.writers.names import colour_of, lab_of
from misfm.files import write_bytes

_SIDE = "SegmentedPropertyTypeModifierCodeSequence"


@WRITERS.register("dicom-seg")
class SegWriter(MaskWriter):
    """Writes ``CASE.dcm``: a binary segment for each label, in the order of the labels, that may overlap."""

    suffix = ".dcm"

    def check(self, scan: ScanSource) -> None:
        """Only what came from DICOM, with its identifiers, can be referred to."""
        check_source(scan, "a segmentation object")

    def values(self, labels: Labels) -> dict[str, int | list[int]]:
        """The numbers of the segments."""
        return numbered(labels)

    @quiet_logger("highdicom")
    def write(self, path: Path, labelled: LabelledScan) -> None:
        """Write the segmentation of one series, with the patient, study and frame of reference of it."""
        assert labelled.scan.series is not None
        images = source_images(labelled.scan.series)
        for image in images:
            if image.get("SliceThickness") is None:  # an optional one, which highdicom wants to see
                image.SliceThickness = labelled.label_map.spacing[0]
        segments = _segments(path, labelled)
        volume = hd.Volume(
            segments,
            LPS_TO_RAS @ labelled.label_map.affine,
            coordinate_system="PATIENT",
            frame_of_reference_uid=images[0].FrameOfReferenceUID,
            channels={"SegmentNumber": range(1, segments.shape[3] + 1)} if segments.ndim == 4 else None,
        )
        parts = [images[0].SeriesInstanceUID, *labelled.weights.values(), *labelled.labels]
        version = importlib.metadata.version("misfm")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            segmentation = hd.seg.Segmentation(
                source_images=images,
                pixel_array=volume,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_descriptions(labelled, version),
                series_instance_uid=uid_of("SEG series", *parts),
                series_number=series_number(images[0]),
                sop_instance_uid=uid_of("SEG", *parts, labelled.digest),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MANUFACTURER,
                software_versions=version,
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description=shown(", ".join(labelled.labels)),
                series_description=shown(f"{MANUFACTURER}: {', '.join(labelled.labels)}"),
            )
        content = io.BytesIO()
        segmentation.save_as(content)
        write_bytes(path, content.getvalue())


def _segments(path: Path, labelled: LabelledScan) -> NDArray[Any]:
    """Segments by number: (D, H, W) of one each, or (D, H, W, segment) where regions overlap."""
    voxels = label_voxels(path, labelled.label_map)
    if overlap(labelled.labels):
        masks = [np.isin(voxels, values) for values in labelled.labels.values()]
        stacked: NDArray[np.uint8] = np.stack(masks, axis=-1).astype(np.uint8)
        return stacked
    numbers: NDArray[np.uint16] = np.zeros(int(voxels.max()) + 1, np.uint16)
    for number, values in enumerate(labelled.labels.values(), 1):
        numbers[[value for value in values if value < len(numbers)]] = number
    found: NDArray[Any] = numbers[voxels].astype(np.uint8 if len(labelled.labels) < 256 else np.uint16)
    return found


def _descriptions(labelled: LabelledScan, version: str) -> list[Any]:
    """What each segment is, and by what it was found."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MANUFACTURER,
        family=codes.cid7162.ArtificialIntelligence,
        version=version,
        source="misfm",
        parameters={shown(name): digest for name, digest in labelled.weights.items()},
    )
    found = []
    for number, name in enumerate(labelled.labels):
        coding = coding_of(name)
        one = hd.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label=shown(name),
            segmented_property_category=coding.category,
            segmented_property_type=coding.type,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor(*lab_of(colour_of(number))),
        )
        if coding.side is not None:
            side = hd.sr.CodedConcept.from_code(coding.side)
            setattr(one.SegmentedPropertyTypeCodeSequence[0], _SIDE, [side])
        found.append(one)
    return found

"""Label maps as DICOM: they read back to the very mask, in the study and place of the series."""

import highdicom as hd
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from misfm.data.checks import LPS_TO_RAS
from misfm.data.scan import ScanSource, find_scans
from misfm.data.writers import WRITERS, LabelledScan
from misfm.data.writers.coding import coding_of
from misfm.data.writers.rtstruct import outlines
from misfm.errors import DataError

ORGANS = {"left kidney": (1,), "liver": (2,), "lump": (4,), "spleen": (5,)}
REGIONS = {"whole tumour": (1, 2, 4), "core": (2, 4), "enhancing tumour": (4,)}
TURNED = (0, 0.6, 0.8, -1, 0, 0)


def write_series(folder, shape=(6, 16, 18), orientation=TURNED, **tags):
    """A series of (D, H, W) pixels; its files are named against the order of its slices."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (generate_uid() for _ in range(3))
    normal = np.cross(orientation[:3], orientation[3:])
    for k in range(shape[0]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientID, one.PatientName, one.StudyID, one.StudyDate = "P7", "Doe^Jane", "S1", "20260102"
        one.Modality, one.SeriesNumber = "CT", 3
        one.Rows, one.Columns = shape[1:]
        one.ImagePositionPatient = [round(float(v), 5) for v in np.array([10, -20, 30]) + k * 2.5 * normal]
        one.ImageOrientationPatient, one.PixelSpacing = list(orientation), [0.8, 0.6]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        for name, value in tags.items():
            setattr(one, name, value)
        one.PixelData = np.full(shape[1:], k, "<i2").tobytes()
        one.save_as(folder / f"{100 - k}.dcm", enforce_file_format=True)
    return folder


def labelled_scan(folder, labels=ORGANS):
    """A label map with a hole, a piece at the border, single voxels, and a label that is nowhere."""
    (scan,) = find_scans([folder])
    volume = scan.read()
    voxels = np.zeros(volume.shape, np.uint8)
    voxels[1:4, 2:12, 3:13] = 1
    voxels[2, 5:8, 6:9] = 0
    voxels[2, 6, 7] = 2
    voxels[:, 0:3, 15:] = 2
    voxels[5, 15, 17] = voxels[4, 9, 9] = voxels[4, 10, 10] = 4
    return LabelledScan(volume.with_data(voxels), labels, scan, {"runs/liver": "0af1"})


def written(tmp_path, form, labelled):
    writer = WRITERS.get(form)()
    writer.check(labelled.scan)
    path = tmp_path / f"case{writer.suffix}"
    writer.write(path, labelled)
    return path


def expected_masks(labelled):
    return {name: np.isin(labelled.label_map.data[0], values) for name, values in labelled.labels.items()}


@pytest.fixture(params=["organs", "regions"])
def labelled(request, tmp_path):
    return labelled_scan(write_series(tmp_path / "series"), ORGANS if request.param == "organs" else REGIONS)


def test_a_segmentation_object_reads_back_to_the_very_masks(tmp_path, labelled):
    back = hd.seg.segread(written(tmp_path, "dicom-seg", labelled))
    grid = hd.VolumeGeometry(
        LPS_TO_RAS @ labelled.label_map.affine,
        labelled.label_map.shape,
        coordinate_system="PATIENT",
        frame_of_reference_uid=back.FrameOfReferenceUID,
    )
    assert back.number_of_segments == len(labelled.labels)
    for number, (name, mask) in enumerate(expected_masks(labelled).items(), 1):
        assert back.get_segment_description(number).segment_label == name
        if not mask.any():
            assert number not in {
                f.SegmentIdentificationSequence[0].ReferencedSegmentNumber
                for f in back.PerFrameFunctionalGroupsSequence
            }
            continue
        found = back.get_volume(segment_numbers=[number], combine_segments=False)
        assert np.array_equal(found.match_geometry(grid).array[..., 0], mask)


def test_a_segmentation_object_is_of_the_patient_and_study_and_says_what_made_it(tmp_path, labelled):
    found = pydicom.dcmread(written(tmp_path, "dicom-seg", labelled))
    image = pydicom.dcmread(labelled.scan.series.files[0])
    for tag in (
        "PatientID",
        "PatientName",
        "StudyInstanceUID",
        "StudyID",
        "StudyDate",
        "FrameOfReferenceUID",
    ):
        assert found[tag].value == image[tag].value, tag
    assert found.Modality == "SEG"
    assert found.SeriesInstanceUID != image.SeriesInstanceUID
    assert found.SeriesNumber == 1003
    segment = found.SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == segment.SegmentAlgorithmName == "misfm"
    assert "0af1" in algorithm.AlgorithmParameters
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == image.SeriesInstanceUID
    for frame in found.PerFrameFunctionalGroupsSequence:  # each frame names the image that it lies on
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        (on,) = [f for f in map(pydicom.dcmread, labelled.scan.series.files) if f.SOPInstanceUID == source]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(
            [float(value) for value in on.ImagePositionPatient], abs=1e-3
        )


def test_an_object_that_is_made_again_has_its_identifiers(tmp_path, labelled):
    for form in ("dicom-seg", "rtstruct"):
        one, other = (pydicom.dcmread(written(tmp_path, form, labelled)) for _ in range(2))
        assert one.SOPInstanceUID == other.SOPInstanceUID
        labelled.label_map.data[0, 0, 0, 0] ^= 1
        changed = pydicom.dcmread(written(tmp_path, form, labelled))
        assert changed.SOPInstanceUID != one.SOPInstanceUID
        assert changed.SeriesInstanceUID == one.SeriesInstanceUID


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_names_in_any_script_are_kept_of_patient_and_labels(tmp_path, form):
    folder = write_series(tmp_path / "series", SpecificCharacterSet="ISO_IR 100", PatientName="M\xfcller")
    found = pydicom.dcmread(
        written(tmp_path, form, labelled_scan(folder, {"\u809d": (1,), "M\xfcller": (2,)}))
    )
    assert str(found.PatientName) == "M\xfcller"
    names = (
        [segment.SegmentLabel for segment in found.SegmentSequence]
        if form == "dicom-seg"
        else [region.ROIName for region in found.StructureSetROISequence]
    )
    assert names == ["\u809d", "M\xfcller"]


def test_a_label_map_of_nothing_is_written(tmp_path):
    labelled = labelled_scan(write_series(tmp_path / "series"))
    labelled.label_map.data[...] = 0
    back = hd.seg.segread(written(tmp_path, "dicom-seg", labelled))
    assert not back.get_volume(combine_segments=False).array.any()
    structures = pydicom.dcmread(written(tmp_path, "rtstruct", labelled))
    assert [roi.ROIName for roi in structures.StructureSetROISequence] == list(ORGANS)


def filled(contours, grid):
    """The voxels whose centres lie within an odd number of outlines."""
    mask = np.zeros(grid.shape, bool)
    centres = np.stack(np.meshgrid(range(grid.shape[2]), range(grid.shape[1])), axis=-1).reshape(-1, 2)
    for contour in contours:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        index = np.linalg.inv(LPS_TO_RAS @ grid.affine) @ np.c_[points, np.ones(len(points))].T
        (plane,) = {round(float(value), 3) for value in index[0]}
        assert plane == round(plane)
        inside = Polygon(index[[2, 1]].T, closed=False).contains_points(centres)
        mask[round(plane)] ^= inside.reshape(grid.shape[1:])
    return mask


def test_a_structure_set_reads_back_to_the_very_masks(tmp_path, labelled):
    found = pydicom.dcmread(written(tmp_path, "rtstruct", labelled))
    masks = expected_masks(labelled)
    assert [roi.ROIName for roi in found.StructureSetROISequence] == list(masks)
    for drawn, (name, mask) in zip(found.ROIContourSequence, masks.items(), strict=True):
        assert np.array_equal(filled(drawn.get("ContourSequence", []), labelled.label_map), mask), name


def test_a_structure_set_is_of_the_study_and_its_outlines_of_its_images(tmp_path, labelled):
    found = pydicom.dcmread(written(tmp_path, "rtstruct", labelled))
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, labelled.scan.series.files)}
    image = next(iter(images.values()))
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[tag].value == image[tag].value
    study = found.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    series = study.RTReferencedSeriesSequence[0]
    assert {one.ReferencedSOPInstanceUID for one in series.ContourImageSequence} == set(images)
    for drawn in found.ROIContourSequence:
        for contour in drawn.get("ContourSequence", []):
            on = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            normal = np.cross(on.ImageOrientationPatient[:3], on.ImageOrientationPatient[3:])
            away = (
                np.array(contour.ContourData[:3], float) - np.array(on.ImagePositionPatient, float)
            ) @ normal
            assert abs(away) < 1e-2


def test_outlines_go_around_holes_and_join_them():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[2:4, 2:4] = mask[5:7, 5:7] = False
    (one,) = outlines(mask)
    assert len(one) > 30
    assert not list(outlines(np.zeros((3, 3), bool)))


@pytest.mark.parametrize("form", ["dicom-seg", "rtstruct"])
def test_what_is_no_dicom_or_lost_its_identifiers_is_a_sentence(tmp_path, form):
    writer = WRITERS.get(form)()
    with pytest.raises(DataError, match=r"a\.nii\.gz is no DICOM.*--format nifti or nrrd"):
        writer.check(ScanSource(tmp_path / "a.nii.gz", "a"))
    (scan,) = find_scans([write_series(tmp_path / "series", StudyInstanceUID="")])
    with pytest.raises(DataError, match="has no StudyInstanceUID, by which"):
        writer.check(scan)


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("liver", "10200004", None),
        ("left_kidney", "64033007", "Left"),
        ("ParotidR", "45289007", "Right"),
        ("kidneys", "64033007", None),
        ("brainstem", "119238007", None),
        ("left_atrium", "82471001", None),
        ("vertebrae_C1", "14806007", None),
        ("tumour", "108369006", None),
    ],
)
def test_known_names_have_codes_of_snomed(name, value, side):
    coding = coding_of(name)
    assert (coding.type.scheme_designator, coding.type.value) == ("SCT", value)
    assert (coding.side and coding.side.meaning) == side


@pytest.mark.parametrize(
    "name", ["bright", "a very long name of a label that is nowhere listed", "\u809d", "^~"]
)
def test_other_names_have_private_codes_that_dicom_can_hold(name):
    coding = coding_of(name)
    assert coding.type.scheme_designator == "99MISFM"
    assert 0 < len(coding.type.value) <= 16
    assert 0 < len(coding.type.meaning) <= 64


def test_series_of_one_folder_are_named_by_their_number(tmp_path):
    write_series(tmp_path / "study")
    for file in sorted((tmp_path / "study").iterdir()):
        file.rename(file.with_name(f"a{file.name}"))
    write_series(tmp_path / "study", SeriesNumber=4)
    assert sorted(scan.case for scan in find_scans([tmp_path / "study"])) == ["series-3", "series-4"]
    for file in sorted((tmp_path / "study").iterdir()):
        file.rename(file.with_name(f"b{file.name}"))
    write_series(tmp_path / "study", SeriesNumber=4)
    uids = {scan.series.uid for scan in find_scans([tmp_path / "study"]) if scan.series.number == "4"}
    assert {scan.case for scan in find_scans([tmp_path / "study"])} == {"series-3", *uids}

"""Labelled scans in every layout that people have, brought into one."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from misfm.data.convert import carry_out, plan
from misfm.data.dataset import Dataset
from misfm.data.dataset_faults import faults
from misfm.data.layouts import recognise
from misfm.errors import ConfigError, DataError

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2.0, 0, -5], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def image(path, seed=0, channels=None, ct=False):
    shape = (5, 6, 7) if channels is None else (5, 6, 7, channels)
    voxels = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    if ct:
        voxels = np.where(voxels < 500, -1000, 20 + voxels // 20).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return voxels


def label(path, values=(0, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.resize(np.array(values, np.uint8), (5, 6, 7))
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


def convert(source, out):
    conversion = plan(recognise(source), source, out)
    counts, _ = carry_out(conversion)
    content = json.loads((out / "dataset.json").read_text())
    assert faults(Dataset.open(out), voxels=True) == []
    return content, counts, conversion.arrangement.rule


def files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.nii*"))


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "Dataset001"


def brats(source, form, suffixes, values):
    for number in (1, 2):
        case = form.format(number)
        for seed, suffix in enumerate(suffixes):
            image(source / case / f"{case}{suffix}.nii.gz", seed)
        label(source / case / f"{case}{suffixes[0][0]}seg.nii.gz", values)


@pytest.mark.parametrize(
    ("form", "suffixes", "enhancing"),
    [
        ("BraTS2021_{:05d}", ("_flair", "_t1", "_t1ce", "_t2"), 4),
        ("BraTS-GLI-{:05d}-000", ("-t1c", "-t1n", "-t2f", "-t2w"), 3),
    ],
)
def test_brats_has_a_folder_for_each_case_and_regions(source, out, form, suffixes, enhancing):
    brats(source, form, suffixes, (0, 1, 2, enhancing))
    content, counts, rule = convert(source, out)
    assert rule.startswith("BraTS: a folder for each case")
    assert counts == {"linked": 10, "copied": 0, "written": 0, "unchanged": 0}
    assert list(content["channel_names"].values()) == ["T1", "T1ce", "T2", "FLAIR"]
    assert content["labels"] == {
        "background": 0,
        "whole_tumor": [1, 2, enhancing],
        "tumor_core": [1, enhancing],
        "enhancing_tumor": [enhancing],
    }
    assert content["regions_class_order"] == [2, 1, enhancing]
    name = form.format(1)
    first = source / name / f"{name}{next(one for one in suffixes if one[1:] in ('t1', 't1n'))}.nii.gz"
    assert (out / f"imagesTr/{name}_0000.nii.gz").samefile(first)
    assert [case.name for case in Dataset.open(out).cases()] == [name, form.format(2)]


def test_a_label_map_of_another_name_is_still_the_label_map_of_its_folder(source, out):
    brats(source, "BraTS20_Training_{:03d}", ("_flair", "_t1", "_t1ce", "_t2"), (0, 1, 2, 4))
    folder = source / "BraTS20_Training_002"
    (folder / "BraTS20_Training_002_seg.nii.gz").rename(folder / "W39_1998.09.19_Segm.nii.gz")
    assert len(convert(source, out)[0]["labels"]) == 4


def test_the_decathlon_keeps_channels_along_the_fourth_axis(source, out):
    voxels = image(source / "imagesTr/BRATS_001.nii.gz", channels=2)
    label(source / "labelsTr/BRATS_001.nii.gz")
    image(source / "imagesTs/BRATS_485.nii.gz", channels=2)
    content = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema"},
        "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
    }
    (source / "dataset.json").write_text(json.dumps(content))
    content, counts, rule = convert(source, out)
    assert "2 channels in each 4D image" in rule
    assert (counts["linked"], counts["written"]) == (1, 4)
    assert content["labels"] == {"background": 0, "edema": 1}
    assert content["channel_names"] == {"0": "FLAIR", "1": "T1w"}
    for channel in (0, 1):
        written = nib.load(out / f"imagesTr/BRATS_001_000{channel}.nii.gz")
        assert np.array_equal(np.asarray(written.dataobj), voxels[..., channel])
        assert np.array_equal(written.affine, AFFINE)
        assert written.get_data_dtype() == np.int16
    assert [case.name for case in Dataset.open(out).cases("Ts")] == ["BRATS_485"]


def test_scaling_of_a_4d_file_is_kept(source, out):
    stored = np.arange(5 * 6 * 7 * 2, dtype=np.int16).reshape(5, 6, 7, 2)
    (source / "imagesTr").mkdir(parents=True)
    scaled = nib.Nifti1Image(stored, AFFINE)
    scaled.header.set_slope_inter(0.5, -3)
    nib.save(scaled, source / "imagesTr/a.nii.gz")
    label(source / "labelsTr/a.nii.gz")
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    content = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "x"},
        "training": listed,
    }
    (source / "dataset.json").write_text(json.dumps(content))
    convert(source, out)
    written = nib.load(out / "imagesTr/a_0001.nii.gz")
    assert np.array_equal(written.get_fdata(), nib.load(source / "imagesTr/a.nii.gz").get_fdata()[..., 1])


@pytest.mark.parametrize(
    "names",
    [
        ("{}_image", "{}_label"),
        ("{}", "{}_seg"),
        ("{}", "{}_mask"),
        ("volume-{}", "segmentation-{}"),
        ("img{}", "label{}"),
        ("{}.ct", "{}.seg"),
    ],
)
def test_image_and_label_map_side_by_side(source, out, names):
    for number in ("001", "002"):
        image(source / f"{names[0].format(number)}.nii", ct=True)
        label(source / f"{names[1].format(number)}.nii", (0, 1, 5))
    content, _, rule = convert(source, out)
    assert "side by side" in rule
    assert content["labels"] == {"background": 0, "label_1": 1, "label_5": 5}
    assert content["channel_names"] == {"0": "CT"}  # by its voxels
    assert content["file_ending"] == ".nii"
    assert files(out) == [
        *(f"imagesTr/00{number}_0000.nii" for number in (1, 2)),
        *(f"labelsTr/00{number}.nii" for number in (1, 2)),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("images/{}", "labels/{}"),
        ("images/{}", "masks/{}_mask"),
        ("imagesTr/img{}", "labelsTr/label{}"),
        ("img/{}_0000", "seg/{}"),
        ("train/images/{}", "train/labels/{}"),
        ("images/{}_T1", "labels/{}_T1_experts"),
    ],
)
def test_folders_of_images_and_of_label_maps(source, out, names):
    for number in ("007", "008"):
        image(source / f"{names[0].format(number)}.nii.gz")
        label(source / f"{names[1].format(number)}.nii.gz")
    content, _, rule = convert(source, out)
    assert "matched by name" in rule
    assert content["channel_names"] == {"0": "T1" if "T1" in names[0] else "MR"}
    assert [case.name for case in Dataset.open(out).cases()] == ["007", "008"]


def test_a_folder_for_each_channel_and_a_case_without_label_map(source, out):
    for name in ("a", "b", "c"):
        for channel in ("pet", "ct"):
            image(source / channel / f"{name}.nii.gz", ct=True)
    for name in ("a", "b"):
        label(source / "labels" / f"{name}.nii.gz")
    content, _, _ = convert(source, out)
    assert content["channel_names"] == {"0": "CT", "1": "PET"}
    assert content["numTraining"] == 2
    assert [case.name for case in Dataset.open(out).cases("Ts")] == ["c"]
    assert "1 case(s) without a label map become test cases (imagesTs): c." in recognise(source).notes


def test_test_images_may_have_a_folder_of_their_own(source, out):
    for part in ("Tr", "Ts"):
        image(source / f"images{part}" / f"{part}1.nii.gz")
        label(source / f"labels{part}" / f"{part}1.nii.gz")
    image(source / "imagesTs" / "Ts2.nii.gz")
    convert(source, out)
    assert [case.name for case in Dataset.open(out).cases()] == ["Tr1"]
    labelled = {case.name: case.label_path is not None for case in Dataset.open(out).cases("Ts")}
    assert labelled == {"Ts1": True, "Ts2": False}


def test_what_was_divided_stays_divided(source, out):
    for part, name in (("train", "a"), ("val", "b"), ("test", "c")):
        image(source / part / "images" / f"{name}.nii.gz")
        label(source / part / "labels" / f"{name}.nii.gz")
    convert(source, out)
    assert Dataset.open(out).splits() == [{"train": ["a"], "val": ["b"]}]
    (test,) = Dataset.open(out).cases("Ts")
    assert (test.name, test.label_path is not None) == ("c", True)


def test_a_case_folder_may_hold_plain_words(source, out):
    for case in ("p0", "p1"):
        image(source / "site" / case / "ct.nii.gz", ct=True)
        label(source / "site" / case / "seg.nii.gz")
    assert convert(source, out)[0]["channel_names"] == {"0": "CT"}


def test_a_mask_for_each_structure_becomes_one_label_map(source, out):
    for case, structures in (("s0001", ("liver", "spleen")), ("s0002", ("liver",))):
        image(source / case / "ct.nii.gz", ct=True)
        for number, structure in enumerate(structures):
            voxels = np.zeros((5, 6, 7), np.uint8)
            voxels[number] = 1
            (source / case / "segmentations").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, AFFINE), source / case / "segmentations" / f"{structure}.nii.gz")
    content, counts, rule = convert(source, out)
    assert "2 structures, liver, spleen" in rule
    assert (counts["linked"], counts["written"]) == (2, 2)
    assert content["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert content["annotated_labels"] == {"s0002": ["liver"]}
    written = np.asarray(nib.load(out / "labelsTr/s0001.nii.gz").dataobj)
    assert [written[plane].max() for plane in range(3)] == [1, 2, 0]


def test_files_of_several_formats_become_one(source, out):
    import SimpleITK as sitk

    image(source / "images/a.nii.gz")
    label(source / "labels/a.nii.gz")
    voxels = sitk.GetImageFromArray(np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5))
    sitk.WriteImage(voxels, str(source / "images/b.nrrd"))
    sitk.WriteImage(sitk.Cast(voxels > 9, sitk.sitkUInt8), str(source / "labels/b.nrrd"))
    _, counts, _ = convert(source, out)
    assert (counts["linked"], counts["written"]) == (2, 2)
    b = Dataset.open(out).cases()[1]
    assert np.array_equal(Dataset.open(out).read_case(b)[0].data[0], sitk.GetArrayFromImage(voxels))


def test_sources_are_only_read_and_stopped_conversions_go_on(source, out):
    brats(source, "c{:03d}", ("_flair", "_t1", "_t1ce", "_t2"), (0, 1, 2, 4))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.rglob("*.nii.gz")}
    convert(source, out)
    shutil.rmtree(out / "labelsTr")
    (out / "dataset.json").unlink()
    _, counts, _ = convert(source, out)
    assert counts == {"linked": 2, "copied": 0, "written": 0, "unchanged": 8}
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_where_no_link_can_be_made_files_are_copied_once(source, out, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    image(source / "a.nii.gz")
    label(source / "a_seg.nii.gz")
    assert convert(source, out)[1]["copied"] == 2
    assert convert(source, out)[1]["unchanged"] == 2
    assert not (out / "imagesTr/a_0000.nii.gz").samefile(source / "a.nii.gz")


def test_names_that_somebody_gave_labels_stay(source, out):
    image(source / "a.nii.gz")
    label(source / "a_seg.nii.gz")
    convert(source, out)
    content = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "liver": 1}}))
    conversion = plan(recognise(source), source, out)
    assert "which stay as they are" in carry_out(conversion)[1][0]
    assert Dataset.open(out).label_names == {0: "background", 1: "liver"}


def structures(source, case, masks):
    image(source / case / "ct.nii.gz", ct=True)
    (source / case / "segmentations").mkdir(exist_ok=True)
    for name, planes in masks.items():
        voxels = np.zeros((5, 6, 7), np.uint8)
        voxels[planes] = 1
        nib.save(nib.Nifti1Image(voxels, AFFINE), source / case / "segmentations" / f"{name}.nii.gz")


def written(out, case):
    return np.asarray(nib.load(out / f"labelsTr/{case}.nii.gz").dataobj)


def test_structures_keep_their_numbers_when_cases_come(source, out):
    for case in ("s0", "s1"):
        structures(source, case, {"kidney": slice(0, 0), "liver": 1, "spleen": 2})
    convert(source, out)
    structures(source, "s2", {"aorta": 0, "kidney": 3, "liver": 1, "spleen": 2})
    content, counts, _ = convert(source, out)
    assert content["labels"] == {"background": 0, "kidney": 1, "liver": 2, "spleen": 3, "aorta": 4}
    assert (counts["linked"], counts["written"], counts["unchanged"]) == (1, 1, 4)
    assert [written(out, "s2")[plane].max() for plane in range(5)] == [4, 2, 3, 1, 0]
    assert [written(out, "s0")[plane].max() for plane in range(3)] == [0, 2, 3]
    assert content["annotated_labels"] == {case: ["kidney", "liver", "spleen"] for case in ("s0", "s1")}
    shutil.rmtree(source / "s2")
    for file in (*out.glob("*Tr/s2*"), out / "dataset.json"):
        file.unlink()
    content, counts, _ = convert(source, out)
    assert (content["labels"]["liver"], counts["unchanged"]) == (2, 4)
    assert set(content["annotated_labels"]) == {"s0", "s1"}


def test_what_somebody_edited_stays_when_cases_come(source, out):
    structures(source, "s0", {"liver": 1})
    structures(source, "s1", {"liver": 1, "spleen": 2})
    content, _, _ = convert(source, out)
    assert content["annotated_labels"] == {"s0": ["liver"]}
    content |= {
        "labels": {"background": 0, "foie": 1, "spleen": 2},
        "annotated_labels": {"s0": ["foie"], "s1": ["foie"]},
        "subjects": {"s0": "x", "s1": "x"},
        "description": "mine",
    }
    (out / "dataset.json").write_text(json.dumps(content))
    structures(source, "s2", {"aorta": 0, "liver": 1})
    conversion = plan(recognise(source), source, out)
    carry_out(conversion)
    after = json.loads((out / "dataset.json").read_text())
    assert after["labels"] == {"background": 0, "foie": 1, "spleen": 2, "aorta": 3}
    assert after["annotated_labels"] == {"s0": ["foie"], "s1": ["foie"], "s2": ["aorta", "foie"]}
    assert (after["subjects"], after["description"]) == ({"s0": "x", "s1": "x"}, "mine")
    assert after["numTraining"] == 3


def test_a_mask_edited_in_place_is_taken(source, out):
    structures(source, "s0", {"liver": 1})
    convert(source, out)
    folder = source / "s0" / "segmentations"
    before = folder.stat()
    structures(source, "s0", {"liver": 3})
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert convert(source, out)[1]["written"] == 1
    assert written(out, "s0")[3].max() == 1


def test_another_source_of_the_same_names_is_refused(source, out, tmp_path):
    for folder in (source, tmp_path / "other"):
        image(folder / "imagesTr/a.nii.gz", channels=2)
        label(folder / "labelsTr/a.nii.gz")
        listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
        content = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "x"}}
        (folder / "dataset.json").write_text(json.dumps(content | {"training": listed}))
    convert(source, out)
    with pytest.raises(ConfigError, match=r"was converted from .*source, not from .*other"):
        plan(recognise(tmp_path / "other"), tmp_path / "other", out)
    noted = {"source": str(source.resolve()), "content": {"labels": 3}, "made_of": {}}
    for damaged in ("{}", "[]", json.dumps(noted)):
        (out / "convert.json").write_text(damaged)
        with pytest.raises(DataError, match=r"convert\.json"):
            plan(recognise(source), source, out)


def test_the_smaller_structure_lies_on_top(source, out, caplog):
    structures(source, "s0", {"aorta": 1, "body": slice(0, 4)})
    convert(source, out)
    assert [written(out, "s0")[plane].max() for plane in range(5)] == [2, 1, 2, 2, 0]
    assert "s0: masks overlap in 42 voxel(s), which the smaller structure has" in caplog.text


def test_a_mask_of_1_and_2_is_refused(source, out):
    structures(source, "s0", {"liver": 1})
    file = source / "s0/segmentations/liver.nii.gz"
    nib.save(nib.Nifti1Image(np.resize(np.array([1, 2], np.uint8), (5, 6, 7)), AFFINE), file)
    with pytest.raises(DataError, match="one higher value inside of it, and holds 1, 2"):
        convert(source, out)


def test_links_to_case_folders_are_followed_each_once(source, out, tmp_path):
    image(source / "a/ct.nii.gz", ct=True)
    label(source / "a/seg.nii.gz")
    image(tmp_path / "else/b/ct.nii.gz", ct=True)
    label(tmp_path / "else/b/seg.nii.gz")
    (source / "b").symlink_to(tmp_path / "else/b")
    (source / "c").symlink_to(tmp_path / "else/b")
    (source / "up").symlink_to(source)
    convert(source, out)
    assert [case.name for case in Dataset.open(out).cases()] == ["a", "b"]


def two_label_maps(source):
    image(source / "a/ct.nii.gz")
    label(source / "a/seg.nii.gz")
    label(source / "a/brain_mask.nii.gz")


def missing_channel(source):
    brats(source, "c{:03d}", ("_flair", "_t1", "_t1ce", "_t2"), (0, 1, 2, 4))
    (source / "c002/c002_t1ce.nii.gz").unlink()


def stray_label_map(source):
    image(source / "images/a.nii.gz")
    label(source / "labels/a.nii.gz")
    label(source / "labels/zebra.nii.gz")


def label_map_without_image(source):
    image(source / "a.nii.gz")
    label(source / "a_seg.nii.gz")
    label(source / "a_grey_seg.nii.gz")


def no_label_maps(source):
    image(source / "images/a.nii.gz")


def image_for_a_label_map(source):
    image(source / "a.nii.gz")
    voxels = np.random.default_rng(0).normal(0, 1, (5, 6, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINE), source / "a_seg.nii.gz")


def already_there(source):
    image(source / "imagesTr/a_0000.nii.gz")
    label(source / "labelsTr/a.nii.gz")
    content = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_label_maps, r"several label maps by name \('brain_mask', 'seg'\)"),
        (missing_channel, r"c002 has no 't1ce', which other cases have, but 'flair', 't1', 't2'"),
        (stray_label_map, r"1 label map\(s\) without an image of that name.*zebra"),
        (label_map_without_image, "a_grey has a label map and no image"),
        (no_label_maps, r"no way that is known \(it holds images/\)"),
        (image_for_a_label_map, r"a_seg\.nii\.gz is taken for a label map"),
        (already_there, r"is a dataset as it is: 'misfm finetune"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_seen(source, out, make, message):
    make(source)
    with pytest.raises(DataError, match=message):
        plan(recognise(source), source, out)
    assert not out.exists()


def test_folders_that_would_be_mixed_are_refused(source, out):
    image(source / "a.nii.gz")
    label(source / "a_seg.nii.gz")
    with pytest.raises(ConfigError, match="lie in each other"):
        plan(recognise(source), source, source / "out")
    image(out / "imagesTr/other_0000.nii.gz")
    with pytest.raises(
        ConfigError, match=r"imagesTr/other_0000\.nii\.gz, which this conversion would not write"
    ):
        plan(recognise(source), source, out)


def test_the_command_says_the_rule_and_a_dry_run_writes_nothing(source, out, run_command):
    image(source / "a_ct.nii.gz", ct=True)
    label(source / "a_seg.nii.gz")
    done = run_command("convert", source, "--out", out, "--dry-run", "--json")
    assert done.status == 0
    assert not out.exists()
    assert "Recognised: images and label maps side by side" in done.err
    assert "imagesTr/a_0000.nii.gz from" in done.err
    assert done.result["labels"] == {"background": 0, "label_1": 1}
    assert "Nothing tells what the labels are called: name them" in done.err
    done = run_command("convert", source, "--out", out, "--json")
    assert (done.status, done.result["linked"], done.result["faults"]) == (0, 2, [])
    assert run_command("convert", source / "nowhere", "--out", out).status == 1

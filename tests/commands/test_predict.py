"""Predicting files: masks overlay however a scan is stored; a bad file stands aside; the rest is written."""

import hashlib
import json
import shutil
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from misfm.commands.predict import label_map_paths, predict, predict_files, uncertainty_paths
from misfm.data.readers import read_volume
from misfm.errors import ConfigError, WeightsError
from misfm.inference.case_work import PredictionOptions
from misfm.inference.cases import Case
from misfm.inference.load import load_predictor
from misfm.synthesis.generate import PhantomSettings, generate_phantom
from misfm.volume import Volume


def reordered(volume, order, flips):
    """The same scan with other voxel axes: permuted by ``order``, then flipped along ``flips``."""
    data = volume.data[0].transpose(order)
    affine = volume.affine[:, [*order, 3]].copy()
    for axis in flips:
        data = np.flip(data, axis)
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(data)[None], affine)


def save_nifti(path, volume):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.data[0].transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]), path)


@pytest.fixture(scope="module")
def scan():
    """An anisotropic scan of a patient who lies crooked."""
    image, _ = generate_phantom(PhantomSettings(shape=(16, 30, 34), spacing=(20, 10, 9)), 3)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return Volume(image.data, turn @ image.affine)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)], ids=str)
def test_a_mask_overlays_its_scan_however_the_file_is_stored(tmp_path, finetuned, scan, order):
    expected = predict(str(finetuned), scan)
    assert len(np.unique(expected.data)) > 1, "an empty mask overlays anything"
    copies = {}
    for flips in ((), (0,), (1, 2), (0, 1, 2)):
        name = f"scan{''.join(map(str, flips))}"
        copies[name] = reordered(scan, order, flips), reordered(expected, order, flips)
        save_nifti(tmp_path / f"{name}.nii.gz", copies[name][0])
    prediction = predict_files(str(finetuned), [tmp_path], tmp_path / "out")
    assert prediction.failed == {}
    for name, (copy, mask) in copies.items():
        image = nib.load(tmp_path / f"{name}.nii.gz")
        written = nib.load(prediction.written[name])
        assert np.array_equal(written.affine, image.affine)
        assert written.shape == image.shape
        found = read_volume(prediction.written[name])
        assert found.affine == pytest.approx(copy.affine, abs=1e-4)
        assert np.mean(found.data == mask.data) > 0.999  # rounding of the header's affine may move a tie


def test_itk_sees_the_mask_of_an_lps_file_where_the_scan_is(tmp_path, finetuned, scan):
    save_nifti(tmp_path / "scan.nii.gz", scan)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scan.nii.gz")), str(tmp_path / "scan.nrrd"))
    (tmp_path / "scan.nii.gz").unlink()
    prediction = predict_files(str(finetuned), [tmp_path / "scan.nrrd"], tmp_path / "out")
    image, mask = (sitk.ReadImage(str(path)) for path in (tmp_path / "scan.nrrd", prediction.written["scan"]))
    assert mask.GetSize() == image.GetSize()
    for corner in product((0, 1), repeat=3):
        index = [c * (side - 1) for c, side in zip(corner, image.GetSize(), strict=True)]
        assert mask.TransformIndexToPhysicalPoint(index) == pytest.approx(
            image.TransformIndexToPhysicalPoint(index), abs=1e-3
        )
    nifti = predict(str(finetuned), read_volume(tmp_path / "scan.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), nifti.data[0])


def test_a_bad_scan_does_not_stop_the_others(run_command, tmp_path, finetuned, scan):
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    save_nifti(inputs / "good.nii.gz", scan)
    (inputs / "bad.nii.gz").write_bytes((inputs / "good.nii.gz").read_bytes()[:2000])
    done = run_command("predict", "--run", finetuned, "--input", inputs, "--output", output, "--json")
    assert done.status == 1
    assert done.result["written"] == {"good": str(output / "good.nii.gz")}
    assert str(inputs / "bad.nii.gz") in done.result["failed"]["bad"]
    assert [path.name for path in output.glob("*.nii.gz")] == ["good.nii.gz"]


def test_a_mask_never_takes_the_place_of_a_scan(run_command, tmp_path, finetuned, scan):
    save_nifti(tmp_path / "a.nii.gz", scan)
    before = (tmp_path / "a.nii.gz").read_bytes()
    done = run_command("predict", "--run", finetuned, "--input", tmp_path, "--output", tmp_path)
    assert done.status == 2
    assert "The label map of a would overwrite the scan" in done.error
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_a_scan_smaller_than_the_patch_is_padded_and_that_is_said(run_command, tmp_path, finetuned, scan):
    small = Volume(scan.data[:, 4:10, 10:22, 10:22], scan.affine)
    save_nifti(tmp_path / "small.nii.gz", small)
    done = run_command(
        *("predict", "--run", finetuned, "--input", tmp_path / "small.nii.gz", "--output", tmp_path / "out")
    )
    assert done.status == 0
    assert "small: the scan is smaller than the patch (16, 16, 16): it is padded." in done.err
    assert read_volume(tmp_path / "out" / "small.nii.gz").shape == small.shape


def test_weights_of_a_pretext_cannot_label(pretrained):
    with pytest.raises(
        WeightsError, match=r"was pretrained with volume-fusion-v2 and has no labels yet; run"
    ):
        load_predictor(str(pretrained))


def test_a_missing_channel_is_a_sentence(run_command, tmp_path, scan):
    """A network of two channels, and a case of which one file is missing."""
    from misfm.models import create
    from misfm.weights import NetworkInfo, WeightsInfo, save

    options = {"channels": (4, 8)}
    info = WeightsInfo(
        network=NetworkInfo(name="unet", options=options),
        in_channels=2,
        num_classes=2,
        patch_size=(16, 16, 16),
        spacing=None,
        intensity={"kind": "ct"},
        steps=0,
        data=None,
    )
    model = create("unet", in_channels=2, num_classes=2, patch_size=(16, 16, 16), **options)
    save(tmp_path / "two.safetensors", model, info)
    save_nifti(tmp_path / "a_0000.nii.gz", scan)
    done = run_command(
        *("predict", "--run", tmp_path / "two.safetensors", "--input", tmp_path / "a_0000.nii.gz"),
        *("--output", tmp_path / "out", "--json"),
    )
    assert done.status == 1
    expected = (
        f"Case a has 1 channel(s) ({tmp_path / 'a_0000.nii.gz'}) and the network takes 2; name its files"
    )
    assert done.result["failed"]["a"].startswith(expected)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_predictions_json_says_whose_masks_there_are_and_what_is_in_them(
    run_command, tmp_path, finetuned, scan
):
    save_nifti(tmp_path / "in" / "a" / "ct.nii.gz", scan)
    command = ("predict", "--run", finetuned, "--input", tmp_path / "in", "--output", tmp_path / "out")
    done = run_command(*command, "--json")
    assert done.result["written"] == {"a__ct": str(tmp_path / "out" / "a__ct.nii.gz")}
    assert "a/ct.nii.gz -> a__ct.nii.gz" in done.err
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    weights = finetuned / "weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert content["weights"] == [{"source": str(weights), "sha256": digest}]
    case = content["cases"]["a__ct"]
    assert case["source"] == str(tmp_path / "in" / "a" / "ct.nii.gz")
    assert case["mask"] == "a__ct.nii.gz"
    mask = read_volume(tmp_path / "out" / "a__ct.nii.gz")
    voxel_ml = np.prod(mask.spacing) / 1000
    assert case["labels"].keys() == case["volume_ml"].keys()
    for name, value in case["labels"].items():
        assert case["volume_ml"][name] == pytest.approx((mask.data == value).sum() * voxel_ml, rel=1e-5)
    names = (tmp_path / "out" / "labels.txt").read_text()
    assert all(f'"{name}"' in names for name in case["labels"])


def test_predict_goes_on_where_it_was_and_never_takes_masks_of_other_weights(
    run_command, tmp_path, finetuned, scan, monkeypatch
):
    from misfm.inference.predictor import Predictor

    label, labelled = Predictor.label, []
    monkeypatch.setattr(
        Predictor, "label", lambda self, p, **more: labelled.append(p.scan.shape) or label(self, p, **more)
    )
    for name in "ab":
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", scan)
    command = ("predict", "--run", finetuned, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert run_command(*command).status == 0
    (tmp_path / "out" / "b.nii.gz").unlink()
    done = run_command(*command, "--json")
    assert len(labelled) == 3
    assert "1 label map(s) were there already" in done.err
    assert sorted(done.result["written"]) == ["a", "b"]
    other = tmp_path / "other.safetensors"
    shutil.copy(finetuned / "weights.safetensors", other)
    assert run_command("predict", "--run", other, *command[3:]).status == 0
    assert len(labelled) == 3, "the same weights in another place"
    assert run_command(*command, "--overlap", "0.25").status == 0
    assert len(labelled) == 5


def test_a_mask_corrected_by_hand_is_not_overwritten(run_command, tmp_path, finetuned, scan):
    save_nifti(tmp_path / "a.nii.gz", scan)
    command = ("predict", "--run", finetuned, "--input", tmp_path / "a.nii.gz", "--output", tmp_path / "out")
    run_command(*command)
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"corrected")
    done = run_command(*command, "--overlap", "0.25")
    assert done.status == 1
    assert "out/a.nii.gz was changed after misfm wrote it; move it away" in done.err
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == b"corrected"


def test_masks_beside_the_scans_are_no_scans_the_next_time(run_command, tmp_path, finetuned, scan):
    save_nifti(tmp_path / "c_0000.nii.gz", scan)
    for _ in range(2):
        done = run_command("predict", "--run", finetuned, "--input", tmp_path, "--output", tmp_path, "--json")
        assert done.status == 0
        assert list(done.result["written"]) == ["c"]


def test_formats_of_dicom_need_dicom_and_an_unknown_format_is_a_sentence(
    run_command, tmp_path, finetuned, scan
):
    save_nifti(tmp_path / "a.nii.gz", scan)
    command = ("predict", "--run", finetuned, "--input", tmp_path / "a.nii.gz", "--output", tmp_path / "out")
    done = run_command(*command, "--format", "dicom-seg", "--json")
    assert done.status == 1
    assert "a.nii.gz is no DICOM" in done.result["failed"]["a"]
    done = run_command(*command, "--format", "dicom")
    assert done.status == 2
    assert "did you mean 'dicom-seg'?" in done.error
    done = run_command(*command, "--format", "nrrd", "--json")
    assert done.result["written"]["a"].endswith("a.seg.nrrd")
    nifti = predict(str(finetuned), read_volume(tmp_path / "a.nii.gz"))
    assert np.array_equal(read_volume(tmp_path / "out" / "a.seg.nrrd").data, nifti.data)


def test_probabilities_beside_the_label_map_and_again_where_they_are_gone(tmp_path, finetuned, scan):
    save_nifti(tmp_path / "scan.nii.gz", scan)
    options = PredictionOptions(probabilities=True)
    written = predict_files(str(finetuned), [tmp_path / "scan.nii.gz"], tmp_path / "out", options).written
    file = tmp_path / "out" / "scan.npz"
    assert (
        json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]["scan"]["probabilities"]
        == file.name
    )
    with np.load(file) as content:
        found = content["probabilities"]
    array = sitk.GetArrayFromImage(sitk.ReadImage(written["scan"]))
    assert found.shape[1:] == array.shape
    sure = found.max(0) > 0.51
    assert np.array_equal(found.argmax(0)[sure], array[sure])
    file.unlink()
    predict_files(str(finetuned), [tmp_path / "scan.nii.gz"], tmp_path / "out", options)
    assert file.exists()


def test_a_scan_of_another_modality_is_refused_by_name_and_forced(
    run_command, tmp_path, finetuned, scan, monkeypatch
):
    for name in ("a", "mr"):
        save_nifti(tmp_path / f"{name}.nii.gz", scan)
    monkeypatch.setattr(Case, "modalities", property(lambda self: ["MR" if self.name == "mr" else "CT"]))
    command = ("predict", "--run", finetuned, "--input", tmp_path, "--output", tmp_path / "out", "--json")
    done = run_command(*command)
    assert done.status == 1
    assert list(done.result["written"]) == ["a"]
    assert "mr.nii.gz: the scan is MR by its header and the weights are for CT" in done.result["failed"]["mr"]
    done = run_command(*command, "--force")
    assert done.status == 0
    assert any("as --force says" in said for said in done.result["warnings"]["mr"])
    assert "1 label map(s) were there already" in done.err


def test_a_prediction_says_what_to_expect_of_it_and_where_it_is_unsure(
    run_command, dataset, finetuned, tmp_path
):
    scan, masks = dataset / "imagesTs" / "phantom_ts_000_0000.nii.gz", tmp_path / "masks"
    command = ["predict", "--run", finetuned, "--input", scan, "--output", masks, "--uncertainty"]
    assert run_command(*command).status == 0
    case = json.loads((masks / "predictions.json").read_text())["cases"]["phantom_ts_000"]
    quality = case["quality"]
    assert quality["labels"].keys() == case["labels"].keys()
    assert quality["expected_dice"] is None or 0 <= quality["expected_dice"] <= 1
    unsure = nib.load(masks / case["uncertainty"])
    assert case["uncertainty"] == "phantom_ts_000_uncertainty.nii.gz"
    assert unsure.shape == nib.load(scan).shape
    assert np.array_equal(unsure.affine, nib.load(masks / case["mask"]).affine)
    assert 0 < unsure.get_fdata().max() <= 1
    scores = run_command(
        "evaluate",
        "--predictions",
        masks,
        "--references",
        dataset / "labelsTs",
        "--out",
        tmp_path / "scores.json",
    )
    assert "uncertainty" not in scores.err  # it is no label map


def test_a_map_of_uncertainty_never_takes_the_name_of_a_label_map(tmp_path):
    with pytest.raises(ConfigError, match="would be a label map and a map of uncertainty"):
        uncertainty_paths(label_map_paths(["a", "a_uncertainty"], tmp_path), ".nii.gz")

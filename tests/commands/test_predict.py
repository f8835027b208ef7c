"""Predicting files: masks overlay however a scan is stored; a bad file stands aside; the rest is written."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from misfm.commands.predict import predict, predict_files
from misfm.data.readers import read_volume
from misfm.errors import WeightsError
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

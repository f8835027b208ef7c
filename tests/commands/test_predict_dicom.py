"""One CT as NIfTI, classic and enhanced DICOM has one mask; as SEG and RTSTRUCT the mask reads back."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from misfm.data.dicom import read_labels, series_at
from misfm.data.readers import read_volume
from misfm.synthesis.generate import PhantomSettings, generate_phantom

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from odd_dicom_files import write_enhanced, write_series


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The same generated CT in three formats, in a folder each."""
    folder = tmp_path_factory.mktemp("scans")
    image, _ = generate_phantom(PhantomSettings(shape=(16, 30, 34), spacing=(20, 10, 9)), 3)
    stored = (np.rint(image.data[0]).astype(int) + 1024).clip(0).astype(np.uint16)
    depths = [20.0 * number for number in range(len(stored))]
    write_series(folder / "classic", stored, depths=depths, PixelSpacing=[10, 9])
    write_enhanced(folder / "enhanced" / "ct.dcm", stored, depths=depths, spacing=(10, 9))
    scan = read_volume(folder / "classic")
    nifti = nib.Nifti1Image(scan.data[0].transpose(2, 1, 0), scan.affine[:, [2, 1, 0, 3]])
    (folder / "nifti").mkdir()
    nib.save(nifti, folder / "nifti" / "ct.nii.gz")
    return folder


@pytest.fixture(scope="module")
def label(finetuned):
    return ("predict", "--run", finetuned, "--json")


def test_one_scan_in_three_formats_has_one_mask(scans, label, tmp_path, run_command):
    masks = {}
    for kind in ("nifti", "classic", "enhanced"):
        out = tmp_path / kind
        done = run_command(*label, "--input", scans / kind, "--output", out)
        assert done.status == 0, done.err
        (mask,) = out.glob("*.nii.gz")
        masks[kind] = read_volume(mask)
    assert len(np.unique(masks["nifti"].data)) > 1, "an empty mask says nothing"
    for kind in ("classic", "enhanced"):
        assert np.array_equal(masks[kind].data, masks["nifti"].data)
        assert masks[kind].affine == pytest.approx(masks["nifti"].affine, abs=1e-3)


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_a_seg_that_was_predicted_reads_back_to_the_mask(scans, label, tmp_path, run_command, kind):
    assert run_command(*label, "--input", scans / kind, "--output", tmp_path / "nifti").status == 0
    (mask,) = (tmp_path / "nifti").glob("*.nii.gz")
    done = run_command(*label, "--input", scans / kind, "--output", tmp_path / "seg", "--format", "dicom-seg")
    assert done.status == 0, done.err
    (seg,) = (tmp_path / "seg").glob("*.dcm")
    found, names = read_labels(seg, series_at(scans / kind))
    account = json.loads((tmp_path / "nifti" / "predictions.json").read_text())
    (case,) = account["cases"].values()
    expected = read_volume(mask).data
    assert set(names.values()) <= set(case["labels"])
    for value, name in names.items():
        assert np.array_equal(found.data == value, expected == case["labels"][name])
    assert (found.data > 0).sum() == (expected > 0).sum()

"""Label maps come back bit by bit on the same grid."""

import nibabel as nib
import numpy as np
import pytest

from misfm.data.readers import read_volume
from misfm.data.writers import write_label_map
from misfm.errors import DataError
from misfm.volume import Volume

AFFINE = np.array([[0, -0.6, 2.4, 5], [0, -1.2, -1.2, 7], [-3.0, 0, 0, 90], [0, 0, 0, 1]])


def label_map(highest):
    generator = np.random.default_rng(0)
    return Volume(generator.integers(0, highest + 1, (1, 4, 5, 6)), AFFINE)


@pytest.mark.parametrize(("highest", "dtype"), [(5, "uint8"), (255, "uint8"), (900, "int16")])
def test_round_trip(tmp_path, highest, dtype):
    path = tmp_path / "new" / "case.nii.gz"
    label = label_map(highest)
    label.data[0, 0, 0, 0] = highest
    write_label_map(path, label)
    again = read_volume(path)
    assert np.array_equal(again.data, label.data)
    assert again.affine == pytest.approx(AFFINE, abs=1e-5)
    image = nib.load(path)
    assert image.get_data_dtype() == dtype
    assert image.get_qform() == pytest.approx(image.get_sform(), abs=1e-4)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)


def test_the_same_label_map_is_the_same_file(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, label_map(3))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"Cannot write .*case\.nii\.gz"):
        write_label_map(tmp_path / "file" / "case.nii.gz", label_map(2))


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"\.nii\.gz"):
        write_label_map(tmp_path / "case.mha", label_map(2))

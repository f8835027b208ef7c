"""Which scans are a case, and what it is called, whatever else lies beside it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from misfm.data.readers import Series
from misfm.data.scan import ScanSource, find_scans
from misfm.errors import DataError
from misfm.inference.cases import Case, group_channels

AFFINE = np.diag([-2.0, -2, 3, 1])


def save(path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine), path)


def names_of(cases):
    return {case.name: [scan.path.name for scan in case.channels] for case in cases}


def sources(*names):
    return [ScanSource(Path(name), Path(name).name.split(".")[0]) for name in names]


def test_channels_of_a_case_belong_together_and_other_names_stay():
    scans = sources("b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz")
    assert names_of(group_channels(scans, 2)) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }
    assert list(names_of(group_channels(sources("x_1.nii", "y_00001.nii"), 1))) == ["x_1", "y_00001"]


def test_words_in_names_tell_the_channels_in_the_order_of_the_weights():
    files = ("t1n", "t2w", "seg", "flair")
    scans = [
        ScanSource(Path(f"/in/{case}/{case}-{word}.nii.gz"), f"{case}-{word}", folders=(case,))
        for case in ("ann", "ben")
        for word in files
    ]
    found = names_of(group_channels(scans, 3, ("FLAIR", "T1", "T2")))
    assert found == {
        case: [f"{case}-{word}.nii.gz" for word in ("flair", "t1n", "t2w")] for case in ("ann", "ben")
    }
    flat = names_of(group_channels(sources("p_pet.nii.gz", "p_ct.nii.gz"), 2, ("CT", "PET")))
    assert flat == {"p": ["p_ct.nii.gz", "p_pet.nii.gz"]}
    others = group_channels(sources("p_t1.nii.gz", "p_t2.nii.gz"), 2, ("CT", "PET"))
    assert [case.name for case in others] == ["p_t1", "p_t2"]


def test_words_tell_nothing_to_weights_that_do_not_name_their_channels():
    first, second = group_channels(sources("b_0000.nii", "b_0001.nii", "p_t2.nii", "p_t1.nii"), 2)
    assert (first.name, first.fault, second.name) == ("b", "", "p")
    with pytest.raises(
        DataError, match=r"The weights do not say .*p_t1\.nii.*: name them p_0000, p_0001, … in"
    ):
        second.read(2)


def test_a_dataset_tells_the_case_from_the_channel():
    one = ScanSource(Path("imagesTr/case_0000_0000.nii.gz"), "case_0000")
    assert names_of(group_channels([one], 1)) == {"case_0000": ["case_0000_0000.nii.gz"]}


def test_a_case_in_a_folder_is_named_by_it_whoever_else_is_there(tmp_path):
    for patient in ("A_miller", "B_jones"):
        save(tmp_path / "scans" / patient / "ct.nii.gz")
    save(tmp_path / "scans" / "alone.nii.gz")
    both = names_of(group_channels(find_scans([tmp_path / "scans"]), 1))
    assert list(both) == ["A_miller__ct", "B_jones__ct", "alone"]
    (tmp_path / "scans" / "A_miller" / "ct.nii.gz").unlink()
    assert list(names_of(group_channels(find_scans([tmp_path / "scans"]), 1))) == ["B_jones__ct", "alone"]
    (tmp_path / "scans" / "alone.nii.gz").unlink()
    assert list(names_of(group_channels(find_scans([tmp_path / "scans"]), 1))) == ["B_jones__ct"]


def test_a_folder_that_holds_all_scans_tells_none_from_another(tmp_path):
    for name in ("ct", "pet"):
        save(tmp_path / "scans" / "all of them" / f"{name}.nii.gz")
    assert list(names_of(group_channels(find_scans([tmp_path / "scans"]), 1))) == ["ct", "pet"]


def test_files_of_one_name_given_one_by_one_are_told_apart_by_their_folders(tmp_path):
    files = [tmp_path / where / "ct.nii.gz" for where in ("A/one", "A/two", "B/one")]
    for file in files:
        save(file)
    assert list(names_of(group_channels(find_scans(files[:2]), 1))) == ["one__ct", "two__ct"]
    names = list(names_of(group_channels(find_scans(files), 1)))
    assert names == ["A__one__ct", "A__two__ct", "B__one__ct"]
    assert list(names_of(group_channels(find_scans(files[:1]), 1))) == ["ct"]


def test_one_name_in_one_folder_gets_a_number():
    scans = sources("/here/scan.nii.gz", "/here/scan.nrrd", "/here/scan-2.nrrd")
    scans[1] = ScanSource(Path("/here/deeper"), "scan")
    assert len(names_of(group_channels(scans, 1))) == 2  # one folder, one name: channels of a case
    groups = group_channels([ScanSource(Path("/a__b/c"), "c"), ScanSource(Path("/a/b__c"), "b__c")], 1)
    assert len({case.name for case in groups}) == 2


def test_rounding_of_header_numbers_is_no_other_grid_as_in_training(tmp_path):
    save(tmp_path / "a_0000.nii.gz")
    save(
        tmp_path / "a_0001.nii.gz", np.array([[-2, 0, 0, 0.01], [0, -2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
    )
    (case,) = group_channels(find_scans([tmp_path]), 2)
    assert case.read(2).data.shape == (2, 6, 5, 4)


def test_channels_on_different_grids_are_refused(tmp_path):
    save(tmp_path / "a_0000.nii.gz")
    save(tmp_path / "a_0001.nii.gz", np.diag([-2.0, 2, 3, 1]))
    (case,) = group_channels(find_scans([tmp_path]), 2)
    with pytest.raises(DataError, match=r"a_0001\.nii\.gz lies on another grid than a_0000\.nii\.gz"):
        case.read(2)


def test_a_case_is_known_by_its_files(tmp_path):
    scans = sources(str(tmp_path / "a_0000.nii.gz"), str(tmp_path / "a_0001.nii.gz"))
    assert Case("a", tuple(scans[:1])).source.source == str(tmp_path / "a_0000.nii.gz")
    assert Case("a", tuple(scans)).source.source == [scan.source for scan in scans]


def test_a_case_of_dicom_is_known_by_its_series_and_the_part_of_it():
    class Images(Series):
        def read(self):
            raise AssertionError

    def source_of(uid, part=""):
        scan = ScanSource(Path("/ct"), "ct", series=Images(uid, (Path("/ct/0"),), "CT", part=part))
        return Case("ct", (scan,)).source.source

    assert source_of("1.2.3") == "1.2.3"
    assert source_of("1.2.3", "time 2") == "1.2.3#time 2"
    assert source_of("folder of a series without identifier") == "/ct"

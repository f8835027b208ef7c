"""No name of a patient gets out: with pseudonyms, nothing written or printed holds what was planted."""

import stat
import zipfile

import nibabel as nib
import numpy as np
import pytest

from misfm.data.store import Store
from tests.data.test_dicom import write_series

PLANTED = ["Quisling", "Xanthippe", "MRN-7781234", "1911-11-11", "Zauberberg"]
"""Two names, a number, a birthday and a ward."""


def body(seed):
    generator = np.random.default_rng(seed)
    voxels = generator.integers(-1010, -990, (32, 36, 40)).astype(np.int16)
    voxels[6:-6, 5:-5, 4:-4] = generator.integers(-100, 200, (20, 26, 32))
    return voxels


def write_nifti(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1]))
    image.header["descrip"] = b"Quisling 1911-11-11 MRN-7781234"
    image.header["db_name"] = b"Xanthippe"
    nib.save(image, path)


@pytest.fixture
def hospital(tmp_path):
    """Scans in all formats with names wherever there is room for one; some cannot be used."""
    ward = tmp_path / "Zauberberg"
    for seed in range(3):
        write_nifti(ward / f"Quisling_Xanthippe_1911-11-11_{seed}.nii.gz", body(seed))
    write_nifti(ward / "copy" / "MRN-7781234.nii.gz", body(0))
    write_nifti(ward / "Quisling" / "flat.nii.gz", np.zeros((8, 9, 10), np.int16))
    write_nifti(ward / "Quisling" / "Xanthippe.nii.gz", np.repeat(body(4), 5, axis=0))
    cut = ward / "MRN-7781234" / "cut.nii.gz"
    write_nifti(cut, body(5))
    cut.write_bytes(cut.read_bytes()[:-200])
    (ward / "Quisling.nrrd").write_bytes(b"NRRD0004\n# Xanthippe\ntype: Quisling\nsizes: MRN-7781234\n\n")
    (ward / "Xanthippe.mha").write_bytes(
        b"ObjectType = Image\nComment = Quisling\nElementDataFile = Quisling.raw\n"
    )
    tags = {
        "PatientName": "Quisling^Xanthippe",
        "PatientID": "MRN-7781234",
        "PatientBirthDate": "19111111",
        "InstitutionName": "Zauberberg",
        "SeriesDescription": "Thorax of Quisling",
    }
    (ward / "dicom").mkdir()
    write_series(ward / "dicom" / "Xanthippe", 1024 + body(6), **tags)
    write_series(ward / "dicom" / "Quisling", 1024 + body(7), uid="1.2.4", **tags)
    slices = sorted((ward / "dicom" / "Quisling").iterdir())
    slices[5].rename(slices[5].with_name("Xanthippe.dcm"))
    slices[9].unlink()
    return ward


def found_in(name, content):
    """The planted names that a file or text holds, however it is encoded."""
    lower = content.lower()
    planted = [word.lower() for word in (*PLANTED, "19111111")]
    forms = [(word, form) for word in planted for form in (word.encode(), word.encode("utf-16-le"))]
    return {(name, word) for word, form in forms if form in lower}


def found_below(folder):
    found = set()
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found |= found_in(name, name.encode())
        if path.is_file():
            found |= found_in(name, path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    found |= found_in(f"{name}/{member}", archive.read(member))
    return found


def test_nothing_that_is_written_or_printed_holds_a_name(hospital, tmp_path, run_command, tiny_pretraining):
    store, keys, run = tmp_path / "out" / "store", tmp_path / "keys.csv", tmp_path / "out" / "run"
    ingest = ("ingest", hospital, "--store", store, "--pseudonyms", keys, "--json")
    tiny = [part for setting in tiny_pretraining if setting != "--set" for part in ("--set", setting)]
    said = [
        run_command(*ingest),
        run_command(*ingest),
        run_command("info", store),
        run_command("info", store, "--quarantine"),
        run_command("info", store, "--check"),
        run_command("pretrain", "--store", store, "--out", run, *tiny),
        run_command("info", run),
    ]
    assert [done.status for done in said] == [0] * len(said), said[-2].err
    first, second = said[0].result, said[1].result
    assert (first["added"], first["duplicates"], len(first["quarantined"])) == (4, 1, 6)
    assert (second["added"], second["skipped"], len(second["quarantined"])) == (0, 5, 6)
    kinds = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert {".pt", ".safetensors", ".txt", ".yaml", ".jsonl", ".json"} <= kinds
    assert any("tfevents" in path.name for path in run.rglob("*"))
    assert found_below(tmp_path / "out") == set()
    for number, done in enumerate(said):
        assert found_in(number, (done.out + done.err).encode()) == set()

    # Who may know finds all of it in the key file, and in a store that was made without.
    assert {word for _, word in found_in("keys", keys.read_bytes())} >= {
        "quisling",
        "xanthippe",
        "zauberberg",
    }
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert run_command("ingest", hospital, "--store", tmp_path / "plain").status == 0
    assert found_below(tmp_path / "plain")


def test_names_and_pseudonyms_never_meet_in_a_store(hospital, tmp_path, run_command):
    keys, secret, plain = tmp_path / "keys.csv", tmp_path / "secret", tmp_path / "plain"
    scans = hospital / "copy"
    assert run_command("ingest", scans, "--store", secret, "--pseudonyms", keys).status == 0
    assert run_command("ingest", scans, "--store", plain).status == 0
    done = run_command("ingest", scans, "--store", secret)
    assert done.status == 2
    assert "knows scans by pseudonyms; give their key file with --pseudonyms" in done.error
    done = run_command("ingest", scans, "--store", plain, "--pseudonyms", keys)
    assert done.status == 2
    assert "knows scans by their names; choose another folder for pseudonyms" in done.error
    done = run_command("ingest", scans, "--store", secret, "--pseudonyms", secret / "keys.csv")
    assert done.status == 2
    assert Store.open(secret).records()[0].case.startswith("scan-")

"""Bad input gets one sentence that names it, the right exit status, and leaves no half-written file."""

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.predict import label_map_paths
from misfm.inference.predictor import Predictor

SPL = np.diag([-14.0, -13.0, 12.0, 1.0])


def save(path, voxels, affine=SPL):
    nib.save(nib.Nifti1Image(voxels, affine), path)


def some_voxels(shape=(12, 14, 16)):
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


def truncated(path):
    save(path, some_voxels())
    path.write_bytes(path.read_bytes()[:3000])


def not_a_nifti(path):
    path.write_bytes(gzip.compress(b"not a scan at all" * 100))


def flat(path):
    save(path, some_voxels((12, 14)))


def over_time(path):
    save(path, some_voxels((6, 7, 8, 3)))


def with_nan(path):
    voxels = some_voxels().astype(np.float32)
    voxels[3, 4, 5] = np.nan
    save(path, voxels)


def with_infinity(path):
    voxels = some_voxels().astype(np.float32)
    voxels[3, 4, 5] = np.inf
    save(path, voxels)


def shearing(path):
    affine = SPL.copy()
    affine[0, 1] = 9.0
    header = nib.Nifti1Image(some_voxels(), None)
    header.set_sform(affine, code=1)
    header.set_qform(None, code=0)
    nib.save(header, path)


BAD_SCANS = [truncated, not_a_nifti, flat, over_time, with_nan, with_infinity, shearing]


def is_one_sentence(message):
    return "\n" not in message and message.endswith(".") and len(message) < 600


@pytest.mark.parametrize("make", BAD_SCANS)
def test_a_bad_scan_is_quarantined_with_a_reason_that_names_it(run_command, tmp_path, make):
    path = tmp_path / "bad.nii.gz"
    make(path)
    done = run_command("ingest", path, "--store", tmp_path / "store", "--json")
    assert done.status == 1  # nothing was added
    ((source, reason),) = [(entry["source"], entry["reason"]) for entry in done.result["quarantined"]]
    assert source == str(path)
    assert "bad.nii.gz" in reason
    assert is_one_sentence(reason)
    assert not list((tmp_path / "store" / "volumes").iterdir())


def test_a_bad_scan_among_good_ones_stands_aside(run_command, tmp_path, scans):
    shutil.copytree(scans, tmp_path / "scans")
    with_nan(tmp_path / "scans" / "bad.nii.gz")
    done = run_command("ingest", tmp_path / "scans", "--store", tmp_path / "store", "--json")
    assert done.status == 0
    assert (done.result["added"], len(done.result["quarantined"])) == (4, 1)


@pytest.mark.parametrize("make", BAD_SCANS)
def test_a_bad_scan_is_not_predicted(run_command, tmp_path, finetuned, make):
    path = tmp_path / "bad.nii.gz"
    make(path)
    done = run_command("predict", "--run", finetuned, "--input", path, "--output", tmp_path / "out", "--json")
    assert done.status == 1
    (reason,) = done.result["failed"].values()
    assert "bad.nii.gz" in reason
    assert is_one_sentence(reason)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_or_missing_folder_holds_nothing(run_command, tmp_path, finetuned, there):
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()
    expected = "holds no scan" if there else "does not exist"
    commands = [
        ("ingest", folder, "--store", tmp_path / "store"),
        ("predict", "--run", finetuned, "--input", folder, "--output", tmp_path / "out"),
    ]
    for command in commands:
        done = run_command(*command)
        assert done.status == 1
        assert done.error.startswith(f"Error: {folder} {expected}")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()
    for command, options in [
        ("pretrain", ("--store", folder)),
        ("finetune", ("--dataset", folder)),
    ]:
        done = run_command(command, *options, "--out", tmp_path / "run")
        assert done.status == 1
        assert str(folder) in done.error
        assert is_one_sentence(done.error)
        assert not (tmp_path / "run").exists()
    done = run_command("info", folder)
    assert (done.status, is_one_sentence(done.error)) == (1, True)


@pytest.mark.parametrize("option", ["predictions", "references"])
def test_evaluating_nothing_writes_nothing(run_command, tmp_path, dataset, option):
    folders = {
        "predictions": dataset / "labelsTs",
        "references": dataset / "labelsTs",
        option: tmp_path / "none",
    }
    done = run_command(
        *("evaluate", "--predictions", folders["predictions"], "--references", folders["references"]),
        *("--out", tmp_path / "scores.json"),
    )
    assert done.status == 1
    assert str(tmp_path / "none") in done.error
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_dataset(dataset, tmp_path):
    """A copy of the dataset to spoil, with one case whose label map is ``label``."""
    shutil.copytree(dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def spoil_grid(folder):
    label = folder / "labelsTr" / "phantom_tr_000.nii.gz"
    image = nib.load(label)
    save(label, np.asarray(image.dataobj), image.affine @ np.diag([1.5, 1, 1, 1]))
    return f"{label} lies on another grid than phantom_tr_000_0000.nii.gz"


def spoil_shape(folder):
    label = folder / "labelsTr" / "phantom_tr_000.nii.gz"
    image = nib.load(label)
    save(label, np.asarray(image.dataobj)[:-1], image.affine)
    return f"{label} lies on another grid than phantom_tr_000_0000.nii.gz: its shape is"


def spoil_labels(folder):
    label = folder / "labelsTr" / "phantom_tr_000.nii.gz"
    image = nib.load(label)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 77
    save(label, voxels, image.affine)
    return f"{label} has labels that dataset.json does not name (77)"


def spoil_channel(folder):
    description = json.loads((folder / "dataset.json").read_text())
    description["channel_names"] = {"0": "CT", "1": "ct"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return "phantom_tr_000_0001.nii.gz is missing: channel 1 (ct) of case phantom_tr_000"


def spoil_description(folder):
    (folder / "dataset.json").write_text('{"channel_names": {"0": "CT"}')
    return f"{folder / 'dataset.json'} cannot be read as JSON"


@pytest.mark.parametrize("spoil", [spoil_grid, spoil_shape, spoil_labels, spoil_channel, spoil_description])
def test_a_dataset_that_does_not_fit_together_is_refused(
    run_command, own_dataset, tmp_path, tiny_finetuning, spoil
):
    message = spoil(own_dataset)
    done = run_command(
        *("finetune", "--dataset", own_dataset, "--out", tmp_path / "run", "--cases", "phantom_tr_000"),
        *tiny_finetuning,
    )
    assert done.status == 1
    assert message in done.error
    assert is_one_sentence(done.error)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--network", "unett"], 2, "There is no network 'unett'; did you mean 'unet'?"),
        (["--recipe", "smalll"], 2, "There is no recipe 'smalll'; did you mean 'small'?"),
        (["--schedule", "sawtoth"], 2, "'sawtooth'"),
        (["--transfer", "half"], 2, "'all' or 'encoder'"),
        (["--cases", "99"], 2, "--cases 99: the split has 3 training cases."),
        (["--cases", "phantom_tr_0"], 2, "has no labelled case 'phantom_tr_0'; did you mean"),
        (["--weights", "nowhere"], 1, "There is no weights file nowhere"),
        (
            ["--twin", "--weights", "none"],
            2,
            "--twin compares pretrained weights with scratch: give --weights as well.",
        ),
        (["--set", "intensity=ctt"], 2, "There is no intensity rule 'ctt'; did you mean 'ct'?"),
        (["--set", "network.options.channel=[4, 8]"], 2, "has no option 'channel'; did you mean 'channels'?"),
    ],
)
def test_what_does_not_exist_is_refused_before_a_run_folder_is_made(
    run_command, dataset, tmp_path, tiny_finetuning, arguments, status, message
):
    done = run_command(
        "finetune", "--dataset", dataset, "--out", tmp_path / "run", *tiny_finetuning[2:], *arguments
    )
    assert done.status == status
    assert message in done.error
    assert is_one_sentence(done.error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
def test_weights_that_are_none_are_refused(run_command, dataset, tmp_path, content):
    (tmp_path / "weights.pt").write_bytes(content)
    commands = [
        ("finetune", "--dataset", dataset, "--out", tmp_path / "run", "--weights", tmp_path / "weights.pt"),
        ("predict", "--run", tmp_path / "weights.pt", "--input", dataset, "--output", tmp_path / "out"),
        ("info", tmp_path / "weights.pt"),
    ]
    for command in commands:
        done = run_command(*command)
        assert done.status == 1
        assert "weights.pt" in done.error
        assert is_one_sentence(done.error)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_weights_of_another_network_are_refused(run_command, dataset, pretrained, tmp_path):
    done = run_command(
        *("finetune", "--dataset", dataset, "--out", tmp_path / "run"),
        *("--weights", pretrained, "--network", "pctnet", "--patch-size", "16,16,16"),
    )
    assert done.status == 1
    assert "has weights of network 'unet'" in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--spacing", "2,2"], 2),
        (["--spacing", "2,0,2"], 2),
        (["--intensity", "ctt"], 2),
    ],
)
def test_ingest_settings_out_of_range_are_refused(run_command, scans, tmp_path, arguments, status):
    done = run_command("ingest", scans, "--store", tmp_path / "store", *arguments)
    assert done.status == status
    assert is_one_sentence(done.error)
    assert not (tmp_path / "store").exists()


def test_a_store_keeps_its_settings(run_command, scans, store):
    done = run_command("ingest", scans, "--store", store, "--spacing", "3,3,3")
    assert done.status == 2
    assert "was made with spacing 14,14,14" in done.error


def test_output_below_a_file_is_refused_before_work_begins(
    run_command, phantom_dir, store, dataset, finetuned, tmp_path, tiny_pretraining, tiny_finetuning
):
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "out"
    commands = [
        ("ingest", phantom_dir / "scans", "--store", below),
        ("pretrain", "--store", store, "--out", below, *tiny_pretraining),
        ("finetune", "--dataset", dataset, "--out", below, *tiny_finetuning),
        ("predict", "--run", finetuned, "--input", dataset / "imagesTs", "--output", below),
        (
            *("evaluate", "--predictions", dataset / "labelsTs", "--references", dataset / "labelsTs"),
            *("--out", below / "scores.json"),
        ),
    ]
    for command in commands:
        done = run_command(*command)
        assert done.status == 1, command
        assert str(below) in done.error
        assert is_one_sentence(done.error)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_while_training_is_a_sentence(
    run_command, store, tmp_path, tiny_pretraining, monkeypatch
):
    import torch

    out = tmp_path / "run"
    command = ["pretrain", "--store", store, "--out", out, *tiny_pretraining]
    save_whole = torch.save

    def save_half(content, file):
        if content["step"] == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save_whole(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_half)
        done = run_command(*command)
    assert done.status == 1
    assert "No space left on device. Free space" in done.error
    assert is_one_sentence(done.error)
    assert not (out / "weights.safetensors").exists()
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert run_command(*command, "--resume").status == 0


def listed(folder, *images):
    """A ``pretrain_data.json`` that lists (name of the case, path) as a collection ``x/../../ESC``."""
    entries = [{"name": name, "image_path": str(path)} for name, path in images]
    subjects = {"s": {"sessions": {"t": {"images": entries}}}}
    content = {"collection_name": "/x/../../ESC", "datasets": {"d": {"subjects": subjects}}}
    (folder / "pretrain_data.json").write_text(json.dumps(content))
    return folder / "pretrain_data.json"


def test_no_name_that_a_list_gives_leads_out_of_the_output(run_command, tmp_path, finetuned):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "good.nii.gz", some_voxels())
    source = listed(folder, ("a", folder / "good.nii.gz"), ("b\x1b[2J\ud800", folder / "gone.nii.gz"))
    out = tmp_path / "deep" / "out"
    done = run_command("predict", "--run", finetuned, "--input", source, "--output", out, "--json")
    assert done.status == 1
    assert "\x1b" not in done.out + done.err
    (written,) = done.result["written"].values()
    assert written == str(out / "%2Fx%2F..%2F..%2FESC__d__s__t__a.nii.gz")
    assert {path.name for path in tmp_path.rglob("*.nii.gz")} == {"good.nii.gz", written.rpartition("/")[2]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "in"]


def test_two_cases_never_have_one_file(monkeypatch, tmp_path):
    cases = ["a/b", "a%2Fb", "c", "C", "..", "%2E."]
    paths = label_map_paths(cases, tmp_path)
    assert len({str(path) for path in paths.values()}) == len(cases)
    assert {path.parent for path in paths.values()} == {tmp_path}
    assert paths["C"].name == "C.nii.gz"
    monkeypatch.setattr("misfm.commands.predict.is_case_insensitive", lambda folder: True)
    assert label_map_paths(cases, tmp_path)["C"].name == "C-2.nii.gz"


def test_whatever_is_wrong_with_one_scan_the_others_are_predicted(
    run_command, tmp_path, finetuned, monkeypatch
):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "good.nii.gz", some_voxels())
    save(folder / "metres.nii.gz", some_voxels(), np.diag([-0.001, -0.001, 0.001, 1]))
    save(folder / "apart.nii.gz", some_voxels(), np.diag([-1e30, -1.0, 1.0, 1]))
    save(folder / "odd.nii.gz", some_voxels((13, 14, 16)))
    os.mkfifo(folder / "pipe.nii.gz")
    (folder / os.fsdecode(b"caf\xe9.nii.gz")).write_bytes((folder / "good.nii.gz").read_bytes())
    label = Predictor.label

    def fail_once(self, prepared, **options):
        if prepared.upright.shape == (16, 14, 13):
            raise OverflowError("cannot convert float infinity to integer")
        return label(self, prepared, **options)

    monkeypatch.setattr(Predictor, "label", fail_once)
    done = run_command(
        "predict", "--run", finetuned, "--input", folder, "--output", tmp_path / "out", "--json"
    )
    assert done.status == 1
    assert sorted(done.result["written"]) == [r"caf\xe9", "good"]
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert masks == ["caf%5Cxe9.nii.gz", "good.nii.gz"]
    failed = done.result["failed"]
    assert sorted(failed) == ["apart", "metres", "odd", "pipe"]
    assert all(is_one_sentence(reason) and str(folder) in reason for reason in failed.values())
    assert "has a spacing of 0.001 mm by its header" in failed["metres"]
    assert (
        "OverflowError: cannot convert float infinity to integer, raised in test_bad_input.py"
        in failed["odd"]
    )


def test_nothing_in_a_name_is_obeyed_by_the_terminal(run_command, tmp_path, finetuned, scans):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "\x1b]0;owned\x07\x1b[2J\n.nii.gz").write_bytes(b"damaged")
    shutil.copy(next(scans.glob("*.nii.gz")), folder / "good.nii.gz")
    store = tmp_path / "store"
    for command in (
        ("ingest", folder, "--store", store),
        ("info", store),
        ("predict", "--run", finetuned, "--input", folder, "--output", tmp_path / "out"),
        ("evaluate", "--predictions", folder, "--references", folder, "--out", tmp_path / "scores.json"),
    ):
        done = run_command(*command)
        assert "\x1b" not in done.out + done.err
        assert "\x07" not in done.out + done.err
        assert "]0;owned" in done.out + done.err


def test_info_on_a_scan_says_what_to_do_with_it(run_command, tmp_path):
    save(tmp_path / "scan.nii.gz", some_voxels())
    done = run_command("info", tmp_path / "scan.nii.gz")
    assert done.status == 1
    assert "is a scan; bring it into a store by 'misfm ingest'" in done.error

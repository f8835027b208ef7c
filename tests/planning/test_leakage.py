"""A network is not judged on what it learnt from, unless the user says so."""

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.compare import compare
from misfm.commands.finetune import finetune
from misfm.commands.info import describe_path
from misfm.commands.pretrain import pretrain
from misfm.commands.start import open_weights
from misfm.config import CompareSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.fingerprint import fingerprint
from misfm.data.ingest import ingest, ingest_dataset
from misfm.data.patches import UnlabelledPatches
from misfm.data.readers import read_volume, stem
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.planning.fill_defaults import fill_defaults
from misfm.planning.leakage import check_leaks
from misfm.planning.splits import choose_cases
from misfm.planning.volumes import scans_of, split_records
from misfm.weights.file import DataInfo, NetworkInfo, WeightsInfo, read, write

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TRAIN, VAL, TEST = "phantom_tr_000", "phantom_tr_001", "phantom_ts_000"


def image(folder, case):
    return folder / ("imagesTs" if "_ts_" in case else "imagesTr") / f"{case}_0000.nii.gz"


def scan_of(folder, case):
    return fingerprint(read_volume(image(folder, case)))[:16]


def note(folder, **notes):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | notes))


@pytest.fixture
def folder(dataset, tmp_path):
    """A dataset with two training cases, two validation cases and two test cases."""
    shutil.copytree(dataset, tmp_path / "dataset")
    parts = {"train": [TRAIN, "phantom_tr_002"], "val": [VAL, "phantom_tr_003"]}
    (tmp_path / "dataset" / "splits_final.json").write_text(json.dumps([parts]))
    return tmp_path / "dataset"


@pytest.fixture
def weights(tmp_path):
    """Write weights without tensors that say which scans they have seen."""

    def build(*scans):
        info = WeightsInfo(
            network=NetworkInfo(name="unet", options={"channels": [4, 8]}),
            in_channels=1,
            num_classes=5,
            patch_size=(16, 16, 16),
            spacing=None,
            steps=1,
            data=DataInfo(count=len(scans), fingerprint="-", scans=tuple(sorted(scans))),
        )
        write(tmp_path / "start.safetensors", {}, info)
        return tmp_path / "start.safetensors"

    return build


@pytest.fixture
def check(folder, finetune_settings):
    """Look for leaks as a fine-tuning does before it makes its run folder."""

    def run(*assignments, images=None, **options):
        images = images or DatasetFingerprint(Dataset.open(folder))
        settings = finetune_settings(f"dataset={folder}", *assignments)
        weights = open_weights(settings.weights)
        filled = fill_defaults(settings, images, 1, weights).settings
        return check_leaks(filled, images, choose_cases(images.dataset, settings), weights, **options)

    return run


def test_a_clean_dataset_passes_and_its_training_scans_are_told(check, folder):
    images = DatasetFingerprint(Dataset.open(folder))
    found = check(images=images)
    assert found == tuple(sorted(scan_of(folder, case) for case in (TRAIN, "phantom_tr_002")))
    assert len(images.images) == 6


@pytest.mark.parametrize(("what", "case"), [("validation case", VAL), ("test case", TEST)])
def test_cases_the_weights_have_seen_are_refused(check, folder, weights, what, case):
    start = weights("0" * 16, scan_of(folder, case))
    message = f"The weights {start} have learnt from the scan of {what} {case}: .*allow_overlap=true"
    with pytest.raises(ConfigError, match=message):
        check(f"weights={start}")


def test_weights_may_have_seen_the_training_cases(check, folder, weights, caplog):
    scans = {"0" * 16, scan_of(folder, TRAIN)}
    with caplog.at_level("INFO", logger="misfm"):
        found = check(f"weights={weights(*scans)}")
    assert f"have seen the scans of 1 of 2 training cases, such as {TRAIN}, which is fine" in caplog.text
    assert set(found) == scans | {scan_of(folder, "phantom_tr_002")}


def test_unlabelled_scans_are_learnt_from_too(check, folder, tmp_path):
    ingest([image(folder, TEST)], tmp_path / "store", IngestSettings())
    store = Store.open(tmp_path / "store")
    batches = UnlabelledPatches(store, store.records(), (8, 8, 8), num_patches=1, batch_size=1, seed=0)
    message = rf"The unlabelled volume {TEST}_0000 holds the scan of test case {TEST}"
    with pytest.raises(ConfigError, match=message):
        check(unlabelled=batches)
    assert scan_of(folder, TEST) in check("allow_overlap=true", unlabelled=batches)


@pytest.mark.parametrize("other", [VAL, TEST])
def test_one_scan_under_two_names_is_refused(check, folder, other):
    shutil.copy(image(folder, TRAIN), image(folder, other))
    with pytest.raises(ConfigError, match=rf"Training case {TRAIN} holds the scan of .* case {other}"):
        check()


def test_a_damaged_test_image_stops_no_training(check, folder, caplog):
    image(folder, TEST).write_bytes(b"damaged")
    images = DatasetFingerprint(Dataset.open(folder))
    check(images=images)
    assert len(images.images) == 5
    assert f"not compared with what is learnt from: {image(folder, TEST)}" in caplog.text
    image(folder, VAL).write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"{image(folder, VAL)} cannot be read"):
        check()


def test_empty_channels_are_no_scan(check, folder):
    for case in (TRAIN, VAL):
        nib.save(nib.Nifti1Image(np.zeros((24, 26, 28), np.int16), np.eye(4)), image(folder, case))
    check()


@pytest.mark.parametrize("other", [VAL, TEST])
def test_one_subject_on_both_sides_is_refused(check, folder, other):
    note(folder, subjects={TRAIN: "anna", other: "anna"})
    with pytest.raises(ConfigError, match=rf"{TRAIN} and .* case {other} are of one subject, anna"):
        check()


def test_test_cases_count_only_where_they_are_labelled(check, folder):
    shutil.copy(image(folder, TRAIN), image(folder, TEST))
    shutil.rmtree(folder / "labelsTs")
    check()


def test_a_drawn_split_keeps_subjects_together(folder, finetune_settings, check):
    (folder / "splits_final.json").unlink()
    note(folder, subjects={f"phantom_tr_{i:03d}": f"subject {i % 2}" for i in range(4)})
    training, held_out = choose_cases(Dataset.open(folder), finetune_settings(f"dataset={folder}"))
    assert [int(case.name[-1]) % 2 for case in (*training, *held_out)] in ([0, 0, 1, 1], [1, 1, 0, 0])
    check()
    settings = finetune_settings(f"dataset={folder}", f"cases=[{held_out[0].name}]")
    assert choose_cases(Dataset.open(folder), settings)[1] == []


def test_a_refused_run_leaves_nothing_and_may_be_allowed(run_command, tiny_finetuning, folder, tmp_path):
    shutil.copy(image(folder, TRAIN), image(folder, VAL))
    shutil.copy(folder / "labelsTr" / f"{TRAIN}.nii.gz", folder / "labelsTr" / f"{VAL}.nii.gz")
    options = ["--dataset", folder, "--out", tmp_path / "run", *tiny_finetuning]
    refused = run_command("finetune", *options)
    assert refused.status == 2
    assert f"holds the scan of validation case {VAL}" in refused.error
    assert not (tmp_path / "run").exists()
    allowed = run_command("finetune", *options, "--set", "allow_overlap=true")
    assert allowed.status == 0, allowed.err
    assert "its scores say little" in allowed.err


def test_weights_tell_what_they_have_seen(pretrained, store, pretrain_settings, finetune_settings, tmp_path):
    """Training volumes after pretraining, and the training cases as well after fine-tuning."""
    _, info = read(pretrained / "weights.safetensors")
    assert len(info.data.scans) == info.data.count == 3
    finetune(finetune_settings(f"weights={pretrained}", "cases=1"), tmp_path / "run")
    _, after = read(tmp_path / "run" / "weights.safetensors")
    assert set(info.data.scans) < set(after.data.scans)
    assert len(after.data.scans) == 4
    assert describe_path(tmp_path / "run")["weights"]["data"]["scans"] == 4


def test_pretraining_on_a_dataset_is_told_by_content(folder, tmp_path):
    """Other spacing, other intensities, a labelled case or a bare scan: the scan stays the same."""
    data = Dataset.open(folder)
    ingest([folder], tmp_path / "a", IngestSettings(intensity="ct:-200,600"))
    ingest([folder / "imagesTr"], tmp_path / "b", IngestSettings(spacing=(20.0, 20.0, 20.0), intensity="mr"))
    cases = ingest_dataset(data, data.cases(), tmp_path / "c", IngestSettings(spacing=(15.0, 15.0, 15.0)))
    stores = [Store.open(tmp_path / "a"), Store.open(tmp_path / "b"), cases]
    scans = [{record.fingerprint[:16] for record in store.records()} for store in stores]
    assert scans[0] == scans[1] == scans[2] == {scan_of(folder, case.name) for case in data.cases()}


def test_a_pretraining_that_will_be_judged_is_refused_before_it_starts(
    folder, pretrain_settings, scans, dataset, tmp_path
):
    ingest([scans, image(folder, VAL)], tmp_path / "store", IngestSettings(spacing=(14.0, 14.0, 14.0)))
    message = rf"The pretraining learns from the scan of validation case {VAL}: .*allow_overlap=true"
    probe = f"probe={{dataset: {json.dumps(str(folder))}, cases: 1, steps: 2}}"
    share = "validation_share=0.1"
    for seed in range(9):  # the volume may be the held-out one, which is not learnt from
        settings = pretrain_settings(f"store={tmp_path / 'store'}", probe, share, f"seed={seed}")
        training, _ = split_records(Store.open(settings.store).records(), settings)
        if scan_of(folder, VAL) in scans_of(training):
            break
    with pytest.raises(ConfigError, match=message):
        pretrain(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    arms = CompareSettings(
        store=str(tmp_path / "store"), dataset=str(folder), recipes=("misfm",), cases=(1,), seeds=(seed,)
    )
    with pytest.raises(ConfigError, match=message):
        compare(arms.model_copy(update={"pretrain": (share,)}), tmp_path / "compare")
    assert not (tmp_path / "compare").exists()


needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared scans are not beside the repository"
)


def parts_of(name, unlabelled):
    """Files of a benchmark by what they are for."""
    data = Dataset.open(SHARED / name)
    (split,) = data.splits()
    training = {case.name: case.image_paths[0] for case in data.cases("Tr")}
    return {
        "pretraining": sorted((SHARED / "unlabelled" / unlabelled).iterdir()),
        "training": [training[case] for case in split["train"]],
        "validation": [training[case] for case in split["val"]],
        "test": [case.image_paths[0] for case in data.cases("Ts")],
    }


def subjects_by_file():
    """The manifest's subject of each image, or the case where it has none: then each case is a patient."""
    with (SHARED / "MANIFEST.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    told = {SHARED / row["file"]: re.search(r"subject (\w+)", row["note"] or "") for row in rows}
    return {file: match[1] if match else stem(file).removesuffix("_0000") for file, match in told.items()}


@needs_shared
@pytest.mark.parametrize(
    ("name", "unlabelled"),
    [("Dataset001_Hippocampus", "hippocampus"), ("Dataset002_HeadNeckCT", "head_neck_ct")],
)
def test_the_benchmarks_learn_from_nothing_they_are_judged_on(name, unlabelled):
    """Scans and subjects for pretraining, training, validation and test are disjoint."""
    subject = subjects_by_file()
    parts = parts_of(name, unlabelled)
    scans = [{fingerprint(read_volume(file)) for file in files} for files in parts.values()]
    subjects = [{subject[file] for file in files} for files in parts.values()]
    assert [len(part) for part in scans] == [len(files) for files in parts.values()]
    for kind in (scans, subjects):
        assert len(set().union(*kind)) == sum(map(len, kind))

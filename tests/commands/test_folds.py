"""Folds: drawn by subject, each case judged once; a cross-validation resumes, pools, and predicts."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misfm.commands import folds as recipe
from misfm.commands.folds import cross_validate
from misfm.data.dataset import Dataset
from misfm.errors import ConfigError, MisfmError, WeightsError
from misfm.evaluation.statistics import bootstrap_interval
from misfm.inference.members import members_of
from misfm.planning import plan
from misfm.planning.splits import choose_cases, draw_folds

NAMES = [f"phantom_tr_{number:03d}" for number in range(4)]


@given(
    subjects=st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda found: len(set(found)) > 1),
    count=st.integers(2, 8),
)
def test_subjects_are_dealt_out_to_folds_of_nearly_equal_size(subjects, count):
    names = [f"case{place}" for place in range(len(subjects))]
    subject = dict(zip(names, map(str, subjects), strict=True)).__getitem__
    folds = draw_folds(names, subject, count)
    assert len(folds) == min(count, len(set(subjects)))
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(names)
    sizes = []
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(names)
        training, held_out = ({subject(name) for name in fold[part]} for part in ("train", "val"))
        assert not training & held_out
        sizes.append(len(held_out))
    assert max(sizes) - min(sizes) <= 1
    assert draw_folds(names[::-1], subject, count) == folds


def test_a_single_subject_trains_and_nothing_validates():
    assert draw_folds(["b", "a"], lambda name: "sub-1", 5) == [{"train": ["a", "b"], "val": []}]


def test_folds_differ_and_end_with_the_subjects(dataset, finetune_settings):
    opened = Dataset.open(dataset)
    held_out = [choose_cases(opened, finetune_settings(f"fold={fold}"))[1] for fold in range(4)]
    assert sorted(case.name for (case,) in held_out) == NAMES
    halves = [choose_cases(opened, finetune_settings(f"fold={fold}", "folds=2"))[1] for fold in range(2)]
    assert [len(half) for half in halves] == [2, 2]
    with pytest.raises(ConfigError, match="There is no fold 4: the split has 4"):
        choose_cases(opened, finetune_settings("fold=4"))


@pytest.fixture
def trained(monkeypatch):
    """Count fine-tunings."""
    done = []

    def count(settings, out, **options):
        done.append(out.name)
        return finetune(settings, out, **options)

    finetune = recipe.finetune
    monkeypatch.setattr(recipe, "finetune", count)
    return done


def test_each_fold_keeps_why_it_was_planned_as_it_is(tmp_path, finetune_settings, monkeypatch):
    monkeypatch.setattr(plan, "CPU_VOXELS", 16**3)
    cross_validate(finetune_settings("folds=2", "cases=1", "training.steps=1", "patch_size=null"), tmp_path)
    reasons = [(tmp_path / f"fold_{fold}" / "plan.txt").read_text() for fold in range(2)]
    assert reasons[0] == reasons[1]
    weights, patch = reasons[0].splitlines()
    assert weights.startswith("weights none: builtin have other channels")
    assert patch.startswith("patch 16,16,16: ")


def test_a_cross_validation_judges_each_case_once_and_resumes(tmp_path, finetune_settings, trained, dataset):
    settings, out = finetune_settings("folds=2", "cases=1", "training.steps=2"), tmp_path / "cv"
    pooled = cross_validate(settings, out)
    assert trained == ["fold_0", "fold_1"]
    assert sorted(pooled["cases"]) == NAMES
    assert [len(fold["cases"]) for fold in pooled["folds"]] == [2, 2]
    dices = []
    for fold in pooled["folds"]:
        folder = out / f"fold_{fold['fold']}"
        own = json.loads((folder / "validation.json").read_text())
        split = json.loads((folder / "split.json").read_text())
        assert (len(split["train"]), split["val"], fold["cases"]) == (1, fold["cases"], sorted(own["cases"]))
        assert fold["dice"] == own["mean"]["all"]["dice"]
        for case, row in own["cases"].items():
            assert pooled["cases"][case] == row
            dices.append(row["liver"]["dice"])
    assert pooled["mean"]["liver"]["dice"] == pytest.approx(sum(dices) / 4)
    by_name = [pooled["cases"][name]["liver"]["dice"] for name in NAMES]
    assert pooled["interval95"]["liver"]["dice"] == pytest.approx(list(bootstrap_interval(by_name)))
    assert json.loads((out / "cross_validation.json").read_text()) == json.loads(json.dumps(pooled))
    assert members_of(out) == [out / "fold_0", out / "fold_1"]

    (out / "fold_1" / "validation.json").unlink()  # as if it had been stopped while it was judged
    assert cross_validate(settings, out, resume=True) == pooled
    assert trained == ["fold_0", "fold_1", "fold_1"]
    with pytest.raises(ConfigError, match="already holds a run: add --resume"):
        cross_validate(settings, out)
    with pytest.raises(ConfigError, match="was started with other settings"):
        cross_validate(finetune_settings("folds=2", "cases=1", "training.steps=3"), out, resume=True)


def test_cases_added_later_do_not_change_what_a_run_learns_from(tmp_path, dataset, finetune_settings):
    grown = tmp_path / "grown"
    shutil.copytree(dataset, grown)
    settings = finetune_settings("folds=2", "training.steps=2", f"dataset={grown}")
    whole = cross_validate(settings, tmp_path / "whole")

    cross_validate(settings, tmp_path / "cv")
    shutil.rmtree(tmp_path / "cv" / "fold_1")  # as if it had been stopped between the folds
    (tmp_path / "cv" / "fold_0" / "validation.json").unlink()
    for part, ending in (("images", "_0000"), ("labels", "")):
        added = grown / f"{part}Tr" / f"another{ending}.nii.gz"
        shutil.copy(dataset / f"{part}Ts" / f"phantom_ts_000{ending}.nii.gz", added)
    shutil.rmtree(grown / "labelsTs")  # a test case that is now trained on
    with pytest.raises(WeightsError, match="fold_1 holds no weights"):
        members_of(tmp_path / "cv")
    assert cross_validate(settings, tmp_path / "cv", resume=True) == whole
    assert "another" in cross_validate(settings, tmp_path / "new")["cases"]


def test_a_leak_in_a_later_fold_is_found_before_the_first_is_trained(tmp_path, dataset, finetune_settings):
    leaky = tmp_path / "leaky"
    shutil.copytree(dataset, leaky)
    shutil.copy(
        leaky / "imagesTr" / f"{NAMES[2]}_0000.nii.gz", leaky / "imagesTr" / f"{NAMES[3]}_0000.nii.gz"
    )
    folds = [{"train": NAMES[2:], "val": NAMES[:2]}, {"train": [*NAMES[:2], NAMES[3]], "val": NAMES[2:3]}]
    (tmp_path / "split.json").write_text(json.dumps(folds))
    settings = finetune_settings(f"split={tmp_path / 'split.json'}", f"dataset={leaky}")
    with pytest.raises(ConfigError, match=f"holds the scan of validation case {NAMES[2]}"):
        cross_validate(settings, tmp_path / "cv")
    assert not (tmp_path / "cv").exists()


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (
            [{"train": NAMES[2:], "val": NAMES[:2]}, {"train": NAMES[2:], "val": NAMES[:1]}],
            "validates phantom_t",
        ),
        ([{"train": NAMES, "val": []}], "No fold validates a case"),
    ],
)
def test_a_split_in_which_cases_do_not_validate_once_is_refused(tmp_path, finetune_settings, folds, message):
    (tmp_path / "split.json").write_text(json.dumps(folds))
    with pytest.raises(ConfigError, match=message):
        cross_validate(finetune_settings(f"split={tmp_path / 'split.json'}"), tmp_path / "cv")
    assert not (tmp_path / "cv").exists()


def test_a_fold_with_too_few_cases_is_found_before_the_first_is_trained(tmp_path, finetune_settings):
    folds = [{"train": NAMES[1:], "val": NAMES[:1]}, {"train": NAMES[:1], "val": NAMES[1:]}]
    (tmp_path / "split.json").write_text(json.dumps(folds))
    with pytest.raises(ConfigError, match="--cases 2: the split has 1 training cases"):
        cross_validate(finetune_settings(f"split={tmp_path / 'split.json'}", "cases=2"), tmp_path / "cv")
    assert not (tmp_path / "cv").exists()


def test_what_cannot_be_trained_leaves_nothing_behind(tmp_path, finetune_settings):
    for wrong in ("network={name: unet, options: {foo: 1}}", "weights=nowhere.safetensors"):
        with pytest.raises(MisfmError):
            cross_validate(finetune_settings("folds=2", wrong), tmp_path / "cv")
        assert not (tmp_path / "cv").exists()


def test_folds_of_which_none_was_begun_are_dealt_out_again(tmp_path, finetune_settings):
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "folds.json").write_text(json.dumps([{"train": NAMES[:1], "val": NAMES[1:]}]))
    pooled = cross_validate(finetune_settings("folds=2", "training.steps=1"), tmp_path / "cv")
    assert len(json.loads((tmp_path / "cv" / "folds.json").read_text())) == len(pooled["folds"]) == 2


def test_what_does_not_go_together_is_refused(
    run_command, tmp_path, dataset, tiny_finetuning, finetuned, finetune_settings
):
    command = ("finetune", "--dataset", dataset, "--out", tmp_path / "cv", *tiny_finetuning, "--fold")
    assert "--twin compares on one fold" in run_command(*command, "all", "--twin").error
    assert "Setting 'fold' of the settings is wrong" in run_command(*command, "some").error
    assert "give --cases a number" in run_command(*command, "all", "--cases", NAMES[0]).error
    assert not (tmp_path / "cv").exists()
    with pytest.raises(ConfigError, match="holds a single run"):
        cross_validate(finetune_settings(), finetuned)


def test_the_command_prints_a_table_and_its_folder_predicts(run_command, tmp_path, dataset, tiny_finetuning):
    out = tmp_path / "cv"
    done = run_command(
        *("finetune", "--dataset", dataset, "--out", out, "--fold", "all", "--set", "folds=2"),
        *(*tiny_finetuning, "--set", "training.steps=1", "--json"),
    )
    assert done.status == 0
    assert "liver                Dice 0." in done.err
    assert done.result["weights"] == str(out)
    assert done.result["mean"]["all"]["dice"] is not None
    done = run_command(
        "predict", "--run", out, "--input", dataset / "imagesTs", "--output", tmp_path / "masks"
    )
    assert done.status == 0
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 2


def test_a_refused_resume_leaves_the_folds_as_they_were(finetune_settings, tmp_path):
    settings = finetune_settings("folds=2")
    cross_validate(settings, tmp_path / "cv")
    (tmp_path / "cv" / "fold_1" / "validation.json").unlink()
    shutil.rmtree(tmp_path / "cv" / "cases")
    with pytest.raises(ConfigError, match="was started with other settings"):
        cross_validate(finetune_settings("folds=2", "spacing=[20, 20, 20]"), tmp_path / "cv", resume=True)
    assert not (tmp_path / "cv" / "cases").exists()
    cross_validate(settings, tmp_path / "cv", resume=True)


def test_finished_folds_read_no_image(finetune_settings, dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    settings = finetune_settings("folds=2", f"dataset={folder}")
    first = cross_validate(settings, tmp_path / "cv")
    for image in (folder / "imagesTr").iterdir():
        image.write_bytes(b"damaged")
    assert cross_validate(settings, tmp_path / "cv", resume=True) == first

"""Comparisons: every arm gets the same, runs are resumed, failures are reported, p-values corrected."""

import json
import shutil

import pytest

from misfm.commands import compare as module
from misfm.commands.compare import compare, share_grid
from misfm.commands.trials import Trial, finetune_settings, finetunings, pretrain_settings
from misfm.config import CompareSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings
from misfm.errors import ConfigError
from misfm.training.run import RunFolder


@pytest.fixture
def settings_for(store, dataset, tiny_pretraining, tiny_finetuning):
    def build(**changes):
        fields = {
            "store": str(store),
            "dataset": str(dataset),
            "recipes": ("misfm", "volume-fusion-v1"),
            "cases": (1,),
            "seeds": (0,),
            "pretrain": tuple(line for line in tiny_pretraining[1::2] if not line.startswith("pretext")),
            "finetune": tuple(tiny_finetuning[1::2]),
        }
        return CompareSettings(**{**fields, **changes})

    return build


def grid_of(settings):
    return share_grid(settings, DatasetFingerprint(Dataset.open(settings.dataset)))


def test_all_arms_share_everything_but_the_start(settings_for):
    settings = settings_for()
    pretext = [pretrain_settings(settings, Trial("unet", name)) for name in settings.recipes]
    assert [one.pretext.name for one in pretext] == list(settings.recipes)
    assert pretext[0].model_copy(update={"pretext": pretext[1].pretext}) == pretext[1]
    arms = [finetune_settings(settings, Trial("unet", name, 2, 1), None) for name in ("scratch", "misfm")]
    assert arms[0] == arms[1]


def test_scratch_is_as_wide_as_what_was_pretrained(settings_for):
    width = {"channels": [4, 8, 8, 8, 8]}
    given = (
        'network.options={"channels": [4, 8, 8, 8, 8]}',
        'misfm:network.options={"channels": [2, 4, 4, 4, 4]}',
    )
    settings = settings_for(pretrain=given, finetune=())
    scratch, pretrained = (
        finetune_settings(settings, Trial("unet", name, 2), None).network for name in ("scratch", "misfm")
    )
    assert scratch.options == width
    assert pretrained.options == {}  # those of its weights, whichever they are
    wider = settings_for(pretrain=given, finetune=('network.options={"channels": [6, 8, 8, 8, 8]}',))
    assert finetune_settings(wider, Trial("unet", "scratch", 2), None).network.options["channels"][0] == 6


def test_spacing_and_intensities_left_open_are_those_of_the_store_in_all_arms(settings_for, tmp_path):
    settings = settings_for(recipes=("volume-fusion-v1",))
    images = DatasetFingerprint(Dataset.open(settings.dataset))
    shared = share_grid(settings, images)
    assert shared.finetune == (*settings.finetune, "spacing=[14.0, 14.0, 14.0]", 'intensity="ct:-200,600"')
    assert share_grid(shared, images) == shared
    compare(settings, tmp_path)
    runs = [RunFolder(path).read_settings() for path in sorted((tmp_path / "finetune").iterdir())]
    assert [run["spacing"] for run in runs] == [[14, 14, 14]] * 2
    assert [run["intensity"] for run in runs] == ["ct:-200,600"] * 2


def test_a_store_of_detected_intensities_gives_its_spacing(settings_for, phantom_dir, tmp_path):
    ingest([phantom_dir / "scans"], tmp_path / "store", IngestSettings(spacing=(20.0, 20.0, 20.0)))
    *_, spacing, intensity = grid_of(settings_for(store=str(tmp_path / "store"))).finetune
    assert (spacing, intensity) == ("spacing=[20.0, 20.0, 20.0]", 'intensity="ct"')


def test_generated_anatomy_gives_its_window_and_leaves_spacing_to_the_dataset(settings_for):
    *_, spacing, intensity = grid_of(settings_for(store="phantom:4")).finetune
    assert intensity == 'intensity="ct:-200,600"'
    assert json.loads(spacing.removeprefix("spacing=")) == pytest.approx((14, 13, 12), rel=0.16)


def test_a_setting_can_be_for_one_recipe(settings_for):
    common = settings_for().pretrain
    settings = settings_for(pretrain=(*common, "misfm:training.steps=7", "licence=a:b=c"))
    pretext = {name: pretrain_settings(settings, Trial("unet", name)) for name in settings.recipes}
    assert pretext["misfm"].training.steps == 7
    assert pretext["volume-fusion-v1"].training.steps != 7
    assert {one.licence for one in pretext.values()} == {"a:b=c"}


def test_a_setting_for_a_recipe_that_is_not_compared_is_refused(settings_for, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'misfm'"):
        compare(settings_for(pretrain=("misfn:training.steps=7",)), tmp_path)


def test_an_arm_that_comes_later_has_the_cases_and_volumes_of_the_first(
    settings_for, dataset, phantom_dir, tmp_path
):
    grown, store = tmp_path / "dataset", tmp_path / "store"
    shutil.copytree(dataset, grown)
    shape = IngestSettings(spacing=(14.0, 14.0, 14.0), intensity="ct:-200,600")
    scans = sorted((phantom_dir / "scans").iterdir())
    ingest(scans[:3], store, shape)
    first = settings_for(dataset=str(grown), store=str(store), recipes=("volume-fusion-v1",), cases=(2,))
    compare(first, tmp_path / "out")
    ingest(scans[3:], store, shape)
    for part, ending in (("images", "_0000"), ("labels", "")):
        added = f"{part}Tr/another{ending}.nii.gz"
        shutil.copy(grown / f"{part}Ts" / f"phantom_ts_000{ending}.nii.gz", grown / added)
        (grown / f"{part}Ts" / f"phantom_ts_000{ending}.nii.gz").unlink()
    more = first.model_copy(update={"recipes": ("volume-fusion-v1", "patch-swapping")})
    assert compare(more, tmp_path / "out")["failed"] == {}
    splits = {
        path.parent.name: path.read_text() for path in (tmp_path / "out" / "finetune").glob("*/split.json")
    }
    assert len(splits) == 3
    assert len(set(splits.values())) == 1
    assert len({path.read_text() for path in (tmp_path / "out").glob("unet-*/volumes.json")}) == 1


def test_a_comparison_from_start_to_table(settings_for, tmp_path):
    settings = settings_for()
    result = compare(settings, tmp_path)
    assert result["failed"] == {}
    (block,) = result["comparisons"]
    assert (block["network"], block["labels"]) == ("unet", 1)
    assert [(run["recipe"], run["seed"]) for run in block["runs"]] == [
        ("scratch", 0),
        ("misfm", 0),
        ("volume-fusion-v1", 0),
    ]
    assert block["runs"][0]["test"].keys() == {"phantom_ts_000", "phantom_ts_001"}
    assert block["p_values_holm"].keys() == {"misfm", "volume-fusion-v1"}
    assert json.loads((tmp_path / "compare.json").read_text())["comparisons"][0]["labels"] == 1
    assert "| misfm | 1 |" in (tmp_path / "compare.md").read_text()
    assert (tmp_path / "report.html").exists()


def test_started_again_it_adds_what_is_new_and_repeats_nothing(settings_for, tmp_path, monkeypatch):
    once = settings_for(recipes=("misfm",))
    compare(once, tmp_path)
    trained = []
    original = module.train_arm
    monkeypatch.setattr(
        module, "train_arm", lambda *args, **kw: (trained.append(args[1].name), original(*args, **kw))[1]
    )
    result = compare(once.model_copy(update={"seeds": (0, 1)}), tmp_path)
    assert trained == ["unet-scratch-1cases-seed1", "unet-misfm-1cases-seed1"]
    assert result["comparisons"][0]["comparison"]["seeds"]["misfm"] == (0, 1)


def test_runs_of_other_settings_are_not_passed_off_as_those_asked_for(settings_for, tmp_path):
    once = settings_for(recipes=("misfm",))
    compare(once, tmp_path)
    for changes, run, reason in (
        ({"pretrain": (*once.pretrain, "training.steps=3")}, "unet-misfm", "training.steps was 4, now 3"),
        ({"finetune": (*once.finetune, "overlap=0.1")}, "unet-scratch-1cases-seed0", "overlap was 0"),
    ):
        result = compare(once.model_copy(update=changes), tmp_path)
        assert reason in result["failed"][run]
        assert "choose another --out" in result["failed"][run]
        shown = [arm["recipe"] for block in result["comparisons"] for arm in block["runs"]]
        assert run.split("-")[1] not in shown
    assert compare(once, tmp_path)["failed"] == {}


def test_a_run_that_fails_is_reported_and_the_others_go_on(settings_for, tmp_path, monkeypatch):
    def broken(settings, out, **options):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "pretrain", broken)
    settings = settings_for(recipes=("misfm",))
    result = compare(settings, tmp_path)
    assert result["failed"]["unet-misfm"] == "RuntimeError: no such luck"
    assert "unet-misfm-1cases-seed0" in result["failed"]
    assert [run["recipe"] for run in result["comparisons"][0]["runs"]] == ["scratch"]
    assert "Failed: unet-misfm: RuntimeError" in (tmp_path / "compare.md").read_text()


def test_an_unknown_recipe_is_found_before_anything_starts(settings_for, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'misfm'"):
        compare(settings_for(recipes=("misfn",)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_seed_is_finished_for_all_arms_before_the_next(settings_for):
    order = [trial.seed for trial in finetunings(settings_for(cases=(1, 2), seeds=(0, 1)))]
    assert order == sorted(order)
    assert len(order) == 2 * 2 * 3


def test_mistakes_on_the_command_line_are_told_in_a_sentence(run_command, store, dataset, tmp_path):
    shared = ("compare", "--store", store, "--dataset", dataset, "--out", tmp_path)
    for options, reason in (
        (("--recipes", "misfm", "--cases", "five"), "--cases takes whole numbers"),
        (("--recipes", "misfm", "--cases", "0"), "Setting 'cases.0' of the comparison is wrong"),
        (("--recipes", ","), "Setting 'recipes' of the comparison is wrong"),
        (("--recipes", "misfm", "--networks", "unett"), "did you mean 'unet'"),
        (("--recipes", "misfm", "--cases", "99"), "--cases 99: the split has 3 training cases"),
    ):
        done = run_command(*shared, *options)
        assert done.status == 2
        assert reason in done.error


def test_a_case_that_cannot_be_used_fails_the_arms_that_need_it_alone(settings_for, dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    settings = settings_for(recipes=("misfm",), dataset=str(folder))
    first = compare(settings, tmp_path / "out")
    for label in (folder / "labelsTr").iterdir():
        label.write_bytes(b"damaged")
    again = compare(settings.model_copy(update={"seeds": (0, 1)}), tmp_path / "out")
    assert set(again["failed"]) == {"unet-scratch-1cases-seed1", "unet-misfm-1cases-seed1"}
    assert again["comparisons"] == first["comparisons"]

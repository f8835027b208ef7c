"""Settings of a run: recipe, file, options and --set, the last one wins; answers to what is misspelt."""

import pytest
import torch
import yaml

from misfm.config import FinetuneSettings, NetworkSettings, PretextSettings, PretrainSettings
from misfm.errors import ConfigError
from misfm.models import create
from misfm.resolve import merge, recipe_names, resolve
from misfm.settings import parse
from misfm.training.run import RunFolder

NEEDED = {PretrainSettings: {"store": "a-store"}, FinetuneSettings: {"dataset": "a-dataset"}}
KINDS = pytest.mark.parametrize("kind", NEEDED)


def settings(kind=PretrainSettings, recipe="small", options=(), **others):
    return resolve(kind, recipe=recipe, options={**NEEDED[kind], **dict(options)}, **others)


def config_file(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@KINDS
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_shipped_recipe_resolves_to_something_that_can_be_built(kind, recipe):
    found = settings(kind, recipe)
    assert found.recipe == recipe
    network = found.network or NetworkSettings()
    with torch.device("meta"):  # all shapes, no numbers: published networks have 100 million of them
        size = found.patch_size or (40, 40, 40)  # `small` plans it for the dataset
        model = create(network.name, num_classes=2, patch_size=size, **network.options)
        if kind is PretrainSettings:
            found.pretext.build().build_model(model.backbone)


def test_a_recipe_stands_on_the_one_it_extends():
    volf, misfm = settings(recipe="volf-2025"), settings(recipe="mis-fm-2023")
    assert (volf.batch_size, volf.training.steps, volf.pretext.name) == (2, 80000, "volume-fusion-v2")
    assert (misfm.batch_size, misfm.training.steps, misfm.pretext.name) == (4, 100000, "volume-fusion-v1")
    assert volf.patch_size == misfm.patch_size == (64, 128, 128)
    assert volf.training.optimizer == misfm.training.optimizer


def test_openmind_recipes_differ_in_the_task_alone():
    mae, vf, mg = (settings(recipe=f"openmind-{name}") for name in ("mae", "vf", "mg"))
    assert (mae.pretext.name, vf.pretext.name, mg.pretext.name) == ("mae", "openmind-vf", "models-genesis")
    assert mae.training == vf.training == mg.training
    assert (mae.training.steps, mae.training.optimizer.lr, mae.training.optimizer.momentum) == (
        250_000,
        1e-2,
        0.99,
    )
    primus = settings(recipe="openmind-mae-primus")
    assert (primus.network.name, primus.training.optimizer.name) == ("primus-m", "adamw")
    assert (primus.training.steps, primus.patch_size) == (mae.training.steps, mae.patch_size)
    tuned = settings(FinetuneSettings, "openmind-vf")
    assert (tuned.training.schedule.name, tuned.transfer, tuned.deep_supervision) == (
        "sawtooth",
        "encoder",
        False,
    )


def test_the_last_word_wins(tmp_path):
    file = config_file(tmp_path, "batch_size: 3\nseed: 3\ntraining: {steps: 30}\n")
    assert settings().batch_size == 2
    assert settings(config=file).batch_size == 3
    options = {"batch_size": 4, "seed": 4, "training.steps": None}
    assert settings(config=file, options=options).batch_size == 4
    found = settings(config=file, options=options, assignments=["batch_size=5", "training.optimizer.lr=1e-4"])
    assert (found.batch_size, found.seed, found.training.steps) == (5, 4, 30)
    assert found.training.optimizer.lr == 1e-4
    assert found.training.optimizer.name == "adamw"


def test_a_file_may_choose_its_recipe(tmp_path):
    file = config_file(tmp_path, "extends: mis-fm-2023\nbatch_size: 1\n")
    found = settings(config=file)
    assert (found.recipe, found.batch_size, found.pretext.name) == ("mis-fm-2023", 1, "volume-fusion-v1")


@KINDS
@pytest.mark.parametrize("recipe", recipe_names())
def test_what_a_run_folder_records_gives_the_same_run_again(tmp_path, kind, recipe):
    first = settings(kind, recipe, assignments=["training.steps=7", "seed=3"])
    file = config_file(tmp_path, yaml.safe_dump(first.model_dump(mode="json"), sort_keys=False))
    assert settings(kind, config=file) == first


def test_options_of_another_method_do_not_stay():
    v1 = settings(assignments=["pretext.name=volume-fusion-v1"])
    assert v1.pretext.options == {}
    v1.pretext.build()
    again = settings(assignments=["pretext.options.min_difference=0.5"])
    assert again.pretext.options["min_difference"] == 0.5
    assert again.pretext.options["block_size"] == [[8, 24]] * 3


def test_options_may_come_before_the_name_they_are_of():
    assignments = ["pretext.options.mask_ratio=0.9", "pretext.name=mae"]
    for ordered in (assignments, assignments[::-1]):
        assert settings(assignments=ordered).pretext.options == {"mask_ratio": 0.9}


def test_merging_leaves_its_arguments_alone():
    base = {"network": {"name": "a", "options": {"x": 1}}, "seed": 0}
    assert merge(base, {"network": {"options": {"y": 2}}})["network"]["options"] == {"x": 1, "y": 2}
    assert merge(base, {"network": {"name": "b"}, "seed": 1}) == {"network": {"name": "b"}, "seed": 1}
    assert base == {"network": {"name": "a", "options": {"x": 1}}, "seed": 0}


@pytest.mark.parametrize(
    ("kind", "assignment", "hint"),
    [
        (
            PretrainSettings,
            "batchsize=3",
            "no setting 'batchsize' in the settings; did you mean 'batch_size'",
        ),
        (PretrainSettings, "training.stepz=3", "did you mean 'training.steps'"),
        (PretrainSettings, "training.optimizer.LR=3", "hoose from: training.optimizer.name"),
        (FinetuneSettings, "network.nam=unet", "did you mean 'network.name'"),
        (FinetuneSettings, "augmentation.flip_axis=[0]", "did you mean 'augmentation.flip_axes'"),
        (FinetuneSettings, "store=x", "no setting 'store'"),
        (PretrainSettings, "network.options.in_channels=2", "'in_channels' follows from data and settings"),
        (PretrainSettings, "seed", "--set takes KEY=VALUE, got 'seed'"),
        (PretrainSettings, "seed=[1", "is not valid YAML"),
        (PretrainSettings, "batch_size=0", "'batch_size' of the settings is wrong"),
        (PretrainSettings, "training=3", "'training' of the settings is wrong"),
        (PretrainSettings, "patch_size=[8, 8]", "'patch_size"),
        (PretrainSettings, "training.optimizer.name=adamm", "'adamw', 'adam' or 'sgd'"),
        (FinetuneSettings, "transfer=decoder", "'all' or 'encoder'"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_that_is_right(kind, assignment, hint):
    with pytest.raises(ConfigError) as error:
        settings(kind, assignments=[assignment])
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="no recipe 'mis-fm-23'; did you mean 'mis-fm-2023'"):
        settings(recipe="mis-fm-23")
    with pytest.raises(ConfigError, match="no recipe 'smal'; did you mean 'small'"):
        settings(config=config_file(tmp_path, "extends: smal"))


@pytest.mark.parametrize("text", ["just words", "[1, 2]", "", "a: [", "!!python/object/apply:os.system [ls]"])
def test_a_file_without_settings_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        settings(config=config_file(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Cannot read the settings in"):
        settings(config=tmp_path / "none.yaml")


def test_an_unknown_pretext_or_option_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'volume-fusion-v1'"):
        PretextSettings(name="volume-fusion1").build()
    with pytest.raises(ConfigError, match="did you mean 'num_levels'"):
        PretextSettings(options={"num_level": 3}).build()


def test_settings_cannot_change_after_they_are_checked():
    with pytest.raises(ValueError, match="frozen"):
        settings().seed = 3


def test_parse_returns_what_it_was_given():
    assert parse(NetworkSettings, {"name": "pctnet"}, "settings") == NetworkSettings(name="pctnet")


def test_settings_with_the_older_words_for_chances_are_still_read():
    given = "pretext.options.views.flip_probability=0.25"
    settings = resolve(PretrainSettings, recipe="small", options={"store": "s"}, assignments=[given])
    assert settings.pretext.options["views"] == {"p_flip": 0.25}
    assert settings.pretext.build().views.p_flip == 0.25
    saved = settings.model_dump(mode="json")
    saved["pretext"]["options"] = {"inversion_probability": 0.0, "views": {"flip_probability": 0.25}}
    again = PretrainSettings.model_validate(saved).pretext.options
    assert again == {"p_inversion": 0.0, "views": {"p_flip": 0.25}}


def test_a_run_begun_with_the_older_words_is_resumed(tmp_path):
    settings = resolve(PretrainSettings, recipe="small", options={"store": "s"})
    run = RunFolder(tmp_path / "run")
    run.begin(settings, resume=False)
    text = run.config.read_text()
    older = text.replace("p_flip", "flip_probability").replace("p_inversion", "inversion_probability")
    assert older.count("_probability") == 2
    run.config.write_text(older)
    (run.path / "checksums.json").unlink()  # of which there were none
    run.check(settings, resume=True)


def test_a_later_source_wins_whichever_words_it_uses(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("pretext: {options: {inversion_probability: 0.1, views: {flip_probability: 0.2}}}\n")
    assigned = ["pretext.options.p_inversion=0.9", "pretext.options.views.p_flip=0.8"]
    settings = resolve(
        PretrainSettings, recipe="small", config=file, options={"store": "s"}, assignments=assigned
    )
    assert settings.pretext.options["p_inversion"] == 0.9
    assert settings.pretext.options["views"] == {"p_flip": 0.8}

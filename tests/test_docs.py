"""What is written about the code is what the code says: the reference of settings, and `misfm info NAME`."""

import importlib.util
import json
from pathlib import Path

import pytest

from misfm.commands import catalogue
from misfm.commands.info import describe_path
from misfm.config import CompleteSettings, FinetuneSettings
from misfm.data.intensity import Normalisation
from misfm.data.record import Record
from misfm.errors import DataError
from misfm.inference.predictor import PredictionSpec
from misfm.pretext.base import PRETEXTS
from misfm.settings import Settings
from misfm.synthesis.generate import PhantomSettings
from misfm.weights.formats import ForeignInfo

DOCS = Path(__file__).parents[1] / "docs"
# Naming a class of every part is what loads them all.
LOADED = [CompleteSettings, Normalisation, Record, PredictionSpec, PhantomSettings, ForeignInfo]


def subclasses(kind):
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def test_the_reference_of_settings_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (DOCS / "settings.md").read_text() == script.make(), "run `python docs/make_settings.py`"


def test_every_setting_has_a_description():
    assert PRETEXTS.names()
    assert {kind.__name__ for kind in LOADED} <= {kind.__name__ for kind in subclasses(Settings)}
    bare = {
        f"{kind.__name__}.{name}"
        for kind in subclasses(Settings)
        if kind.__module__.startswith("misfm.")
        for name, field in kind.model_fields.items()
        if not field.description
    }
    assert not bare


@pytest.mark.parametrize("kind", ["network", "pretext task"])
def test_every_option_has_a_type_and_a_description(kind):
    names, describe = catalogue.KINDS[kind]
    for name in names():
        found = describe(name)
        assert found["summary"]
        assert all(one["type"] and one["description"] for one in found["options"].values()), name


@pytest.mark.parametrize("name", catalogue.LISTS)
def test_info_lists_what_there_is(name):
    found = describe_path(name)
    assert found.pop("kind") == name
    assert json.loads(json.dumps(found)) == found
    assert all(found.values())


def test_info_describes_one_thing_by_name():
    network = describe_path("primus-s")
    assert (network["kind"], network["options"]["embed_dim"]["default"]) == ("network", 396)
    task = describe_path("volume-fusion-v2")
    assert (task["kind"], task["transfer"]) == ("pretext task", "all")
    assert task["options"]["views.gamma"]["default"] == [0.7, 1.5]
    recipe = describe_path("volf-2025")
    assert recipe["pretrain"]["training"]["steps"] == 80000
    both = describe_path("misfm")
    assert both["kind"] == "recipe, pretext task"
    assert both["recipe"]["pretrain"]["pretext"] == {"name": "misfm"}


@pytest.mark.parametrize("name", ["training.optimizer.lr", "pretrain.training.optimizer.lr", "optimizer.lr"])
def test_info_describes_a_setting_by_its_dotted_name(name):
    found = describe_path(name)
    assert list(found["pretrain"]) == ["training.optimizer.lr"]
    assert found["pretrain"]["training.optimizer.lr"] == {
        "type": "float in (0, 10)",
        "default": 1e-3,
        "description": "Peak learning rate.",
    }
    assert ("finetune" in found) == (not name.startswith("pretrain"))


def test_a_group_is_described_with_what_is_in_it():
    found = describe_path("unlabelled")["finetune"]
    assert found["unlabelled"]["default"] is None
    assert "default" not in found["unlabelled.store"]
    # The default of the group as a whole, not that of the class.
    assert found["unlabelled.augmentation.p_noise"]["default"] == 1.0


@pytest.mark.parametrize(
    ("name", "near"),
    [("training.optimiser.lr", "training.optimizer.lr"), ("maee", "mae"), ("recipe-s", "recipes")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(DataError, match=f"did you mean '{near}'"):
        describe_path(name)


def test_people_read_an_option_a_line(run_command):
    done = run_command("info", "mae")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == "kind           pretext task"
    assert "  mask_ratio  float in (0, 1), default 0.75: Share of hidden blocks (published: 0.75)." in lines


def test_descriptions_do_not_repeat_the_default():
    options = catalogue.settings_of(FinetuneSettings)
    assert not [key for key, option in options.items() if "Default " in option["description"]]

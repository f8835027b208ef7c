"""Intensity rules as people write them."""

import pytest

from misfm.data.intensity import IntensityRule
from misfm.data.intensity_text import intensity_text, kinds_text, parse_intensity, rules_for
from misfm.errors import ConfigError

CT, MR, PET = (IntensityRule(kind=kind) for kind in ("ct", "mr", "pet"))
WINDOW = IntensityRule(kind="ct", window=(-200, 600))


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("auto", ()),
        ("ct", (CT,)),
        ("mr", (MR,)),
        ("ct:-200,600", (WINDOW,)),
        ("ct:-200.5, 600", (IntensityRule(kind="ct", window=(-200.5, 600)),)),
        ("ct:-200,600/pet", (WINDOW, PET)),
        ("mr/mr/noNorm", (MR, MR, IntensityRule(kind="nonorm"))),
    ],
)
def test_rules_have_names(text, rules):
    assert parse_intensity(text) == rules


@pytest.mark.parametrize("text", ["us", "ct:600,-200", "ct:1", "mr:0,1", "", "ct/", "/", "ct,mr"])
def test_unknown_rules_are_refused_with_a_hint(text):
    with pytest.raises(ConfigError, match=r"hoose from: auto, ct, mr|did you mean"):
        parse_intensity(text)


def test_one_rule_is_for_all_channels_and_auto_takes_their_kinds():
    assert rules_for("ct", ["ct", "pet"]) == (CT, CT)
    assert rules_for("auto", ["ct", "pet"]) == (CT, PET)
    assert rules_for("ct:-200,600/pet", ["mr", "mr"]) == (WINDOW, PET)


def test_another_number_of_rules_than_channels_is_refused():
    with pytest.raises(ConfigError, match=r"has 2 rules and the images have 3 channel"):
        rules_for("ct/pet", ["mr"] * 3)


@pytest.mark.parametrize(
    "text", ["mr", "ct", "ct:-200,600", "ct:-1000.5,2000", "ct:-200,600/pet", "mr/nonorm"]
)
def test_rules_read_as_the_option_that_gives_them(text):
    assert intensity_text(parse_intensity(text)) == text


def test_rules_that_are_alike_read_as_one():
    assert intensity_text((MR, MR)) == "mr"
    assert kinds_text(["ct", "pet", "ct"]) == "CT and PET"

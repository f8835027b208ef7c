"""What a prediction expects of itself: soft Dice with its own probabilities, read on validation cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from misfm.inference.predictor import Probabilities
from misfm.inference.quality import (
    Tally,
    expected_dice,
    fit_scale,
    mean_of,
    quality_of,
    scale_of_members,
)
from misfm.volume import Box, Volume
from misfm.weights.quality import QualityScale


def probabilities_of(*labels_and_shares, num_classes=3):
    """A line of voxels (K, N, 1, 1), each with a class and its probability; the rest is the background's."""
    rows = torch.zeros(num_classes, len(labels_and_shares), 1, 1)
    for place, (label, share) in enumerate(labels_and_shares):
        rows[label, place] = share
        rows[0 if label else 1, place] += 1 - share
    return rows


def estimates_of(*slabs):
    tally, start = Tally(), 0
    for slab in slabs:
        tally.add(start, slab)
        start += slab.shape[1]
    return tally.estimates()


def test_a_sure_prediction_expects_to_be_right():
    assert estimates_of(probabilities_of((0, 1), (1, 1), (2, 1))) == [1, 1]


def test_what_is_unsure_expects_less_and_what_is_absent_nothing():
    # Two voxels of label 1: the overlap is 0.6 + 1, both together are 2 + 1.6.
    first, absent = estimates_of(probabilities_of((1, 0.6), (1, 1), (0, 1)))
    assert first == pytest.approx(2 * 1.6 / 3.6)
    assert absent is None


def test_a_voxel_that_was_nearly_labelled_lowers_what_is_expected():
    (sure, _), (missed, _) = (
        estimates_of(probabilities_of((1, 1), (0, 1))),
        estimates_of(probabilities_of((1, 1), (0, 0.6))),
    )
    assert missed < sure


def test_regions_are_judged_one_by_one():
    tally = Tally()
    tally.begin(
        Probabilities(Volume(np.zeros((1, 1, 1, 2)), np.eye(4)), Box((0, 0, 0), (1, 1, 2)), iter(()), True)
    )
    tally.add(0, torch.tensor([[0.9, 0.8], [0.6, 0.1]]).view(2, 1, 1, 2))
    assert tally.estimates() == pytest.approx([2 * 1.7 / (2 + 1.7), 2 * 0.6 / (1 + 0.7)])


def test_slabs_add_up():
    whole = probabilities_of((1, 0.7), (2, 0.9), (0, 0.8), (1, 0.6))
    assert estimates_of(whole[:, :1], whole[:, 1:]) == pytest.approx(estimates_of(whole))


def test_a_scale_gives_validation_cases_the_mean_dice_that_they_have():
    raw = {"a": [0.95, 0.9], "b": [0.90, None], "c": [0.93, 0.8]}
    dice = {"a": [0.80, 0.5], "b": [0.60, None], "c": [0.70, 0.4]}
    scale = fit_scale(raw, dice)
    assert scale is not None
    expected = [expected_dice(one, scale) for one in raw.values()]
    assert np.mean([row[0] for row in expected]) == pytest.approx(0.7)
    assert np.mean([row[1] for row in expected if row[1] is not None]) == pytest.approx(0.45)
    assert list(scale.reference) == sorted(mean_of(row) for row in expected)


def test_a_label_that_no_validation_case_has_is_read_as_the_others_are():
    scale = fit_scale({"a": [0.9, None], "b": [0.8, None]}, {"a": [0.6, None], "b": [0.5, None]})
    assert scale is not None
    assert scale.powers[1] == scale.powers[0]


def test_one_case_is_too_few_to_know():
    assert fit_scale({"a": [0.9]}, {"a": [0.5]}) is None


def test_without_a_scale_estimates_stay_as_they_are():
    assert expected_dice([0.9, None]) == [0.9, None]
    assert expected_dice([0.9, None], QualityScale(powers=(2, 2))) == [pytest.approx(0.81), None]


def quality(expected, *reference):
    tally = Tally()
    tally.add(0, probabilities_of((1, 1), num_classes=2))
    if expected is None:
        tally.add(0, probabilities_of((0, 1), num_classes=2))
    scale = QualityScale(powers=(1,), reference=reference) if reference else None
    found = quality_of(tally, ["organ"], scale)
    return replace(found, expected_dice=expected, is_empty=expected is None)


def test_a_prediction_below_all_validation_cases_is_to_be_looked_at():
    said = quality(0.41, 0.7, 0.8, 0.9).sentence
    assert said == "expected Dice 0.41 (below all of its 3 validation cases, 0.70 to 0.90): look at it"


def test_one_among_the_validation_cases_is_not():
    assert (
        quality(0.75, 0.7, 0.8, 0.9).sentence
        == "expected Dice 0.75 (like its 3 validation cases, 0.70 to 0.90)"
    )


def test_the_lower_end_of_many_validation_cases_is():
    reference = [0.5, *np.linspace(0.7, 0.9, 19)]
    assert quality(0.6, *reference).sentence.endswith(
        "at the lower end of its 20 validation cases, 0.50 to 0.90): look at it"
    )
    assert not quality(0.75, *reference).is_low


def test_nothing_found_is_to_be_looked_at_where_validation_cases_had_something():
    assert quality(None, 0.7, 0.8).sentence == "nothing was labelled: look at it"
    assert quality(None).sentence == "nothing was labelled"


def test_without_validation_cases_nothing_is_expected():
    tally = Tally()
    tally.add(0, probabilities_of((1, 1), num_classes=2))
    found = quality_of(tally, ["organ"], None)
    assert "no Dice to expect" in found.sentence
    assert found.as_json()["expected_dice"] is None
    assert found.as_json()["calibrated"] is False


def test_members_are_read_together_with_the_root_of_their_powers():
    scales = [
        QualityScale(powers=(4, 1), reference=(0.7, 0.9)),
        QualityScale(powers=(4, 1), reference=(0.8,)),
    ]
    both = scale_of_members(scales)
    assert both is not None
    assert both.powers == pytest.approx((2, 1))
    assert both.reference == (0.7, 0.8, 0.9)
    assert scale_of_members(scales[:1]) == scales[0]
    assert scale_of_members([scales[0], None]) is None

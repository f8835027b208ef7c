"""What is kept: never what is much worse, the last weights where it is close, parts where they help."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from misfm.data.label_scheme import LabelScheme
from misfm.evaluation import choice
from misfm.evaluation.choice import MARGIN, Candidate, choose, is_better, labels_in_one_piece
from misfm.inference.largest_part import keep_largest_parts
from misfm.volume import Volume
from misfm.weights import NetworkInfo, WeightsInfo

NAMES = {0: "background", 1: "brainstem", 2: "lungs", 3: "cord"}
INFO = WeightsInfo(
    network=NetworkInfo(name="unet"),
    in_channels=1,
    num_classes=4,
    patch_size=(16, 16, 16),
    spacing=None,
    steps=9,
    data=None,
)


def reference(shift=0):
    """Brainstem and cord in one piece, lungs in two."""
    label_map = np.zeros((1, 20, 20, 20), np.uint8)
    label_map[0, 2:8, 2:8, 2 + shift : 8 + shift] = 1
    label_map[0, 10:14, 2:6, 2:6] = label_map[0, 10:14, 12:16, 2:6] = 2
    label_map[0, 16:19, 4:16, 12:14] = 3
    return label_map


class Dataset:
    """Three cases; their images are their label maps."""

    scheme = LabelScheme(values={name: (value,) for value, name in NAMES.items() if value})
    label_names = NAMES
    ignore_label = None

    def __init__(self):
        self.read = []

    def annotated_labels(self, case):
        return set(NAMES) - ({3} if case == "c" else set())

    def read_case(self, case):
        self.read.append(case.name)
        volume = Volume(reference("abc".index(case.name)), np.eye(4))
        return volume, volume


CASES = [SimpleNamespace(name=name) for name in "abc"]


class Damage(nn.Module):
    """Stands for a network: does something to the right answer."""

    def __init__(self, *damages):
        super().__init__()
        self.damages = damages


def speck(label):
    def plant(label_map):
        label_map[0, 0, 17:20, 17:20] = label

    return plant


def loss(label, depth):
    def remove(label_map):
        layers = np.unique(np.argwhere(label_map[0] == label)[:, 0])[:depth]
        part = label_map[0, layers]
        part[part == label] = 0
        label_map[0, layers] = part

    return remove


def gap(label_map):
    """Cuts the cord into two halves, one a little longer."""
    label_map[0, 16:19, 9:10] = 0


@pytest.fixture(autouse=True)
def predictors(monkeypatch):
    class Predictor:
        def __init__(self, network, info, *, overlap):
            self.network, self.info = network, info

        def predict(self, image, *, watchers):
            label_map = image.data.copy()
            for damage in self.network.damages:
                damage(label_map)
            keep_largest_parts(label_map[0], self.info.largest_part, self.info.scheme)
            return Volume(label_map, image.affine)

    monkeypatch.setattr(choice, "predictor_for", Predictor)


def chosen(last, best=None, eligible=(1, 3), cases=CASES):
    candidates = [Candidate("last", 9, last, 0.5)]
    if best is not None:
        candidates.append(Candidate("best", 4, best, 0.6))
    dataset = Dataset()
    found = choose(candidates, INFO, dataset, cases, eligible=eligible, overlap=0.5)
    assert dataset.read == [case.name for case in cases]
    return found


def test_the_best_are_kept_where_the_last_are_much_worse():
    found = chosen(Damage(loss(1, 4)), Damage(loss(1, 1)))
    assert (found.candidate.kept, found.candidate.step) == ("best", 4)
    assert found.account["kept"] == "best"
    dice = {name: one["dice"] for name, one in found.account["candidates"].items()}
    assert dice["best"] == found.scores["mean"]["all"]["dice"] > dice["last"] + MARGIN
    assert found.sentence.startswith(
        f"kept the best weights, of step 4: validation Dice {dice['best']:.3f}, last {dice['last']:.3f}; "
        "largest part only: of no label."
    )


def test_the_last_are_kept_where_it_is_close():
    assert chosen(Damage(loss(1, 1)), Damage(loss(1, 1))).candidate.kept == "last"
    assert chosen(Damage(loss(1, 1)), Damage(loss(1, 3))).candidate.kept == "last"
    one_voxel = lambda label_map: label_map[0, 2:3, 2:3, 2:3].fill(0)  # noqa: E731
    close = chosen(Damage(one_voxel), Damage())
    assert close.candidate.kept == "last"
    dice = {name: one["dice"] for name, one in close.account["candidates"].items()}
    assert dice["last"] < dice["best"] < dice["last"] + MARGIN


@pytest.mark.parametrize(
    ("dice", "last", "better"),
    [(0.5, 0.4, True), (0.5, 0.499, False), (None, 0.4, False), (0.5, None, True), (None, None, False)],
)
def test_unknown_scores_are_no_better(dice, last, better):
    assert is_better(dice, last) == better


def test_weights_that_were_no_better_while_training_are_mentioned_and_not_scored():
    candidates = [Candidate("last", 9, Damage(), 0.5), Candidate("best", 4, None, 0.501)]
    found = choose(candidates, INFO, Dataset(), CASES, overlap=0.5)
    assert found.candidate.kept == "last"
    assert found.account["candidates"]["best"] == {"step": 4, "validation_dice": 0.501}
    assert "Dice 1.000 (the best, of step 4, were no more than 0.002 ahead while" in found.sentence


def test_specks_go_and_scores_are_of_what_is_kept():
    found = chosen(Damage(speck(1)))
    assert found.largest_part == (1,)
    assert found.scores["mean"]["brainstem"] == {
        "dice": 1,
        "hd95_mm": 0,
        "assd_mm": 0,
        "surface_dice": 1,
    }
    (last,) = found.account["candidates"].values()
    assert last["dice_as_predicted"] < last["dice"] == 1
    assert last["labels_in_one_piece"].keys() == {"brainstem", "cord"}
    assert last["labels_in_one_piece"]["brainstem"]["dice"] < 1
    assert not last["labels_in_one_piece"]["cord"]["largest_part"]
    assert "largest part only: brainstem. Validation scores are of what was chosen" in found.sentence


def test_a_label_is_left_alone_where_that_is_better():
    assert chosen(Damage(gap)).largest_part == ()
    assert chosen(Damage(gap)).scores["mean"]["cord"]["dice"] > 0.9
    assert chosen(Damage(speck(2))).largest_part == ()
    # In a case whose cord is not annotated nothing is known of it.
    assert chosen(Damage(speck(3)), cases=CASES[2:]).largest_part == ()
    assert chosen(Damage(speck(3)), cases=CASES[1:]).largest_part == (3,)


def test_weights_are_compared_as_they_would_be_used():
    """Specks that go anyway are no reason to prefer other weights."""
    found = chosen(Damage(speck(1)), Damage(loss(1, 1)))
    assert found.candidate.kept == "last"
    assert found.largest_part == (1,)


def test_only_what_is_one_piece_everywhere_may_be_cleaned_up():
    broken = reference()
    broken[0, 4, 2:8, 2:8] = 0
    without = np.where(reference() == 3, 0, reference())
    maps = {"a": reference(0), "b": reference(1), "c": broken, "d": without}
    store = SimpleNamespace(read_label=lambda record: Volume(maps[record], np.eye(4)))
    assert labels_in_one_piece(store, "ababa", Dataset()) == [1, 3]
    assert labels_in_one_piece(store, "ababac", Dataset()) == [3]
    assert labels_in_one_piece(store, "cababa", Dataset()) == [3]
    assert labels_in_one_piece(store, "ababdd", Dataset()) == [1]


def test_a_few_label_maps_do_not_tell_that_a_label_is_always_one_piece():
    store = SimpleNamespace(read_label=lambda record: Volume(reference(), np.eye(4)))
    assert labels_in_one_piece(store, "abcd", Dataset()) == []
    assert labels_in_one_piece(store, "abcde", Dataset()) == [1, 3]


def test_clean_up_of_regions_is_judged_by_what_is_kept_of_all_of_them():
    class Nested(Dataset):
        scheme = LabelScheme(values={"outer": (1, 3), "inner": (3,)}, order=(1, 3))
        label_names = scheme.names

        def annotated_labels(self, case):
            return {0, 1, 3}

        def read_case(self, case):
            label_map = np.zeros((1, 20, 20, 20), np.uint8)
            label_map[0, 2:10, 2:10, 2:10], label_map[0, 4:8, 4:8, 4:8] = 1, 3
            return Volume(label_map, np.eye(4)), Volume(label_map, np.eye(4))

    candidates = [Candidate("last", 9, Damage(speck(3)), 0.5)]
    described = {"num_classes": 2, "label_values": ((1, 3), (3,)), "regions_class_order": (1, 3)}
    info = INFO.model_copy(update=described)
    found = choose(candidates, info, Nested(), CASES, eligible=[1, 3], overlap=0.5)
    # A speck of the inner region is one of the outer region, too; both are whole again.
    assert found.largest_part == (1, 3)
    assert found.scores["mean"]["outer"]["dice"] == found.scores["mean"]["inner"]["dice"] == 1
    (last,) = found.account["candidates"].values()
    assert last["dice_as_predicted"] < last["dice"] == 1


def test_estimates_are_read_by_the_dice_of_what_is_kept():
    def scores(dice):
        return choice.LabelScores(dice, None, None, 0.0)

    scored = choice.Scored(
        candidate=None,
        model=None,
        names={3: "left", 7: "right"},
        eligible=[7],
        plain={case: {3: scores(0.81), 7: scores(0.5)} for case in "ab"},
        cleaned={case: {3: scores(0.81), 7: scores(0.9)} for case in "ab"},
        estimates={case: [0.9, 0.9] for case in "ab"},
    )
    scale = scored.quality((7,))
    assert scale.powers == pytest.approx((2, 1))
    assert scale.reference == pytest.approx((0.855, 0.855))

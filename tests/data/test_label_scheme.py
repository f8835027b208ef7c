"""What values of label maps become for a network, and what its outputs become in a mask."""

import numpy as np
import pytest
import torch

from misfm.data.dataset_json import parse_labels
from misfm.data.label_scheme import IGNORED_CLASS, LabelScheme, whole
from misfm.errors import DataError

GAPS = LabelScheme(values={"core": (1,), "enhancing": (4,), "rest": (300,)}, ignore=400)
BRATS = LabelScheme(
    values={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}, order=(2, 1, 4), ignore=255
)


def test_values_with_gaps_become_classes_and_values_again():
    label_map = torch.tensor([[0, 1, 4], [300, 400, 0]])
    classes = GAPS.classes(label_map)
    assert classes.tolist() == [[0, 1, 2], [3, IGNORED_CLASS, 0]]
    logits = torch.nn.functional.one_hot(classes.clamp(min=0), 4).movedim(-1, 0).float()
    mask = GAPS.mask(GAPS.decide(GAPS.activate(logits, 0)))
    assert mask.dtype == np.uint16
    assert mask.tolist() == [[0, 1, 4], [300, 0, 0]]
    assert GAPS.output_names == ("background", "core", "enhancing", "rest")
    assert (GAPS.num_outputs, GAPS.is_numbered, GAPS.has_regions) == (4, False, False)


def test_regions_are_outputs_of_their_own_and_painted_in_order():
    assert BRATS.classes(torch.tensor([0, 1, 2, 4, 255])).tolist() == [0, 1, 2, 3, IGNORED_CLASS]
    assert BRATS.membership().int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert BRATS.num_outputs == 3
    probabilities = torch.tensor([[0.9, 0.9, 0.9, 0.5, 0.1], [0.1, 0.6, 0.9, 0.2, 0.2], [0, 0, 0.51, 0, 0.9]])
    mask = BRATS.mask(BRATS.decide(probabilities))
    assert mask.dtype == np.uint8
    # As in nnU-Net, what is above a half is there, even where what should lie around it is not.
    assert mask.tolist() == [2, 1, 4, 0, 4]
    assert torch.equal(BRATS.activate(torch.zeros(3, 2), 0), torch.full((3, 2), 0.5))


def test_more_outputs_than_a_byte_holds_are_told_apart():
    last = torch.zeros(300, 2)
    last[[299, 1], [0, 1]] = 1
    numbered = LabelScheme.numbered(300)
    assert numbered.mask(numbered.decide(last)).tolist() == [299, 1]
    assert numbered.mask(numbered.decide(last)).dtype == np.uint16
    order = tuple(range(1, 301))
    regions = LabelScheme(values={str(number): (number,) for number in order}, order=order)
    assert regions.mask(regions.decide(last)).tolist() == [300, 2]


def test_what_is_no_region_any_more_is_what_lies_around_it():
    assert BRATS.without(1) == {1: 2, 4: 2}
    assert BRATS.without(4) == {4: 1}
    assert BRATS.without(2) == {1: 0, 2: 0, 4: 0}
    assert GAPS.without(4) == {4: 0}


def test_labels_without_names_are_their_numbers():
    scheme = LabelScheme.numbered(3)
    assert scheme.is_numbered
    assert scheme.names == {0: "background", 1: "1", 2: "2"}
    assert scheme.mask(torch.tensor([0, 2], dtype=torch.uint8)).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        ([0.0, 1.0, 255.0], [0, 1, 255]),
        ([0.0, 0.99995, 4.0002], [0, 1, 4]),
        ([0.0, 0.5], None),
        ([0.0, np.nan], None),
        ([0.0, np.inf], None),
    ],
)
def test_values_stored_as_fractions_are_whole_numbers_up_to_rounding(voxels, expected):
    found = whole(np.array(voxels, np.float32))
    assert (None if found is None else found.tolist()) == expected


WHOLE, CORE, ENHANCING = {"whole": [1, 2, 3]}, {"core": [2, 3]}, {"enhancing": 3}


def parsed(labels, path, **more):
    return parse_labels({"labels": labels, **more}, path)


def test_labels_of_one_value_go_by_it_and_regions_by_their_place(tmp_path):
    assert parsed({"z": 9, "background": 0, "a": 1.0, "ignore": [10]}, tmp_path) == LabelScheme(
        values={"a": (1,), "z": (9,)}, ignore=10
    )
    found = parsed({"background": 0, **WHOLE, **CORE, **ENHANCING}, tmp_path, regions_class_order=[1, 2, 3])
    assert list(found.values.items()) == [("whole", (1, 2, 3)), ("core", (2, 3)), ("enhancing", (3,))]
    assert found.order == (1, 2, 3)
    # As in nnU-Net, lists of one value are no regions, and no order is needed.
    assert parsed({"background": 0, "a": [2]}, tmp_path, regions_class_order=[7]).order == ()
    assert parsed({"a": 2}, tmp_path).background is None


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (WHOLE | CORE, None, "must hold 'regions_class_order' with a value for each label.* 2 in all"),
        (WHOLE | CORE, [1], "2 in all"),
        (WHOLE | CORE, [1, "2"], "2 in all"),
        (WHOLE | CORE, [1, 7], "gives region 'core' the value 7 .* choose one of its own"),
        (WHOLE | CORE, [2, 2], "gives region 'whole' the value 2 .* that no other has"),
        (CORE | WHOLE, [2, 1], "lists region 'whole' after 'core', which lies within it"),
        (WHOLE | {"same": [3, 2, 1]}, [1, 2], "every label its own value"),
        ({"all but air": [0, 1]}, [1], "counts value 0, the background, to the region 'all but air'"),
        ({"none": []}, [1], "gives label 'none' the value"),
        ({"half": [1, 1.5]}, [1], r"the value \[1, 1.5\]"),
        (WHOLE | {"ignore": 2}, [1], "every label its own value"),
        (WHOLE | {"ignore": [4, 5]}, [1], "every label its own value"),
    ],
)
def test_regions_that_cannot_be_meant_are_refused(tmp_path, labels, order, message):
    with pytest.raises(DataError, match=message):
        parsed(
            {"background": 0, **labels}, tmp_path, **({} if order is None else {"regions_class_order": order})
        )

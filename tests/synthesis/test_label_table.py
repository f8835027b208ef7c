"""Values of people's label maps: which are segmented, what mirrors make of them, what CT shows of them."""

import pytest

from misfm.synthesis.label_table import FIRST, LabelTable, hounsfield, other_side

NAMES = {3: "left kidney", 4: "right kidney", 9: "liver", 0: "background"}
TABLE = LabelTable.of([0, 3, 4, 7, 9, 500], NAMES)


def test_named_values_are_segmented_and_the_others_are_only_drawn():
    assert TABLE.names == ("background", "left kidney", "right kidney", "liver", "unnamed 7", "unnamed 500")
    assert TABLE.num_targets == 3
    assert TABLE.num_classes == FIRST + 3
    classes = TABLE.classes()
    assert classes[:FIRST] == list(range(FIRST))  # generated anatomy keeps its own
    assert classes[FIRST:] == [0, FIRST, FIRST + 1, FIRST + 2, 0, 0]


def test_without_people_there_are_the_classes_of_generated_anatomy():
    assert LabelTable().num_classes == FIRST
    assert LabelTable().classes() == LabelTable().mirrored() == list(range(FIRST))
    assert LabelTable().like_ct() == []


def test_a_mirror_exchanges_sides_and_nothing_else():
    mirrored = TABLE.mirrored()
    left, right = FIRST + 1, FIRST + 2
    assert (mirrored[left], mirrored[right]) == (right, left)
    assert [mirrored[value] for value in mirrored] == list(range(len(mirrored)))  # twice is once not at all
    alone = LabelTable.of([1], {1: "left lung"})  # whose other side nobody drew
    assert alone.mirrored()[FIRST:] == [FIRST, FIRST + 1]


@pytest.mark.parametrize(
    ("name", "other"),
    [("left hippocampus", "right hippocampus"), ("lh_thalamus", "rh_thalamus"), ("Kidney_R", "Kidney_l")],
)
def test_the_other_side_of_a_name(name, other):
    assert other_side(name) == other
    assert other_side("liver") == "liver"


def test_ct_shows_what_a_name_tells():
    assert (
        hounsfield("skull") > 300 > hounsfield("liver") > 0 > hounsfield("skin fat") > hounsfield("left lung")
    )
    assert hounsfield("left hippocampus") == hounsfield("liver")  # no hip
    assert TABLE.like_ct() == [
        -1000,
        hounsfield("kidney"),
        hounsfield("kidney"),
        hounsfield("liver"),
        None,
        None,
    ]

"""Values of people's label maps: which are segmented, what mirrors make of them, what CT shows of them."""

import pytest

from misfm.synthesis.label_table import FIRST, LabelTable, hounsfield

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
    assert alone.unpaired() == ["left lung"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left hippocampus", "right hippocampus"),
        ("Left-Kidney", "Right-Kidney"),
        ("lh_thalamus", "rh_thalamus"),
        ("LH cortex", "RH cortex"),
        ("KidneyL", "KidneyR"),
        ("LtParotid", "RtParotid"),
        ("kidney_l", "kidney_r"),
        ("Niere links", "Niere rechts"),
    ],
)
def test_sides_are_told_however_they_are_written(one, other):
    table = LabelTable.of([1, 2, 3], {1: one, 2: other, 3: "liver"})
    assert table.mirrored()[FIRST:] == [FIRST, FIRST + 2, FIRST + 1, FIRST + 3]
    assert not table.unpaired()


def test_a_name_that_is_none_changes_nothing():
    assert LabelTable.of([1, 2], {1: "background", 2: "liver"}).mirrored() == list(range(FIRST + 3))


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

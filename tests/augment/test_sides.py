"""Left and right in names of labels: what tells them stops mirroring across the midline, and nothing else."""

import unicodedata

import pytest

from misfm.augment.mirrors import safe_flip_axes
from misfm.augment.sides import side_of, sides_of


@pytest.mark.parametrize(
    "name",
    [
        *("left_kidney", "Parotid_R", "kidney left", "ParotidL", "LKidney", "Rt lung", "l_eye"),
        *("lh_hippocampus", "ctx-rh-insula", "LtParotid", "ParotidRt", "parotis_sin", "niere_links"),
        *("kidneyleft", "linke Niere", "rechter long", "rim esquerdo", "左肾", "левая почка", "nerka lewa"),
    ],
)
def test_one_label_with_a_side_forbids_the_midline_flip(name):
    assert safe_flip_axes(["liver", name]) == ()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(("linke Niere", "rechte Niere"), ("linker long", "rechter long"), ("左肾", "右肾")),
        *(
            ("rim esquerdo", "rim direito"),
            ("riñón izquierdo", "riñón derecho"),
            ("rein gauche", "rein droit"),
        ),
        *(("rene sinistro", "rene destro"), ("nerka lewa", "nerka prawa"), ("левая почка", "правая почка")),
        *(("venstre nyre", "høyre nyre"), ("vänster njure", "höger njure"), ("왼쪽 신장", "오른쪽 신장")),
        *(
            ("riñón izq", "riñón der"),
            ("左腎", "右腎"),
            ("الكلية اليسرى", "الكلية اليمنى"),
            ("sol böbrek", "sağ böbrek"),
        ),
        *(
            ("levá ledvina", "pravá ledvina"),
            ("Niere li", "Niere re"),
            ("rein G", "rein D"),
            ("rim E", "rim D"),
        ),
        *(("PAROTIDL", "PAROTIDR"), ("rib_L1", "rib_R1"), ("LK", "RK"), ("4L", "4R"), ("TMJL", "TMJR")),
    ],
)
def test_two_labels_that_differ_in_the_side_alone_are_a_pair(left, right):
    found = list(sides_of(["liver", right, left]).values())
    assert found == [{"left": 2, "right": 1}]
    assert safe_flip_axes([right, left]) == ()


def test_accents_may_be_written_apart_or_left_out():
    apart = unicodedata.normalize("NFD", "vänster njure")
    assert side_of(apart) == side_of("vanster njure") == (" njure", "left")


def test_letters_with_other_meanings_count_in_pairs_alone():
    assert safe_flip_axes(["PAROTIDL", "PAROTIDX"]) == ("W",)
    assert safe_flip_axes(["group c", "group d", "group e"]) == ("W",)
    assert safe_flip_axes(["vertebrae_L1", "vertebrae_L5", "Level 1"]) == ("W",)


def test_labels_without_sides_allow_it():
    names = ["background", "Brainstem", "mandible", "ROI", "Anterior", "class 1", "spleen", "liver", "lung"]
    assert safe_flip_axes([*names, "bright", "cleft palate", "плевра", "lateral ventricle"]) == ("W",)

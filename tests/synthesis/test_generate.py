"""Generated scans look like CT, repeat with their seed, and make a dataset other tools read."""

import json

import nibabel as nib
import numpy as np
import pytest

from misfm.data.dataset import Dataset
from misfm.data.generated import write_phantom_dataset, write_phantom_scans
from misfm.errors import DataError
from misfm.synthesis import structures
from misfm.synthesis.canvas import smooth_field
from misfm.synthesis.generate import TO_PRETRAIN_ON, PhantomSettings, generate_phantom
from misfm.synthesis.structures import NUM_ORGANS, NUM_STRUCTURES, ORGAN_NAMES

CASES = [generate_phantom(PhantomSettings(), seed) for seed in range(4)]
SMALL = PhantomSettings(shape=(20, 24, 28), spacing=(15, 13, 11))


def voxels(label, name):
    return label.data[0] == {name: value for value, name in ORGAN_NAMES.items()}[name]


def centre(label, name):
    """Millimetres to the (right, front, top) of the patient."""
    index = np.argwhere(voxels(label, name)).mean(0)
    return (label.affine @ (*index, 1))[:3]


@pytest.mark.parametrize("case", range(4))
def test_image_and_label_are_a_plausible_case(case):
    image, label = CASES[case]
    assert image.data.dtype == np.int16
    assert label.data.dtype == np.uint8
    assert image.orientation == "SPL"
    assert np.array_equal(image.affine, label.affine)
    assert set(np.unique(label.data)) == {0, *ORGAN_NAMES}
    assert image.data.min() < -950  # air
    assert image.data.max() > 350  # bone
    assert 0.1 < ((image.data > -200) & (image.data < 200)).mean() < 0.6  # soft tissue


@pytest.mark.parametrize("case", range(4))
def test_organs_lie_where_they_do_in_people(case):
    _, label = CASES[case]
    left, right = centre(label, "left_kidney"), centre(label, "right_kidney")
    assert left[0] < centre(label, "spinal_cord")[0] < right[0]
    assert centre(label, "liver")[0] > centre(label, "aorta")[0]
    assert centre(label, "liver")[2] > max(left[2], right[2])
    assert centre(label, "spinal_cord")[1] < centre(label, "aorta")[1]


def test_organs_differ_from_their_surroundings_but_not_from_each_other():
    """Intensity alone does not tell one organ from another, so there is something to learn."""
    image, label = CASES[0]
    hu = {name: image.data[0][voxels(label, name)].astype(float) for name in ORGAN_NAMES.values()}
    assert all(0 < np.median(values) < 260 for values in hu.values())
    assert abs(hu["left_kidney"].mean() - hu["right_kidney"].mean()) < 30
    unlabelled = image.data[0][label.data[0] == 0]
    low, high = np.percentile(hu["liver"], (10, 90))
    assert ((unlabelled > low) & (unlabelled < high)).sum() > (label.data == 1).sum() / 2


def test_cases_differ_and_repeat_with_their_seed():
    again = generate_phantom(PhantomSettings(), 1)
    assert np.array_equal(again[0].data, CASES[1][0].data)
    assert np.array_equal(again[1].data, CASES[1][1].data)
    assert np.array_equal(again[0].affine, CASES[1][0].affine)
    assert not np.array_equal(CASES[0][0].data, CASES[1][0].data)
    spread = np.ptp(
        [[voxels(label, name).sum() for name in ORGAN_NAMES.values()] for _, label in CASES], axis=0
    )
    assert (spread > 50).all()


def test_other_shapes_and_plain_settings():
    settings = SMALL.model_copy(update={"spacing_jitter": 0, "rotation_degrees": 0, "num_bowel_loops": 0})
    image, label = generate_phantom(settings, np.random.default_rng(0))
    assert image.shape == label.shape == (20, 24, 28)
    assert image.spacing == pytest.approx((15, 13, 11))


def test_all_structures_may_be_labelled_and_the_organs_keep_their_values():
    image, label = generate_phantom(PhantomSettings(labels="structures"), 1)
    organs_image, organs = CASES[1]
    assert np.array_equal(image.data, organs_image.data)
    assert np.array_equal(np.where(label.data <= NUM_ORGANS, label.data, 0), organs.data)


def test_what_is_pretrained_on_shows_every_structure_and_varies_more(heads):
    trunks = [generate_phantom(TO_PRETRAIN_ON[0], seed) for seed in range(3)]
    seen = [set(np.unique(label.data)) for _, label in (*trunks, *heads[0])]
    assert set.union(*seen) == set(range(NUM_STRUCTURES + 1))
    for cases in (trunks, heads[0]):
        assert np.ptp([image.spacing for image, _ in cases], axis=0).max() > 1


@pytest.fixture(scope="module")
def heads():
    """Three heads and necks, and a function for where (right, front, top) a structure is in each of them."""
    cases = [generate_phantom(TO_PRETRAIN_ON[1], seed) for seed in range(3)]

    def places(value):
        return np.stack(
            [(label.affine @ (*np.argwhere(label.data[0] == value).mean(0), 1))[:3] for _, label in cases]
        )

    return cases, places


def test_a_head_and_neck_are_put_together_as_in_people(heads):
    _, places = heads
    right, front, top = range(3)
    above = [structures.BRAIN, structures.BRAINSTEM, structures.SPINAL_CORD]
    assert (np.diff([places(value)[:, top] for value in above], axis=0) < 0).all()
    assert (places(structures.JAW)[:, front] > places(structures.BRAINSTEM)[:, front] + 15).all()
    assert (places(structures.CEREBELLUM)[:, front] < places(structures.BRAINSTEM)[:, front]).all()
    assert (places(structures.LARYNX)[:, top] < places(structures.TONGUE)[:, top]).all()
    assert (places(structures.VERTEBRA)[:, front] < places(structures.LARYNX)[:, front]).all()
    for left_one in (
        structures.LEFT_EYE,
        structures.LEFT_PAROTID,
        structures.LEFT_SUBMANDIBULAR,
        structures.LEFT_CHEWING,
    ):
        assert (places(left_one)[:, right] < places(structures.TONGUE)[:, right]).all()
        assert (places(left_one + 1)[:, right] > places(structures.TONGUE)[:, right]).all()


def test_a_head_is_a_plausible_scan_and_repeats_with_its_seed(heads):
    image, label = heads[0][1]
    again = generate_phantom(TO_PRETRAIN_ON[1], 1)
    assert np.array_equal(again[0].data, image.data)
    assert np.array_equal(again[1].data, label.data)
    assert (image.data.dtype, label.data.dtype, image.orientation) == (np.int16, np.uint8, "SPL")
    assert image.data.min() < -950  # air
    assert image.data.max() > 1000  # teeth and the base of the skull


def test_two_regions_stand_side_by_side_in_a_dataset(tmp_path):
    for seed, region in enumerate(TO_PRETRAIN_ON):
        small = region.model_copy(update={"shape": (20, 24, 28)})
        write_phantom_dataset(tmp_path, num_train=1, num_test=0, seed=seed, settings=small)
    names = [case.name for case in Dataset.open(tmp_path).cases()]
    assert names == ["head_neck_tr_000", "phantom_tr_000"]
    assert json.loads((tmp_path / "dataset.json").read_text())["numTraining"] == 2


def test_organs_of_a_head_have_the_size_of_real_ones(heads):
    """In ml; ranges are wide, for what is pretrained on varies more than people do."""
    sizes = {
        structures.BRAINSTEM: (10, 60),
        structures.JAW: (20, 150),
        structures.LEFT_PAROTID: (5, 60),
        structures.RIGHT_PAROTID: (5, 60),
        structures.LEFT_EYE: (2, 15),
    }
    for _, label in heads[0]:
        for value, (low, high) in sizes.items():
            volume = (label.data == value).sum() * np.prod(label.spacing) / 1000
            assert low < volume < high, value


def test_a_dataset_of_all_structures_names_them(tmp_path):
    settings = SMALL.model_copy(update={"labels": "structures"})
    write_phantom_dataset(tmp_path, num_train=1, num_test=0, seed=7, settings=settings)
    names = Dataset.open(tmp_path).label_names
    assert set(names) == set(range(NUM_STRUCTURES + 1))
    assert names[1] == "liver"


def test_smooth_field_has_unit_variance_and_is_smooth():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field((16, 16, 16), 4, rng) for _ in range(200)])
    assert fields.std() == pytest.approx(1, abs=0.05)
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.4


def test_dataset_has_the_layout_of_nnunet(tmp_path):
    write_phantom_dataset(tmp_path, num_train=2, num_test=1, seed=7, settings=SMALL)
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, **{name: value for value, name in ORGAN_NAMES.items()}}
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    assert sorted(file.name for file in (tmp_path / "labelsTr").iterdir()) == [
        "phantom_tr_000.nii.gz",
        "phantom_tr_001.nii.gz",
    ]
    for part, names in (("Tr", ["tr_000", "tr_001"]), ("Ts", ["ts_000"])):
        for name in names:
            image = nib.load(tmp_path / f"images{part}" / f"phantom_{name}_0000.nii.gz")
            label = nib.load(tmp_path / f"labels{part}" / f"phantom_{name}.nii.gz")
            assert image.shape == label.shape == (28, 24, 20)
            assert np.allclose(image.affine, label.affine)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            assert image.get_data_dtype() == np.int16


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path):
    write_phantom_scans(tmp_path / "one", 1, seed=3, settings=SMALL)
    write_phantom_scans(tmp_path / "two", 2, seed=3, settings=SMALL)
    first, second = ((tmp_path / name / "scan_0000.nii.gz").read_bytes() for name in ("one", "two"))
    assert first == second
    assert len(list((tmp_path / "two").iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        write_phantom_scans(tmp_path / "file" / "scans", 1, seed=0, settings=SMALL)

"""Patches: functions of seed and index, centred on content or labels, inside the volume where it is large."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from misfm.data.intensity import Normalisation
from misfm.data.label_scheme import IGNORED_CLASS, LabelScheme
from misfm.data.patches import (
    LabelledPatches,
    UnlabelledPatches,
    draw_box,
    fit_start,
    padding_notice,
)
from misfm.data.record import IngestSettings, Origin, anonymise, make_entry
from misfm.data.store import Store
from misfm.seeding import draw_different, generator_for
from misfm.volume import Volume

RULE = Normalisation(lower=-1000, upper=1000, shift=0, scale=1000)
SETTINGS = IngestSettings()
THREE = LabelScheme.numbered(3)
IGNORING = LabelScheme(values={"one": (1,)}, ignore=2)
SHAPES = {"a": (20, 24, 28), "b": (30, 16, 24), "flat": (5, 24, 24)}
AIR = -1000


def add_case(store, name, shape, removed=None):
    """A body of 300 HU and more in air, with label 1 in one corner of it and the rare label 2 in another."""
    generator = np.random.default_rng(len(name))
    voxels = np.full((1, *shape), AIR, np.int16)
    body = (slice(None), *(slice(1, side - 1) for side in shape))
    voxels[body] = generator.integers(300, 900, voxels[body].shape)
    label = np.zeros((1, *shape), np.uint8)
    label[:, 1:3, 1:9, 1:9] = 1
    label[:, -2, -2, -2] = 2
    affine = np.diag([1.0, 1, 1, 1])
    origin = Origin(name, f"{name}.nii.gz", name)
    image, label_map = Volume(voxels, affine), Volume(label, affine)
    entry = make_entry(origin, image, label_map, ["ct"], (RULE,), SETTINGS)
    return store.add(entry if removed is None else anonymise(entry, Volume(removed, affine)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store.create(tmp_path_factory.mktemp("patches") / "store", SETTINGS)
    for name, shape in SHAPES.items():
        add_case(store, name, shape)
    return store


def unlabelled(store, seed=0, **changes):
    settings = {"patch_size": (8, 8, 8), "num_patches": 2, "batch_size": 2, **changes}
    return UnlabelledPatches(store, store.records(), seed=seed, **settings)


def labelled(store, seed=0, **changes):
    settings = {"patch_size": (8, 8, 8), "margin": (0, 0, 0), "batch_size": 2, "scheme": THREE, **changes}
    records = settings.pop("records", store.records())
    return LabelledPatches(store, records, seed=seed, **settings)


@pytest.mark.parametrize("kind", [unlabelled, labelled])
def test_a_batch_is_a_function_of_seed_and_index(store, kind):
    batches = kind(store)
    first = batches[3]
    batches[0]
    for again in (batches[3], kind(Store.open(store.path))[3]):
        pairs = zip(first, again, strict=True)
        assert all(one is other is None or torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(first[0], batches[4][0])
    assert not torch.equal(first[0], kind(store, seed=1)[3][0])


def test_unlabelled_batches_have_the_documented_axes(store):
    patches, valid, origin, spacing, labels, hidden, *_ = unlabelled(store, num_patches=3)[0]
    assert patches.shape == (2, 3, 1, 8, 8, 8)
    assert patches.dtype == torch.float32
    assert valid.shape == (2, 3, 2, 3)
    assert origin.shape == spacing.shape == (2, 3, 3)
    assert torch.equal(origin % spacing, torch.zeros_like(origin))
    assert labels is hidden is None
    assert -1 <= float(patches.min()) < float(patches.max()) <= 1


def test_labelled_batches_have_the_documented_axes(store):
    image, label = labelled(store)[0]
    assert (image.shape, image.dtype) == ((2, 1, 8, 8, 8), torch.float32)
    assert (label.shape, label.dtype) == ((2, 8, 8, 8), torch.int64)


def test_batches_tell_which_classes_were_annotated(store):
    records = store.records()
    names = [record.case for record in records]
    partial = labelled(store, batch_size=len(records), annotated={names[0]: (True, False, True)})
    image, label, annotated = partial[0]
    assert annotated.shape == (len(records), 3)
    assert annotated.dtype == torch.bool
    assert sorted(row.tolist() for row in annotated) == [
        [True, False, True],
        *[[True] * 3] * (len(names) - 1),
    ]
    for column, same in zip(labelled(store, batch_size=len(records))[0], (image, label), strict=True):
        assert torch.equal(column, same)
    complete = labelled(store, annotated={names[0]: (True, True, True)})
    assert [len(complete[index]) for index in range(4)] == [2] * 4


def test_image_and_label_are_of_one_place(store):
    (record,) = [record for record in store.records() if record.case == "a"]
    image = RULE.apply(torch.from_numpy(store.read(record).data.astype(np.float32)))
    label = store.read_label(record).data[0]
    places = {}
    for d, h, w in np.ndindex(13, 17, 21):
        places[image[0, d : d + 8, h : h + 8, w : w + 8].numpy().tobytes()] = (d, h, w)
    batches = labelled(store, records=[record], batch_size=1)
    for index in range(10):
        patch, classes = batches[index]
        d, h, w = places[patch[0, 0].numpy().tobytes()]
        assert np.array_equal(classes[0], label[d : d + 8, h : h + 8, w : w + 8])


def test_rare_labels_are_seen_as_often_as_common_ones(store):
    patches = [labelled(store, labelled_share=1.0)[index][1] for index in range(40)]
    seen = [[bool((patch == value).any()) for batch in patches for patch in batch] for value in (1, 2)]
    assert np.mean(seen[0]) == pytest.approx(0.5, abs=0.2)
    assert np.mean(seen[1]) == pytest.approx(0.5, abs=0.2)


def test_without_a_labelled_share_patches_lie_anywhere_in_the_body(store):
    seen = [bool((labelled(store, labelled_share=0.0)[index][1] == 2).any()) for index in range(20)]
    assert np.mean(seen) < 0.5


def test_what_was_not_annotated_is_marked(store):
    batches = labelled(store, patch_size=(18, 14, 20), labelled_share=0.0, scheme=IGNORING)
    values = torch.cat([batches[index][1].unique() for index in range(20)]).unique().tolist()
    assert values == [IGNORED_CLASS, 0, 1]


def test_a_volume_shorter_than_the_patch_is_centred_in_padding(store):
    flat = [record for record in store.records() if record.case == "flat"]
    batches = UnlabelledPatches(store, flat, (9, 8, 8), num_patches=1, batch_size=1, seed=0)
    for index in range(5):
        patches, valid, *_ = batches[index]
        assert valid[0, 0].tolist() == [[2, 0, 0], [7, 8, 8]]
        assert bool((patches[0, 0, 0, :2] == -1).all())
        assert bool((patches[0, 0, 0, 7:] == -1).all())


def test_padding_is_said(store):
    assert padding_notice(store.records(), (5, 8, 8)) is None
    assert padding_notice(store.records(), (9, 8, 8)) == (
        "1 of 3 volumes are smaller than the (9, 8, 8) voxels read for a patch, such as flat with "
        "(5, 24, 24): what is read of them is padded."
    )
    assert padding_notice(store.records(), (8, 20, 8)).startswith("2 of 3 volumes")


def test_what_was_removed_is_said_only_where_a_volume_was_anonymised(tmp_path, store):
    masked = Store.create(tmp_path / "store", SETTINGS)
    removed = np.zeros((1, *SHAPES["a"]), np.uint8)
    removed[..., 14:] = 1
    add_case(masked, "a", SHAPES["a"], removed)
    add_case(masked, "b", SHAPES["b"])
    first, second = masked.records()
    assert (first.anonymised, second.anonymised) == (True, False)
    seen = 0
    for index in range(10):
        _, valid, origin, spacing, labels, hidden, *_ = unlabelled(masked, patch_size=(8, 8, 25))[index]
        assert labels is None
        assert (hidden.dtype, hidden.shape) == (torch.bool, (2, 2, 8, 8, 25))
        for place in np.ndindex(2, 2):
            start = (origin[place] / spacing[place]).long().tolist()
            (low, *_), (high, *_) = valid[place].tolist()
            expected = torch.zeros(8, 8, 25, dtype=torch.bool)
            if bool(hidden[place].any()):
                expected[low:high, :, 14 - start[2] :] = True
                seen += 1
            assert torch.equal(hidden[place], expected)
    assert 15 < seen < 25
    labelled_too = unlabelled(masked, labelled=True)[0]
    assert labelled_too.labels.shape == labelled_too.hidden.shape == (2, 2, 8, 8, 8)
    plain = UnlabelledPatches(masked, [second], (8, 8, 8), num_patches=2, batch_size=2, seed=0)
    assert plain[0].hidden is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 39))
def test_a_box_stays_inside_a_side_that_is_long_enough(side, length, middle):
    start = fit_start(middle - side // 2, side, length)
    if side <= length:
        assert 0 <= start <= length - side
        if side // 2 <= middle <= length - side:  # far enough from both ends
            assert start == middle - side // 2
    else:
        before, behind = -start, start + side - length
        assert before in (behind, behind - 1, behind + 1)
        assert min(before, behind) >= 0


def test_boxes_are_centred_on_an_anchor():
    anchors = np.array([[10, 11, 12]], np.int16)
    box = draw_box(anchors, (30, 30, 30), (8, 6, 5), generator_for(0))
    assert (box.start, box.size) == ((6, 8, 10), (8, 6, 5))


@pytest.mark.parametrize(("count", "most"), [(2, 1), (3, 1), (4, 2), (7, 3)])
def test_volumes_of_a_batch_differ_as_long_as_there_are_enough(store, count, most):
    drawn = draw_different(len(store.records()), count, generator_for(count))
    assert len(drawn) == count
    assert max(drawn.count(name) for name in drawn) == most


def test_a_margin_surrounds_the_patch_without_moving_it(store):
    plain, wide = labelled(store)[0], labelled(store, margin=(1, 2, 3))[0]
    assert wide[0].shape == (2, 1, 10, 12, 14)
    assert torch.equal(wide[0][:, :, 1:-1, 2:-2, 3:-3], plain[0])
    assert torch.equal(wide[1][:, 1:-1, 2:-2, 3:-3], plain[1])


def test_voxels_at_the_border_of_a_volume_are_trained_on(store):
    record = store.records()[0]
    seen = np.zeros(record.shape, bool)
    patches = labelled(store, records=[record], batch_size=1, margin=(2, 2, 2), labelled_share=0.0)
    reads = []
    original = store.read_patch
    patches.store.read_patch = lambda record, box: (reads.append(box), original(record, box))[1]
    try:
        for index in range(300):
            patches[index]
    finally:
        del patches.store.read_patch
    for box in reads:
        inner = tuple(slice(a + 2, b - 2) for a, b in zip(box.start, box.stop, strict=True))
        seen[inner] = True
    for axis in range(3):
        assert seen.take(0, axis).any()
        assert seen.take(-1, axis).any()

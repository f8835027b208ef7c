"""CT, MR or PET, and what becomes of the voxels."""

import numpy as np
import pytest
import torch

from misfm.data.intensity import (
    IntensityRule,
    Normalisation,
    content_mask,
    detect,
    fit,
    kind_of_name,
    normalise,
    patient_channel,
)
from misfm.volume import Volume


def volume(data):
    return Volume(np.asarray(data)[None], np.eye(4))


def ct():
    data = np.full((8, 9, 10), -1000, np.int16)
    data[2:6, 2:6, 2:6] = 40
    data[3, 3, 3] = 1200
    return volume(data)


def mr(dtype=np.float32):
    generator = np.random.default_rng(0)
    data = np.abs(generator.normal(5, 2, (16, 18, 20)))
    data[2:14, 2:14, 2:14] = generator.normal(600, 100, (12, 12, 12))
    return volume(data.astype(dtype))


def test_ct_and_mr_are_told_apart_by_their_voxels():
    assert detect(ct()) == "ct"
    assert detect(mr()) == "mr"
    assert detect(mr(np.int16)) == "mr"
    # z-scored images have fractions and no HU of air
    assert detect(volume(np.random.default_rng(0).normal(0, 1, (5, 5, 5)).astype(np.float32))) == "mr"
    # interpolated CT has fractions too, but its air is at -1000
    assert detect(volume(ct().data[0] * np.float32(0.99371))) == "ct"


def test_dicom_modality_decides_unless_the_voxels_are_no_hounsfield_units():
    crop_without_air = volume(np.array([[[-90, 40], [60, 80]]], np.int16))
    assert detect(crop_without_air, "CT") == "ct"
    assert detect(crop_without_air, "MR") == "mr"
    assert detect(ct(), "MR") == "mr"
    assert detect(mr(), "CT") == "mr"
    assert detect(mr(), "PT") == "pet"


def test_ct_window_becomes_minus_one_to_one():
    default = fit(IntensityRule(kind="ct"), ct())
    assert default.apply(np.array([-3000, -1000, 0, 500, 1000, 3000], np.int16)) == pytest.approx(
        [-1, -1, 0, 0.5, 1, 1]
    )
    narrow = fit(IntensityRule(kind="ct", window=(-200, 600)), ct())
    assert narrow.apply(np.array([-200.0, 200, 600])) == pytest.approx([-1, 0, 1])


def test_mr_content_has_zero_mean_and_unit_deviation():
    image = mr()
    image.data[0, 4, 4, 4] = 1e6
    rule = fit(IntensityRule(kind="mr"), image)
    content = rule.apply(image.data)[0][content_mask(image, "mr")]
    assert content.mean() == pytest.approx(0, abs=0.05)
    assert content.std() == pytest.approx(1, abs=0.05)
    assert np.abs(rule.apply(image.data)).max() <= 5


@pytest.mark.parametrize("factor", [1e-3, 1, 1e4])
def test_mr_does_not_depend_on_the_scale_of_the_file(factor):
    image = mr()
    scaled = volume(image.data[0] * np.float32(factor))
    rule = IntensityRule(kind="mr")
    expected = fit(rule, image).apply(image.data)
    assert fit(rule, scaled).apply(scaled.data) == pytest.approx(expected, abs=1e-3)


def pet(scale=1.0):
    """Air, a body of uptake 1, an organ of 8 and a lesion of 30."""
    data = np.random.default_rng(0).gamma(1, 0.01, (20, 20, 20)).astype(np.float32)
    data[3:17, 3:17, 3:17] = 1
    data[5:7, 5:7, 5:7] = 8
    data[9, 9, 9] = 30
    return volume(data * np.float32(scale))


@pytest.mark.parametrize("scale", [1e-4, 1, 2e5])
def test_pet_is_in_multiples_of_the_median_uptake_and_keeps_its_lesions(scale):
    image = pet(scale)
    out = fit(IntensityRule(kind="pet"), image).apply(image.data)[0]
    assert out[4, 4, 4] == pytest.approx(0, abs=1e-4)
    assert out[0].max() < -0.7
    assert out[5, 5, 5] == pytest.approx(np.arcsinh(8) - np.arcsinh(1), abs=1e-3)
    assert out[9, 9, 9] == pytest.approx(np.arcsinh(30) - np.arcsinh(1), abs=1e-3)


def test_pet_without_uptake_or_below_zero_stays_finite():
    data = np.full((4, 4, 4), -2, np.float32)
    data[0, 0, 0] = -1
    for image in (volume(data), volume(np.zeros((4, 4, 4), np.float32))):
        assert np.isfinite(fit(IntensityRule(kind="pet"), image).apply(image.data)).all()


def test_arrays_and_tensors_of_pet_are_normalised_alike():
    image = pet()
    rule = fit(IntensityRule(kind="pet"), image)
    assert rule.apply(torch.from_numpy(image.data)).numpy() == pytest.approx(rule.apply(image.data), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("nonorm", [0, 5, 255]), ("rescale_to_0_1", [0, 5 / 255, 1]), ("rgb_to_0_1", [0, 5 / 255, 1])],
)
def test_names_of_nnunet_normalise_as_there(kind, expected):
    image = volume(np.array([[[0, 5, 255]]], np.int16))
    assert fit(IntensityRule(kind=kind), image).apply(image.data).ravel() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("CT", "ct"), (" ct ", "ct"), ("CTres", "mr"), ("T1", "mr"), ("zscore", "mr")),
        *(("PET", "pet"), ("PT", "pet"), ("FDG-PET", "pet"), ("SUV_bw", "pet"), ("PTV", "mr")),
        *(("noNorm", "nonorm"), ("rescale_to_0_1", "rescale_to_0_1"), ("rgb_to_0_1", "rgb_to_0_1")),
    ],
)
def test_names_of_channels_say_what_they_are(name, kind):
    assert kind_of_name(name) == kind


def test_a_normalisation_without_a_unit_is_written_as_before():
    plain = Normalisation(lower=-1, upper=1, shift=0, scale=1)
    assert plain.model_dump_json() == '{"lower":-1.0,"upper":1.0,"shift":0.0,"scale":1.0}'
    curved = plain.model_copy(update={"unit": 2.0})
    assert Normalisation.model_validate_json(curved.model_dump_json()) == curved


def test_ct_outlines_the_patient_and_without_it_the_first_channel_that_shows_anything():
    both = Volume(np.concatenate([pet().data, np.full((1, 20, 20, 20), -1000, np.float32)]), np.eye(4))
    assert patient_channel(both, ["pet", "ct"])[1] == "ct"
    empty_first = Volume(both.data[::-1].copy(), np.eye(4))
    channel, kind = patient_channel(empty_first, ["mr", "mr"])
    assert kind == "mr"
    assert np.array_equal(channel.data[0], pet().data[0])


@pytest.mark.parametrize("kind", ["ct", "mr", "pet", "nonorm", "rescale_to_0_1", "rgb_to_0_1"])
@pytest.mark.parametrize("value", [-1000, 0, 7.5, 1e30])
def test_constant_volumes_never_become_nan(kind, value):
    image = volume(np.full((4, 4, 4), value, np.float32))
    out = fit(IntensityRule(kind=kind), image).apply(image.data)
    assert np.isfinite(out).all()


def test_numpy_and_torch_agree_and_inputs_are_kept():
    rule = Normalisation(lower=-5, upper=7, shift=1, scale=3)
    for dtype in (np.int16, np.float32, np.float64):
        voxels = np.arange(-10, 10, dtype=dtype)
        before = voxels.copy()
        tensor = torch.from_numpy(voxels)
        assert rule.apply(voxels).dtype == np.float32
        assert rule.apply(tensor).dtype == torch.float32
        assert rule.apply(tensor).numpy() == pytest.approx(rule.apply(voxels))
        assert np.array_equal(voxels, before)


def test_each_channel_has_its_own_normalisation():
    rules = (
        Normalisation(lower=0, upper=1, shift=0, scale=1),
        Normalisation(lower=0, upper=9, shift=3, scale=2),
    )
    out = normalise(rules, np.full((2, 1, 1, 1), 5, np.int16))
    assert out.ravel() == pytest.approx([1, 1])


def test_a_normalisation_survives_json():
    rule = fit(IntensityRule(kind="mr"), mr())
    assert Normalisation.model_validate_json(rule.model_dump_json()) == rule

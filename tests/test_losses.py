"""Losses against values worked out by hand."""

import math

import pytest
import torch

from misfm.losses import (
    IGNORE,
    MAX_WEIGHT,
    cross_entropy_loss,
    deep_supervision_weights,
    hard_dice,
    hard_region_dice,
    region_loss,
    segmentation_loss,
    shrink,
    soft_dice_loss,
)
from misfm.seeding import generator_for


def logits_for(probabilities):
    """Logits (1, K, 1, 1, N) of N voxels whose class probabilities are the rows."""
    return torch.tensor(probabilities).log().T[None, :, None, None, :]


def labels_for(classes):
    return torch.tensor(classes)[None, None, None, :]


FOUR = logits_for([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.125, 0.125, 0.75], [0.25, 0.25, 0.5]])
TRUTH = labels_for([0, 1, 2, 0])
# Class 0: overlap 0.5 + 0.25, predicted 1.125, true 2. Class 1: 0.5, 1.125, 1. Class 2: 0.75, 1.75, 1.
DICE = [2 * 0.75 / 3.125, 2 * 0.5 / 2.125, 2 * 0.75 / 2.75]


def test_soft_dice_by_hand():
    assert float(soft_dice_loss(FOUR, TRUTH, background=True)) == pytest.approx(1 - sum(DICE) / 3, abs=1e-4)
    assert float(soft_dice_loss(FOUR, TRUTH, background=False)) == pytest.approx(
        1 - sum(DICE[1:]) / 2, abs=1e-4
    )


def test_an_absent_class_scores_0_until_hardly_anything_of_it_is_predicted():
    truth = labels_for([0, 0])
    for share, dice in ((0.25, 0.0), (1e-3, 0.005), (1e-8, 1.0)):
        loss = soft_dice_loss(logits_for([[1 - share, share]] * 2), truth, background=False)
        assert float(loss) == pytest.approx(1 - dice, abs=3e-3)


def test_cross_entropy_by_hand():
    expected = -(math.log(0.5) + math.log(0.5) + math.log(0.75) + math.log(0.25)) / 4
    assert float(cross_entropy_loss(FOUR, TRUTH)) == pytest.approx(expected, rel=1e-6)


def test_balanced_cross_entropy_by_hand():
    """Class 0 has three quarters of the voxels and class 1 one: roots of 4/3 and 4 are the weights."""
    logits = logits_for([[0.5, 0.5], [0.8, 0.2], [0.4, 0.6], [0.75, 0.25]])
    truth = labels_for([0, 0, 1, 0])
    common, rare = math.sqrt(4 / 3), math.sqrt(4)
    expected = -(common * math.log(0.5 * 0.8 * 0.75) + rare * math.log(0.6)) / (3 * common + rare)
    assert float(cross_entropy_loss(logits, truth, balance=0.5)) == pytest.approx(expected, rel=1e-6)
    assert float(cross_entropy_loss(logits, truth, balance=1e-9)) == pytest.approx(
        float(cross_entropy_loss(logits, truth)), rel=1e-6
    )


def test_full_balance_counts_each_class_alike_up_to_a_limit():
    logits, few, many = torch.zeros(1, 2, 1, 1, 100), 5, 20
    logits[:, 1] = 1.0  # class 1 everywhere
    for count, weight in ((many, 5.0), (few, MAX_WEIGHT)):
        truth = labels_for([1] * count + [0] * (100 - count))
        ratio = weight * count / (100 / (100 - count) * (100 - count))
        right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.e)
        expected = (ratio * right + wrong) / (ratio + 1)
        assert float(cross_entropy_loss(logits, truth, balance=1.0)) == pytest.approx(expected, rel=1e-5)


def test_ignored_voxels_count_nowhere():
    some = labels_for([0, IGNORE, 2, IGNORE])
    kept, kept_labels = FOUR[..., [0, 2]], TRUTH[..., [0, 2]]
    for balance in (0.0, 0.5):
        assert torch.isclose(
            cross_entropy_loss(FOUR, some, balance=balance),
            cross_entropy_loss(kept, kept_labels, balance=balance),
        )
    assert torch.isclose(
        soft_dice_loss(FOUR, some, background=True), soft_dice_loss(kept, kept_labels, background=True)
    )
    assert torch.equal(hard_dice(FOUR, some).nan_to_num(-1), hard_dice(kept, kept_labels).nan_to_num(-1))
    logits = FOUR.clone().requires_grad_()
    sum(segmentation_loss(logits, some, background=True).values()).backward()
    assert float(logits.grad[..., [1, 3]].abs().max()) == 0
    assert float(logits.grad[..., [0, 2]].abs().min()) > 0


def test_a_batch_without_known_voxels_has_a_loss_and_no_gradient():
    logits = FOUR.clone().requires_grad_()
    loss = sum(segmentation_loss(logits, torch.full_like(TRUTH, IGNORE)).values())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert float(logits.grad.abs().max()) == 0


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_everything():
    labels = torch.randint(0, 3, (2, 4, 4, 4), generator=generator_for(0))
    perfect = 50 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    wrong = perfect.roll(1, 1)
    for loss in segmentation_loss(perfect, labels, background=True).values():
        assert float(loss) == pytest.approx(0, abs=1e-5)
    assert float(soft_dice_loss(wrong, labels, background=True)) == pytest.approx(1, abs=1e-5)


def test_a_class_in_neither_scores_one():
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    logits = torch.tensor([60.0, -60.0, -60.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2)
    assert float(soft_dice_loss(logits, labels, background=False)) == pytest.approx(0, abs=1e-5)
    assert hard_dice(logits, labels).isnan().tolist() == [False, True, True]


def test_sums_run_over_the_batch_not_over_each_sample():
    logits, labels = torch.cat([FOUR, -FOUR]), torch.cat([TRUTH, TRUTH])
    side_by_side = torch.cat([FOUR, -FOUR], dim=-1)
    together = soft_dice_loss(side_by_side, torch.cat([TRUTH, TRUTH], dim=-1), background=True)
    assert torch.isclose(soft_dice_loss(logits, labels, background=True), together)


def test_both_terms_weigh_half():
    terms = segmentation_loss(FOUR, TRUTH, background=True)
    assert torch.isclose(terms["dice_loss"], soft_dice_loss(FOUR, TRUTH, background=True) / 2)
    assert torch.isclose(terms["cross_entropy"], cross_entropy_loss(FOUR, TRUTH) / 2)


@pytest.mark.parametrize(
    ("num_outputs", "expected"), [(1, [1]), (2, [2 / 3, 1 / 3]), (4, [8 / 15, 4 / 15, 2 / 15, 1 / 15])]
)
def test_deep_supervision_halves_from_level_to_level(num_outputs, expected):
    assert deep_supervision_weights(num_outputs) == pytest.approx(expected)


def test_deep_supervision_is_the_weighted_mean_over_the_outputs():
    generator = generator_for(1)
    labels = torch.randint(-1, 3, (2, 8, 8, 6), generator=generator)
    sizes = [(8, 8, 6), (4, 4, 6), (2, 2, 3)]
    outputs = [torch.randn(2, 3, *size, generator=generator) for size in sizes]
    coarse = [labels, labels[:, ::2, ::2], labels[:, ::4, ::4, ::2]]
    terms = segmentation_loss(outputs, labels)
    expected = [segmentation_loss(*pair) for pair in zip(outputs, coarse, strict=True)]
    for name, value in terms.items():
        mean = (4 * expected[0][name] + 2 * expected[1][name] + expected[2][name]) / 7
        assert torch.isclose(value, mean)


def test_coarser_targets_of_odd_sizes_take_nearest_voxels():
    labels = torch.arange(7).view(1, 1, 1, 7)
    assert shrink(labels, (1, 1, 4)).flatten().tolist() == [0, 1, 3, 5]
    assert shrink(labels, (1, 1, 7)) is labels


def test_losses_are_float32_under_lower_precision():
    terms = segmentation_loss(FOUR.bfloat16(), TRUTH)
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_hard_dice_by_hand():
    predicted = [0, 1, 1, 2, 2, 2]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 4).T[None, :, None, None].float()
    dice = hard_dice(logits, labels_for([0, 0, 1, 2, 2, IGNORE]))
    assert dice[:3].tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    assert math.isnan(dice[3])


def one_sample(share, label):
    """Logits (1, K, 1, 1, 1) of the given probabilities, and the label of that voxel."""
    return torch.tensor(share).log().view(1, -1, 1, 1, 1), torch.tensor(label).view(1, 1, 1, 1)


def test_a_class_that_was_not_annotated_is_part_of_the_background():
    logits, target = one_sample([0.2, 0.5, 0.3], 0)
    annotated = torch.tensor([[True, False, True]])
    terms = segmentation_loss(logits, target, annotated=annotated)
    # Background is 0.2 + 0.5; of the labels only the third class counts, of which 0.3 is wrong.
    assert float(terms["cross_entropy"]) == pytest.approx(-math.log(0.7) / 2, abs=1e-6)
    assert float(terms["dice_loss"]) == pytest.approx(0.5, abs=1e-4)


def test_samples_annotated_for_different_classes_teach_only_these():
    """Against the mean of what a loop over voxels gives, two samples, one class annotated in each."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, 4, generator=generator)
    annotated = torch.tensor([[True, True, False], [True, False, True]])
    target = torch.randint(0, 2, (2, 2, 3, 4), generator=generator)
    target[1] *= 2
    target[0, 0, 0, 0] = target[1, 1, 1, 1] = IGNORE
    entropy, voxels, overlap, sizes = 0.0, 0, [0.0, 0.0], [0.0, 0.0]
    for sample, own in ((0, 1), (1, 2)):
        shares = logits[sample].softmax(0).flatten(1).T
        for share, label in zip(shares, target[sample].flatten().tolist(), strict=True):
            if label != IGNORE:
                entropy -= math.log(share[own] if label else 1 - share[own])
                voxels += 1
                overlap[own - 1] += float(share[own]) * (label == own)
                sizes[own - 1] += float(share[own]) + (label == own)
    dice = [2 * both / size for both, size in zip(overlap, sizes, strict=True)]
    terms = segmentation_loss(logits, target, annotated=annotated)
    assert float(terms["cross_entropy"]) == pytest.approx(entropy / voxels / 2, abs=1e-5)
    assert float(terms["dice_loss"]) == pytest.approx((1 - sum(dice) / 2) / 2, abs=1e-5)


def test_no_gradient_tells_background_from_what_was_not_annotated():
    logits = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    coarse = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    target = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    target[:, :2] = 1
    annotated = torch.tensor([[True, True, False]])
    sum(segmentation_loss([logits, coarse], target, annotated=annotated).values()).backward()
    for level in (logits, coarse):
        assert level.grad.isfinite().all()
        assert torch.allclose(level.grad[:, 0], level.grad[:, 2])
        assert level.grad[:, 1].abs().min() > 0


def test_a_pasted_organ_that_was_not_annotated_is_background():
    logits, target = one_sample([0.2, 0.5, 0.3], 1)
    annotated = torch.tensor([[True, False, True]])
    terms = segmentation_loss(logits, target, annotated=annotated)
    assert float(terms["cross_entropy"]) == pytest.approx(-math.log(0.7) / 2, abs=1e-6)
    nothing = segmentation_loss(logits, target, annotated=torch.tensor([[True, False, False]]))
    assert [float(term) for term in nothing.values()] == pytest.approx([0, 0], abs=1e-6)


def test_where_all_is_annotated_nothing_changes():
    annotated = torch.ones(FOUR.shape[:2], dtype=torch.bool)
    for background in (False, True):
        for name, term in segmentation_loss(FOUR, TRUTH, background=background).items():
            same = segmentation_loss(FOUR, TRUTH, background=background, annotated=annotated)[name]
            assert torch.allclose(term, same, rtol=1e-6)


REGIONS = torch.tensor([[False, True, True], [False, False, True]])
"""Classes 1 and 2 are the outer region, class 2 the inner one."""


def region_loops(logits, target, regions, keep):
    """Dice and binary cross-entropy of regions, voxel by voxel."""
    dice, entropies = [], []
    for region, row in enumerate(regions):
        overlap = probabilities = inside = 0.0
        for sample in range(len(target)):
            for logit, label in zip(logits[sample, region].flatten(), target[sample].flatten(), strict=True):
                if label == IGNORE or not keep[sample][region]:
                    continue
                p, y = float(logit.sigmoid()), float(row[label])
                overlap, probabilities, inside = overlap + p * y, probabilities + p, inside + y
                entropies.append(-(y * math.log(p) + (1 - y) * math.log(1 - p)))
        if any(keep[sample][region] for sample in range(len(target))):
            dice.append((2 * overlap + 1e-5) / (probabilities + inside + 1e-5))
    return 0.5 * (1 - sum(dice) / len(dice)), 0.5 * sum(entropies) / len(entropies)


@pytest.mark.parametrize("annotated", [None, [[True, True], [True, False]], [[True, False], [True, False]]])
def test_the_loss_of_regions_is_dice_and_binary_cross_entropy(annotated):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 3, 2, 2, generator=generator)
    target = torch.randint(-1, 3, (2, 3, 2, 2), generator=generator)
    keep = annotated or [[True, True], [True, True]]
    given = None if annotated is None else torch.tensor(annotated)
    terms = region_loss(logits, target, REGIONS, annotated=given)
    dice, entropy = region_loops(logits, target, REGIONS, keep)
    assert float(terms["dice_loss"]) == pytest.approx(dice, rel=1e-5)
    assert float(terms["binary_cross_entropy"]) == pytest.approx(entropy, rel=1e-5)


def test_deep_supervision_and_balance_of_regions():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    target[0, 0, 0, 0] = 2
    fine, coarse = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 2, 2, 2)
    both, first = (region_loss(outputs, target, REGIONS) for outputs in ([fine, coarse], fine))
    second = region_loss(coarse, shrink(target, (2, 2, 2)), REGIONS)
    for name, term in both.items():
        assert float(term) == pytest.approx(float((2 * first[name] + second[name]) / 3))
    wrong = fine.clone()
    wrong[0, :, 0, 0, 0] = -5  # the rare voxel of both regions, one in 64
    rare, common = 8.0, math.sqrt(64 / 63)
    expected = (rare * math.log1p(math.exp(5)) + 63 * common * math.log(2)) / (rare + 63 * common)
    balanced = region_loss(wrong, target, REGIONS, balance=0.5)["binary_cross_entropy"]
    assert float(balanced) == pytest.approx(0.5 * expected)


def test_nothing_known_of_regions_is_no_loss():
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    loss = sum(region_loss(logits, torch.full((1, 2, 2, 2), IGNORE), REGIONS, balance=0.5).values())
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_the_hard_dice_of_regions():
    target = torch.tensor([[[[0, 1, 2, IGNORE]]]])
    logits = torch.tensor([[[[[-1.0, 1, -1, 1]]], [[[-1.0, -1, 1, -1]]]]])
    assert hard_region_dice(logits, target, REGIONS, None).tolist() == pytest.approx([2 / 3, 1])
    only = hard_region_dice(logits, target, REGIONS, torch.tensor([[True, False]]))
    assert only[0] == pytest.approx(2 / 3)
    assert only[1].isnan()

"""Loss terms: cases worked by hand, limits with a known answer, gradients, and extreme values."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dasolib.losses import (
    class_balanced_weights,
    cross_entropy,
    ldam_loss,
    ldam_margins,
    mutual_information_loss,
    mutual_information_triplet_loss,
    squared_error,
)


def logits_and_target(n=6, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randint(k, (n,), generator=generator)


def random_probs(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, k, dtype=torch.float64, generator=generator)).softmax(dim=-1)


# --- cross-entropy and squared error ---------------------------------------------------------------------------------


def test_cross_entropy_of_odds_one_to_three_is_the_log_of_four():
    """softmax(0, log 3) = (1/4, 3/4): the loss of class 0 is log 4 and that of class 1 log 4/3."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    got = cross_entropy(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.tensor((math.log(4) + math.log(4 / 3)) / 2))


def test_cross_entropy_of_probabilities_is_their_mean_over_classes():
    logits = torch.tensor([[0.0, math.log(3)]])
    got = cross_entropy(logits, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(got, torch.tensor(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))


def test_uniform_weights_give_plain_cross_entropy():
    logits, target = logits_and_target()
    plain = F.cross_entropy(logits, target)
    torch.testing.assert_close(cross_entropy(logits, target), plain)
    torch.testing.assert_close(cross_entropy(logits, target, row_weight=torch.ones(6).double()), plain)


def test_masked_rows_still_count_in_the_denominator():
    logits, target = logits_and_target()
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]).double()
    got = cross_entropy(logits, target, row_weight=mask)
    torch.testing.assert_close(got, F.cross_entropy(logits[[0, 3]], target[[0, 3]], reduction="sum") / 6)


def test_another_denominator_takes_the_place_of_the_number_of_rows():
    logits, target = logits_and_target()
    got = cross_entropy(logits, target, denominator=5)
    torch.testing.assert_close(got, F.cross_entropy(logits, target) * 6 / 5)


def test_a_batch_without_a_confident_row_gives_zero_loss_and_zero_gradient():
    logits, target = logits_and_target()
    loss = cross_entropy(logits, target, row_weight=torch.zeros(6).double())
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_gradient_of_cross_entropy_is_prediction_minus_target_over_rows():
    logits, target = logits_and_target()
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 0.0]).double()
    cross_entropy(logits, target, row_weight=weight).backward()
    want = weight[:, None] * (logits.detach().softmax(dim=-1) - F.one_hot(target, 4)) / 6
    torch.testing.assert_close(logits.grad, want)


def test_cross_entropy_stays_finite_for_logits_of_a_million():
    logits = torch.tensor([[1e6, -1e6], [1e6, -1e6]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1, 0]))
    loss.backward()
    assert loss == 1e6
    assert torch.isfinite(logits.grad).all()


def test_squared_error_is_a_mean_over_classes_and_rows():
    """Rows: ((.1)^2 + (.1)^2) / 2 = .01 and ((.5)^2 + (.5)^2) / 2 = .25; with weights (2, 0) and n = 2: .01."""
    probs, target = torch.tensor([[0.9, 0.1], [1.0, 0.0]]), torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    torch.testing.assert_close(squared_error(probs, target), torch.tensor(0.13))
    torch.testing.assert_close(squared_error(probs, target), F.mse_loss(probs, target))
    weighted = squared_error(probs, target, row_weight=torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(weighted, torch.tensor(0.01))
    torch.testing.assert_close(squared_error(probs, target, denominator=4), torch.tensor(0.065))


def test_squared_error_of_equal_probabilities_has_no_gradient():
    probs = random_probs(3, 4, 0).requires_grad_()
    squared_error(probs, probs.detach()).backward()
    assert torch.equal(probs.grad, torch.zeros_like(probs))


# --- class weights and margins ---------------------------------------------------------------------------------------


def test_class_balanced_weights_match_a_case_worked_by_hand():
    """Beta 1/2, counts (1, 2): (1/2) / (1/2) = 1 and (1/2) / (3/4) = 2/3; scaled to the sum 2: 1.2 and .8."""
    got = class_balanced_weights(torch.tensor([1, 2]), 0.5)
    torch.testing.assert_close(got, torch.tensor([1.2, 0.8]))


@pytest.mark.parametrize("counts", [(1, 1, 1), (1500, 15, 1), (500, 299, 179, 5)])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999999, 1.0])
def test_class_balanced_weights_sum_to_the_number_of_classes_and_favour_the_rare(counts, beta):
    got = class_balanced_weights(torch.tensor(counts), beta)
    assert torch.isclose(got.sum(), torch.tensor(float(len(counts))))
    assert (got > 0).all()
    assert (got.diff() >= 0).all()  # counts fall


def test_beta_zero_weighs_all_classes_one_exactly():
    assert torch.equal(class_balanced_weights(torch.tensor([500, 3, 1]), 0.0), torch.ones(3))


def test_weights_tend_to_inverse_frequency_as_beta_tends_to_one():
    counts = torch.tensor([1500, 15, 1])
    inverse = 1 / counts.double()
    want = (inverse * 3 / inverse.sum()).float()
    torch.testing.assert_close(class_balanced_weights(counts, 1.0), want)
    torch.testing.assert_close(class_balanced_weights(counts, 1 - 1e-10), want)


def test_equal_counts_weigh_all_classes_one():
    torch.testing.assert_close(class_balanced_weights(torch.tensor([7, 7]), 0.999), torch.ones(2))


def test_margins_grow_with_the_inverse_fourth_root_of_the_count():
    """Counts (81, 16, 1): 1/3, 1/2 and 1, scaled so that the largest is .6."""
    got = ldam_margins(torch.tensor([81, 16, 1]), 0.6)
    torch.testing.assert_close(got, torch.tensor([0.2, 0.3, 0.6]))


# --- LDAM ------------------------------------------------------------------------------------------------------------


def test_ldam_takes_the_margin_off_the_true_logit_and_scales_all():
    """Logits (1, 1), class 0, margin 1, scale log 3: (0, log 3), so the loss is log 4."""
    got = ldam_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), torch.tensor([1.0, 5.0]), scale=math.log(3))
    torch.testing.assert_close(got, torch.tensor(math.log(4)))


def test_ldam_without_margins_at_scale_one_is_cross_entropy():
    logits, target = logits_and_target()
    got = ldam_loss(logits, target, torch.zeros(4), scale=1)
    torch.testing.assert_close(got, F.cross_entropy(logits, target))


def test_weighted_ldam_divides_by_the_sum_of_the_weights():
    logits, target = logits_and_target()
    weight = torch.tensor([0.1, 0.5, 1.0, 2.4]).double()
    rows = torch.stack([ldam_loss(row, y, torch.ones(4), scale=2) for row, y in zip(logits.split(1), target.split(1),
                                                                                   strict=True)])
    got = ldam_loss(logits, target, torch.ones(4), scale=2, class_weight=weight)
    torch.testing.assert_close(got, (rows * weight[target]).sum() / weight[target].sum())


def test_a_larger_margin_makes_a_larger_loss():
    logits, target = logits_and_target()
    values = [float(ldam_loss(logits.detach(), target, torch.full((4,), m), scale=30)) for m in (0.0, 0.25, 0.5)]
    assert values == sorted(values) and values[0] < values[2]


def test_the_gradient_of_ldam_is_that_of_scaled_cross_entropy():
    logits, target = logits_and_target()
    margins = torch.tensor([0.1, 0.2, 0.3, 0.5]).double()
    ldam_loss(logits, target, margins, scale=30).backward()
    shifted = 30 * (logits.detach() - margins * F.one_hot(target, 4))
    torch.testing.assert_close(logits.grad, 30 * (shifted.softmax(dim=-1) - F.one_hot(target, 4)) / 6)


# --- mutual information ----------------------------------------------------------------------------------------------


def test_independent_views_share_no_information():
    probs = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    assert abs(mutual_information_loss(probs, probs)) < 1e-12


@pytest.mark.parametrize("k", [2, 3, 10])
def test_sure_and_equal_predictions_of_all_classes_share_log_k(k):
    sure = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(mutual_information_loss(sure, sure), torch.tensor(-math.log(k), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_mutual_information_is_symmetric_and_bounded(seed):
    p, q = random_probs(20, 4, seed), random_probs(20, 4, seed + 100)
    got = mutual_information_loss(p, q)
    torch.testing.assert_close(got, mutual_information_loss(q, p))
    assert -math.log(4) <= got <= 1e-12


def test_mutual_information_equals_the_sum_over_the_joint_distribution():
    p, q = random_probs(7, 3, 1), random_probs(7, 3, 2)
    joint = sum(np.outer(a, b) + np.outer(b, a) for a, b in zip(p.numpy(), q.numpy(), strict=True))
    joint = joint / joint.sum()
    want = -(joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
    assert abs(float(mutual_information_loss(p, q)) - want) < 1e-12


def test_the_triplet_loss_is_the_mean_over_the_three_pairs():
    p, q, r = (random_probs(7, 3, seed) for seed in range(3))
    want = sum(mutual_information_loss(a, b) for a, b in ((p, q), (p, r), (q, r))) / 3
    torch.testing.assert_close(mutual_information_triplet_loss(p, q, r), want)


def test_certain_predictions_of_one_class_give_finite_gradients():
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    probs = logits.softmax(dim=-1)
    mutual_information_loss(probs, probs).backward()
    assert torch.isfinite(logits.grad).all()

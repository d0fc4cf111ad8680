"""Confidence, semantic similarity and blending: cases worked by hand, invariants, limits, errors."""

import pytest
import torch

from dasolib.pseudo_labels import (
    blend,
    blend_weights,
    confident_labels,
    count_classes,
    one_hot,
    semantic_logits,
    sharpen,
)

LINEAR, SEMANTIC = torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([[0.2, 0.8], [0.5, 0.5]])


def random_probs(n, k, seed):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(dim=-1)


# --- confidence ------------------------------------------------------------------------------------------------------


def test_a_confidence_equal_to_the_threshold_counts():
    probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
    target, mask = confident_labels(probs, 0.75)
    assert target.tolist()[:2] == [0, 1]
    assert mask.tolist() == [1, 1, 0]


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_extreme_thresholds_keep_all_rows_or_none(threshold, share):
    _, mask = confident_labels(random_probs(50, 4, 0), threshold)
    assert mask.mean() == share


def test_fewer_rows_count_at_a_higher_threshold():
    probs = random_probs(200, 5, 1)
    kept = [confident_labels(probs, threshold)[1].sum() for threshold in (0.3, 0.5, 0.7, 0.95)]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1]


def test_each_class_may_have_its_own_threshold():
    """The threshold is that of the predicted class."""
    probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25]])
    target, mask = confident_labels(probs, torch.tensor([0.8, 0.7]))
    assert target.tolist() == [0, 1, 0] and mask.tolist() == [0, 1, 0]
    same = confident_labels(random_probs(50, 4, 0), torch.full((4,), 0.6))
    assert all(torch.equal(a, b) for a, b in zip(same, confident_labels(random_probs(50, 4, 0), 0.6), strict=True))


# --- sharpening ------------------------------------------------------------------------------------------------------


def test_sharpening_matches_a_case_worked_by_hand():
    """T = 1/2 squares: (.6, .3, .1) becomes (36, 9, 1) / 46. T = 2 takes roots: (.64, .36) becomes (8, 6) / 14."""
    torch.testing.assert_close(sharpen(torch.tensor([[0.6, 0.3, 0.1]]), 0.5), torch.tensor([[36.0, 9.0, 1.0]]) / 46)
    torch.testing.assert_close(sharpen(torch.tensor([[0.64, 0.36]]), 2), torch.tensor([[8.0, 6.0]]) / 14)


def test_a_temperature_of_one_changes_nothing():
    probs = random_probs(5, 3, 0)
    assert sharpen(probs, 1) is probs and sharpen(probs, 1.0) is probs


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0, 10.0])
def test_sharpened_rows_stay_probabilities_in_the_same_order(temperature):
    probs = random_probs(40, 6, 3)
    got = sharpen(probs, temperature)
    torch.testing.assert_close(got.sum(dim=-1), torch.ones(40))
    assert torch.equal(got.argsort(dim=-1), probs.argsort(dim=-1))
    surer = got.max(dim=-1).values > probs.max(dim=-1).values
    assert surer.all() if temperature < 1 else not surer.any()


def test_extreme_temperatures_give_the_most_likely_class_or_all_alike():
    probs = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(sharpen(probs, 0.01), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(sharpen(probs, 1e6), torch.full((1, 3), 1 / 3, dtype=torch.float64), atol=1e-5, rtol=0)


# --- semantic similarity ---------------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_over_the_temperature():
    """(3, 4) against (1, 0), (0, 2) and (-3, -4): cosines .6, .8 and -1; over .05: 12, 16 and -20."""
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]])
    got = semantic_logits(torch.tensor([[3.0, 4.0]]), prototypes, 0.05)
    torch.testing.assert_close(got, torch.tensor([[12.0, 16.0, -20.0]]))


@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
def test_similarity_is_bounded_and_ignores_lengths(temperature):
    generator = torch.Generator().manual_seed(0)
    feats, prototypes = torch.randn(30, 8, generator=generator), torch.randn(5, 8, generator=generator)
    got = semantic_logits(feats, prototypes, temperature)
    assert got.shape == (30, 5)
    assert (got.abs() <= (1 + 1e-5) / temperature).all()
    lengths = torch.rand(30, 1, generator=generator) + 0.1
    torch.testing.assert_close(semantic_logits(feats * lengths, prototypes * 7, temperature), got)


def test_a_class_never_seen_has_similarity_zero_and_is_not_excluded():
    got = semantic_logits(torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0.5)
    assert got.tolist() == [[-2.0, 0.0]]


def test_before_any_prototype_every_class_is_equally_similar():
    got = semantic_logits(torch.randn(4, 8), torch.zeros(5, 8), 0.05).softmax(dim=-1)
    torch.testing.assert_close(got, torch.full((4, 5), 0.2))


def test_the_gradient_of_the_similarity_reaches_the_features_and_turns_only_their_direction():
    feats = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prototypes = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    semantic_logits(feats, prototypes, 0.05)[:, 0].sum().backward()
    assert (feats.grad.norm(dim=1) > 0).all()
    along = (feats.grad * feats.detach()).sum(dim=1)  # a longer feature has the same cosine
    torch.testing.assert_close(along, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


# --- blend weights ---------------------------------------------------------------------------------------------------


def test_blend_weights_match_a_case_worked_by_hand():
    """Counts (16, 4, 1): at T = 2 the roots 4, 2, 1 over 4; at T = 1 the counts over 16; at T = .5 squares."""
    counts = torch.tensor([16.0, 4.0, 1.0])
    torch.testing.assert_close(blend_weights(counts, 2.0), torch.tensor([1.0, 0.5, 0.25]))
    torch.testing.assert_close(blend_weights(counts, 1.0), torch.tensor([1.0, 0.25, 0.0625]))
    torch.testing.assert_close(blend_weights(counts, 0.5), torch.tensor([1.0, 1 / 16, 1 / 256]))


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 1.5, 100.0])
@pytest.mark.parametrize("freq", [(1.0, 1.0, 1.0), (5.0, 0.0, 2.0), (1e-6, 1e6, 1.0), (12_800.0, 1.0, 0.0)])
def test_blend_weights_lie_in_the_unit_interval_and_follow_the_frequency(freq, temperature):
    got = blend_weights(torch.tensor(freq), temperature)
    assert ((got >= 0) & (got <= 1)).all()
    assert got[torch.tensor(freq).argmax()] == 1
    assert (got[torch.tensor(freq).argsort()].diff() >= 0).all()
    torch.testing.assert_close(blend_weights(torch.tensor(freq) / sum(freq), temperature), got)  # counts or shares


def test_a_class_not_seen_has_weight_zero_at_any_temperature():
    assert all(blend_weights(torch.tensor([3.0, 0.0]), T)[1] == 0 for T in (0.3, 1.5, 1000.0))


def test_extreme_temperatures_favour_all_seen_classes_or_the_most_frequent_alone():
    freq = torch.tensor([90.0, 9.0, 1.0])
    torch.testing.assert_close(blend_weights(freq, 1e6), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(blend_weights(freq, 1e-2), torch.tensor([1.0, 0.0, 0.0]))


# --- blending --------------------------------------------------------------------------------------------------------


def test_blend_matches_a_case_worked_by_hand():
    """Counts (8, 1), T = 3: weights (1, .5). Row 0 picks class 0, all semantic; row 1 class 1, half and half."""
    got = blend(LINEAR, SEMANTIC, blend_weights(torch.tensor([8.0, 1.0]), 3.0))
    torch.testing.assert_close(got, torch.tensor([[0.2, 0.8], [0.45, 0.55]]))


def test_the_weight_is_that_of_the_class_the_linear_label_picks():
    """The semantic label of row 0 picks class 1; were its weight taken, the row would stay linear."""
    got = blend(LINEAR[:1], SEMANTIC[:1], torch.tensor([1.0, 0.0]))
    assert torch.equal(got, SEMANTIC[:1])


def test_fixed_weights_of_zero_one_and_a_half_give_linear_semantic_and_their_mean():
    assert torch.equal(blend(LINEAR, SEMANTIC, 0.0), LINEAR)
    assert torch.equal(blend(LINEAR, SEMANTIC, 1.0), SEMANTIC)
    torch.testing.assert_close(blend(LINEAR, SEMANTIC, 0.5), (LINEAR + SEMANTIC) / 2)


def test_a_class_never_pseudo_labeled_keeps_its_linear_label():
    got = blend(LINEAR, SEMANTIC, blend_weights(torch.tensor([1.0, 0.0]), 1.5))
    assert torch.equal(got[1], LINEAR[1])


@pytest.mark.parametrize("temperature", [0.3, 1.5, 100.0])
@pytest.mark.parametrize("k", [2, 10, 100])
def test_blended_rows_stay_probabilities_between_their_two_sources(k, temperature):
    linear, semantic = random_probs(60, k, 0), random_probs(60, k, 1)
    freq = torch.randint(0, 50, (k,), generator=torch.Generator().manual_seed(2)).float()
    freq[0] = 50
    got = blend(linear, semantic, blend_weights(freq, temperature))
    torch.testing.assert_close(got.sum(dim=-1), torch.ones(60))
    assert (got >= torch.minimum(linear, semantic) - 1e-6).all()
    assert (got <= torch.maximum(linear, semantic) + 1e-6).all()


def test_a_blended_label_carries_no_gradient():
    linear = LINEAR.clone().requires_grad_()
    assert not blend(linear, SEMANTIC, torch.ones(2)).requires_grad


def test_blend_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"linear \(2, 2\), semantic \(1, 2\)"):
        blend(LINEAR, SEMANTIC[:1], 0.5)
    with pytest.raises(ValueError, match=r"linear \(2, 2\), weight \(3,\)"):
        blend(LINEAR, SEMANTIC, torch.ones(3))


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(0, 3), (1, 2), (200, 10)])
def test_counts_equal_bincount_and_include_absent_classes(n, k):
    target = torch.randint(0, max(k - 1, 1), (n,), generator=torch.Generator().manual_seed(0))
    got = count_classes(target, k)
    assert got.dtype == torch.int64
    assert torch.equal(got, torch.bincount(target, minlength=k))


def test_one_hot_rows_say_which_class_it_is():
    target = torch.tensor([2, 0, 1, 2])
    assert torch.equal(one_hot(target, 4).long(), torch.nn.functional.one_hot(target, 4))
    assert one_hot(target, 4).dtype == torch.bool

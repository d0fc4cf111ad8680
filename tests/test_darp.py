"""DARP: the solver against scipy and cases worked by hand, the table's refinement, and what a run does with it."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize
from torch._subclasses.fake_tensor import FakeTensorMode

from dasolib.pseudo_labels import PseudoLabels
from dasolib.rebalance.darp import (
    Darp,
    class_scale,
    fit_counts,
    keep_largest,
    refine_to_counts,
    scale_to_counts,
    secant_roots,
)
from tests.replay_primitives import float64
from tests.test_augment import RefuseWaits

GOLDEN = [Path(__file__).parent / "data" / "golden" / "fixmatch_darp.npz"]
if os.environ.get("DASO_GOLDEN"):
    GOLDEN += [Path(os.environ["DASO_GOLDEN"]) / f"{name}.npz" for name in ("fixmatch_darp", "remixmatch_darp")]


def random_probs(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, k, dtype=torch.float64, generator=generator)).softmax(dim=-1)


def labels_of(probs):
    return PseudoLabels(linear=probs, semantic=None, final=probs)


# --- what is kept, and its scale -------------------------------------------------------------------------------------


def test_the_largest_entries_are_kept():
    probs = random_probs(50, 3)
    got = keep_largest(probs, torch.tensor([7, 1, 49]))
    for column, kept in zip(probs.T, got.T, strict=True):
        assert column[kept].min() > column[~kept].max()
    assert got.sum(dim=0).tolist() == [7, 1, 49]


def test_of_equal_entries_no_more_are_kept():
    assert keep_largest(torch.full((100, 2), 0.5), torch.tensor([3, 99])).sum(dim=0).tolist() == [3, 99]


def test_no_class_keeps_more_images_than_there_are():
    assert keep_largest(random_probs(5, 2), torch.tensor([99, 0])).sum(dim=0).tolist() == [5, 0]


def test_the_kept_entries_are_scaled_to_the_target_exactly_up_to_eps():
    """Kept .9 + .6 = 1.5 for a target of 3: factor 2. A class that keeps nothing has the factor (t + eps) / eps."""
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64)
    kept = torch.tensor([[True, False], [True, False]])
    got = class_scale(probs, kept, torch.tensor([3.0, 0.5]).double(), eps=1e-3)
    torch.testing.assert_close(got, torch.tensor([3.001 / 1.501, 501.0]).double())


def test_an_image_that_no_class_keeps_is_uniform():
    probs = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    got = scale_to_counts(probs, torch.tensor([1.0, 1.0]), alpha=1.0)
    torch.testing.assert_close(got[2], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(("alpha", "n_kept"), [(1.0, [2, 0]), (2.0, [5, 1]), (0.1, [0, 0])])
def test_the_number_kept_is_rounded_down(alpha, n_kept):
    """Targets 2.7 and .7, times 1: 2 and 0; times 2, 5.4 and 1.4: 5 and 1; times .1: 0 and 0."""
    probs = random_probs(9, 2)
    got = scale_to_counts(probs, torch.tensor([2.7, 0.7]).double(), alpha=alpha, eps=1e-12)
    # Of the entries of class 0 only the kept ones exceed eps by much, unless class 1 keeps nothing of the row either.
    neither = torch.isclose(got[:, 0], got[:, 1])
    assert ((got[:, 0] > 0.01) & ~neither).sum() == n_kept[0]
    assert ((got[:, 1] > 0.01) & ~neither).sum() == n_kept[1]


# --- the secant method -----------------------------------------------------------------------------------------------


def test_a_linear_function_is_solved_by_the_first_step():
    got = secant_roots(lambda x: 2 * x - 6, torch.zeros(1).double(), iterations=1, tolerance=1e-9)
    torch.testing.assert_close(got, torch.tensor([3.0]).double())


def test_two_points_of_equal_value_end_halfway():
    """A constant is the same at 0 and 1e-4, its first two points: the search ends between them, and stays there."""
    got = secant_roots(torch.ones_like, torch.zeros(1).double(), iterations=5, tolerance=1e-9)
    torch.testing.assert_close(got, torch.tensor([5e-5]).double(), rtol=1e-12, atol=0)


FUNCTIONS = [
    lambda x: np.exp(-x) - 0.2,
    lambda x: np.exp(-0.01 * x) - 0.9,
    lambda x: 50 * np.exp(np.minimum(-3 * x, 700)) - 60,
    lambda x: x**3 - 2 * x - 5,
    lambda x: np.cos(x) - x,
    lambda x: np.exp(-5 * x) + 0.3 * np.exp(-0.1 * x) - 0.05,  # overshoots by far
]


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3, 1e-10])
@pytest.mark.parametrize("start", [0.0, 1.0, -0.7, 3.0])
def test_the_points_are_those_of_scipy_for_each_function_whatever_the_others_do(start, tolerance):
    """With a loose tolerance the results agree to rounding only if all steps are the same."""
    def together(x):
        return torch.tensor([f(one) for f, one in zip(FUNCTIONS, x.tolist(), strict=True)], dtype=torch.float64)

    start_of_all = torch.full((len(FUNCTIONS),), start, dtype=torch.float64)
    got = secant_roots(together, start_of_all, iterations=30, tolerance=tolerance)
    want = [optimize.newton(f, start, tol=tolerance, maxiter=30, disp=False) for f in FUNCTIONS]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-9, atol=1e-9)


def test_a_search_that_does_not_end_stops_after_its_iterations():
    """exp(-x) has no root: each step goes on to the right by nearly 1."""
    few, more = (secant_roots(lambda x: (-x).exp(), torch.zeros(1).double(), iterations=n, tolerance=0.1)
                 for n in (5, 10))
    assert few.isfinite().all()
    assert (more > few + 2).all()


# --- the fit of rows and columns -------------------------------------------------------------------------------------


def scipy_fit(probs, target, iterations):
    """The rounds written out a class at a time, with scipy's search."""
    entropy = -(probs * np.log(probs + 1e-6)).sum(axis=1)
    duals, starts = np.ones(len(target)), np.zeros(len(target))
    for _ in range(iterations):
        rows = (probs * np.exp(-np.outer(entropy, duals))).sum(axis=1)
        for k in range(len(target)):
            column = probs[:, k] / rows
            duals[k] = starts[k] = optimize.newton(
                lambda nu, column=column, want=target[k]: (column * np.exp(-nu * entropy)).sum() - want, starts[k],
                tol=0.1, maxiter=30,
            )  # fmt: skip
    fitted = probs * np.exp(-np.outer(entropy, duals))
    return fitted / fitted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("target", "iterations"), [([30, 20, 10], 10), ([20, 20, 20], 1), ([25, 15, 20], 3)])
def test_the_fit_takes_the_steps_of_a_search_per_class(target, iterations, seed):
    probs = random_probs(60, 3, seed)
    got = fit_counts(probs, torch.tensor(target).double(), iterations=iterations)
    np.testing.assert_allclose(got.numpy(), scipy_fit(probs.numpy(), np.array(target, dtype=float), iterations),
                               rtol=0, atol=1e-10)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_with_two_classes_the_fit_is_one_shift_of_the_logit_by_entropy(share):
    """Row i becomes sigmoid(logit(p_i) - d H_i) with the one d that meets the target, found by bisection."""
    probs = random_probs(40, 2)
    target = torch.tensor([40 * share, 40 * (1 - share)]).double()
    got = fit_counts(probs, target, iterations=500, newton_tolerance=1e-12)
    entropy = -(probs * (probs + 1e-6).log()).sum(dim=-1)
    logit = (probs[:, 0] / probs[:, 1]).log()
    d = optimize.brentq(lambda d: float((logit - d * entropy).sigmoid().sum() - target[0]), -100, 100, xtol=1e-13)
    torch.testing.assert_close(got[:, 0], (logit - d * entropy).sigmoid(), rtol=0, atol=1e-6)


def test_probabilities_that_meet_their_targets_stay():
    probs = random_probs(50, 4)
    got = fit_counts(probs, probs.sum(dim=0), newton_tolerance=1e-9)
    torch.testing.assert_close(got, probs, rtol=0, atol=1e-8)
    torch.testing.assert_close(fit_counts(probs, probs.sum(dim=0)), probs, rtol=0, atol=0.01)


def test_the_fit_changes_a_sure_image_less_than_an_undecided_one():
    probs = torch.tensor([[0.98, 0.02], [0.55, 0.45], [0.5, 0.5]], dtype=torch.float64)
    change = (fit_counts(probs, torch.tensor([1.5, 1.5]).double()) - probs).abs()[:, 0]
    assert 0 < change[0] < change[1]


# --- the whole refinement --------------------------------------------------------------------------------------------


TARGETS = [(70, 45, 30, 19, 12, 9, 6, 4, 3, 2), (20,) * 10, (2, 3, 4, 6, 9, 12, 19, 30, 45, 70)]


@pytest.mark.parametrize("target", TARGETS)
def test_column_sums_come_to_the_targets(target):
    """Roughly with the published settings, where a search ends with a step below .1; exactly with more effort."""
    probs, target = random_probs(200, 10), torch.tensor(target).double()
    for settings, tolerance in (({}, 2.0), ({"iterations": 100, "newton_tolerance": 1e-9}, 1e-3)):
        got = refine_to_counts(probs, target, **settings)
        torch.testing.assert_close(got.sum(dim=-1), torch.ones(200).double())
        assert (got >= 0).all()
        assert ((got.sum(dim=0) - target).abs() < tolerance).all()


def test_images_that_look_alike_share_the_target():
    """Three equal rows, kept by both classes, targets 2 and 1: each becomes (2/3, 1/3), whatever the network said."""
    probs = torch.tensor([[0.3, 0.7]]).repeat(3, 1)
    got = refine_to_counts(probs, torch.tensor([2.0, 1.0]), alpha=3.0, newton_tolerance=1e-9)
    torch.testing.assert_close(got, torch.tensor([[2 / 3, 1 / 3]]).repeat(3, 1), rtol=0, atol=1e-4)


def test_sure_labels_in_the_right_numbers_are_kept():
    """Four images of class 0 and two of class 1, each certain: only eps is left for the other class."""
    probs = torch.eye(2)[[0, 0, 1, 0, 1, 0]]
    got = refine_to_counts(probs, torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(got, probs, rtol=0, atol=1e-4)


def test_a_prediction_of_one_class_alone_is_spread_over_the_target():
    """All images look like class 0, some more so; the target has as many of both. The least sure become class 1."""
    first = torch.linspace(0.6, 0.99, 20)
    probs = torch.stack([first, 1 - first], dim=-1)
    got = refine_to_counts(probs, torch.tensor([10.0, 10.0]), alpha=1.0)
    assert got.argmax(dim=-1).tolist() == [1] * 10 + [0] * 10


@pytest.mark.parametrize("target", [(100.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1e6, 1.0, 0.3), (0.0, 0.0, 1e-3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_that_cannot_be_met_still_give_probabilities(target, dtype):
    for probs in (random_probs(100, 3), torch.full((100, 3), 1 / 3), torch.eye(3)[[0] * 100]):
        got = refine_to_counts(probs.to(dtype), torch.tensor(target))
        assert got.dtype == dtype
        assert ((got >= 0) & (got <= 1)).all()
        torch.testing.assert_close(got.sum(dim=-1), torch.ones(100, dtype=dtype))


def test_refinement_has_no_gradient_and_leaves_its_input():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    probs = logits.softmax(dim=-1)
    before = probs.detach().clone()
    assert not refine_to_counts(probs, torch.tensor([10.0, 6.0, 4.0])).requires_grad
    assert torch.equal(probs, before)


@pytest.mark.parametrize(("probs", "target"), [((4, 3), (2,)), ((3,), (3,)), ((4, 3), (4, 3))])
def test_refinement_refuses_shapes_that_disagree(probs, target):
    with pytest.raises(ValueError, match="shapes disagree: probs"):
        refine_to_counts(torch.ones(probs), torch.ones(target))


# --- in a run --------------------------------------------------------------------------------------------------------

PROBS = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
ALL = torch.arange(4)


def small_darp(warmup_steps=2, period=4):
    return Darp(torch.tensor([2, 2]), 4, warmup_steps=warmup_steps, period=period, alpha=2.0)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_steps_and_tables_are_those_of_the_published_implementation(path):
    with np.load(path, allow_pickle=False) as archive:
        z = {name: archive[name] for name in archive.files if "darp" in name or "index" in name or name == "config"}
    recorded = json.loads(str(z["config"]))
    settings = {name: recorded["darp"][name] for name in ("warmup_steps", "period", "alpha")}
    with float64():
        target_counts = torch.tensor(recorded["darp"]["target_counts"])
        darp = Darp(target_counts, len(z["final/darp_stored_refined"]), **settings)
    for t in range(recorded["steps"]):
        probs, index = (torch.from_numpy(z[f"step{t}/{name}"]) for name in ("out/darp_input", "index_unlabeled"))
        got = darp.refine(labels_of(probs), None, index, t).final
        torch.testing.assert_close(got.numpy(), z[f"step{t}/out/darp_output"], rtol=0, atol=1e-9)
    torch.testing.assert_close(darp.predictions.numpy(), z["final/darp_stored_prediction"], rtol=0, atol=1e-9)
    torch.testing.assert_close(darp.refined.numpy(), z["final/darp_stored_refined"], rtol=0, atol=1e-9)


def test_the_warm_up_leaves_labels_and_keeps_predictions():
    darp = small_darp(warmup_steps=2, period=1)
    for t in (0, 1):
        labels = labels_of(PROBS[[t]])
        assert darp.refine(labels, None, torch.tensor([t]), t) is labels
    torch.testing.assert_close(darp.predictions, torch.cat([PROBS[:2], torch.full((2, 2), 0.5)]))
    labels = labels_of(PROBS[[2]])
    got = darp.refine(labels, None, torch.tensor([2]), 2)  # the third step: the first after the warm-up
    assert not torch.allclose(got.final, labels.final)
    assert got.linear is labels.linear


def test_labels_are_uniform_after_the_warm_up_until_the_first_refinement():
    """Warm-up of 2, period 4: step 3 (t = 2) has no refined table yet, step 4 makes the first."""
    darp = small_darp()
    assert torch.equal(darp.refine(labels_of(PROBS), None, ALL, 2).final, torch.full((4, 2), 0.5))
    got = darp.refine(labels_of(PROBS), None, ALL, 3).final
    torch.testing.assert_close(got, refine_to_counts(PROBS, torch.tensor([2.0, 2.0])))


def test_between_refinements_the_last_table_answers():
    darp = small_darp()
    table = darp.refine(labels_of(PROBS), None, ALL, 3).final
    changed = PROBS.flip(1)
    for t in (4, 5, 6):
        assert torch.equal(darp.refine(labels_of(changed[[3, 1]]), None, torch.tensor([3, 1]), t).final, table[[3, 1]])
    got = darp.refine(labels_of(changed), None, ALL, 7).final
    torch.testing.assert_close(got, refine_to_counts(changed, torch.tensor([2.0, 2.0])))


def test_the_refinement_takes_the_batch_of_its_own_step():
    darp = small_darp(warmup_steps=0, period=1)
    got = darp.refine(labels_of(PROBS[[0]]), None, torch.tensor([0]), 0).final
    table = torch.full((4, 2), 0.5)
    table[0] = PROBS[0]
    torch.testing.assert_close(got, refine_to_counts(table, torch.tensor([2.0, 2.0]))[[0]])


@pytest.mark.parametrize("t", [1, 2, 3])
def test_an_evaluation_changes_nothing(t):
    """The last step of the warm-up, one between refinements, and one that would refine."""
    darp = small_darp()
    darp.refine(labels_of(PROBS), None, ALL, 3)
    darp.refine(labels_of(PROBS[[2, 3]]), None, ALL[:2], 4)  # another table would come of these
    before = {name: value.clone() for name, value in darp.state_dict().items()}
    labels = labels_of(PROBS.flip(1))
    got = darp.refine(labels, None, ALL, t, update=False)
    assert all(torch.equal(value, before[name]) for name, value in darp.state_dict().items())
    if t < 2:
        assert got is labels
    else:
        assert torch.equal(got.final, darp.refined)


def test_of_an_image_that_comes_twice_in_a_batch_the_later_row_is_kept():
    darp = small_darp()
    darp.refine(labels_of(PROBS), None, torch.tensor([1, 0, 1, 0]), 0)
    torch.testing.assert_close(darp.predictions[:2], PROBS[[3, 2]])


def test_a_checkpoint_holds_both_tables():
    darp, other = small_darp(), small_darp()
    darp.refine(labels_of(PROBS), None, ALL, 3)
    darp.refine(labels_of(PROBS.flip(1)), None, ALL, 4)
    other.load_state_dict(darp.state_dict())
    assert set(darp.state_dict()) == {"predictions", "refined"}
    for t in (5, 7):
        got, want = (part.refine(labels_of(PROBS[[2]]), None, torch.tensor([2]), t).final for part in (other, darp))
        assert torch.equal(got, want)


def test_as_many_images_are_kept_as_double_precision_says():
    """int(2.1 * 30) is 63; in single precision the product is 62.999996 and gives 62."""
    assert int(torch.tensor(30.0) * 2.1) == 62
    probs = random_probs(100, 2).float()
    got = refine_to_counts(probs, torch.tensor([30.0, 70.0]), alpha=2.1)
    # Class 1 keeps all; where class 0 does not keep an image, it gets next to nothing.
    assert (got[:, 0] > 1e-3).sum() == 63


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_counts": torch.ones(2, 2)}, r"target_counts \(2, 2\)"),
        ({"target_counts": torch.ones(1)}, r"target_counts \(1,\)"),
        ({"target_counts": torch.tensor([3.0, -1.0])}, r"target_counts=\[3.0, -1.0\]"),
        ({"target_counts": torch.tensor([3.0, math.nan])}, "target_counts="),
        ({"target_counts": torch.tensor([3.0, math.inf])}, "target_counts="),
        ({"target_counts": torch.zeros(2)}, "not all 0"),
        ({"n_unlabeled": 0}, "n_unlabeled must be >= 1, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
        ({"period": 0}, "period must be >= 1, got 0"),
        ({"alpha": 0.0}, "alpha must be > 0, got 0.0"),
        ({"alpha": math.nan}, "alpha must be > 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    settings = {"target_counts": torch.ones(2), "n_unlabeled": 4, "warmup_steps": 0, "period": 1, "alpha": 2.0}
    with pytest.raises(ValueError, match=message):
        Darp(**settings | changes)


def test_images_and_labels_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"index \(3,\), labels \(4, 2\)"):
        small_darp().refine(labels_of(PROBS), None, torch.arange(3), 0)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_no_step_waits_for_the_device(t):
    """Tensors without values: whatever reads one raises. The steps are in the warm-up, after it, and a refinement."""
    darp = small_darp()
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        for name, value in list(darp.named_buffers()):
            setattr(darp, name, torch.empty_like(value, device="cuda"))
        got = darp.refine(labels_of(torch.empty(4, 2, device="cuda")), None, torch.empty(4, dtype=torch.int64,
                                                                                         device="cuda"), t)
        assert got.final.device.type == "cuda" and got.final.shape == (4, 2)

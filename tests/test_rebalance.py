"""Re-balancing methods one by one: what each does at its moments, with numbers worked by hand."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from dasolib.data import load_data
from dasolib.losses import cross_entropy, ldam_loss
from dasolib.methods import LEARNERS
from dasolib.methods.step import Batch
from dasolib.models import View, WideResNet
from dasolib.pseudo_labels import PseudoLabels, blend, sharpen
from dasolib.rebalance import (
    BUILT_IN,
    MOMENTS,
    REBALANCERS,
    ROLES,
    Rebalance,
    build_rebalance,
    check_combination,
    parse_rebalance,
    register,
)
from dasolib.rebalance.abc import HEAD, Abc, draw
from dasolib.rebalance.boss import Boss
from dasolib.rebalance.crest import Crest, progressive_temperature, selection_share
from dasolib.rebalance.darp import Darp
from dasolib.rebalance.daso import Daso, daso_queue_sizes
from dasolib.rebalance.distribution_alignment import DistributionAlignment
from dasolib.rebalance.logit_adjustment import LogitAdjustment, adjust_for_balanced_test
from dasolib.rebalance.part import Part, Population
from dasolib.rebalance.reweighting import ClassBalanced, LdamDrw
from dasolib.train import run
from tests.test_methods import (
    COUNTS,
    LEGAL,
    N_UNLABELED,
    UNLABELED_COUNTS,
    K,
    label,
    new_training,
    population,
    random_batch,
    tiny_config,
    train,
)
from tests.tiny import make_training, save_tiny
from tests.tiny import tiny_config as tiny_run_config

LOGITS = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # probabilities (1/4, 3/4) and (1/2, 1/2)
TARGET = torch.tensor([0, 1])


def labels(*classes, k=3):
    """Final pseudo-labels that pick `classes`."""
    probs = torch.eye(k)[list(classes)]
    return PseudoLabels(probs, None, probs)


# --- the set ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["la,daso", " daso , la ", "daso,la,", ("daso", "la"), ["la", "daso"], {"daso", "la"}])
def test_names_are_put_in_table_order_however_they_are_listed(text):
    assert parse_rebalance(text) == ("la", "daso")


@pytest.mark.parametrize("nothing", ["", " ", (), [], ","])
def test_no_name_is_no_re_balancing(nothing):
    assert parse_rebalance(nothing) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dasso", f"rebalance='dasso': choose from {', '.join(REBALANCERS)}, or leave it empty"),
        ("la,la", "rebalance='la,la': la is named twice"),
        (("daso", "LA"), "rebalance='LA': choose from"),
        (None, "rebalance=None: must be text or a list of names"),
        (3, "rebalance=3: must be text or a list of names"),
        ([1], r"rebalance=\[1\]: must be text or a list of names"),
    ],
)
def test_a_wrong_list_of_names_is_refused_with_the_choices(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rebalance(text)


def test_an_empty_set_leaves_every_moment_as_it_is():
    rebalance, probs = Rebalance({}), torch.eye(3)
    assert torch.equal(rebalance.labeled_loss(LOGITS, TARGET, 0), cross_entropy(LOGITS, TARGET))
    assert rebalance.adjust_labeled(LOGITS) is LOGITS
    refined = rebalance.refine(probs, probs, torch.arange(3), 0)
    assert refined.linear is probs and refined.final is probs and refined.semantic is None
    target, mask, weight = rebalance.confident(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), 0.65)
    assert target.tolist() == [0, 1] and mask.tolist() == weight.tolist() == [1, 0]
    assert rebalance.extra_losses(None, None, {}, refined, 0) == {}
    assert not rebalance.uses_feats and not rebalance.state_dict()
    with pytest.raises(ValueError, match="no method of none selects images for a next generation"):
        rebalance.select(probs)


def test_a_part_that_says_nothing_does_nothing():
    part, before, probs = Part(), labels(0, 1), torch.eye(3)
    assert part.adjust_labeled(LOGITS) is LOGITS
    assert part.labeled_loss(LOGITS, TARGET, 0) is None
    assert part.align(probs) is probs
    assert part.refine(before, None, None, 0) is before
    assert part.confident(probs, 0.5) is None
    assert part.extra_losses(None, None, {}, before, 0) == {}
    assert part.see_labeled(None, None, None, None) is None and part.see_feats(None, None, "ema") is None
    assert part.end_step(before, 0) is None
    assert part.select(probs) is None and part.carry_over(Part()) is None
    assert not part.uses_feats


def test_the_target_is_sharpened_after_alignment_and_refined_after_that():
    """As in ReMixMatch with DARP: the table holds what is aligned and sharpened; the linear label is sharpened only.

    Means .5, target (.8, .2): rows (.6, .4) and (.4, .6) become (6, 1) / 7 and (8, 3) / 11 by 1.6 and .4.
    Squared: (36, 1) / 37 and (64, 9) / 73.
    """
    parts = {"distribution_alignment": DistributionAlignment(torch.tensor([8, 2]), temperature=1, window=4),
             "darp": Darp(torch.tensor([2.0, 1.0]), 3, warmup_steps=5, period=2, alpha=2.0)}
    probs = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    got = Rebalance(parts).refine(probs, None, torch.tensor([2, 0]), 0, temperature=0.5)
    want = torch.tensor([[36 / 37, 1 / 37], [64 / 73, 9 / 73]])
    torch.testing.assert_close(got.final, want, atol=1e-5, rtol=0)  # the constant in the quotient
    torch.testing.assert_close(got.linear, torch.tensor([[36 / 52, 16 / 52], [16 / 52, 36 / 52]]))
    torch.testing.assert_close(parts["darp"].predictions[[2, 0]], got.final)
    assert parts["darp"].predictions[1].tolist() == [0.5, 0.5]


def test_parts_are_built_in_table_order_with_the_settings_of_the_configuration():
    config = tiny_config("fixmatch", "daso,la", la_tau=0.5, queue_size=7, fixed_blend=0.25)
    rebalance = build_rebalance(config, population(config), feat_dim=64)
    assert list(rebalance.parts) == ["la", "daso"]
    torch.testing.assert_close(rebalance.parts["la"].offset, 0.5 * (COUNTS / 20).log())
    daso = rebalance.parts["daso"]
    assert daso.bank.queue_sizes.tolist() == [7, 7, 7]
    assert (daso.fixed_blend, daso.pretrain_steps, daso.total_steps) == (0.25, 1, 10)


@pytest.mark.parametrize("name", REBALANCERS)
def test_every_line_names_only_settings_that_the_configuration_has(name):
    method = sorted(REBALANCERS[name].learners)[0]
    config = tiny_config(method, name)
    assert method in LEARNERS
    assert all(hasattr(config, field) for field in REBALANCERS[name].settings)
    assert isinstance(build_rebalance(config, population(config), 64).parts[name], Part)


# --- logit adjustment ------------------------------------------------------------------------------------------------


def test_logit_adjustment_adds_tau_times_the_log_prior():
    """Counts (3, 1), tau 2: 2 log .75 and 2 log .25."""
    part = LogitAdjustment(torch.tensor([3, 1]), tau=2.0)
    want = LOGITS + 2 * torch.tensor([0.75, 0.25]).log()
    torch.testing.assert_close(part.adjust_labeled(LOGITS), want)
    torch.testing.assert_close(Rebalance({"la": part}).labeled_loss(LOGITS, TARGET, 0), F.cross_entropy(want, TARGET))


def test_logit_adjustment_of_equal_counts_changes_no_loss():
    part = LogitAdjustment(torch.tensor([5, 5]), tau=1.0)
    torch.testing.assert_close(Rebalance({"la": part}).labeled_loss(LOGITS, TARGET, 0), F.cross_entropy(LOGITS, TARGET))


def test_logit_adjustment_at_test_time_undoes_that_of_training():
    counts = torch.tensor([3, 1])
    adjusted = LogitAdjustment(counts, tau=1.0).adjust_labeled(LOGITS)
    torch.testing.assert_close(adjust_for_balanced_test(adjusted, counts / 4), LOGITS)


def test_at_test_time_a_rare_class_wins_what_it_would_lose_by_its_prior_alone():
    """Logits equal to the log prior say nothing of the image; adjusted they are equal."""
    prior = torch.tensor([0.7, 0.2, 0.1])
    torch.testing.assert_close(adjust_for_balanced_test(prior.log()[None], prior), torch.zeros(1, 3))
    assert adjust_for_balanced_test(torch.tensor([[0.5, 0.1, 0.0]]), prior).argmax() == 2


# --- class weights ---------------------------------------------------------------------------------------------------


def test_class_balanced_loss_weighs_rows_and_divides_by_their_number():
    """Counts (1, 2), beta 1/2: weights 1.2 and .8; losses log 4 and log 2 over 2 rows."""
    part = ClassBalanced(torch.tensor([1, 2]), beta=0.5, warmup_steps=0)
    got = part.labeled_loss(LOGITS, TARGET, 0)
    torch.testing.assert_close(got, torch.tensor((1.2 * math.log(4) + 0.8 * math.log(2)) / 2))
    alone = part.labeled_loss(LOGITS[:1], TARGET[:1], 0)
    torch.testing.assert_close(alone, torch.tensor(1.2 * math.log(4)))  # a mean over weights would be log 4


@pytest.mark.parametrize(("warmup_steps", "first"), [(0, 0), (1, 0), (2, 1), (8, 7)])
@pytest.mark.parametrize("kind", ["cb", "ldam_drw"])
def test_weights_act_from_step_w_minus_one(kind, warmup_steps, first):
    counts = torch.tensor([90, 2])
    part = (ClassBalanced(counts, beta=0.999, warmup_steps=warmup_steps) if kind == "cb" else
            LdamDrw(counts, beta=0.999, warmup_steps=warmup_steps, max_margin=0.5, scale=30.0))
    replaced = [part.labeled_loss(LOGITS, TARGET, t) is not None for t in range(10)]
    assert replaced == [t >= first for t in range(10)]
    rebalance, plain = Rebalance({kind: part}), F.cross_entropy(LOGITS, TARGET)
    assert all(torch.equal(rebalance.labeled_loss(LOGITS, TARGET, t), cross_entropy(LOGITS, TARGET))
               for t in range(first))
    assert not torch.isclose(rebalance.labeled_loss(LOGITS, TARGET, first), plain)


def test_ldam_drw_starts_margins_and_weights_together():
    """Counts (81, 1): margins (1/6, 1/2). Rows divide by the sum of their weights."""
    part = LdamDrw(torch.tensor([81, 1]), beta=0.9, warmup_steps=1, max_margin=0.5, scale=2.0)
    torch.testing.assert_close(part.margins, torch.tensor([1 / 6, 1 / 2]))
    want = ldam_loss(LOGITS, TARGET, part.margins, scale=2.0, class_weight=part.weights)
    torch.testing.assert_close(part.labeled_loss(LOGITS, TARGET, 0), want)
    rows = torch.stack([2 * torch.tensor([0 - 1 / 6, math.log(3)]), 2 * torch.tensor([0, 0 - 1 / 2])])
    weights = part.weights[TARGET]
    by_hand = (F.cross_entropy(rows, TARGET, reduction="none") * weights).sum() / weights.sum()
    torch.testing.assert_close(want, by_hand)


# --- DASO ------------------------------------------------------------------------------------------------------------


def make_daso(**settings):
    settings = {"pretrain_steps": 2, "proto_temperature": 0.5, "dist_temperature": 1.0, "refresh_steps": 2,
                "total_steps": 100, "fixed_blend": None, "lambda_align": 1.0, "prototypes_from": "ema",
                "ema_train_mode": True} | settings
    daso = Daso(3, [4, 4, 4], **settings)
    daso.bank.push(torch.eye(3), torch.arange(3))  # prototypes are the axes
    return daso


LINEAR = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
FEATS = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
SEMANTIC = (torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) / 0.5).softmax(dim=-1)


def refine(daso, t):
    return daso.refine(PseudoLabels(LINEAR, None, LINEAR), FEATS, None, t)


def extra_losses(daso, labels, strong_feats, t):
    return daso.extra_losses(None, None, {"strong": View(strong_feats, None)}, labels, t)


@pytest.mark.parametrize("fixed_blend", [None, 1.0])
def test_before_step_p_pseudo_labels_stay_linear_and_nothing_is_aligned(fixed_blend):
    daso = make_daso(pretrain_steps=3, fixed_blend=fixed_blend)
    daso.class_freq += 5
    for t in range(3):
        got = refine(daso, t)
        assert got.semantic is None and torch.equal(got.final, LINEAR)
        assert extra_losses(daso, got, FEATS, t) == {}
    assert refine(daso, 3).semantic is not None


def test_from_step_p_each_row_blends_by_the_weight_of_its_linear_class():
    """Counts (4, 2, 0) at T = 1: weights 1, .5, 0; row 0 is all semantic, row 1 half, row 2 linear."""
    daso = make_daso()
    daso.class_freq.copy_(torch.tensor([4, 2, 0]))
    got = refine(daso, 2)
    torch.testing.assert_close(got.semantic, SEMANTIC)
    torch.testing.assert_close(got.final, torch.stack([SEMANTIC[0], (LINEAR[1] + SEMANTIC[1]) / 2, LINEAR[2]]))
    assert torch.equal(got.linear, LINEAR)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_fixed_blend_is_the_share_of_the_semantic_label_for_every_class(share):
    daso = make_daso(fixed_blend=share)
    daso.class_freq.copy_(torch.tensor([4, 2, 0]))  # not used
    torch.testing.assert_close(refine(daso, 2).final, (1 - share) * LINEAR + share * SEMANTIC)


def test_blending_acts_on_what_the_parts_before_it_made_of_the_label():
    daso = make_daso(fixed_blend=0.5)
    final = LINEAR.flip(1)
    got = daso.refine(PseudoLabels(LINEAR, None, final), FEATS, None, 2)
    torch.testing.assert_close(got.final, (final + SEMANTIC) / 2)
    assert torch.equal(got.linear, final)


@pytest.mark.parametrize(("method", "names"), [("fixmatch", "daso,distribution_alignment"), ("remixmatch", "daso")])
def test_the_linear_label_of_daso_is_what_enters_the_blend_aligned_and_sharpened(method, names):
    """In step 1 DASO has not begun, in step 2 it has."""
    training, outs = train(tiny_config(method, names, pretrain_steps=2, refresh_steps=1), 3)
    for t in (1, 2):
        probs, labels_ = outs[t].views["weak"].logits.detach().softmax(dim=-1), outs[t].labels
        if t == 2:  # the window is that of the last step
            aligned = training.rebalance.parts["distribution_alignment"].align(probs, update=False)
            torch.testing.assert_close(labels_.linear, sharpen(aligned, training.temperature))
            torch.testing.assert_close(labels_.final, blend(labels_.linear, labels_.semantic, labels_.blend_weight))
        else:
            assert torch.equal(labels_.final, labels_.linear) and not torch.allclose(labels_.linear, probs)


def test_the_histogram_is_renewed_at_the_end_of_every_period_and_starts_anew():
    daso, seen = make_daso(refresh_steps=2), []
    for t, step_labels in enumerate([labels(0, 0, 1), labels(0, 2, 2), labels(1, 1), labels(1, 0), labels(2)]):
        daso.end_step(step_labels, t)
        seen.append((daso.class_freq.tolist(), daso.pending.tolist()))
    assert seen == [
        ([0, 0, 0], [2, 1, 0]),
        ([3, 1, 2], [0, 0, 0]),  # both steps, first used by the next one
        ([3, 1, 2], [0, 2, 0]),
        ([1, 3, 0], [0, 0, 0]),
        ([1, 3, 0], [0, 0, 1]),
    ]


def test_the_last_step_of_a_run_renews_nothing():
    daso = make_daso(refresh_steps=2, total_steps=4)
    for t in range(4):
        daso.end_step(labels(0) if t < 2 else labels(1), t)
    assert daso.class_freq.tolist() == [2, 0, 0] and daso.pending.tolist() == [0, 2, 0]


def test_the_histogram_counts_final_labels_whether_confident_or_not():
    probs = torch.tensor([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]])
    daso = make_daso(refresh_steps=1)
    daso.end_step(PseudoLabels(torch.eye(3)[[0, 0, 0]], None, probs), 0)
    assert daso.class_freq.tolist() == [1, 1, 1]


def test_a_step_blends_by_the_histogram_of_the_steps_before_it():
    """Period 1: the histogram in use in step t counts the final labels of step t - 1."""
    config = tiny_config("fixmatch", "daso", dist_temperature=1.0)
    training, outs = train(config, 1)
    for t in range(1, 4):
        counts = torch.bincount(outs[-1].labels.final.argmax(dim=-1), minlength=3)
        outs.append(training.step(random_batch(config, t), t))
        linear, semantic, final, by_class = outs[-1].labels
        torch.testing.assert_close(by_class, counts / counts.max())
        weight = by_class[linear.argmax(dim=-1)][:, None]
        torch.testing.assert_close(final, (1 - weight) * linear + weight * semantic)


def test_alignment_is_the_cross_entropy_of_strong_similarities_against_the_semantic_label():
    daso = make_daso(lambda_align=0.25)
    got = refine(daso, 2)
    strong = FEATS.flip(0).requires_grad_()
    loss = extra_losses(daso, got, strong, 2)["semantic_alignment"]
    log_probs = (strong.detach() / strong.detach().norm(dim=1, keepdim=True) / 0.5).log_softmax(dim=-1)
    torch.testing.assert_close(loss.detach(), -0.25 * (SEMANTIC * log_probs).sum() / 3)
    loss.backward()
    assert strong.grad.abs().sum() > 0


def test_alignment_of_weight_zero_is_no_term():
    daso = make_daso(lambda_align=0.0)
    assert extra_losses(daso, refine(daso, 2), FEATS, 2) == {}


@pytest.mark.parametrize(
    ("counts", "length", "sizing", "want"),
    [
        ([6, 2], 4, "balanced", [4, 4]),
        ([6, 2], 4, "frequency", [30, 10]),
    ],
)
def test_queues_are_equally_long_or_five_times_as_long_as_their_class(counts, length, sizing, want):
    assert daso_queue_sizes(counts, length, sizing) == want


def test_queues_sized_by_frequency_reach_the_bank():
    config = tiny_config("fixmatch", "daso", queue_sizing="frequency")
    given = population(config)
    sizes = build_rebalance(config, given, 64).parts["daso"].bank.queue_sizes
    assert torch.equal(sizes, 5 * given.labeled)


# --- whose features are queued ---------------------------------------------------------------------------------------


def see_labeled(**settings):
    """Show one labeled batch to DASO; return it, the student and a moving average with other weights."""
    torch.manual_seed(0)
    student, teacher = (WideResNet(depth=10, width=1, n_classes=3) for _ in range(2))
    teacher.features(3 + torch.randn(8, 3, 8, 8))  # running statistics unlike those of the batch
    daso = Daso(64, [4, 4, 4], **dict(pretrain_steps=0, proto_temperature=0.05, dist_temperature=1.0, refresh_steps=1,
                                      total_steps=9, fixed_blend=0.5, lambda_align=1.0, prototypes_from="ema",
                                      ema_train_mode=True) | settings)

    class Average:
        model = teacher

    x = torch.randn(3, 3, 8, 8)
    before = {id(net): {name: b.clone() for name, b in net.named_buffers()} for net in (student, teacher)}
    daso.see_labeled(student, Average, x, torch.tensor([0, 1, 2]))
    moved = [any(not torch.equal(b, before[id(net)][name]) for name, b in net.named_buffers())
             for net in (student, teacher)]
    return daso, student, teacher, x, moved


@pytest.mark.parametrize("train_mode", [True, False])
def test_prototypes_come_from_the_average_in_the_mode_asked_for(train_mode):
    """In train mode it normalises with the batch's statistics and moves its buffers, as published."""
    daso, _, teacher, x, moved = see_labeled(ema_train_mode=train_mode)
    assert moved == [False, train_mode]
    assert teacher.training == train_mode
    torch.testing.assert_close(daso.bank.prototypes, teacher.features(x).detach())
    other = teacher.train(not train_mode).features(x)
    assert not torch.allclose(daso.bank.prototypes, other, atol=1e-2)


def test_prototypes_of_the_student_come_from_the_joint_pass_and_move_buffers_no_second_time():
    config = tiny_config("fixmatch", "daso", prototypes_from="student", pretrain_steps=2)
    training, _ = train(config, 1)
    before = copy.deepcopy(training.rebalance.parts["daso"].bank)
    batch = random_batch(config, 1)
    out = training.learner_step(training.net, training.ema, batch, training.rebalance, t=1)
    before.push(out.views["labeled"].feats.detach(), batch.y)
    assert torch.equal(before.prototypes, training.rebalance.parts["daso"].bank.prototypes)
    for net, n_passes in ((training.net, 2), (training.ema.model, 1)):  # the average took over those of step 0
        assert {int(value) for name, value in net.named_buffers() if name.endswith("num_batches_tracked")} == {n_passes}


def test_learners_whose_passes_show_no_labeled_image_unmixed_have_no_prototypes_of_the_student():
    for method in ("mixmatch", "remixmatch"):
        with pytest.raises(ValueError, match=f"prototypes_from='student' with method='{method}': .*; choose "
                                             "prototypes_from='ema'"):
            tiny_config(method, "daso", prototypes_from="student")


def test_state_of_daso_goes_on_after_a_restore_as_without():
    config = tiny_config("fixmatch", "daso", refresh_steps=2, pretrain_steps=2)
    through, _ = train(config, 3)
    resumed, _ = train(config, 0)
    resumed.restore(copy.deepcopy(through.state(3, 0.0)))  # a file would share no memory either
    for t in range(3, 6):
        outs = [training.step(random_batch(config, t), t) for training in (through, resumed)]
        assert torch.equal(outs[0].labels.final, outs[1].labels.final)
    for name, value in through.rebalance.state_dict().items():
        assert torch.equal(value, resumed.rebalance.state_dict()[name]), name


def test_features_seen_by_the_teacher_fill_the_queues_like_those_of_an_own_pass():
    daso = make_daso()
    Rebalance({"la": LogitAdjustment(COUNTS, tau=1.0), "daso": daso}).see_feats(2 * torch.eye(3)[:1], torch.tensor([0]),
                                                                                      "ema")
    torch.testing.assert_close(daso.bank.prototypes[0], torch.tensor([1.5, 0.0, 0.0]))
    assert Rebalance({"daso": daso}).uses_feats


@pytest.mark.parametrize("combination", [c for c in LEGAL if c[0] in ("fixmatch", "remixmatch", "mixmatch")], ids=label)
def test_an_evaluation_changes_no_state(combination):
    config = tiny_config(*combination)
    training, _ = train(config, 2)
    before = copy.deepcopy(training.rebalance.state_dict())
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(N_UNLABELED, K, generator=generator).softmax(dim=-1)
    feats = torch.randn(N_UNLABELED, 64, generator=generator)
    got = training.rebalance.refine(probs, feats, torch.arange(N_UNLABELED), 1, temperature=training.temperature,
                                    update=False)
    assert got.final.shape == (N_UNLABELED, K)
    for name, value in training.rebalance.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- distribution alignment ------------------------------------------------------------------------------------------


def align(part, *rows, **settings):
    return part.align(torch.tensor(rows), **settings)


def test_alignment_scales_by_target_over_the_mean_of_the_window_with_this_batch_in_it():
    """Window of two, target (3/4, 1/4). Means: (.5, .5), then (.4, .6), then of the last two batches (.5, .5)."""
    part = DistributionAlignment(torch.tensor([3, 1]), temperature=1, window=2)
    got = [align(part, [p, 1 - p]) for p in (0.5, 0.3, 0.7)]
    a, b = 0.3 * 0.75 / 0.4, 0.7 * 0.25 / 0.6
    want = [[0.75, 0.25], [a / (a + b), b / (a + b)], [0.7 * 0.75 / (0.7 * 0.75 + 0.3 * 0.25)] * 2]
    want[2][1] = 1 - want[2][0]
    for rows, expected in zip(got, want, strict=True):
        torch.testing.assert_close(rows, torch.tensor([expected]), atol=1e-5, rtol=0)
    torch.testing.assert_close(part.running_mean(), torch.tensor([0.5, 0.5]))


def test_the_window_holds_means_of_batches_not_of_rows():
    part = DistributionAlignment(torch.tensor([1, 1]), temperature=1, window=5)
    align(part, [1.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    align(part, [0.0, 1.0])
    torch.testing.assert_close(part.running_mean(), torch.tensor([0.5, 0.5]))


def test_a_mean_equal_to_the_target_leaves_labels_as_they_are():
    part = DistributionAlignment(torch.tensor([6, 2]), temperature=1, window=128)
    rows = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    torch.testing.assert_close(part.align(rows), rows)


@pytest.mark.parametrize(("temperature", "want"), [(1.0, [0.9, 0.1]), (0.5, [0.75, 0.25]), (0.0, [0.5, 0.5])])
def test_the_exponent_flattens_the_target(temperature, want):
    part = DistributionAlignment(torch.tensor([90, 10]), temperature=temperature, window=3)
    torch.testing.assert_close(part.target, torch.tensor(want))


def test_alignment_in_an_evaluation_uses_the_window_and_leaves_it():
    part = DistributionAlignment(torch.tensor([3, 1]), temperature=1, window=2)
    align(part, [0.5, 0.5])
    before = copy.deepcopy(part.state_dict())
    got = align(part, [0.2, 0.8], update=False)  # .2 * 1.5 : .8 * .5
    torch.testing.assert_close(got, torch.tensor([[3 / 7, 4 / 7]]), atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_alignment_before_any_batch_gives_finite_probabilities():
    part = DistributionAlignment(torch.tensor([3, 1]), temperature=1, window=2)
    torch.testing.assert_close(align(part, [0.5, 0.5], update=False), torch.tensor([[0.75, 0.25]]), atol=1e-5, rtol=0)


def test_alignment_over_many_batches_brings_the_mean_near_the_target():
    part = DistributionAlignment(torch.tensor([5, 3, 2]), temperature=1, window=64)
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(32, 3, generator=generator) + torch.tensor([0.0, 0.0, 2.0])).softmax(dim=-1)
            for _ in range(64)]
    aligned = torch.cat([part.align(batch) for batch in rows])
    target = torch.tensor([0.5, 0.3, 0.2])
    assert (aligned.mean(dim=0) - target).abs().max() < (torch.cat(rows).mean(dim=0) - target).abs().max() / 3


def test_alignment_aims_at_the_labeled_classes_but_on_remixmatch_at_the_counts_that_darp_aims_at():
    for method, names, counts in (("fixmatch", "distribution_alignment", COUNTS), ("remixmatch", "", COUNTS),
                                  ("fixmatch", "distribution_alignment,darp", COUNTS),
                                  ("remixmatch", "darp", UNLABELED_COUNTS)):
        config = tiny_config(method, names)
        part = build_rebalance(config, population(config), 64).parts["distribution_alignment"]
        torch.testing.assert_close(part.target, (counts / counts.sum()).float())


# --- CReST -----------------------------------------------------------------------------------------------------------


def test_the_share_that_is_selected_mirrors_the_frequency_rank_in_any_order_of_classes():
    """Cube roots of 1/64, 8/64 and 1: the most frequent class gets a quarter, the rarest all its images."""
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        counts, share = torch.tensor([64, 8, 1])[order], torch.tensor([0.25, 0.5, 1.0]).double()[order]
        torch.testing.assert_close(selection_share(counts, 3), share)


def test_equally_frequent_classes_rank_in_class_order_as_published():
    """Class k gets the count of class K - 1 - k."""
    torch.testing.assert_close(selection_share(torch.tensor([9, 9, 1]), 1), torch.tensor([1 / 9, 1, 1]).double())


def make_probs(*rows):
    """Two-class probabilities from (predicted class, confidence)."""
    return torch.tensor([[p, 1 - p] if k == 0 else [1 - p, p] for k, p in rows])


def test_the_most_confident_images_of_each_class_are_selected_and_their_number_is_cut_down():
    """Shares (1/2, 1): of seven images of class 0 int(3.5) = 3, of two of class 1 both; the surest first."""
    crest = Crest(torch.tensor([4, 2]), alpha=1)
    probs = make_probs((0, 0.6), (1, 0.7), (0, 0.9), (0, 0.8), (1, 0.99), (0, 0.7), (0, 0.55), (0, 0.65), (0, 0.95))
    rows, classes = crest.select(probs)
    assert rows.tolist() == [8, 2, 3, 4, 1]
    assert classes.tolist() == [0, 0, 0, 1, 1]


def test_a_class_that_nothing_is_predicted_as_gets_nothing():
    rows, classes = Crest(torch.tensor([2, 2]), alpha=3).select(make_probs((1, 0.7), (1, 0.6)))
    assert rows.tolist() == [0, 1] and classes.tolist() == [1, 1]
    rows, classes = Crest(torch.tensor([8, 1]), alpha=3).select(make_probs((0, 0.7)))
    assert rows.tolist() == [] and classes.tolist() == []  # int(1 / 2)


@pytest.mark.parametrize("names", [("crest",), ("la", "crest_plus")])
def test_the_set_passes_the_selection_on(names):
    config = tiny_config("fixmatch", names)
    rebalance = build_rebalance(config, population(config), 64)
    rows, classes = rebalance.select(torch.tensor([[0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]]))
    assert rows.tolist() == [2, 0] and classes.tolist() == [2, 2]  # class 1: int((6 / 12)^(1 / 3)) = 0


def test_crest_alone_leaves_the_labels_of_a_step_as_they_are():
    probs = torch.tensor([[0.6, 0.4]])
    assert Crest(torch.tensor([4, 2]), alpha=3).align(probs) is probs


@pytest.mark.parametrize(("generation", "exponent"), [(0, 1.0), (1, 0.875), (2, 0.75), (3, 0.625), (4, 0.5)])
def test_crest_plus_flattens_its_target_from_generation_to_generation(generation, exponent):
    assert progressive_temperature(generation, 5, 0.5) == exponent
    config = tiny_config("fixmatch", "crest_plus", n_generations=5)
    part = build_rebalance(config, population(config, generation=generation), 64).parts["crest_plus"]
    want = (COUNTS / 20) ** exponent
    torch.testing.assert_close(part.alignment.target, want / want.sum())


@pytest.mark.parametrize(("method", "names"), [("fixmatch", "crest_plus"), ("remixmatch", "crest_plus"),
                                               ("remixmatch", "crest"), ("fixmatch", "distribution_alignment,crest")])
def test_the_window_of_the_alignment_survives_a_generation_and_its_target_does_not(method, names):
    config = tiny_config(method, names)
    old, _ = train(config, 3)
    new = new_training(config, generation=1)
    fresh = copy.deepcopy(new.rebalance.state_dict())
    kept = [name for name in fresh if name.endswith((".means", ".n_seen"))]
    assert len(kept) == 2 and int(old.rebalance.state_dict()[kept[1]]) == 3
    targets = {name: value.clone() for name, value in new.rebalance.named_buffers() if name.endswith("target")}
    new.rebalance.carry_over(old.rebalance)
    for name, value in new.rebalance.state_dict().items():
        assert torch.equal(value, (old.rebalance.state_dict() if name in kept else fresh)[name]), name
    for name, value in new.rebalance.named_buffers():
        assert name not in targets or torch.equal(value, targets[name])


def test_logit_adjustment_counts_the_selected_images_and_class_weights_do_not():
    """So does the published implementation: it keeps the labeled loss of the first generation."""
    known = Population(COUNTS, torch.tensor([12, 6, 12]), N_UNLABELED, None, 1)
    la = build_rebalance(tiny_config("fixmatch", "la,crest"), known, 64).parts["la"]
    torch.testing.assert_close(la.offset, torch.tensor([0.4, 0.2, 0.4]).log())
    rebalance = build_rebalance(tiny_config("fixmatch", "cb,crest"), known, 64)
    torch.testing.assert_close(rebalance.parts["cb"].weights, ClassBalanced(COUNTS, beta=0.999, warmup_steps=0).weights)
    torch.testing.assert_close(rebalance.parts["crest"].share, selection_share(COUNTS, 3))


# --- ABC -------------------------------------------------------------------------------------------------------------


def make_abc(**settings):
    """Four epochs of 10 steps; classes in no order of frequency."""
    return Abc(torch.tensor([2, 8, 4]), **{"threshold": 0.6, "epoch_steps": 10, "n_epochs": 4.0} | settings)


def test_labeled_images_are_kept_in_inverse_proportion_to_their_class():
    torch.testing.assert_close(make_abc().labeled_share, torch.tensor([1.0, 0.25, 0.5]))


@pytest.mark.parametrize(
    ("t", "want"),
    [
        (0, [1.0, 1.0, 1.0]),
        (9, [1.0, 1.0, 1.0]),  # an epoch moves as a whole
        (10, [1.0, 1 - 0.25 * 0.75, 1 - 0.25 * 0.5]),
        (20, [1.0, 0.625, 0.75]),
        (39, [1.0, 1 - 0.75 * 0.75, 1 - 0.75 * 0.5]),
        (40, [1.0, 0.25, 0.5]),
    ],
)
def test_unlabeled_images_are_all_kept_at_first_and_like_labeled_ones_in_the_end(t, want):
    torch.testing.assert_close(make_abc().unlabeled_share(t), torch.tensor(want))


ABC_PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.5, 0.4], [0.2, 0.7, 0.1]])


def abc_losses(part, labels, t, *, keep_labeled, keep_unlabeled, strong):
    """Losses of ABC with a head that passes features through; features are logits. Returns also the weak features."""
    net = SimpleNamespace(heads={HEAD: torch.nn.Identity()})
    weak = ABC_PROBS.log().requires_grad_()
    views = {"labeled": View(torch.zeros(2, 3), None), "weak": View(weak, None), "strong": View(strong, None)}
    draws = {"keep_labeled": torch.tensor(keep_labeled), "keep_unlabeled": torch.tensor(keep_unlabeled)}
    batch = Batch(None, torch.tensor([0, 1]), {}, None, draws)
    return part.extra_losses(net, batch, views, labels, t), weak


def test_abc_learns_kept_labeled_rows_and_kept_confident_soft_labels():
    """Labeled: kept below 1 and 1/4, that is row 0 alone: log 3 over two rows.

    Unlabeled at t = 20: probabilities 1, .625 and .75. Rows 0, 1 and 3 are confident; their draws .99, .6 and .63
    keep the first two. Strong logits of log 2 for class 0 give log probabilities log(1/2), log(1/4) and log(1/4).
    """
    strong = torch.tensor([[math.log(2), 0.0, 0.0]]).repeat(4, 1).requires_grad_()
    losses, weak = abc_losses(make_abc(), PseudoLabels(torch.eye(3)[[2] * 4], None, torch.eye(3)[[2] * 4]), 20,
                              keep_labeled=[0.99, 0.3], keep_unlabeled=[0.99, 0.6, 0.0, 0.63], strong=strong)
    rows = [p0 * math.log(2) + (1 - p0) * math.log(4) for p0 in (0.7, 0.1)]
    want = {"auxiliary_labeled": torch.tensor(math.log(3) / 2), "auxiliary_unlabeled": torch.tensor(sum(rows) / 4)}
    torch.testing.assert_close({name: loss.detach() for name, loss in losses.items()}, want)
    sum(losses.values()).backward()
    assert weak.grad is None and strong.grad[:2].abs().sum() > 0 and not strong.grad[2:].any()


def test_abc_keeps_every_confident_row_of_the_first_epoch():
    strong = torch.zeros(4, 3)
    losses, _ = abc_losses(make_abc(), labels(0, 0, 0, 0), 0, keep_labeled=[0.0, 0.0], keep_unlabeled=[0.999] * 4,
                           strong=strong)
    torch.testing.assert_close(losses["auxiliary_unlabeled"], torch.tensor(3 * math.log(3) / 4))
    torch.testing.assert_close(losses["auxiliary_labeled"], torch.tensor(math.log(3)))


def test_the_balanced_head_blends_the_semantic_label_by_its_own_prediction():
    """Weights (1, .5, 0). The balanced head picks 0, 1, 1 and 1 where the other one picks 2 everywhere."""
    semantic = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
    other = torch.tensor([[0.0, 0.1, 0.9]]).repeat(4, 1)
    given = PseudoLabels(other, semantic, other, torch.tensor([1.0, 0.5, 0.0]))
    got = make_abc().head_target(ABC_PROBS, given)
    torch.testing.assert_close(got, torch.cat([semantic[:1], (ABC_PROBS[1:] + semantic[1:]) / 2]))
    fixed = make_abc().head_target(ABC_PROBS, given._replace(blend_weight=0.25))
    torch.testing.assert_close(fixed, 0.75 * ABC_PROBS + 0.25 * semantic)
    assert torch.equal(make_abc().head_target(ABC_PROBS, labels(2, 2, 2, 2)), ABC_PROBS)


def test_the_class_of_the_blended_target_says_whether_a_row_is_kept():
    """All rows become class 2, whose probability is .5 in the end; their confidence is 1."""
    semantic = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
    losses, _ = abc_losses(make_abc(), PseudoLabels(semantic, semantic, semantic, 1.0), 40, keep_labeled=[0.0, 0.0],
                           keep_unlabeled=[0.49, 0.51, 0.3, 0.99], strong=torch.zeros(4, 3))
    torch.testing.assert_close(losses["auxiliary_unlabeled"], torch.tensor(2 * math.log(3) / 4))


def test_abc_draws_a_uniform_number_for_each_image():
    draws = draw(3000, 6000, generator=torch.Generator().manual_seed(0))
    assert {name: len(value) for name, value in draws.items()} == {"keep_labeled": 3000, "keep_unlabeled": 6000}
    for value in draws.values():
        assert (value >= 0).all() and (value < 1).all() and abs(value.mean() - 0.5) < 4 / math.sqrt(12 * len(value))
    assert not torch.equal(draws["keep_labeled"], draws["keep_unlabeled"][:3000])


@pytest.mark.parametrize("names", ["la,abc", "distribution_alignment,abc", "darp,abc"])
def test_logit_adjustment_alignment_and_darp_do_not_touch_the_balanced_head(names):
    outs = [train(tiny_config("fixmatch", each), 1)[1][0] for each in ("abc", names)]
    for name in ("auxiliary_labeled", "auxiliary_unlabeled"):
        assert torch.equal(outs[0].losses[name], outs[1].losses[name])
    assert any(not torch.equal(outs[0].losses[name], outs[1].losses[name]) for name in ("labeled", "unlabeled"))


@pytest.mark.parametrize("names", ["la,abc", "distribution_alignment,abc", "darp,abc", "daso,abc",
                                   "daso,distribution_alignment,abc"])
def test_labels_of_an_evaluation_are_what_the_balanced_head_learns(names):
    """Of its own probabilities; DARP would replace all of them by the other head's, which it has kept."""
    training, outs = train(tiny_config("fixmatch", names), 3)
    probs, feats = torch.rand(N_UNLABELED, K).softmax(dim=-1), torch.rand(N_UNLABELED, 64)
    got = training.rebalance.refine_predicted(probs, feats, torch.arange(N_UNLABELED), 3)
    assert torch.equal(got.linear, probs)
    if "daso" in names:
        assert got.semantic is not None
        torch.testing.assert_close(got.final, blend(probs, got.semantic, got.blend_weight))
    else:
        assert torch.equal(got.final, probs)
    plain = training.rebalance.refine(probs, feats, torch.arange(N_UNLABELED), 3, update=False).final
    assert torch.equal(got.final, plain) == (names in ("la,abc", "daso,abc"))


# --- BOSS ------------------------------------------------------------------------------------------------------------

# Predicted four times as 0, twice as 1 and once as 2: thresholds .95, .95 - .25 / 2 = .825 and .95 - .25 * 3/4 = .7625.
BOSS_PROBS = torch.tensor([
    [0.96, 0.02, 0.02], [0.94, 0.03, 0.03], [0.99, 0.01, 0.0], [0.5, 0.3, 0.2],
    [0.1, 0.83, 0.07], [0.1, 0.82, 0.08],
    [0.1, 0.13, 0.77],
])


def test_boss_lowers_thresholds_and_raises_weights_of_classes_that_rarely_pass():
    """Two rows of class 0 pass and one of each other class: weights 1/2, 1/2, 1 and 1 sum to 3, then to 4 rows."""
    target, mask, weight = Boss(drop=0.25).confident(BOSS_PROBS, 0.95)
    assert target.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert mask.tolist() == [1, 0, 1, 0, 1, 0, 1]
    torch.testing.assert_close(weight, torch.tensor([2 / 3, 0, 2 / 3, 0, 4 / 3, 0, 4 / 3]))


@pytest.mark.parametrize("drop", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.8, 0.95])
def test_weights_of_boss_sum_to_the_number_of_rows_that_passed(drop, threshold):
    _, mask, weight = Boss(drop=drop).confident(BOSS_PROBS, threshold)
    assert mask.sum() > 0 and (weight > 0).equal(mask > 0)
    torch.testing.assert_close(weight.sum(), mask.sum())


def test_boss_without_a_row_that_passes_weighs_nothing():
    assert Boss(drop=0.0).confident(BOSS_PROBS, 1.0)[2].tolist() == [0] * 7


def test_boss_without_a_drop_has_one_threshold():
    assert Boss(drop=0.0).confident(BOSS_PROBS, 0.95)[1].tolist() == [1, 0, 1, 0, 0, 0, 0]


def test_equally_frequent_predictions_make_boss_fixmatch():
    probs = BOSS_PROBS[[0, 4, 6]]
    target, mask, weight = Boss(drop=0.25).confident(probs, 0.8)
    want = Rebalance({}).confident(probs, 0.8)
    assert torch.equal(target, want[0]) and torch.equal(mask, want[1])
    torch.testing.assert_close(weight, want[2])


def test_the_set_lets_boss_decide_which_rows_count():
    got = Rebalance({"boss": Boss(drop=0.25)}).confident(BOSS_PROBS, 0.95)
    assert got[1].tolist() == [1, 0, 1, 0, 1, 0, 1]


# --- a method of one's own -------------------------------------------------------------------------------------------


class RunningPrior(Part):
    """Divides pseudo-labels by a moving average of what was predicted."""

    def __init__(self, n_classes, momentum=0.5):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("prior", torch.full((n_classes,), 1 / n_classes))

    def refine(self, labels, feats, index, t, *, update=True):
        if update:
            self.prior.lerp_(labels.final.mean(dim=0), 1 - self.momentum)
        scaled = labels.final / self.prior
        return labels._replace(final=scaled / scaled.sum(dim=-1, keepdim=True))


@pytest.fixture
def clean_table():
    """Leave the table as it was: other tests walk it."""
    before = dict(REBALANCERS)
    yield
    REBALANCERS.clear()
    REBALANCERS.update(before)


def build_running_prior(population, feat_dim):
    return RunningPrior(len(population.labeled))


def test_an_own_method_trains_evaluates_and_is_stored_like_any_other(clean_table, tmp_path):
    """Two steps of a run with an evaluation after each; the checkpoint holds what the method has learned."""
    register("running_prior", build_running_prior, learners=["fixmatch"])
    settings = {"rebalance": "running_prior,la", "total_steps": 2, "eval_steps": 1}
    config = tiny_run_config(save_tiny(tmp_path), **settings)
    assert config.rebalance == ("la", "running_prior")
    result = run(config, tmp_path / "run", progress=False)
    assert result["steps"] == result["evaluations"] == 2 and 0 <= result["plain"]["accuracy"] <= 1
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["rebalance"]
    prior = state["parts.running_prior.prior"]
    torch.testing.assert_close(prior.sum(), torch.tensor(1.0))
    assert not torch.allclose(prior, torch.full_like(prior, 0.25), atol=1e-4)


def test_settings_of_an_own_method_are_part_of_what_a_run_is(clean_table, tmp_path):
    def config(momentum):
        def build(population, feat_dim, momentum):
            return RunningPrior(len(population.labeled), momentum)

        register("running_prior", build, learners=["fixmatch"], settings={"momentum": momentum})
        return tiny_run_config(save_tiny(tmp_path), rebalance="running_prior", total_steps=2)

    fast = config(0.5)
    name = fast.run_name()
    run(fast, tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["own_settings"] == {"running_prior": {"momentum": 0.5}}
    slow = config(0.9)
    assert slow.run_name() != name
    with pytest.raises(ValueError, match="own_settings: .*0.5.* there, .*0.9.* here"):
        run(slow, tmp_path / "run", progress=False)
    assert config(0.5).run_name() == name


class Everywhere(Part):
    """Takes part in every moment, and writes down which it was asked for."""

    asked = set()


for moment in MOMENTS:
    def ask(self, *arguments, moment=moment, **named):
        self.asked.add(moment)
        return getattr(Part, moment)(self, *arguments, **named)

    setattr(Everywhere, moment, ask)
Everywhere.uses_feats = True


@pytest.mark.parametrize("method", sorted(LEARNERS))
def test_a_base_learner_asks_for_the_moments_that_its_line_names(monkeypatch, tmp_path, method):
    monkeypatch.setattr(Everywhere, "asked", set())
    settings = {"rebalance": "", "n_val": 40, "m1": 16} if method == "distribution_estimate" else {"rebalance": ""}
    config = tiny_run_config(save_tiny(tmp_path), method=method, **settings)
    training, batches = make_training(config, load_data(config.dataset))
    training.rebalance.parts["everywhere"] = Everywhere()
    training.step(batches.at(0)[0], 0)
    assert Everywhere.asked == set(LEARNERS[method].asks)


@pytest.mark.parametrize(("method", "unasked"), [("usadtm", "refine"), ("supervised", "refine"), ("mixmatch", "")])
def test_an_own_method_that_a_base_learner_would_not_ask_is_refused(clean_table, tmp_path, method, unasked):
    register("running_prior", build_running_prior, learners=LEARNERS, role="alignment")
    config = tiny_run_config(save_tiny(tmp_path), method=method, rebalance="running_prior")
    if not unasked:
        make_training(config, load_data(config.dataset))
        return
    with pytest.raises(ValueError, match=f"rebalance='running_prior': method='{method}' never asks for its {unasked}, "
                                         "only for adjust_labeled, labeled_loss, end_step"):
        run(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_own_method_that_does_nothing_is_refused(clean_table, tmp_path):
    """As one of which each moment is misspelt."""
    class Misspelt(Part):
        def refin(self, labels, feats, index, t, *, update=True):
            return labels

    register("misspelt", lambda population, feat_dim: Misspelt(), learners=["fixmatch"])
    config = tiny_run_config(save_tiny(tmp_path), rebalance="misspelt")
    with pytest.raises(ValueError, match="rebalance='misspelt': Misspelt takes part in nothing; its moments are "
                                         "methods of these names: adjust_labeled, labeled_loss,"):
        run(config, tmp_path / "run", progress=False)


def test_an_own_method_obeys_the_rules_of_the_table(clean_table):
    register("running_prior", build_running_prior, learners=["fixmatch", "pseudo_label"])
    check_combination("pseudo_label", ("la", "running_prior"))
    with pytest.raises(ValueError, match="method='usadtm' with rebalance='running_prior': it was registered for "
                                         "fixmatch, pseudo_label"):
        check_combination("usadtm", ("running_prior",))
    with pytest.raises(ValueError, match="rebalance='daso,running_prior': both correct the pseudo-labels"):
        check_combination("fixmatch", ("daso", "running_prior"))
    register("running_prior", build_running_prior, learners=["fixmatch"], role="alignment")  # replaces the first
    check_combination("fixmatch", ("daso", "running_prior"))
    with pytest.raises(ValueError, match="both align the pseudo-labels"):
        check_combination("fixmatch", ("distribution_alignment", "running_prior"))
    assert "running_prior" not in BUILT_IN


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("daso", {}, "name='daso' is a built-in method; choose another name than la, cb"),
        ("my method", {}, "name='my method': must be a Python name"),
        ("train", {}, "name='train': .* none that torch's modules use themselves"),
        ("fixmatch", {}, "name='fixmatch' is a built-in method; choose another name than la, "),
        ("", {}, "name='': must be a Python name"),
        (None, {}, "name=None: must be a Python name"),
        ("mine", {"learners": ["fixmach"]}, r"learners=\('fixmach',\): choose from supervised, "),
        ("mine", {"learners": []}, r"learners=\(\): choose from supervised, "),
        ("mine", {"settings": {"of": {1, 2}}}, r"settings=.*: must be a dict of numbers, texts"),
        ("mine", {"settings": {"of": math.nan}}, r"settings=\{'of': nan\}: must be a dict of numbers, texts"),
        ("mine", {"settings": "strength"}, r"settings='strength': must be a dict of numbers, texts"),
        ("mine", {"role": "labels"}, f"role='labels': choose one of {', '.join(ROLES)}"),
    ],
)
def test_a_wrong_registration_is_refused_and_leaves_the_table_alone(clean_table, name, settings, message):
    before = dict(REBALANCERS)
    with pytest.raises(ValueError, match=message):
        register(name, build_running_prior, **{"learners": ["fixmatch"]} | settings)
    assert REBALANCERS == before


def test_the_own_methods_of_these_tests_are_gone():
    assert tuple(REBALANCERS) == BUILT_IN

"""Re-balancing methods one by one: what each does at its moments, with numbers worked by hand."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from dasolib.losses import cross_entropy, ldam_loss
from dasolib.methods import LEARNERS
from dasolib.models import WideResNet
from dasolib.pseudo_labels import PseudoLabels
from dasolib.rebalance import REBALANCERS, Rebalance, build_rebalance, parse_rebalance
from dasolib.rebalance.daso import Daso, daso_queue_sizes
from dasolib.rebalance.logit_adjustment import LogitAdjustment, adjust_for_balanced_test
from dasolib.rebalance.part import Part
from dasolib.rebalance.reweighting import ClassBalanced, LdamDrw
from tests.test_methods import COUNTS, random_batch, tiny_config, train

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
        ("dasso", "rebalance='dasso': choose from la, cb, ldam_drw, daso, or none"),
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
    refined = rebalance.refine(probs, probs, 0)
    assert refined.linear is probs and refined.final is probs and refined.semantic is None
    assert rebalance.extra_losses(refined, probs, 0) == {}
    assert not rebalance.state_dict()


def test_a_part_that_says_nothing_does_nothing():
    part, before = Part(), labels(0, 1)
    assert part.adjust_labeled(LOGITS) is LOGITS
    assert part.labeled_loss(LOGITS, TARGET, 0) is None
    assert part.refine(before, None, 0) is before
    assert part.extra_losses(before, None, 0) == {}
    assert part.see_labeled(None, None, None, None) is None
    assert part.end_step(before, 0) is None


def test_parts_are_built_in_table_order_with_the_settings_of_the_configuration():
    config = tiny_config("fixmatch", "daso,la", la_tau=0.5, queue_size=7, fixed_blend=0.25)
    rebalance = build_rebalance(config, COUNTS, feat_dim=64)
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
    assert isinstance(build_rebalance(config, COUNTS, 64).parts[name], Part)


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
    return daso.refine(PseudoLabels(LINEAR, None, LINEAR), FEATS, t)


@pytest.mark.parametrize("fixed_blend", [None, 1.0])
def test_before_step_p_pseudo_labels_stay_linear_and_nothing_is_aligned(fixed_blend):
    daso = make_daso(pretrain_steps=3, fixed_blend=fixed_blend)
    daso.class_freq += 5
    for t in range(3):
        got = refine(daso, t)
        assert got.semantic is None and torch.equal(got.final, LINEAR)
        assert daso.extra_losses(got, FEATS, t) == {}
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
    got = daso.refine(PseudoLabels(LINEAR, None, final), FEATS, 2)
    torch.testing.assert_close(got.final, (final + SEMANTIC) / 2)
    assert torch.equal(got.linear, LINEAR)


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
        outs.append(training.step(random_batch("fixmatch", t), t))
        linear, semantic, final = outs[-1].labels
        weight = (counts / counts.max())[linear.argmax(dim=-1)][:, None]
        torch.testing.assert_close(final, (1 - weight) * linear + weight * semantic)


def test_alignment_is_the_cross_entropy_of_strong_similarities_against_the_semantic_label():
    daso = make_daso(lambda_align=0.25)
    got = refine(daso, 2)
    strong = FEATS.flip(0).requires_grad_()
    loss = daso.extra_losses(got, strong, 2)["semantic_alignment"]
    log_probs = (strong.detach() / strong.detach().norm(dim=1, keepdim=True) / 0.5).log_softmax(dim=-1)
    torch.testing.assert_close(loss.detach(), -0.25 * (SEMANTIC * log_probs).sum() / 3)
    loss.backward()
    assert strong.grad.abs().sum() > 0


def test_alignment_of_weight_zero_is_no_term():
    daso = make_daso(lambda_align=0.0)
    assert daso.extra_losses(refine(daso, 2), FEATS, 2) == {}


@pytest.mark.parametrize(
    ("counts", "length", "sizing", "want"),
    [
        ([6, 2], 4, "balanced", [4, 4]),
        ([6, 2], 4, "frequency", [6, 2]),
        ([97, 2, 1], 10, "frequency", [29, 1, 1]),  # .6 and .3 of a place become 1
        ([5, 5, 5], 7, "frequency", [7, 7, 7]),
    ],
)
def test_queues_are_equally_long_or_share_the_total_by_frequency(counts, length, sizing, want):
    assert daso_queue_sizes(counts, length, sizing) == want


def test_queues_sized_by_frequency_reach_the_bank():
    daso = build_rebalance(tiny_config("fixmatch", "daso", queue_size=20, queue_sizing="frequency"), COUNTS, 64)
    assert daso.parts["daso"].bank.queue_sizes.tolist() == [36, 18, 6]


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


def test_prototypes_come_from_the_student_if_asked_for():
    daso, student, _, x, moved = see_labeled(prototypes_from="student")
    assert moved == [True, False]
    torch.testing.assert_close(daso.bank.prototypes, student.features(x).detach())
    assert daso.bank.lengths().tolist() == [1, 1, 1]


def test_state_of_daso_goes_on_after_a_restore_as_without():
    config = tiny_config("fixmatch", "daso", refresh_steps=2, pretrain_steps=2)
    through, _ = train(config, 3)
    resumed, _ = train(config, 0)
    resumed.restore(copy.deepcopy(through.state(3, 0.0)))  # a file would share no memory either
    for t in range(3, 6):
        outs = [training.step(random_batch("fixmatch", t), t) for training in (through, resumed)]
        assert torch.equal(outs[0].labels.final, outs[1].labels.final)
    for name, value in through.rebalance.state_dict().items():
        assert torch.equal(value, resumed.rebalance.state_dict()[name]), name

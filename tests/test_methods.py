"""Base learners: every legal combination trains, every other is refused, and the steps match cases worked by hand."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dasolib.config import make_config
from dasolib.losses import class_balanced_weights
from dasolib.methods import LEARNERS, fixmatch, mean_teacher, mixmatch, pseudo_label, remixmatch, supervised, usadtm
from dasolib.methods.step import Batch
from dasolib.mixup import mixup
from dasolib.rebalance import NEEDS, REBALANCERS, ROLES, Rebalance, check_combination
from dasolib.rebalance.boss import Boss
from dasolib.rebalance.daso import Daso
from dasolib.rebalance.part import Population
from dasolib.train import Training, run
from tests.tiny import save_tiny
from tests.tiny import tiny_config as tiny_run_config

K, N_UNLABELED = 3, 40
COUNTS = torch.tensor([12, 6, 2])
UNLABELED_COUNTS = torch.tensor([8.0, 12.0, 20.0], dtype=torch.float64)
# With these every method acts from its first or second step on.
ACTING = {
    "daso": {"pretrain_steps": 1, "refresh_steps": 1, "queue_size": 3},
    "darp": {"darp_warmup_steps": 0, "darp_period": 1},
    "crest": {"n_generations": 2},
    "crest_plus": {"n_generations": 2},
    "crt": {"source": "runs/none"},
}


def combinations():
    """Every base learner with every set of re-balancing methods, legal or not."""
    for method in LEARNERS:
        for size in range(len(REBALANCERS) + 1):
            for names in itertools.combinations(REBALANCERS, size):
                yield method, names


def is_legal(method, names):
    """Each re-balancing method takes this base learner, and no two have a role in common."""
    roles = [role for name in names for role in REBALANCERS[name].roles]
    return all(method in REBALANCERS[name].learners for name in names) and len(set(roles)) == len(roles)


LEGAL = [combination for combination in combinations() if is_legal(*combination)]


def label(combination):
    return "-".join((combination[0], *combination[1]))


def tiny_config(method, rebalance=(), **changes):
    """WRN-10-1, B = 4, on data that no test loads."""
    settings = {"batch_size": 4, "total_steps": 10, "precision": "fp32", "channels_last": False, "threads": 1}
    if not LEARNERS[method].views:
        settings |= {"warmup_steps": 0}  # else the first step has learning rate 0
    if "threshold" in LEARNERS[method].settings:
        settings |= {"threshold": 0.4}  # so that some of a fresh network's labels count
    for name, acting in ACTING.items():
        settings |= acting if name in rebalance else {}
    if changes.get("queue_sizing") == "frequency":
        settings.pop("queue_size")
    return make_config("cpu", dataset="random", method=method, rebalance=rebalance, device="cpu",
                       **settings | changes)


def population(config, counts=COUNTS, generation=0):
    """What a run of `config` knows of its images: the unlabeled class counts only if a method aims at them."""
    asked = any("unlabeled_counts" in REBALANCERS[name].needs for name in config.parts())
    target = UNLABELED_COUNTS if asked else None
    aligned = target if LEARNERS[config.method].aligns else None
    return Population(counts, counts, N_UNLABELED, target, generation, aligned)


def new_training(config, device="cpu", **settings):
    known = [part.to(device) if isinstance(part, torch.Tensor) else part for part in population(config, **settings)]
    return Training(config, Population(*known), 3, torch.device(device))


def random_batch(config, t, *, side=8):
    """Random images and classes; all views of a step show the same images with other noise."""
    generator = torch.Generator().manual_seed(t)
    learner, b = LEARNERS[config.method], config.batch_size
    x, y = torch.randn(b, 3, side, side, generator=generator), torch.randint(K, (b,), generator=generator)
    if not learner.views:
        return Batch(x, y, {})
    n = config.mu * b
    u = torch.randn(n, 3, side, side, generator=generator)
    views = {name: u + 0.3 * torch.randn(u.shape, generator=generator) for name in learner.views}
    index, draws = torch.randperm(N_UNLABELED, generator=generator)[:n], {}
    if learner.draw is not None:
        settings = {name: getattr(config, name) for name in learner.draw_settings}
        draws |= learner.draw(b, n, generator=generator, **settings)
    for name in config.parts():
        if REBALANCERS[name].draw is not None:
            draws |= REBALANCERS[name].draw(b, n, generator=generator)
    return Batch(x, y, views, index, draws)


def train(config, n_steps, **settings):
    """A `Training` after `n_steps` steps on random batches, and what the steps returned."""
    training = new_training(config, **settings)
    return training, [training.step(random_batch(config, t), t) for t in range(n_steps)]


# --- the table -------------------------------------------------------------------------------------------------------

LOSSES = {
    "supervised": {"labeled"},
    "distribution_estimate": {"labeled"},
    "pseudo_label": {"labeled", "unlabeled"},
    "mean_teacher": {"labeled", "unlabeled"},
    "mixmatch": {"labeled", "unlabeled"},
    "remixmatch": {"labeled", "unlabeled", "premixup", "rotation"},
    "usadtm": {"labeled", "unlabeled", "mutual_information"},
    "fixmatch": {"labeled", "unlabeled"},
}
WITHOUT_ALIGNMENT = {"mean_teacher", "mixmatch"}  # DASO has no alignment loss there


def loss_names(method, rebalance, *, daso_acts):
    names = set(LOSSES[method])
    if "daso" in rebalance and daso_acts and method not in WITHOUT_ALIGNMENT:
        names |= {"semantic_alignment"}
    return names | ({"auxiliary_labeled", "auxiliary_unlabeled"} if "abc" in rebalance else set())


VARIANTS = [(combination, {}) for combination in LEGAL]
VARIANTS += [((method, names), {"alignment": False}) for method, names in LEGAL
             if method == "remixmatch" and "crest_plus" not in names]


@pytest.mark.parametrize(("combination", "changes"), VARIANTS,
                         ids=[label(combination) + "-unaligned" * len(changes) for combination, changes in VARIANTS])
def test_every_legal_combination_trains_two_steps(combination, changes):
    """DASO has P = 1 here, so the second step blends and aligns."""
    method, rebalance = combination
    config = tiny_config(method, rebalance, **changes)
    training, outs = train(config, 1)
    before = [p.detach().clone() for p in training.net.parameters()]
    outs.append(training.step(random_batch(config, 1), 1))
    for t, out in enumerate(outs):
        assert set(out.losses) == loss_names(method, rebalance, daso_acts=t == 1)
        assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in out.losses.values())
    for (name, p), old in zip(training.net.named_parameters(), before, strict=True):
        if "crt" in rebalance and not name.startswith("head."):
            assert p.grad is None and torch.equal(p, old), f"{name} moved"
            continue
        assert p.grad is not None and p.grad.abs().sum() > 0, f"{name} got no gradient"
        assert torch.isfinite(p).all() and not torch.equal(p, old), f"{name} did not move"
    labels = outs[1].labels
    assert (labels is None) == (not LEARNERS[method].views)
    if labels is not None:
        for probs in (labels.linear, labels.final):
            assert probs.shape == (config.mu * 4, K) and not probs.requires_grad
            torch.testing.assert_close(probs.sum(dim=-1), torch.ones(len(probs)))
        assert (labels.semantic is not None) == ("daso" in rebalance or method == "usadtm")


def test_of_all_sets_only_the_legal_ones_are_accepted_and_each_refusal_names_a_method_and_a_reason():
    """Every base learner with every set of re-balancing methods: 8 x 2,048."""
    n_refused = 0
    for method, names in combinations():
        if is_legal(method, names):
            check_combination(method, names)
            continue
        n_refused += 1
        with pytest.raises(ValueError) as caught:
            make_config(dataset="random", method=method, rebalance=names)
        told, reason = str(caught.value).rsplit(": ", maxsplit=1)
        assert len(reason.split()) >= 3, (method, names)
        named = [name for name in names if name in told.replace("'", ",").split(",")]
        assert named and ("method" not in told or repr(method) in told), (method, names)
        with pytest.raises(ValueError) as again:
            check_combination(method, names)
        assert str(again.value) == str(caught.value)
    assert n_refused + len(LEGAL) == len(LEARNERS) * 2 ** len(REBALANCERS)


TRAINED = {"supervised", "pseudo_label", "mean_teacher", "mixmatch", "remixmatch", "usadtm", "fixmatch"}
PUT_ON = {  # what the papers and the published implementation combine
    "la": TRAINED,
    "cb": TRAINED,
    "ldam_drw": {"supervised"},
    "crt": {"supervised"},
    "distribution_alignment": {"fixmatch"},
    "darp": {"fixmatch", "remixmatch"},
    "daso": {"fixmatch", "remixmatch", "mixmatch", "mean_teacher"},
    "crest": {"fixmatch", "remixmatch"},
    "crest_plus": {"fixmatch", "remixmatch"},
    "boss": {"fixmatch"},
    "abc": {"fixmatch"},
}
EXCLUDE_EACH_OTHER = [  # no two of a line
    {"la", "cb", "ldam_drw", "crt"},
    {"darp", "daso", "crest", "crest_plus", "boss"},
    {"distribution_alignment", "crest_plus"},
    {"abc", "crest"},
    {"abc", "crest_plus"},
]


def test_the_table_combines_what_it_is_meant_to_combine():
    """By hand: 57 sets on FixMatch, 15 on ReMixMatch, 6 on MixMatch and Mean Teacher, 5, 3, 3 and the empty one."""
    want = {(method, names) for method, names in combinations()
            if all(method in PUT_ON[name] for name in names)
            and not any(len(line & set(names)) > 1 for line in EXCLUDE_EACH_OTHER)}
    assert want == set(LEGAL)
    assert len(LEGAL) == 57 + 15 + 6 + 6 + 5 + 3 + 3 + 1


@pytest.mark.parametrize("name", REBALANCERS)
def test_a_line_of_the_table_says_why_where_it_leaves_a_learner_out(name):
    line = REBALANCERS[name]
    assert line.learners <= set(LEARNERS)
    assert line.roles and set(line.roles) <= set(ROLES)
    assert set(line.needs) <= set(NEEDS)
    assert bool(line.refusal) == (line.learners != set(LEARNERS))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_line_of_the_table_of_base_learners_names_settings_and_views_that_exist(name):
    learner, config = LEARNERS[name], tiny_config(name)
    assert all(hasattr(config, field) for field in (*learner.settings, *learner.draw_settings, *learner.no_effect))
    assert set(learner.views.values()) <= {"plain", "weak", "strong"}
    assert bool(learner.draw_settings) <= (learner.draw is not None)


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=f"method='fixmach': choose one of {', '.join(LEARNERS)}"):
        check_combination("fixmach", ())


@pytest.mark.parametrize("names", [("la", "daso"), ("distribution_alignment", "darp"), ("daso", "abc")])
def test_listing_order_changes_neither_configuration_nor_name_nor_numbers(names):
    configs = [tiny_config("fixmatch", order) for order in (names, names[::-1], ", ".join(names[::-1]))]
    assert configs[0] == configs[1] == configs[2]
    assert len({config.run_name() for config in configs}) == 1
    nets = [train(config, 2)[0].net.state_dict() for config in configs[:2]]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


# --- strength 0 is the base learner ----------------------------------------------------------------------------------

NO_DASO = {"fixed_blend": 0.0, "lambda_align": 0.0, "ema_train_mode": False}
NO_DASO_ON_MIXMATCH = {"fixed_blend": 0.0, "ema_train_mode": False}  # no alignment there anyway
MIXED = {"mixmatch", "remixmatch"}  # their labeled targets are mixtures of classes


def assert_same_networks(plain, training, **tolerances):
    """All weights and buffers of the network, and of the average where there is one; exactly without tolerances."""
    networks = [(plain.net, training.net)] + ([] if plain.ema is None else [(plain.ema.model, training.ema.model)])
    for want, got in networks:
        for name, value in want.state_dict().items():
            torch.testing.assert_close(got.state_dict()[name], value, **{"rtol": 0, "atol": 0} | tolerances)


@pytest.mark.parametrize(
    ("method", "rebalance", "settings"),
    [
        *[(method, "la", {"la_tau": 0.0}) for method in sorted(TRAINED)],
        *[(method, "cb", {"cb_beta": 0.0}) for method in sorted(TRAINED - MIXED)],
        *[(method, "cb", {"reweight_warmup_steps": 10}) for method in sorted(TRAINED)],  # not reached
        ("supervised", "ldam_drw", {"reweight_warmup_steps": 10}),
        ("fixmatch", "daso", NO_DASO),
        ("mixmatch", "daso", NO_DASO_ON_MIXMATCH),
        ("fixmatch", "la,daso", NO_DASO | {"la_tau": 0.0}),
        ("fixmatch", "daso", {"pretrain_steps": 9, "ema_train_mode": False}),
        ("mixmatch", "daso", {"pretrain_steps": 9, "ema_train_mode": False}),
        ("fixmatch", "darp", {"darp_warmup_steps": 10}),
        ("remixmatch", "darp", {"darp_warmup_steps": 10, "alignment": False}),
        ("fixmatch", "crest", {}),  # all four steps are in its first generation
        ("remixmatch", "crest", {"alignment": False}),
        ("fixmatch", "darp,la", {"darp_warmup_steps": 10, "la_tau": 0.0}),
    ],
)
def test_a_method_of_strength_zero_leaves_weights_and_average_exactly_as_they_are(method, rebalance, settings):
    shared = {name: settings[name] for name in ("alignment",) if name in settings}
    if "crest" in rebalance:
        shared["total_steps"], settings = 5, settings | {"total_steps": 10}  # a generation is a run of half the length
    plain, _ = train(tiny_config(method, **shared), 4)
    training, _ = train(tiny_config(method, rebalance, **settings), 4)
    assert_same_networks(plain, training)


@pytest.mark.parametrize("method", sorted(MIXED))
def test_equal_weights_leave_mixed_targets_as_they_are(method):
    """A row is weighed by the sum of its target, which is 1 up to rounding."""
    plain, _ = train(tiny_config(method), 4)
    training, _ = train(tiny_config(method, "cb", cb_beta=0.0), 4)
    assert_same_networks(plain, training, atol=1e-5)


@pytest.mark.parametrize("method", ["fixmatch", "remixmatch"])
def test_the_first_generation_of_crest_plus_is_the_aligned_base_learner(method):
    """Its exponent is 1 then; a later generation has another one."""
    aligned = {"total_steps": 5, "rebalance": "distribution_alignment" if method == "fixmatch" else ""}
    plain, _ = train(tiny_config(method, **aligned), 4)
    config = tiny_config(method, "crest_plus")
    assert_same_networks(plain, train(config, 4)[0])
    later, _ = train(config, 4, generation=1)
    assert not torch.equal(later.net.stem.weight, plain.net.stem.weight)


def test_a_later_generation_starts_from_other_weights_and_aligns_to_a_flatter_target():
    config = tiny_config("fixmatch", "crest_plus")
    first, second = (new_training(config, generation=generation) for generation in (0, 1))
    assert not torch.equal(first.net.stem.weight, second.net.stem.weight)
    targets = [training.rebalance.parts["crest_plus"].alignment.target for training in (first, second)]
    torch.testing.assert_close(targets[0], COUNTS / 20)
    torch.testing.assert_close(targets[1], COUNTS.sqrt() / COUNTS.sqrt().sum())  # t_min = .5 in the last of two


def test_as_published_daso_of_strength_zero_moves_nothing_but_the_averages_buffers():
    plain, _ = train(tiny_config("fixmatch"), 4)
    training, _ = train(tiny_config("fixmatch", "daso", **NO_DASO | {"ema_train_mode": True}), 4)
    for name, value in plain.net.state_dict().items():
        assert torch.equal(training.net.state_dict()[name], value), name
    parameters = dict(plain.ema.model.named_parameters())
    for name, value in plain.ema.model.state_dict().items():
        assert torch.equal(training.ema.model.state_dict()[name], value) == (name in parameters), name


def test_abc_leaves_the_base_learners_losses_and_the_gradient_of_its_head_as_they_are():
    """The encoder alone has two masters. The step is the first one: both networks start from the same weights."""
    (plain, base), (training, outs) = (train(tiny_config("fixmatch", names), 1) for names in ("", "abc"))
    assert all(torch.equal(outs[0].losses[name], loss) for name, loss in base[0].losses.items())
    assert torch.equal(outs[0].labels.final, base[0].labels.final) and torch.equal(outs[0].mask, base[0].mask)
    assert torch.equal(training.net.head.weight.grad, plain.net.head.weight.grad)
    assert torch.equal(training.net.head.bias.grad, plain.net.head.bias.grad)
    assert not torch.equal(training.net.stem.weight.grad, plain.net.stem.weight.grad)


@pytest.mark.parametrize(
    ("method", "rebalance", "settings"),
    [
        *[(method, "la", {}) for method in sorted(TRAINED)],
        *[(method, "cb", {}) for method in sorted(TRAINED)],
        ("supervised", "ldam_drw", {"reweight_warmup_steps": 3}),
        ("fixmatch", "daso", {"fixed_blend": 0.0, "ema_train_mode": False}),
        ("fixmatch", "daso", NO_DASO | {"fixed_blend": 1.0}),
        ("mixmatch", "daso", NO_DASO_ON_MIXMATCH | {"fixed_blend": 1.0}),
        ("mean_teacher", "daso", {}),
        ("remixmatch", "daso", {}),
        ("fixmatch", "darp", {}),
        ("remixmatch", "darp", {}),
        ("fixmatch", "distribution_alignment", {}),
        ("fixmatch", "boss", {}),
        ("fixmatch", "abc", {}),
        ("remixmatch", "", {"alignment": False}),
    ],
)
def test_the_comparison_with_the_base_learner_notices_any_other_strength(method, rebalance, settings):
    """Class-balanced weights with beta .999 are close to inverse frequencies, and the others are further off."""
    plain, _ = train(tiny_config(method), 4)
    training, _ = train(tiny_config(method, rebalance, **settings), 4)
    assert not torch.allclose(plain.net.stem.weight, training.net.stem.weight, atol=1e-5)


# --- corrections of the labeled loss ---------------------------------------------------------------------------------


def labeled_target(config, batch, out):
    """Classes (B, K) that the labeled rows of a step learn: one-hot, or mixed with their partners'."""
    one_hot = F.one_hot(batch.y, K).float()
    if config.method not in MIXED:
        return one_hot
    target = torch.cat([one_hot, *[out.labels.final] * len(batch.views)])
    x = torch.cat([batch.x, *batch.views.values()])
    return mixup(x, target, batch.draws["beta"], batch.draws["permutation"])[1][: config.batch_size]


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_corrections_of_the_labeled_loss_act_on_every_base_learner_and_leave_the_other_losses_alone(method):
    """The logits of the first step do not depend on them. A mixed row is weighed by sum_k target_ik w_k."""
    outs = {names: train(tiny_config(method, names), 1)[1][0] for names in ("", "la", "cb")}
    config, plain = tiny_config(method), outs[""]
    logits, target = plain.views["labeled"].logits.detach(), labeled_target(config, random_batch(config, 0), plain)
    assert (method in MIXED) == bool((target.max(dim=-1).values < 1).any())
    weights = class_balanced_weights(COUNTS, 0.999)
    per_row = F.cross_entropy(logits, target, reduction="none")
    want = {
        "": per_row.mean(),
        "la": F.cross_entropy(logits + (COUNTS / 20).log(), target),
        "cb": sum(sum(share * w for share, w in zip(row, weights, strict=True)) * loss
                  for row, loss in zip(target, per_row, strict=True)) / config.batch_size,
    }
    for names, out in outs.items():
        torch.testing.assert_close(out.losses["labeled"].detach(), want[names])
        for name in set(out.losses) - {"labeled"}:
            assert torch.equal(out.losses[name], plain.losses[name]), name
        assert plain.labels is None or torch.equal(out.labels.final, plain.labels.final)
    assert len({round(float(loss), 4) for loss in want.values()}) == 3


# --- passes of a step ------------------------------------------------------------------------------------------------

# Images of each pass, and whether it carries gradient, of the network and of its average; B = 4, mu = 1.
WITH, WITHOUT = True, False
CHUNKS = [(4, WITH)]
PASSES = {
    ("supervised", ""): ([(4, WITH)], []),
    ("pseudo_label", ""): ([(8, WITH)], []),
    ("mean_teacher", ""): ([(8, WITH)], [(4, WITHOUT)]),
    ("mean_teacher", "daso"): ([(8, WITH)], [(8, WITHOUT)]),
    ("mixmatch", ""): ([(4, WITHOUT)] * 2 + CHUNKS * 3, []),
    ("mixmatch", "daso"): ([(4, WITHOUT)] * 2 + CHUNKS * 3, [(4, WITHOUT)]),
    ("remixmatch", ""): ([(4, WITHOUT)] + CHUNKS * 4 + [(4, WITH)] * 2, []),
    ("remixmatch", "darp"): ([(4, WITHOUT)] + CHUNKS * 4 + [(4, WITH)] * 2, []),
    ("remixmatch", "daso"): ([(8, WITH)] + CHUNKS * 4 + [(4, WITH)], [(4, WITHOUT)]),
    ("usadtm", ""): ([(16, WITH)], []),
    ("fixmatch", ""): ([(12, WITH)], []),
    ("fixmatch", "abc"): ([(12, WITH)], []),
    ("fixmatch", "daso"): ([(12, WITH)], [(4, WITHOUT)]),
}


def record_passes(config, batch):
    """Images and gradient mode of each pass of a step, of the network and of its moving average."""
    training, passes = new_training(config), ([], [])
    networks = [training.net] + ([] if training.ema is None else [training.ema.model])
    for net, seen in zip(networks, passes, strict=False):
        net.stem.register_forward_pre_hook(
            lambda _net, args, seen=seen: seen.append((args[0].detach().clone(), torch.is_grad_enabled())))
    training.step(batch, 0)
    return training, passes


@pytest.mark.parametrize(("method", "rebalance"), PASSES)
def test_the_views_of_a_step_pass_in_this_order_and_together_as_published(method, rebalance):
    """Batch normalisation makes it matter which images pass together."""
    config = tiny_config(method, rebalance, **{} if method == "supervised" else {"mu": 1})
    passes = record_passes(config, random_batch(config, 0))[1]
    assert tuple([(len(images), grad) for images, grad in seen] for seen in passes) == PASSES[method, rebalance]


@pytest.mark.parametrize(
    ("method", "rebalance", "want"),
    [
        ("pseudo_label", "", ["x weak"]),
        ("mean_teacher", "", ["x student"]),
        ("fixmatch", "daso", ["x weak strong"]),
        ("usadtm", "", ["x identity weak strong"]),
        ("mixmatch", "daso", ["weak1", "weak2"]),
        ("remixmatch", "", ["weak"]),
        ("remixmatch", "daso", ["weak strong1"]),
    ],
)
def test_what_is_not_mixed_passes_as_it_comes_first_of_all(method, rebalance, want):
    config = tiny_config(method, rebalance)
    batch = random_batch(config, 0)
    images = batch.views | {"x": batch.x}
    passes = record_passes(config, batch)[1][0]
    for names, (got, _) in zip(want, passes, strict=False):
        assert torch.equal(got, torch.cat([images[name] for name in names.split()]))


@pytest.mark.parametrize(("rebalance", "shown"), [("", "teacher"), ("daso", "x teacher")])
def test_the_teacher_sees_its_own_view_in_train_mode(rebalance, shown):
    """Its buffers move with what it sees, before the average moves them again."""
    config = tiny_config("mean_teacher", rebalance)
    batch = random_batch(config, 0)
    training = new_training(config)
    teacher = training.ema.model
    want = new_training(config).ema.model
    images = torch.cat([(batch.views | {"x": batch.x})[name] for name in shown.split()])
    logits = want.head(want.features(images))[-len(batch.views["teacher"]):]  # in train mode
    out = training.learner_step(training.net, training.ema, batch, training.rebalance, t=0)
    torch.testing.assert_close(out.views["teacher"].logits, logits)
    assert not out.views["teacher"].logits.requires_grad
    for (name, got), (_, moved) in zip(teacher.named_buffers(), want.named_buffers(), strict=True):
        torch.testing.assert_close(got, moved, msg=name)


def test_remixmatch_turns_the_first_strong_view_in_its_last_pass_and_passes_it_unturned_before():
    config = tiny_config("remixmatch")
    batch = random_batch(config, 0)
    passes = [images for images, _ in record_passes(config, batch)[1][0]]
    assert torch.equal(passes[-2], batch.views["strong1"])
    turns = batch.draws["quarter_turns"].tolist()
    assert len(set(turns)) > 1
    for got, image, k in zip(passes[-1], batch.views["strong1"], turns, strict=True):
        assert torch.equal(got, torch.rot90(image, k, (1, 2)))


@pytest.mark.parametrize("method", sorted(MIXED))
def test_mixed_images_pass_interleaved_so_that_every_chunk_holds_some_labeled_ones(method):
    """Chunk 0 holds slot 0 of its own and slot i of chunk i; chunk i the labeled rows of slot i instead."""
    config = tiny_config(method)
    batch = random_batch(config, 0)
    x = torch.cat([batch.x, *batch.views.values()])
    mixed = mixup(x, x.flatten(1), batch.draws["beta"], batch.draws["permutation"])[0]
    n_guesses = 2 if method == "mixmatch" else 1
    n_chunks = 1 + len(batch.views)
    passes = [images for images, _ in record_passes(config, batch)[1][0]][n_guesses:n_guesses + n_chunks]
    rows = torch.arange(4 * n_chunks).view(n_chunks, 4)
    slots = {3: [slice(0, 1), slice(1, 2), slice(2, 4)], 4: [slice(i, i + 1) for i in range(4)]}[n_chunks]
    want = rows.clone()
    for i in range(1, n_chunks):
        want[0, slots[i]], want[i, slots[i]] = rows[i, slots[i]], rows[0, slots[i]]
    assert torch.equal(torch.cat(passes), mixed[want.flatten()])
    assert all((chunk < 4).any() for chunk in want)


def test_a_learner_without_moving_average_evaluates_its_own_network():
    training, _ = train(tiny_config("supervised"), 1)
    assert training.ema is None and training.evaluated is training.net
    training, _ = train(tiny_config("fixmatch"), 1)
    assert training.evaluated is training.ema.model


def test_the_balanced_head_predicts_where_there_is_one():
    training, outs = train(tiny_config("fixmatch", "abc"), 1)
    batch = random_batch(tiny_config("fixmatch", "abc"), 0)
    for net in (training.net.eval(), training.ema.model.eval()):
        feats = net.features(batch.x)
        torch.testing.assert_close(net(batch.x), net.heads["balanced"](feats))
        assert not torch.allclose(net(batch.x), net.head(feats))
    assert outs[0].views["labeled"].logits.shape == (4, K)


def test_a_step_takes_exactly_the_settings_its_line_names():
    for method, learner in LEARNERS.items():
        config = tiny_config(method)
        assert set(config.learner_settings()) == set(learner.settings)
        assert json.dumps(config.learner_settings())  # plain values
        training = new_training(config)
        with pytest.raises(TypeError, match="no_such_setting"):
            training.learner_step(training.net, training.ema, random_batch(config, 0), training.rebalance, t=0,
                                  no_such_setting=1)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rebalance", [(), ("daso",), ("la", "daso"), ("distribution_alignment", "darp"), ("boss",)])
def test_no_gradient_reaches_the_weak_view_of_fixmatch_through_the_pseudo_label(rebalance):
    """In eval mode, so that BatchNorm does not mix the views."""
    config = tiny_config("fixmatch", rebalance, threshold=0.0)
    training, _ = train(config, 2)
    batch = random_batch(config, 2)
    for view in batch.views.values():
        view.requires_grad_()
    out = training.learner_step(training.net.eval(), training.ema, batch, training.rebalance, t=2)
    assert not out.labels.final.requires_grad and out.mask.sum() > 0
    sum(out.losses.values()).backward()
    assert torch.equal(batch.views["weak"].grad, torch.zeros_like(batch.views["weak"]))
    assert batch.views["strong"].grad.abs().sum() > 0


@pytest.mark.parametrize("rebalance", [(), ("daso",)])
def test_no_gradient_reaches_the_teacher(rebalance):
    config = tiny_config("mean_teacher", rebalance)
    training, _ = train(config, 2)
    batch = random_batch(config, 2)
    for view in batch.views.values():
        view.requires_grad_()
    out = training.learner_step(training.net, training.ema, batch, training.rebalance, t=2)
    sum(out.losses.values()).backward()
    assert batch.views["teacher"].grad is None and batch.views["student"].grad.abs().sum() > 0
    assert all(p.grad is None for p in training.ema.model.parameters())


# --- steps worked by hand --------------------------------------------------------------------------------------------


class PassThrough(nn.Module):
    """A network whose images (N, K, 1, 1) are their own features and logits, times a weight."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.heads = {"rotation": nn.Identity()}

    def features(self, x):
        return self.weight * x.flatten(1)

    def head(self, feats):
        return feats


def as_images(probs):
    return torch.tensor(probs).log()[:, :, None, None]


def hand_batch():
    """Two labeled rows, and four unlabeled ones: sure of 0, unsure, just sure of 1, unsure."""
    weak = as_images([[0.9, 0.1], [0.6, 0.4], [0.25, 0.75], [0.5, 0.5]])
    strong = as_images([[0.5, 0.5], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    return Batch(as_images([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1]), {"weak": weak, "strong": strong},
                 torch.arange(4), {})


def hand_daso(**settings):
    """DASO on two classes and two features, acting from the first step on."""
    return Daso(2, [3, 3], **{"pretrain_steps": 0, "proto_temperature": 0.2, "dist_temperature": 1.0,
                              "refresh_steps": 1, "total_steps": 9, "fixed_blend": 0.5, "lambda_align": 1.0,
                              "prototypes_from": "ema", "ema_train_mode": True} | settings)


def test_supervised_is_the_mean_cross_entropy():
    out = supervised.step(PassThrough(), None, hand_batch(), Rebalance({}), t=0)
    want = -(torch.tensor(0.5).log() + torch.tensor(0.8).log()) / 2
    torch.testing.assert_close(out.losses, {"labeled": want})
    assert out.labels is None and out.mask is None


def test_fixmatch_divides_the_loss_of_the_confident_rows_by_all_rows():
    """Rows 0 and 2 reach .7, with targets 0 and 1: (-log .5 - log .8) / 4, twice."""
    out = fixmatch.step(PassThrough(), None, hand_batch(), Rebalance({}), t=0, threshold=0.7, lambda_u=2.0)
    unlabeled = -2 * (torch.tensor(0.5).log() + torch.tensor(0.8).log()) / 4
    torch.testing.assert_close(out.losses, {"labeled": -(torch.tensor(0.5 * 0.8).log()) / 2, "unlabeled": unlabeled})
    assert out.mask.tolist() == [1, 0, 1, 0]
    assert torch.equal(out.labels.final, out.labels.linear) and out.labels.semantic is None


def test_fixmatch_without_a_confident_row_learns_from_labels_alone():
    out = fixmatch.step(PassThrough(), None, hand_batch(), Rebalance({}), t=0, threshold=0.95, lambda_u=1.0)
    assert out.losses["unlabeled"] == 0


def test_the_weight_of_the_unlabeled_loss_may_be_zero():
    out = fixmatch.step(PassThrough(), None, hand_batch(), Rebalance({}), t=0, threshold=0.0, lambda_u=0.0)
    assert out.losses["unlabeled"] == 0 and out.losses["labeled"] > 0


def test_boss_without_a_drop_keeps_the_mask_of_fixmatch_but_not_its_equal_weights():
    """Of the rows that pass at .6, two are predicted as 0 and one as 1: weights 1/2, 1/2 and 1 become 3/4, 3/4, 3/2."""
    out = fixmatch.step(PassThrough(), None, hand_batch(), Rebalance({"boss": Boss(drop=0.0)}), t=0, threshold=0.6,
                        lambda_u=1.0)
    assert out.mask.tolist() == [1, 1, 1, 0]
    want = -(3 / 4 * math.log(0.5 * 0.1) + 3 / 2 * math.log(0.8)) / 4
    torch.testing.assert_close(out.losses["unlabeled"].detach(), torch.tensor(want))


def test_boss_lets_rows_of_a_rare_class_count_at_a_lower_confidence():
    """Threshold .8 of the frequent class, .8 - .3 (1 - 1/3) = .6 of the rare one: row 2 with its .75 counts."""
    out = fixmatch.step(PassThrough(), None, hand_batch(), Rebalance({"boss": Boss(drop=0.3)}), t=0, threshold=0.8,
                        lambda_u=1.0)
    assert out.mask.tolist() == [1, 0, 1, 0]
    alone = fixmatch.step(PassThrough(), None, hand_batch(), Rebalance({}), t=0, threshold=0.8, lambda_u=1.0)
    assert alone.mask.tolist() == [1, 0, 0, 0]


def test_a_daso_step_uses_the_prototypes_of_its_own_labeled_images():
    """The prototypes are e_0 and e_1 only after this step's labeled rows are queued.

    Row 0 of the weak view has cosine .6 with e_0 and .8 with e_1; at temperature .2 the semantic label is
    softmax(3, 4). With a fixed blend of .5 the final label is half of it and half of softmax(.6, .8).
    """
    x = torch.eye(2)[:, :, None, None]
    u = torch.tensor([[0.6, 0.8]])[:, :, None, None]
    ema = SimpleNamespace(model=PassThrough())
    batch = Batch(x, torch.tensor([0, 1]), {"weak": u, "strong": 2 * u}, torch.arange(1), {})
    out = fixmatch.step(PassThrough(), ema, batch, Rebalance({"daso": hand_daso()}), t=0, threshold=0.5, lambda_u=1.0)
    semantic = torch.tensor([[3.0, 4.0]]).softmax(dim=-1)
    linear = torch.tensor([[0.6, 0.8]]).softmax(dim=-1)
    torch.testing.assert_close(out.labels.semantic, semantic)
    torch.testing.assert_close(out.labels.linear, linear)
    torch.testing.assert_close(out.labels.final, (linear + semantic) / 2)
    torch.testing.assert_close(out.losses["unlabeled"], F.cross_entropy(2 * u.flatten(1), torch.tensor([1])))
    entropy = -(semantic * semantic.log()).sum()  # the strong view has the same direction
    torch.testing.assert_close(out.losses["semantic_alignment"], entropy)


RAMP = {"ramp_steps": 4.0, "ramp_shape": "linear"}


def test_pseudo_label_learns_the_confident_rows_of_the_view_that_labels_them():
    """Rows 0 and 2 reach .7: (-log .9 - log .75) / 4, times weight 2 and a ramp of 1 / 4."""
    out = pseudo_label.step(PassThrough(), None, hand_batch(), Rebalance({}), t=1, threshold=0.7, lambda_u=2.0, **RAMP)
    want = -2 / 4 * math.log(0.9 * 0.75) / 4
    torch.testing.assert_close(out.losses["unlabeled"], torch.tensor(want))
    assert out.mask.tolist() == [1, 0, 1, 0]


def test_the_target_of_pseudo_label_is_a_constant_to_the_gradient():
    """Logits are w log p at w = 1, so the derivative of a row's loss is sum_k (p_k - target_k) log p_k.

    Labeled rows: 0 and -.2 log 4. Confident rows: .1 log .1 - .1 log .9 = -.1 log 9 and -.25 log 3.
    """
    net = PassThrough()
    out = pseudo_label.step(net, None, hand_batch(), Rebalance({}), t=4, threshold=0.7, lambda_u=1.0, **RAMP)
    sum(out.losses.values()).backward()
    want = -0.2 * math.log(4) / 2 - (0.1 * math.log(9) + 0.25 * math.log(3)) / 4
    torch.testing.assert_close(net.weight.grad, torch.tensor(want))


def teacher_batch():
    """One labeled row, and two unlabeled ones that a teacher of weight 2 sees as (.9, .1) and (.5, .5)."""
    student = as_images([[0.5, 0.5], [0.2, 0.8]])
    teacher = as_images([[0.75, 0.25], [0.5, 0.5]])
    views = {"student": student, "teacher": teacher}
    return Batch(as_images([[0.5, 0.5]]), torch.tensor([0]), views, torch.arange(2), {})


def test_mean_teacher_averages_the_squared_error_over_rows_and_classes():
    """Rows .4^2 and .3^2 in both classes: mean .125; times weight 50 and a ramp of 2 / 4."""
    net, ema = PassThrough(), SimpleNamespace(model=PassThrough(2.0))
    out = mean_teacher.step(net, ema, teacher_batch(), Rebalance({}), t=2, lambda_u=50.0, **RAMP)
    torch.testing.assert_close(out.losses["unlabeled"], torch.tensor(3.125))
    torch.testing.assert_close(out.losses["labeled"], torch.tensor(math.log(2)))
    torch.testing.assert_close(out.labels.final, torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
    assert out.mask is None
    out.losses["unlabeled"].backward()
    assert net.weight.grad != 0 and ema.model.weight.grad is None


def test_queue_and_labels_of_mean_teacher_with_daso_all_come_from_the_teacher():
    """The teacher of weight 2 queues 2 e_0 and 2 e_1. It sees (.6, .8) as (1.2, 1.6): cosines .6 and .8."""
    u = torch.tensor([[0.6, 0.8]])[:, :, None, None]
    batch = Batch(torch.eye(2)[:, :, None, None], torch.tensor([0, 1]), {"student": 3 * u, "teacher": u},
                  torch.arange(1), {})
    daso, ema = hand_daso(), SimpleNamespace(model=PassThrough(2.0))
    out = mean_teacher.step(PassThrough(), ema, batch, Rebalance({"daso": daso}), t=4, lambda_u=50.0, **RAMP)
    torch.testing.assert_close(daso.bank.prototypes, 2 * torch.eye(2))
    assert daso.bank.lengths().tolist() == [1, 1]  # queued once, not by a pass of the student as well
    linear, semantic = torch.tensor([[1.2, 1.6]]).softmax(dim=-1), torch.tensor([[3.0, 4.0]]).softmax(dim=-1)
    torch.testing.assert_close(out.labels.linear, linear)
    torch.testing.assert_close(out.labels.semantic, semantic)
    torch.testing.assert_close(out.labels.final, (linear + semantic) / 2)
    error = torch.tensor([[1.8, 2.4]]).softmax(dim=-1) - (linear + semantic) / 2
    torch.testing.assert_close(out.losses["unlabeled"], 50 * error.square().mean())
    assert set(out.losses) == {"labeled", "unlabeled"}


def mixed_batch(*names, seed=0, k=4):
    """Two labeled and two unlabeled rows; the mixing share is 3/4, and partners are four rows further on."""
    generator = torch.Generator().manual_seed(seed)
    rows = {name: torch.randn(2, k, 1, 1, generator=generator) for name in ("x", *names)}
    n = 2 * len(rows)
    draws = {"beta": torch.tensor(0.25), "permutation": torch.arange(n).roll(-4), "quarter_turns": torch.tensor([3, 1])}
    return Batch(rows.pop("x"), torch.tensor([1, 3]), rows, torch.arange(2), draws)


def sharpened(probs):
    return probs**2 / (probs**2).sum(dim=-1, keepdim=True)


def mixed_by_hand(batch, guess, weight):
    """Logits and targets of all rows for a network of `weight`, row by row."""
    x = [row.flatten() for images in (batch.x, *batch.views.values()) for row in images]
    target = [*F.one_hot(batch.y, 4).float(), *list(guess) * len(batch.views)]
    n = len(x)
    logits = torch.stack([weight * (0.75 * x[i] + 0.25 * x[(i + 4) % n]) for i in range(n)])
    return logits, torch.stack([0.75 * target[i] + 0.25 * target[(i + 4) % n] for i in range(n)])


def soft_cross_entropy(logits, target):
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def assert_losses_and_gradients(out, net, want, weight):
    """Terms as wanted, and each with the derivative that the wanted one has: targets are constants in it."""
    assert set(out.losses) == set(want)
    for name, loss in want.items():
        torch.testing.assert_close(out.losses[name], loss, msg=name)
        gradients = [torch.autograd.grad(term, leaf, retain_graph=True)[0]
                     for term, leaf in ((out.losses[name], net.weight), (loss, weight))]
        torch.testing.assert_close(*gradients, msg=name)


def test_mixmatch_mixes_the_sharpened_mean_guess_with_the_labels():
    net, batch, weight = PassThrough(1.5), mixed_batch("weak1", "weak2"), torch.tensor(1.5, requires_grad=True)
    out = mixmatch.step(net, None, batch, Rebalance({}), t=1, sharpen_temperature=0.5, lambda_u=100.0, **RAMP)
    probs = [(1.5 * view.flatten(1)).softmax(dim=-1) for view in batch.views.values()]
    guess = sharpened((probs[0] + probs[1]) / 2)
    torch.testing.assert_close(out.labels.final, guess)
    logits, target = mixed_by_hand(batch, guess, weight)
    want = {"labeled": soft_cross_entropy(logits[:2], target[:2]),
            "unlabeled": 100 / 4 * (logits[2:].softmax(dim=-1) - target[2:]).square().mean()}
    assert_losses_and_gradients(out, net, want, weight)


def test_daso_on_mixmatch_blends_the_first_views_semantic_label_after_sharpening():
    """Weights by class (1, .5, 0, 0): which one applies is said by the sharpened guess, whose order is the guess's."""
    net, batch = PassThrough(), mixed_batch("weak1", "weak2")
    daso = Daso(4, [3] * 4, pretrain_steps=0, proto_temperature=0.2, dist_temperature=1.0, refresh_steps=1,
                total_steps=9, fixed_blend=None, lambda_align=1.0, prototypes_from="ema", ema_train_mode=True)
    daso.bank.push(torch.eye(4)[[0, 2]], torch.tensor([0, 2]))
    daso.class_freq.copy_(torch.tensor([8, 4, 0, 0]))
    ema = SimpleNamespace(model=PassThrough())
    out = mixmatch.step(net, ema, batch, Rebalance({"daso": daso}), t=1, sharpen_temperature=0.5, lambda_u=100.0,
                        **RAMP)
    rows = [view.flatten(1) for view in batch.views.values()]
    guess = sharpened((rows[0].softmax(dim=-1) + rows[1].softmax(dim=-1)) / 2)
    axes = [torch.eye(4)[0], batch.x[0].flatten(), torch.eye(4)[2], batch.x[1].flatten()]  # the classes 1 and 3 are new
    cosines = torch.stack([F.cosine_similarity(rows[0], axis[None]) for axis in axes], dim=1)
    semantic = (cosines / 0.2).softmax(dim=-1)
    share = torch.tensor([1.0, 0.5, 0.0, 0.0])[guess.argmax(dim=-1)][:, None]
    torch.testing.assert_close(out.labels.linear, guess)
    torch.testing.assert_close(out.labels.semantic, semantic)
    torch.testing.assert_close(out.labels.final, (1 - share) * guess + share * semantic)
    assert set(out.losses) == {"labeled", "unlabeled"}
    logits, target = mixed_by_hand(batch, out.labels.final, torch.tensor(1.0))
    torch.testing.assert_close(out.losses["unlabeled"].detach(),
                               25 * (logits[2:].softmax(dim=-1) - target[2:]).square().mean())


REMIXMATCH = {"sharpen_temperature": 0.5, "lambda_u": 1.5, "lambda_premixup": 0.5, "lambda_rotation": 0.25, **RAMP}


def test_remixmatch_has_four_terms_of_which_two_ramp_up():
    """Four classes, so that the rotation head may pass its features through; images of one pixel do not turn."""
    net, batch = PassThrough(1.5), mixed_batch("weak", "strong1", "strong2")
    weight = torch.tensor(1.5, requires_grad=True)
    out = remixmatch.step(net, None, batch, Rebalance({}), t=1, **REMIXMATCH)
    guess = sharpened((1.5 * batch.views["weak"].flatten(1)).softmax(dim=-1))
    torch.testing.assert_close(out.labels.final, guess)
    logits, target = mixed_by_hand(batch, guess, weight)
    strong = weight * batch.views["strong1"].flatten(1)
    want = {"labeled": soft_cross_entropy(logits[:2], target[:2]),
            "unlabeled": 1.5 / 4 * soft_cross_entropy(logits[2:], target[2:]),
            "premixup": 0.5 / 4 * soft_cross_entropy(strong, guess),
            "rotation": 0.25 * F.cross_entropy(strong, torch.tensor([3, 1]))}
    assert_losses_and_gradients(out, net, want, weight)


def test_remixmatch_with_daso_aligns_from_the_joint_pass_without_ramp():
    """At t = 0 the two ramped terms are 0; a blend of 0 leaves the other two as they are without DASO."""
    batch = mixed_batch("weak", "strong1", "strong2")
    daso = Daso(4, [3] * 4, pretrain_steps=0, proto_temperature=0.2, dist_temperature=1.0, refresh_steps=1,
                total_steps=9, fixed_blend=0.0, lambda_align=0.5, prototypes_from="ema", ema_train_mode=True)
    ema = SimpleNamespace(model=PassThrough(2.0))
    out = remixmatch.step(PassThrough(), ema, batch, Rebalance({"daso": daso}), t=0, **REMIXMATCH)
    plain = remixmatch.step(PassThrough(), None, batch, Rebalance({}), t=0, **REMIXMATCH)
    torch.testing.assert_close({name: out.losses[name] for name in plain.losses}, plain.losses)
    assert out.losses["unlabeled"] == out.losses["premixup"] == 0 and out.losses["rotation"] > 0
    prototypes = torch.zeros(4, 4)
    prototypes[[1, 3]] = 2 * batch.x.flatten(1)

    def similarities(images):
        return F.normalize(images.flatten(1), dim=-1) @ F.normalize(prototypes, dim=-1).T / 0.2

    semantic = similarities(batch.views["weak"]).softmax(dim=-1)
    torch.testing.assert_close(out.labels.semantic, semantic)
    want = 0.5 * soft_cross_entropy(similarities(batch.views["strong1"]), semantic)
    torch.testing.assert_close(out.losses["semantic_alignment"].detach(), want)


@pytest.mark.parametrize("rebalance", [(), ("daso",)])
def test_the_joint_pass_of_remixmatch_gives_its_target_no_gradient(rebalance):
    """With DASO the weak view passes with gradient; still no term depends on it but through the mixed images."""
    net, batch = PassThrough(1.5), mixed_batch("weak", "strong1", "strong2")
    daso = Daso(4, [3] * 4, pretrain_steps=0, proto_temperature=0.2, dist_temperature=1.0, refresh_steps=1,
                total_steps=9, fixed_blend=0.5, lambda_align=0.0, prototypes_from="ema", ema_train_mode=True)
    parts = Rebalance({"daso": daso} if rebalance else {})
    out = remixmatch.step(net, SimpleNamespace(model=PassThrough()), batch, parts, t=4, **REMIXMATCH)
    weight = torch.tensor(1.5, requires_grad=True)
    logits, target = mixed_by_hand(batch, out.labels.final, weight)
    strong = weight * batch.views["strong1"].flatten(1)
    want = {"labeled": soft_cross_entropy(logits[:2], target[:2]),
            "unlabeled": 1.5 * soft_cross_entropy(logits[2:], target[2:]),
            "premixup": 0.5 * soft_cross_entropy(strong, out.labels.final),
            "rotation": 0.25 * F.cross_entropy(strong, torch.tensor([3, 1]))}
    assert_losses_and_gradients(out, net, want, weight)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_counter_clockwise_and_image_by_image(turns):
    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    once = torch.tensor([[[2.0, 4.0], [1.0, 3.0]]])
    want = {0: image, 1: once, 2: image.flip(1, 2), 3: once.flip(1, 2)}[turns]
    got = remixmatch.rotate(torch.stack([image, 10 * image]), torch.tensor([turns, 0]))
    assert torch.equal(got, torch.stack([want, 10 * image]))


def test_quarter_turns_are_drawn_uniformly():
    turns = remixmatch.draw(1, 4000, generator=torch.Generator().manual_seed(0), mixup_alpha=0.75)["quarter_turns"]
    shares = torch.bincount(turns, minlength=4) / 4000
    assert len(shares) == 4 and (shares - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 4000)


def usadtm_batch():
    """Prototypes are (1, 0) and (0, 4). Of the weak rows only the first and last count.

    Row 0 is like the first and nearest to it. Row 1 is nearest to the second, at a similarity of 3 / 13^.5 = .83.
    Row 2 is like the second, but nearer to the first. Row 3 is like the second and nearest to it.
    """
    def images(rows):
        return torch.tensor(rows)[:, :, None, None]

    views = {"identity": images([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]]),
             "weak": images([[0.9, 0.1], [2.0, 3.0], [0.1, 1.0], [0.3, 3.0]]),
             "strong": images([[0.0, 0.0], [5.0, 5.0], [1.0, 2.0], [0.0, math.log(3)]])}
    return Batch(images([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]), views, torch.arange(4), {})


def usadtm_step(t, **settings):
    memory = usadtm.Memory(torch.tensor([1, 1]), 2, queue_ratio=5)
    settings = {"pretrain_steps": 2, "similarity_threshold": 0.85, "lambda_u": 1.0, "lambda_mi": 0.1} | settings
    return usadtm.step(PassThrough(), None, usadtm_batch(), Rebalance({}), t=t, memory=memory, **settings), memory


def test_usadtm_keeps_rows_that_are_both_like_and_near_the_same_prototype():
    """Row 0: -log 1/2. Row 3: -log 3/4. Divided by all four rows, times weight 2."""
    out, memory = usadtm_step(2, lambda_u=2.0)
    assert torch.equal(memory.prototypes, torch.tensor([[1.0, 0.0], [0.0, 4.0]]))  # of this step's own features
    assert out.mask.tolist() == [1, 0, 0, 1]
    torch.testing.assert_close(out.losses["unlabeled"].detach(), torch.tensor(2 * math.log(2 * 4 / 3) / 4))
    assert out.labels.final.argmax(dim=-1).tolist() == [0, 1, 1, 1]
    assert usadtm_step(2, similarity_threshold=0.83)[0].mask.tolist() == [1, 1, 0, 1]


def test_usadtm_has_no_labels_before_its_time_but_queues_and_compares_views():
    out, memory = usadtm_step(1)
    assert out.losses["unlabeled"] == 0 and not out.mask.any()
    assert memory.lengths().tolist() == [1, 1]
    assert out.losses["mutual_information"] < 0


def test_usadtm_compares_the_three_views_pair_by_pair():
    out, _ = usadtm_step(0)
    probs = [view.flatten(1).double().softmax(dim=-1).numpy() for view in usadtm_batch().views.values()]
    total = 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        joint = sum(np.outer(p, q) + np.outer(q, p) for p, q in zip(probs[i], probs[j], strict=True)) / 8
        total -= (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
    assert abs(float(out.losses["mutual_information"].detach()) - 0.1 * total / 3) < 1e-7


def test_queues_of_usadtm_hold_five_times_the_images_of_a_class():
    assert usadtm.Memory(torch.tensor([7, 2, 1]), 3, queue_ratio=5).queue_sizes.tolist() == [35, 10, 5]


def test_the_memory_of_usadtm_takes_the_networks_own_features_and_is_restored():
    config = tiny_config("usadtm")
    training, _ = train(config, 2)
    assert training.memory.n_pushed.sum() == 8
    resumed = new_training(config)
    resumed.restore(training.state(2, 0.0))
    for name, value in training.memory.state_dict().items():
        assert torch.equal(resumed.memory.state_dict()[name], value), name
    outs = [each.step(random_batch(config, 2), 2) for each in (training, resumed)]
    assert torch.equal(outs[0].labels.final, outs[1].labels.final)


def test_what_a_usadtm_run_stores_of_the_unlabeled_images_are_its_own_labels(tmp_path):
    """Those of the nearest prototype, which it learns from, and not the head's."""
    config = tiny_run_config(save_tiny(tmp_path), method="usadtm", rebalance="")
    run(config, tmp_path / "run", progress=False)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    with np.load(tmp_path / "run" / "outputs.npz") as arrays:
        feats, rows = torch.from_numpy(arrays["feats"]).float(), arrays["feats_row"]
        final, semantic, linear = (arrays[kind][rows] for kind in ("final", "semantic", "linear"))
    similarity = F.normalize(feats, dim=1) @ F.normalize(state["memory"]["prototypes"], dim=1).T
    np.testing.assert_allclose(final, similarity.softmax(dim=1), atol=2e-3)
    np.testing.assert_array_equal(final, semantic)
    assert np.abs(linear - final).max() > 0.01


@pytest.mark.parametrize("method", ["pseudo_label", "mean_teacher", "mixmatch", "remixmatch"])
def test_losses_on_unlabeled_images_grow_linearly_from_zero_to_their_weight(method):
    """Other terms do not; a ramp of 4 steps."""
    config = tiny_config(method, ramp_steps=4.0)
    ramped = LOSSES[method] - {"labeled", "rotation"}
    at = {t: new_training(config) for t in (0, 1, 2, 4, 9)}
    losses = {t: training.learner_step(training.net, training.ema, random_batch(config, 0), training.rebalance,
                                       t=t).losses for t, training in at.items()}
    for name, full in losses[9].items():
        want = {0: 0.0, 1: 0.25, 2: 0.5, 4: 1.0} if name in ramped else dict.fromkeys((0, 1, 2, 4), 1.0)
        assert full > 0
        for t, share in want.items():
            torch.testing.assert_close(losses[t][name], share * full, msg=f"{name} at {t}")


def test_crt_moves_the_head_and_the_buffers_of_the_encoder_alone():
    config = tiny_config("supervised", "crt")
    training = new_training(config)
    before = {name: value.clone() for name, value in training.net.state_dict().items()}
    for t in range(2):
        training.step(random_batch(config, t), t)
    for name, value in training.net.state_dict().items():
        moves = name.startswith("head.") or "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) != moves, name

"""Base learners: every legal combination trains, every other is refused, and the steps match cases worked by hand."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dasolib.config import make_config
from dasolib.methods import LEARNERS, fixmatch, supervised
from dasolib.methods.step import Batch
from dasolib.rebalance import REBALANCERS, Rebalance, check_combination
from dasolib.train import Training

K = 3
COUNTS = torch.tensor([12, 6, 2])
DASO = {"pretrain_steps": 1, "refresh_steps": 1, "queue_size": 3}


def combinations():
    """Every base learner with every set of re-balancing methods, legal or not."""
    for method in LEARNERS:
        for size in range(len(REBALANCERS) + 1):
            for names in itertools.combinations(REBALANCERS, size):
                yield method, names


def is_legal(method, names):
    """Each re-balancing method takes this base learner, and no two have the same role."""
    roles = [REBALANCERS[name].role for name in names]
    return all(method in REBALANCERS[name].learners for name in names) and len(set(roles)) == len(roles)


LEGAL = [combination for combination in combinations() if is_legal(*combination)]
ILLEGAL = [combination for combination in combinations() if not is_legal(*combination)]


def label(combination):
    return "-".join((combination[0], *combination[1]))


def tiny_config(method, rebalance=(), **changes):
    """WRN-10-1, B = 4, mu = 2, on data that no test loads."""
    settings = {"batch_size": 4, "total_steps": 10, "precision": "fp32", "channels_last": False, "threads": 1}
    if not LEARNERS[method].views:
        settings |= {"warmup_steps": 0}  # else the first step has learning rate 0
    if "threshold" in LEARNERS[method].settings:
        settings |= {"threshold": 0.4}  # so that some of a fresh network's labels count
    settings |= DASO if "daso" in rebalance else {}
    return make_config("cpu", dataset="random", method=method, rebalance=rebalance, device="cpu",
                       **settings | changes)


def random_batch(method, t, *, side=8, n_labeled=4):
    """Random images and classes; all views of a step show the same images with other noise."""
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(n_labeled, 3, side, side, generator=generator)
    u = torch.randn(2 * n_labeled, 3, side, side, generator=generator)
    views = {name: u + 0.3 * torch.randn(u.shape, generator=generator) for name in LEARNERS[method].views}
    return Batch(x, torch.randint(K, (n_labeled,), generator=generator), views)


def train(config, n_steps, counts=COUNTS):
    """A `Training` after `n_steps` steps on random batches, and what the steps returned."""
    training = Training(config, counts, 3, torch.device("cpu"))
    return training, [training.step(random_batch(config.method, t), t) for t in range(n_steps)]


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_every_legal_combination_trains_two_steps(combination):
    """DASO has P = 1 here, so the second step blends and aligns."""
    method, rebalance = combination
    training, outs = train(tiny_config(method, rebalance), 1)
    before = [p.detach().clone() for p in training.net.parameters()]
    outs.append(training.step(random_batch(method, 1), 1))
    for out in outs:
        assert out.losses and all(loss.ndim == 0 and torch.isfinite(loss) for loss in out.losses.values())
    for (name, p), old in zip(training.net.named_parameters(), before, strict=True):
        assert p.grad is not None and p.grad.abs().sum() > 0, f"{name} got no gradient"
        assert torch.isfinite(p).all() and not torch.equal(p, old), f"{name} did not move"
    assert ("semantic_alignment" in outs[1].losses) == ("daso" in rebalance)
    assert set(outs[1].views) == {"labeled", *LEARNERS[method].views}


@pytest.mark.parametrize("combination", ILLEGAL, ids=label)
def test_every_other_combination_is_refused_by_name_with_a_reason(combination):
    method, rebalance = combination
    with pytest.raises(ValueError) as caught:
        make_config(dataset="random", method=method, rebalance=rebalance)
    told, reason = str(caught.value).rsplit(": ", maxsplit=1)
    assert len(reason.split()) >= 3
    named = [name for name in rebalance if name in told.replace("'", ",").split(",")]
    assert named and ("method" not in told or repr(method) in told)
    with pytest.raises(ValueError):
        check_combination(method, rebalance)


def test_the_table_has_legal_and_illegal_combinations():
    assert ("fixmatch", ("la", "daso")) in LEGAL and ("supervised", ("ldam_drw",)) in LEGAL
    assert ("supervised", ("daso",)) in ILLEGAL and ("fixmatch", ("la", "cb")) in ILLEGAL
    assert ("fixmatch", ("ldam_drw",)) in ILLEGAL


@pytest.mark.parametrize("name", REBALANCERS)
def test_a_line_of_the_table_says_why_where_it_leaves_a_learner_out(name):
    line = REBALANCERS[name]
    assert line.learners <= set(LEARNERS)
    assert line.role
    assert bool(line.refusal) == (line.learners != set(LEARNERS))


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="method='fixmach': choose one of supervised, fixmatch"):
        check_combination("fixmach", ())


def test_listing_order_changes_neither_configuration_nor_name_nor_numbers():
    orders = [("la", "daso"), ("daso", "la"), "daso, la"]
    configs = [tiny_config("fixmatch", order) for order in orders]
    assert configs[0] == configs[1] == configs[2]
    assert len({config.run_name() for config in configs}) == 1
    nets = [train(config, 2)[0].net.state_dict() for config in configs[:2]]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


# --- strength 0 is the base learner ----------------------------------------------------------------------------------

NO_DASO = {"fixed_blend": 0.0, "lambda_align": 0.0, "ema_train_mode": False}


@pytest.mark.parametrize(
    ("method", "rebalance", "settings"),
    [
        ("supervised", "la", {"la_tau": 0.0}),
        ("fixmatch", "la", {"la_tau": 0.0}),
        ("supervised", "cb", {"cb_beta": 0.0}),
        ("fixmatch", "cb", {"cb_beta": 0.0}),
        ("supervised", "ldam_drw", {"reweight_warmup_steps": 10}),  # not reached
        ("supervised", "cb", {"reweight_warmup_steps": 10}),
        ("fixmatch", "daso", NO_DASO),
        ("fixmatch", "la,daso", NO_DASO | {"la_tau": 0.0}),
        ("fixmatch", "daso", {"pretrain_steps": 10, "ema_train_mode": False}),
    ],
)
def test_a_method_of_strength_zero_leaves_weights_and_average_exactly_as_they_are(method, rebalance, settings):
    plain, _ = train(tiny_config(method), 4)
    training, _ = train(tiny_config(method, rebalance, **settings), 4)
    networks = [(plain.net, training.net)] + ([] if plain.ema is None else [(plain.ema.model, training.ema.model)])
    for want, got in networks:
        for name, value in want.state_dict().items():
            assert torch.equal(got.state_dict()[name], value), name


def test_as_published_daso_of_strength_zero_moves_nothing_but_the_averages_buffers():
    plain, _ = train(tiny_config("fixmatch"), 4)
    training, _ = train(tiny_config("fixmatch", "daso", **NO_DASO | {"ema_train_mode": True}), 4)
    for name, value in plain.net.state_dict().items():
        assert torch.equal(training.net.state_dict()[name], value), name
    parameters = dict(plain.ema.model.named_parameters())
    for name, value in plain.ema.model.state_dict().items():
        assert torch.equal(training.ema.model.state_dict()[name], value) == (name in parameters), name


@pytest.mark.parametrize(
    ("method", "rebalance", "settings"),
    [
        ("fixmatch", "la", {}),
        ("fixmatch", "cb", {}),
        ("supervised", "ldam_drw", {"reweight_warmup_steps": 3}),
        ("fixmatch", "daso", {"fixed_blend": 0.0, "ema_train_mode": False}),
        ("fixmatch", "daso", NO_DASO | {"fixed_blend": 1.0}),
    ],
)
def test_the_comparison_with_the_base_learner_notices_any_other_strength(method, rebalance, settings):
    """Class-balanced weights with beta .999 are close to inverse frequencies, and the others are further off."""
    plain, _ = train(tiny_config(method), 4)
    training, _ = train(tiny_config(method, rebalance, **settings), 4)
    assert not torch.equal(plain.net.stem.weight, training.net.stem.weight)


# --- steps worked by hand --------------------------------------------------------------------------------------------


class PassThrough(nn.Module):
    """A network whose images (N, K, 1, 1) are their own features and logits, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

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
    return Batch(as_images([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1]), {"weak": weak, "strong": strong})


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


@pytest.mark.parametrize("rebalance", [(), ("daso",), ("la", "daso")])
def test_no_gradient_reaches_the_weak_view_through_the_pseudo_label(rebalance):
    """In eval mode, so that BatchNorm does not mix the views."""
    training, _ = train(tiny_config("fixmatch", rebalance), 2)
    batch = random_batch("fixmatch", 2)
    for view in batch.views.values():
        view.requires_grad_()
    out = training.learner_step(training.net.eval(), training.ema, batch, training.rebalance, t=2)
    assert not out.labels.final.requires_grad and out.mask.sum() > 0
    sum(out.losses.values()).backward()
    assert torch.equal(batch.views["weak"].grad, torch.zeros_like(batch.views["weak"]))
    assert batch.views["strong"].grad.abs().sum() > 0


@pytest.mark.parametrize("rebalance", ["la", "cb"])
def test_a_correction_of_the_labeled_loss_leaves_the_unlabeled_one_alone(rebalance):
    outs = [train(tiny_config("fixmatch", names), 1)[1][0] for names in ("", rebalance)]
    assert torch.equal(outs[0].losses["unlabeled"], outs[1].losses["unlabeled"])
    assert torch.equal(outs[0].labels.final, outs[1].labels.final)
    assert not torch.equal(outs[0].losses["labeled"], outs[1].losses["labeled"])


def test_all_views_of_a_fixmatch_step_pass_at_once():
    """Passing them one by one would normalise each with its own statistics."""
    config = tiny_config("fixmatch")
    training = Training(config, COUNTS, 3, torch.device("cpu"))
    sizes = []
    training.net.stem.register_forward_pre_hook(lambda _net, args: sizes.append(len(args[0])))
    training.step(random_batch("fixmatch", 0), 0)
    assert sizes == [4 + 8 + 8]


def test_a_learner_without_moving_average_evaluates_its_own_network():
    training, _ = train(tiny_config("supervised"), 1)
    assert training.ema is None and training.evaluated is training.net
    training, _ = train(tiny_config("fixmatch"), 1)
    assert training.evaluated is training.ema.model


def test_a_step_takes_exactly_the_settings_its_line_names():
    for method, learner in LEARNERS.items():
        config = tiny_config(method)
        assert set(config.learner_settings()) == set(learner.settings)
        assert json.dumps(config.learner_settings())  # plain values
        net = Training(config, COUNTS, 3, torch.device("cpu")).net
        with pytest.raises(TypeError):
            learner.step(net, None, random_batch(method, 0), Rebalance({}), t=0, no_such_setting=1,
                         **config.learner_settings())


def test_a_daso_step_uses_the_prototypes_of_its_own_labeled_images():
    """The prototypes are e_0 and e_1 only after this step's labeled rows are queued.

    Row 0 of the weak view has cosine .6 with e_0 and .8 with e_1; at temperature .2 the semantic label is
    softmax(3, 4). With a fixed blend of .5 the final label is half of it and half of softmax(.6, .8).
    """
    config = tiny_config("fixmatch", "daso", fixed_blend=0.5, proto_temperature=0.2, pretrain_steps=0)
    daso = REBALANCERS["daso"].build(COUNTS[:2], 2, **{name: getattr(config, name)
                                                      for name in REBALANCERS["daso"].settings})
    x = torch.eye(2)[:, :, None, None]
    u = torch.tensor([[0.6, 0.8]])[:, :, None, None]
    ema = SimpleNamespace(model=PassThrough())
    batch = Batch(x, torch.tensor([0, 1]), {"weak": u, "strong": 2 * u})
    out = fixmatch.step(PassThrough(), ema, batch, Rebalance({"daso": daso}), t=0, threshold=0.5, lambda_u=1.0)
    semantic = torch.tensor([[3.0, 4.0]]).softmax(dim=-1)
    linear = torch.tensor([[0.6, 0.8]]).softmax(dim=-1)
    torch.testing.assert_close(out.labels.semantic, semantic)
    torch.testing.assert_close(out.labels.linear, linear)
    torch.testing.assert_close(out.labels.final, (linear + semantic) / 2)
    torch.testing.assert_close(out.losses["unlabeled"], F.cross_entropy(2 * u.flatten(1), torch.tensor([1])))
    entropy = -(semantic * semantic.log()).sum()  # the strong view has the same direction
    torch.testing.assert_close(out.losses["semantic_alignment"], entropy)

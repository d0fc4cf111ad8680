"""The record of a run: the paper's values, the CPU preset, what is refused, and what makes a run another run."""

import json
import platform
import re
import warnings

import numpy as np
import pytest
import torch

from dasolib.config import (
    NOT_IDENTITY,
    PRESETS,
    YOUNGER,
    Config,
    available_cores,
    check_parameters,
    dataset_name,
    fastest_precision,
    make_config,
    paper_alignment,
    paper_dist_temperature,
)
from dasolib.methods import LEARNERS
from dasolib.rebalance import REBALANCERS
from dasolib.run_folder import project_root
from dasolib.schedules import lr_at
from tests.test_methods import LEGAL, label

DASO = {"dataset": "cifar10", "method": "fixmatch", "rebalance": "daso"}


def config(preset="paper", **changes):
    return make_config(preset, **DASO | {"threads": 1} | changes)


def values(made, *names):
    return tuple(getattr(made, name) for name in names)


# --- the paper's settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "split"),
    [
        ("cifar10", (1500, 3000, 100, 100, "equal", 5000, True, None)),
        ("cifar100", (150, 300, 10, 10, "equal", 5000, True, None)),
        ("stl10", (150, None, 10, None, "unknown", 500, True, 32)),
        ("semi_aves", (None, None, None, None, "unknown", 0, True, 224)),
        ("semi_aves_unknown", (None, None, None, None, "unknown", 0, True, 224)),
        ("mnist5k", (60, 300, 30, 30, "reversed", 0, False, None)),
        ("photos/birds", (None, None, None, None, "unknown", 0, True, None)),
    ],
)
def test_each_data_set_has_its_split(dataset, split):
    made = config(dataset=dataset)
    names = ("n1", "m1", "gamma_l", "gamma_u", "unlabeled", "n_val", "flip", "train_resolution")
    assert values(made, *names) == split


def test_a_file_or_folder_called_like_a_known_set_has_its_split():
    assert config(dataset="data/cifar10.npz").n1 == config(dataset="elsewhere/cifar10/").n1 == 1500


def test_semi_supervised_runs_have_the_papers_settings():
    made = config()
    assert values(made, "depth", "width", "batch_size", "mu", "total_steps") == (28, 2, 64, 2, 250_000)
    assert values(made, "lr", "momentum", "weight_decay", "schedule", "warmup_steps") == (.03, .9, 5e-4, "constant", 0)
    assert values(made, "ema_decay", "ema_weight_decay", "threshold", "lambda_u") == (.999, 0, .95, 1)
    assert values(made, "eval_steps", "eval_images", "precision") == (500, None, "fp32")


def test_daso_has_the_papers_settings():
    made = config()
    assert values(made, "pretrain_steps", "refresh_steps", "queue_size", "queue_sizing") == (5000, 100, 256, "balanced")
    assert values(made, "proto_temperature", "lambda_align", "fixed_blend") == (.05, 1, None)
    assert values(made, "prototypes_from", "ema_train_mode") == ("ema", True)


def test_supervised_runs_warm_up_and_drop_the_rate_a_hundredfold_twice():
    made = config(method="supervised", rebalance="")
    assert values(made, "lr", "schedule", "milestones", "lr_decay") == (.1, "multistep", (200_000, 225_000), .01)
    assert values(made, "warmup_steps", "warmup_factor", "warmup_shape") == (6250, 0, "linear")


def test_corrections_of_the_labeled_loss_have_the_papers_settings():
    assert config(rebalance="la").la_tau == 1
    assert values(config(rebalance="cb"), "cb_beta", "reweight_warmup_steps") == (.999, 0)
    made = config(method="supervised", rebalance="ldam_drw")
    assert values(made, "cb_beta", "ldam_max_margin", "ldam_scale") == (.999, .5, 30)
    assert made.reweight_warmup_steps == 200_000  # 80 % of the run


# What each base learner has in the paper, with T = 250,000: shares of T are worked out.
PUBLISHED_LEARNERS = {
    "pseudo_label": {"mu": 1, "threshold": 0.95, "lambda_u": 1, "ramp_steps": 100_000, "ramp_shape": "linear"},
    "mean_teacher": {"mu": 1, "lambda_u": 50, "ramp_steps": 100_000, "ramp_shape": "linear"},
    "mixmatch": {"mu": 1, "lambda_u": 100, "ramp_steps": 4000, "ramp_shape": "linear", "mixup_alpha": 0.5,
                 "sharpen_temperature": 0.5},
    "remixmatch": {"mu": 1, "lambda_u": 1.5, "ramp_steps": 4000, "ramp_shape": "linear", "mixup_alpha": 0.75,
                   "sharpen_temperature": 0.5, "lambda_premixup": 0.5, "lambda_rotation": 0.5, "alignment": True,
                   "alignment_window": 128, "alignment_temperature": 1},
    "usadtm": {"mu": 1, "pretrain_steps": 500, "similarity_threshold": 0.85, "lambda_u": 1, "lambda_mi": 0.1},
    "fixmatch": {"mu": 2, "threshold": 0.95, "lambda_u": 1},
}
SUPERVISED = {"lr": 0.1, "schedule": "multistep", "milestones": (200_000, 225_000), "lr_decay": 0.01,
              "warmup_steps": 6250, "warmup_factor": 0}


@pytest.mark.parametrize(("method", "published"), PUBLISHED_LEARNERS.items())
def test_each_semi_supervised_learner_has_the_papers_settings(method, published):
    made = config(method=method, rebalance="")
    common = {"lr": 0.03, "schedule": "constant", "warmup_steps": 0, "batch_size": 64, "total_steps": 250_000,
              "ema_decay": 0.999, "momentum": 0.9, "weight_decay": 5e-4}
    assert values(made, *common) == tuple(common.values())
    assert {name: getattr(made, name) for name in published} == published
    own = {*LEARNERS[method].settings, *LEARNERS[method].draw_settings}
    assert own <= set(published)  # the table above leaves out none
    assert not set(published) & set(made.without_effect())


def test_every_learner_with_unlabeled_images_is_in_the_table():
    assert set(PUBLISHED_LEARNERS) == {name for name, learner in LEARNERS.items() if learner.views}


def test_the_estimate_is_trained_at_the_constant_rate_of_semi_supervised_runs():
    made = config(method="distribution_estimate", rebalance="")
    assert values(made, "lr", "schedule", "warmup_steps", "milestones") == (0.03, "constant", 0, ())
    assert made.total_steps == 250_000


def test_crt_trains_its_head_for_100_000_weighted_steps_on_the_schedule_of_supervised_runs():
    made = config(method="supervised", rebalance="crt", source="runs/x")
    assert values(made, "total_steps", "lr", "warmup_steps", "milestones") == (100_000, .1, 2500, (80_000, 90_000))
    assert values(made, "crt_balancing", "cb_beta", "reweight_warmup_steps") == ("weights", 0.999, 0)
    assert config("cpu", method="supervised", rebalance="crt", source="runs/x").total_steps == 4000
    assert config(method="supervised", rebalance="crt", source="runs/x", total_steps=50).total_steps == 50


# What each method on pseudo-labels has in the paper, with T = 250,000.
DARP = {"darp_warmup_steps": 100_000, "darp_period": 10, "darp_alpha": 2, "darp_iterations": 10,
        "darp_newton_iterations": 30, "darp_newton_tolerance": 0.1}
PUBLISHED_PARTS = {
    ("fixmatch", "distribution_alignment"): {"alignment_window": 128, "alignment_temperature": 1,
                                             "alignment_eps": 1e-6},
    ("fixmatch", "darp"): DARP,
    ("remixmatch", "darp"): DARP | {"alignment": True},
    ("fixmatch", "crest"): {"n_generations": 5, "crest_alpha": 3},
    ("fixmatch", "crest_plus"): {"n_generations": 5, "crest_alpha": 3, "crest_t_min": 0.5, "alignment_window": 128,
                                 "alignment_eps": 1e-6},
    # The ramp-up starts afresh: .016 of a generation of 50,000 steps.
    ("remixmatch", "crest"): {"n_generations": 5, "crest_alpha": 3, "ramp_steps": 800},
    ("fixmatch", "boss"): {"threshold": 0.95, "boss_drop": 0.25},
    ("fixmatch", "abc"): {"threshold": 0.95, "abc_epoch_steps": 500, "abc_epochs": 500, "abc_semantic": True},
}


@pytest.mark.parametrize(("combination", "published"), PUBLISHED_PARTS.items(), ids=str)
def test_each_method_on_pseudo_labels_has_the_papers_settings(combination, published):
    method, rebalance = combination
    made = config(method=method, rebalance=rebalance)
    assert {name: getattr(made, name) for name in published} == published
    assert set(REBALANCERS[rebalance].settings) <= set(published)
    assert set(published) & set(made.without_effect()) <= {"abc_semantic"}  # without DASO there is nothing to blend


@pytest.mark.parametrize(("dataset", "rebalance", "aligns"), [
    ("cifar10", "", True), ("cifar100", "", True), ("stl10", "", False), ("mnist5k", "", True),
    ("cifar10", "daso", False), ("cifar100", "daso", True), ("stl10", "daso", False), ("cifar10", "la", True),
    ("cifar10", "la,daso", False), ("data/cifar10.npz", "daso", False),
])
def test_remixmatch_aligns_but_on_stl10_and_with_daso_on_cifar10(dataset, rebalance, aligns):
    made = config(dataset=dataset, method="remixmatch", rebalance=rebalance)
    assert made.alignment == aligns == paper_alignment(dataset_name(dataset), made.rebalance)
    other = config(dataset=dataset, method="remixmatch", rebalance=rebalance, alignment=not aligns)
    for this, expected in ((made, aligns), (other, not aligns)):
        assert set(this.parts()) == {*this.rebalance, *["distribution_alignment"] * expected}
        assert list(this.parts()) == [name for name in REBALANCERS if name in this.parts()]  # in table order


def test_crest_plus_aligns_in_place_of_remixmatch_and_crest_beside_it():
    assert config(method="remixmatch", rebalance="crest_plus").parts() == ("crest_plus",)
    assert config(method="remixmatch", rebalance="crest").parts() == ("distribution_alignment", "crest")


@pytest.mark.parametrize(("rebalance", "total_steps", "generations", "length"), [
    ("", 1000, 1, 1000), ("crest", 1000, 5, 200), ("crest_plus", 1000, 5, 200), ("abc", 1001, 1, 1001)])
def test_a_run_of_crest_has_equal_generations(rebalance, total_steps, generations, length):
    made = config("cpu", rebalance=rebalance, total_steps=total_steps)
    assert (made.generations, made.generation_steps) == (generations, length)


@pytest.mark.parametrize(("rebalance", "changes", "following"), [
    ("crest", {"total_steps": 251}, 255), ("crest_plus", {"total_steps": 9999}, 10_000),
    ("crest", {"total_steps": 10, "n_generations": 4}, 12), ("la,crest", {"total_steps": 3}, 5)])
def test_a_length_that_generations_do_not_divide_is_refused_with_the_next_one_that_they_do(rebalance, changes,
                                                                                           following):
    n = changes.get("n_generations", 5)
    message = (f"total_steps={changes['total_steps']} must be divisible by n_generations={n}; "
               f"the next such length is {following}$")
    with pytest.raises(ValueError, match=message):
        config("cpu", rebalance=rebalance, **changes)
    assert config("cpu", rebalance=rebalance, **changes | {"total_steps": following}).total_steps == following
    assert config("cpu", rebalance="", total_steps=changes["total_steps"])  # without CReST any length will do


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "stl10", "mnist5k", "birds"])
@pytest.mark.parametrize("unlabeled", ["equal", "uniform", "reversed", "unknown"])
@pytest.mark.parametrize("gamma_u", [1.0, 50.0, 100.0])
def test_only_cifar10_with_equal_imbalance_blends_at_temperature_1_5(dataset, unlabeled, gamma_u):
    is_special = dataset == "cifar10" and unlabeled == "equal" and gamma_u == 100
    assert paper_dist_temperature(dataset, unlabeled, 100.0, gamma_u) == (1.5 if is_special else 0.3)


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, 1.5),
        ({"gamma_l": 150.0}, 1.5),  # the unlabeled ratio follows
        ({"gamma_l": 150.0, "gamma_u": 100.0}, 0.3),
        ({"unlabeled": "uniform"}, 0.3),
        ({"unlabeled": "reversed"}, 0.3),
        ({"dataset": "data/cifar10.npz"}, 1.5),
        ({"dataset": "cifar100"}, 0.3),
        ({"dataset": "stl10"}, 0.3),
        ({"dist_temperature": 0.7}, 0.7),
    ],
)
def test_a_configuration_takes_the_blend_temperature_of_its_split(changes, want):
    assert config(**changes).dist_temperature == want


@pytest.mark.parametrize(
    ("unlabeled", "gamma_u"), [("equal", 100), ("reversed", 100), ("uniform", 1)]
)
def test_the_unlabeled_ratio_follows_from_the_kind_of_unlabeled_set(unlabeled, gamma_u):
    assert config(unlabeled=unlabeled).gamma_u == gamma_u


# --- Semi-Aves -------------------------------------------------------------------------------------------------------


def aves(preset="paper", **changes):
    return config(preset, **{"dataset": "semi_aves"} | changes)


def test_semi_aves_has_the_papers_settings():
    made = aves()
    assert values(made, "batch_size", "mu", "lr", "momentum", "weight_decay") == (256, 5, .04, .9, 3e-4)
    assert values(made, "network", "crop", "resolution", "train_resolution", "flip") == (
        "resnet34", "resized", 256, 224, True)
    assert values(made, "ema_decay", "dist_temperature", "threshold", "queue_size", "proto_temperature") == (
        .9, .5, .95, 256, .05)
    assert aves(method="supervised", rebalance="").lr == .1


@pytest.mark.parametrize(("dataset", "method", "epoch"), [
    ("semi_aves", "fixmatch", 21),  # 26,640 images, 1,280 a step: 20.8
    ("semi_aves_unknown", "fixmatch", 116),  # 148,848: 116.3
    ("semi_aves", "supervised", 23),  # 5,959 labeled images, 256 a step: 23.3
    ("semi_aves_unknown", "supervised", 23),
])
def test_a_run_on_semi_aves_has_ninety_epochs_and_its_periods_count_them(dataset, method, epoch):
    made = aves(dataset=dataset, method=method, rebalance="daso" if method == "fixmatch" else "")
    assert values(made, "schedule", "lr_decay", "warmup_factor", "warmup_shape") == ("multistep", .1, 0, "linear")
    assert made.total_steps == 90 * epoch and made.milestones == (30 * epoch, 60 * epoch)
    assert values(made, "warmup_steps", "eval_steps", "refresh_steps") == (5 * epoch, epoch, epoch)
    assert made.pretrain_steps == 20 * epoch


def test_other_batches_make_other_epochs_and_another_length_keeps_the_shares():
    assert aves(batch_size=64, mu=1).total_steps == 90 * 416  # 26,640 / 64 = 416.25
    made = aves(total_steps=900)
    assert values(made, "milestones", "pretrain_steps", "refresh_steps", "warmup_steps") == ((300, 600), 200, 10, 50)
    assert values(aves(total_steps=2), "pretrain_steps", "refresh_steps", "eval_steps") == (1, 1, 1)


@pytest.mark.parametrize("rebalance", ["crest", "crest_plus"])
def test_on_semi_aves_crest_has_three_generations_of_thirty_epochs_in_which_the_rate_never_drops(rebalance):
    made = aves(rebalance=rebalance)
    assert values(made, "generations", "generation_steps", "eval_steps", "warmup_steps") == (3, 630, 21, 105)
    assert 1 / made.crest_alpha == pytest.approx(0.7)
    schedule = {name: getattr(made, name) for name in ("lr", "schedule", "warmup_steps", "milestones", "lr_decay")}
    rates = [lr_at(t, total_steps=made.generation_steps, **schedule) for t in range(made.generation_steps)]
    assert rates[105:] == [0.04] * 525 and rates[:105] == pytest.approx([0.04 * t / 105 for t in range(105)])
    assert config(rebalance=rebalance).crest_alpha == 3  # elsewhere


def test_a_preset_has_whole_generations():
    assert values(aves("cpu", rebalance="crest"), "total_steps", "generation_steps") == (9999, 3333)
    assert config(rebalance="crest", n_generations=7).total_steps == 35_714 * 7


@pytest.mark.parametrize("combination", LEGAL, ids=label)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", ["semi_aves", "semi_aves_unknown", "stl10"])
def test_every_method_has_settings_for_data_that_are_not_here(dataset, preset, combination):
    made = make_config(preset, **base_of(combination) | {"dataset": dataset})
    assert made.run_name().startswith(f"{dataset}-{label(combination)}-s0-")


def test_a_wrong_batch_size_is_refused_where_the_length_follows_from_it():
    for value in (0, "many", 1.5):
        with pytest.raises(ValueError, match=f"batch_size={value!r}: "):
            aves(batch_size=value)


# --- the CPU preset --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total_steps", "period", "pretrain"),
    [(10_000, 100, 200), (600, 6, 12), (250, 3, 5), (100, 1, 2), (40, 1, 1), (1, 1, 1)],
)
def test_the_cpu_preset_scales_its_periods_with_the_length(total_steps, period, pretrain):
    made = config("cpu", total_steps=total_steps)
    assert values(made, "eval_steps", "refresh_steps", "pretrain_steps") == (period, period, pretrain)
    assert made.pretrain_steps >= made.refresh_steps


def test_the_cpu_preset_is_small_and_leaves_the_rest_as_in_the_paper():
    paper, cpu = config("paper", total_steps=10_000).model_dump(), config("cpu").model_dump()
    changed = {name: cpu[name] for name in cpu if cpu[name] != paper[name]}
    assert changed == {
        "depth": 10, "width": 1, "batch_size": 32, "precision": "bf16", "channels_last": True, "ema_decay": 0.99,
        "eval_steps": 100, "eval_images": 2000, "pretrain_steps": 200, "abc_epoch_steps": 100, "abc_epochs": 100,
    }


@pytest.mark.parametrize(("machine", "has_library", "emulates_it", "has_it", "fastest"), [
    ("x86_64", True, True, True, "bf16"), ("AMD64", True, True, False, "fp32"), ("x86_64", False, True, True, "fp32"),
    ("aarch64", True, True, False, "bf16"), ("aarch64", True, False, False, "fp32"),
])
def test_the_fastest_precision_is_bf16_where_the_cpu_multiplies_it(machine, has_library, emulates_it, has_it, fastest,
                                                                   monkeypatch):
    """On x86 torch's library has bf16 for any AVX-512, by way of fp32; elsewhere it says what the CPU has."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_library)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: emulates_it)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert fastest_precision() == fastest


@pytest.mark.parametrize(("total_steps", "epoch_steps", "epochs"), [(10_000, 100, 100), (600, 6, 100), (40, 1, 40)])
def test_abc_has_as_many_epochs_at_cpu_scale_as_evaluations(total_steps, epoch_steps, epochs):
    made = config("cpu", rebalance="abc", total_steps=total_steps)
    assert values(made, "abc_epoch_steps", "abc_epochs") == (epoch_steps, epochs)


def test_shares_of_a_run_at_cpu_scale_are_those_of_the_paper():
    assert config("cpu", method="usadtm", rebalance="").pretrain_steps == 20  # 500 of 250,000 is .002
    assert config("cpu", rebalance="darp").darp_warmup_steps == 4000
    ramps = {method: config("cpu", method=method, rebalance="").ramp_steps
             for method in ("pseudo_label", "mean_teacher", "mixmatch", "remixmatch")}
    assert ramps == {"pseudo_label": 4000, "mean_teacher": 4000, "mixmatch": 160, "remixmatch": 160}
    assert config("cpu", method="remixmatch", rebalance="crest").ramp_steps == 32
    assert config("cpu", method="remixmatch", rebalance="crest", n_generations=2).ramp_steps == 80


def test_milestones_may_lie_beyond_the_end_of_a_generation_or_run_but_not_before_its_start():
    changes = {"total_steps": 100, "schedule": "multistep", "lr_decay": 0.1}
    for rebalance in ("crest", ""):
        assert config("cpu", **changes, rebalance=rebalance, milestones=(19, 20, 100)).milestones == (19, 20, 100)
    with pytest.raises(ValueError, match=r"milestones.1=-1: .* greater than or equal to 0"):
        config("cpu", **changes, milestones=(19, -1))


@pytest.mark.parametrize(("changes", "want"), [
    ({"unlabeled": "equal"}, "label_frequency"),
    ({"unlabeled": "equal", "gamma_l": 150.0}, "label_frequency"),
    ({"unlabeled": "equal", "gamma_u": 50.0}, None),
    ({"unlabeled": "reversed"}, None),
    ({"unlabeled": "uniform"}, None),
    ({"unlabeled": "uniform", "gamma_l": 1.0}, "label_frequency"),
    ({"dataset": "stl10"}, None),
    ({"dataset": "semi_aves"}, "label_frequency"),
    ({"dataset": "semi_aves_unknown"}, "label_frequency"),
    ({"dataset": "birds"}, None),
], ids=str)
def test_darp_aims_at_the_label_frequency_where_the_imbalance_is_the_same_and_on_semi_aves(changes, want):
    assert config(rebalance="darp", **changes).unlabeled_counts == want


@pytest.mark.parametrize("unlabeled_counts", ["label_frequency", (3, 1.5)], ids=str)
def test_a_source_is_refused_where_darp_reads_no_estimate(unlabeled_counts):
    with pytest.raises(ValueError, match="source='x' would change nothing: with unlabeled_counts=.* no estimate"):
        config("cpu", rebalance="darp", unlabeled_counts=unlabeled_counts, source="x")
    assert config("cpu", rebalance="darp", unlabeled="reversed", source="x").source == "x"
    assert config("cpu", rebalance="darp", unlabeled_counts=None, source="x").source == "x"


@pytest.mark.parametrize("wrong", ["hidden", 7, (), (3,), (1, -1), (0, 0), (1, float("nan")), (1, float("inf")),
                                   ("a", 1)], ids=str)
def test_class_counts_that_darp_cannot_aim_at_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^unlabeled_counts=.*: choose label_frequency, None, or a number [^\n]*$"):
        config(rebalance="darp", unlabeled_counts=wrong)


def test_shares_of_the_run_follow_its_length():
    made = make_config("cpu", dataset="mnist5k", method="supervised", rebalance="ldam_drw", total_steps=1000)
    assert values(made, "warmup_steps", "milestones", "reweight_warmup_steps") == (25, (800, 900), 800)


def test_a_change_wins_over_preset_and_data_set():
    made = config("cpu", n1=20, pretrain_steps=400, batch_size=8, queue_size=9)
    assert values(made, "n1", "pretrain_steps", "batch_size", "queue_size") == (20, 400, 8, 9)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "gpu"}, "preset='gpu': choose one of paper, cpu"),
        ({"dataset": 5}, "dataset=5: must be the name"),
        ({"dataset": ""}, "dataset='': must be the name"),
        ({"method": "fixmach"}, "method='fixmach': choose one of supervised, .*fixmatch"),
        ({"rebalance": "dasso"}, "rebalance='dasso': choose from la, cb, ldam_drw, .*daso, .*abc, or leave it empty"),
        ({"rebalance": None}, "rebalance=None: must be text or a list of names; choose from la, cb"),
        ({"rebalance": "la,cb"}, "rebalance='la,cb': both decide what is learned from the labeled"),
        ({"rebalance": "darp,daso"}, "rebalance='darp,daso': both correct the pseudo-labels; choose one"),
        ({"rebalance": "crest,abc"}, "rebalance='crest,abc': nobody has said what becomes of the second head"),
        ({"rebalance": "crest_plus,distribution_alignment"}, "'distribution_alignment,crest_plus': both align the"),
        ({"method": "supervised"}, "method='supervised' with rebalance='daso': it corrects pseudo-labels, and there"),
        ({"method": "usadtm"}, "method='usadtm' with rebalance='daso': its authors put it on FixMatch, ReMixMatch, "),
        ({"method": "mixmatch", "rebalance": "abc"}, "method='mixmatch' with rebalance='abc': its losses are those "),
        ({"method": "remixmatch", "rebalance": "distribution_alignment"}, "ReMixMatch has it as its own setting"),
        ({"rebalance": "crt"}, "method='fixmatch' with rebalance='crt': .* name a run of this method as source"),
        ({"method": "distribution_estimate", "rebalance": "la"}, "the estimate comes from plain supervised training"),
        ({"method": "supervised", "rebalance": "crt"}, "source=None: rebalance='crt' starts from a trained network"),
        ({"rebalance": "ldam_drw"}, "method='fixmatch' with rebalance='ldam_drw': its scaled logits"),
        ({"sead": 1}, "sead=1: no such setting; choose from dataset, method, rebalance, seed, .*threads, device"),
        ({"seed": -1}, "seed=-1: .* greater than or equal to 0"),
        ({"seed": "one"}, "seed='one': .* valid integer"),
        ({"total_steps": 0}, "total_steps=0: must be a whole number >= 1$"),
        ({"total_steps": "many"}, "total_steps='many': must be a whole number >= 1"),
        ({"total_steps": 10.5}, "total_steps=10.5: must be a whole number >= 1"),
        ({"total_steps": float("inf")}, "total_steps=inf: must be a whole number >= 1"),
        ({"threads": 0}, "threads=0: .* greater than or equal to 1"),
        ({"threads": 1_000_000}, "threads=1000000: .* less than or equal to 1024"),
        ({"width": 1_000_000}, "width=1000000: .* less than or equal to 100"),
        ({"seed": 2**32}, "seed=4294967296: .* less than 4294967296"),
        ({"device": 0}, "device=0: must be text; choose auto, cpu, cuda, or one of several GPUs as in cuda:0"),
        ({"device": None}, "device=None: must be text; choose auto"),
        ({"device": "gpu"}, "device='gpu': choose auto, cpu, cuda, or "),
        ({"device": "cuda:99"}, r"device='cuda:99': torch finds \d+ CUDA devices here; choose auto"),
        ({"dataset": "my\nphotos"}, r"dataset='my\\nphotos': must not hold a line break, a NUL or another control"),
        ({"method": "supervised", "rebalance": "crt", "source": "runs/a\0b"}, r"source='runs/a\\x00b': must not hold"),
        ({"resolution": 4}, "resolution=4: .* greater than or equal to 8"),
        ({"n1": 0}, "n1=0: .* greater than or equal to 1"),
        ({"m1": 0}, "m1=0: .* greater than or equal to 1"),
        ({"gamma_l": 0.5, "gamma_u": 2.0}, "gamma_l=0.5: .* greater than or equal to 1"),
        ({"gamma_u": 0.01}, "gamma_u=0.01: .* greater than or equal to 1"),
        ({"unlabeled": "inverse"}, "unlabeled='inverse': .* 'equal', 'uniform', 'reversed' or 'unknown'"),
        ({"n_val": -1}, "n_val=-1: .* greater than or equal to 0"),
        ({"depth": 27}, "depth=27: a WideResNet has depth 6 n . 4: 10, 16, 22, 28"),
        ({"depth": 4}, "depth=4: a WideResNet"),
        ({"width": 0}, "width=0: .* greater than or equal to 1"),
        ({"network": "resnet50"}, "network='resnet50': .* 'wrn' or 'resnet34'"),
        ({"crop": "random"}, "crop='random': .* 'padded' or 'resized'"),
        ({"mu": 0}, "mu=0: .* greater than or equal to 1"),
        ({"batch_size": 1.5}, "batch_size=1.5: .* valid integer"),
        ({"lr": 0.0}, "lr=0.0: .* greater than 0"),
        ({"lr": float("nan")}, "lr=nan: "),
        ({"lr": float("inf")}, "lr=inf: .* finite number"),
        ({"momentum": 1.0}, "momentum=1.0: .* less than 1"),
        ({"momentum": -0.1}, "momentum=-0.1: .* greater than or equal to 0"),
        ({"momentum": 0.0}, "momentum=0.0 with nesterov=True: .*; choose nesterov=False"),
        ({"schedule": "step"}, "schedule='step': .* 'constant', 'cosine', 'cosine_half' or 'multistep'"),
        ({"schedule": "multistep"}, r"schedule='multistep' with milestones=\(\): give the steps"),
        ({"warmup_shape": "quadratic", "warmup_steps": 5}, "warmup_shape='quadratic': .* 'linear' or 'constant'"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: .* less than 1"),
        ({"threshold": 1.01}, "threshold=1.01: .* less than or equal to 1"),
        ({"lambda_u": -1.0}, "lambda_u=-1.0: .* greater than or equal to 0"),
        ({"method": "mixmatch", "rebalance": "", "ramp_shape": "cosine"}, "ramp_shape='cosine': .* 'linear' or 'exp'"),
        ({"method": "mixmatch", "rebalance": "", "ramp_steps": 0}, "ramp_steps=0: .* greater than 0"),
        ({"method": "mixmatch", "rebalance": "", "mixup_alpha": 0.0}, "mixup_alpha=0.0: .* greater than 0"),
        ({"method": "mixmatch", "rebalance": "", "sharpen_temperature": 0}, "sharpen_temperature=0: .* greater than 0"),
        ({"method": "remixmatch", "rebalance": "", "alignment": 2}, "alignment=2: .* valid boolean"),
        ({"method": "usadtm", "rebalance": "", "similarity_threshold": 2}, "similarity_threshold=2: .* or equal to 1"),
        ({"rebalance": "distribution_alignment", "alignment_window": 0}, "alignment_window=0: .* or equal to 1"),
        ({"rebalance": "darp", "darp_period": 0}, "darp_period=0: .* greater than or equal to 1"),
        ({"rebalance": "darp", "darp_alpha": 0.0}, "darp_alpha=0.0: .* greater than 0"),
        ({"rebalance": "crest", "n_generations": 1}, "n_generations=1: .* greater than or equal to 2"),
        ({"rebalance": "crest_plus", "crest_t_min": 1.5}, "crest_t_min=1.5: .* less than or equal to 1"),
        ({"rebalance": "abc", "abc_epoch_steps": 0}, "abc_epoch_steps=0: .* greater than or equal to 1"),
        ({"rebalance": "abc", "abc_epochs": 0.0}, "abc_epochs=0.0: .* greater than 0"),
        ({"rebalance": "boss", "boss_drop": 1.5}, "boss_drop=1.5: .* less than or equal to 1"),
        ({"pretrain_steps": 99}, "pretrain_steps=99 is smaller than refresh_steps=100: .* choose pretrain_steps >= "),
        ({"fixed_blend": 1.5}, "fixed_blend=1.5: .* less than or equal to 1"),
        ({"fixed_blend": "half"}, "fixed_blend='half': .* valid number"),
        ({"dist_temperature": 0.0}, "dist_temperature=0.0: .* greater than 0"),
        ({"proto_temperature": 0.0}, "proto_temperature=0.0: .* greater than 0"),
        ({"queue_size": 0}, "queue_size=0: .* greater than or equal to 1"),
        ({"queue_sizing": "equal"}, "queue_sizing='equal': .* 'balanced' or 'frequency'"),
        ({"prototypes_from": "teacher"}, "prototypes_from='teacher': .* 'ema' or 'student'"),
        ({"precision": "fp16"}, "precision='fp16': .* 'fp32' or 'bf16'"),
        ({"eval_images": 0}, "eval_images=0: .* greater than or equal to 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_wrong_value_is_refused_with_its_name_and_the_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n1": None}, "m1=3000 needs n1"),
        ({"n1": None, "m1": None}, "gamma_l=100.* needs n1"),
        ({"n1": None, "m1": None, "gamma_l": None}, "unlabeled='equal' needs n1"),
        ({"labeled_indices": (1, 2)}, "labeled_indices goes with natural imbalance: n1=1500"),
        ({"gamma_l": None}, "gamma_l=None: n1=1500 makes a long-tailed labeled set"),
        ({"m1": None}, "m1=None with unlabeled='equal'"),
        ({"unlabeled": "unknown"}, "m1=3000 with unlabeled='unknown'"),
        ({"unlabeled": "uniform", "gamma_u": 10.0}, "gamma_u=10.0 with unlabeled='uniform'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_parts_of_a_split_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)^depth=9: .*\nlr=-1.0: "):
        config(depth=9, lr=-1.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"network": "resnet34", "depth": 16}, "network='resnet34' has a depth and width of its own"),
        ({"dataset": "semi_aves", "width": 1}, "network='resnet34' has a depth and width of its own"),
        ({"la_tau": 0.5}, "fixmatch . daso has no such setting"),
        ({"ldam_scale": 10.0}, "fixmatch . daso has no such setting"),
        ({"method": "supervised", "rebalance": "", "mu": 4}, "supervised uses no unlabeled images"),
        ({"method": "supervised", "rebalance": "", "threshold": 0.9}, "supervised has no such setting"),
        ({"method": "supervised", "rebalance": "", "ema_decay": 0.9}, "supervised keeps no moving average"),
        ({"rebalance": "", "queue_size": 9}, "fixmatch has no such setting"),
        # Settings of a base learner on another one, and of a re-balancing method without it.
        ({"ramp_steps": 5.0}, "fixmatch . daso has no such setting"),
        ({"ramp_shape": "exp"}, "fixmatch . daso has no such setting"),
        ({"sharpen_temperature": 0.3}, "fixmatch . daso has no such setting"),
        ({"mixup_alpha": 0.3}, "fixmatch . daso has no such setting"),
        ({"lambda_premixup": 0.3}, "fixmatch . daso has no such setting"),
        ({"lambda_rotation": 0.3}, "fixmatch . daso has no such setting"),
        ({"alignment": False}, "fixmatch . daso has no such setting"),
        ({"similarity_threshold": 0.3}, "fixmatch . daso has no such setting"),
        ({"lambda_mi": 0.3}, "fixmatch . daso has no such setting"),
        ({"source": "runs/x"}, "fixmatch . daso has no such setting"),
        ({"alignment_window": 9}, "fixmatch . daso has no such setting"),
        ({"alignment_temperature": 0.5}, "fixmatch . daso has no such setting"),
        ({"darp_warmup_steps": 9}, "fixmatch . daso has no such setting"),
        ({"darp_period": 9}, "fixmatch . daso has no such setting"),
        ({"darp_alpha": 1.5}, "fixmatch . daso has no such setting"),
        ({"n_generations": 2}, "fixmatch . daso has no such setting"),
        ({"crest_alpha": 1.5}, "fixmatch . daso has no such setting"),
        ({"rebalance": "crest", "crest_t_min": 0.1}, "fixmatch . crest has no such setting"),
        ({"rebalance": "crest_plus", "alignment_temperature": 0.5}, "fixmatch . crest_plus has no such setting"),
        ({"abc_epoch_steps": 9}, "fixmatch . daso has no such setting"),
        ({"abc_epochs": 9.0}, "fixmatch . daso has no such setting"),
        ({"boss_drop": 0.1}, "fixmatch . daso has no such setting"),
        ({"method": "usadtm", "rebalance": "", "threshold": 0.5}, "usadtm has no such setting"),
        ({"method": "remixmatch", "rebalance": "", "alignment": False, "alignment_window": 9},
         "remixmatch has no such setting"),
        ({"method": "remixmatch", "rebalance": "crest_plus", "alignment": False},
         "remixmatch . crest_plus has no such setting"),
        ({"method": "mean_teacher", "lambda_align": 0.5}, "this base learner has no strong view to align"),
        ({"method": "mixmatch", "lambda_align": 0.5}, "this base learner has no strong view to align"),
        ({"method": "mean_teacher", "prototypes_from": "student"}, "the teacher's own pass fills the queues"),
        ({"method": "mean_teacher", "ema_train_mode": False}, "the teacher's own pass fills the queues"),
        ({"method": "supervised", "rebalance": "crt", "source": "runs/x", "mu": 2}, "supervised uses no unlabeled"),
        ({"milestones": (5,)}, "schedule='constant' has no milestones"),
        ({"lr_decay": 0.5}, "schedule='constant' has no milestones"),
        ({"cosine_ratio": 5.0}, "schedule='constant' has no such ratio"),
        ({"warmup_factor": 0.1}, "there is no warm-up"),
        ({"fixed_blend": 0.5, "dist_temperature": 1.0}, "with a fixed_blend no histogram is used"),
        ({"prototypes_from": "student", "ema_train_mode": False}, "the prototypes come from the student"),
        ({"queue_sizing": "frequency", "queue_size": 64}, "queue_sizing='frequency' sizes queues by the labeled"),
        ({"method": "supervised", "rebalance": "crt", "source": "runs/x", "crt_balancing": "batches", "cb_beta": 0.9},
         "crt_balancing='batches' weighs no loss"),
        ({"rebalance": "cb", "crt_balancing": "batches"}, "fixmatch . cb has no such setting"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_change_that_would_change_nothing_is_refused(changes, reason):
    name = list(changes)[-1]
    with pytest.raises(ValueError, match=f"{name}={re.escape(repr(changes[name]))} would change nothing: {reason}"):
        config(**changes)


def test_a_fixed_blend_needs_no_full_histogram():
    assert config(fixed_blend=0.5, pretrain_steps=0).pretrain_steps == 0


def test_the_record_cannot_be_changed_and_takes_nothing_unknown():
    with pytest.raises(ValueError, match="frozen"):
        config().seed = 1
    with pytest.raises(ValueError, match="no_such_setting"):
        Config(**config().model_dump(), no_such_setting=1)


# --- what makes a run another run ------------------------------------------------------------------------------------


def another(name, value):
    """A legal value of a setting that is not `value`."""
    special = {
        "dataset": "cifar100", "method": None, "rebalance": None, "unlabeled": "reversed", "schedule": "cosine_half",
        "depth": 16, "labeled_indices": None, "milestones": (1, 2), "warmup_shape": "constant", "device": "cpu",
        "queue_sizing": "frequency", "prototypes_from": "student", "precision": "bf16", "resolution": 64,
        "train_resolution": 16, "fixed_blend": 0.5, "eval_images": 77, "reweight_warmup_steps": 12,
        "warmup_steps": 11, "pretrain_steps": 6000, "total_steps": 240_000, "n_generations": 4, "ramp_shape": "exp",
        "source": "runs/other", "network": "resnet34", "crop": "resized", "crt_balancing": "batches",
        "unlabeled_counts": (2.0, 1.0),
    }
    if name in special:
        return special[name]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def base_of(combination):
    """What a combination needs to be a legal configuration on CIFAR-10."""
    method, rebalance = combination
    source = {"source": "runs/trained"} if "crt" in rebalance else {}
    return {"dataset": "cifar10", "method": method, "rebalance": rebalance, "threads": 1} | source


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_every_setting_changes_the_name_or_is_refused(combination):
    """No setting is accepted and forgotten, and no number changes under the same name."""
    base = base_of(combination)
    plain = make_config("paper", **base)
    without_effect = plain.without_effect()
    changed = refused = 0
    for name, value in plain.model_dump().items():
        new = another(name, value)
        if name in NOT_IDENTITY or new is None:
            continue
        assert new != value, name
        if name in without_effect:
            refused += 1
            with pytest.raises(ValueError, match=f"{name}=.* would change nothing: {re.escape(without_effect[name])}"):
                make_config("paper", **base | {name: new})
        elif name == "prototypes_from" and "see_feats" not in LEARNERS[plain.method].asks:
            with pytest.raises(ValueError, match="prototypes_from='student' with method="):
                make_config("paper", **base | {name: new})
        elif name == "source" and "darp" in plain.rebalance:
            # Where the class counts were found is no part of a run; what they are is, in the record of its folder.
            assert make_config("paper", **base | {name: new}).identity() == plain.identity()
        else:
            changed += 1
            other = make_config("paper", **base | {name: new})
            assert getattr(other, name) == new
            assert other.identity() != plain.identity(), name
            assert other.run_name() != plain.run_name(), name
    assert refused == len(without_effect)
    assert changed >= 20


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_every_setting_of_method_and_parts_has_an_effect_unless_the_learner_says_why_not(combination):
    method, rebalance = combination
    learner = LEARNERS[method]
    used = {*learner.settings, *learner.draw_settings, *learner.memory_settings}
    used |= {name for part in rebalance for name in REBALANCERS[part].settings}
    made = make_config("paper", **base_of(combination))
    excused = set(learner.no_effect) & used
    if "daso" not in rebalance:
        excused |= used & {"abc_semantic"}  # blends DASO's labels in
    assert used & set(made.without_effect()) == excused
    assert used - excused <= {*made.identity(), *YOUNGER}


def test_settings_without_effect_are_no_part_of_the_identity():
    identity = config(rebalance="").identity()
    assert not {"la_tau", "queue_size", "milestones", "warmup_factor", *NOT_IDENTITY} & set(identity)
    assert {"threshold", "lambda_u", "mu", "ema_decay"} <= set(identity)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_name_ignores_listing_order_threads_device_and_the_place_of_the_data(preset):
    name = config(preset, rebalance="la,daso").run_name()
    assert name.startswith("cifar10-fixmatch-la-daso-s0-")
    assert re.fullmatch(r"[0-9a-f]{8}", name.rpartition("-")[2])
    for changes in ({"rebalance": ["daso", "la"]}, {"threads": 7}, {"device": "cpu"}, {"dataset": "data/cifar10.npz"},
                    {"dataset": "/somewhere/else/cifar10"}):
        assert config(preset, **{"rebalance": "la,daso"} | changes).run_name() == name


def test_a_field_that_older_runs_lack_leaves_their_names_as_they_were():
    """The names are those of runs that were made before there was another network or crop, a compiled step ..."""
    assert make_config("cpu", dataset="mnist5k", method="fixmatch").run_name() == "mnist5k-fixmatch-s0-09bfb4a0"
    made = make_config("paper", dataset="stl10", method="remixmatch", rebalance="crest")
    assert made.run_name() == "stl10-remixmatch-crest-s0-b76d03ee"
    crt = {"method": "supervised", "rebalance": "crt", "source": "runs/cpu_study/mnist5k-supervised-s0-96bceb88"}
    crt |= {"n_val": 400, "lr": 0.1, "total_steps": 1000, "unlabeled": "equal"}
    batches = make_config("cpu", dataset="mnist5k", **crt, crt_balancing="batches")
    assert batches.run_name() == "mnist5k-supervised-crt-s0-912d3df8"
    assert not set(YOUNGER) & {*made.identity(), *batches.identity()}
    weights = make_config("cpu", dataset="mnist5k", **crt)
    changed = {*aves(compile=True, skip_unreadable=True).identity(), *weights.identity()}
    assert {"network", "crop", "compile", "crt_balancing", "skip_unreadable"} <= changed


def test_naming_a_value_that_the_preset_has_makes_no_other_run():
    assert config("cpu", lr=0.03, total_steps=10_000, n1=1500).run_name() == config("cpu").run_name()


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_a_record_survives_json(combination):
    made = make_config("cpu", **base_of(combination) | {"dataset": "data/cifar10.npz", "seed": 3})
    assert Config(**json.loads(made.model_dump_json())) == made
    assert json.loads(json.dumps(made.identity(), allow_nan=False)) == made.identity()


def test_natural_imbalance_survives_json():
    made = make_config("cpu", dataset="birds", method="fixmatch", labeled_indices=(4, 2, 9))
    assert Config(**json.loads(made.model_dump_json())) == made
    assert made.identity()["labeled_indices"] == [4, 2, 9]


@pytest.mark.parametrize(
    ("path", "name"),
    [("cifar10", "cifar10"), ("a/b.c/d", "d"), ("./x.npz", "x"), ("x.v2.npz", "x.v2"), ("/data/birds/", "birds")],
)
def test_the_name_of_a_data_set_is_the_last_part_of_its_path(path, name):
    assert dataset_name(path) == name


def test_the_preset_of_a_call_without_one_is_that_of_the_notebook():
    cells = json.loads((project_root() / "notebooks/train.ipynb").read_text())["cells"]
    parameters = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    preset = re.search(r'^preset: str = "(\w+)"', parameters, re.MULTILINE)[1]
    assert make_config(**DASO).run_name() == make_config(preset, **DASO).run_name()


def test_threads_default_to_the_cores_of_this_process():
    assert make_config(**DASO).threads == available_cores() >= 1


def test_without_a_system_call_for_its_own_cores_those_of_the_machine_are_taken(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert make_config(**DASO).threads == 5


@pytest.mark.parametrize("name", ["seed", "total_steps", "threads", "lr", "batch_size"])
def test_a_truth_value_is_no_number(name):
    with pytest.raises(ValueError, match=f"{name}=True: must"):
        make_config("cpu", dataset="mnist5k", method="fixmatch", **{name: True})


@pytest.mark.parametrize("size", [128, 128.0, "128"])
def test_a_batch_size_means_the_same_however_it_is_written(size):
    """On Semi-Aves the length of a run follows from it."""
    assert aves(batch_size=size).total_steps == 3780


# --- the parameters of a notebook ------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", ["1e3", "1000", "1000.0", 1e3, np.int64(1000), np.float32(1000)])
@pytest.mark.parametrize("name", ["total_steps", "eval_steps", "n1"])
def test_whole_numbers_are_taken_as_people_write_them(name, value):
    """YAML 1.1 reads 1e3 as text; NumPy's numbers come from whoever computes a setting."""
    made = config("cpu", **{name: value})
    assert getattr(made, name) == 1000 and made == config("cpu", **{name: 1000})


@pytest.mark.parametrize("value", ["1e3.5", "1.5e0", "1e999", "nan", 0.5, np.array([1000]), np.True_])
def test_what_is_no_whole_number_is_refused(value):
    for name in ("total_steps", "eval_steps"):
        with pytest.raises(ValueError, match=f"{name}="):
            config("cpu", **{name: value})


def test_lists_of_numbers_are_taken_as_people_write_them():
    made = config("cpu", schedule="multistep", milestones=["1e2", np.int64(200)])
    assert made == config("cpu", schedule="multistep", milestones=np.array([100, 200]))
    assert made.milestones == (100, 200)
    own = make_config("cpu", dataset="own", method="fixmatch", labeled_indices=np.arange(3))
    assert own.labeled_indices == (0, 1, 2)
    assert config("cpu", rebalance="crest", n_generations="4e0", total_steps=400).ramp_steps == 100


@pytest.mark.parametrize("mask", [[True, False, True], np.array([True, False]), [np.True_] * 9999])
def test_a_mask_in_place_of_positions_is_called_one(mask):
    with pytest.raises(ValueError, match="labeled_indices=.{,120}: must be positions, not a mask .*flatnonzero"):
        make_config("cpu", dataset="own", method="fixmatch", labeled_indices=mask)


def test_of_many_wrong_values_the_first_are_named_and_all_are_counted():
    with pytest.raises(ValueError, match="^500 wrong values, .*\nlabeled_indices.0='a'") as caught:
        make_config("cpu", dataset="own", method="fixmatch", labeled_indices=["a"] * 500)
    assert str(caught.value).count("\n") == 20


DECLARING = 'dataset: str = "mnist5k"  # name\nseed: int = 0\ntotal_steps: int = 600'


@pytest.mark.parametrize(
    "cells",
    [
        [DECLARING],  # none injected
        ["", DECLARING, '# Parameters\ndataset = "cifar10"\nseed = 3\n'],
        ["", DECLARING, "# Parameters\nseed = 3\n", "import os", DECLARING, "x: int = 3"],  # run again in JupyterLab
        ["%matplotlib inline", "!ls", DECLARING, "# Parameters\nseed = 1"],
        [DECLARING, "# Parameters\nseed = 1", "other: int = 3\nother = 4"],
        ["unlabeled: str = None", "# Parameters\nunlabeled = None"],
        ['run_dir: str = ""', '# Parameters\nrun_dir = "001"'],
        [DECLARING, "sead = 3"],  # the notebook's own code, not injected
        [DECLARING, '# Parameters\ntotal_steps = 5\ndataset = """two\nlines"""\n'],
        [],
    ],
)
def test_parameters_that_the_notebook_declares_are_accepted(cells):
    check_parameters(cells)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([DECLARING, "# Parameters\nsead = 1\n"], "sead=1: this notebook has no such parameter; choose from dataset, "
                                                  "seed, total_steps"),
        (["", "import os", DECLARING, '# Parameters\nseed = 1\nmethod = "daso"'], "method='daso': this notebook"),
        (["%magic", DECLARING, "x = 1", "# Parameters\nlr = [1, 2]"], r"lr=\[1, 2\]: this notebook"),
        ([DECLARING, "# Parameters\nseed = 1", DECLARING, "# Parameters\nsead = 2"], "sead=2"),
        ([DECLARING, "later: int = 3", "# Parameters\nlater = 2"], "later=2: .* choose from dataset, seed"),
        (["settings: dict = {}", '# Parameters\nsettings = "{lr: 1}"'], "settings='{lr: 1}': must be a mapping; with"),
        (['run_dir: str = ""', "# Parameters\nrun_dir = 1"], "run_dir=1: must be text, .*; give it with -r run_dir$"),
        (['device: str = "auto"', "# Parameters\ndevice = 0"], "device=0: must be text, .*; choose auto, cpu, cuda,"),
        (["settings: dict = {}", '# Parameters\nskip_unreadable = "true"'],
         "skip_unreadable='true': .* no such parameter; give it as one of the settings, .* 'settings: {skip_un"),
        (["unlabeled: str = None", "# Parameters\nunlabeled = True"], "unlabeled=True: must be text, "),
        (["settings: dict = {}", "# Parameters\nsettings = None"], "settings=None: must be a mapping"),
    ],
)
def test_a_parameter_that_the_notebook_does_not_declare_is_refused_with_the_choices(cells, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(cells)


@pytest.mark.parametrize(
    ("method", "rebalance", "changes", "message"),
    [
        ("fixmatch", "daso", {"pretrain_steps": 20}, "pretrain_steps=20 is not below total_steps=20: DASO will ch"),
        ("usadtm", "", {"pretrain_steps": 20}, "pretrain_steps=20 is not below total_steps=20: no pseudo-label"),
        ("fixmatch", "darp", {"darp_warmup_steps": 20}, "darp_warmup_steps=20 is not below total_steps=20: DARP will"),
        ("fixmatch", "cb", {"reweight_warmup_steps": 21}, "=21 is not below total_steps=20: class weights will not"),
        ("supervised", "ldam_drw", {"reweight_warmup_steps": 21}, "class weights and margins will not act in this run"),
        ("fixmatch", "cb,crest", {"reweight_warmup_steps": 5}, "=5 is not below generation_steps=4: class weights"),
    ],
)
def test_a_method_that_never_starts_is_warned_about(method, rebalance, changes, message):
    def make(**changes):
        return make_config("cpu", dataset="cifar10", method=method, rebalance=rebalance, total_steps=20, **changes)

    with pytest.warns(UserWarning, match=message):
        make(**changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**{name: value - 1 for name, value in changes.items()})


def test_a_method_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"method=\['fixmatch'\]: choose one of"):
        make_config("cpu", dataset="cifar10", method=["fixmatch"])

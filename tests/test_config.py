"""The record of a run: the paper's values, the CPU preset, what is refused, and what makes a run another run."""

import json
import re

import pytest

from dasolib.config import (
    NOT_IDENTITY,
    PRESETS,
    Config,
    available_cores,
    check_parameters,
    dataset_name,
    make_config,
    paper_dist_temperature,
)
from dasolib.methods import LEARNERS
from dasolib.rebalance import REBALANCERS
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


# --- the CPU preset --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total_steps", "period", "pretrain"),
    [(10_000, 100, 200), (600, 6, 12), (250, 2, 5), (100, 1, 2), (40, 1, 1), (1, 1, 1)],
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
        "eval_steps": 100, "eval_images": 2000, "pretrain_steps": 200,
    }


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
        ({"method": "fixmach"}, "method='fixmach': choose one of supervised, fixmatch"),
        ({"rebalance": "dasso"}, "rebalance='dasso': choose from la, cb, ldam_drw, daso, or none"),
        ({"rebalance": None}, "rebalance=None: must be text or a list of names; choose from la, cb"),
        ({"rebalance": "la,cb"}, "rebalance='la,cb': both correct the labeled loss; choose one"),
        ({"method": "supervised"}, "method='supervised' with rebalance='daso': it blends pseudo-labels"),
        ({"rebalance": "ldam_drw"}, "method='fixmatch' with rebalance='ldam_drw': its scaled logits"),
        ({"sead": 1}, "sead=1: no such setting; choose from dataset, method, rebalance, seed, .*threads, device"),
        ({"seed": -1}, "seed=-1: .* greater than or equal to 0"),
        ({"seed": "one"}, "seed='one': .* valid integer"),
        ({"total_steps": 0}, "total_steps=0: .* greater than or equal to 1"),
        ({"total_steps": "many"}, "total_steps='many': must be a whole number >= 1"),
        ({"total_steps": 10.5}, "total_steps=10.5: must be a whole number >= 1"),
        ({"total_steps": float("inf")}, "total_steps=inf: must be a whole number >= 1"),
        ({"threads": 0}, "threads=0: .* greater than or equal to 1"),
        ({"device": 0}, "device=0: .* valid string"),
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
        ({"mu": 0}, "mu=0: .* greater than or equal to 1"),
        ({"batch_size": 1.5}, "batch_size=1.5: .* valid integer"),
        ({"lr": 0.0}, "lr=0.0: .* greater than 0"),
        ({"lr": float("nan")}, "lr=nan: "),
        ({"lr": float("inf")}, "lr=inf: .* finite number"),
        ({"momentum": 1.0}, "momentum=1.0: .* less than 1"),
        ({"schedule": "step"}, "schedule='step': .* 'constant', 'cosine', 'cosine_half' or 'multistep'"),
        ({"schedule": "multistep"}, r"schedule='multistep' with milestones=\(\): give the steps"),
        ({"warmup_shape": "quadratic", "warmup_steps": 5}, "warmup_shape='quadratic': .* 'linear' or 'constant'"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: .* less than 1"),
        ({"threshold": 1.01}, "threshold=1.01: .* less than or equal to 1"),
        ({"lambda_u": -1.0}, "lambda_u=-1.0: .* greater than or equal to 0"),
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
        ({"la_tau": 0.5}, "fixmatch . daso has no such setting"),
        ({"ldam_scale": 10.0}, "fixmatch . daso has no such setting"),
        ({"method": "supervised", "rebalance": "", "mu": 4}, "supervised uses no unlabeled images"),
        ({"method": "supervised", "rebalance": "", "threshold": 0.9}, "supervised has no such setting"),
        ({"method": "supervised", "rebalance": "", "ema_decay": 0.9}, "supervised keeps no moving average"),
        ({"rebalance": "", "queue_size": 9}, "fixmatch has no such setting"),
        ({"milestones": (5,)}, "schedule='constant' has no milestones"),
        ({"lr_decay": 0.5}, "schedule='constant' has no milestones"),
        ({"cosine_ratio": 5.0}, "schedule='constant' has no such ratio"),
        ({"warmup_factor": 0.1}, "there is no warm-up"),
        ({"fixed_blend": 0.5, "dist_temperature": 1.0}, "with a fixed_blend no histogram is used"),
        ({"prototypes_from": "student", "ema_train_mode": False}, "the prototypes come from the student"),
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
        "warmup_steps": 11, "pretrain_steps": 6000,
    }
    if name in special:
        return special[name]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_every_setting_changes_the_name_or_is_refused(combination):
    """No setting is accepted and forgotten, and no number changes under the same name."""
    method, rebalance = combination
    base = {"dataset": "cifar10", "method": method, "rebalance": rebalance, "threads": 1}
    plain = make_config(**base)
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
                make_config(**base | {name: new})
        else:
            changed += 1
            other = make_config(**base | {name: new})
            assert getattr(other, name) == new
            assert other.identity() != plain.identity(), name
            assert other.run_name() != plain.run_name(), name
    assert refused == len(without_effect)
    assert changed >= 20


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_every_setting_of_method_and_parts_has_an_effect(combination):
    method, rebalance = combination
    used = {*LEARNERS[method].settings, *(name for part in rebalance for name in REBALANCERS[part].settings)}
    made = make_config(dataset="cifar10", method=method, rebalance=rebalance)
    assert not used & set(made.without_effect())
    assert used <= set(made.identity())


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


def test_naming_a_value_that_the_preset_has_makes_no_other_run():
    assert config("cpu", lr=0.03, total_steps=10_000, n1=1500).run_name() == config("cpu").run_name()


@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_a_record_survives_json(combination):
    method, rebalance = combination
    made = make_config("cpu", dataset="data/cifar10.npz", method=method, rebalance=rebalance, seed=3)
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


def test_threads_default_to_the_cores_of_this_process():
    assert make_config(**DASO).threads == available_cores() >= 1


def test_without_a_system_call_for_its_own_cores_those_of_the_machine_are_taken(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert make_config(**DASO).threads == 5


# --- the parameters of a notebook ------------------------------------------------------------------------------------

DECLARING = 'dataset: str = "mnist5k"  # name\nseed: int = 0\ntotal_steps: int = 600'


@pytest.mark.parametrize(
    "cells",
    [
        [DECLARING],  # none injected
        ["", DECLARING, '# Parameters\ndataset = "cifar10"\nseed = 3\n'],
        ["", DECLARING, "# Parameters\nseed = 3\n", "import os", DECLARING, "x: int = 3"],  # run again in JupyterLab
        ["%matplotlib inline", "!ls", DECLARING, "# Parameters\nseed = 1"],
        [DECLARING, "# Parameters\nseed = 1", "other: int = 3\nother = 4"],
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
    ],
)
def test_a_parameter_that_the_notebook_does_not_declare_is_refused_with_the_choices(cells, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(cells)


def test_daso_that_never_starts_is_warned_about():
    with pytest.warns(UserWarning, match="pretrain_steps=5000 is not below total_steps=20: DASO will change no"):
        make_config("paper", dataset="cifar10", method="fixmatch", rebalance="daso", total_steps=20)


def test_milestones_outside_the_run_are_refused():
    with pytest.raises(ValueError, match=r"milestones=\(8, 10\) must be steps in 0..9"):
        make_config("cpu", dataset="cifar10", method="supervised", total_steps=10, milestones=(8, 10))


def test_a_method_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"method=\['fixmatch'\]: choose one of"):
        make_config("cpu", dataset="cifar10", method=["fixmatch"])

"""Every method goes on from its checkpoint as if nothing had happened, and its checkpoint holds all that changes."""

import contextlib
import copy
import functools
import json
import os
import random
import signal

import pytest
import torch
from torch import nn

from dasolib.data import load_data
from dasolib.evaluation import pseudo_label
from dasolib.host import STOP_SIGNALS, Interrupted
from dasolib.methods import LEARNERS
from dasolib.rebalance import REBALANCERS
from dasolib.rebalance.logit_adjustment import LogitAdjustment
from dasolib.run_folder import RunFolder
from dasolib.train import Training, run
from tests.tiny import (
    contents,
    interrupt,
    make_training,
    read_metrics,
    save_tiny,
    stop_by_signal,
    tiny_config,
)

STEPS, EVERY = 12, 3  # checkpoints after steps 3, 6 and 9; CReST starts its generations at steps 4 and 8
WITH_SOURCE = ("supervised", "crt")
# Each base learner alone, each re-balancing method on a base learner, and sets whose parts act on one another.
CASES = [(method, "") for method in LEARNERS] + [
    ("fixmatch", "la"), ("mixmatch", "cb"), ("supervised", "ldam_drw"), WITH_SOURCE,
    ("fixmatch", "distribution_alignment"), ("fixmatch", "darp"), ("fixmatch", "daso"), ("fixmatch", "crest"),
    ("fixmatch", "crest_plus"), ("fixmatch", "boss"), ("fixmatch", "abc"),
    ("fixmatch", "daso,abc"), ("fixmatch", "la,crest_plus"), ("fixmatch", "distribution_alignment,darp,abc"),
    ("mean_teacher", "daso"), ("mixmatch", "daso"), ("remixmatch", "la,daso"), ("remixmatch", "darp"),
    ("remixmatch", "crest_plus"), ("remixmatch", "la,crest"),
]
IDS = ["-".join(part for part in case if part) for case in CASES]
BANK = {"bank.queues", "bank.sums", "bank.n_pushed", "bank.prototypes"}
WINDOW = {"means", "n_seen"}
# The buffers of each re-balancing method that change from step to step; those of all others stay.
CHANGING = {
    "distribution_alignment": WINDOW,
    "darp": {"predictions", "refined"},
    "daso": {*BANK, "class_freq", "pending"},
    "crest_plus": {f"alignment.{name}" for name in WINDOW},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def source(dataset, tmp_path_factory):
    """Folder of the run that cRT starts from."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "source"
    run(tiny_config(dataset, method="supervised", rebalance=""), folder, progress=False)
    return folder


def config_of(case, dataset, source, **changes):
    """Twelve steps in which masks differ from row to row and every part of the method acts."""
    method, rebalance = case
    settings = {"total_steps": STEPS, "eval_steps": EVERY}
    settings |= {"source": str(source)} if case == WITH_SOURCE else {}
    settings |= {"threshold": 0.4} if "threshold" in LEARNERS[method].settings else {}
    settings |= {"similarity_threshold": 0.3} if method == "usadtm" else {}
    settings |= {"n_val": 40, "m1": 16} if LEARNERS[method].estimates else {}
    return tiny_config(dataset, method=method, rebalance=rebalance, **settings | changes)


@pytest.fixture(scope="module")
def undisturbed(dataset, source, tmp_path_factory):
    """Yield a function that trains a case once, undisturbed, and returns its `contents`."""
    root = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def train(case, **changes):
        torch.set_num_threads(1)
        config = config_of(case, dataset, source, **changes)
        run(config, root / config.run_name(), progress=False)
        return contents(root / config.run_name())

    return train


def test_every_line_of_the_tables_is_among_the_cases():
    assert {method for method, _ in CASES} == set(LEARNERS)
    assert {name for _, rebalance in CASES for name in rebalance.split(",") if name} == set(REBALANCERS)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_run_stopped_and_started_again_ends_bit_for_bit_like_an_undisturbed_one(case, dataset, source, undisturbed,
                                                                                  monkeypatch, tmp_path):
    """First by a signal, which loses nothing, be it within a window of evaluations or not, and later by a kill."""
    config = config_of(case, dataset, source)
    rng = random.Random("-".join(case))
    at = rng.randint(0, STEPS - 2)
    said = stop_by_signal(monkeypatch, config, tmp_path, at=at)
    assert said == f"{tmp_path.name}: saved at step {at + 1} of {STEPS}; run again to continue"
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == at + 1
    interrupt(monkeypatch, config, tmp_path, at=rng.randint(at + 1, STEPS - 1))
    assert not (tmp_path / "result.json").exists()
    run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case)
    assert [record["step"] for record in read_metrics(tmp_path)] == [3, 6, 9, 12]


@pytest.mark.parametrize("case", [("fixmatch", "daso"), ("remixmatch", "crest_plus")], ids=str)
@pytest.mark.parametrize("pause", [0, 1e9])
def test_between_evaluations_checkpoints_come_after_a_time_and_a_killed_run_goes_on_from_them(
        pause, case, dataset, source, undisturbed, monkeypatch, tmp_path):
    monkeypatch.setattr("dasolib.run_folder.SECONDS_BETWEEN_CHECKPOINTS", pause)
    monkeypatch.setattr("dasolib.run_folder.SHARE_OF_CHECKPOINTS", float("inf"))
    config = config_of(case, dataset, source)
    interrupt(monkeypatch, config, tmp_path, at=8)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == (8 if pause == 0 else 6)
    run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], ids=str)
def test_each_signal_that_asks_for_an_end_is_heeded_again_and_again_and_nothing_is_lost(number, dataset, source,
                                                                                   undisturbed, monkeypatch, tmp_path):
    case = ("fixmatch", "daso")
    config = config_of(case, dataset, source)
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    for at in (0, 1, 2, 5, 9, 10):  # before the first evaluation, at one, and twice within one window
        stop_by_signal(monkeypatch, config, tmp_path, at=at, number=number)
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == at + 1
        assert [signal.getsignal(each) for each in STOP_SIGNALS] == before
    run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case)
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 1, 2, 3, 6, 10, 11]


def test_a_signal_in_the_last_step_or_after_it_ends_the_process(dataset, source, undisturbed, monkeypatch, tmp_path):
    case = ("fixmatch", "daso")
    config = config_of(case, dataset, source)
    assert "saved at step 12 of 12; run again" in stop_by_signal(monkeypatch, config, tmp_path, at=STEPS - 1)

    def signalled(*args, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        return pseudo_label(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("dasolib.train.pseudo_label", signalled)
        with pytest.raises(Interrupted, match="finished; run again to see the result"):
            run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case)
    assert run(config, tmp_path, progress=False) == json.loads((tmp_path / "result.json").read_text())


def test_a_run_that_diverges_is_not_saved_when_it_is_asked_to_stop(dataset, source, monkeypatch, tmp_path):
    step = Training.step

    def spoil(self, batch, t):
        out = step(self, batch, t)
        return out._replace(losses={"labeled": out.losses["labeled"] * (float("nan") if t == 4 else 1)})

    config = config_of(("supervised", ""), dataset, source)
    monkeypatch.setattr(Training, "step", spoil)
    monkeypatch.setattr("dasolib.train.stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM]))
    for n in range(1, 5):
        with pytest.raises(Interrupted, match=f"saved at step {n} of"):
            run(config, tmp_path, progress=False)
    with pytest.raises(FloatingPointError, match="the loss is not finite since step 4"):
        run(config, tmp_path, progress=False)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4


# With an evaluation after every other step, checkpoints lie at the borders of generations (4, 8) and within one (6).
@pytest.mark.parametrize("case", [("fixmatch", "la,crest"), ("remixmatch", "crest_plus")], ids=str)
@pytest.mark.parametrize("at", [4, 6, 8])
def test_crest_goes_on_within_a_generation_and_at_its_border(at, case, dataset, source, undisturbed, monkeypatch,
                                                             tmp_path):
    config = config_of(case, dataset, source, eval_steps=2)
    interrupt(monkeypatch, config, tmp_path, at=at)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == at
    assert (state["selected"] is None) == (at == 4)  # the selection is made by the step after a border
    run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case, eval_steps=2)


@pytest.mark.parametrize("case", [("fixmatch", "darp"), ("remixmatch", "la,daso"), ("remixmatch", "crest_plus")],
                         ids=str)
def test_a_run_stopped_between_its_last_step_and_its_result_stores_the_same(case, dataset, source, undisturbed,
                                                                            monkeypatch, tmp_path):
    """Nothing is trained any more, so all that is stored comes from the state."""
    def stop(*args, **settings):
        raise KeyboardInterrupt

    config = config_of(case, dataset, source)
    with monkeypatch.context() as patch:
        patch.setattr("dasolib.train.pseudo_label", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stop)
        run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case)


def test_a_run_stopped_again_and_again_ends_like_an_undisturbed_one(dataset, source, undisturbed, monkeypatch,
                                                                            tmp_path):
    case = ("remixmatch", "crest_plus")
    config = config_of(case, dataset, source, eval_steps=2)
    for at in (2, 4, 5, 8, 11):
        interrupt(monkeypatch, config, tmp_path, at=at)
    run(config, tmp_path, progress=False)
    assert contents(tmp_path) == undisturbed(case, eval_steps=2)


@pytest.mark.parametrize(("case", "forgotten"), [
    (("fixmatch", "daso"), "rebalance"), (("fixmatch", "distribution_alignment"), "rebalance"),
    (("fixmatch", "darp"), "rebalance"), (("usadtm", ""), "memory"), (("fixmatch", "crest"), "selected"),
    (("supervised", ""), "optimizer"), (("pseudo_label", ""), "ema"), (("fixmatch", "daso"), "window"),
], ids=str)
def test_a_state_that_was_forgotten_would_show(case, forgotten, dataset, source, undisturbed, monkeypatch, tmp_path):
    """The comparison above can fail: a checkpoint without one of its parts leads to other numbers."""
    config = config_of(case, dataset, source)
    stop_by_signal(monkeypatch, config, tmp_path, at=6)
    training, _ = make_training(config, load_data(dataset))
    fresh = training.state(0, 0.0) | {"selected": None, "window": None}
    load = RunFolder.load_checkpoint

    def load_without(self, device):
        return load(self, device) | {forgotten: fresh[forgotten]}

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "load_checkpoint", load_without)
        run(config, tmp_path, progress=False)
    assert contents(tmp_path) != undisturbed(case)


# ---- what the state holds ----


def modules_of(training):
    """The modules of a `Training` by the key of its state that holds them."""
    found = {"net": training.net, "rebalance": training.rebalance}
    found |= {} if training.ema is None else {"ema": training.ema.model}
    return found | ({} if training.memory is None else {"memory": training.memory})


def tensors_of(training):
    """Copies of all parameters and buffers, in the state dict or not, by module and name."""
    return {(key, name): tensor.detach().clone() for key, module in modules_of(training).items()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def attributes_of(training):
    """Copies of whatever modules keep beside parameters, buffers and modules."""
    kept = {"_parameters", "_buffers", "_modules"}
    return {(key, name): copy.deepcopy({k: v for k, v in vars(module).items() if k not in kept})
            for key, whole in modules_of(training).items() for name, module in whole.named_modules()}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_state_holds_every_tensor_that_training_changes(case, dataset, source):
    """A buffer left out of the state dict, or a number kept in a plain attribute, would be lost on resuming."""
    config = config_of(case, dataset, source)
    training, batches = make_training(config, load_data(dataset))
    before, attributes = tensors_of(training), attributes_of(training)
    n_steps = config.generation_steps
    for t in range(n_steps):
        training.step(batches.at(t)[0], t)

    state, after = training.state(n_steps, 0.0), tensors_of(training)
    changed = {place for place in after if not torch.equal(before[place], after[place])}
    for key, name in changed:
        assert name in state[key], f"{key}: {name} changes and is not in the checkpoint"
        assert torch.equal(state[key][name], after[key, name])
    # As many as are expected: a buffer that stays as it was would make the lines above say nothing.
    expected = {f"parts.{part}.{name}" for part in config.parts() for name in CHANGING.get(part, ())}
    assert {name for key, name in changed if key == "rebalance"} == expected
    assert {name for key, name in changed if key == "memory"} == (
        {name.removeprefix("bank.") for name in BANK} if config.method == "usadtm" else set())
    trained = {name for name, weight in training.net.named_parameters() if weight.requires_grad}
    assert {name for key, name in changed if key == "net"} >= trained
    assert attributes_of(training) == attributes


def test_the_state_holds_everything_of_a_training_that_has_one(dataset, source):
    """What a `Training` keeps is a part of its state, or a setting that no step changes."""
    training, _ = make_training(config_of(("usadtm", ""), dataset, source), load_data(dataset))
    stateful = {name for name, value in vars(training).items() if hasattr(value, "state_dict") or name == "ema"}
    assert stateful == {"net", "ema", "rebalance", "optimizer", "memory"}
    assert set(training.state(0, 0.0)) == {"step", "seconds", *stateful}
    settings = {name: value for name, value in vars(training).items() if name not in stateful}
    assert not any(isinstance(value, torch.Tensor | nn.Module | list | dict) for value in settings.values())


def checkpoints_of(config, folder, monkeypatch):
    """Train and return what each checkpoint would have held, by step."""
    states = {}

    def save(self, state):
        states[state["step"]] = copy.deepcopy(state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save)
        run(config, folder, progress=False)
    return states


def test_a_generation_starts_afresh_but_for_the_window_of_the_alignment(dataset, source, tmp_path, monkeypatch):
    config = config_of(("fixmatch", "crest_plus"), dataset, source, eval_steps=1)
    states = checkpoints_of(config, tmp_path, monkeypatch)
    _, batches = make_training(config, load_data(dataset))
    initial = []
    for generation, step in enumerate((1, 5, 9)):  # the first of each generation's four steps
        state = states[step]
        assert state["net"]["bn.num_batches_tracked"] == 1
        # The average of one network is that network.
        assert all(torch.equal(state["net"][name], state["ema"][name]) for name in state["net"])
        # Nesterov's first step from new weights and without a past is 1 + momentum times the gradient.
        net = Training(config, batches.population(None, generation), 1, torch.device("cpu")).net
        initial.append(net.stem.weight)
        gradients = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
        for (name, weight), gradient in zip(net.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(state["net"][name], weight - config.lr * (1 + config.momentum) * gradient)
    assert not torch.equal(initial[0], initial[1]) and not torch.equal(initial[1], initial[2])
    n_seen = {step: state["rebalance"]["parts.crest_plus.alignment.n_seen"].item() for step, state in states.items()}
    assert n_seen == {step: step for step in range(1, STEPS + 1)}


def test_each_generation_learns_from_the_original_labels_and_the_latest_selection(dataset, source, tmp_path,
                                                                                  monkeypatch):
    config = config_of(("fixmatch", "la,crest"), dataset, source, eval_steps=1)
    offsets, adjust = [], LogitAdjustment.adjust_labeled

    def record(self, logits):
        offsets.append(self.offset)
        return adjust(self, logits)

    monkeypatch.setattr(LogitAdjustment, "adjust_labeled", record)
    states = checkpoints_of(config, tmp_path, monkeypatch)
    counts = torch.tensor([12, 7, 4, 3])
    for t in range(STEPS):
        selected = states[t + 1]["selected"]
        assert (selected is None) == (t < 4)
        current = counts if selected is None else counts + torch.bincount(selected["classes"], minlength=4)
        torch.testing.assert_close(offsets[t], (current / current.sum()).log())  # LA follows the current counts
    one, other = states[5]["selected"], states[9]["selected"]
    assert len(one["rows"]) and len(other["rows"])
    assert all(torch.equal(states[8]["selected"][name], one[name]) for name in one)
    assert not (len(one["rows"]) == len(other["rows"]) and torch.equal(one["rows"], other["rows"]))

"""No step waits for the device: neither the methods nor optimiser, moving average and diagnostics read a value back.

Fake tensors have a device but no values, so whatever needs one raises: ``item``, ``bool``, ``nonzero``, boolean masks.
They need no GPU. Without one, torch cannot walk backwards through fake CUDA tensors; there the backward pass is
replaced by gradients of the right shape, and checked on fake CPU tensors, which have no values either.

Between steps a run may wait: at an evaluation, and where a generation of CReST ends. DARP refines its table within a
step and waits for nothing either: its iterations are bounded by numbers, not by values.
"""

import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dasolib.ema import EMA
from dasolib.methods.step import Batch
from dasolib.rebalance import REBALANCERS, darp
from dasolib.train import Window
from tests.test_augment import RefuseWaits
from tests.test_methods import LEGAL, WITHOUT_ALIGNMENT, K, label, new_training, random_batch, tiny_config

N_STEPS = 5
FAKE_STEPS = (0, 3, 4)  # fake tensors are slow, and have no state that a step in between could change
# With these the steps 0, 3 and 4 take every branch: before a method acts, at the end of its period, and within it.
ACTING = {
    "daso": {"pretrain_steps": 2, "refresh_steps": 2},
    "darp": {"darp_warmup_steps": 1, "darp_period": 2},  # refines in the steps 1 and 3
    "cb": {"reweight_warmup_steps": 3},
    "ldam_drw": {"reweight_warmup_steps": 3},
    "distribution_alignment": {"alignment_window": 3},
    "crest_plus": {"alignment_window": 3},
    "abc": {"abc_epoch_steps": 2},
}
# Methods that read values back, with the property of the configuration that says once in how many steps.
WAITS_BETWEEN_STEPS = {"crest": "generation_steps", "crest_plus": "generation_steps"}


def late_config(combination, **changes):
    method, rebalance = combination
    settings = {} if method in ("supervised", "distribution_estimate") else {"ema_weight_decay": 0.1}
    settings |= {"pretrain_steps": 2} if method == "usadtm" else {}
    for name in rebalance:
        settings |= ACTING.get(name, {})
    return tiny_config(method, rebalance, **settings | changes)


def move(module, device):
    """Replace every parameter and buffer by one without values on `device`."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is not None:
                    empty = torch.empty_like(value, device=device)
                    if isinstance(value, nn.Parameter):
                        empty = nn.Parameter(empty, requires_grad=value.requires_grad)
                    store[name] = empty


def fake_training(training, device):
    """The same training without values; networks are set up once, and setting up may wait."""
    move(training.net, device)
    move(training.rebalance, device)
    if training.memory is not None:
        move(training.memory, device)
    if training.ema is not None:
        training.ema = EMA(training.net, cap=training.ema.cap, weight_decay=training.ema.weight_decay)
    settings = training.optimizer.defaults | {"fused": False, "foreach": True}  # torch's fused kernel has no fake form
    training.optimizer = type(training.optimizer)(training.net.parameters(), **settings)
    return training


def map_batch(batch, change):
    """The batch with `change` made to every tensor in it."""
    def each(value):
        if isinstance(value, dict):
            return {name: change(part) for name, part in value.items()}
        return None if value is None else change(value)
    return Batch(*map(each, batch))


def take_steps(training, batch, device):
    """Steps with their diagnostics, on empty tensors of `device`; the real batch was drawn on the host."""
    window = Window(K, device)
    batch = map_batch(batch, lambda part: torch.empty_like(part, device=device))
    u_target = torch.empty_like(batch.index) if batch.views else None
    for t in FAKE_STEPS:
        out = training.step(batch, t)
        window.add(out, u_target, t)
    assert all(p.grad.device.type == device.type for p in training.net.parameters() if p.requires_grad)
    return out


@pytest.fixture
def gradients_of_the_right_shape(monkeypatch):
    """Stand in for the backward pass."""
    def patch(training):
        def backward(loss):
            assert loss.requires_grad and loss.ndim == 0
            for p in training.net.parameters():
                if p.requires_grad:
                    p.grad = torch.empty_like(p)
        monkeypatch.setattr(torch.Tensor, "backward", backward)
    return patch


@pytest.fixture
def few_iterations(monkeypatch):
    """Let DARP's refinement take two rounds of two steps: the others run the same code, and fake tensors are slow."""
    short = functools.partial(darp.refine_to_counts, iterations=2, newton_iterations=2)
    monkeypatch.setattr(darp, "refine_to_counts", short)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # copying the network for its average
@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")  # autocast, without a GPU
@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_no_step_on_a_cuda_device_waits_for_it(combination, gradients_of_the_right_shape, few_iterations):
    method, rebalance = combination
    config, cuda = late_config(combination), torch.device("cuda")
    training, batch = new_training(config), random_batch(config, 0)
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        gradients_of_the_right_shape(fake_training(training, cuda))
        out = take_steps(training, batch, cuda)
        assert sum(out.losses.values()).device.type == "cuda"
        assert ("semantic_alignment" in out.losses) == ("daso" in rebalance and method not in WITHOUT_ALIGNMENT)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_no_step_reads_a_value_in_its_backward_pass(combination, few_iterations):
    config = late_config(combination)
    training, batch = new_training(config), random_batch(config, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        take_steps(fake_training(training, torch.device("cpu")), batch, torch.device("cpu"))


VARIANTS = [
    (("fixmatch", ("daso",)), {"fixed_blend": 0.5}),
    (("fixmatch", ("daso",)), {"prototypes_from": "student"}),
    (("fixmatch", ("daso",)), {"ema_train_mode": False}),
    (("fixmatch", ("daso",)), {"queue_sizing": "frequency"}),
    (("fixmatch", ("daso",)), {"lambda_align": 0.0}),
    (("fixmatch", ("daso",)), {"channels_last": True}),
    (("fixmatch", ("daso", "abc")), {"fixed_blend": 0.5}),
    (("mean_teacher", ("daso",)), {"fixed_blend": 0.5}),
    (("mixmatch", ()), {"sharpen_temperature": 1.0, "ramp_shape": "exp"}),
    (("remixmatch", ()), {"alignment": False}),
    (("remixmatch", ("daso",)), {"alignment": False}),
    (("remixmatch", ("darp",)), {"alignment": False}),  # with all iterations of the refinement
]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("combination", "changes"), VARIANTS,
                         ids=[f"{label(combination)}-{changes}" for combination, changes in VARIANTS])
def test_no_variant_of_a_method_waits_either(combination, changes, gradients_of_the_right_shape):
    config, cuda = late_config(combination, **changes), torch.device("cuda")
    training, batch = new_training(config), random_batch(config, 0)
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        gradients_of_the_right_shape(fake_training(training, cuda))
        take_steps(training, batch, cuda)


def test_darp_refines_its_table_within_the_steps_that_are_checked():
    """Warm-up of one step and a period of two: t = 1 and 3 make a new table, t = 0, 2 and 4 do not."""
    config = late_config(("fixmatch", ("darp",)))
    training, renewed = new_training(config), []
    table = training.rebalance.parts["darp"].refined
    for t in range(N_STEPS):
        before = table.clone()
        training.step(random_batch(config, t), t)
        renewed.append(not torch.equal(table, before))
    assert renewed == [False, True, False, True, False]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", WAITS_BETWEEN_STEPS)
def test_the_exceptions_wait_once_a_period_and_outside_a_step(name, monkeypatch):
    """They do wait, so that the list is not longer than it must be; and no step asks for them."""
    config = late_config(("fixmatch", (name,)))
    training = new_training(config)
    assert getattr(config, WAITS_BETWEEN_STEPS[name]) >= N_STEPS
    asked = []
    monkeypatch.setattr(training.rebalance.parts[name], "select", lambda probs: asked.append(probs))
    for t in range(N_STEPS):
        training.step(random_batch(config, t), t)
    assert not asked
    monkeypatch.undo()
    with pytest.raises((RuntimeError, AssertionError)):
        with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
            fake_training(training, torch.device("cuda"))
            training.rebalance.select(torch.empty(40, K, device="cuda"))


def test_the_exceptions_are_exactly_the_methods_with_generations():
    with_generations = {name for name, line in REBALANCERS.items() if "generations" in line.needs}
    assert set(WAITS_BETWEEN_STEPS) == with_generations


WAITS = {
    "item": lambda labels: labels.final.max().item(),
    "bool": lambda labels: bool((labels.final > 0.5).any()),
    "boolean mask": lambda labels: labels.final[labels.final.max(dim=-1).values > 0.5],
    "nonzero": lambda labels: labels.final.nonzero(),
    "bincount": lambda labels: torch.bincount(labels.final.argmax(dim=-1)),
    "copy to the host": lambda labels: labels.final.cpu(),
    "numpy": lambda labels: labels.final.numpy(),
    "a class at a time": lambda labels: [labels.final[i] for i in labels.final.argmax(dim=-1).tolist()],
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("kind", WAITS)
def test_the_check_notices_a_method_that_waits(kind, monkeypatch, gradients_of_the_right_shape):
    config, cuda = late_config(("fixmatch", ("daso",))), torch.device("cuda")
    training, batch = new_training(config), random_batch(config, 0)
    monkeypatch.setattr(training.rebalance.parts["daso"], "end_step", lambda labels, t: WAITS[kind](labels))
    with pytest.raises((RuntimeError, AssertionError)):
        with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
            gradients_of_the_right_shape(fake_training(training, cuda))
            take_steps(training, batch, cuda)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_steps_on_a_gpu_do_not_wait_for_it(combination, precision):
    config, cuda = late_config(combination, precision=precision), torch.device("cuda")
    training = new_training(config, cuda)
    window = Window(K, cuda)
    batches = [map_batch(random_batch(config, t), lambda part: part.to(cuda)) for t in range(N_STEPS)]
    u_target = torch.zeros_like(batches[0].index) if batches[0].views else None
    for t in (0, 1, 2):  # libraries set themselves up in their first calls, and may wait then
        training.step(batches[t], t)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in (3, 4):
            window.add(training.step(batches[t], t), u_target, t)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    window.stop_if_not_finite()
    assert window.mean_losses()["labeled"] > 0

"""No step waits for the device: neither the methods nor optimiser, moving average and diagnostics read a value back.

Fake tensors have a device but no values, so whatever needs one raises: ``item``, ``bool``, ``nonzero``, boolean masks.
They need no GPU. Without one, torch cannot walk backwards through fake CUDA tensors; there the backward pass is
replaced by gradients of the right shape, and checked on fake CPU tensors, which have no values either.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dasolib.ema import EMA
from dasolib.methods.step import Batch
from dasolib.train import Training, Window
from tests.test_augment import RefuseWaits
from tests.test_methods import COUNTS, LEGAL, K, label, random_batch, tiny_config

N_STEPS = 5  # with P = 2 and a period of 2: before P, at P, and after a renewed histogram


def late_config(combination, **changes):
    """Settings with which every branch of a combination is taken within N_STEPS."""
    method, rebalance = combination
    settings = {"ema_weight_decay": 0.1} if method != "supervised" else {}
    settings |= {"pretrain_steps": 2, "refresh_steps": 2} if "daso" in rebalance else {}
    settings |= {"reweight_warmup_steps": 3} if {"cb", "ldam_drw"} & set(rebalance) else {}
    return tiny_config(method, rebalance, **settings | changes)


def move(module, device):
    """Replace every parameter and buffer by one without values on `device`."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is not None:
                    empty = torch.empty_like(value, device=device)
                    store[name] = nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty


def fake_training(training, device):
    """The same training without values; networks are set up once, and setting up may wait."""
    move(training.net, device)
    move(training.rebalance, device)
    if training.ema is not None:
        training.ema = EMA(training.net, cap=training.ema.cap, weight_decay=training.ema.weight_decay)
    settings = training.optimizer.defaults | {"fused": False, "foreach": True}  # torch's fused kernel has no fake form
    training.optimizer = type(training.optimizer)(training.net.parameters(), **settings)
    return training


def fake_batch(batch, device):
    return Batch(*(torch.empty_like(part, device=device) for part in (batch.x, batch.y)),
                 {name: torch.empty_like(view, device=device) for name, view in batch.views.items()})


def take_steps(training, method, device):
    """All steps with their diagnostics, on empty tensors of `device`."""
    window, batch = Window(K, device), fake_batch(random_batch(method, 0), device)
    u_target = torch.empty(8, dtype=torch.int64, device=device) if batch.views else None
    for t in range(N_STEPS):
        out = training.step(batch, t)
        window.add(out, u_target, t)
    assert all(p.grad.device.type == device.type for p in training.net.parameters())
    return out


@pytest.fixture
def gradients_of_the_right_shape(monkeypatch):
    """Stand in for the backward pass."""
    def patch(training):
        def backward(loss):
            assert loss.requires_grad and loss.ndim == 0
            for p in training.net.parameters():
                p.grad = torch.empty_like(p)
        monkeypatch.setattr(torch.Tensor, "backward", backward)
    return patch


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # copying the network for its average
@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")  # autocast, without a GPU
@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_no_step_on_a_cuda_device_waits_for_it(combination, gradients_of_the_right_shape):
    training = Training(late_config(combination), COUNTS, 3, torch.device("cpu"))
    cuda = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        gradients_of_the_right_shape(fake_training(training, cuda))
        out = take_steps(training, combination[0], cuda)
        assert sum(out.losses.values()).device.type == "cuda"
        assert ("semantic_alignment" in out.losses) == ("daso" in combination[1])


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("combination", LEGAL, ids=label)
def test_no_step_reads_a_value_in_its_backward_pass(combination):
    training = Training(late_config(combination), COUNTS, 3, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        take_steps(fake_training(training, torch.device("cpu")), combination[0], torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    "changes",
    [
        {"fixed_blend": 0.5},
        {"prototypes_from": "student"},
        {"ema_train_mode": False},
        {"queue_sizing": "frequency"},
        {"lambda_align": 0.0},
        {"channels_last": True},
    ],
    ids=str,
)
def test_no_variant_of_daso_waits_either(changes, gradients_of_the_right_shape):
    training = Training(late_config(("fixmatch", ("daso",)), **changes), COUNTS, 3, torch.device("cpu"))
    cuda = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        gradients_of_the_right_shape(fake_training(training, cuda))
        take_steps(training, "fixmatch", cuda)


WAITS = {
    "item": lambda labels: labels.final.max().item(),
    "bool": lambda labels: bool((labels.final > 0.5).any()),
    "boolean mask": lambda labels: labels.final[labels.final.max(dim=-1).values > 0.5],
    "nonzero": lambda labels: labels.final.nonzero(),
    "copy to the host": lambda labels: labels.final.cpu(),
    "numpy": lambda labels: labels.final.numpy(),
    "a class at a time": lambda labels: [labels.final[i] for i in labels.final.argmax(dim=-1).tolist()],
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("kind", WAITS)
def test_the_check_notices_a_method_that_waits(kind, monkeypatch, gradients_of_the_right_shape):
    training = Training(late_config(("fixmatch", ("daso",))), COUNTS, 3, torch.device("cpu"))
    daso, cuda = training.rebalance.parts["daso"], torch.device("cuda")
    monkeypatch.setattr(daso, "end_step", lambda labels, t: WAITS[kind](labels))
    with pytest.raises((RuntimeError, AssertionError)):
        with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
            gradients_of_the_right_shape(fake_training(training, cuda))
            take_steps(training, "fixmatch", cuda)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_daso_steps_on_a_gpu_do_not_wait_for_it(precision):
    cuda = torch.device("cuda")
    training = Training(late_config(("fixmatch", ("la", "daso")), precision=precision), COUNTS.to(cuda), 3, cuda)
    window = Window(K, cuda)
    batches = [random_batch("fixmatch", t) for t in range(N_STEPS)]
    batches = [Batch(b.x.to(cuda), b.y.to(cuda), {n: view.to(cuda) for n, view in b.views.items()}) for b in batches]
    u_target = torch.zeros(8, dtype=torch.int64, device=cuda)
    for t in (0, 1, 2):  # libraries set themselves up in their first calls, and may wait then
        training.step(batches[t], t)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in (3, 4):
            window.add(training.step(batches[t], t), u_target, t)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    window.stop_if_not_finite()
    assert window.mean_losses(2)["semantic_alignment"] > 0

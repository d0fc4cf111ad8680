"""The moving average: what is averaged, with which weight, and what decays."""

import pytest
import torch

from dasolib.ema import EMA, ema_decay
from dasolib.models import WideResNet


def small_net(seed=0):
    """A network after a forward pass in train mode, so that its running statistics are not the initial ones."""
    net = WideResNet(depth=10, width=1, n_classes=3, generator=torch.Generator().manual_seed(seed))
    net.features(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return net


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_the_decay_rises_from_zero_to_its_cap():
    assert [ema_decay(t, 0.9) for t in range(4)] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert ema_decay(9, 0.9) == pytest.approx(0.9)
    assert ema_decay(10, 0.9) == ema_decay(10**6, 0.9) == 0.9


def test_the_average_starts_as_a_copy_in_train_mode_without_gradients():
    net = small_net()
    ema = EMA(net, cap=0.999)
    assert ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(snapshot(ema.model).values(), snapshot(net).values(), strict=True))
    assert not {p.data_ptr() for p in ema.model.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_the_first_update_is_a_plain_copy_whatever_was_there():
    net, ema = small_net(0), EMA(small_net(1), cap=0.999)
    ema.update(net, 0, lr=0.03)
    for name, value in snapshot(net).items():
        assert torch.equal(ema.model.state_dict()[name], value), name


@pytest.mark.parametrize(("t", "cap", "decay"), [(1, 0.999, 0.5), (3, 0.999, 0.75), (500, 0.9, 0.9)])
def test_parameters_and_all_buffers_are_averaged_with_the_same_decay(t, cap, decay):
    net, ema = small_net(0), EMA(small_net(1), cap=cap)
    net.bn.num_batches_tracked += 6
    before, new = snapshot(ema.model), snapshot(net)
    ema.update(net, t, lr=0.03)
    assert len(before) == len(list(net.parameters())) + len(list(net.buffers()))
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, decay * before[name] + (1 - decay) * new[name], msg=name)
        assert torch.equal(net.state_dict()[name], new[name]), f"{name} of the trained network has changed"
    assert not torch.equal(before["bn.running_mean"], new["bn.running_mean"])


def test_the_number_of_batches_becomes_fractional():
    net = small_net()
    ema = EMA(net, cap=0.999)
    net.bn.num_batches_tracked += 1
    ema.update(net, 1, lr=0.03)
    assert ema.model.bn.num_batches_tracked == 1.5


def test_weight_decay_shrinks_convolution_and_linear_weights_alone():
    net = small_net()
    plain, decayed = EMA(net, cap=0.9), EMA(net, cap=0.9, weight_decay=0.5)
    for ema in (plain, decayed):
        ema.update(net, 5, lr=0.1)
    modules = dict(net.named_modules())
    shrunk = 0
    for name, value in plain.model.state_dict().items():
        module = modules[name.rpartition(".")[0]]
        is_decayed = isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and name.endswith("weight")
        shrunk += is_decayed
        want = value * 0.95 if is_decayed else value  # 1 - .1 * .5
        torch.testing.assert_close(decayed.model.state_dict()[name], want, msg=name)
    assert shrunk == 10  # stem, two in each of three blocks, two shortcuts, head


def test_many_updates_equal_the_recursion_in_double_precision():
    net = small_net()
    ema = EMA(net, cap=0.8)
    want = {name: value.double() for name, value in snapshot(net).items()}
    generator = torch.Generator().manual_seed(3)
    for t in range(12):
        with torch.no_grad():
            for value in net.parameters():
                value += torch.randn(value.shape, generator=generator)
        ema.update(net, t, lr=0.03)
        decay = min(1 - 1 / (t + 1), 0.8)
        want = {name: decay * want[name] + (1 - decay) * new for name, new in net.state_dict().items()}
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value.double(), want[name], atol=1e-5, rtol=1e-5, msg=name)


def test_an_average_of_a_network_that_stands_still_stands_still():
    net = small_net()
    ema = EMA(net, cap=0.999)
    before = snapshot(net)
    for t in range(5):
        ema.update(net, t, lr=0.03)
    for name, value in ema.model.state_dict().items():
        assert torch.equal(value, before[name]), name

"""WideResNet and ResNet-34: size, structure, initial draw, image sizes, precision and memory layout."""

import json
import math
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet34

from dasolib.models import ResNet34, WideResNet, forward_views, imagenet_weights, rebuild_network


def small_net(**settings):
    settings = {"depth": 10, "width": 1, "n_classes": 4, "generator": torch.Generator().manual_seed(0)} | settings
    return WideResNet(**settings)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_wrn_28_2_has_the_1_47_million_parameters_of_the_paper():
    n = sum(p.numel() for p in WideResNet(depth=28, width=2, n_classes=10).parameters())
    assert n == 1_467_610


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 3), (28, 2)])
def test_the_parameter_count_follows_from_depth_and_width(depth, width):
    """Convolutions, BatchNorm pairs and head, counted block by block."""
    n, c_in = 3 * 16 * 9, 16
    for c_out in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            n += 2 * c_in + c_in * c_out * 9 + 2 * c_out + c_out * c_out * 9 + (c_in * c_out if c_in != c_out else 0)
            c_in = c_out
    n += 2 * c_in + c_in * 7 + 7
    assert n == sum(p.numel() for p in WideResNet(depth=depth, width=width, n_classes=7).parameters())


@pytest.mark.parametrize("depth", [4, 9, 11, 27, 0, -2])
def test_a_depth_that_is_not_6_n_plus_4_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth={depth}: .* 10, 16, 22, 28"):
        small_net(depth=depth)


def test_wrong_width_and_precision_are_refused_by_value():
    with pytest.raises(ValueError, match="width=0: must be at least 1"):
        small_net(width=0)
    with pytest.raises(ValueError, match="precision='fp16': choose fp32 or bf16"):
        small_net(precision="fp16")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 96, 96), (1, 8, 8), (3, 30, 45)])
def test_images_of_any_channels_and_size_become_features_and_logits(shape):
    net = small_net(in_channels=shape[0], width=2)
    x = images(2, *shape)
    with torch.no_grad():
        assert net.features(x).shape == (2, 128)
        assert net(x).shape == (2, 4)


def test_the_units_halve_the_image_twice():
    net, sides = small_net(), []
    hooks = [unit.register_forward_hook(lambda _net, _args, out: sides.append(tuple(out.shape))) for unit in net.units]
    net(images(2, 3, 32, 32))
    assert len(hooks) == 3
    assert sides == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


@pytest.mark.parametrize("width", [1, 2])
def test_only_the_very_first_block_activates_what_its_shortcut_sees(width):
    """The identity of the first block at width 1 is one of the activated tensor, too."""
    net, seen = small_net(depth=16, width=width).eval(), {}
    blocks = {(i, j): block for i, unit in enumerate(net.units) for j, block in enumerate(unit)}
    for key, block in blocks.items():
        block.register_forward_pre_hook(lambda _net, args, key=key: seen.update({("block", *key): args[0].clone()}))
        block.shortcut.register_forward_pre_hook(
            lambda _net, args, key=key: seen.update({("shortcut", *key): args[0].clone()}))
    with torch.no_grad():
        net(images(2, 3, 16, 16))
        for key, block in blocks.items():
            raw = seen["block", *key]
            activated = F.leaky_relu(block.bn1(raw), 0.1)
            assert not torch.equal(raw, activated)
            assert torch.equal(seen["shortcut", *key], activated if key == (0, 0) else raw), key


@pytest.mark.parametrize("width", [1, 2])
def test_shortcuts_are_convolutions_where_the_shape_changes_and_identities_elsewhere(width):
    net = small_net(depth=16, width=width)
    kinds = [[type(block.shortcut) for block in unit] for unit in net.units]
    first = nn.Identity if width == 1 else nn.Conv2d
    assert kinds == [[first, nn.Identity], [nn.Conv2d, nn.Identity], [nn.Conv2d, nn.Identity]]
    assert [unit[0].shortcut.stride for unit in net.units[1:]] == [(2, 2), (2, 2)]
    assert all(block.shortcut.kernel_size == (1, 1) for unit in net.units[1:] for block in unit[:1])


def test_no_convolution_has_a_bias():
    assert all(module.bias is None for module in small_net().modules() if isinstance(module, nn.Conv2d))


def test_initial_weights_have_the_published_spread():
    """Convolutions sqrt(2 / (k k c_out)), head sqrt(2 / (in + out)), within five standard errors; BatchNorm 1 and 0."""
    net = small_net(depth=28, width=2, n_classes=100)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            spread = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert abs(module.weight.std() / spread - 1) < 5 / math.sqrt(2 * module.weight.numel())
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    spread = math.sqrt(2 / (128 + 100))
    assert abs(net.head.weight.std() / spread - 1) < 5 / math.sqrt(2 * net.head.weight.numel())
    assert (net.head.bias == 0).all()


def test_the_same_generator_state_draws_the_same_weights_and_another_does_not():
    first, again, other = (small_net(generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_the_global_generator_has_no_say_when_one_is_given():
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(small_net())
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_the_count_of_batches_is_a_float_that_counts():
    net = small_net()
    net.features(images(2, 3, 8, 8))
    net.features(images(2, 3, 8, 8))
    assert net.bn.num_batches_tracked.is_floating_point() and net.bn.num_batches_tracked == 2


def test_bf16_keeps_parameters_features_and_logits_in_float32():
    net, x = small_net(precision="bf16"), images(8, 3, 16, 16)
    feats = net.features(x)
    assert feats.dtype == net.head(feats).dtype == torch.float32
    net(x).sum().backward()
    assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters()} == {torch.float32}
    exact = small_net().features(x)
    assert not torch.equal(feats, exact)
    torch.testing.assert_close(feats, exact, atol=0.05, rtol=0.05)


def test_bf16_features_are_finer_than_bf16():
    """Pooling in bfloat16 would leave eight significant bits."""
    feats = small_net(precision="bf16").features(images(8, 3, 16, 16))
    assert not torch.equal(feats, feats.bfloat16().float())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_gives_the_same_numbers_to_rounding(precision):
    x, y = images(8, 3, 16, 16), torch.arange(8) % 4
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = small_net(precision=precision).to(memory_format=layout)
        F.cross_entropy(net(x.contiguous(memory_format=layout)), y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < (1e-5 if precision == "fp32" else 0.1)


def test_views_pass_together_so_that_batch_norm_sees_them_all():
    x, u = images(3, 3, 8, 8), 4 * images(6, 3, 8, 8, seed=1)
    together = forward_views(small_net(), x, u)
    joint = small_net()
    feats = joint.features(torch.cat([x, u]))
    assert [len(view.feats) for view in together] == [3, 6]
    assert torch.equal(torch.cat([view.feats for view in together]), feats)
    assert torch.equal(torch.cat([view.logits for view in together]), joint.head(feats))
    assert not torch.allclose(together[0].feats, small_net().features(x), atol=1e-2)  # alone: other statistics


# --- further heads ---------------------------------------------------------------------------------------------------


def test_further_heads_see_the_same_features_and_have_the_outputs_asked_for():
    net = small_net(heads={"rotation": 4, "balanced": 7})
    feats = net.features(images(3, 3, 8, 8))
    assert {name: head(feats).shape for name, head in net.heads.items()} == {"rotation": (3, 4), "balanced": (3, 7)}
    assert len(small_net().heads) == 0


def test_further_heads_leave_the_initial_weights_of_the_others_as_they_are_and_are_drawn_like_the_head():
    plain, net = small_net().state_dict(), small_net(heads={"balanced": 100}).state_dict()
    assert set(net) - set(plain) == {"heads.balanced.weight", "heads.balanced.bias"}
    assert all(torch.equal(net[name], value) for name, value in plain.items())
    spread = math.sqrt(2 / (64 + 100))
    assert abs(net["heads.balanced.weight"].std() / spread - 1) < 5 / math.sqrt(2 * 6400)
    assert not net["heads.balanced.bias"].any()


def test_the_network_predicts_with_its_head_or_with_the_one_it_is_told_to():
    x = images(3, 3, 8, 8)
    plain, other = small_net(heads={"balanced": 4}), small_net(heads={"balanced": 4}, predictor="balanced")
    feats = plain.eval().features(x)
    assert torch.equal(plain(x), plain.head(feats)) and torch.equal(plain.predict(feats), plain.head(feats))
    assert torch.equal(other.eval()(x), other.heads["balanced"](feats))
    assert not torch.allclose(plain(x), other(x))
    (view,) = forward_views(other, x)
    assert torch.equal(view.logits, other.head(feats))  # the base learner trains its own head


@pytest.mark.parametrize(("heads", "named"), [(None, "none"), ({"rotation": 4}, "rotation")])
def test_a_predictor_that_is_no_head_is_refused(heads, named):
    with pytest.raises(ValueError, match=f"predictor='balanced': choose None or one of the heads: {named}"):
        small_net(heads=heads, predictor="balanced")


# --- ResNet-34 -------------------------------------------------------------------------------------------------------


def small_resnet(**settings):
    return ResNet34(**{"n_classes": 4, "generator": torch.Generator().manual_seed(0)} | settings)


@pytest.mark.parametrize("side", [64, 40])
def test_features_of_resnet_34_are_those_of_torchvision(side, imagenet):
    """In eval mode, with one set of weights; its own head then makes logits of the pooled features."""
    published = resnet34()
    published.load_state_dict(torch.load(imagenet, weights_only=True))
    published.fc = nn.Identity()
    net, x = small_resnet(pretrained=True).eval(), images(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(net.features(x), published.eval()(x))
        assert torch.equal(net(x), net.head(net.features(x)))
    assert net.feat_dim == 512


def test_pretraining_leaves_the_head_to_the_generator_and_everything_else_to_the_file(imagenet):
    first, again, other = (small_resnet(pretrained=True, generator=torch.Generator().manual_seed(seed)).state_dict()
                           for seed in (5, 5, 6))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert [name for name, value in first.items() if not torch.equal(other[name], value)] == ["head.weight"]
    weights = torch.load(imagenet, weights_only=True)
    assert {f"encoder.{name}" for name in weights} - set(first) == {"encoder.fc.weight", "encoder.fc.bias"}
    assert all(torch.equal(first[f"encoder.{name}"], value.to(first[f"encoder.{name}"]))
               for name, value in weights.items() if not name.startswith("fc."))


def test_without_pretraining_the_generator_draws_every_weight_of_resnet_34_with_the_published_spread():
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(small_resnet())
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))
    for module in nets[0].modules():
        if isinstance(module, nn.Conv2d):
            spread = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert abs(module.weight.std() / spread - 1) < 5 / math.sqrt(2 * module.weight.numel())


def test_resnet_34_has_further_heads_float_counters_and_bf16_like_the_wide_one():
    net = small_resnet(heads={"balanced": 7}, predictor="balanced", precision="bf16")
    feats = net.features(images(2, 3, 32, 32))
    assert feats.dtype == torch.float32 and net.predict(feats).shape == (2, 7)
    counters = [value for name, value in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counters) == 36 and all(value.is_floating_point() and value == 1 for value in counters)
    with pytest.raises(ValueError, match="precision='fp16': choose fp32 or bf16"):
        small_resnet(precision="fp16")
    with pytest.raises(ValueError, match="predictor='rotation': choose None or one of the heads: none"):
        small_resnet(predictor="rotation")


@pytest.mark.parametrize("net", [
    small_net(depth=16, width=2, in_channels=1, heads={"balanced": 5}, predictor="balanced", precision="bf16"),
    small_resnet(heads={"rotation": 4}),
], ids=["WideResNet", "ResNet34"])
def test_a_network_is_rebuilt_from_its_description_as_json(net):
    about = json.loads(json.dumps(net.description() | {"class_names": list("abcd"), "resolution": None}))
    copy = rebuild_network(about)
    copy.load_state_dict(net.state_dict())
    assert type(copy) is type(net) and copy.description() == net.description()
    x = images(2, about["in_channels"], 16, 16)
    assert torch.equal(copy.eval()(x), net.eval()(x))


def test_weights_that_cannot_be_had_are_named_with_their_source_and_their_place(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConnectionError, match="ResNet-34 could not be .* from https://download.pytorch.org/models/res"
                                              ".*no route to host.*put the file there by hand.*TORCH_HOME") as error:
        small_resnet(pretrained=True)
    assert str(tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no weights"], ids=["empty", "text"])
def test_a_damaged_file_of_weights_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){file} is damaged .*Delete it to have the ImageNet weights"):
        imagenet_weights()

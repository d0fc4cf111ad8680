"""Networks, an encoder with linear heads on its features each, and one pass over several views of a batch."""

import inspect
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1  # of every LeakyReLU of a WideResNet


class Network(nn.Module):
    """What training and evaluation need of a network: features of images, and linear heads on them.

    A subclass builds its encoder between `__init__` and `add_heads`, and runs it in `encode`.

    Parameters
    ----------
    precision : {"fp32", "bf16"}
        ``bf16`` runs the encoder under autocast; features, logits and losses stay in the parameters' type.
    **settings
        What else rebuilds the network, as JSON types.

    Raises
    ------
    ValueError
        If `precision` is none of the above.
    """

    def __init__(self, *, precision, **settings):
        super().__init__()
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision!r}: choose fp32 or bf16")
        self.precision, self.settings = precision, settings

    def add_heads(self, feat_dim, n_classes, heads, predictor, generator):
        """Put linear heads on the encoder, which is complete.

        Parameters
        ----------
        feat_dim : int
            Features of an image.
        n_classes : int
            K, outputs of `head`.
        heads : dict of str to int or None
            Further heads on the same features, by name, and their outputs.
        predictor : str or None
            The one of `heads` that `forward` predicts with; None: `head`.
        generator : torch.Generator or None
            Source of their weights: Xavier normal, with zero bias.

        Raises
        ------
        ValueError
            If `predictor` is not one of `heads`.
        """
        heads = heads or {}
        if predictor is not None and predictor not in heads:
            raise ValueError(f"predictor={predictor!r}: choose None or one of the heads: {', '.join(heads) or 'none'}")
        self.feat_dim, self.predictor = feat_dim, predictor
        self.head = nn.Linear(feat_dim, n_classes)
        self.heads = nn.ModuleDict({name: nn.Linear(feat_dim, n_outputs) for name, n_outputs in heads.items()})
        for head in (self.head, *self.heads.values()):
            nn.init.xavier_normal_(head.weight, generator=generator)
            nn.init.zeros_(head.bias)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                # A float, since the moving average of the published code averages this buffer too.
                module.num_batches_tracked = module.num_batches_tracked.to(self.head.weight.dtype)

    def features(self, x):
        """Encode images (N, C, H, W), normalised, into features (N, feat_dim)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            # Cast before pooling: the mean over pixels is taken in full precision.
            return self.encode(x).to(self.head.weight.dtype).mean(dim=(2, 3))

    def predict(self, feats):
        """Logits (N, K) of features (N, feat_dim), from the head that predicts."""
        return (self.head if self.predictor is None else self.heads[self.predictor])(feats)

    def forward(self, x):
        """Logits (N, K) of images (N, C, H, W)."""
        return self.predict(self.features(x))

    def description(self):
        """Return what `rebuild_network` needs, as JSON types."""
        return {
            "network": type(self).__name__, **self.settings, "n_classes": self.head.out_features,
            "precision": self.precision, "heads": {name: head.out_features for name, head in self.heads.items()},
            "predictor": self.predictor,
        }


class Block(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut.

    The shortcut sees the raw input, except in the network's very first block (`activate_shortcut`), where it sees
    what the first convolution sees. It is a 1x1 convolution where the shape changes, else the identity.
    """

    def __init__(self, c_in, c_out, stride, *, activate_shortcut):
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x):
        """(N, c_in, H, W) -> (N, c_out, H / stride, W / stride)."""
        out = F.leaky_relu(self.bn1(x), SLOPE, inplace=True)
        shortcut = self.shortcut(out if self.activate_shortcut else x)
        out = F.leaky_relu(self.bn2(self.conv1(out)), SLOPE, inplace=True)
        return self.conv2(out) + shortcut


class WideResNet(Network):
    """WRN-`depth`-`width`: a 3x3 stem to 16 channels, three units of pre-activation blocks, and linear heads.

    Parameters
    ----------
    depth : int
        6 n + 4 with n >= 1 blocks in each unit; 28 in the paper, 10 at CPU scale.
    width : int
        Units have 16, 32 and 64 times `width` channels, with strides 1, 2 and 2.
    n_classes : int
        K, outputs of the head.
    in_channels : int
        Channels of the images.
    heads, predictor, precision
        As in `Network`.
    generator : torch.Generator, optional
        Source of the initial weights: convolutions Kaiming normal (fan-out, ReLU gain), head Xavier normal with
        zero bias.

    Raises
    ------
    ValueError
        If `depth`, `width`, `precision` or `predictor` is none of the above.

    References
    ----------
    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; the variant of ytaek-oh/daso@3541a6c,
    ``lib/models/wrn.py``.

    Examples
    --------
    >>> net = WideResNet(depth=28, width=2, n_classes=10)
    >>> sum(p.numel() for p in net.parameters())
    1467610
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, *, depth, width, n_classes, in_channels=3, heads=None, predictor=None, precision="fp32",
                 generator=None):
        super().__init__(precision=precision, depth=depth, width=width, in_channels=in_channels)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: a WideResNet has depth 6 n + 4: 10, 16, 22, 28, ...")
        if width < 1:
            raise ValueError(f"width={width}: must be at least 1")
        n_blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        units, c_in = [], 16
        for i, (c_out, stride) in enumerate([(16 * width, 1), (32 * width, 2), (64 * width, 2)]):
            blocks = []
            for j in range(n_blocks):
                blocks.append(Block(c_in, c_out, stride if j == 0 else 1, activate_shortcut=i == j == 0))
                c_in = c_out
            units.append(nn.Sequential(*blocks))
        self.units = nn.Sequential(*units)
        self.bn = nn.BatchNorm2d(c_in)
        _draw_convolutions(self, generator)
        self.add_heads(c_in, n_classes, heads, predictor, generator)

    def encode(self, x):
        """Images (N, C, H, W) -> maps (N, 64 * width, H / 4, W / 4)."""
        return F.leaky_relu(self.bn(self.units(self.stem(x))), SLOPE, inplace=True)


class ResNet34(Network):
    """ResNet-34 as torchvision builds it, for images of three channels, with other heads.

    Parameters
    ----------
    n_classes : int
        K, outputs of the head.
    pretrained : bool
        Start from torchvision's ImageNet weights, see `imagenet_weights`.
    heads, predictor, precision
        As in `Network`.
    generator : torch.Generator, optional
        Source of the other initial weights: heads Xavier normal with zero bias and, if not `pretrained`, convolutions
        Kaiming normal (fan-out, ReLU gain).

    Raises
    ------
    ValueError
        If `precision` or `predictor` is none of the above, or the file of the weights is damaged.
    ConnectionError
        If the weights cannot be downloaded.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Examples
    --------
    >>> net = ResNet34(n_classes=200)
    >>> sum(p.numel() for p in net.parameters())
    21387272
    >>> net(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 200])
    """

    def __init__(self, *, n_classes, pretrained=False, heads=None, predictor=None, precision="fp32", generator=None):
        from torchvision.models import resnet34  # here and below: no other network needs it, and it takes a second

        super().__init__(precision=precision, in_channels=3)
        self.encoder = nn.Sequential()
        for name, module in resnet34().named_children():
            if name not in ("avgpool", "fc"):
                self.encoder.add_module(name, module)
        if pretrained:
            weights = imagenet_weights()
            self.encoder.load_state_dict({name: weights[name] for name in self.encoder.state_dict()})
        else:
            _draw_convolutions(self, generator)
        self.add_heads(512, n_classes, heads, predictor, generator)

    def encode(self, x):
        """Images (N, 3, H, W) -> maps (N, 512, H / 32, W / 32), rounded up."""
        return self.encoder(x)


def _draw_convolutions(net, generator):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)


def imagenet_weights():
    """Weights of torchvision's ResNet-34 by name, from torch's cache; downloaded to it where absent.

    Raises
    ------
    ConnectionError
        If they are not in the cache and cannot be downloaded: names both places.
    ValueError
        If the file in the cache is damaged.
    """
    from torchvision.models import ResNet34_Weights

    weights = ResNet34_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    was_there = file.exists()
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # whatever a network makes of a download, and damage of a file
        if was_there:
            raise ValueError(f"{file} is damaged ({error}). Delete it to have the ImageNet weights of ResNet-34 "
                             "downloaded again, or put a sound copy in its place.") from error
        raise ConnectionError(f"the ImageNet weights of ResNet-34 could not be downloaded from {weights.url} to "
                              f"{file}: {error}. Try again, or put the file there by hand; the environment variable "
                              "TORCH_HOME names another cache.") from error


def prepare_network(config):
    """Fetch what `build_network` will load, so that a run which cannot have it stops before any work."""
    if config.network == "resnet34":
        imagenet_weights()


def build_network(config, *, in_channels, **settings):
    """Build the network of a configuration.

    Parameters
    ----------
    config : dasolib.config.Config
    in_channels : int
        Channels of the images; 3 for a ResNet-34.
    **settings
        ``n_classes``, ``heads``, ``predictor`` and ``generator``, as in `WideResNet`.

    Returns
    -------
    Network
    """
    if config.network == "resnet34":
        return ResNet34(pretrained=True, precision=config.precision, **settings)
    return WideResNet(depth=config.depth, width=config.width, in_channels=in_channels, precision=config.precision,
                      **settings)


def rebuild_network(about):
    """Build the network that a run's ``model.json`` describes; its weights are in ``model.safetensors``.

    Parameters
    ----------
    about : dict
        The contents of the file.

    Returns
    -------
    Network

    Examples
    --------
    >>> net = WideResNet(depth=10, width=1, n_classes=4)
    >>> copy = rebuild_network(net.description())
    >>> copy.load_state_dict(net.state_dict())
    <All keys matched successfully>
    """
    network = {"WideResNet": WideResNet, "ResNet34": ResNet34}[about["network"]]
    return network(**{name: about[name] for name in inspect.signature(network).parameters if name in about})


class View(NamedTuple):
    """One view of a batch after the network."""

    feats: Tensor | None  # (n, feat_dim); None where a base learner has mixed or turned the images
    logits: Tensor  # (n, K)


def forward_views(net, *views):
    """Pass several batches (n_i, C, H, W) through `net` at once, so that BatchNorm sees them together.

    Returns
    -------
    list of View
        In the order given.
    """
    sizes = [len(view) for view in views]
    feats = net.features(torch.cat(views))
    return [View(*parts) for parts in zip(feats.split(sizes), net.head(feats).split(sizes), strict=True)]

"""WideResNet as the semi-supervised field uses it, and one pass over several views of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1  # of every LeakyReLU


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


class WideResNet(nn.Module):
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
    heads : dict of str to int, optional
        Further heads on the same features, by name, and their outputs.
    predictor : str, optional
        The one of `heads` that `forward` predicts with; None: `head`.
    precision : {"fp32", "bf16"}
        ``bf16`` runs the encoder under autocast; features, logits and losses stay in the parameters' type.
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
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: a WideResNet has depth 6 n + 4: 10, 16, 22, 28, ...")
        if width < 1:
            raise ValueError(f"width={width}: must be at least 1")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision!r}: choose fp32 or bf16")
        heads = heads or {}
        if predictor is not None and predictor not in heads:
            raise ValueError(f"predictor={predictor!r}: choose None or one of the heads: {', '.join(heads) or 'none'}")
        self.precision, self.predictor = precision, predictor
        self.feat_dim = 64 * width
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
        self.head = nn.Linear(c_in, n_classes)
        self.heads = nn.ModuleDict({name: nn.Linear(c_in, n_outputs) for name, n_outputs in heads.items()})
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                # A float, since the moving average of the published code averages this buffer too.
                module.num_batches_tracked = module.num_batches_tracked.to(self.head.weight.dtype)
        for head in (self.head, *self.heads.values()):
            nn.init.xavier_normal_(head.weight, generator=generator)
            nn.init.zeros_(head.bias)

    def features(self, x):
        """Encode images (N, C, H, W), normalised, into features (N, 64 * width)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            x = self.units(self.stem(x))
            x = F.leaky_relu(self.bn(x), SLOPE, inplace=True)
            # Cast before pooling: the mean over pixels is taken in full precision.
            return x.to(self.head.weight.dtype).mean(dim=(2, 3))

    def predict(self, feats):
        """Logits (N, K) of features (N, 64 * width), from the head that predicts."""
        return (self.head if self.predictor is None else self.heads[self.predictor])(feats)

    def forward(self, x):
        """Logits (N, K) of images (N, C, H, W)."""
        return self.predict(self.features(x))


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

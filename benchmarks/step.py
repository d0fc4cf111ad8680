"""What a DASO step of the paper's size costs, and where its time goes.

    python -m benchmarks.step [--device cuda] [--compiled] [--rounds 5] [--json FILE]

FixMatch + DASO with the paper's network (WRN-28-2, B = 64, mu = 2: 320 views and a pass of the moving average on 64
images) on random images of CIFAR-10's size, all threads. Rounds go over all variants in turn; a ratio is the median
over rounds. The opponent is `PlainDaso`: the same arithmetic in fp32, channels first, as one writes it from torch's
public pieces; it is handed augmented images, ours augments its own.

Rates count the floating-point operations of the convolutions and matrix products, two for a multiply-add. They are set
against two rates of the same run: of a large matrix product, and of this network's convolutions alone, forward and
backward, each on its own in a loop. Matrix units that a CPU has beyond AVX-512 (AMX) can be left out of the comparison
with ``ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16``.
"""

import copy
import statistics
import time
from collections import defaultdict, deque

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.workload import argument_parser, build, parse, random_data, synchronize, tell
from dasolib.config import available_cores, make_config
from dasolib.ema import ema_decay
from dasolib.host import prepare_host
from dasolib.prototypes import PrototypeBank
from dasolib.train import Window

WARM_UP = 2  # steps before the first round
FIRST = 200  # t of the first step: past DASO's P, its histogram filled
PRODUCT_SIDE = 4096  # of the square matrices whose product gives the reference rate
VARIANTS = {
    "fp32": {"precision": "fp32", "channels_last": False},
    "fp32, channels_last": {"precision": "fp32", "channels_last": True},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
}
COMPILED = {"bf16, channels_last, compiled": {"precision": "bf16", "channels_last": True, "compile": True}}


def paper_config(device, **changes):
    """Return the paper's FixMatch + DASO, with P small enough that the measured steps blend and align."""
    settings = {"method": "fixmatch", "rebalance": "daso", "unlabeled": "equal", "n_val": 0} | changes
    settings |= {"pretrain_steps": 100} if settings["rebalance"] else {}
    return make_config("paper", dataset="cifar10", total_steps=100_000, threads=available_cores(), device=str(device),
                       **settings)


class PlainDaso:
    """A FixMatch + DASO step as one writes it first: a queue for each class, loops over images, classes and weights.

    Parameters
    ----------
    training : dasolib.train.Training
        Its network and settings are copied.
    config : dasolib.config.Config
    n_classes : int
    """

    def __init__(self, training, config, n_classes):
        self.config = config
        self.net, self.ema = copy.deepcopy(training.net), copy.deepcopy(training.ema.model)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=config.lr, momentum=config.momentum,
                                         nesterov=config.nesterov, weight_decay=config.weight_decay)
        self.queues = [deque(maxlen=config.queue_size) for _ in range(n_classes)]
        self.class_freq = torch.ones(n_classes, device=next(self.net.parameters()).device)
        self.pending = torch.zeros_like(self.class_freq)

    def step(self, batch, t):
        """Take one step; return the losses by name."""
        config = self.config
        with torch.no_grad():
            for feature, k in zip(self.ema.features(batch.x), batch.y.tolist(), strict=True):
                self.queues[k].append(feature)
            unseen = torch.zeros(self.net.feat_dim, device=batch.x.device)
            prototypes = F.normalize(torch.stack([torch.stack(list(queue)).mean(dim=0) if queue else unseen
                                                  for queue in self.queues]), dim=1)
        feats = self.net.features(torch.cat([batch.x, batch.views["weak"], batch.views["strong"]]))
        sizes = [len(batch.x), len(batch.views["weak"]), len(batch.views["strong"])]
        _, weak_feats, strong_feats = feats.split(sizes)
        labeled, weak, strong = self.net.head(feats).split(sizes)
        with torch.no_grad():
            linear = weak.softmax(dim=1)
            semantic = (F.normalize(weak_feats, dim=1) @ prototypes.T / config.proto_temperature).softmax(dim=1)
            weight = self.class_freq ** (1 / config.dist_temperature)
            weight = (weight / weight.max())[linear.argmax(dim=1)].unsqueeze(1)
            final = (1 - weight) * linear + weight * semantic
            confidence, target = final.max(dim=1)
            mask = (confidence >= config.threshold).float()
            for k in target.tolist():
                self.pending[k] += 1
        similarity = F.normalize(strong_feats, dim=1) @ prototypes.T / config.proto_temperature
        losses = {"labeled": F.cross_entropy(labeled, batch.y),
                  "unlabeled": (F.cross_entropy(strong, target, reduction="none") * mask).mean(),
                  "semantic_alignment": F.cross_entropy(similarity, semantic)}
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        decay = ema_decay(t, config.ema_decay)
        with torch.no_grad():
            for old, new in zip(self.ema.state_dict().values(), self.net.state_dict().values(), strict=True):
                old.mul_(decay).add_(new, alpha=1 - decay)
        if (t + 1) % config.refresh_steps == 0:
            self.class_freq, self.pending = self.pending, torch.zeros_like(self.pending)
        return losses


def timed(device, work):
    """Seconds that `work`, a function without arguments, takes on `device`."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def product_rate(dtype, device, rounds):
    """Floating-point operations a second of a large matrix product."""
    left, right = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    return 2 * PRODUCT_SIDE**3 / statistics.median(timed(device, lambda: torch.mm(left, right)) for _ in range(rounds))


def convolution_rate(net, x, rounds):
    """Floating-point operations a second of the convolutions of `net` for a batch `x`, forward and backward, alone."""
    inputs, dtype = [], torch.bfloat16 if net.precision == "bf16" else torch.float32
    hooks = [module.register_forward_hook(lambda module, args, out: inputs.append((module, args[0])))
             for module in net.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        net.features(x)
    for hook in hooks:
        hook.remove()
    operations, seconds = 0, 0.0
    for module, x in tqdm(inputs, desc="convolutions alone", leave=False):
        weight = module.weight.detach().to(dtype).requires_grad_()
        x = x.detach().to(dtype).requires_grad_(module.in_channels > 3)  # images need no gradient

        def both_ways(x=x, weight=weight, module=module):
            out = F.conv2d(x, weight, stride=module.stride, padding=module.padding)
            out.backward(torch.ones_like(out))

        with FlopCounterMode(display=False) as counter:
            both_ways()
        operations += counter.get_total_flops()
        seconds += statistics.median(timed(x.device, both_ways) for _ in range(rounds))
    return operations / seconds


class Sections:
    """Seconds that functions take, by section; what runs within another section counts for its own alone."""

    def __init__(self, device):
        self.device, self.seconds, self._stack = device, defaultdict(float), []

    def wrap(self, owner, name, section):
        """Replace ``owner.name`` by the same function with a clock."""
        function = getattr(owner, name)

        def clocked(*arguments, **named):
            synchronize(self.device)
            self._stack.append(0.0)
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                synchronize(self.device)
                passed, within = time.perf_counter() - began, self._stack.pop()
                self.seconds[section] += passed - within
                if self._stack:
                    self._stack[-1] += passed
        setattr(owner, name, clocked)
        return function


def profile(batches, training, device, n_steps):
    """Share of each section in the seconds of `n_steps` steps, in [0, 1]; sums to 1."""
    sections, window = Sections(device), Window(training.net.head.out_features, device)
    original = torch.Tensor.backward, PrototypeBank.push
    for owner, name, section in (
        (batches, "at", "views: sampling, augmentation, normalisation"),
        (training.net, "features", "network: forward"), (training.net.head, "forward", "network: forward"),
        (training.ema.model, "features", "network: forward of the moving average"),
        (torch.Tensor, "backward", "network: backward"),
        (PrototypeBank, "push", "queues and prototypes"),
        (training, "learner_step", "pseudo-labels, blend and losses"),
        (training, "end_step", "histogram"),
        (training.optimizer, "step", "optimiser"),
        (training.ema, "update", "moving average"),
        (window, "add", "counters and losses for the log"),
    ):
        sections.wrap(owner, name, section)

    def steps():
        for t in range(FIRST, FIRST + n_steps):
            batch, u_target = batches.at(t)
            window.add(training.step(batch, t), u_target, t)

    try:
        total = timed(device, steps)
    finally:
        torch.Tensor.backward, PrototypeBank.push = original
    shares = {section: seconds / total for section, seconds in sections.seconds.items()}
    return shares | {"between them": 1 - sum(shares.values())}


def measure(device, rounds, variants):
    """Return the numbers that `format_numbers` shows."""
    prepare_host(available_cores())
    data = random_data()
    built = {name: (paper_config(device, **settings), *build(paper_config(device, **settings), data, device))
             for name, settings in variants.items()}
    config, batches, training = built["fp32"]
    plain = PlainDaso(training, config, data.n_classes)
    with FlopCounterMode(display=False) as counter:
        training.step(batches.at(FIRST)[0], FIRST)
    operations = counter.get_total_flops()

    def ours(name, t):
        _, batches, training = built[name]
        training.step(batches.at(t)[0], t)

    names = ["plain", *variants]
    seconds = {name: [] for name in names}
    for i in tqdm(range(WARM_UP + rounds), desc="rounds"):
        t = FIRST + i
        for name in names:
            batch = batches.at(t)[0] if name == "plain" else None
            work = (lambda: plain.step(batch, t)) if name == "plain" else (lambda: ours(name, t))  # noqa: B023
            passed = timed(device, work)
            if i >= WARM_UP:
                seconds[name].append(passed)
    rates = {"fp32": product_rate(torch.float32, device, rounds), "bf16": product_rate(torch.bfloat16, device, rounds)}
    views = torch.cat([batches.at(FIRST)[0].x] * (1 + 2 * config.mu))
    alone = {name: convolution_rate(training.net, views.contiguous(memory_format=torch.channels_last) if
                                    config.channels_last else views, rounds)
             for name, (config, _, training) in built.items() if not config.compile}
    rows = []
    for name in names:
        own = statistics.median(seconds[name])
        precision = "bf16" if "bf16" in name else "fp32"
        rows.append({
            "variant": name, "ms": 1000 * own,
            "plain / own": statistics.median(a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)),
            "tflops": operations / own / 1e12, "of matrix product": operations / own / rates[precision],
            "of convolutions alone": operations / own / alone[name] if name in alone else None,
        })
    shares = profile(*built["bf16, channels_last"][1:], device, rounds)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else
        f"{torch.backends.cpu.get_cpu_capability()}, {available_cores()} threads",
        "gflop_per_step": operations / 1e9, "rows": rows, "profile": shares,
        "product_tflops": {name: rate / 1e12 for name, rate in rates.items()},
        "convolution_tflops": {name: rate / 1e12 for name, rate in alone.items()},
        "outside_network": 1 - sum(share for section, share in shares.items() if section.startswith("network")),
    }


def format_numbers(numbers):
    """Text of the tables."""
    lines = [f"{numbers['device']}; {numbers['gflop_per_step']:.0f} GFLOP a step; matrix product "
             + ", ".join(f"{name} {rate:.2f}" for name, rate in numbers["product_tflops"].items()) + " TFLOP/s",
             f"{'variant':32} {'ms':>8} {'plain / own':>12} {'TFLOP/s':>8} {'of matrix product':>18} "
             f"{'of convolutions':>16}"]
    for row in numbers["rows"]:
        alone = row["of convolutions alone"]
        lines.append(f"{row['variant']:32} {row['ms']:8.1f} {row['plain / own']:12.2f} {row['tflops']:8.3f} "
                     f"{row['of matrix product']:18.0%} {'-' if alone is None else f'{alone:.0%}':>16}")
    lines += ["plain: fp32, channels first, from torch's public pieces. of convolutions: of their rate alone.", "",
              "bf16, channels_last: share of the step"]
    lines += [f"{section:48} {share:6.1%}" for section, share in numbers["profile"].items()]
    return "\n".join([*lines, f"{'outside the network, together':48} {numbers['outside_network']:6.1%}"])


def main():
    """Measure, print and store."""
    parser = argument_parser("step", __doc__, rounds=5, device=True)
    parser.add_argument("--compiled", action="store_true", help="also a compiled step; takes minutes to compile")
    arguments = parse(parser)
    numbers = measure(arguments.device, arguments.rounds, VARIANTS | (COMPILED if arguments.compiled else {}))
    tell(format_numbers(numbers), numbers, arguments.json, arguments.device)


if __name__ == "__main__":
    main()

"""What the benchmarks of training share: random data of CIFAR-10's size, a training on it, and how a result is told."""

import argparse
import dataclasses
import functools
import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch

from dasolib import augment
from dasolib.batches import Batches, make_split
from dasolib.data import load_data
from dasolib.train import Training, choose_device

N_TRAIN = 50_000


def random_data(n_classes=10):
    """Random images of CIFAR-10's size and number of training images, as many of each class."""
    rng = np.random.default_rng(0)
    y = torch.arange(n_classes).repeat_interleave(N_TRAIN // n_classes)
    x = torch.from_numpy(rng.integers(0, 256, (len(y), 3, 32, 32), dtype=np.uint8))
    return dataclasses.replace(load_data("mnist5k"), x_train=x, y_train=y, x_test=x[:n_classes], y_test=y[:n_classes],
                               class_names=tuple(map(str, range(n_classes))), mean=(0.5,) * 3, std=(0.25,) * 3)


def build(config, data, device):
    """Return the `Batches` and the `Training` of a run of `config` on `data`."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    normalize = functools.partial(augment.normalize, mean=data.mean, std=data.std, memory_format=layout)
    batches = Batches(config, data, make_split(config, data), normalize, device)
    hidden = torch.bincount(batches.u_target.cpu(), minlength=data.n_classes).double()
    return batches, Training(config, batches.population(hidden, 0), data.x_train.shape[1], device)


def synchronize(device):
    """Wait until `device` has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device=None):
    """Largest memory this process has held so far, in MiB: on the host, or what torch allocated on a CUDA device."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def argument_parser(module, description, *, rounds, device=False):
    """Return a parser with ``--rounds`` and ``--json``, which every benchmark takes, and ``--device`` if asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"at least 1 (default {rounds})")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    if device:
        parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    return parser


def parse(parser):
    """Parse the command line; refuse a number of rounds below 1 and a device that is not there."""
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: must be at least 1")
    if "device" in arguments:
        try:
            arguments.device = choose_device(arguments.device)
        except ValueError as error:
            parser.error(str(error))
    return arguments


def tell(text, numbers, file, device=None):
    """Print a result and the peak memory, and store the numbers where a file is given."""
    memory = peak_memory(device)
    print(f"{text}\npeak memory: {memory:.0f} MiB")
    if file is not None:
        file.write_text(json.dumps(numbers | {"peak_memory_mib": round(memory)}, indent=1) + "\n")

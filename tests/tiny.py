"""A data set and a configuration small enough to be trained within a test, and how runs of it are compared."""

import functools
import json
import os
import signal

import numpy as np
import pytest
import torch

from dasolib import augment
from dasolib.batches import Batches, make_split
from dasolib.config import make_config
from dasolib.host import Interrupted
from dasolib.rebalance import parse_rebalance
from dasolib.train import Training, run

N_CLASSES, SIDE = 4, 12
N_TRAIN, N_TEST = 40, 15  # images of each class


def tiny_arrays():
    """Grey noise with one bright quarter, whose place is the class; arrays as an .npz data set has them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        y = np.repeat(np.arange(N_CLASSES), n)
        x = rng.integers(0, 150, (len(y), SIDE, SIDE), dtype=np.uint8)
        half = SIDE // 2
        for image, label in zip(x, y, strict=True):
            top, left = half * (label // 2), half * (label % 2)
            image[top:top + half, left:left + half] += 90
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    return arrays


def save_tiny(folder, **changes):
    """Write the data set as ``tiny.npz``, with some arrays changed; return its path as text."""
    path = folder / "tiny.npz"
    np.savez(path, **tiny_arrays() | changes)
    return str(path)


# Further settings with which a re-balancing method acts from the third step on at the latest.
ACTING = {
    "ldam_drw": {"reweight_warmup_steps": 2},
    "distribution_alignment": {"alignment_window": 3},
    "darp": {"darp_warmup_steps": 2, "darp_period": 1, "unlabeled": "equal"},
    "daso": {"pretrain_steps": 2, "refresh_steps": 2, "queue_size": 8, "dist_temperature": 0.5},
    "crest": {"n_generations": 3},
    "crest_plus": {"n_generations": 3, "alignment_window": 3},
}


def tiny_config(dataset, **changes):
    """FixMatch + DASO, six steps with an evaluation after every other one."""
    settings = {
        "method": "fixmatch", "rebalance": "daso", "total_steps": 6, "n1": 12, "m1": 24, "gamma_l": 4.0,
        "unlabeled": "reversed", "batch_size": 4, "eval_steps": 2, "eval_images": 30, "flip": False,
        "precision": "fp32", "channels_last": False, "threads": 1, "device": "cpu",
    }
    for name in parse_rebalance(changes.get("rebalance", settings["rebalance"])):
        settings |= ACTING.get(name, {})
    return make_config("cpu", dataset=dataset, **settings | changes)


def make_training(config, data):
    """A `Training` before its first step, in the first generation, and the `Batches` it takes."""
    normalize = functools.partial(
        augment.normalize, mean=data.mean, std=data.std, resolution=config.train_resolution,
        memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    batches = Batches(config, data, make_split(config, data), normalize, torch.device("cpu"))
    counts = torch.bincount(batches.u_target.clamp(min=0), minlength=data.n_classes).double()
    population = batches.population(counts if "darp" in config.rebalance else None, 0)
    return Training(config, population, data.x_train.shape[1], torch.device("cpu")), batches


def interrupt(monkeypatch, config, folder, *, at, resident=None):
    """Train until step `at` (from 0) asks for its batch."""
    original = Batches.at

    def stop(self, t):
        if t == at:
            raise KeyboardInterrupt
        return original(self, t)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "at", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, folder, progress=False, resident=resident)


def stop_by_signal(monkeypatch, config, folder, *, at, number=signal.SIGTERM):
    """Train until a signal comes while step `at` (from 0) gets its batch; return what the run says."""
    original = Batches.at

    def send(self, t):
        if t == at:
            os.kill(os.getpid(), number)
        return original(self, t)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "at", send)
        with pytest.raises(Interrupted) as raised:
            run(config, folder, progress=False)
    return str(raised.value)


def without_times(record):
    return {name: value for name, value in record.items() if name not in ("seconds", "images_per_s", "sha256")}


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_arrays(file):
    """Type, shape and bytes of each array of an .npz, so that equal means equal bit for bit."""
    with np.load(file) as arrays:
        return {name: (arrays[name].dtype.str, arrays[name].shape, arrays[name].tobytes()) for name in arrays}


def contents(folder):
    """Everything in a finished run's folder that must not depend on when it was killed."""
    return {
        "metrics": [without_times(record) for record in read_metrics(folder)],
        "result": without_times(json.loads((folder / "result.json").read_text())),
        "model": json.loads((folder / "model.json").read_text()),
        "weights": (folder / "model.safetensors").read_bytes(),
        "predictions": (folder / "predictions.csv").read_bytes(),
        "counts": read_arrays(folder / "pseudo_labels.npz"),
        "outputs": read_arrays(folder / "outputs.npz"),
    }

"""A data set and a configuration small enough to be trained within a test."""

import numpy as np

from dasolib.config import make_config

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


def tiny_config(dataset, **changes):
    """FixMatch + DASO, six steps with an evaluation after every other one; DASO acts from the third step on."""
    settings = {
        "method": "fixmatch", "rebalance": "daso", "total_steps": 6, "n1": 12, "m1": 24, "gamma_l": 4.0,
        "unlabeled": "reversed", "batch_size": 4, "eval_steps": 2, "eval_images": 30, "flip": False,
        "precision": "fp32", "channels_last": False, "threads": 1, "device": "cpu",
    }
    if "daso" in changes.get("rebalance", "daso"):
        settings |= {"pretrain_steps": 2, "refresh_steps": 2, "queue_size": 8, "dist_temperature": 0.5}
    return make_config("cpu", dataset=dataset, **settings | changes)

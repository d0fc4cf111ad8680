"""Runs made by hand: four classes, counts small enough to work out what follows from them."""

import json
from types import SimpleNamespace

import numpy as np

from dasolib.config import make_config
from dasolib.diagnostics import KINDS
from dasolib.evaluation import summarize
from dasolib.results import load_run
from dasolib.run_folder import RunFolder, write_json

N_CLASSES = 4  # head {0}, medium {1, 2}, tail {3}


def counts_of(*rows):
    """K + 1 rows of counts, the last of images of unknown class."""
    return np.array([*rows, [0] * N_CLASSES])


# Recall .8, .5, .5, .4; precision 8/14, 1, 1, .5; 21 images, of which 14, 2, 1 and 4 get each label.
FINAL = counts_of([8, 0, 0, 2], [2, 2, 0, 0], [1, 0, 1, 0], [3, 0, 0, 2])
TEST = np.array([[9, 1, 0, 0], [2, 8, 0, 0], [4, 0, 6, 0], [7, 0, 0, 3]])  # accuracy .9, .8, .6, .3: 26 of 40


SETTINGS = {"dataset": "mnist5k", "method": "fixmatch", "unlabeled": "reversed", "n1": 40, "m1": 80, "gamma_l": 10.0,
            "threads": 1}


def write_run(folder, *, preset="cpu", evaluations=3, final=FINAL, test=TEST, semantic=None, finished=True, **settings):
    """Write the small files of a run with the same counts at each evaluation, every ten steps; return the folder."""
    config = make_config(preset, **SETTINGS | settings)
    pseudo_labels = np.zeros((len(KINDS), N_CLASSES + 1, N_CLASSES), dtype=int)
    pseudo_labels[0] = pseudo_labels[2] = final
    if semantic is not None:
        pseudo_labels[1] = semantic
    counts = {"step": [10 * (i + 1) for i in range(evaluations)], "pseudo_labels": [pseudo_labels] * evaluations,
              "test": [test] * evaluations, "test_adjusted": [test] * evaluations}
    share = float(np.trace(test) / test.sum())
    metrics = [{"step": step, "losses": {"labeled": 1.0}, "mask_rate": 0.25, "accuracy": share,
                "test_images": int(test.sum()), "seconds": 6.0 * step} for step in counts["step"]]
    folder.mkdir(parents=True)
    data = SimpleNamespace(fingerprint="0", mean=(0.5,), std=(0.25,), x_train=(), x_test=(), x_unlabeled=None)
    run = RunFolder(folder, config, data)
    write_json(folder / "config.json", run.record)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    for step in counts["step"]:
        run.write_counts(step, (pseudo_labels, test, test))
    if finished:
        run.finish_counts()
        run.finish(summarize(metrics, counts, [40, 18, 8, 4]))
    return folder


def make_run(folder, **settings):
    """Write a run as `write_run` does, under a name made of its settings, and read it."""
    name = "-".join(f"{value}" for key, value in settings.items() if key in ("rebalance", "seed", "unlabeled"))
    return load_run(write_run(folder / (name or "run"), **settings))

"""What runs cost before they are run: arithmetic of the networks, and the time it takes by runs that are finished."""

import functools
import json
import statistics
import warnings
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from dasolib.config import YOUNGER, Config, dataset_name
from dasolib.evaluation import LAST
from dasolib.models import ResNet34, WideResNet
from dasolib.results import method_label
from dasolib.run_files import DamagedError, read_config, read_result
from dasolib.run_folder import project_root

MEASURED = "benchmarks/methods.json"  # image passes of a step of each method, and its time on one CPU thread
MEASURED_BATCH = 32  # labeled images of a step there
MEASURED_MU = {"fixmatch": 2}  # unlabeled images for each of them; 1 for all other base learners
TRAINED = 3  # passes that an image counts as if its gradients go back
MEASURED_NETWORK = {"depth": 10, "width": 1}
SIDES = {"mnist5k": 28}  # pixels; of other data what the configuration says, or else 32
TEST_IMAGES = {"mnist5k": 1000, "stl10": 8000}  # of other data 10,000 are assumed
START_SECONDS = 10  # from the command to the first step: a new process, imports, data


class Estimate(NamedTuple):
    """What a whole run costs."""

    flop: float  # floating-point operations in the networks
    seconds: float  # of one run at a time
    measured: bool  # by finished runs that differ in the seed alone; else `flop` at a rate


def flop(config):
    """Count the floating-point operations that a run spends in its networks; all else is a few percent of a step.

    Image passes of a step come from ``benchmarks/methods.json``, where an image that goes backward counts as two more:
    those of the base learner, which grow with its images, and what each re-balancing method adds. Evaluations are
    counted; CReST's labeling of all unlabeled images, and the passes over them that estimate class counts, are not.

    Parameters
    ----------
    config : dict
        Fields of `dasolib.config.Config` by name, as `Config.model_dump` gives them or ``config.json`` holds them.

    Returns
    -------
    float
        A multiplication with its addition counts as two.
    """
    per_image = {row["method"]: row["image_passes"] / MEASURED_BATCH for row in _measured()}
    method = config["method"]
    base = per_image.get(method_label(method, ()), TRAINED)  # a distribution_estimate trains as supervised does
    passes = TRAINED + (base - TRAINED) * config.get("mu", 1) / MEASURED_MU.get(method, 1)
    for part in config["rebalance"]:
        passes += per_image.get(method_label(method, (part,)), base) - base
    name = dataset_name(config["dataset"])
    all_images = TEST_IMAGES.get(name, 10_000)
    n_evaluations = -(-config["total_steps"] // config["eval_steps"])
    n_short = max(n_evaluations - LAST, 0)
    evaluated = n_short * (config["eval_images"] or all_images) + (n_evaluations - n_short) * all_images
    side = config["train_resolution"] or config["resolution"] or SIDES.get(name, 32)
    images = config["total_steps"] * config["batch_size"] * passes + evaluated
    if (YOUNGER | config)["network"] == "resnet34":
        return images * _flop_of_a_pass(ResNet34, side)
    return images * _flop_of_a_pass(WideResNet, side, depth=config["depth"], width=config["width"])


def estimate(configs, study, gflops=None):
    """Estimate what runs cost, from the finished runs of their study where there are any.

    Parameters
    ----------
    configs : list of dasolib.config.Config
    study : Path
        Folder of run folders; may be absent.
    gflops : float, optional
        Rate in GFLOP/s for runs of which no finished one differs in the seed alone. Default: the median of the study's
        finished runs of any kind, or else what a FixMatch step of ``benchmarks/methods.json`` reached.

    Returns
    -------
    estimates : list of Estimate
    basis : str
        The rate in GFLOP/s and where it comes from, for a reader.
    """
    finished = []
    for file in sorted(study.glob("*/result.json")):
        try:
            finished.append((read_config(file.parent), read_result(file.parent)["seconds"]))
        except DamagedError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    by_kind = {}
    for config, seconds in finished:
        by_kind.setdefault(_kind(config), []).append(seconds)
    rates = [flop(config) / seconds / 1e9 for config, seconds in finished]
    if gflops is not None:
        rate, basis = gflops, "as given"
    elif rates:
        rate, basis = statistics.median(rates), f"the median of the {len(rates)} finished runs of this study"
    else:
        (step,) = (row for row in _measured() if row["method"] == "FixMatch")
        rate = step["image_passes"] * _flop_of_a_pass(WideResNet, 32, **MEASURED_NETWORK) / step["ms"] / 1e6
        basis = f"what one CPU thread reached on the CPU preset in {MEASURED}"
    estimates = []
    for config in configs:
        amount, same = flop(config.model_dump()), by_kind.get(_kind(config.identity()))
        seconds = START_SECONDS + (statistics.mean(same) if same else amount / rate / 1e9)
        estimates.append(Estimate(amount, seconds, bool(same)))
    return estimates, f"{rate:,.0f} GFLOP/s, {basis}"


def _kind(record):
    """Return what a run is but for its seed, of `Config.identity` or of a ``config.json``, which holds still more."""
    return json.dumps({name: value for name, value in record.items() if name in IDENTITY and name != "seed"},
                      sort_keys=True)


IDENTITY = set(Config.model_fields) - {"threads", "device", "source"}  # the source of a run has a seed in its name


@functools.cache
def _measured():
    return json.loads((project_root() / MEASURED).read_text())["methods"]


@functools.cache
def _flop_of_a_pass(network, side, **size):
    """Forward, of one RGB image."""
    net = network(n_classes=10, **size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.features(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()

"""Replay of the recorded trajectories: the same steps with dasolib, and every output under its recorded name.

Recorded batches, weights and random draws go in where a run of the package puts its own; nothing in it is replaced.
"""

import contextlib
import functools
import json
from types import SimpleNamespace

import numpy as np
import torch

from dasolib.batches import Batches
from dasolib.ema import EMA
from dasolib.evaluation import predict
from dasolib.methods import LEARNERS
from dasolib.methods.step import Batch
from dasolib.rebalance.crest import selection_share
from dasolib.train import Training, next_generation
from tests import replay_config
from tests.published_names import to_published_name
from tests.replay_outputs import (
    Step,
    as_they_are,
    final_outputs,
    keep_probabilities,
    networks_of,
    step_outputs,
    tensor,
)
from tests.replay_primitives import FLOAT_TOLERANCE

NOT_OUTPUTS = (
    r"config|label_distribution|unlabeled_dataset_size|unlabeled_set/[xy]|init(_generation\d+)?/.*|test/[xy]"
    r"|step\d+/((x|y|index)_\w+|draw/(mixup|rotation)_\w+|draw/auxiliary_(un)?labeled_keep)"
)
WITHOUT_FILE = "init/ in this file"  # instead of the name of a file of weights

# Where the recordings have another name.
INPUT_NAMES = {"pseudo_label": {"weak": "unlabeled"}}
DRAWS = {"mixup_beta": "beta", "mixup_permutation": "permutation", "rotation_quarter_turns": "quarter_turns"}
KEEPS = {"auxiliary_labeled_keep": "keep_labeled", "auxiliary_unlabeled_keep": "keep_unlabeled"}


class RecordedImages:
    """The recorded sets, as far as the package asks `dasolib.batches.Batches` for them between two generations."""

    population = Batches.population

    def __init__(self, z, recorded, learner):
        self.learner = learner
        self.labeled_counts = torch.tensor(recorded["labeled_class_counts"])
        n_unlabeled = int(z.get("unlabeled_dataset_size", 0))
        self.u = tensor(z["unlabeled_set/x"]) if "unlabeled_set/x" in z else torch.empty(n_unlabeled)
        self.selected = None

    def select(self, selected):
        """Note which images join the labeled set; the later labeled batches are recorded."""
        self.selected = selected


def replay_trajectory(z, folder):
    """Train the recorded steps and return every output under its recorded name, as arrays or named tensors."""
    recorded = json.loads(str(z["config"]))
    config = replay_config.config_of(recorded)
    images = RecordedImages(z, recorded, LEARNERS[config.method])
    aim = SimpleNamespace(counts=tensor(config.unlabeled_counts)) if config.needs("unlabeled_counts") else None
    new_training = functools.partial(Training, config, in_channels=3, device=torch.device("cpu"))
    training = new_training(images.population(aim and aim.counts, 0))
    load_weights(training, z, "init/", folder, recorded["initial_weights"])
    beside = None  # the published code averages cRT's network too, though it does not evaluate the average
    if training.ema is None and recorded["ema_decay"] is not None:
        beside = EMA(training.net, cap=recorded["ema_decay"], weight_decay=recorded["ema_weight_decay"])

    got = {}
    for k in range(recorded["steps"]):
        generation, t = divmod(recorded["start_iteration"] + k, config.generation_steps)
        if k and t == 0:
            training, values = start_generation(training, new_training, images, z, folder, recorded, k)
            got |= {f"generation{generation + 1}/{name}": value for name, value in values.items()}
        step = take_step(training, config, recorded, batch_of(z, k, config.method), t, generation)
        if beside is not None:
            beside.update(training.net, t, lr=training.lr_at(t + 1))
        values = {f"out/{name}": value for name, value in step_outputs(step, beside, z).items()}
        values |= {f"draw/{name}": value for name, value in keep_probabilities(step).items()}
        got |= {f"step{k}/{name}": value for name, value in values.items()}
    if recorded.get("crest"):
        got["select_fraction_by_rank"] = selection_share(images.labeled_counts, config.crest_alpha).flip(0)
    return {name: numpy_of(value) for name, value in (got | final_outputs(training, beside, z)).items()}


def start_generation(old, new_training, images, z, folder, recorded, k):
    """Start the generation of CReST whose first step is recorded as step `k`; the new training and what led to it."""
    probs = predict(old.evaluated, images.u, as_they_are)[1].softmax(dim=-1)
    t = recorded["start_iteration"] + k
    new = next_generation(old, new_training, images, SimpleNamespace(normalize=as_they_are), None, t)
    prefix = f"init_generation{t // old.generation_steps + 1}/"
    load_weights(new, z, prefix, folder, recorded["crest"]["generation_weights"])
    return new, {
        "after_step": k - 1, "unlabeled_probability": probs, "selected_index": images.selected["rows"],
        "selected_label": images.selected["classes"], "labeled_class_counts": images.population(None, 0).current,
    }


def take_step(training, config, recorded, batch, t, generation):
    """Take step `t` of a generation and keep what can't be read off afterwards."""
    parts = training.rebalance.parts
    class_freq = parts["daso"].class_freq.clone() if "daso" in parts else None  # the end of the step may renew it
    with outputs_of(training.net.heads["balanced"]) if "abc" in parts else contextlib.nullcontext([]) as balanced:
        out = training.step(batch, t + generation * config.generation_steps)
    return Step(training, config, recorded, batch, t, generation, out, class_freq, balanced)


@contextlib.contextmanager
def outputs_of(module):
    """Yield a list that gathers what `module` returns."""
    gathered = []
    hook = module.register_forward_hook(lambda module, arguments, output: gathered.append(output.detach()))
    yield gathered
    hook.remove()


# What goes in


def load_weights(training, z, prefix, folder, file):
    """Load the weights of `file`, and those of the recording under `prefix`, into network and moving average."""
    published = {}
    if file != WITHOUT_FILE:
        with np.load(folder / file, allow_pickle=False) as archive:
            published = dict(archive.items())
    published |= {name.removeprefix(prefix): array for name, array in z.items() if name.startswith(prefix)}
    weights = {name: tensor(published[to_published_name(name)]) for name in training.net.state_dict()}
    for net in networks_of(training, None).values():
        net.load_state_dict(weights)


def batch_of(z, k, method):
    """Return the `Batch` of recorded step `k`."""
    names = {name: INPUT_NAMES.get(method, {}).get(name, name) for name in LEARNERS[method].views}
    views = {ours: tensor(z[f"step{k}/x_{theirs}"]) for ours, theirs in names.items()}
    draws = {ours: torch.from_numpy(z[f"step{k}/draw/{theirs}"]) for theirs, ours in DRAWS.items()
             if f"step{k}/draw/{theirs}" in z}
    draws |= {ours: uniform_numbers(z, f"step{k}/draw/{theirs}") for theirs, ours in KEEPS.items()
              if f"step{k}/draw/{theirs}" in z}
    index = torch.from_numpy(z[f"step{k}/index_unlabeled"]) if views else None
    return Batch(tensor(z[f"step{k}/x_labeled"]), torch.from_numpy(z[f"step{k}/y_labeled"]), views, index, draws)


def uniform_numbers(z, key):
    """Numbers that keep the images of the recorded mask `key`: an image is kept below its probability.

    They lie close to the recorded probability, so that another one gives another mask.
    """
    kept = z[key] > 0
    if f"{key}_probability" not in z:
        return tensor(np.where(kept, 0, 1))
    return tensor(z[f"{key}_probability"] * np.where(kept, 1 - FLOAT_TOLERANCE, 1 + FLOAT_TOLERANCE))


def numpy_of(value):
    """Tensors become arrays; named tensors and numbers stay."""
    return value.detach().numpy() if torch.is_tensor(value) else value

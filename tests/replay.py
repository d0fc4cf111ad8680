"""Replay a recording of the published implementation and compare what comes out.

    python -m tests.replay FILE.npz

A recording holds its configuration, batches and random draws; the initial weights lie in a file beside it. Prints the
largest relative error of each output and in total; exits with 1 if one is above its tolerance, with 2 if the recording
cannot be replayed. The formats are described in tests/data/golden/README.md.
"""

import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from dasolib.config import make_config
from dasolib.ema import ema_decay
from dasolib.methods import LEARNERS
from dasolib.methods.step import Batch
from dasolib.pseudo_labels import blend_weights, semantic_logits
from dasolib.rebalance.logit_adjustment import adjust_for_balanced_test
from dasolib.train import Training
from tests.published_names import to_published_name
from tests.replay_primitives import compare, digest_rows, float64, replay_primitive

REBALANCERS = {"logit_adjustment": "la", "class_balanced_loss": "cb"}  # where the recordings have another name
NOT_OUTPUTS = r"config|label_distribution|unlabeled_dataset_size|init/.*|test/[xy]|step\d+/((x|y|index)_\w+|draw/.*)"


def replay(path):
    """Compare every output in the recording at `path` with ours; a list of `tests.replay_primitives.Row`."""
    path = Path(path)
    with np.load(path, allow_pickle=False) as archive:
        z = {name: archive[name] for name in archive.files}
    if "step0/x_labeled" not in z:
        return replay_primitive(path)
    with float64():
        got = replay_trajectory(z, path.parent)
    outputs = [name for name in z if not re.fullmatch(NOT_OUTPUTS, name)]
    rows = {row.name: row for key in ("final/model", "final/ema") if f"{key}/name" in z
            for row in digest_rows(z, key, got.pop(key))}
    forgotten = [name for name in outputs if name not in rows and name not in got]
    if forgotten:
        raise ValueError(f"{path}: outputs that no replay covers: {', '.join(forgotten)}")
    return [rows[name] if name in rows else compare(name, got[name], z[name]) for name in outputs]


def config_of(recorded, t_end):
    """Translate a recorded configuration into a `dasolib.config.Config`; `t_end` is T."""
    changes = {
        "batch_size": recorded["labeled_batch_size"], "width": recorded["width"],
        **{name: recorded["optimizer"][name] for name in ("lr", "momentum", "weight_decay")},
        "schedule": recorded["schedule"]["name"], "warmup_steps": recorded["schedule"].get("warmup_iterations", 0),
    }
    if changes["warmup_steps"]:
        changes |= {"warmup_factor": recorded["schedule"]["warmup_factor"],
                    "warmup_shape": recorded["schedule"]["warmup_method"]}
    if changes["schedule"] == "multistep":
        changes |= {"milestones": recorded["schedule"]["milestones"], "lr_decay": recorded["schedule"]["gamma"]}
    if changes["schedule"] == "cosine":
        changes["cosine_ratio"] = recorded["schedule"]["numerator"]
    if recorded["ema_decay"] is not None:
        changes |= {name: recorded[name] for name in ("ema_decay", "ema_weight_decay")}
    if "confidence_threshold" in recorded:
        changes |= {"threshold": recorded["confidence_threshold"], "lambda_u": recorded["unlabeled_loss_weight"]}
    if "logit_adjustment" in recorded:
        changes["la_tau"] = recorded["logit_adjustment"]["tau"]
    if weighting := recorded.get("class_reweighting"):
        changes |= {"cb_beta": weighting["beta"], "reweight_warmup_steps": weighting["warmup_iterations"]}
        if weighting["loss"] == "ldam":
            changes |= {"ldam_max_margin": weighting["max_margin"], "ldam_scale": weighting["scale"]}
    if daso := recorded.get("daso"):
        changes |= {
            "pretrain_steps": daso["pretrain_steps"], "refresh_steps": daso["distribution_update_period"],
            "proto_temperature": daso["prototype_temperature"], "lambda_align": daso["semantic_alignment_weight"],
            "queue_size": daso["queue_size_per_class"],
        }
        if daso["distribution_aware"]:
            changes["dist_temperature"] = daso["distribution_temperature"]
        else:
            changes["fixed_blend"] = daso["fixed_blend"]
    rebalance = [REBALANCERS.get(name, name) for name in recorded["rebalancers"]]
    return make_config("paper", dataset="recording", method=recorded["algorithm"], rebalance=rebalance,
                       total_steps=t_end, threads=1, device="cpu", **changes)


def replay_trajectory(z, folder):
    """Train the recorded steps and return every output under its recorded name, as arrays or named tensors."""
    recorded = json.loads(str(z["config"]))
    config = config_of(recorded, recorded["schedule"].get("length", recorded["max_iterations"]))
    counts = torch.tensor(recorded["labeled_class_counts"])
    training = Training(config, counts, in_channels=3, device=torch.device("cpu"))
    with np.load(folder / recorded["initial_weights"], allow_pickle=False) as weights:
        ours = {name: tensor(weights[to_published_name(name)]) for name in training.net.state_dict()}
    training.net.load_state_dict(ours)
    if training.ema is not None:
        training.ema.model.load_state_dict(ours)

    dist_temperature = recorded.get("daso", {}).get("distribution_temperature")
    got = {}
    for k in range(recorded["steps"]):
        t = recorded["start_iteration"] + k
        views = {name: tensor(z[f"step{k}/x_{name}"]) for name in LEARNERS[config.method].views}
        batch = Batch(tensor(z[f"step{k}/x_labeled"]), torch.from_numpy(z[f"step{k}/y_labeled"]), views)
        values = step_outputs(training, config, batch, t, z["final/model/name"].tolist(), dist_temperature)
        got |= {f"step{k}/out/{name}": value for name, value in values.items()}

    prior = tensor(z["label_distribution"])
    networks = {"model": training.net} | ({} if training.ema is None else {"ema": training.ema.model})
    for name, net in networks.items():
        with torch.no_grad():
            logits = net.eval()(tensor(z["test/x"]))
        got |= {f"final/{name}": published_state(net), f"final/{name}_logits": logits,
                f"final/{name}_logits_adjusted": adjust_for_balanced_test(logits, prior)}
    for part in training.rebalance.parts.values():
        buffers = {"weights": "class_weight", "margins": "class_margin", "bank.prototypes": "prototypes"}
        got |= {f"final/{buffers[name]}": value for name, value in part.named_buffers() if name in buffers}
    return got


def step_outputs(training, config, batch, t, names, dist_temperature):
    """Take one step; return what a recording holds of it, with parameters and buffers in the order of `names`."""
    daso = training.rebalance.parts["daso"] if "daso" in config.rebalance else None
    blends = daso is not None and t >= config.pretrain_steps
    # Before the step, since the refresh at its end moves it; recorded for a fixed blend too, which does not use it.
    by_class = blend_weights(daso.class_freq.double(), dist_temperature) if blends else None
    out = training.step(batch, t)

    labeled = training.rebalance.adjust_labeled(out.views["labeled"].logits)
    logits = {name: view.logits for name, view in out.views.items()} | {"labeled": labeled}
    got = {f"logits_{name}": value for name, value in logits.items()}
    got |= {"logits_all": torch.cat(list(logits.values()))}
    got |= {"lr_used": training.lr_at(t), "lr_after": training.lr_at(t + 1)}
    got |= {f"{name}_loss": loss for name, loss in out.losses.items()} | {"total_loss": sum(out.losses.values())}
    if out.labels is not None:
        got |= {"soft_pseudo_label": out.labels.final, "mask": out.mask.to(torch.uint8)}
        got |= picked("", out.labels.final)
    if daso is not None:
        got |= {"linear_probability": out.labels.linear, "prototypes": daso.bank.prototypes.clone(),
                "queue_length": daso.bank.lengths(), "pseudo_label_counts": daso.class_freq.clone(),
                "pseudo_labels_pending": daso.pending.sum(), "pretraining": not blends,
                "semantic_pseudo_label": torch.full((len(out.mask),), -1)}
        got |= picked("linear_", out.labels.linear)
    if blends:
        similarity = semantic_logits(out.views["weak"].feats, daso.bank.prototypes, config.proto_temperature)
        per_row = by_class[out.labels.linear.argmax(dim=-1)] if config.fixed_blend is None else config.fixed_blend
        got |= {"semantic_probability": out.labels.semantic, "similarity_weak": similarity,
                "blend_weight_per_class": by_class, "blend_weight": per_row}
        got |= picked("semantic_", out.labels.semantic)

    networks = {"model": training.net}
    if training.ema is not None:
        networks["ema"] = training.ema.model
        got["ema_decay"] = ema_decay(t, config.ema_decay)
    for key, net in networks.items():
        state = published_state(net)
        got[f"{key}_l2"] = torch.stack([state[name].norm() for name in names])
    gradients = {to_published_name(name): p.grad for name, p in training.net.named_parameters()}
    got["gradient_l2"] = torch.stack([gradients[name].norm() for name in names if name in gradients])
    return {name: value.detach().numpy() if torch.is_tensor(value) else value for name, value in got.items()}


def picked(prefix, probs):
    """Largest probability of each row and its class, as recorded."""
    confidence, label = probs.max(dim=-1)
    return {f"{prefix}confidence": confidence, f"{prefix}pseudo_label": label}


def published_state(net):
    """Parameters and buffers under the published names."""
    return {to_published_name(name): value.detach() for name, value in net.state_dict().items()}


def tensor(array):
    """float64 tensor of a recorded array."""
    return torch.from_numpy(np.array(array, dtype=np.float64))


def main(arguments):
    """Print the table for one recording; return the exit code."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    try:
        rows = replay(arguments[0])
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        print(f"{arguments[0]}: cannot be replayed: {reason}", file=sys.stderr)
        return 2
    for row in rows:
        mark = "" if row.error <= row.tolerance else "  <-- above tolerance"
        print(f"{row.name:60} {row.error:9.2e}  tolerance {row.tolerance:.0e}  {row.note}{mark}".rstrip())
    failed = sum(not row.error <= row.tolerance for row in rows)
    worst = max((row.error for row in rows if not row.note.startswith("statistical")), default=0.0)
    print(f"{Path(arguments[0]).name}: {len(rows)} outputs, largest error {worst:.2e}, {failed} above tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

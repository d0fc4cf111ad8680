"""What a step and a finished training come to, under the names that the recordings give it."""

from typing import NamedTuple

import numpy as np
import torch

from dasolib.config import Config
from dasolib.ema import ema_decay
from dasolib.evaluation import predict
from dasolib.methods.step import Batch, StepOutput
from dasolib.mixup import mixup
from dasolib.pseudo_labels import blend_weights, confident_labels, one_hot, semantic_logits, sharpen
from dasolib.rebalance.crest import progressive_temperature
from dasolib.rebalance.logit_adjustment import adjust_for_balanced_test
from dasolib.schedules import ramp_up
from dasolib.train import Training
from tests.published_names import to_published_name

# Where the recordings have another name.
LOGITS_NAMES = {"remixmatch": {"strong": "strong1"}}
FINAL_BUFFERS = {
    "weights": "class_weight", "margins": "class_margin", "bank.prototypes": "prototypes", "prototypes": "prototypes",
    "predictions": "darp_stored_prediction", "refined": "darp_stored_refined",
}
SEMANTIC_VIEW = {"mixmatch": "weak1", "mean_teacher": "teacher"}  # whose features meet the prototypes; others: weak
ONE_PASS = ("supervised", "pseudo_label", "fixmatch", "usadtm")  # base learners whose views go through together


class Step(NamedTuple):
    """One step, once it is taken."""

    training: Training
    config: Config
    recorded: dict  # the recorded configuration
    batch: Batch
    t: int  # within its generation
    generation: int  # from 0
    out: StepOutput
    class_freq: torch.Tensor | None  # DASO's histogram during the step, (K,)
    balanced: list  # logits of ABC's head: labeled, weak, strong; empty without it

    @property
    def parts(self):
        """The re-balancing methods by name."""
        return self.training.rebalance.parts

    @property
    def probs(self):
        """What the head says of the weak view, (n, K)."""
        return self.out.views["weak"].logits.detach().softmax(dim=-1)


# What comes out of a step


def step_outputs(step, beside, z):
    """Everything a recording may hold of a step, by its recorded name."""
    got = loss_outputs(step) | logits_outputs(step) | schedule_outputs(step)
    if step.out.labels is not None:
        got |= label_outputs(step)
    if "beta" in step.batch.draws:
        got |= mixup_outputs(step)
    if step.config.method == "usadtm":
        got |= usadtm_outputs(step)
    by_part = {"daso": daso_outputs, "distribution_alignment": alignment_outputs, "crest_plus": alignment_outputs,
               "darp": darp_outputs, "abc": auxiliary_outputs}
    for name in step.parts:
        got |= by_part[name](step) if name in by_part else {}
    return got | network_outputs(step.training, beside, z["final/model/name"].tolist())


def loss_outputs(step):
    losses = step.out.losses
    auxiliary = [loss for name, loss in losses.items() if name.startswith("auxiliary")]
    return {f"{name}_loss": loss for name, loss in losses.items()} | {
        "total_loss": sum(losses.values()), "auxiliary_loss": sum(auxiliary),
    }


def logits_outputs(step):
    method, views = step.config.method, step.out.views
    labeled = step.training.rebalance.adjust_labeled(views["labeled"].logits)
    logits = {name: view.logits for name, view in views.items()} | {"labeled": labeled}
    if method in ONE_PASS:
        logits["all"] = torch.cat(list(logits.values()))
    if method == "mean_teacher":  # recorded with the labeled images, which share its pass
        logits["student"] = torch.cat([labeled, logits["student"]])
    return {f"logits_{LOGITS_NAMES.get(method, {}).get(name, name)}": value for name, value in logits.items()}


def schedule_outputs(step):
    training, config, t = step.training, step.config, step.t
    cap = step.recorded["ema_decay"]
    return {
        "lr_used": training.lr_at(t), "lr_after": training.lr_at(t + 1), "pretraining": t < config.pretrain_steps,
        "ramp_up": ramp_up(t, length=config.ramp_steps, shape=config.ramp_shape),
    } | ({} if cap is None else {"ema_decay": ema_decay(t, cap)})


def label_outputs(step):
    labels, mask = step.out.labels, step.out.mask
    got = {"soft_pseudo_label": labels.final, "linear_probability": labels.linear}
    got |= picked("", labels.final) | picked("linear_", labels.linear)
    if mask is not None:
        got["mask"] = mask.to(torch.uint8)
    if labels.semantic is None:
        return got | {"semantic_pseudo_label": torch.full((len(labels.final),), -1)}
    return got | {"semantic_probability": labels.semantic} | picked("semantic_", labels.semantic)


def mixup_outputs(step):
    """The mixed targets of labeled images and all views, from the package's own function."""
    batch, final = step.batch, step.out.labels.final
    target = torch.cat([one_hot(batch.y, final.shape[1]).to(final.dtype), *[final] * len(batch.views)])
    _, mixed = mixup(target, target, batch.draws["beta"], batch.draws["permutation"])
    share = mixup(torch.tensor([1.0, 0.0]), torch.eye(2), batch.draws["beta"], torch.tensor([1, 0]))[0][0]
    return {"mixed_targets": mixed, "mixup_lambda": share}


def usadtm_outputs(step):
    bank, feats = step.training.memory, step.out.views["weak"].feats.detach()
    got = {"prototypes": bank.prototypes.clone(), "queue_length": bank.lengths()}
    if step.t < step.config.pretrain_steps:
        no_label = torch.full((len(feats),), -1)
        return got | {"confidence": no_label, "pseudo_label": no_label}
    similarity = semantic_logits(feats, bank.prototypes, 1.0)
    distance = torch.cdist(feats, bank.prototypes)
    return got | picked("", similarity) | {
        "similarity_weak": similarity, "euclidean_distance_weak": distance,
        "nearest_prototype": distance.argmin(dim=-1),
    }


def daso_outputs(step):
    daso, labels, config = step.parts["daso"], step.out.labels, step.config
    view = step.out.views[SEMANTIC_VIEW.get(config.method, "weak")]
    got = {"prototypes": daso.bank.prototypes.clone(), "queue_length": daso.bank.lengths(),
           "pseudo_label_counts": daso.class_freq.clone(), "pseudo_labels_pending": daso.pending.sum(),
           f"features_{SEMANTIC_VIEW.get(config.method, 'weak')}": view.feats}
    if labels.semantic is None:
        return got
    by_class = labels.blend_weight
    per_row = by_class[labels.linear.argmax(dim=-1)] if config.fixed_blend is None else config.fixed_blend
    if config.fixed_blend is not None:  # recorded all the same, though nothing uses it
        by_class = blend_weights(step.class_freq.double(), step.recorded["daso"]["distribution_temperature"])
    return got | {
        "blend_weight_per_class": by_class, "blend_weight": per_row,
        "similarity_weak": semantic_logits(view.feats, daso.bank.prototypes, config.proto_temperature),
    }


def alignment_outputs(step):
    """The alignment of the step, from the window as the step has left it."""
    config = step.config
    if "crest_plus" in step.parts:
        part = step.parts["crest_plus"].alignment
        temperature = progressive_temperature(step.generation, config.n_generations, config.crest_t_min)
    else:
        part, temperature = step.parts["distribution_alignment"], config.alignment_temperature
    return {"alignment_input": step.probs, "alignment_output": part.align(step.probs, update=False),
            "alignment_running_mean": part.running_mean(), "alignment_temperature": temperature}


def darp_outputs(step):
    """What goes into the refinery, aligned and sharpened, and what it makes of it."""
    probs = step.probs
    if "distribution_alignment" in step.parts:
        probs = step.parts["distribution_alignment"].align(probs, update=False)
    return {"darp_input": sharpen(probs, step.training.temperature), "darp_output": step.out.labels.final}


def auxiliary_outputs(step):
    abc, (_, weak, _) = step.parts["abc"], step.balanced
    target, predicted, confident = auxiliary_target(step)
    keep = step.batch.draws["keep_unlabeled"] < abc.unlabeled_share(step.t)[predicted]
    return {
        "auxiliary_logits_all": torch.cat(step.balanced), "auxiliary_soft_pseudo_label": target,
        "auxiliary_confidence_mask": confident.to(torch.uint8), "auxiliary_mask": (confident * keep).to(torch.uint8),
        "auxiliary_keep_probability_per_class": abc.unlabeled_share(step.t),
        "auxiliary_linear_probability": weak.softmax(dim=-1),
    } | picked("auxiliary_", target) | picked("auxiliary_linear_", weak.softmax(dim=-1))


def keep_probabilities(step):
    """The probabilities with which the balanced head's masks were drawn."""
    if not step.balanced:
        return {}
    abc, (_, predicted, _) = step.parts["abc"], auxiliary_target(step)
    return {"auxiliary_labeled_keep_probability": abc.labeled_share[step.batch.y],
            "auxiliary_unlabeled_keep_probability": abc.unlabeled_share(step.t)[predicted]}


def auxiliary_target(step):
    """Probabilities (n, K), classes (n,) and confidence mask (n,) that the balanced head has for the weak view."""
    target = step.parts["abc"].head_target(step.balanced[1].softmax(dim=-1), step.out.labels)
    return target, *confident_labels(target, step.config.threshold)


def network_outputs(training, beside, names):
    """Norms of parameters and buffers, in the order of `names`, and of the gradients."""
    got = {}
    for key, net in networks_of(training, beside).items():
        state = published_state(net)
        got[f"{key}_l2"] = torch.stack([state[name].norm() for name in names])
    gradients = {to_published_name(name): weight.grad for name, weight in training.net.named_parameters()}
    norms = [gradients[name].norm() if gradients[name] is not None else torch.zeros(())
             for name in names if name in gradients]
    return got | {"gradient_l2": torch.stack(norms)}


# What is left at the end


def final_outputs(training, beside, z):
    """Networks, what they say of the test images, and the state of the methods."""
    got, prior = {}, tensor(z["label_distribution"])
    for name, net in networks_of(training, beside).items():
        logits = predict(net, tensor(z["test/x"]), as_they_are)[1]
        got |= {f"final/{name}": published_state(net), f"final/{name}_logits": logits,
                f"final/{name}_logits_adjusted": adjust_for_balanced_test(logits, prior)}
    holders = [*training.rebalance.parts.values(), *([] if training.memory is None else [training.memory])]
    buffers = [item for holder in holders for item in holder.named_buffers() if item[0] in FINAL_BUFFERS]
    return got | {f"final/{FINAL_BUFFERS[name]}": value for name, value in buffers}


def networks_of(training, beside):
    """The networks under their recorded names: the one that is trained, and its moving average where there is one."""
    ema = training.ema or beside
    return {"model": training.net} | ({} if ema is None else {"ema": ema.model})


def published_state(net):
    """Parameters and buffers under the published names."""
    return {to_published_name(name): value.detach() for name, value in net.state_dict().items()}


def picked(prefix, probs):
    """Largest probability of each row and its class, as recorded."""
    confidence, label = probs.max(dim=-1)
    return {f"{prefix}confidence": confidence, f"{prefix}pseudo_label": label}


def as_they_are(images):
    """Recorded images are normalised."""
    return images


def tensor(array):
    """float64 tensor of a recorded array; images in the layout of the CPU preset, whose convolutions take less time."""
    value = torch.from_numpy(np.array(array, dtype=np.float64))
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value

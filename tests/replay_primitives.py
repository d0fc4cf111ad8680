"""Replay of the recorded primitives: splits, schedules, losses, the network and RandAugment.

`replay_primitive` computes with dasolib what a recording of the published implementation holds, from the recording's
own inputs, and returns one row per recorded output. It takes any recording of that form, whatever its seeds, images and
settings. An output without a row is an error, so a recording can't grow past its replay unnoticed.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dasolib import augment, losses, randaugment
from dasolib.ema import ema_decay
from dasolib.estimate import estimate_unlabeled_counts
from dasolib.models import WideResNet
from dasolib.rebalance import darp
from dasolib.schedules import lr_at, ramp_up
from dasolib.splits import (
    class_aware_weights,
    estimation_split,
    hold_out,
    long_tailed_counts,
    long_tailed_split,
    make_imbalanced,
    split_pools,
    split_validation,
)
from tests.published_names import to_published_name

FLOAT_TOLERANCE = 1e-9  # about five orders above the noise of a float64 re-run, well below a stray float32 constant

# Arrays that are no result of the method: what goes in, and what is there for a reader. All others need a row.
NOT_OUTPUTS = {
    "splits": ["config", "labels/.*", "toy/labels", "imbalanced_counts/head_factor_classes"],
    "schedules": ["config", "iteration", "ramp_iteration", "ema_step"],
    "losses": [
        "config",
        "class_counts",
        "cross_entropy/(logits|labels|soft_labels|sample_weight|class_weight)",
        "mse/(prediction|target|sample_weight)",
        "ldam/(logits|labels|class_weight_values)",
        "mutual_information/[xyz]",
    ],
    "wrn": ["config", "x", "y"],
    "randaugment": ["config", "images", "levels", "image_test_index", "cutout/centres_xy"],
    "darp": ["config", r"setting\d+/(probability|target_counts)"],
    "darp_estimate": [
        "config", r"setting\d+/(validation_probability|validation_label|unlabeled_probability|unlabeled_true_counts)",
    ],
}
# An array that only a recording of this kind has, for files under another name.
TELLTALE = {
    "splits": "imbalanced_counts/counts_padded",
    "schedules": "ema_decay",
    "losses": "ldam/margins",
    "wrn": "eval/features",
    "randaugment": "auto_contrast",
    "darp": "setting0/scaled_probability",
    "darp_estimate": "setting0/confusion_sum",
}


# The recordings say nothing of a loss weight here, but the loss and all its gradients are this multiple, exactly.
UNRECORDED_LOSS_WEIGHT = {"sample_weight_avg_factor_5": 1.5}


class Row(NamedTuple):
    """One recorded array against ours."""

    name: str
    error: float  # floats: largest |a - b| / max(1, max |recorded|); integers and texts: number of differing entries
    tolerance: float  # largest error that passes
    note: str


def replay_primitive(path):
    """Compare every output in the recording at `path` with ours; one `Row` each, in the recording's order."""
    path = Path(path)
    with np.load(path) as archive:
        z = {name: archive[name] for name in archive.files}
    kind = _kind(path, z)
    with float64():
        rows = {row.name: row for row in REPLAYS[kind](z, path.parent)}
    outputs = [name for name in z if not any(re.fullmatch(pattern, name) for pattern in NOT_OUTPUTS[kind])]
    forgotten = [name for name in outputs if name not in rows]
    if forgotten:
        raise ValueError(f"{path}: outputs that no replay covers: {', '.join(forgotten)}")
    invented = [name for name in rows if name not in outputs]
    if invented:
        raise ValueError(f"{path}: rows without an output: {', '.join(invented)}")
    return [rows[name] for name in outputs]


def compare(name, got, recorded, *, scale=None, tolerance=None, note=""):
    """Row for one array: exact for integers and texts, relative to the larger of 1 and `scale` for floats.

    `scale` is the recorded array's largest magnitude unless given. NaN is padding and must be in the same places.
    """
    got, recorded = np.asarray(got), np.asarray(recorded)
    is_float = recorded.dtype.kind == "f"
    tolerance = tolerance if tolerance is not None else FLOAT_TOLERANCE if is_float else 0
    if got.shape != recorded.shape:
        return Row(name, np.inf, tolerance, f"shape {got.shape} instead of {recorded.shape}")
    if not is_float:
        return Row(name, float(np.sum(got != recorded)), tolerance, note)
    if not np.array_equal(np.isnan(got), np.isnan(recorded)):
        return Row(name, np.inf, tolerance, "NaN in other places")
    if scale is None:
        scale = np.nanmax(np.abs(recorded), initial=0.0)
    differences = np.abs(got - recorded) / np.maximum(1.0, scale)
    return Row(name, float(np.nanmax(differences, initial=0.0)), tolerance, note)


def _kind(path, z):
    by_name = [kind for kind in REPLAYS if re.match(rf"{kind}(\W|_|\d|$)", path.stem)]
    by_name = sorted(by_name, key=len)[-1:]  # one name may begin another: darp_estimate is no darp
    kinds = by_name or [kind for kind, name in TELLTALE.items() if name in z]
    if len(kinds) != 1:
        raise ValueError(f"{path} is no recording of one of {', '.join(REPLAYS)}; its arrays begin with {list(z)[:3]}")
    return kinds[0]


@contextlib.contextmanager
def float64():
    """The recordings were made in float64 throughout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _as_float64(array):
    return torch.from_numpy(np.array(array, dtype=np.float64))


# Splits


def replay_splits(z, folder):
    """Splits of every setting, of the distribution estimation, and each stage alone."""
    for setting in json.loads(str(z["config"])):
        labels = z[f"labels/{setting['dataset']}"].astype(np.int64)
        n_classes = setting.get("num_classes", int(labels.max()) + 1)
        gamma_u = setting["unlabeled_imbalance"]
        order = "reversed" if setting["unlabeled_reversed"] else "uniform" if gamma_u == 1 else "equal"
        split = long_tailed_split(
            labels, n_classes=n_classes, n1=setting["labeled_head"], m1=setting["unlabeled_head"],
            gamma_l=setting["labeled_imbalance"], gamma_u=gamma_u, unlabeled=order, n_val=setting["num_validation"],
            seed=setting["seed"],
        )  # fmt: skip
        key = f"setting{setting['setting']}" if "setting" in setting else f"estimation{setting['estimation']}"
        if "estimation" in setting:
            split = estimation_split(labels, split, n_classes=n_classes, per_class=setting["holdout_per_class"])
        for part in ("labeled", "unlabeled", "validation"):
            indices = getattr(split, part)
            if part == "validation" and len(indices) == 0 and f"{key}/validation_index" not in z:
                continue  # an empty validation set is left out
            counts = np.bincount(labels[indices], minlength=n_classes)
            yield compare(f"{key}/{part}_index", indices, z[f"{key}/{part}_index"])
            yield compare(f"{key}/{part}_class_counts", counts, z[f"{key}/{part}_class_counts"])
    yield from _replay_toy_splits(z)

    asked = z["imbalanced_counts/head_factor_classes"]
    recorded = z["imbalanced_counts/counts_padded"]
    counts = np.full_like(recorded, -1)
    for i, (n_head, gamma, n_classes) in enumerate(asked.tolist()):
        counts[i, :n_classes] = long_tailed_counts(n_head, gamma, n_classes)
    yield compare("imbalanced_counts/counts_padded", counts, recorded)

    toy_counts = torch.from_numpy(np.bincount(z["toy/labels"]))
    for name in z:
        if match := re.fullmatch(r"class_aware_sampler/beta([\d.]+)_class_probability_weight", name):
            yield compare(name, class_aware_weights(toy_counts, float(match[1])), z[name])


def _replay_toy_splits(z):
    """Each stage alone; sizes are those of the recorded parts, since their settings are not recorded."""
    labels = z["toy/labels"]
    n_classes = int(labels.max()) + 1
    for seed in sorted({int(match[1]) for name in z if (match := re.match(r"toy/trainval_seed(\d+)/", name))}):
        recorded = {part: z[f"toy/trainval_seed{seed}/{part}"] for part in ("validation", "train")}
        got = split_validation(labels, len(recorded["validation"]), n_classes, seed)
        for part, indices in zip(recorded, got, strict=True):
            yield compare(f"toy/trainval_seed{seed}/{part}", indices, recorded[part])
    for seed in sorted({int(match[1]) for name in z if (match := re.match(r"toy/labeled_unlabeled_seed(\d+)/", name))}):
        recorded = {part: z[f"toy/labeled_unlabeled_seed{seed}/{part}"] for part in ("labeled", "unlabeled")}
        sizes = [len(indices) // n_classes for indices in recorded.values()]
        for part, indices in zip(recorded, split_pools(labels, *sizes, n_classes, seed), strict=True):
            yield compare(f"toy/labeled_unlabeled_seed{seed}/{part}", indices, recorded[part])
    for name in z:
        if match := re.fullmatch(r"toy/imbalance(_reversed)?_seed(\d+)", name):
            is_reversed, seed = bool(match[1]), int(match[2])
            order = np.arange(n_classes)[:: -1 if is_reversed else 1]
            counts = np.bincount(labels[z[name]], minlength=n_classes)[order].tolist()
            # The ratio is 20; another recording may have another one, and the draw depends on the counts alone.
            ratios = [20, *range(1, 1001)]
            gamma = next((ratio for ratio in ratios if long_tailed_counts(counts[0], ratio, n_classes) == counts), 20)
            indices = make_imbalanced(labels, counts[0], gamma, n_classes, seed, reversed=is_reversed)
            yield compare(name, indices, z[name])
            if is_reversed:
                drawn = labels[indices]
                in_order = drawn[np.flatnonzero(np.diff(drawn, prepend=-1))]
                yield compare(f"{name}_class_order", in_order, z[f"{name}_class_order"])
    recorded = {part: z[f"toy/holdout/{part}"] for part in ("validation", "train")}
    got = hold_out(labels, n_classes, len(recorded["validation"]) // n_classes)
    for part, indices in zip(recorded, got, strict=True):
        yield compare(f"toy/holdout/{part}", indices, recorded[part])


# Schedules


def replay_schedules(z, folder):
    """Learning rates, ramp-ups and the decay of the moving average at the recorded steps."""
    for entry in json.loads(str(z["config"])):
        key = entry["key"]
        if key.startswith("lr"):
            schedule = {"cosine_fixmatch": "cosine"}.get(entry["schedule"], entry["schedule"])
            options = {"milestones": entry["milestones"], "lr_decay": entry["gamma"]} if schedule == "multistep" else {}
            options |= {"cosine_ratio": entry["cos_lr_ratio"]} if schedule == "cosine" else {}
            total_steps = entry.get("max_iters", int(z["iteration"].max()) + 1)  # multistep has no use for it
            got = [
                lr_at(
                    t, lr=entry["base_lr"], schedule=schedule, total_steps=total_steps,
                    warmup_steps=entry["warmup_iters"], warmup_factor=entry["warmup_factor"],
                    warmup_shape=entry["warmup_method"], **options,
                )
                for t in z["iteration"].tolist()
            ]  # fmt: skip
        elif key.startswith("ramp"):
            length = entry["fraction"] * entry["max_iterations"]
            got = [ramp_up(t, length=length, shape=entry["shape"]) for t in z["ramp_iteration"].tolist()]
        elif key == "ema_decay":
            got = [ema_decay(t, entry["cap"]) for t in z["ema_step"].tolist()]
        else:
            raise ValueError(f"unknown key {key!r} in the schedules' config; choose from lr*, ramp*, ema_decay")
        yield compare(key, got, z[key])


# Losses


def replay_losses(z, folder):
    """Each loss and its gradient."""
    yield from _replay_cross_entropy(z)
    yield from _replay_squared_error(z)
    yield from _replay_ldam(z)
    yield from _replay_mutual_information(z)
    for name in z:
        if match := re.fullmatch(r"class_balanced_weights/beta([\d.]+)", name):
            got = losses.class_balanced_weights(_as_float64(z["class_counts"]), float(match[1]))
            yield compare(name, got, z[name])


def _loss_rows(z, key, x, loss):
    """Rows of a loss and of its gradient with respect to `x`; a vector's gradient is that of its sum."""
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    for name, got in ((f"{key}/loss", loss.detach()), (f"{key}/gradient", gradient)):
        row = compare(name, got, z[name])
        if not row.error <= row.tolerance and got.abs().sum() > 0:  # another factor is the likeliest difference
            row = row._replace(note=f"recorded / ours = {np.abs(z[name]).sum() / got.abs().sum():.12g}")
        yield row


def _variants(z, prefix):
    return [match[1] for name in z if (match := re.fullmatch(rf"{prefix}/(\w+)/loss", name))]


def _replay_cross_entropy(z):
    hard, soft = torch.from_numpy(z["cross_entropy/labels"]), _as_float64(z["cross_entropy/soft_labels"])
    by_sample, by_class = (
        _as_float64(z["cross_entropy/sample_weight"]),
        _as_float64(z["cross_entropy/class_weight"])[hard],
    )
    row_weights = {
        "plain": None,
        "soft_labels": None,
        "per_sample": None,
        "sample_weight": by_sample,
        "soft_labels_sample_weight": by_sample,
        "class_weight": by_class,
        "class_and_sample_weight": by_class * by_sample,
        "all_zero_sample_weight": torch.zeros_like(by_sample),
    }
    for variant in _variants(z, "cross_entropy"):
        match = re.fullmatch(r"(\w+?)(?:_mean|_avg_factor_(\d+))?", variant)
        logits = _as_float64(z["cross_entropy/logits"]).requires_grad_()
        target = soft if "soft_labels" in variant else hard
        denominator = float(match[2]) if match[2] else None
        if match[1] == "per_sample":
            rows = zip(logits.split(1), target.split(1), strict=True)
            loss = torch.stack([losses.cross_entropy(row, its_target) for row, its_target in rows])
        else:
            row_weight = row_weights[match[1]]
            loss = losses.cross_entropy(logits, target, row_weight=row_weight, denominator=denominator)
            loss = loss * UNRECORDED_LOSS_WEIGHT.get(variant, 1.0)
        yield from _loss_rows(z, f"cross_entropy/{variant}", logits, loss)


def _replay_squared_error(z):
    target, by_sample = _as_float64(z["mse/target"]), _as_float64(z["mse/sample_weight"])
    for variant in _variants(z, "mse"):
        match = re.fullmatch(r"(plain|sample_weight|loss_weight_(\d+))(?:_avg_factor_(\d+))?", variant)
        probs = _as_float64(z["mse/prediction"]).requires_grad_()
        # With a given factor the published loss is summed over the classes, too; ours is their mean.
        denominator = float(match[3]) / probs.shape[1] if match[3] else None
        row_weight = by_sample if match[1] == "sample_weight" else None
        loss = losses.squared_error(probs, target, row_weight=row_weight, denominator=denominator)
        yield from _loss_rows(z, f"mse/{variant}", probs, loss * float(match[2] or 1))


def _replay_ldam(z):
    settings = json.loads(str(z["config"]))["ldam"]
    margins = losses.ldam_margins(_as_float64(z["class_counts"]), settings["max_margin"])
    yield compare("ldam/margins", margins, z["ldam/margins"])
    class_weights = {"plain": None, "class_weight": _as_float64(z["ldam/class_weight_values"])}
    for variant in _variants(z, "ldam"):
        logits, target = _as_float64(z["ldam/logits"]).requires_grad_(), torch.from_numpy(z["ldam/labels"])
        scale, class_weight = settings["scale"], class_weights[variant]
        loss = losses.ldam_loss(logits, target, margins, scale=scale, class_weight=class_weight)
        yield from _loss_rows(z, f"ldam/{variant}", logits, loss)


def _replay_mutual_information(z):
    views = {view: _as_float64(z[f"mutual_information/{view}"]).requires_grad_() for view in "xyz"}
    probs = {view: logits.softmax(dim=-1) for view, logits in views.items()}
    terms = {"triplet": ("xyz", "triplet_loss", losses.mutual_information_triplet_loss(*probs.values()))}
    for pair in ("xy", "xz", "yz"):
        if f"mutual_information/pair_loss_{pair}" in z:
            loss = losses.mutual_information_loss(*(probs[view] for view in pair))
            terms["pair"] = (pair, f"pair_loss_{pair}", loss)
    for term, (used, loss_name, loss) in terms.items():
        yield compare(f"mutual_information/{loss_name}", loss.detach(), z[f"mutual_information/{loss_name}"])
        gradients = torch.autograd.grad(loss, [views[view] for view in used], retain_graph=True)
        for view, gradient in zip(used, gradients, strict=True):
            name = f"mutual_information/{term}_gradient_{view}"
            yield compare(name, gradient, z[name])


# The network


def replay_wrn(z, folder):
    """Shapes and initial draw of every tensor by its published name, and one forward and backward pass."""
    for width in sorted({int(match[1]) for name in z if (match := re.match(r"width(\d+)/", name))}):
        yield from _replay_initial_draw(z, width)
    yield from _replay_passes(z, folder)


def _replay_initial_draw(z, width):
    recorded = {name.split("/")[1]: array for name, array in z.items() if name.startswith(f"width{width}/")}
    names = recorded["name"].tolist()
    shapes = {name: shape[shape > 0] for name, shape in zip(names, recorded["shape_padded"], strict=True)}
    n_classes = int(shapes["classifier.classifier.bias"][0])
    in_channels = int(shapes["encoder.init_conv.weight"][1])
    net = WideResNet(
        depth=28, width=width, n_classes=n_classes, in_channels=in_channels, generator=torch.Generator().manual_seed(0)
    )
    parameters = {to_published_name(name) for name, _ in net.named_parameters()}
    tensors = {to_published_name(name): tensor.detach() for name, tensor in net.state_dict().items()}
    unknown = sorted(set(tensors) ^ set(names))
    note = f"only on one side: {', '.join(unknown)}" if unknown else "as a set; our order is our own"
    yield Row(f"width{width}/name", float(len(unknown)), 0, note)
    own = [tensors.get(name, torch.empty(0)) for name in names]
    ours = {
        "shape_padded": [[*tensor.shape, 0, 0, 0, 0][:4] for tensor in own],
        "is_parameter": [name in parameters for name in names],
        "count": [tensor.numel() for tensor in own],
        "total_parameters": sum(parameter.numel() for parameter in net.parameters()),
        "encoder_parameters": sum(tensors[name].numel() for name in parameters if name.startswith("encoder.")),
        "feature_dim": net.feat_dim,
    }
    for name, got in ours.items():
        yield compare(f"width{width}/{name}", got, recorded[name])
    yield from _statistical_rows(width, own, recorded)


def _statistical_rows(width, tensors, recorded):
    """Rows in standard errors: for two draws of n normals sqrt(2 / n) of their means, 1 / sqrt(n) of their spreads."""
    n = np.maximum(recorded["count"], 1)
    draws = [tensor.double().numpy() for tensor in tensors]
    mean, std = np.array([draw.mean() for draw in draws]), np.array([draw.std() for draw in draws])
    spread = np.sqrt((std**2 + recorded["fresh_draw_std"] ** 2) / 2)
    for name, got, standard_error in (
        ("fresh_draw_mean", mean, spread * np.sqrt(2 / n)),
        ("fresh_draw_std", std, spread / np.sqrt(n)),
    ):
        difference = np.abs(got - recorded[name])
        # A tensor that is constant in both draws has no error to allow for.
        in_errors = np.where(difference == 0, 0, difference / np.maximum(standard_error, np.finfo(float).tiny))
        yield Row(
            f"width{width}/{name}", float(in_errors.max()), 6, "statistical: standard errors"
        )


def _replay_passes(z, folder):
    with np.load(folder / "init_wrn28_1.npz") as initial:
        weights = {name: torch.from_numpy(initial[name]) for name in initial.files if initial[name].dtype.kind in "fi"}
    n_classes, in_channels = len(weights["classifier.classifier.bias"]), z["x"].shape[1]
    net = WideResNet(depth=28, width=1, n_classes=n_classes, in_channels=in_channels)
    own_names = {to_published_name(name): name for name in net.state_dict()}
    net.load_state_dict({own_names[name]: weights[name].double() for name in own_names})
    x, y = _as_float64(z["x"]), torch.from_numpy(z["y"])

    net.eval()
    kept = {}
    layers = {"init_conv": net.stem} | {f"unit{i + 1}": unit for i, unit in enumerate(net.units)}
    hooks = [
        layer.register_forward_hook(lambda _layer, _args, out, name=name: kept.update({name: out.clone()}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        feats = net.features(x)
        logits = net.head(feats)
    for hook in hooks:
        hook.remove()
    yield compare("eval/features", feats, z["eval/features"])
    yield compare("eval/logits", logits, z["eval/logits"])
    for name, out in kept.items():
        yield compare(f"eval/{name}_mean_over_pixels", out.mean(dim=(2, 3)), z[f"eval/{name}_mean_over_pixels"])
        yield compare(f"eval/{name}_l2", out.flatten(1).norm(dim=1), z[f"eval/{name}_l2"])

    net.train()
    feats = net.features(x)
    logits = net.head(feats)
    loss = losses.cross_entropy(logits, y)
    loss.backward()
    yield compare("train/features", feats.detach(), z["train/features"])
    yield compare("train/logits", logits.detach(), z["train/logits"])
    yield compare("train/cross_entropy", loss.detach(), z["train/cross_entropy"])
    buffers = {to_published_name(name): buffer for name, buffer in net.named_buffers()}
    yield from digest_rows(z, "train/buffers_after", buffers)
    gradients = {to_published_name(name): parameter.grad for name, parameter in net.named_parameters()}
    yield from digest_rows(z, "train/gradient", gradients)


def digest_rows(z, key, tensors):
    """Rows of a recorded digest (name, size, sum, l2, first8) of `tensors`, a dict by published name."""
    names = z[f"{key}/name"].tolist()
    unknown = sorted(set(tensors) ^ set(names))
    note = f"only on one side: {', '.join(unknown)}" if unknown else "as a set; our order is our own"
    yield Row(f"{key}/name", float(len(unknown)), 0, note)
    own = [
        tensors[name].detach().double().flatten() if name in tensors else torch.full((1,), torch.nan) for name in names
    ]
    size, l2 = z[f"{key}/size"], z[f"{key}/l2"]
    first8 = np.full((len(names), 8), np.nan)
    for row, values in zip(first8, own, strict=True):
        row[: min(8, len(values))] = values[:8]
    yield compare(f"{key}/size", [len(values) for values in own], size)
    # A sum of many values that cancel is as exact as the values, not as their small sum.
    yield compare(f"{key}/sum", [values.sum() for values in own], z[f"{key}/sum"], scale=l2 * np.sqrt(size))
    yield compare(f"{key}/l2", [values.norm() for values in own], l2)
    yield compare(f"{key}/first8", first8, z[f"{key}/first8"])


# RandAugment

GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def replay_randaugment(z, folder):
    """Every operation at every recorded level and sign, and Cutout."""
    images = torch.from_numpy(z["images"]).permute(0, 3, 1, 2).contiguous()
    size = json.loads(str(z["config"]))["cutout_size"]
    centres = torch.from_numpy(z["cutout/centres_xy"])
    for name in z:
        if match := re.fullmatch(r"cutout/centre(\d+)", name):
            centre = centres[int(match[1])].expand(len(images), 2)
            yield _pixel_row(name, augment.cutout(images, centre, size=size), z[name])
        elif match := re.fullmatch(r"(\w+)(?:/level(\d+))?(?:/(negative|positive))?", name):
            if any(re.fullmatch(pattern, name) for pattern in NOT_OUTPUTS["randaugment"]):
                continue
            operation = "".join(word.capitalize() for word in match[1].split("_"))
            # Where no level is recorded the operation has none, and any may be given.
            got = randaugment.randaugment_operation(images, operation, int(match[2] or 1), match[3] == "negative")
            # Nearest neighbour may fall on the other side of a tie, where coordinates are rounded differently.
            yield _pixel_row(name, got, z[name], allowed=0.005 if match[1] in GEOMETRIC else 0.0)


def _pixel_row(name, got, recorded, *, allowed=0.0):
    """Number of pixels that differ in any channel, against an `allowed` fraction of them."""
    got = got.permute(0, 2, 3, 1).numpy()
    if got.shape != recorded.shape:
        return Row(name, np.inf, 0, f"shape {got.shape} instead of {recorded.shape}")
    differences = np.abs(got.astype(int) - recorded.astype(int)).max(axis=-1)
    n_differing = int(np.count_nonzero(differences))
    note = f"{n_differing} of {differences.size} pixels differ, by at most {differences.max()}"
    return Row(name, float(n_differing), allowed * differences.size, note)


# DARP


def replay_darp(z, folder):
    """Refinement of a whole table, with what it goes through."""
    for setting in json.loads(str(z["config"])):
        key = f"setting{setting['setting']}"
        probs, target_counts = _as_float64(z[f"{key}/probability"]), _as_float64(z[f"{key}/target_counts"])
        kept = darp.keep_largest(probs, (setting["alpha"] * target_counts).long())
        refined = darp.refine_to_counts(
            probs, target_counts, alpha=setting["alpha"], iterations=setting["iterations"],
            newton_iterations=setting["newton_max_iterations"], newton_tolerance=setting["newton_tolerance"],
        )  # fmt: skip
        got = {
            "selected_mask": kept,
            "class_weight": darp.class_scale(probs, kept, target_counts),
            "scaled_probability": darp.scale_to_counts(probs, target_counts, alpha=setting["alpha"]),
            "refined": refined,
            "refined_column_sums": refined.sum(dim=0),
        }
        for name, value in got.items():
            yield compare(f"{key}/{name}", value, z[f"{key}/{name}"])


def replay_darp_estimate(z, folder):
    """Class counts of unlabeled images from the confusion on held-out ones."""
    recorded_as = {"counts": "estimated_counts"}
    for setting in json.loads(str(z["config"])):
        key = f"setting{setting['setting']}"
        names = ("validation_probability", "validation_label", "unlabeled_probability")
        inputs = (z[f"{key}/{name}"] for name in names)
        estimate = estimate_unlabeled_counts(*inputs, max_condition=setting["condition_threshold"])
        for name, value in estimate._asdict().items():
            name = f"{key}/{recorded_as.get(name, name)}"
            yield compare(name, value, z[name])


REPLAYS = {
    "splits": replay_splits,
    "schedules": replay_schedules,
    "losses": replay_losses,
    "wrn": replay_wrn,
    "randaugment": replay_randaugment,
    "darp": replay_darp,
    "darp_estimate": replay_darp_estimate,
}

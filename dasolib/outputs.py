"""What the evaluated network of a run says of single images: features as a map, and the entropy of predictions."""

import io

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from dasolib.methods import LEARNERS
from dasolib.pseudo_labels import confident_labels
from dasolib.results import groups_of, plus_minus, text_table
from dasolib.run_files import DamagedError, read_arrays, read_checked, read_result

FILE = "outputs.npz"  # of a run folder; committed for a few runs only
NEIGHBOURS = 10
OTHER_RULE = ("supervised", "distribution_estimate", "usadtm")  # no threshold says what these learn


# How the final pseudo-labels come from the network's predictions, by the method that does it, in this order.
RULES = {
    "mixmatch": "sharpened", "remixmatch": "sharpened", "usadtm": "of the nearest class prototypes",
    "distribution_alignment": "aligned with class shares", "crest_plus": "aligned with class shares",
    "darp": "refined together towards class counts", "daso": "blended with those of class prototypes",
}


def read_predictions(folder):
    """Read the ``predictions.csv`` of a run folder; names stay text, be they None, NA or 007.

    Returns
    -------
    DataFrame or None
        As `dasolib.evaluation.predictions` makes it. None: there is none, as without unlabeled images.

    Raises
    ------
    DamagedError
        If it is not as the run wrote it.
    """
    if not (folder / "predictions.csv").exists():
        return None
    content = read_checked(folder, "predictions.csv", read_result(folder) or {})
    try:
        return pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(("file", "predicted", "pseudo_label"), str),
                           keep_default_na=False, encoding_errors="surrogateescape")
    except ValueError as error:  # pandas names no file
        raise DamagedError(folder, "predictions.csv", f"no table can be read from it: {error}") from None


def format_predictions(run):
    """Say which network and which rule made the columns of a run's ``predictions.csv``."""
    table = read_predictions(run.folder)
    if table is None:
        return f"no predictions.csv in {run.name}: no unlabeled images, or committed without it"
    if "predicted" not in table:
        return f"predictions.csv of {run.name} is older: class is the pseudo-label, not what the network predicts"
    network = "the moving average of the network" if LEARNERS[run.config["method"]].ema else "the network"
    rules = [text for name, text in RULES.items() if name in (run.config["method"], *run.config["rebalance"])]
    return (f"predictions.csv, {len(table):,} unlabeled images. predicted, confidence: {network}, in model.safetensors "
            "and measured on the test images.\npseudo_label, pseudo_label_confidence: "
            f"its predictions{', ' * bool(rules)}{', '.join(rules)}, as {run.label} makes them in its last step.\n"
            f"The two differ in the class of {(table['predicted'] != table['pseudo_label']).sum():,} images.")


def runs_with_outputs(runs):
    """Read the outputs of the runs that still have them.

    Parameters
    ----------
    runs : list of dasolib.results.Run

    Returns
    -------
    list of tuple
        (run, dict of str to ndarray): a finished run and the arrays of `dasolib.evaluation.outputs`.
    """
    found = []
    for run in runs:
        if run.result is not None and (run.folder / FILE).exists():
            found.append((run, read_arrays(run.folder, FILE, run.result)))
    return found


def format_missing(runs, methods, what):
    """Say which methods have no run among `runs`, or one without its outputs; `what` tells which runs these are."""
    lines, folders = [], {run.label: run.folder for run in runs}
    for name in methods:
        if name not in folders:
            lines.append(f"{name}: no finished run on {what}")
        elif not (folders[name] / FILE).exists():
            lines.append(f"{name}: no {FILE} in {folders[name].parent.name}/{folders[name].name}; the commands above "
                         "make runs with it")
    return "\n".join(lines) or f"runs of all these methods on {what}"


def format_outputs(found):
    """Text on the runs of `runs_with_outputs`."""
    return "\n".join(f"{run.label} on {run.config['dataset']}, unlabeled classes {run.config['unlabeled']}, seed "
                     f"{run.config['seed']}: {len(arrays['unlabeled_target']):,} unlabeled images"
                     for run, arrays in found) or "No run to show: the commands above make such runs."


def feature_map(run, arrays, *, n_images, seed=0):
    """Map stored features to the plane by t-SNE, and say how well they separate the classes.

    Parameters
    ----------
    run : dasolib.results.Run
    arrays : dict of str to ndarray
        Its outputs.
    n_images : int
        At most so many of the stored features, drawn with `seed`.
    seed : int
        Also of t-SNE.

    Returns
    -------
    DataFrame
        A row for each image: ``method``; ``x`` and ``y``, which have no unit; ``target``, its true class, -1 where
        unknown, and ``label``, its final pseudo-label; ``group``, "head", "medium" or "tail" by labeled frequency, ""
        where the class is unknown; ``neighbours``, the share of its 10 nearest images among these, by cosine
        similarity of the features, that are of its class, NaN where that is unknown.

    Raises
    ------
    ValueError
        If the run has no unlabeled images, or fewer than three of them are to be mapped.
    """
    if "feats" not in arrays:
        raise ValueError(f"run {run.name} has no unlabeled images, and therefore no features")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(arrays["feats"]))[:n_images])
    if len(rows) < 3:
        raise ValueError(f"n_images={n_images}: at least 3 are needed, and run {run.name} has {len(arrays['feats'])}")
    feats = arrays["feats"][rows].astype(np.float32)
    feats /= np.linalg.norm(feats, axis=1, keepdims=True).clip(min=1e-12)
    images = arrays["feats_row"][rows]
    target, label = arrays["unlabeled_target"][images], arrays["final"][images].argmax(axis=1)
    place = TSNE(init="pca", perplexity=min(30, (len(rows) - 1) / 3), random_state=seed).fit_transform(feats)
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(rows) - 1)).fit(feats).kneighbors(return_distance=False)
    same = (target[near] == target[:, None]).mean(axis=1)
    group_of = {k: group for group, classes in groups_of(run).items() for k in classes}
    return pd.DataFrame({"method": run.label, "x": place[:, 0], "y": place[:, 1], "target": target, "label": label,
                         "group": [group_of.get(k, "") for k in target],
                         "neighbours": np.where(target >= 0, same, np.nan)})


def neighbour_table(maps):
    """Mean share of an image's nearest neighbours that are of its class, in [0, 1].

    Parameters
    ----------
    maps : list of DataFrame
        From `feature_map`, one for each run.

    Returns
    -------
    DataFrame
        A row for each map: ``method``, ``images``, ``known``, of known class, and the means over these for ``head``,
        ``medium``, ``tail`` and ``all``; NaN where there are none.
    """
    rows = []
    for table in maps:
        known = table[table["target"] >= 0]
        means = known.groupby("group")["neighbours"].mean()
        rows.append({"method": table["method"].iloc[0], "images": len(table), "known": len(known)}
                    | {group: means.get(group, np.nan) for group in ("head", "medium", "tail")}
                    | {"all": known["neighbours"].mean()})
    return pd.DataFrame(rows)


def format_features(maps):
    """Text of a `neighbour_table` in percent."""
    return _in_percent(neighbour_table(maps)) + (
        f"\nhead to all: how many of an image's {NEIGHBOURS} nearest neighbours, by cosine similarity of the features, "
        "are of its class, in %;\na mean over the images mapped whose class is known.")


def features_reading(maps):
    """Say in one line how well the features of each run separate the classes."""
    lines = [f"{row['method']}: of the nearest neighbours of an image {plus_minus(row['all'])} % are of its class, in "
             f"the tail {plus_minus(row['tail'])} %" for row in neighbour_table(maps).to_dict("records")]
    return f"Reading: {'; '.join(lines) or 'no run with stored features'}."


def entropy_table(run, arrays, *, kind="linear"):
    """Entropy of the prediction for each unlabeled image, and whether its class is known.

    Parameters
    ----------
    run : dasolib.results.Run
    arrays : dict of str to ndarray
        Its outputs.
    kind : {"linear", "semantic", "final"}
        Which prediction: the classifier's, the prototypes' or the final pseudo-label.

    Returns
    -------
    DataFrame
        ``method``; ``entropy`` in [0, 1], as a share of that of the uniform distribution; ``is_confident``, 1 where the
        run would learn the final pseudo-label, at or above its threshold, or always in a method without one, and 0
        elsewhere; NaN where another rule says so (supervised methods, USADTM, BOSS); ``is_known``.

    Raises
    ------
    ValueError
        If the run has no such prediction.
    """
    if kind not in arrays:
        choices = ", ".join(name for name in ("linear", "semantic", "final") if name in arrays) or "none"
        raise ValueError(f"kind={kind!r}: run {run.name} has {choices}")
    probs = arrays[kind].astype(np.float64)
    terms = np.where(probs > 0, probs * np.log(probs.clip(min=1e-300)), 0)
    if run.config["method"] in OTHER_RULE or "boss" in run.config["rebalance"]:
        is_confident = np.nan
    else:
        final = torch.from_numpy(arrays["final"].astype(np.float64))
        is_confident = confident_labels(final, run.config.get("threshold", 0))[1].numpy()
    return pd.DataFrame({"method": run.label, "entropy": -terms.sum(axis=1) / np.log(probs.shape[1]),
                         "is_confident": is_confident, "is_known": arrays["unlabeled_target"] >= 0})


def open_set_table(tables):
    """Tell images of known from those of unknown classes by the entropy of their predictions.

    Parameters
    ----------
    tables : list of DataFrame
        From `entropy_table`, one for each run.

    Returns
    -------
    DataFrame
        A row for each run: ``method``, ``known`` and ``unknown``, numbers of images; mean ``entropy known`` and
        ``unknown``; ``confident known`` and ``unknown``, shares that would be learned; ``auroc``, the chance that an
        image of unknown class has the higher entropy. All in [0, 1]; NaN where there is no image of a kind.
    """
    rows = []
    for table in tables:
        kinds = {"known": table[table["is_known"]], "unknown": table[~table["is_known"]]}
        has_both = all(len(images) for images in kinds.values())
        rows.append(
            {"method": table["method"].iloc[0]} | {name: len(images) for name, images in kinds.items()}
            | {f"entropy {name}": images["entropy"].mean() for name, images in kinds.items()}
            | {f"confident {name}": images["is_confident"].mean() for name, images in kinds.items()}
            | {"auroc": roc_auc_score(~table["is_known"], table["entropy"]) if has_both else np.nan})
    return pd.DataFrame(rows)


def format_open_set(table):
    """Text of an `open_set_table` in percent."""
    return _in_percent(table)


def open_set_reading(table):
    """Say in one line how well entropy tells images of unknown classes from those of known ones."""
    lines = [f"{row['method']}: entropy {plus_minus(row['entropy known'])} % for known and "
             f"{plus_minus(row['entropy unknown'])} % for unknown classes, which it tells apart in "
             f"{plus_minus(row['auroc'])} % of pairs; {plus_minus(row['confident unknown'])} % of the unknown ones are "
             "learned with confidence" for row in table.to_dict("records")]
    return f"Reading: {'; '.join(lines) or 'no run with stored predictions'}."


def _in_percent(table):
    """Text of a table whose numbers but whole ones are shares."""
    shown = table.copy()
    for name in table.columns:
        if pd.api.types.is_float_dtype(table[name]):
            shown[name] = [plus_minus(value) for value in table[name]]
    return text_table(shown, gap=2)

"""Pseudo-labels and test accuracy over training, of the majority and the minority classes."""

import numpy as np
import pandas as pd

from dasolib.diagnostics import accuracy, class_ends, recall
from dasolib.evaluation import LAST
from dasolib.results import plus_minus, text_table

PARTS = ("majority", "minority", "all")
MEASURES = ("recall", "accuracy")
SHOWN = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of a training whose evaluations are printed


def curve_table(runs):
    """Recall of the final pseudo-labels and test accuracy at each evaluation, for parts of the classes.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Finished ones.

    Returns
    -------
    DataFrame
        A row for each run, evaluation and part: ``method``, ``seed``, ``step``, ``part`` ("majority" and "minority",
        see `dasolib.diagnostics.class_ends`, or "all"), and in [0, 1] ``recall``, of the pseudo-labels of the window
        that ends there, confident or not, a mean over the classes that occur in it, and ``accuracy`` on the test
        images of these classes. NaN where there are none.

    Raises
    ------
    ValueError
        If a run is unfinished.
    """
    tables = []
    for run in runs:
        if run.result is None:
            raise ValueError(f"run {run.name} is unfinished")
        per_class, test = recall(run.pseudo_labels()), run.counts["test"]
        n_classes = per_class.shape[1]
        for part, classes in (class_ends(run.result["labeled_counts"]) | {"all": list(range(n_classes))}).items():
            rows = np.zeros_like(test)
            rows[:, classes] = test[:, classes]
            tables.append(pd.DataFrame({
                "method": run.label, "seed": run.config["seed"], "step": run.counts["step"], "part": part,
                "recall": mean_of_existing(per_class[:, classes]), "accuracy": accuracy(rows)}))
    columns = ["method", "seed", "step", "part", *MEASURES]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def mean_of_existing(values):
    """Mean over the last axis of the values that are not NaN; NaN where there are none."""
    exists = ~np.isnan(values)
    n = exists.sum(axis=-1)
    return np.divide(np.where(exists, values, 0).sum(axis=-1), n, out=np.full(n.shape, np.nan), where=n > 0)


def mean_curves(table, measure):
    """Mean and sample standard deviation over seeds, up to the last step that all seeds of a method reached.

    Returns
    -------
    mean, std : Series
        Index (method, part, step), in the order of `table`. The standard deviation of one seed is NaN.
    """
    groups = table.groupby(["method", "part", "step"], sort=False)[measure]
    sizes, seeds = groups.size(), table.groupby("method")["seed"].nunique()
    complete = sizes == seeds.reindex(sizes.index.get_level_values("method")).to_numpy()
    return groups.mean()[complete], groups.std()[complete]


def format_curves(table):
    """Text of a `curve_table` in percent: for each method, measure and part, some evaluations along the way."""
    if table.empty:
        return "no finished run"
    rows = []
    for measure in MEASURES:
        mean, std = mean_curves(table, measure)
        for method, part in mean.index.droplevel("step").unique():
            values, spread = mean.loc[method, part], std.loc[method, part]
            steps = values.index.to_numpy()
            at = [steps[np.argmin(np.abs(steps - share * steps[-1]))] for share in SHOWN]
            rows.append({"method": method, "in %": measure, "classes": part} | {
                f"{share:.0%}": plus_minus(values[step], spread[step]) for share, step in zip(SHOWN, at, strict=True)})
    return text_table(pd.DataFrame(rows), gap=2)


def reading(table):
    """Say in one line where the curves of each method end: means over the last 20 evaluations and over seeds."""
    if table.empty:
        return "Reading: no finished run."
    last = table.groupby(["method", "seed", "part"], sort=False).tail(LAST)
    means = last.groupby(["method", "part"], sort=False)[list(MEASURES)].mean()
    lines = []
    for method in table["method"].unique():
        recalls, accuracies = (", ".join(f"{part} {plus_minus(means.loc[(method, part), measure])}" for part in PARTS)
                               for measure in MEASURES)
        lines.append(f"{method}: recall of pseudo-labels {recalls}; test accuracy {accuracies}")
    return f"Reading: over the last {LAST} evaluations, in %. {'. '.join(lines)}."

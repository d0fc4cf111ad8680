"""How sure it is what a study says: intervals over seeds, paired where methods share splits, and orders of methods."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dasolib import published
from dasolib.comparison import CONFIDENCE, FEWEST, as_published, is_target, other_changes, settings_text, variant
from dasolib.results import (
    NAMES,
    SETTING,
    SIZE,
    check_same_study,
    field,
    plus_minus,
    telling,
    text_table,
    without_daso,
)

PERMUTATIONS = 9999  # of methods, where not all of them are counted out
P = {"p": "p", "p_holm": "Holm"}  # columns of tables of comparisons, and their titles
WHERE = (*SETTING, "n_val", "labeled_indices", "data_sha256", *SIZE)  # same images, same labels, same scale
# DASO that blends nothing and aligns nothing trains as its base learner does. What is left of it: the moving average
# passes labeled images in train mode.
TRAIN_MODE_ALONE = settings_text({"lambda_align": 0.0, "fixed_blend": 0.0})
ON_BASE_LEARNER = {"": "+ DASO", TRAIN_MODE_ALONE: "+ train mode"}  # variants compared with it, and what they change
INTERVALS = (
    f"[ ]: {100 * CONFIDENCE:.0f} % interval of Student's t over seeds, of a change that of its differences on the\n"
    f"same splits, from {FEWEST} seeds on. ±: sample std over seeds. p: of the same t, or of permuted methods; Holm:\n"
    "p corrected for the number of comparisons in the table. -: too few seeds or methods."
)


class Estimate(NamedTuple):
    """A mean over seeds, and how sure it is; what so few seeds cannot say is NaN."""

    mean: float
    std: float  # sample standard deviation
    low: float  # ends of the interval of the mean
    high: float
    seeds: int


class Group(NamedTuple):
    """What runs have in common that differ in their seeds alone."""

    where: tuple  # values of `WHERE`
    label: str
    variant: str


def estimate(values):
    """Mean, sample standard deviation and interval of the mean.

    Parameters
    ----------
    values : sequence of float
        One for each seed.

    Returns
    -------
    Estimate
        With the interval of Student's t, from three seeds on: with two it is 13 standard deviations wide, and one says
        nothing. Seeds are taken as drawn from a normal distribution.

    Examples
    --------
    >>> found = estimate([0.5, 0.6, 0.7])
    >>> [round(float(number), 3) for number in found]
    [0.6, 0.1, 0.352, 0.848, 3.0]
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    mean, std = values.mean() if n else np.nan, values.std(ddof=1) if n > 1 else np.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * std / math.sqrt(n) if n >= FEWEST else np.nan
    return Estimate(*map(float, (mean, std, mean - half, mean + half)), n)


def p_value(values):
    """Two-sided p of Student's t for a mean of 0 of values, one for each seed; NaN where they have no interval.

    Examples
    --------
    >>> round(p_value([0.5, 0.6, 0.7]), 4)
    0.0091
    """
    mean, std, low, _, n = estimate(values)
    if np.isnan(low) or std == mean == 0:  # equal on all seeds
        return np.nan
    with np.errstate(divide="ignore"):
        return float(2 * stats.t.sf(np.abs(np.divide(mean, std / math.sqrt(n))), n - 1))


def holm(p):
    """Correct p for the number of comparisons, which are those that have one: Holm's step-down.

    Parameters
    ----------
    p : sequence of float
        NaN where there is none.

    Returns
    -------
    ndarray
        Each below a level only if this may be said of all that are, with that chance of any error among them.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, float("nan"), 0.03, 0.005]).round(3).tolist()
    [0.03, 0.06, nan, 0.06, 0.02]
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")[:np.count_nonzero(~np.isnan(p))]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected


def best_gaps(runs):
    """How much higher the best evaluation of a run is than the median of its last 20, for each method.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Unfinished ones are left out, and so are those in which DASO is not as published.

    Returns
    -------
    DataFrame
        A row for each data set, unlabeled classes and method, in the order of `runs`: ``dataset``, ``unlabeled``, what
        else of `WHERE` tells rows apart, ``method``, and an `Estimate` of the gap, in [0, 1]. The best is over all
        evaluations, of which those along the way may be on a part of the test images.

    Raises
    ------
    ValueError
        If runs of one group differ in more than their seed, or two have the same seed.
    """
    rows = []
    for group, by_seed in _groups(as_published(runs)).items():
        gaps = [run.result["plain"]["best"] - run.result["plain"]["accuracy"] for run in by_seed.values()]
        rows.append((*group.where, group.label, *estimate(gaps)))
    return _table(rows, ["method", *Estimate._fields], runs)


def paired_changes(runs, measure="plain"):
    """Say what DASO, and each changed setting of it, does to the accuracy: differences of runs on the same split.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Unfinished ones are left out.
    measure : {"plain", "adjusted"}
        Without or with logit adjustment at test time.

    Returns
    -------
    DataFrame
        A row for each pair of which both have finished runs, in the order of `runs`: ``dataset``, ``unlabeled``, what
        else of `WHERE` tells rows apart, ``method`` without the change, ``change``, an `Estimate` of the difference
        in [0, 1] over the seeds that both have, its ``p``, see `p_value`, and ``p_holm``, corrected for the number of
        rows that have one, see `holm`. A method with DASO is compared with the same without it; one with
        changed settings with DASO as published; DASO without blend and alignment, of which the train mode of the moving
        average is left, with the same without DASO. ``change`` also names what else is another setting, as the paper's
        ReMixMatch does not align on CIFAR10-LT with DASO.

    Raises
    ------
    ValueError
        If runs of one group differ in more than their seed, or two have the same seed.
    """
    groups, rows = _groups(runs), []
    for group, by_seed in groups.items():
        change = ON_BASE_LEARNER.get(group.variant, group.variant)
        label = without_daso(group.label) if group.variant in ON_BASE_LEARNER else group.label
        before = group._replace(label=label, variant="")
        base = groups.get(before, {})
        common = sorted(by_seed.keys() & base.keys())
        if common and before != group:
            first, second = ([each[seed].result[measure]["accuracy"] for seed in common] for each in (base, by_seed))
            more = other_changes(base[common[0]].config, by_seed[common[0]].config)
            differences = np.subtract(second, first)
            rows.append((*group.where, before.label, f"{change}, {more}" if more else change, *estimate(differences),
                         p_value(differences)))
    return _corrected(_table(rows, ["method", "change", *Estimate._fields, "p"], runs))


def order_agreement(cells, runs):
    """Whether methods come in the same order in our runs as in the paper: Spearman's rank correlation.

    Parameters
    ----------
    cells : DataFrame
        Of the paper, of one split, from `dasolib.published.table`.
    runs : list of dasolib.results.Run
        Of one split and scale, which need not be the published ones. Unfinished runs are left out, and so are those in
        which DASO is not as published.

    Returns
    -------
    dict
        ``methods`` and ``seeds``, how many are compared: the methods that are in both, on the seeds that all of them
        have; ``correlation`` of their means in [-1, 1], and its two-sided ``p`` from permutations of the methods, all
        of them up to seven: the chance of one as large if the two orders had nothing to do with each other. It says
        nothing of seeds, and there is no interval. NaN with fewer than three methods, or where all are equal.

    Raises
    ------
    ValueError
        If a method has runs of several splits or scales.
    """
    cells = cells[(cells["measure"] == "accuracy") & (cells["variant"] == "") & is_target(cells)]
    cells = cells.drop_duplicates("method").set_index("method")
    ours = {}
    for group, by_seed in _groups(as_published(runs)).items():
        if group.label in ours:
            raise ValueError(f"runs has several splits or scales of {group.label}: compare one of them")
        if group.label in cells.index:
            ours[group.label] = by_seed
    seeds = sorted(set.intersection(*map(set, ours.values()))) if ours else []
    found = {"methods": len(ours), "seeds": len(seeds), "correlation": np.nan, "p": np.nan}
    if len(ours) < 3 or not seeds:
        return found
    accuracy = np.array([[by_seed[seed].result["plain"]["accuracy"] for seed in seeds]
                         for by_seed in ours.values()])  # (methods, seeds)
    one, other = (stats.rankdata(values) for values in (accuracy.mean(axis=1), cells.loc[list(ours), "published"]))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return found
    test = stats.permutation_test((one,), lambda ranks, axis: _correlation(ranks, other, axis), vectorized=True,
                                  permutation_type="pairings", n_resamples=PERMUTATIONS,
                                  rng=np.random.default_rng(0))
    return found | {"correlation": float(test.statistic), "p": float(test.pvalue)}


def order_table(runs):
    """`order_agreement` for each split and scale.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Of any splits and scales.

    Returns
    -------
    DataFrame
        ``dataset`` and ``unlabeled`` of our runs, what else of `WHERE` tells rows apart; ``paper``, the numbers beside
        them: "same split", or "CIFAR10-LT" where the paper has no such split, its main columns with the same kind of
        unlabeled classes; what `order_agreement` returns, and its p corrected by `holm` for the table.
    """
    groups, rows = {}, []
    for run in runs:
        groups.setdefault(_where(run), []).append(run)
    comparisons, main = published.comparisons(), published.main_columns()
    for where, members in groups.items():
        cells, paper = comparisons, "same split"
        for name, value in zip(SETTING, where, strict=False):
            cells = cells[cells[name].isna() if value is None else cells[name] == value]
        if cells.empty:
            cells, paper = main[main["unlabeled"] == where[1]], "CIFAR10-LT"
        rows.append((*where, paper, *order_agreement(cells, members).values()))
    return _corrected(_table(rows, ["paper", "methods", "seeds", "correlation", "p"], runs))


def sampling_errors(runs):
    """Text on what the choice of test images alone does to an accuracy, a line for each data set.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Unfinished ones are left out.

    Returns
    -------
    str
        The binomial standard errors of the runs' accuracies, in points. All seeds and methods have the same test
        images, so that intervals over seeds do not hold this error, and differences between methods less of it.
    """
    errors = {}
    for run in runs:
        if run.result is not None:
            n, accuracy = int(run.counts["test"][-1].sum()), run.result["plain"]["accuracy"]
            errors.setdefault((run.config["dataset"], n), []).append(100 * math.sqrt(accuracy * (1 - accuracy) / n))
    return "\n".join(f"{dataset}: {n:,} test images, whose choice alone gives an accuracy a standard error of "
                     f"{min(each):.1f} to {max(each):.1f} points (binomial), in no interval over seeds"
                     for (dataset, n), each in errors.items())


def format_estimates(table):
    """Text of `best_gaps` or `paired_changes`, in percentage points; of the latter with the number of comparisons."""
    if table.empty:
        return "no finished runs to compare"
    shown = table[[name for name in table.columns if name not in (*Estimate._fields, *P)]].copy()
    shown["points"] = [plus_minus(mean, std, sign="+") for mean, std in zip(table["mean"], table["std"], strict=True)]
    shown["interval"] = ["-" if np.isnan(low) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
                         for low, high in zip(table["low"], table["high"], strict=True)]
    return _with_p(shown.assign(seeds=table["seeds"]), table)


def format_orders(table):
    """Text of an `order_table`."""
    if table.empty:
        return "no finished runs to compare"
    shown = table[[name for name in table.columns if name not in ("correlation", *P)]].copy()
    shown["rank correlation"] = ["-" if np.isnan(value) else f"{value:+.2f}" for value in table["correlation"]]
    return _with_p(shown, table)


def reading(gaps, changes, orders):
    """Say in one line what the three tables of a study come to."""
    parts = []
    restarts = gaps["method"].str.contains(NAMES["crest"])
    for whose, part in (("a run", gaps[~restarts]), ("CReST, whose last generation these 20 are,", gaps[restarts])):
        if len(part):
            low, middle, high = (100 * part["mean"].quantile([0, 0.5, 1])).tolist()
            parts.append(f"the best evaluation of {whose} is {low:.1f} to {high:.1f} points above the median of its "
                         f"last 20, by method and split, {middle:.1f} in the middle")
    n_all = changes["p"].count()
    for change, part in changes.groupby("change", sort=False):
        text = (f"{change}: {(part['mean'] > 0).sum()} of {len(part)} differences are above 0, "
                f"{100 * part['mean'].mean():+.1f} points on average")
        if n := part["low"].count():
            above, below, sure = part["low"] > 0, part["high"] < 0, part["p_holm"] < 1 - CONFIDENCE
            text += (f"; intervals from {FEWEST} seeds or more: {above.sum()} of {n} above 0, {below.sum()} below; "
                     f"corrected for {n_all} comparisons {(above & sure).sum()} above, {(below & sure).sum()} below")
        parts.append(text)
    for row in orders.to_dict("records"):
        if not np.isnan(row["correlation"]):
            split = settings_text({name: row[name] for name in WHERE[2:] if name in row})
            where = f"{row['dataset']}, {row['unlabeled']}" + (f" ({split})" if split else "")
            paper = "the paper" if row["paper"] == "same split" else f"the paper's on {row['paper']}"
            parts.append(f"order of {row['methods']} methods on {where}: rank correlation with {paper} "
                         f"{row['correlation']:+.2f} (p = {row['p']:.2g}, Holm {row['p_holm']:.2g}; {row['seeds']} "
                         f"seed{'s' * (row['seeds'] > 1)})")
    return f"Reading: {'; '.join(parts) or 'no finished runs'}."


def _groups(runs):
    """Finished runs by what they have in common, then by seed."""
    groups = {}
    for run in runs:
        if run.result is not None:
            by_seed = groups.setdefault(Group(_where(run), run.label, variant(run.config)), {})
            for other in by_seed.values():
                check_same_study(other, run)
            by_seed[run.config["seed"]] = run
    return groups


def _where(run):
    return tuple(field(run, name) for name in WHERE)


def _table(rows, columns, runs):
    """Make a table of rows that begin with the values of `WHERE`; of these, what tells the runs apart is kept."""
    return pd.DataFrame(rows, columns=[*WHERE, *columns])[[*telling(runs, WHERE), *columns]]


def _corrected(table):
    return table.assign(p_holm=holm(table["p"]))


def _correlation(one, other, axis):
    """Pearson's correlation along an axis, of ranks that is Spearman's."""
    one, other = (values - values.mean(axis=axis, keepdims=True) for values in (one, other))
    return (one * other).sum(axis=axis) / np.sqrt((one**2).sum(axis=axis) * (other**2).sum(axis=axis))


def _with_p(shown, table):
    """Text of a table, with p and the number of comparisons where there are any."""
    if "p" not in table:
        return text_table(shown, gap=2)
    for name, title in P.items():
        shown[title] = ["-" if np.isnan(p) else f"{p:.4f}" if p >= 0.0001 else "<.0001" for p in table[name]]
    n = int(table["p"].count())
    return f"{text_table(shown, gap=2)}\nHolm: for {n} comparison{'s' * (n != 1)}"

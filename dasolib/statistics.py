"""How sure it is what a study says: intervals over seeds, paired where methods share splits, and orders of methods."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dasolib import published
from dasolib.comparison import as_published, is_target, other_changes, settings_text, variant
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

LEVEL = 0.95  # of every interval
RESAMPLES = 9999
ENOUGH = 4  # seeds, from which on `reading` counts or prints an interval
WHERE = (*SETTING, "n_val", "labeled_indices", "data_sha256", *SIZE)  # same images, same labels, same scale
# DASO that blends nothing and aligns nothing trains as its base learner does. What is left of it: the moving average
# passes labeled images in train mode.
TRAIN_MODE_ALONE = settings_text({"lambda_align": 0.0, "fixed_blend": 0.0})
ON_BASE_LEARNER = {"": "+ DASO", TRAIN_MODE_ALONE: "+ train mode"}  # variants compared with it, and what they change
INTERVALS = (
    "[ ]: 95 % percentile bootstrap over seeds; too narrow for few of them, below four at most from the smallest\n"
    "number to the largest. ±: sample std over seeds. -: too few seeds."
)


class Estimate(NamedTuple):
    """A mean over seeds, and how sure it is; what one seed cannot say is NaN."""

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
    """Mean, sample standard deviation and bootstrap interval of the mean.

    Parameters
    ----------
    values : sequence of float
        One for each seed.

    Returns
    -------
    Estimate
        With the 95 % percentile bootstrap's interval, always of the same draws.

    Examples
    --------
    >>> found = estimate([0.5, 0.6, 0.7])
    >>> [round(float(number), 3) for number in found]
    [0.6, 0.1, 0.5, 0.7, 3.0]
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else np.nan, np.nan, np.nan, np.nan, len(values))
    low, high = np.quantile(values[_draws(len(values))].mean(axis=1), _ends())
    return Estimate(float(values.mean()), float(values.std(ddof=1)), float(low), float(high), len(values))


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
        else of `WHERE` tells rows apart, ``method`` without the change, ``change``, and an `Estimate` of the difference
        in [0, 1] over the seeds that both have. A method with DASO is compared with the same without it; one with
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
            rows.append((*group.where, before.label, f"{change}, {more}" if more else change,
                         *estimate(np.subtract(second, first))))
    return _table(rows, ["method", "change", *Estimate._fields], runs)


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
        have; ``correlation`` of their means in [-1, 1], and ``low`` and ``high``, its 95 % interval: our seeds are
        drawn anew, the same for all methods, and the published means from normal distributions with their standard
        errors. That adds noise to means which have it, and pulls the drawn correlations towards 0: where the interval
        would not hold the correlation itself, it ends there. It says how sure the order of these methods is, not what
        others would do. NaN with fewer than three methods, the interval with fewer than two seeds.

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
    found = {"methods": len(ours), "seeds": len(seeds), "correlation": np.nan, "low": np.nan, "high": np.nan}
    if len(ours) < 3 or not seeds:
        return found
    accuracy = np.array([[by_seed[seed].result["plain"]["accuracy"] for seed in seeds]
                         for by_seed in ours.values()])  # (methods, seeds)
    paper = cells.loc[list(ours)]
    found["correlation"] = float(stats.spearmanr(accuracy.mean(axis=1), paper["published"]).statistic)
    if len(seeds) > 1:
        error = (paper["published_std"] / paper["published_seeds"]**0.5).fillna(0).to_numpy()
        printed = np.random.default_rng(1).normal(paper["published"], error, (RESAMPLES, len(error)))
        drawn = accuracy[:, _draws(len(seeds))].mean(axis=2).T
        low, high = np.nanquantile(_rank_correlations(drawn, printed), _ends()).tolist()
        found |= {"low": min(low, found["correlation"]), "high": max(high, found["correlation"])}
    return found


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
        unlabeled classes; and what `order_agreement` returns.
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
    return _table(rows, ["paper", "methods", "seeds", "correlation", "low", "high"], runs)


def format_estimates(table):
    """Text of `best_gaps` or `paired_changes`, in percentage points."""
    if table.empty:
        return "no finished runs to compare"
    shown = table[[name for name in table.columns if name not in Estimate._fields]].copy()
    shown["points"] = [plus_minus(mean, std, sign="+") for mean, std in zip(table["mean"], table["std"], strict=True)]
    shown["interval"] = [_interval(low, high, scale=100, digits=1)
                         for low, high in zip(table["low"], table["high"], strict=True)]
    shown["seeds"] = table["seeds"]
    return text_table(shown, gap=2)


def format_orders(table):
    """Text of an `order_table`."""
    if table.empty:
        return "no finished runs to compare"
    shown = table[[name for name in table.columns if name not in ("correlation", "low", "high")]].copy()
    shown["rank correlation"] = ["-" if np.isnan(value) else f"{value:+.2f}" for value in table["correlation"]]
    shown["interval"] = [_interval(low, high, scale=1, digits=2)
                         for low, high in zip(table["low"], table["high"], strict=True)]
    return text_table(shown, gap=2)


def reading(gaps, changes, orders):
    """Say in one line what the three tables of a study come to."""
    parts = []
    restarts = gaps["method"].str.contains(NAMES["crest"])
    for whose, part in (("a run", gaps[~restarts]), ("CReST, whose last generation these 20 are,", gaps[restarts])):
        if len(part):
            low, middle, high = (100 * part["mean"].quantile([0, 0.5, 1])).tolist()
            parts.append(f"the best evaluation of {whose} is {low:.1f} to {high:.1f} points above the median of its "
                         f"last 20, by method and split, {middle:.1f} in the middle")
    for change, part in changes.groupby("change", sort=False):
        mean, sure = 100 * part["mean"].mean(), part[part["seeds"] >= ENOUGH]
        text = (f"{change}: {(part['mean'] > 0).sum()} of {len(part)} differences are above 0, {mean:+.1f} points on "
                "average")
        if len(sure):
            n_above, n_below = (sure["low"] > 0).sum(), (sure["high"] < 0).sum()
            text += f"; intervals from {ENOUGH} seeds or more: {n_above} of {len(sure)} above 0, {n_below} below"
        parts.append(text)
    for row in orders.to_dict("records"):
        if not np.isnan(row["correlation"]):
            split = settings_text({name: row[name] for name in WHERE[2:] if name in row})
            where = f"{row['dataset']}, {row['unlabeled']}" + (f" ({split})" if split else "")
            paper = "the paper" if row["paper"] == "same split" else f"the paper's on {row['paper']}"
            sure = (_interval(row["low"], row["high"], scale=1, digits=2) if row["seeds"] >= ENOUGH
                    else f"({row['seeds']} seed{'s' * (row['seeds'] > 1)})")
            parts.append(f"order of {row['methods']} methods on {where}: rank correlation with {paper} "
                         f"{row['correlation']:+.2f} {sure}")
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


def _draws(n):
    """Rows (RESAMPLES, n) of a bootstrap, always the same."""
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def _ends():
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2


def _rank_correlations(one, other):
    """Spearman's correlation of each row of two arrays (n, methods); NaN where all of a row are equal."""
    a, b = (stats.rankdata(values, axis=1) for values in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def _interval(low, high, *, scale, digits):
    return "-" if np.isnan(low) else f"[{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"

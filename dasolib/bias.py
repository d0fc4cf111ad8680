"""What DASO does to pseudo-labels, for several kinds of unlabeled classes, beside the averages in the paper."""

import pandas as pd

from dasolib import comparison, published
from dasolib.results import bias_table, over_seeds, plus_minus, results_table, without_daso

# Figures of the paper in which averages are printed, by data set and unlabeled classes.
FIGURES = {("cifar10", "equal"): ("5",), ("cifar100", "equal"): ("6",), ("cifar10", "uniform"): ("7", "8")}


def choose(runs, *, dataset, unlabeled, methods, **settings):
    """Choose the runs that notebooks on pseudo-labels show.

    Parameters
    ----------
    runs : list of dasolib.results.Run
    dataset : str
    unlabeled, methods : str
        Kinds of unlabeled classes, and labels as `dasolib.results.method_label` writes them; commas between.
    **settings
        As in `dasolib.comparison.choose`.

    Returns
    -------
    dict of str to list of Run
        By kind, as named, in the order of `methods`; finished or not, with DASO as published.

    Raises
    ------
    ValueError
        As `dasolib.comparison.choose` does.
    """
    return {kind: comparison.choose(runs, methods=_names(methods), dataset=dataset, unlabeled=kind, **settings)
            for kind in _names(unlabeled)}


def finished(chosen):
    """Return the finished runs of a choice, likewise by kind."""
    return {kind: comparison.finished(members) for kind, members in chosen.items()}


def format_chosen(chosen, *, dataset, methods):
    """Say of which methods there is no run, a line for each kind of unlabeled classes."""
    lines = []
    for kind, members in chosen.items():
        absent = [name for name in _names(methods) if name not in {run.label for run in members}]
        lines.append(f"{dataset}, unlabeled classes {kind}: "
                     + (f"no run of {', '.join(absent)}" if absent else "runs of all these methods"))
    return "\n".join(lines)


def accuracy_table(chosen, *, dataset):
    """`dasolib.results.results_table` of a choice; what any method of a kind has is expected of all of them."""
    expected = [(dataset, kind, label, seed) for kind, members in chosen.items()
                for label in dict.fromkeys(run.label for run in members)
                for seed in sorted({run.config["seed"] for run in members})]
    return results_table([run for members in chosen.values() for run in members], expected=expected)


def averages(part, *, dataset, kind, methods):
    """Averages over classes of finished runs of one kind of unlabeled classes, beside those in the paper's figures.

    Returns
    -------
    DataFrame
        Index: the methods. ``seeds``; in [0, 1] ``recall`` and ``precision`` of the pseudo-labels, averaged over the
        classes for which they exist, and ``accuracy`` on the test set, means over seeds; where the paper prints them,
        the same as ``paper° recall`` and so on, also of methods without a run.
    """
    mean = over_seeds(bias_table(part))["mean"]
    table = mean.loc[[isinstance(each, int) for _, each in mean.index]].groupby("method", sort=False).mean()
    totals = results_table(part).set_index("method")
    table["accuracy"] = totals["accuracy"]
    printed = [published.averages(figure) for figure in FIGURES.get((dataset, kind), ())]
    printed = pd.concat([each[each.index.isin(_names(methods))] for each in printed]) if printed else ()
    if len(printed):
        printed = printed.add_prefix("paper° ")
        table = table.reindex([*table.index, *printed.index.difference(table.index, sort=False)]).join(printed)
    table.insert(0, "seeds", totals["seeds"].reindex(table.index, fill_value=0))
    return table


def format_averages(parts, *, dataset, methods):
    """Text of `averages` of each kind of unlabeled classes, in percent."""
    blocks = []
    for kind, part in parts.items():
        table = averages(part, dataset=dataset, kind=kind, methods=methods)
        figures = " and ".join(f"figure {figure} ({published.figure_split(figure)})"
                               for figure in FIGURES.get((dataset, kind), ()))
        shares = (100 * table.drop(columns="seeds")).round(1)
        text = table[["seeds"]].join(shares).rename_axis(None).to_string(na_rep="-")
        paper = f"paper°: {figures}" if len(table.columns) > 4 else "no averages in the paper"
        blocks.append(f"{dataset}, unlabeled classes {kind}; {paper}\n{text if len(table) else 'no finished run'}")
    return "\n\n".join(blocks)


def reading(parts, *, dataset):
    """Say in one line what DASO changes on the seeds that a method has without and with it."""
    lines = []
    for kind, part in parts.items():
        by_seed = {(run.label, run.config["seed"]): run for run in part}
        for label in dict.fromkeys(run.label for run in part):
            base = without_daso(label)
            pairs = [(by_seed[base, seed], run) for (name, seed), run in by_seed.items()
                     if name == label != base and (base, seed) in by_seed]
            if pairs:
                lines.append(f"{dataset} {kind}: {_change(base, label, pairs)}")
    return f"Reading: {'; '.join(lines) or 'no pair of finished runs to compare'}."


def _change(base, label, pairs):
    accuracy = pd.DataFrame([[run.result["plain"]["accuracy"] for run in pair] for pair in pairs])
    before, after = (plus_minus(accuracy[i].mean()) for i in (0, 1))
    gain = accuracy[1] - accuracy[0]
    mean = over_seeds(bias_table([run for pair in pairs for run in pair]))["mean"]["recall"]
    head, tail = (" -> ".join(plus_minus(mean[name, group]) for name in (base, label)) for group in ("head", "tail"))
    points, n_above = plus_minus(gain.mean(), gain.std(), sign="+"), (gain > 0).sum()
    seeds = f"{len(gain)} seed{'s' * (len(gain) > 1)}"
    above = f"above 0 on {n_above} of {seeds}" if len(gain) >= comparison.FEWEST else f"{seeds}, too few to say"
    changed = " and ".join(filter(None, ["DASO", comparison.other_changes(*(run.config for run in pairs[0]))]))
    return (f"{base} {before} % -> with {changed} {after} % ({points} points, {above}); "
            f"recall of pseudo-labels, head {head} %, tail {tail} %")


def _names(text):
    return [name.strip() for name in text.split(",") if name.strip()]

"""What the DASO paper prints, in the names and settings of this package.

``published.csv`` holds every accuracy in its tables and the averages printed into figures 5 to 9: Oh, Kim and Kweon,
"DASO: Distribution-Aware Semantics-Oriented Pseudo-label for Imbalanced Semi-Supervised Learning", CVPR 2022,
arXiv:2106.05682. Its column ``note`` marks cells that the paper prints twice with different numbers, and one that is
probably a copy error. Eight accuracies of its authors' own seed come from the issues of their repository.
"""

import math
from pathlib import Path

import pandas as pd

from dasolib.comparison import CELL, SETTING, settings_text, variant
from dasolib.rebalance import parse_rebalance
from dasolib.results import NAMES, method_label

FILE = Path(__file__).with_suffix(".csv")
SEEDS = 3  # of a number that is printed with a standard deviation
AUTHORS_SEED = 5491305  # of the table "seed": the same split for all of its methods
TABLES = {
    "1": "CIFAR10-LT and CIFAR100-LT, unlabeled classes as imbalanced as the labeled ones",
    "2": "CIFAR10-LT with uniform and reversed unlabeled classes, STL10-LT with unknown ones",
    "3": "DASO on other base learners",
    "4": "Semi-Aves",
    "5": "DASO without blending and without alignment",
    "6": "DASO with a fixed blend",
    "7": "DASO's queues and prototypes",
    "8": "DASO's temperature of the class distribution",
    "11": "more methods for labels and pseudo-labels",
    "12": "STL10-LT, with re-balancing of the labels",
    "13": "ReMixMatch",
    "14": "logit adjustment in training and at test time",
    "15": "length of DASO's queues",
    "16": "DASO's temperature of the prototypes",
    "17": "weight of DASO's alignment loss",
    "seed": f"CIFAR10-LT, unlabeled classes reversed, one run each with the authors' own seed, {AUTHORS_SEED}",
}
COLUMNS = ("row", "method", "variant", *SETTING, "measure", "published", "published_std", "published_seeds", "note")

MEASURED = {"accuracy": "", "adjusted": ", LA at test time", "last": ", last evaluation"}  # behind a method

# How the file writes data sets, methods and the settings of ablations, where not as we do.
DATASETS = {"semi_aves(U_in)": "semi_aves", "semi_aves(U_in+U_out)": "semi_aves_unknown"}
KEYS = {name: key for key, name in NAMES.items()} | {
    "PseudoLabel": "pseudo_label", "MeanTeacher": "mean_teacher", "CB-reweight": "cb"}
TEST_TIME_LA = "LA(inf)"  # in the place of a method; the run beside it is one without
ABLATIONS = {
    "DASO_full": {}, "DASO_blend_only(no_align)": {"lambda_align": 0.0}, "align_only(no_blend)": {"fixed_blend": 0.0},
    "upsilon=0(+align)": {"fixed_blend": 0.0}, "upsilon=1(+align)": {"fixed_blend": 1.0},
    "upsilon=0.5(+align)": {"fixed_blend": 0.5},
}
SETTINGS = {
    "bal=no": {"queue_sizing": "frequency"}, "bal=yes": {"queue_sizing": "balanced"},
    "EMA=no": {"prototypes_from": "student"}, "EMA=yes": {"prototypes_from": "ema"},
}
NUMBERS = {"T_dist": "dist_temperature", "T_proto": "proto_temperature", "L": "queue_size",
           "lambda_align": "lambda_align"}


def table(number, *, dataset=None):
    """Return the cells of a table of the paper that hold a test accuracy.

    Parameters
    ----------
    number : str
        A key of `TABLES`, of which "seed" is none of the paper. Tables 9 and 10 of the paper hold settings, no results.
    dataset : str, optional
        Only the cells of this data set.

    Returns
    -------
    DataFrame
        One row for each cell, in the order of the paper. ``row`` is what stands at its left: the method, or the
        settings that an ablation changes. ``method``, as `dasolib.results.method_label` writes it, and ``variant``,
        what differs from the paper's DASO as `dasolib.comparison.variant` writes it, say which runs belong beside it.
        Then the split, as in `dasolib.config.Config`; ``measure``, the column of `dasolib.results.results_table` that
        was printed: ``accuracy`` (median of the last 20 evaluations), ``last``, or ``adjusted`` (with logit adjustment
        at test time); ``published`` and ``published_std`` in [0, 1], and ``published_seeds``, the latter two NaN where
        no standard deviation is printed; ``note``: empty, or what is doubtful about the cell.

    Raises
    ------
    ValueError
        If there is no such table, or it has no such data set.

    Examples
    --------
    >>> cells = table("1", dataset="cifar10")
    >>> print(cells.loc[1, ["row", "gamma_l", "n1", "published", "published_std"]].to_dict())
    {'row': 'Supervised', 'gamma_l': 100.0, 'n1': 1500, 'published': 0.619, 'published_std': 0.0041}
    """
    if number not in TABLES:
        raise ValueError(f"number={number!r}: choose one of {', '.join(map(repr, TABLES))}")
    lines = [line for line in _lines() if line["paper_table"].partition("-")[0] == f"T{number}"]
    cells = pd.DataFrame([_cell(line) for line in lines], columns=COLUMNS).astype({"n1": "Int64", "m1": "Int64"})
    if dataset is not None:
        if dataset not in set(cells["dataset"]):
            raise ValueError(f"dataset={dataset!r}: table {number} has {', '.join(cells['dataset'].unique())}")
        cells = cells[cells["dataset"] == dataset].reset_index(drop=True)
    return cells


def main_columns():
    """Return the cells of CIFAR10-LT with 1,500 labeled images of the head class and gamma_l = 100, of every method.

    Returns
    -------
    DataFrame
        As `comparisons` returns it: the split with the most methods, with equal, uniform and reversed unlabeled
        classes.
    """
    cells = comparisons()
    is_main = (cells["dataset"] == "cifar10") & (cells["n1"] == 1500) & (cells["gamma_l"] == 100)
    return cells[is_main].reset_index(drop=True)


def comparisons():
    """Return the cells of tables 1 to 4 and 11, which compare methods, as `table` returns them, each cell once."""
    return pd.concat([table(number) for number in ("1", "2", "3", "4", "11")]).drop_duplicates(CELL)


def averages(figure):
    """Return the numbers that are printed into figures 5 to 9, by method.

    Parameters
    ----------
    figure : {"5", "6", "7", "8", "9"}

    Returns
    -------
    DataFrame
        Index: the methods, as `dasolib.results.method_label` writes them; in [0, 1] ``recall`` and ``precision`` of the
        pseudo-labels, averages over classes, and ``accuracy`` on the test set. Figure 9 has the last alone.

    Raises
    ------
    ValueError
        If the figure has no such numbers.

    Examples
    --------
    >>> averages("5").loc["FixMatch + DASO"].tolist()
    [0.79, 0.76, 0.763]
    """
    measures = {"a": "recall", "b": "precision", "c": "accuracy", "-": "accuracy"}
    numbers = {}
    for line in _lines():
        name = line["paper_table"]
        if name[:2] == f"F{figure}":
            measure = measures[name[2]]
            share = float(line["mean"]) / (100 if measure == "accuracy" else 1)
            numbers.setdefault(_method(line)[0], {})[measure] = round(share, 6)
    if not numbers:
        raise ValueError(f"figure={figure!r}: choose one of 5, 6, 7, 8, 9")
    return pd.DataFrame.from_dict(numbers, orient="index")


def figure_split(figure):
    """Say how many images of the head class there are in figures 5 to 9, whose averages `averages` returns.

    Examples
    --------
    >>> figure_split("6")
    'n1 = 50, m1 = 400'
    """
    split = next(_split(line) for line in _lines() if line["paper_table"].startswith(f"F{figure}"))
    return settings_text({name: split[name] for name in ("n1", "m1")})


def _lines():
    return pd.read_csv(FILE, dtype=str, keep_default_na=False).to_dict("records")


def _cell(line):
    """One line of the file as a row of `table`."""
    split, (label, is_adjusted, settings) = _split(line), _method(line)
    std = round(float(line["std"]) / 100, 6) if line["std"] else math.nan
    measure = "adjusted" if is_adjusted else "last" if line["paper_table"].endswith("-last") else "accuracy"
    return {
        "row": settings_text(settings) or label + MEASURED[measure], "method": label,
        "variant": variant(split | settings), **split, "measure": measure,
        "published": round(float(line["mean"]) / 100, 6), "published_std": std,
        "published_seeds": math.nan if math.isnan(std) else SEEDS, "note": line["note"],
    }


def _split(line):
    """Return the columns of `dasolib.results.SETTING`; those of natural imbalance are None."""
    dataset = DATASETS.get(line["dataset"], line["dataset"])
    gamma_l = None if line["imb_l"] == "natural" else float(line["imb_l"])
    kinds = {line["imb_l"]: "equal", "1": "uniform", f"1/{line['imb_l']}": "reversed", "natural": "unknown"}
    unlabeled = kinds.get(line["imb_u"], "unknown")
    gamma_u = {"equal": gamma_l, "uniform": 1.0, "reversed": gamma_l}.get(unlabeled)
    n1, m1 = (int(line[name]) if line[name].isdecimal() else None for name in ("n_l_head", "n_u_head"))
    return dict(zip(SETTING, (dataset, unlabeled, gamma_l, gamma_u, n1, m1), strict=True))


def _method(line):
    """Return the label of a method, whether its predictions are adjusted at test time, and its settings of DASO."""
    learner, *more = line["base"].split("+")
    is_adjusted, settings = TEST_TIME_LA in more, {}
    if line["method"] in ABLATIONS:
        more, settings = [*more, "DASO"], ABLATIONS[line["method"]]
    elif line["method"].startswith("DASO,"):
        more = [*more, "DASO"]
        for item in line["method"].split(",")[1:]:
            name, _, value = item.partition("=")
            settings |= SETTINGS[item] if item in SETTINGS else {NUMBERS[name]: float(value)}
    elif line["method"] not in ("-", "no_blend,no_align"):
        more = [*more, line["method"]]
    rebalance = parse_rebalance([KEYS[name] for name in more if name != TEST_TIME_LA])
    return method_label(KEYS[learner], rebalance), is_adjusted, settings

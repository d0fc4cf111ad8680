"""Runs beside the numbers that the paper prints, a row for each method and a column for each split."""

import json
import string
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from scipy import stats

from dasolib.config import (
    PRESETS,
    SPLITS,
    YOUNGER,
    Config,
    cpu_settings,
    make_config,
    paper_dist_temperature,
    paper_settings,
)
from dasolib.data import DATASETS
from dasolib.evaluation import LAST
from dasolib.rebalance import REBALANCERS
from dasolib.results import (
    BEST,
    MASK,
    NAMES,
    NOT_COMPARED,
    SETTING,
    Run,
    check_same_study,
    field,
    group_summary,
    plus_minus,
    select,
    text_table,
    with_spread,
    without_daso,
)
from dasolib.run_folder import resolve

# Settings that ablations change. A run that does is in no table but theirs.
ABLATED = ("lambda_align", "fixed_blend", "queue_size", "queue_sizing", "prototypes_from", "ema_train_mode",
           "proto_temperature", "dist_temperature")
DASO_ALONE = {*NOT_COMPARED, *ABLATED, *REBALANCERS["daso"].settings, "rebalance"}  # what DASO brings with it
CELL = [*SETTING, "method", "variant", "measure"]  # what tells cells apart; several tables print the same one
# How numbers are rounded makes no run one of another scale.
ARITHMETIC = ("precision", "channels_last", "compile", "threads")
CONFIDENCE = 0.95  # of every interval
FEWEST = 3  # seeds of an interval: that of two is so wide that it says nothing
MOST_NAMED = 3  # settings that the name of a scale tells
FULL_SCALE = "Full scale"  # how the name of the paper's scale begins
COLUMNS = (
    "paper: as printed, in %; mean ± sample std over 3 seeds, or a number alone.\n"
    f"ours, acc.: median of the last {LAST} evaluations of a run; mean over seeds, ± sample std. +LA: with logit "
    "adjustment at test time.\n"
    "difference: our number in the measure of the paper's cell minus the paper's, ± half the width of the 95 % "
    "interval\nof Welch's t for two means; without it where the paper has no std, or we have fewer than three seeds. "
    "Where our runs\nare of another scale, the difference includes what that does.\n-: missing.\n"
    f"{MASK}\n{BEST}"
)
OPEN_SET = {"semi_aves": "unlabeled images of the 200 known classes",
            "semi_aves_unknown": "unlabeled images of known and of 800 unknown classes"}
NO_TARGET = "not a target"  # in the note of a cell that nothing may be measured against
OTHER_SCALE = "°: the paper's numbers are of another scale than ours: compare methods with each other, not with these."


def settings_text(settings):
    """Write settings as tables print them.

    Examples
    --------
    >>> settings_text({"queue_size": 512, "lambda_align": 0.5, "prototypes_from": "student"})
    'queue_size = 512, lambda_align = 0.5, prototypes_from = student'
    """
    return ", ".join(f"{name} = {value:g}" if isinstance(value, int | float) and not isinstance(value, bool)
                     else f"{name} = {value}" for name, value in settings.items())


def variant(config):
    """Say in which of the settings that ablations change a run is not as the paper has it; empty for none.

    Parameters
    ----------
    config : dict
        Of a run, or as much of it: the split, and settings of DASO.

    Examples
    --------
    >>> variant({"dataset": "cifar10", "unlabeled": "equal", "gamma_l": 100.0, "gamma_u": 100.0, "queue_size": 512})
    'queue_size = 512'
    """
    split = {name: config[name] for name in ("dataset", "unlabeled", "gamma_l", "gamma_u")}
    paper = paper_settings(split["dataset"], "fixmatch", ("daso",), PRESETS["paper"])
    paper["dist_temperature"] = paper_dist_temperature(**split)
    return settings_text({name: config[name] for name in ABLATED if name in config and config[name] != paper[name]})


def departures(run):
    """Return the settings in which a run is not as the paper's preset has them, but for its split and `ABLATED`.

    Parameters
    ----------
    run : Run
        Of a built-in method.

    Returns
    -------
    dict of str to tuple
        Name -> (value of the run, value of the preset); empty for a run at full scale. What only concerns the rounding
        of numbers is no departure.
    """
    given = {name: run.config.get(name) for name in SETTING}  # None, too: it says that the imbalance is natural
    given |= {"source": run.config["source"]} if "source" in run.config else {}
    paper = make_config("paper", method=run.config["method"], rebalance=run.config["rebalance"], **given).identity()
    there = YOUNGER | run.config
    return {name: (there[name], value) for name, value in (YOUNGER | paper).items()
            if name in there and there[name] != value and name not in {"seed", *ARITHMETIC, *ABLATED}}


def other_changes(before, after):
    """Text on settings of two configurations that differ and are neither DASO's nor without effect on a comparison.

    As the paper's ReMixMatch does not align on CIFAR10-LT with DASO: ``alignment = False``; empty for none.
    """
    return settings_text({name: value for name, value in after.items()
                          if name in before and before[name] != value and name not in DASO_ALONE})


def as_published(runs):
    """Return the runs in which DASO, if they have it, is as published."""
    return [run for run in runs if not variant(run.config)]


def expected_runs(configs, runs, by):
    """List the `contenders` that a study plans, with DASO as published, as `dasolib.results.results_table` expects it.

    Parameters
    ----------
    configs : iterable of dasolib.config.Config
        What is planned.
    runs : list of Run
        What is there. Its groups come first, in its order; those that nobody has planned with the seeds that they have.
    by : sequence of str
        Settings that make a group.

    Returns
    -------
    list of tuple
        Values of `by`, and a seed.
    """
    def key(run):
        return tuple(field(run, name) for name in by)

    planned = [Run(Path(), config.identity(), pd.DataFrame(), {}, None, []) for config in configs]
    seeds = {}
    for run in as_published(contenders(planned)):
        seeds.setdefault(key(run), []).append(run.config["seed"])
    there = {}
    for run in runs:
        there.setdefault(key(run), []).append(run.config["seed"])
    return [(*each, seed) for each in {**there, **seeds} for seed in sorted({*seeds.get(each, there.get(each))})]


def contenders(runs):
    """Return the runs whose accuracies are compared with each other.

    Parameters
    ----------
    runs : list of Run
        Finished or not, of any splits and scales.

    Returns
    -------
    list of Run
        Without those that only estimate class counts for others. Where a split has a finished run at full scale, only
        runs at full scale are left of it, and those of methods of your own, which have no such scale.
    """
    runs = [run for run in runs if run.config["method"] != "distribution_estimate"]
    is_small = [is_built_in(run) and bool(departures(run)) for run in runs]
    full = {_split(run) for run, small in zip(runs, is_small, strict=True)
            if run.result is not None and is_built_in(run) and not small}
    return [run for run, small in zip(runs, is_small, strict=True) if not small or _split(run) not in full]


def is_built_in(run):
    """Whether base learner and re-balancing are of this package."""
    return all(name in NAMES for name in (run.config["method"], *run.config["rebalance"]))


def choose(runs, *, methods, dataset, unlabeled, **settings):
    """Return the `contenders` of one split in which DASO is as published.

    Parameters
    ----------
    runs : list of Run
    methods : sequence of str
        Labels as `dasolib.results.method_label` writes them, which also order the runs.
    dataset, unlabeled : str
    **settings
        As in `dasolib.results.select`. Where they leave several splits, that of `dasolib.config.make_config` is taken,
        if it is among them.

    Returns
    -------
    list of Run
        Finished or not.

    Raises
    ------
    ValueError
        If a setting or a kind of unlabeled classes is unknown, a method is none of this package or of the runs, or the
        data set is neither a known one nor that of a run.
    """
    kinds = get_args(Config.model_fields["unlabeled"].annotation)
    if unlabeled not in kinds:
        raise ValueError(f"unlabeled={unlabeled!r}: choose one of {', '.join(kinds)}")
    datasets = sorted({*DATASETS, *(run.config["dataset"] for run in runs)})
    if dataset not in datasets:
        raise ValueError(f"dataset={dataset!r}: choose one of {', '.join(datasets)}")
    labels = {run.label for run in runs}
    for method in methods:
        if method not in labels and not set(method.split(" + ")) <= set(NAMES.values()):
            raise ValueError(f"methods has {method!r}: join names of {', '.join(NAMES.values())} by ' + '")
    part = contenders(as_published(select(runs, dataset=dataset, unlabeled=unlabeled, **settings)))
    part = [run for method in methods for run in part if run.label == method]
    if dataset in SPLITS and len({_split(run) for run in part}) > 1:
        main = make_config("paper", dataset=dataset, method="supervised", unlabeled=unlabeled)
        main = tuple(getattr(main, name) for name in SETTING)
        part = [run for run in part if _split(run) == main] or part
    return part


def pick(runs, **choice):
    """Return the finished ones of what `choose` returns, of each method with one configuration but for the seed.

    Raises
    ------
    ValueError
        As `choose` does, or if runs of one method differ in more than their seed: settings that differ choose them.
    """
    return finished(choose(runs, **choice))


def finished(chosen):
    """Return the finished ones of runs, of each method with one configuration but for the seed.

    Raises
    ------
    ValueError
        If runs of one method differ in more than their seed.
    """
    part = [run for run in chosen if run.result is not None]
    for i, run in enumerate(part):
        for other in part[:i]:
            if other.label == run.label:
                check_same_study(other, run)
    return part


def compare(published, runs, *, seeds=(0, 1, 2)):
    """Put runs beside the numbers that the paper prints, apart by scale.

    Parameters
    ----------
    published : DataFrame
        From `dasolib.published.table`.
    runs : list of Run
        Finished or not; those of other splits, methods or settings are left alone.
    seeds : sequence of int
        Which are expected of every cell at full scale; at another those that any run of the table has.

    Returns
    -------
    DataFrame
        A row for each scale and each row of `published`: ``scale``, a text; the columns of `published`; those of
        `dasolib.results.results_table` for the runs beside it, and ``by_seed``, the accuracies of these by seed;
        ``difference``, theirs in ``measure`` minus the published number, and ``difference_error``, half the width of
        its 95 % interval. That is Welch's for two means, of our seeds and of the published ones, whose standard
        deviations are taken as printed; NaN where these have none, or there are fewer than three of ours. Runs at full
        scale come first. A scale without runs has no rows; without any run all cells are there, at full scale, with
        what is missing.

    Raises
    ------
    ValueError
        If runs of one cell and scale differ in more than their seed, or two have the same seed.
    """
    by_cell = {}
    for run in runs:
        key = (run.label, variant(run.config), *_split(run))
        by_cell.setdefault(key, []).append(run)
    cells = {True: [], False: []}  # at full scale or not: a cell of the paper, and the runs beside it
    for cell in published.to_dict("records"):
        split = (None if pd.isna(cell[name]) else cell[name] for name in SETTING)
        members = by_cell.get((cell["method"], cell["variant"], *split), [])
        at_full_scale = [run for run in members if not departures(run)]
        cells[True].append((cell, at_full_scale))
        cells[False].append((cell, [run for run in members if run not in at_full_scale]))
    present = {is_full: [run for _, members in part for run in members] for is_full, part in cells.items()}
    rows = []
    for is_full in [is_full for is_full in cells if present[is_full]] or [True]:
        scale = _scale_name(published["dataset"].unique(), present[is_full], is_full=is_full)
        expected = seeds if is_full else sorted({run.config["seed"] for run in present[is_full]})
        for cell, members in cells[is_full]:
            summary = group_summary(members, expected)
            by_seed = {run.config["seed"]: run.result["plain"]["accuracy"] for run in members if run.result is not None}
            rows.append({"scale": scale, **cell, **summary, "by_seed": by_seed, **_difference(cell, summary)})
    return pd.DataFrame(rows)


def format_comparison(table):
    """Text of a `compare` table in percent: for each scale the paper's layout, then every split that has runs.

    Returns
    -------
    str
        Splits are named by letters, which the first lines explain; notes on doubtful published cells stand below.
        `COLUMNS` says what the columns mean. Methods without runs stand in the paper's layout alone.
    """
    letters, marks = _letters(table), _marks(table)
    blocks = [splits_text(table)]
    for scale, part in table.groupby("scale", sort=False):
        blocks.append(f"{scale}\n{text_table(paper_layout(part).reset_index(), gap=2)}")
        for split, _, shown in _splits_with_runs(part, marks):
            title = f"{letters[split]}, {scale.partition(':')[0]}"
            blocks.append(f"{title}\n{text_table(shown, gap=2)}")
    return "\n\n".join([*blocks, *filter(None, [notes_text(table)])])


def with_unprinted(cells, runs):
    """Cells of the paper, and below them those that only our runs could fill.

    Parameters
    ----------
    cells : DataFrame
        From `dasolib.published.table`.
    runs : list of Run
        Finished or not.

    Returns
    -------
    DataFrame
        As `cells`; a row without a published number for each method of this package, with DASO as published, that has
        a run on one of their splits, and of which the paper prints no accuracy there.
    """
    splits = set(_letters(cells))
    printed = {(cell["method"], cell["variant"], *_key(cell[name] for name in SETTING))
               for cell in cells.to_dict("records") if cell["measure"] == "accuracy"}
    more = {(run.label, "", *_split(run)): run for run in as_published(contenders(runs))
            if is_built_in(run) and _split(run) in splits}
    rows = [dict(zip(SETTING, split, strict=True)) | {"row": label, "method": label, "variant": "",
                                                      "measure": "accuracy", "note": ""}
            for label, _, *split in more if (label, "", *split) not in printed]
    return pd.DataFrame([*cells.to_dict("records"), *rows]).astype({"n1": "Int64", "m1": "Int64"})


def splits_text(table):
    """Say which split each letter of a `paper_layout` stands for, a line each."""
    return "\n".join(f"{letter}: {_split_text(split)}" for split, letter in _letters(table).items())


def notes_text(table):
    """Explain the marks of a `paper_layout`, a line each; empty without any."""
    other = [OTHER_SCALE] if any(map(_is_other_scale, table["scale"])) else []
    return "\n".join([*(f"{mark} {note}" for note, mark in _marks(table).items()), *other])


def paper_layout(table, *, mask=False):
    """Lay a `compare` table of one scale out as the paper does: a row for each method, two columns for each split.

    Parameters
    ----------
    table : DataFrame
    mask : bool
        Whether a third column has the mask rates of our runs, in splits that have any.

    Returns
    -------
    DataFrame
        Index: ``row``. Columns: ``a paper``, ``a ours``, ``b paper``, ...: texts in percent, mean ± sample standard
        deviation, "-" where there is none. Published numbers are marked as `format_comparison` explains it, and their
        columns as well where ours are of another scale.
    """
    letters, marks, columns = _letters(table), _marks(table), {}
    with_mask = {letters[split] for split, _, _ in _splits_with_runs(table, marks)} if mask else ()
    for cell in table.to_dict("records"):
        letter = letters[_key(cell[name] for name in SETTING)]
        ours = plus_minus(cell[cell["measure"]], cell[f"{cell['measure']}_std"])
        for title, text in ((_paper_title(cell), _as_printed(cell, marks)), ("ours", ours)):
            columns.setdefault(f"{letter} {title}", {})[cell["row"]] = text
        if letter in with_mask:
            columns.setdefault(f"{letter} mask", {})[cell["row"]] = plus_minus(cell["mask_rate"])
    return pd.DataFrame(columns).fillna("-").rename_axis("method")


def save_table(table, folder, name):
    """Write a `compare` table as ``<folder>/<name>.csv``, all its numbers, and ``.tex``; nothing if `folder` is empty.

    The accuracies by seed are JSON in the CSV file. The LaTeX file needs the package booktabs. It has a ``table`` for
    each scale, which its caption names, in the layout of `paper_layout`, and one for each split with runs; captions say
    what the columns mean.
    """
    if not folder:
        return
    path = resolve(folder)
    path.mkdir(parents=True, exist_ok=True)
    table.assign(by_seed=table["by_seed"].map(json.dumps)).to_csv(path / f"{name}.csv", index=False)
    letters, marks, parts = _letters(table), _marks(table), ["% needs \\usepackage{booktabs}"]
    for scale, part in table.groupby("scale", sort=False):
        shown = paper_layout(part).reset_index()
        parts.append(_latex_table(shown, [scale, *splits_text(part).splitlines(), COLUMNS, notes_text(part)]))
        for split, cells, shown in _splits_with_runs(part, marks):
            title = f"{scale.partition(':')[0]}, {letters[split]}: {_split_text(split)}"
            parts.append(_latex_table(shown, [title, COLUMNS, notes_text(cells)]))
    (path / f"{name}.tex").write_text("\n".join(parts), encoding="utf-8")


def _latex_table(shown, explained):
    caption = ". ".join(text.removesuffix(".") for text in explained if text) + "."
    text = shown.to_latex(index=False, escape=True, position="htbp", caption=_latex(caption))
    for sign, command in (("±", r"$\pm$"), ("+-", r"$\pm$"), ("°", r"$^\circ$")):
        text = text.replace(sign, command)
    return text


def is_target(cells):
    """Say of each cell of the paper whether runs may be measured against it: one is marked as a copy error."""
    return ~cells["note"].str.contains(NO_TARGET)


def daso_pairs(table):
    """Pair the methods of a `compare` table without and with DASO, and with what the paper changes along with it.

    Returns
    -------
    DataFrame
        A row for each scale, split and method that is there without and with DASO, both as the paper has them:
        ``scale``, the split, ``method`` without it, and in [0, 1] ``published_gain``, with DASO minus without it, and
        ``gain``, the same of our runs, on the seeds that both have; NaN without any. A cell that is no target is left
        out.
    """
    plain = table[(table["measure"] == "accuracy") & (table["variant"] == "") & is_target(table)]
    bare = plain.assign(rebalanced=plain["method"].map(without_daso))
    columns = ["scale", *SETTING, "rebalanced"]
    is_daso = bare["method"] != bare["rebalanced"]
    pairs = bare[~is_daso].merge(bare[is_daso], on=columns, suffixes=("", "_with"))
    pairs["published_gain"] = pairs["published_with"] - pairs["published"]
    pairs["gain"] = [np.mean([after[seed] - before[seed] for seed in before.keys() & after.keys()] or [np.nan])
                     for before, after in zip(pairs["by_seed"], pairs["by_seed_with"], strict=True)]
    return pairs[["scale", *SETTING, "method", "published_gain", "gain"]]


def reading(*tables):
    """Say in one line how much of `compare` tables there is, and whether DASO helps in the paper and in our runs."""
    table = pd.concat(tables, ignore_index=True).drop_duplicates(["scale", *CELL])
    n_cells, parts = len(table.drop_duplicates(CELL)), []
    for scale, cells in table[table["seeds"] > 0].groupby("scale", sort=False):
        text = f"{scale.partition(':')[0]}: finished runs in {len(cells)} of {n_cells} cells"
        pairs = daso_pairs(cells).dropna(subset="gain")
        if len(pairs):
            ours, paper = pairs["gain"], pairs["published_gain"]
            text += (f"; with DASO minus without it {100 * ours.mean():+.1f} points on average, above 0 in "
                     f"{(ours > 0).sum()} of {len(pairs)} pairs; in the paper {100 * paper.mean():+.1f}, above 0 in "
                     f"{(paper > 0).sum()} of them")
        if not _is_other_scale(scale):
            difference = cells.loc[is_target(cells), "difference"].mean()
            text += f"; our numbers minus the paper's are {100 * difference:+.1f} points on average"
        parts.append(text)
    return f"Reading: {'. '.join(parts) or f'no finished run beside the {n_cells} cells of the paper'}."


def _difference(cell, summary):
    """Columns of `compare` on one cell of the paper and the runs beside it."""
    ours, std, n = summary[cell["measure"]], summary[f"{cell['measure']}_std"], summary["seeds"]
    errors = np.array([std**2 / n if n >= FEWEST else np.nan, cell["published_std"]**2 / cell["published_seeds"]])
    with np.errstate(invalid="ignore"):  # without any spread there is no number of degrees of freedom
        freedom = errors.sum()**2 / (errors**2 / np.array([n - 1, cell["published_seeds"] - 1])).sum()
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(errors.sum()))
    return {"difference": ours - cell["published"], "difference_error": half}


def _scale_name(datasets, runs, *, is_full):
    """Say how large networks are and how long runs, ours of one scale and the paper's, and what else is changed."""
    paper = _sizes(make_config("paper", dataset=name, method="fixmatch").identity() for name in datasets)
    if is_full:
        return f"{FULL_SCALE}: {paper if runs else 'no run yet'}"
    small = cpu_settings("fixmatch", PRESETS["cpu"])
    is_cpu = all(run.config.get(name) == small[name] for run in runs for name in ("depth", "width"))
    changed = {name: here for run in runs for name, (here, _) in departures(run).items()}
    few = f" ({settings_text(changed)})" if len(changed) <= MOST_NAMED else ""
    name = "CPU scale" if is_cpu else f"Other settings than the paper{few}"
    return f"{name}: {_sizes(run.config for run in runs)}; the paper: {paper}"


def _letters(table):
    """Return the splits of a table, in order, and the letter that stands for each."""
    splits = dict.fromkeys(_key(row) for row in table[list(SETTING)].itertuples(index=False))
    return dict(zip(splits, string.ascii_lowercase, strict=False))


def _split(run):
    return tuple(run.config.get(name) for name in SETTING)


def _key(split):
    return tuple(None if pd.isna(value) else value for value in split)


def _split_text(split):
    dataset, unlabeled, *numbers = split
    numbers = {name: number for name, number in zip(SETTING[2:], numbers, strict=True) if number is not None}
    text = OPEN_SET.get(dataset, f"unlabeled classes {unlabeled}")
    return ", ".join([dataset, text, *([settings_text(numbers)] if numbers else [])])


def _marks(table):
    """Return the notes on published cells, in order, and the mark that stands for each."""
    return {note: f"[{i}]" for i, note in enumerate((note for note in table["note"].unique() if note), 1)}


def _as_printed(cell, marks):
    """Text of a published number with the decimals of the paper, and the mark of its note."""
    mean, std = 100 * cell["published"], 100 * cell["published_std"]
    if np.isnan(mean):  # the paper has no such cell
        return "-"
    mark = f" {marks[cell['note']]}" if cell["note"] else ""
    return (f"{mean:.2f}" if np.isnan(std) else f"{mean:.1f} ± {std:.2f}") + mark


def _is_other_scale(scale):
    return not scale.startswith(FULL_SCALE)


def _paper_title(cell):
    return "paper°" if _is_other_scale(cell["scale"]) else "paper"


def _latex(text):
    return text.translate(str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "\n": " "}))


def _splits_with_runs(table, marks):
    """Yield the splits of a `compare` table of one scale that have runs, their rows, and their columns as text."""
    has_runs = (table["seeds"] > 0) | table["missing"].str.contains("unfinished")
    for split, cells in table[has_runs].groupby(list(SETTING), sort=False, dropna=False):
        yield _key(split), cells, _details(cells, marks)


def _details(cells, marks):
    """Columns of one split of a `compare` table, as text."""
    shown = pd.DataFrame({"method": cells["row"]})
    shown[_paper_title(cells.iloc[0])] = [_as_printed(cell, marks) for cell in cells.to_dict("records")]
    shown["acc."], shown["acc.+LA"] = with_spread(cells, "accuracy"), with_spread(cells, "adjusted")
    if "last" in set(cells["measure"]):
        shown["last"] = with_spread(cells, "last")
    shown["difference"] = [plus_minus(mean, half, sign="+") for mean, half in
                           zip(cells["difference"], cells["difference_error"], strict=True)]
    for title, name in (("best*", "accuracy_best"), ("best+LA*", "adjusted_best")):
        shown[title] = [plus_minus(mean) for mean in cells[name]]
    shown["mask"] = [plus_minus(share) for share in cells["mask_rate"]]
    shown["seeds"] = cells["seeds"]
    shown["missing"] = [text or "-" for text in cells["missing"]]
    return shown


def _sizes(configs):
    """List the different sizes of runs; a network without a name is a WideResNet."""
    return " or ".join(dict.fromkeys(
        "{}, {batch_size} labeled images a step, {total_steps:,} steps".format(
            config.get("network") or f"WRN-{config['depth']}-{config['width']}", **config) for config in configs))

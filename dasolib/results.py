"""Run folders as records, and tables of them: accuracy over seeds, and what became of the pseudo-labels."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dasolib.config import SCHEMA, YOUNGER, Config
from dasolib.data import DATASETS
from dasolib.diagnostics import accuracy, class_groups, precision, predicted_share, recall
from dasolib.evaluation import LAST, summarize
from dasolib.run_files import DamagedError, NoRunError, read_config, read_json, read_run
from dasolib.run_folder import resolve

# How base learners and re-balancing methods are written in tables and figures, in the order of `LEARNERS` and
# `REBALANCERS`, which is also the order of runs.
NAMES = {
    "supervised": "Supervised", "distribution_estimate": "Distribution estimate", "pseudo_label": "Pseudo-Label",
    "mean_teacher": "Mean Teacher", "mixmatch": "MixMatch", "remixmatch": "ReMixMatch", "usadtm": "USADTM",
    "fixmatch": "FixMatch",
    "la": "LA", "cb": "CB", "ldam_drw": "LDAM-DRW", "crt": "cRT", "distribution_alignment": "DA", "darp": "DARP",
    "daso": "DASO", "crest": "CReST", "crest_plus": "CReST+", "boss": "BOSS", "abc": "ABC",
}
MEASURES = ("recall", "precision", "accuracy")  # columns of `bias_table`
# In which runs that are averaged may differ; what a run takes from an earlier one is that of its own seed.
NOT_COMPARED = ("seed", "threads", "source", "taken", "channels_last", "compile")
# What notebooks show unless told otherwise: the paper's tables, as far as somebody has made them, then CPU scale.
STUDY = ("runs/paper", "runs/cpu_study", "runs/uniform")
SETTING = ("dataset", "unlabeled", "gamma_l", "gamma_u", "n1", "m1")  # what makes a column of the paper's tables
SIZE = ("network", "depth", "width", "batch_size", "total_steps")  # runs that differ in it are of another scale
MASK = ("mask: share of the pseudo-labels that were learned from, in %, mean over the last 20 evaluations and seeds;\n"
        "near 0 a run is all but supervised. -: none are made.")
BEST = "*best: best evaluation of a run, chosen on the test set: shown beside the number, never used to choose."


@dataclass(frozen=True, eq=False)
class Run:
    """What the small files of a run folder say; an unfinished run has no result, and maybe no evaluation yet.

    Attributes
    ----------
    folder : Path
    config : dict
        As in ``config.json``: what can change a number; a setting without effect in this run is absent.
    metrics : DataFrame
        One row for each evaluation: ``step``, ``accuracy`` and the rest of ``metrics.jsonl``, losses as ``losses/...``.
    counts : dict of str to ndarray
        The arrays of ``pseudo_labels.npz``, see `dasolib.run_folder.read_counts`; empty before the first evaluation.
    result : dict or None
        As `dasolib.evaluation.summarize` returns it; None if unfinished.
    starts : list of dict
        As in ``environment.json``: one for each time the run was started; empty in its first moment.
    """

    folder: Path
    config: dict
    metrics: pd.DataFrame
    counts: dict[str, np.ndarray]
    result: dict | None
    starts: list[dict]

    @property
    def name(self):
        """Of the folder."""
        return self.folder.name

    @property
    def mask_rate(self):
        """Share of the pseudo-labels in the loss, in [0, 1], mean of the last 20 evaluations; NaN without any.

        In ``result.json``, or, of a run made before it was there, in its ``metrics.jsonl``.
        """
        if self.result is not None and "mask_rate" in self.result:
            return float(np.array(self.result["mask_rate"], dtype=float))
        if "mask_rate" not in self.metrics:  # no evaluation yet
            return np.nan
        return _mean(pd.to_numeric(self.metrics["mask_rate"]).to_numpy(dtype=float)[-LAST:])

    @property
    def class_names(self):
        """Of own data, if ``model.json`` is there; None for data sets of this package, which have ids as in print."""
        file = self.folder / "model.json"
        if self.config["dataset"] in DATASETS or not file.exists():
            return None
        return read_json(self.folder, file.name, self.result or {}).get("class_names")

    @property
    def label(self):
        """Method as tables and figures name it."""
        return method_label(self.config["method"], self.config["rebalance"])

    def pseudo_labels(self, kind="final"):
        """Return counts (n_evaluations, K + 1, K) of one kind of pseudo-label, a window each; true x pseudo-label.

        Raises
        ------
        ValueError
            If there is no such kind.
        """
        kinds = self.counts["kinds"].tolist()
        if kind not in kinds:
            raise ValueError(f"kind={kind!r}: choose one of {', '.join(kinds)}")
        return self.counts["pseudo_labels"][:, kinds.index(kind)]

    def last_pseudo_labels(self, kind="final"):
        """Return counts (K + 1, K) of one kind of pseudo-label, summed over the windows of the last 20 evaluations."""
        return self.pseudo_labels(kind)[-LAST:].sum(axis=0)


def method_label(method, rebalance):
    """Name of a base learner and what is put on it, as tables and figures print it.

    Parameters
    ----------
    method : str
        A key of `dasolib.methods.LEARNERS`.
    rebalance : sequence of str
        Keys of `dasolib.rebalance.REBALANCERS`, in table order.

    Returns
    -------
    str
        A method of your own is printed as it is named, whether it is registered in this process or not, and with
        "(own)" behind it where a built-in method is written like that.

    Examples
    --------
    >>> method_label("fixmatch", ("la", "daso")), method_label("fixmatch", ("divide_by_prior",))
    ('FixMatch + LA + DASO', 'FixMatch + divide_by_prior')
    """
    return " + ".join(NAMES.get(name, f"{name} (own)" if name in NAMES.values() else name)
                      for name in (method, *rebalance))


def without_daso(label):
    """Name of the method without DASO.

    Examples
    --------
    >>> without_daso("FixMatch + DASO + ABC")
    'FixMatch + ABC'
    """
    return " + ".join(part for part in label.split(" + ") if part != NAMES["daso"])


def load_run(folder):
    """Read a run folder: its configuration, environment, metrics, counts of pseudo-labels and result.

    Parameters
    ----------
    folder : path
        May belong to a run that is still being trained.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If it is no run folder, one of another schema, one with a damaged file, or a finished run whose files disagree.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"folder={str(folder)!r} is no run: it has no config.json; restore it from a copy, or choose "
                         "another folder")
    config, records, counts, result, starts = read_run(folder)
    if config["schema"] != SCHEMA:
        raise ValueError(f"{folder / 'config.json'}: schema={config['schema']}, and only {SCHEMA} can be read")
    if result is not None:
        _check_result(folder, result, records, counts)
    return Run(folder, config, pd.json_normalize(records, sep="/"), counts, result, starts)


def _check_result(folder, result, records, counts):
    """Refuse a result that does not follow from metrics and counts."""
    if [record["step"] for record in records] != counts["step"].tolist():
        raise DamagedError(folder, "metrics.jsonl", "it and pseudo_labels.npz hold different evaluations")
    try:
        again = summarize(records, counts, result["labeled_counts"])
        differing = [name for name, value in again.items() if name in result and not _is_close(value, result[name])]
        differing += [name for name in ("plain", "adjusted") if name not in result]
        if not _is_close([record["accuracy"] for record in records], accuracy(counts["test"]).tolist()):
            differing.append("accuracy of metrics.jsonl")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(folder, "result.json", f"it does not fit the counts beside it: {error!r}") from None
    if differing:
        raise DamagedError(folder, "result.json", f"it does not fit the counts beside it: {', '.join(differing)}")


def _is_close(one, other):
    """Whether two JSON values are the same but for the last digits, which may depend on NumPy's version."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(
            _is_close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_is_close, one, other))
    return other == one if one is None or isinstance(one, str) else other is not None and abs(one - other) < 1e-9


def format_starts(run):
    """Text on where a run was trained, a line for each time it was started, with what there was to note."""
    return "\n".join(
        f"{run.name}: from step {start['from_step']:,} on {start['device']}, {start['threads']} threads, "
        f"torch {start['torch']}" + "".join(f"\n  {note}" for note in start.get("notes", ()))
        for start in run.starts)


def load_runs(*folders):
    """Read every run in folders of run folders, ordered by data set, unlabeled classes, method and seed.

    Methods come by base learner, then by how many re-balancing methods are put on it, and within that in the order of
    `NAMES`; methods of your own come last, by name.

    Parameters
    ----------
    *folders : path

    Returns
    -------
    list of Run
        Unfinished ones too; other files and folders are left alone, those with a ``config.json`` that is not that of a
        run, or with a ``result.json`` alone, with a warning.

    Raises
    ------
    ValueError
        If there is no such folder, or as in `load_run`.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"folder={str(folder)!r} does not exist")
        if (folder / "config.json").exists():
            raise ValueError(f"folder={str(folder)!r} is a run itself; name the folder that it lies in")
    runs = []
    for run in sorted({path.parent for folder in folders for name in ("config.json", "result.json")
                       for path in Path(folder).glob(f"*/{name}")}):
        try:
            read_config(run)
            runs.append(load_run(run))
        except NoRunError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return sorted(runs, key=_order)


def study_runs(folders=""):
    """Read the runs that a notebook shows.

    Parameters
    ----------
    folders : str
        Folders of run folders, separated by commas, relative to the project. Empty: those of `STUDY` that exist.

    Returns
    -------
    list of Run

    Raises
    ------
    ValueError
        As in `load_runs`.
    """
    named = [name.strip() for name in folders.split(",") if name.strip()]
    return load_runs(*(map(resolve, named) if named else filter(Path.is_dir, map(resolve, STUDY))))


def format_runs(runs):
    """Text on which runs there are: a line for each folder of run folders."""
    lines = {}
    for run in runs:
        finished = lines.setdefault(run.folder.parent, [])
        finished.append(run.result is not None)
    return "\n".join(f"{folder.name}: {sum(finished)} finished and {len(finished) - sum(finished)} unfinished runs"
                     for folder, finished in lines.items()) or "no runs"


def select(runs, **settings):
    """Return the runs whose configuration has all of `settings`; ``method`` is the label.

    Raises
    ------
    ValueError
        If a setting is unknown.
    """
    _check_fields("settings", settings)
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return [run for run in runs if all(field(run, name) == value for name, value in settings.items())]


def telling(runs, among=(*SETTING, *SIZE)):
    """Return ``dataset``, ``unlabeled``, and those settings `among` others that differ between runs of the same two."""
    kinds = {}
    for run in runs:
        kinds.setdefault((field(run, "dataset"), field(run, "unlabeled")), []).append(run)
    more = (name for name in among if any(len({field(run, name) for run in part}) > 1 for part in kinds.values()))
    return ("dataset", "unlabeled", *more)


def results_table(runs, *, by=("dataset", "unlabeled", "method"), expected=()):
    """Accuracy of each group of runs over its seeds, with what is missing.

    Parameters
    ----------
    runs : list of Run
        Finished or not.
    by : sequence of str
        Settings that make a group; ``method`` stands for the label, which includes re-balancing.
    expected : sequence of tuple
        Runs that belong to the study, as values of `by` and a seed: ``("cifar10", "equal", "FixMatch", 0)``.

    Returns
    -------
    DataFrame
        One row for each group, in the order of `expected` and then of `runs`: the columns of `by`; ``accuracy``,
        the mean over seeds of the run's number (median of its last 20 evaluations), ``accuracy_std``, the sample
        standard deviation (NaN for one seed), and ``accuracy_best``, the mean of the best evaluation of each run, which
        is chosen on the test set and therefore only shown; the same three as ``adjusted...`` for logit adjustment at
        test time; ``mask_rate``, the mean of `Run.mask_rate`; ``minutes`` of training, a mean; ``seeds``, the number of
        finished runs; ``missing``, a text naming unfinished and absent ones. Accuracies are in [0, 1], and NaN for a
        group with no finished run.

    Raises
    ------
    ValueError
        If runs of one group differ in more than their seed, or two have the same seed.
    """
    _check_fields("by", by)
    groups = {}  # key -> runs, and seeds that are expected
    for *key, seed in expected:
        if len(key) != len(by):
            raise ValueError(f"expected has {(*key, seed)!r}; give a value for each of {', '.join((*by, 'seed'))}")
        groups.setdefault(tuple(key), ([], []))[1].append(seed)
    for run in runs:
        groups.setdefault(tuple(field(run, name) for name in by), ([], []))[0].append(run)
    return pd.DataFrame([dict(zip(by, key, strict=True)) | group_summary(*group) for key, group in groups.items()],
                        columns=[*by, *group_summary([], [])])


def format_table(table):
    """Text of a `results_table` in percent, mean and sample standard deviation, with what the columns mean.

    Examples
    --------
    >>> print(format_table(results_table([], expected=[("cifar10", "equal", "FixMatch", 0)])).splitlines()[1])
    cifar10 equal      FixMatch    -       -     -        -    -       -     0 s0 absent
    """
    shown = table[[name for name in table.columns if name not in group_summary([], [])]].copy()
    for title, name in (("acc.", "accuracy"), ("acc.+LA", "adjusted")):
        shown[title] = with_spread(table, name)
    for title, name in (("best*", "accuracy_best"), ("best+LA*", "adjusted_best")):
        shown[title] = [plus_minus(m) for m in table[name]]
    shown["mask"] = [plus_minus(share) for share in table["mask_rate"]]
    shown["minutes"] = ["-" if np.isnan(minutes) else f"{minutes:.1f}" for minutes in table["minutes"]]
    shown["seeds"] = table["seeds"]
    shown["missing"] = [text or "-" for text in table["missing"]]
    return text_table(shown) + (
        f"\nacc.: test accuracy in %, median of the last {LAST} evaluations of a run; mean over seeds, ± sample std."
        f"\n+LA: with logit adjustment at test time. minutes: of training and evaluation, mean over seeds.\n"
        f"{MASK}\n{BEST}"
    )


def validation_table(runs, *, by):
    """Accuracy on validation images, on which settings are chosen.

    Parameters
    ----------
    runs : list of Run
        Finished ones with validation images.
    by : sequence of str
        Settings to tell; ``method`` stands for the label.

    Returns
    -------
    DataFrame
        A row for each run, sorted by `by`: its columns, ``validation``, the trained network's accuracy in [0, 1], and
        ``minutes`` of training.

    Raises
    ------
    ValueError
        If a setting is unknown, or a run has no such accuracy.
    """
    _check_fields("by", by)
    for run in runs:
        if "validation_accuracy" not in (run.result or {}):
            raise ValueError(f"{run.folder} has no validation_accuracy: it is not finished, or no images were held out")
    rows = [{name: field(run, name) for name in by}
            | {"validation": run.result["validation_accuracy"], "minutes": run.result["seconds"] / 60} for run in runs]
    return pd.DataFrame(rows, columns=[*by, "validation", "minutes"]).sort_values(list(by))


def format_validation(table):
    """Text of a `validation_table`, accuracies in percent."""
    shown = table.assign(validation=[f"{100 * share:.1f}" for share in table["validation"]],
                         minutes=[f"{minutes:.1f}" for minutes in table["minutes"]])
    return text_table(shown)


def bias_table(runs):
    """Recall and precision of the final pseudo-labels and test accuracy, per class and per group of classes.

    Parameters
    ----------
    runs : list of Run
        Finished ones.

    Returns
    -------
    DataFrame
        A row for each run and class, then for each run and group: ``method``, ``seed``, ``part`` (class id, or "head",
        "medium", "tail" by labeled frequency), and in [0, 1] ``recall`` and ``precision``, of the pseudo-labels of the
        last 20 windows together, whether confident or not, and ``accuracy``, the test accuracy as in ``result.json``.
        A group's recall and precision are means over its classes for which they exist; NaN where none does: recall
        of a class without unlabeled images, precision of a class never predicted. In all rows of a run ``known`` and
        ``unknown``: how many of these pseudo-labels belong to images whose true class is known, which recall and
        precision are about, and how many are left out of them.

    Raises
    ------
    ValueError
        If a run is unfinished, or those of a method differ in more than the seed.
    """
    rows, first = [], {}
    for run in runs:
        check_same_but_seed(first.setdefault(run.label, run), run)
        if run.result is None:
            raise ValueError(f"run {run.name} is unfinished")
        labels, test = run.last_pseudo_labels(), run.result["plain"]
        known, unknown = known_and_unknown(labels)
        per_class = {"recall": recall(labels), "precision": precision(labels),
                     "accuracy": np.array(test["per_class"], dtype=float)}
        who = {"method": run.label, "seed": run.config["seed"]}
        counted = {"known": known, "unknown": unknown}
        rows += [who | {"part": k} | {name: float(values[k]) for name, values in per_class.items()} | counted
                 for k in range(labels.shape[-1])]
        for group, classes in groups_of(run).items():
            rows.append(who | {"part": group, "accuracy": test["groups"].get(group, np.nan)}
                        | {name: _mean(per_class[name][classes]) for name in ("recall", "precision")} | counted)
    return pd.DataFrame(rows, columns=["method", "seed", "part", *MEASURES, "known", "unknown"])


def last_tests(runs):
    """Return counts (K, K) of true against predicted class of the test images, of the last 20 evaluations of runs."""
    return sum(run.counts["test"][-LAST:].sum(axis=0) for run in runs)


def by_label(runs):
    """Group runs by method, in order of appearance.

    Raises
    ------
    ValueError
        If there are no runs, or one without an evaluation, or those of a method differ in more than the seed.
    """
    if not runs:
        raise ValueError("runs is empty: give at least one run")
    methods = {}
    for run in runs:
        if not run.counts:
            raise ValueError(f"run {run.name} has no evaluation yet")
        methods.setdefault(run.label, []).append(run)
        check_same_but_seed(methods[run.label][0], run)
    return methods


def class_names(runs):
    """Return the names of the classes of runs of one data set, as tables and figures take them; None for ids."""
    return next(filter(None, (run.class_names for run in runs)), None)


def format_chance(run):
    """Say what a prediction at random would reach on the test images of a run, and one class for all of them."""
    test = run.counts["test"][-1].sum(axis=1)
    chance, most = 1 / len(test), test.max() / test.sum()
    return f"chance: {plus_minus(chance)} %" + (
        f"; {plus_minus(most)} % by always predicting the most frequent test class" if test.min() < test.max() else "")


def format_confusion(runs, *, n_largest=3):
    """Text on the test predictions of each method: how many are right, and which classes are taken for which others.

    Parameters
    ----------
    runs : list of Run
        The counts of `last_tests` of a method's runs are added up.
    n_largest : int
        How many confusions to name: those with the largest shares of a true class.

    Returns
    -------
    str
        "-" for a class without test images.
    """
    names = class_names(runs)
    rows, confusions = [], []
    for label, members in by_label(runs).items() if runs else ():
        counts = last_tests(members)
        rows.append({"method": label, "seeds": len(members), "all": plus_minus(accuracy(counts))}
                    | {k: plus_minus(share) for k, share in enumerate(recall(counts))})
        of = counts.sum(axis=1)
        pairs = [(counts[k, j] / of[k], k, j) for k, j in np.argwhere(counts).tolist() if k != j]
        largest = sorted(pairs, key=lambda pair: -pair[0])[:n_largest]
        called = (f"{plus_minus(share)} % of class {_class_name(k, names)} as {_class_name(j, names)}"
                  for share, k, j in largest)
        confusions.append(f"{label}: {', '.join(called) or 'no confusion'}")
    return "\n".join([text_table(_with_names(rows, names)), *confusions]) if rows else "no finished run"


def confusion_reading(runs):
    """Say in one line how many test images of the tail classes each method gives to them, and how many to the head.

    Parameters
    ----------
    runs : list of Run
        Finished ones, as in `format_confusion`.
    """
    lines = []
    for label, members in by_label(runs).items() if runs else ():
        counts, groups = last_tests(members), groups_of(members[0])
        tail = counts[groups["tail"]]
        if not tail.sum():
            lines.append(f"{label}: no test image of the tail classes")
            continue
        to_tail, to_head = (tail[:, groups[name]].sum() / tail.sum() for name in ("tail", "head"))
        lines.append(f"{label} predicts tail classes for {100 * to_tail:.1f} % of the test images of the tail and head "
                     f"classes for {100 * to_head:.1f} %")
    return f"Reading: {'; '.join(lines) or 'no finished run'}."


def known_and_unknown(counts):
    """Return the numbers of pseudo-labels of images whose true class is known, and is not; counts (K + 1, K) or (K, K).

    Examples
    --------
    >>> known_and_unknown(np.array([[3, 1], [0, 4], [2, 0]]))
    (8, 2)
    """
    k = counts.shape[-1]
    return int(counts[:k].sum()), int(counts[k:].sum())


def unknown_in_bias(table):
    """Say how many pseudo-labels a `bias_table` leaves out of recall and precision: those of images of unknown class.

    Returns
    -------
    dict of str to str
        By method, in order of appearance: one line; a method that saw no such image is absent.
    """
    one_row_a_run = table[table["part"] == table["part"].iloc[0]]
    totals = one_row_a_run.groupby("method", sort=False)[["known", "unknown"]].sum()
    lines = {}
    for method, (known, unknown) in zip(totals.index, totals.to_numpy().tolist(), strict=True):
        if unknown:
            lines[method] = (
                f"{method}: {unknown:,} of {known + unknown:,} pseudo-labels left out of recall and precision: true "
                "class unknown" if known else
                f"{method}: no recall and precision, true classes unknown: {unknown:,} pseudo-labels, counts of "
                "predictions only")
    return lines


def groups_of(run):
    """Head, medium and tail classes of a finished run, as `dasolib.diagnostics.class_groups`."""
    return class_groups(run.result["labeled_counts"])


def over_seeds(table):
    """Mean, sample standard deviation and number of seeds of a `bias_table`, in the order of its rows.

    Returns
    -------
    dict of str to DataFrame
        ``mean``, ``std`` (NaN for one seed) and ``count``, each with index (method, part) and a column per measure. A
        value that some seed lacks is NaN.
    """
    groups = table.groupby(["method", "part"], sort=False)[list(MEASURES)]
    size = groups.size()
    complete = groups.count().eq(size, axis=0)
    return {"mean": groups.mean().where(complete), "std": groups.std().where(complete), "count": size}


def format_bias(table, *, class_names=None):
    """Text of a `bias_table` in percent: a row for each method and measure, groups first, then classes by name or id.

    Where a method has several seeds, rows of sample standard deviations follow the means. A line below the table says
    of each method how many pseudo-labels of images of unknown class are left out, if there are any.
    """
    stats = over_seeds(table)
    rows = []
    for method in table["method"].unique():
        seeds = int(stats["count"].loc[method].iloc[0])
        for measure in MEASURES:
            for statistic in ("mean", "std") if seeds > 1 else ("mean",):
                values = stats[statistic][measure].loc[method]
                values = values.reindex(sorted(values.index, key=lambda part: isinstance(part, int)))
                rows.append({"method": method, "in %": measure, "seeds": seeds, "": statistic}
                            | {part: plus_minus(value) for part, value in values.items()})
    if not rows:
        return "no finished run"
    return "\n".join([text_table(_with_names(rows, class_names)), *unknown_in_bias(table).values()])


def share_table(runs):
    """Share of each class among the final pseudo-labels of the last 20 windows, and its true share among those images.

    Parameters
    ----------
    runs : list of Run
        Runs of one method are counted together.

    Returns
    -------
    DataFrame
        Index: the methods, in order of appearance, then "true", over the images of known class of all runs. A column
        for each class, in [0, 1], which sum to 1 in a row; NaN for a method without pseudo-labels, and in "true" if no
        class is known. Then ``known`` and ``unknown``, as in `bias_table`: a method's shares are those of both.

    Raises
    ------
    ValueError
        As `by_label`, but for no runs.
    """
    if not runs:
        return pd.DataFrame(columns=["known", "unknown"])
    counts = {label: sum(run.last_pseudo_labels() for run in part) for label, part in by_label(runs).items()}
    total = sum(counts.values())
    table = pd.DataFrame([*(predicted_share(each) for each in counts.values()), predicted_share(total[:-1].T)],
                         index=[*counts, "true"])
    table[["known", "unknown"]] = [known_and_unknown(each) for each in (*counts.values(), total)]
    return table


def share_change(runs):
    """How much the class shares of final pseudo-labels move from one evaluation window to the next.

    Half the sum over classes of the absolute differences, averaged over the last 20 windows: 0 where all windows have
    one distribution, 1 where two successive ones have no class in common. A method whose pseudo-labels steer
    themselves, as DASO's do through its histogram, can swing where another drifts.

    Parameters
    ----------
    runs : list of Run

    Returns
    -------
    dict of str to float
        By method, in order of appearance: the mean over its runs; NaN without pseudo-labels or with one window.
    """
    by_method = {}
    for run in runs:
        shares = predicted_share(run.pseudo_labels()[-LAST:])
        change = np.abs(np.diff(shares, axis=0)).sum(axis=1) / 2
        by_method.setdefault(run.label, []).append(change.mean() if len(change) else np.nan)
    return {label: float(np.mean(changes)) for label, changes in by_method.items()}


def format_shares(table, *, class_names=None):
    """Text of a `share_table` in percent, classes by name or id.

    A line below says over how many pseudo-labels the true shares are.
    """
    if table.empty:
        return "no finished run"
    shares = table.drop(columns=["known", "unknown"])
    rows = [{"method": label, "in %": "share"} | {k: plus_minus(share) for k, share in values.items()}
            for label, values in shares.iterrows()]
    known, unknown = table.loc["true", ["known", "unknown"]].astype(int)
    note = unknown_in_shares(known, unknown)
    return text_table(_with_names(rows, class_names)) + (f"\n{note}" if note else "")


def unknown_in_shares(known, unknown):
    """Say over how many pseudo-labels true class shares are; nothing if the true class is known for all of them.

    Parameters
    ----------
    known, unknown : int
        Numbers of pseudo-labels, from `known_and_unknown`.

    Examples
    --------
    >>> unknown_in_shares(8, 2)
    'true: without 2 of 10 pseudo-labels, whose true class is unknown'
    >>> unknown_in_shares(8, 0)
    ''
    """
    if not unknown:
        return ""
    if not known:
        return f"true: unknown for all {unknown:,} pseudo-labels, counts of predictions only"
    return f"true: without {unknown:,} of {known + unknown:,} pseudo-labels, whose true class is unknown"


def format_estimate(run):
    """Text table of the class counts of the unlabeled images that a run of ``distribution_estimate`` ends with.

    Parameters
    ----------
    run : Run
        A finished one.

    Returns
    -------
    str
        Class, estimated images and their share in percent, and the number of evaluations that it is the mean of; or a
        line saying that no estimate was accepted.

    Raises
    ------
    ValueError
        If the run is unfinished or estimates nothing.
    """
    if run.result is None:
        raise ValueError(f"run {run.name} is unfinished")
    if "unlabeled_counts" not in run.result:
        raise ValueError(f"run {run.name} estimates no class counts: its method is {run.config['method']!r}, and only "
                         "'distribution_estimate' does")
    counts, estimates = run.result["unlabeled_counts"], run.metrics["unlabeled_estimate"]
    if counts is None:
        return (f"no estimate was accepted in {len(estimates)} evaluations: counts below 0, or a confusion matrix "
                "that is nearly singular")
    total, names = sum(counts), run.class_names
    rows = [{"class": _class_name(k, names), "estimated images": f"{n:,.1f}", "share in %": plus_minus(n / total)}
            for k, n in enumerate(counts)]
    accepted = sum(isinstance(estimate, list) for estimate in estimates)  # a missing one may be None or NaN
    return (text_table(pd.DataFrame(rows))
            + f"\n{total:,.0f} unlabeled images; mean of the estimates accepted in {accepted} of {len(estimates)} "
              "evaluations")


def _order(run):
    config = run.config
    first, *others = (_rank(name) for name in (config["method"], *config["rebalance"]))
    return config["dataset"], config["unlabeled"], first, len(others), others, config["seed"], run.name


def _rank(name):
    """Place of a method in `NAMES`; own ones come after all of them, by name."""
    return (list(NAMES).index(name), "") if name in NAMES else (len(NAMES), name)


def field(run, name):
    """Value of a setting of a run, as something that can be compared and hashed; ``method`` is the label."""
    value = run.label if name == "method" else (YOUNGER | run.config).get(name)
    return tuple(value) if isinstance(value, list) else value


def _check_fields(argument, names):
    for name in names:
        if name not in Config.model_fields:
            raise ValueError(f"{argument} has {name!r}; choose from {', '.join(Config.model_fields)}")


def check_same_study(one, other):
    """Refuse to average runs that are not the same but for the seed."""
    if one.config["seed"] == other.config["seed"]:
        raise ValueError(f"runs {one.name} and {other.name} are in one group and have the same seed")
    check_same_but_seed(one, other)


def check_same_but_seed(one, other):
    """Refuse to put runs together that differ in more than the seed."""
    for name in sorted({*one.config, *other.config} - set(NOT_COMPARED)):
        here, there = one.config.get(name), other.config.get(name)
        if here != there:
            apart = f", or tell them apart by {name}" if name in Config.model_fields else ""
            raise ValueError(f"runs {one.name} and {other.name} are in one group and differ in {name}: {here!r}, "
                             f"{there!r}; leave one out{apart}")


def group_summary(runs, seeds):
    """Return the columns of `results_table` for the runs of one group and the seeds that are expected of it."""
    by_seed = dict.fromkeys(seeds)
    for i, run in enumerate(runs):
        for other in runs[:i]:
            check_same_study(other, run)
        by_seed[run.config["seed"]] = run
    finished = [run for run in runs if run.result is not None]
    done = [run.result for run in finished]
    row = {}
    for name, key in (("accuracy", "plain"), ("adjusted", "adjusted")):
        row |= _over_runs(name, [result[key]["accuracy"] for result in done])
        row[f"{name}_best"] = _mean(np.array([result[key]["best"] for result in done]))
    row |= _over_runs("last", [result["plain"]["last"] for result in done])
    missing = [_state(seed, run) for seed, run in sorted(by_seed.items()) if run is None or run.result is None]
    row["mask_rate"] = _mean(np.array([run.mask_rate for run in finished]))
    return row | {"minutes": _mean(np.array([result["seconds"] / 60 for result in done])), "seeds": len(done),
                  "missing": ", ".join(missing)}


def _over_runs(name, values):
    values = np.array(values)
    return {name: _mean(values), f"{name}_std": float(values.std(ddof=1)) if len(values) > 1 else np.nan}


def with_spread(table, name):
    """Texts of a column in percent, with sample standard deviations from ``<name>_std``."""
    return [plus_minus(mean, std) for mean, std in zip(table[name], table[f"{name}_std"], strict=True)]


def _state(seed, run):
    if run is None:
        return f"s{seed} absent"
    step = run.metrics["step"].iloc[-1] if len(run.metrics) else 0
    return f"s{seed} unfinished at step {step} of {run.config['total_steps']}"


def _mean(values):
    """Mean of the values that exist, NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def plus_minus(mean, std=np.nan, *, sign=""):
    """Text of a share in percent, ± its spread where there is one; "-" for NaN. With ``sign="+"`` always signed."""
    if np.isnan(mean):
        return "-"
    return f"{100 * mean:{sign}.1f}" + ("" if np.isnan(std) else f" ± {100 * std:.1f}")


def _class_name(k, class_names):
    return class_names[k] if class_names else str(k)


def _with_names(rows, class_names):
    """Make a table of rows whose classes are numbers; a name may be that of another column."""
    table = pd.DataFrame(rows)
    return table.set_axis([_class_name(name, class_names) if isinstance(name, int) else name for name in table], axis=1)


def text_table(table, *, gap=1):
    """Return the columns of a table as text, `gap` spaces apart, words to the left and numbers to the right."""
    lines = [table.columns.tolist(), *table.to_numpy().tolist()]
    widths = [max(len(str(value)) for value in column) for column in zip(*lines, strict=True)]
    words = {"dataset", "unlabeled", "method", "change", "classes", "in %", "missing"}
    return "\n".join(
        (gap * " ").join(str(value).ljust(width) if name in words else str(value).rjust(width)
                 for name, value, width in zip(table.columns, line, widths, strict=True)).rstrip()
        for line in lines
    )

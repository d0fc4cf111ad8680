"""One function for each figure: data in, a matplotlib `Figure` out; one style, and one look for each method."""

import io
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from dasolib import curves
from dasolib.diagnostics import accuracy, predicted_share
from dasolib.evaluation import LAST
from dasolib.results import (
    MEASURES,
    by_label,
    known_and_unknown,
    last_tests,
    over_seeds,
    unknown_in_bias,
    unknown_in_shares,
)
from dasolib.run_folder import resolve

STYLE = Path(__file__).with_name("figures.mplstyle")
COLUMN, PAGE = 3.25, 6.75  # inches: the width of one column of a paper, and of both
MOST_CLASSES_NAMED = 20  # with more classes an axis has no room for a tick at each
PIXEL_RATIO = 2  # of the screens that figures are sharp on
MOST_IN_A_ROW = 3  # panels of class shares; with more there is no room for their titles

NOTHING_KNOWN = "true classes unknown:\ncounts of predictions only"
TITLES = {"recall": "recall of pseudo-labels", "precision": "precision of pseudo-labels", "accuracy": "test accuracy"}


class Look(NamedTuple):
    """How a method is drawn: told apart by colour, and in black and white by dashes, marker and hatch."""

    color: str
    dashes: str | tuple
    marker: str
    hatch: str


# The colours are those of Okabe and Ito, then the muted and one of the dark ones of Tol: safe for the colour-blind, and
# without the yellow, sand and cyan among them, which are too faint for a line on white paper or too close to another.
BLUE = Look("#0072B2", "-", "o", "")
ORANGE = Look("#E69F00", (0, (4, 1.5)), "s", "/////")
GREEN = Look("#009E73", (0, (5, 1, 1, 1)), "^", "xxxx")
VERMILLION = Look("#D55E00", (0, (1.5, 1)), "D", ".....")
SKY = Look("#56B4E9", (0, (7, 2)), "v", "-----")
PINK = Look("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "P", "+++++")
BLACK = Look("#000000", (0, (1, 1)), "X", "|||||")
OLIVE = Look("#999933", (0, (3, 1, 3, 3)), "<", "\\\\\\\\\\")
WINE = Look("#882255", (0, (2, 2)), ">", "ooo")
GREY = Look("#888888", (0, (8, 1, 1, 1)), "*", "**")
INDIGO = Look("#332288", (0, (3, 1, 1, 1)), "p", "///---")
TEAL = Look("#44AA99", (0, (6, 1, 2, 1)), "h", "\\\\\\|||")
FOREST = Look("#117733", (0, (3, 3)), "d", "OO")
ROSE = Look("#CC6677", (0, (9, 1)), "x", "..")
PURPLE = Look("#AA4499", (0, (2, 1, 4, 1)), "+", "xx--")
BROWN = Look("#663333", (0, (4, 1, 1, 3)), "1", "//..")
ALL_LOOKS = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PINK, BLACK, OLIVE, WINE, GREY, INDIGO, TEAL, FOREST, ROSE, PURPLE,
             BROWN)

# The methods of the paper's tables and figures; those of one base learner, and of one table, have a colour each.
LOOKS = {
    "Supervised": BLACK, "Supervised + LA": OLIVE, "Supervised + CB": WINE, "Supervised + LDAM-DRW": GREY,
    "Supervised + cRT": FOREST,
    "Pseudo-Label": TEAL, "USADTM": ROSE,
    "Mean Teacher": PINK, "Mean Teacher + DASO": FOREST,
    "MixMatch": VERMILLION, "MixMatch + DASO": TEAL,
    "ReMixMatch": SKY, "ReMixMatch + DASO": GREEN, "ReMixMatch + DARP": INDIGO, "ReMixMatch + CReST+": WINE,
    "FixMatch": BLUE, "FixMatch + LA": ORANGE, "FixMatch + DASO": GREEN, "FixMatch + LA + DASO": VERMILLION,
    "FixMatch + CB": SKY, "FixMatch + CB + DASO": PINK, "FixMatch + DA": OLIVE, "FixMatch + DARP": INDIGO,
    "FixMatch + CReST": PURPLE, "FixMatch + CReST+": WINE, "FixMatch + BOSS": BROWN, "FixMatch + ABC": GREY,
    "FixMatch + DASO + ABC": ROSE, "FixMatch + LA + DARP": FOREST, "FixMatch + LA + CReST+": TEAL,
}


def look(label):
    """How a method is drawn in every figure: as `LOOKS` says, or else as follows from its name.

    Parameters
    ----------
    label : str
        From `dasolib.results.method_label`.

    Returns
    -------
    Look
        The same in every figure and process. One that follows from the name has no colour, dashes, marker or hatch of
        its base learner alone and with DASO, and may share some of them with other methods.

    Examples
    --------
    >>> look("FixMatch").color, look("FixMatch + divide_by_prior").color
    ('#0072B2', '#CC79A7')
    """
    if label in LOOKS:
        return LOOKS[label]
    base = label.split(" + ")[0]
    near = [LOOKS[name] for name in (base, f"{base} + DASO") if name in LOOKS]
    number = zlib.crc32(label.encode())  # unlike hash(), the same in every process
    chosen = []
    for values, taken in zip(zip(*ALL_LOOKS, strict=True), zip(*near, strict=True) if near else [()] * 4, strict=True):
        free = [value for value in values if value not in taken]
        number, place = divmod(number, len(free))
        chosen.append(free[place])
    return Look(*chosen)


def pseudo_label_bias(table, *, class_names=None):
    """Draw recall and precision of pseudo-labels and test accuracy, per class and per group (figure 2 of the paper).

    Parameters
    ----------
    table : DataFrame
        From `dasolib.results.bias_table`. A measure that no run has is left out, and so are groups if there are none;
        recall and precision that are missing because no true class is known leave panels that say so.
    class_names : sequence of str, optional
        Default: the class ids.

    Returns
    -------
    Figure
        Upper row: classes, in the order of their ids; lower row: groups. Means over seeds, with the sample standard
        deviation where there are several; a value that does not exist (precision of a class never predicted) leaves a
        gap. At the bottom, for each method, how many pseudo-labels of images of unknown class are left out.

    Raises
    ------
    ValueError
        If the table is empty.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, figures 2 and 5 to 8.
    """
    if table.empty:
        raise ValueError("table has no rows: give at least one finished run")
    methods = table["method"].unique().tolist()
    unknown = unknown_in_bias(table)
    measures = [name for name in MEASURES if table[name].notna().any() or unknown]
    classes = sorted(part for part in table["part"].unique() if isinstance(part, int))
    groups = [part for part in table["part"].unique() if not isinstance(part, int)]
    stats = over_seeds(table)
    n_rows = 2 if groups else 1
    with style.context(STYLE):
        fig = Figure(figsize=(PAGE, 1.75 * n_rows + 0.35), layout="constrained")
        axes = fig.subplots(n_rows, len(measures), sharey=True, squeeze=False)
        for column, measure in enumerate(measures):
            top = axes[0, column]
            for method in methods:
                mean, std = (stats[name][measure].loc[method].reindex(classes).to_numpy() for name in ("mean", "std"))
                _line(top, np.array(classes), mean, std, method, marker=True)
            top.set_title(TITLES[measure])
            top.set_xlabel("class")
            _class_ticks(top.xaxis, len(classes), class_names)
            if groups:
                _group_bars(axes[1, column], stats, measure, methods, groups)
            if table[measure].isna().all():
                for ax in axes[:, column]:
                    ax.text(0.5, 0.5, NOTHING_KNOWN, transform=ax.transAxes, ha="center", va="center", fontsize=7)
        for ax in axes[:, 0]:
            ax.set_ylabel("%")
        axes[0, 0].set_ylim(0, 1)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        n_seeds = table.groupby("method", sort=False)["seed"].nunique()
        _legend_above(fig, axes[0, 0], n_seeds)
        _note_below(fig, "\n".join(unknown.values()))
    return fig


def linear_against_semantic(linear, semantic, *, class_names=None):
    """Draw the confusion of linear and of semantic pseudo-labels of one DASO run, side by side.

    Parameters
    ----------
    linear, semantic : ndarray of shape (K, K) or (K + 1, K)
        Counts, row = true class, column = pseudo-label; a last row for images of unknown class.
    class_names : sequence of str, optional
        Default: the class ids.

    Returns
    -------
    Figure
        Shares of each row, in percent; they are written into the cells where there are at most 10 classes. A class
        without images leaves a row without colour. If the class of some images is unknown, a last row has the shares of
        their pseudo-labels; if that of all is, a text in the empty rows says so.

    Raises
    ------
    ValueError
        If there are no counts, as in a run without semantic pseudo-labels.
    """
    panels = {}
    for name, counts in (("linear", linear), ("semantic", semantic)):
        known, unknown = known_and_unknown(counts)
        if known + unknown == 0:
            raise ValueError(f"{name} counts no pseudo-labels")
        more = f"\nand {unknown:,} of unknown class" if unknown else ""
        panels[f"{name} pseudo-labels ({known:,}){more}"] = counts
    return _confusions(panels, "pseudo-label", class_names, size=(PAGE, 3.4))


def confusion(runs, *, class_names=None):
    """Draw the confusion of test images, a panel for each method (figure 9 of the paper).

    Parameters
    ----------
    runs : list of dasolib.results.Run
        The counts of the last 20 evaluations of a method's runs are added up.
    class_names : sequence of str, optional
        Default: the class ids.

    Returns
    -------
    Figure
        Shares of each row, as in `linear_against_semantic`.

    Raises
    ------
    ValueError
        If there are no runs, or one without an evaluation.
    """
    methods = by_label(runs)
    panels = {_with_seeds(method, len(members)): last_tests(members) for method, members in methods.items()}
    size = (PAGE, 0.55 + 5.7 / len(panels)) if len(panels) > 1 else (4.0, 3.4)
    return _confusions(panels, "prediction", class_names, size=size)


def class_distribution(runs, *, class_names=None):
    """Draw the share of each class among the final pseudo-labels over training, beside the true one, a panel a method.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Several runs of one method are counted together, up to the last step that all of them reached.
    class_names : sequence of str, optional
        Default: the class ids.

    Returns
    -------
    Figure
        Stacked shares, the first class at the bottom and darkest, of all pseudo-labels, confident or not, three methods
        in a row; the bar beside each panel holds the true classes of the same images, where they are known, or a text
        where none is. At the bottom, for each method, how many pseudo-labels the bar leaves out.

    Raises
    ------
    ValueError
        If there are no runs, or one without pseudo-labels.
    """
    methods, notes = by_label(runs), []
    with style.context(STYLE):
        n_columns = min(len(methods), MOST_IN_A_ROW)
        n_rows = math.ceil(len(methods) / n_columns)
        fig = Figure(figsize=(PAGE, 2.2 * n_rows), layout="constrained")
        grid = fig.subplots(n_rows, 2 * n_columns, sharey=True, width_ratios=[12, 1] * n_columns, squeeze=False)
        axes, unused = np.split(grid.ravel(), [2 * len(methods)])
        for ax in unused:
            ax.remove()
        for (method, members), ax, beside in zip(methods.items(), axes[::2], axes[1::2], strict=True):
            steps, counts = _aligned(members, lambda run: run.pseudo_labels("final"))
            counts = counts.sum(axis=0)  # over seeds
            if counts.sum() == 0:
                raise ValueError(f"runs of {method} have no pseudo-labels")
            k = counts.shape[-1]
            colors = mpl.colormaps["cividis"](np.linspace(0, 1, k))
            # Where shares swing from window to window, edges would hide thin layers.
            ax.stackplot(steps, predicted_share(counts).T, colors=colors, linewidth=0)
            true = counts[:, :k].sum(axis=(0, 2))
            bottom = 0.0
            for share, color in zip(true / true.sum(), colors, strict=True) if true.sum() else ():
                beside.bar(0, share, width=1, bottom=bottom, color=color, edgecolor="white", linewidth=0.25)
                bottom += share
            if not true.sum():
                beside.text(0, 0.5, "true classes unknown", rotation=90, ha="center", va="center", fontsize=6)
            note = unknown_in_shares(*known_and_unknown(counts.sum(axis=0)))
            if note:
                notes.append(f"{method}, {note}")
            beside.set(xticks=[0], xticklabels=["true"], xlim=(-0.5, 0.5))
            ax.set(title=_with_seeds(method, len(members)), xlabel="step", xlim=(0, steps[-1]), ylim=(0, 1))
            ax.set_xticks([0, steps[-1] // 2, steps[-1]])
            ax.get_xticklabels()[-1].set_horizontalalignment("right")  # clear of the bar's own label
            for each in (ax, beside):
                each.grid(False)
                each.tick_params(axis="y", length=0 if each is beside else 2.5)
        for ax in grid[:, 0]:
            ax.set_ylabel("share of pseudo-labels (%)")
        axes[0].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        edges = mpl.colors.BoundaryNorm(np.arange(k + 1) - 0.5, k)
        scale = mpl.cm.ScalarMappable(norm=edges, cmap=mpl.colors.ListedColormap(colors))
        bar = fig.colorbar(scale, ax=axes.tolist(), pad=0.015, label="class")
        bar.outline.set_visible(False)
        bar.minorticks_off()
        bar.ax.tick_params(length=0)
        _class_ticks(bar.ax.yaxis, k, class_names)
        _note_below(fig, "\n".join(notes))
    return fig


def accuracy_curves(runs, *, adjusted=False):
    """Draw test accuracy over training, a line for each method.

    Parameters
    ----------
    runs : list of dasolib.results.Run
        Several runs of one method are averaged, up to the last step that all of them reached.
    adjusted : bool
        With logit adjustment at test time.

    Returns
    -------
    Figure
        Mean over seeds, a band of one sample standard deviation where there are several, and a grey field over the last
        20 evaluations of finished runs, whose median is the number that is reported. The evaluations before it may be
        on a part of the test images, and scatter more.

    Raises
    ------
    ValueError
        If there are no runs, or one without an evaluation.
    """
    methods = by_label(runs)
    with style.context(STYLE):
        fig = Figure(figsize=(COLUMN, 2.9), layout="constrained")
        ax = fig.subplots()
        for method, members in methods.items():
            steps, counts = _aligned(members, lambda run: run.counts["test_adjusted" if adjusted else "test"])
            curves = accuracy(counts)  # (n_seeds, n_evaluations)
            std = curves.std(axis=0, ddof=1) if len(members) > 1 else np.full(len(steps), np.nan)
            _line(ax, steps, curves.mean(axis=0), std, method, marker=False)
        finished = [run.counts["step"] for run in runs if run.result is not None]
        for i, (first, last) in enumerate(sorted({(int(steps[-LAST:][0]), int(steps[-1])) for steps in finished})):
            ax.axvspan(first, last, color="#e8e8e8", linewidth=0, zorder=0,
                       label=f"last {LAST} evaluations" if i == 0 else None)
        ax.set(xlabel="step", ylabel="test accuracy (%)", ylim=(0, 1))
        if adjusted:
            ax.set_ylabel("test accuracy with LA at test time (%)")
        ax.set_xlim(0, max(run.counts["step"][-1] for run in runs))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        _legend_above(fig, ax, {method: len(members) for method, members in methods.items()}, columns=1)
    return fig


def training_curves(table):
    """Draw recall of pseudo-labels and test accuracy over training, of majority, minority and all classes (figure 3).

    Parameters
    ----------
    table : DataFrame
        From `dasolib.curves.curve_table`.

    Returns
    -------
    Figure
        A column for each part of the classes; above recall of the pseudo-labels in a window, below test accuracy; means
        over seeds, with a band of one sample standard deviation where there are several. A measure that no run has is
        left out.

    Raises
    ------
    ValueError
        If the table is empty.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, figures 3 and 10.
    """
    if table.empty:
        raise ValueError("table has no rows: give at least one finished run")
    measures = [measure for measure in curves.MEASURES if table[measure].notna().any()]
    with style.context(STYLE):
        fig = Figure(figsize=(PAGE, 1.75 * len(measures) + 0.35), layout="constrained")
        axes = fig.subplots(len(measures), len(curves.PARTS), sharex=True, sharey=True, squeeze=False)
        for row, measure in zip(axes, measures, strict=True):
            mean, std = curves.mean_curves(table, measure)
            for ax, part in zip(row, curves.PARTS, strict=True):
                for method in table["method"].unique():
                    values = mean.loc[method, part]
                    _line(ax, values.index.to_numpy(), values.to_numpy(), std.loc[method, part].to_numpy(), method,
                          marker=False)
            row[0].set_ylabel(f"{TITLES[measure]} (%)".replace("recall of", "recall of\n"))
        for ax, part in zip(axes[0], curves.PARTS, strict=True):
            ax.set_title(f"{part} classes")
        for ax in axes[-1]:
            ax.set(xlabel="step", xlim=(0, table["step"].max()), ylim=(0, 1))
            ax.xaxis.set_major_locator(MaxNLocator(3))  # no label at the right end, where the next panel begins
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        _legend_above(fig, axes[0, 0], table.groupby("method", sort=False)["seed"].nunique())
    return fig


def features(table, *, class_names=None):
    """Draw maps of the features of unlabeled images, a panel for each method (figure 4 of the paper).

    Parameters
    ----------
    table : DataFrame
        From `dasolib.outputs.feature_map`, of one or several runs.
    class_names : sequence of str, optional
        Default: the class ids.

    Returns
    -------
    Figure
        A dot for each image in the colour of its true class, grey where that is unknown; of its pseudo-label where no
        class is known, as the title then says. The axes of t-SNE have no unit and no meaning of their own.

    Raises
    ------
    ValueError
        If the table is empty.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, figures 4 and 11.
    """
    if table.empty:
        raise ValueError("table has no rows: give at least one run with outputs")
    methods = table["method"].unique()
    by = "target" if (table["target"] >= 0).any() else "label"
    k = max(table["target"].max(), table["label"].max()) + 1 if class_names is None else len(class_names)
    colors = mpl.colormaps["tab10" if k <= 10 else "turbo"](np.arange(k) if k <= 10 else np.linspace(0, 1, k))
    with style.context(STYLE):
        fig = Figure(figsize=(PAGE, 0.35 + 2.9 * 2 / max(2, len(methods))), layout="constrained")
        axes = fig.subplots(1, len(methods), squeeze=False)[0]
        for ax, method in zip(axes, methods, strict=True):
            part = table[table["method"] == method]
            shades = np.where((part[by] < 0).to_numpy()[:, None], mpl.colors.to_rgba("#cccccc"),
                              colors[part[by].to_numpy()])
            ax.scatter(part["x"], part["y"], c=shades, s=4, linewidths=0)
            ax.set(title=method, xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        edges = mpl.colors.BoundaryNorm(np.arange(k + 1) - 0.5, k)
        scale = mpl.cm.ScalarMappable(norm=edges, cmap=mpl.colors.ListedColormap(colors))
        bar = fig.colorbar(scale, ax=axes.tolist(), pad=0.015,
                           label="true class" if by == "target" else "pseudo-label (true classes unknown)")
        bar.outline.set_visible(False)
        bar.minorticks_off()
        bar.ax.tick_params(length=0)
        _class_ticks(bar.ax.yaxis, k, class_names)
    return fig


def open_set(table):
    """Draw the entropy of predictions for images of known and of unknown classes (figure 12 of the paper).

    Parameters
    ----------
    table : DataFrame
        From `dasolib.outputs.entropy_table`, of one or several runs.

    Returns
    -------
    Figure
        A panel for each method; shares of the images of each kind in 25 bins of equal width. A kind without images is
        left out.

    Raises
    ------
    ValueError
        If the table is empty.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, figure 12.
    """
    if table.empty:
        raise ValueError("table has no rows: give at least one run with outputs")
    methods, edges = table["method"].unique(), np.linspace(0, 1, 26)
    with style.context(STYLE):
        fig = Figure(figsize=(PAGE if len(methods) > 1 else COLUMN, 2.3), layout="constrained")
        axes = fig.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for ax, method in zip(axes, methods, strict=True):
            part = table[table["method"] == method]
            for name, is_known, (color, dashes, _, _) in (("known", True, BLUE), ("unknown", False, ORANGE)):
                values = part.loc[part["is_known"] == is_known, "entropy"]
                shares = np.histogram(values, edges)[0] / max(1, len(values))
                if len(values):
                    ax.stairs(shares, edges, color=color, alpha=0.25, fill=True)
                    ax.stairs(shares, edges, color=color, linestyle=dashes, linewidth=1.2,
                              label=f"{name} classes ({len(values):,})")
            ax.set(title=method, xlabel="entropy (% of the uniform distribution's)", xlim=(0, 1))
            ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
            ax.legend(loc="upper right")
        axes[0].set_ylim(top=1.25 * axes[0].get_ylim()[1])  # room for the legends above the highest share
        axes[0].set_ylabel("share of these images (%)")
        axes[0].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    return fig


def png(fig):
    r"""PNG of a figure as bytes, twice its size in pixels, for sharp screens, in at most 256 colours, for small files.

    Examples
    --------
    >>> png(Figure(figsize=(1, 1)))[:4]
    b'\x89PNG'
    """
    full, small = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png", dpi=PIXEL_RATIO * fig.dpi)
    picture = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def save(fig, folder, name):
    """Write a figure as ``<folder>/<name>.png``; does nothing if `folder` is empty."""
    if folder:
        path = resolve(folder) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(fig))


def shown_size(fig):
    """Width and height in which a page shows a figure, in its own pixels, of which a sharp screen has several each."""
    width, height = fig.get_size_inches() * fig.dpi
    return {"width": round(width), "height": round(height)}


def show_in(ipython):
    """Have a notebook show figures as `png` makes them; `ipython` is its ``get_ipython()``."""
    ipython.display_formatter.formatters["image/png"].for_type(Figure, lambda fig: (png(fig), shown_size(fig)))


def _aligned(runs, arrays_of):
    """Return steps that all runs were evaluated at, and their arrays there: (n_steps,), (n_runs, n_steps, ...)."""
    n = min(len(run.counts["step"]) for run in runs)
    steps = runs[0].counts["step"][:n]
    for run in runs[1:]:
        if not np.array_equal(run.counts["step"][:n], steps):
            raise ValueError(f"runs {runs[0].name} and {run.name} were evaluated at different steps; draw them apart")
    return steps, np.stack([arrays_of(run)[:n] for run in runs])


def _line(ax, x, mean, std, method, *, marker):
    """Draw the means (n,) of a method over x (n,), and a band of the standard deviations that are not NaN."""
    color, dashes, symbol, _ = look(method)
    ax.plot(x, mean, color=color, linestyle=dashes, marker=symbol if marker else None, label=method,
            clip_on=not marker)  # a marker at 0 or 100 % is drawn whole
    if not np.isnan(std).all():
        ax.fill_between(x, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)


def _confusions(panels, xlabel, class_names, *, size):
    """Draw shares of the rows of counts (K, K) or (K + 1, K), a panel each with its title."""
    has_unknown = any(known_and_unknown(counts)[1] for counts in panels.values())
    with style.context(STYLE):
        fig = Figure(figsize=size, layout="constrained")
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (title, counts) in zip(axes, panels.items(), strict=True):
            k = counts.shape[-1]
            rows = np.zeros((k + has_unknown, k))
            rows[:len(counts)] = counts[:len(rows)]
            total = rows.sum(axis=1, keepdims=True)
            shares = np.divide(rows, total, out=np.full(rows.shape, np.nan), where=total > 0)
            picture = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            for row, column in np.argwhere(~np.isnan(shares)) if k <= 10 else ():
                share = shares[row, column]
                ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center",
                        fontsize=6 if len(panels) < 3 else 5, color="white" if share > 0.6 else "black")
            if not known_and_unknown(counts)[0]:
                ax.text((k - 1) / 2, (k - 1) / 2, NOTHING_KNOWN, ha="center", va="center", fontsize=7)
            ax.set(title=title, xlabel=xlabel)
            ax.grid(False)
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0)
            _class_ticks(ax.xaxis, k, class_names)
        _class_ticks(axes[0].yaxis, k, class_names, unknown_last=has_unknown)
        axes[0].set_ylabel("true class")
        bar = fig.colorbar(picture, ax=axes.tolist(), shrink=0.9, pad=0.015, format=PercentFormatter(1, symbol=""))
        bar.set_label("share of the true class (%)")
        bar.outline.set_visible(False)
    return fig


def _group_bars(ax, stats, measure, methods, groups):
    """Draw a bar for each method within each group of classes."""
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        mean, std = (stats[name][measure].loc[method].reindex(groups).to_numpy() for name in ("mean", "std"))
        at = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * width
        ax.bar(at, mean, 0.92 * width, color=look(method).color, hatch=look(method).hatch, edgecolor="white",
               linewidth=0, label=method)
        if not np.isnan(std).all():
            ax.errorbar(at, mean, std, fmt="none", ecolor="black", elinewidth=0.7)
        if np.isnan(mean).any():
            ax.set_xlim(-0.52, len(groups) - 0.48)  # as wide as with all bars; a missing one would not count
    ax.set_xticks(range(len(groups)), groups)
    ax.set_xlabel("classes, by labeled frequency")
    ax.tick_params(axis="x", length=0)


def _class_ticks(axis, n_classes, names, *, unknown_last=False):
    """Put a tick at each class, or some where there are many, and one at the images of unknown class after the last."""
    if names is not None and len(names) != n_classes:
        raise ValueError(f"class_names has {len(names)} names for {n_classes} classes")
    ticks, labels = list(range(n_classes)), names or [str(k) for k in range(n_classes)]
    if n_classes > MOST_CLASSES_NAMED:
        if not unknown_last:
            axis.set_major_locator(MaxNLocator(6, integer=True))
            return
        ticks = [int(k) for k in MaxNLocator(6, integer=True).tick_values(0, n_classes) if k < 0.95 * n_classes]
        labels = [str(k) for k in ticks]
    more = ([n_classes], ["unknown"]) if unknown_last else ([], [])
    upright = names is not None and axis.axis_name == "x"
    axis.set_ticks([*ticks, *more[0]], [*labels, *more[1]], rotation=90 if upright else 0)


def _with_seeds(method, n):
    return f"{method} ({n} seed{'s' if n > 1 else ''})"


def _legend_above(fig, ax, n_seeds, columns=3):
    """Name the methods and their number of seeds above the panels, where no data are."""
    handles, labels = ax.get_legend_handles_labels()
    names = [_with_seeds(label, n_seeds[label]) if label in n_seeds else label for label in labels]
    fig.legend(handles, names, loc="outside upper center", ncols=min(columns, len(names)))


def _note_below(fig, text):
    """Write small text at the bottom of the figure, which grows by its lines."""
    if text:
        width, height = fig.get_size_inches()
        fig.set_size_inches(width, height + 0.13 * (text.count("\n") + 1))
        fig.supxlabel(text, fontsize=6)

"""Figures hold the numbers they should, read back from what is drawn, and a method looks the same in all of them."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import same_color
from PIL import Image

from dasolib import plots
from dasolib.curves import curve_table
from dasolib.results import bias_table, method_label
from tests.hand_made import FINAL, TEST, counts_of, make_run
from tests.test_results import ALL_UNKNOWN, BETTER, SOME_UNKNOWN, legal_combinations

TABLE_1 = ["Supervised", "Supervised + LA", "FixMatch", "FixMatch + DARP", "FixMatch + CReST+", "FixMatch + DASO",
           "FixMatch + LA", "FixMatch + LA + DARP", "FixMatch + LA + CReST+", "FixMatch + LA + DASO", "FixMatch + ABC",
           "FixMatch + DASO + ABC"]
TABLE_2 = ["FixMatch", "FixMatch + DARP", "FixMatch + CReST", "FixMatch + CReST+", "FixMatch + DASO"]
TABLE_3 = [label + more for label in ("Mean Teacher", "MixMatch", "ReMixMatch") for more in ("", " + DASO")]
TABLE_4 = ["Supervised", *TABLE_2]
TABLE_11 = [*TABLE_4, "Supervised + LA", "Supervised + LDAM-DRW", "Supervised + cRT", "Pseudo-Label", "USADTM",
            "FixMatch + LA", "FixMatch + CB", "FixMatch + BOSS", "FixMatch + LA + DASO", "FixMatch + CB + DASO"]
TABLE_13 = ["ReMixMatch", "ReMixMatch + DARP", "ReMixMatch + CReST+", "ReMixMatch + DASO"]
FIGURE_5 = ["FixMatch", "FixMatch + DASO", "USADTM"]

SEMANTIC = counts_of([5, 5, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 1, 4])  # no image of class 2


@pytest.fixture
def runs(tmp_path):
    """FixMatch with two seeds, FixMatch + DASO with one."""
    return [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, test=BETTER),
            make_run(tmp_path, rebalance="daso", semantic=SEMANTIC)]


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def bars_of(ax):
    return {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers if hasattr(bars, "patches")}


def legend_texts(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_every_legal_combination_looks_unlike_the_others_of_its_base_learner():
    labels = [method_label(method, names) for method, names in legal_combinations()]
    assert set(plots.LOOKS) <= set(labels)
    for base in {label.split(" + ")[0] for label in labels}:
        looks = [plots.look(label) for label in labels if label.split(" + ")[0] == base]
        assert len(set(looks)) == len(looks), base


def test_looks_that_are_given_differ_in_every_aspect_within_a_base_learner():
    assert all(len(set(values)) == len(plots.ALL_LOOKS) for values in zip(*plots.ALL_LOOKS, strict=True))
    for base in {label.split(" + ")[0] for label in plots.LOOKS}:
        looks = [look for label, look in plots.LOOKS.items() if label.split(" + ")[0] == base]
        for aspect in ("color", "dashes", "marker", "hatch"):
            assert len({getattr(look, aspect) for look in looks}) == len(looks), (base, aspect)


@pytest.mark.parametrize("labels", [TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_11, TABLE_13, FIGURE_5])
def test_methods_that_the_paper_compares_have_a_colour_each(labels):
    assert len({plots.LOOKS[label].color for label in labels}) == len(labels)


def test_an_own_method_keeps_one_look_unlike_its_base_learner_alone_and_with_daso():
    assert plots.look("FixMatch + divide_by_prior") == ("#CC79A7", (0, (1, 1)), "p", "OO")  # in every process
    for label in (f"{base} + own_{i}" for base in ("FixMatch", "MixMatch", "Supervised") for i in range(200)):
        base = label.split(" + ")[0]
        for near in {base, f"{base} + DASO"} & set(plots.LOOKS):
            pairs = zip(plots.look(label), plots.LOOKS[near], strict=True)
            assert not any(own == other for own, other in pairs), (label, near)


def test_derived_looks_use_all_colours():
    colors = {plots.look(f"USADTM + own_{i}").color for i in range(300)}
    assert colors == {look.color for look in plots.ALL_LOOKS} - {plots.look("USADTM").color}


def test_a_figure_of_an_own_method_is_drawn(tmp_path):
    table = bias_table([make_run(tmp_path)])
    fig = plots.pseudo_label_bias(table.assign(method="FixMatch + own"))
    assert same_color(lines_of(fig.axes[0])["FixMatch + own"].get_color(), plots.look("FixMatch + own").color)


def test_bias_figure_shows_the_numbers_of_its_table(runs):
    fig = plots.pseudo_label_bias(bias_table(runs))
    recall, precision, accuracy, recall_groups, precision_groups, accuracy_groups = fig.axes
    assert [ax.get_title() for ax in fig.axes[:3]] == [
        "recall of pseudo-labels", "precision of pseudo-labels", "test accuracy"]
    np.testing.assert_allclose(lines_of(recall)["FixMatch"].get_ydata(), [0.8, 0.5, 0.5, 0.4])
    np.testing.assert_allclose(lines_of(precision)["FixMatch + DASO"].get_ydata(), [8 / 14, 1, 1, 0.5])
    np.testing.assert_allclose(lines_of(accuracy)["FixMatch"].get_ydata(), [0.9, 0.9, 0.8, 0.3])
    np.testing.assert_allclose(bars_of(recall_groups)["FixMatch"], [0.8, 0.5, 0.4])
    np.testing.assert_allclose(bars_of(precision_groups)["FixMatch + DASO"], [8 / 14, 1, 0.5])
    np.testing.assert_allclose(bars_of(accuracy_groups)["FixMatch"], [0.9, 0.85, 0.3])
    assert not lines_of(recall)["FixMatch"].get_clip_on()  # a marker at 0 or 100 % is whole
    assert [text.get_text() for text in recall_groups.get_xticklabels()] == ["head", "medium", "tail"]


def test_figures_fit_a_column_and_state_range_unit_and_seeds(runs):
    fig = plots.pseudo_label_bias(bias_table(runs))
    assert fig.get_size_inches()[0] == 6.75
    assert fig.axes[0].get_ylim() == (0, 1)
    assert fig.axes[0].get_ylabel() == "%"
    assert fig.axes[0].yaxis.get_major_formatter()(0.5) == "50"
    assert legend_texts(fig) == ["FixMatch (2 seeds)", "FixMatch + DASO (1 seed)"]
    curves = plots.accuracy_curves(runs)
    assert curves.get_size_inches()[0] == 3.25
    assert (curves.axes[0].get_xlabel(), curves.axes[0].get_ylabel()) == ("step", "test accuracy (%)")
    assert legend_texts(curves) == ["FixMatch (2 seeds)", "FixMatch + DASO (1 seed)", "last 20 evaluations"]


def test_spread_is_drawn_exactly_where_there_are_several_seeds(runs):
    several = plots.pseudo_label_bias(bias_table(runs[:2]))
    one = plots.pseudo_label_bias(bias_table(runs[2:]))
    assert [len(ax.collections) > 0 for ax in several.axes] == [True] * 6
    assert [len(ax.collections) for ax in one.axes] == [0] * 6
    (band,) = plots.accuracy_curves(runs[:2]).axes[0].collections
    low, high = band.get_datalim(band.axes.transData).intervaly
    np.testing.assert_allclose([low, high], 0.725 + np.array([-1, 1]) * 0.15 / 2**0.5)


def test_a_run_without_pseudo_labels_shows_its_test_accuracy_alone(tmp_path):
    table = bias_table([make_run(tmp_path, final=0 * FINAL)])
    assert [ax.get_title() for ax in plots.pseudo_label_bias(table).axes] == ["test accuracy", ""]


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def test_bias_figure_says_that_no_true_class_is_known_in_place_of_recall_and_precision(tmp_path):
    fig = plots.pseudo_label_bias(bias_table([make_run(tmp_path, final=ALL_UNKNOWN)]))
    assert [ax.get_title() for ax in fig.axes[:3]] == [
        "recall of pseudo-labels", "precision of pseudo-labels", "test accuracy"]
    empty = ["true classes unknown:\ncounts of predictions only"]
    assert [texts_of(ax) for ax in fig.axes] == [empty, empty, []] * 2
    np.testing.assert_allclose(lines_of(fig.axes[2])["FixMatch"].get_ydata(), [0.9, 0.8, 0.6, 0.3])
    assert "63 pseudo-labels, counts of predictions only" in fig.get_supxlabel()


def test_figures_say_how_many_pseudo_labels_of_unknown_class_are_left_out(tmp_path, runs):
    some = [make_run(tmp_path / "some", final=SOME_UNKNOWN), runs[2]]
    bias, classes = plots.pseudo_label_bias(bias_table(some)), plots.class_distribution(some)
    np.testing.assert_allclose(lines_of(bias.axes[0])["FixMatch"].get_ydata(), [0.8, 0.5, 0.5, 0.4])
    assert not any(texts_of(ax) for ax in bias.axes + classes.axes)
    assert bias.get_supxlabel() == (
        "FixMatch: 15 of 78 pseudo-labels left out of recall and precision: true class unknown")
    assert classes.get_supxlabel() == "FixMatch, true: without 15 of 78 pseudo-labels, whose true class is unknown"
    np.testing.assert_allclose([bar.get_height() for bar in classes.axes[1].patches], np.array([10, 4, 2, 5]) / 21)
    assert plots.pseudo_label_bias(bias_table(runs)).get_supxlabel() == ""
    assert plots.class_distribution(runs).get_supxlabel() == ""


def test_distribution_without_known_classes_has_a_text_in_place_of_the_true_bar(tmp_path):
    fig = plots.class_distribution([make_run(tmp_path, final=ALL_UNKNOWN)])
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in fig.axes[0].collections]
    np.testing.assert_allclose(tops, np.cumsum([14, 2, 1, 4]) / 21)
    assert len(fig.axes[1].patches) == 0
    assert texts_of(fig.axes[1]) == ["true classes unknown"]
    assert fig.get_supxlabel() == "FixMatch, true: unknown for all 63 pseudo-labels, counts of predictions only"


def test_confusion_shows_images_of_unknown_class_in_a_row_of_their_own():
    fig = plots.linear_against_semantic(SOME_UNKNOWN, FINAL)
    linear, semantic = (ax.images[0].get_array() for ax in fig.axes[:2])
    np.testing.assert_allclose(np.diagonal(linear), [0.8, 0.5, 0.5, 0.4])
    np.testing.assert_allclose(linear[4], [0.6, 0, 0.4, 0])
    assert np.ma.getmaskarray(semantic)[4].all()
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["0", "1", "2", "3", "unknown"]
    assert [ax.get_title() for ax in fig.axes[:2]] == [
        "linear pseudo-labels (21)\nand 5 of unknown class", "semantic pseudo-labels (21)"]
    assert linear.shape == semantic.shape == (5, 4)


def test_confusion_without_known_classes_says_so_above_the_shares_of_predictions():
    fig = plots.linear_against_semantic(ALL_UNKNOWN, ALL_UNKNOWN)
    shares = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares[4], np.array([14, 2, 1, 4]) / 21)
    assert np.ma.getmaskarray(shares)[:4].all()
    assert "true classes unknown:\ncounts of predictions only" in texts_of(fig.axes[0])


def test_with_many_classes_the_unknown_row_keeps_its_name():
    counts = np.ones((101, 100), dtype=int)
    ax = plots.linear_against_semantic(counts, counts).axes[0]
    ticks = {text.get_text(): text.get_position()[1] for text in ax.get_yticklabels()}
    assert ticks["unknown"] == 100 and ticks["80"] == 80 and "100" not in ticks


def test_runs_without_groups_have_one_row_of_panels(runs):
    table = bias_table(runs)
    fig = plots.pseudo_label_bias(table[table["part"].map(lambda part: isinstance(part, int))])
    assert len(fig.axes) == 3


def test_a_method_has_one_colour_in_all_figures(runs):
    bias, curves = plots.pseudo_label_bias(bias_table(runs)), plots.accuracy_curves(runs[::-1])
    for label in ("FixMatch", "FixMatch + DASO"):
        expected = plots.look(label).color
        assert same_color(lines_of(bias.axes[0])[label].get_color(), expected)
        assert same_color(lines_of(curves.axes[0])[label].get_color(), expected)
        (bars,) = [bars for bars in bias.axes[3].containers if bars.get_label() == label]
        assert all(same_color(bar.get_facecolor(), expected) for bar in bars)
        assert all(bar.get_hatch() == plots.look(label).hatch for bar in bars)


def test_confusion_has_row_shares_with_empty_classes_blank(runs):
    fig = plots.linear_against_semantic(runs[2].last_pseudo_labels("linear"), runs[2].last_pseudo_labels("semantic"))
    linear, semantic = (ax.images[0].get_array() for ax in fig.axes[:2])
    np.testing.assert_allclose(np.diagonal(linear), [0.8, 0.5, 0.5, 0.4])
    np.testing.assert_allclose(linear[0], [0.8, 0, 0, 0.2])
    np.testing.assert_allclose(semantic[0], [0.5, 0.5, 0, 0])
    assert np.ma.getmaskarray(semantic)[2].all()
    written = {text.get_position(): text.get_text() for text in fig.axes[1].texts}
    assert (written[(0, 0)], written[(3, 3)], written[(2, 3)]) == ("50", "80", "20")
    assert not any(row == 2 for _, row in written)
    assert fig.axes[1].get_title() == "semantic pseudo-labels (57)"  # 19 in each of 3 windows
    assert fig.axes[0].images[0].get_clim() == fig.axes[1].images[0].get_clim() == (0, 1)


def test_the_confusion_colours_only_get_darker(runs):
    fig = plots.linear_against_semantic(FINAL, FINAL)
    grey = fig.axes[0].images[0].cmap(np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all()


def test_confusion_of_a_run_without_semantic_labels_is_refused(runs):
    with pytest.raises(ValueError, match="semantic counts no pseudo-labels"):
        plots.linear_against_semantic(runs[0].last_pseudo_labels("linear"), runs[0].last_pseudo_labels("semantic"))


def test_distribution_stacks_the_shares_beside_the_true_ones(runs):
    fig = plots.class_distribution(runs)
    assert [ax.get_title() for ax in fig.axes[:4:2]] == ["FixMatch (2 seeds)", "FixMatch + DASO (1 seed)"]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in fig.axes[0].collections]
    np.testing.assert_allclose(tops, np.cumsum([14, 2, 1, 4]) / 21)
    np.testing.assert_allclose([bar.get_height() for bar in fig.axes[1].patches], np.array([10, 4, 2, 5]) / 21)
    areas = [area.get_facecolor()[0] for area in fig.axes[0].collections]
    assert all(same_color(a, bar.get_facecolor()) for a, bar in zip(areas, fig.axes[1].patches, strict=True))


def test_shares_of_a_fourth_method_stand_in_another_row(tmp_path):
    fig = plots.class_distribution([make_run(tmp_path, rebalance=names) for names in ("", "la", "daso", "abc")])
    panels, beside, (bar,) = fig.axes[:8:2], fig.axes[1:8:2], fig.axes[8:]
    assert [ax.get_title() for ax in panels] == [
        f"FixMatch{more} (1 seed)" for more in ("", " + LA", " + DASO", " + ABC")]
    assert [ax.get_subplotspec().rowspan.start for ax in panels] == [0, 0, 0, 1]
    assert [ax.get_ylabel() for ax in panels] == ["share of pseudo-labels (%)", "", "", "share of pseudo-labels (%)"]
    assert all(len(ax.patches) == 4 for ax in beside) and bar.get_ylabel() == "class"
    np.testing.assert_allclose(fig.get_size_inches(), [6.75, 4.4])


def test_curves_average_up_to_the_last_step_that_all_seeds_reached(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, test=BETTER, evaluations=2, finished=False)]
    line = lines_of(plots.accuracy_curves(runs).axes[0])["FixMatch"]
    np.testing.assert_allclose(line.get_xdata(), [10, 20])
    np.testing.assert_allclose(line.get_ydata(), [0.725, 0.725])


def test_class_names_label_the_classes_and_a_wrong_number_is_refused(runs):
    names = ["cat", "dog", "owl", "elk"]
    fig = plots.linear_against_semantic(FINAL, FINAL, class_names=names)
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == names
    with pytest.raises(ValueError, match="class_names has 4 names for 3 classes"):
        plots.linear_against_semantic(TEST[:3, :3], TEST[:3, :3], class_names=names)


def test_figures_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="table has no rows"):
        plots.pseudo_label_bias(bias_table([]))
    for figure in (plots.class_distribution, plots.accuracy_curves, plots.confusion):
        with pytest.raises(ValueError, match="runs is empty"):
            figure([])
        with pytest.raises(ValueError, match="has no evaluation yet"):
            figure([make_run(tmp_path / figure.__name__, evaluations=0, finished=False)])


def test_training_curves_show_parts_of_the_classes_over_steps(runs):
    fig = plots.training_curves(curve_table(runs))
    assert [ax.get_title() for ax in fig.axes[:3]] == ["majority classes", "minority classes", "all classes"]
    recall_of_minority, accuracy_of_all = fig.axes[1], fig.axes[5]
    np.testing.assert_allclose(lines_of(recall_of_minority)["FixMatch"].get_xydata(), [[10, 0.4], [20, 0.4], [30, 0.4]])
    np.testing.assert_allclose(lines_of(accuracy_of_all)["FixMatch"].get_ydata(), [0.725] * 3)
    assert [len(ax.collections) for ax in fig.axes] == [1] * 6  # a band where there are two seeds
    assert legend_texts(fig) == ["FixMatch (2 seeds)", "FixMatch + DASO (1 seed)"]
    assert fig.axes[3].get_ylabel() == "test accuracy (%)" and fig.axes[5].get_xlabel() == "step"


def test_training_curves_without_pseudo_labels_have_one_row(tmp_path):
    fig = plots.training_curves(curve_table([make_run(tmp_path, final=0 * FINAL)]))
    assert [ax.get_ylabel() for ax in fig.axes] == ["test accuracy (%)", "", ""]


def test_confusion_of_tests_has_a_panel_for_each_method(runs):
    fig = plots.confusion(runs)
    fixmatch, daso = (ax.images[0].get_array() for ax in fig.axes[:2])
    np.testing.assert_allclose(np.diagonal(fixmatch), [0.9, 0.9, 0.8, 0.3])  # of TEST and BETTER together
    np.testing.assert_allclose(daso, TEST / 10)
    assert [ax.get_title() for ax in fig.axes[:2]] == ["FixMatch (2 seeds)", "FixMatch + DASO (1 seed)"]
    assert fig.axes[0].get_xlabel() == "prediction"
    assert len(plots.confusion(runs[:2]).axes) == 2  # one and its colour bar


MAP = pd.DataFrame({"method": ["FixMatch"] * 3 + ["FixMatch + DASO"], "x": [0.0, 1, 2, 3], "y": [0.0, 1, 4, 9],
                    "target": [0, 2, -1, 1], "label": [0, 1, 2, 1]})


def test_maps_of_features_have_a_dot_for_each_image_in_the_colour_of_its_class():
    fig = plots.features(MAP)
    (dots,) = fig.axes[0].collections
    np.testing.assert_allclose(dots.get_offsets(), [[0, 0], [1, 1], [2, 4]])
    first, second, unknown = dots.get_facecolors()
    assert same_color(unknown, "#cccccc") and not same_color(first, second)
    (other,) = fig.axes[1].collections
    assert not any(same_color(other.get_facecolors()[0], color) for color in (first, second))
    assert [ax.get_title() for ax in fig.axes[:2]] == ["FixMatch", "FixMatch + DASO"]
    assert fig.axes[2].get_ylabel() == "true class"


def test_maps_without_known_classes_show_pseudo_labels_and_say_so():
    fig = plots.features(MAP.assign(target=-1))
    assert fig.axes[2].get_ylabel() == "pseudo-label (true classes unknown)"
    assert len({tuple(color) for color in fig.axes[0].collections[0].get_facecolors()}) == 3


def test_entropies_are_shares_of_the_images_of_each_kind():
    table = pd.DataFrame({"method": "FixMatch", "entropy": [0.01, 0.01, 0.5, 0.99], "is_known": [True] * 3 + [False]})
    ax = plots.open_set(table).axes[0]
    known, unknown = (patch.get_data().values for patch in ax.patches[::2])
    np.testing.assert_allclose(known[[0, 12]], [2 / 3, 1 / 3])
    assert unknown[24] == 1 and known.sum() == pytest.approx(1) and unknown.sum() == 1
    assert ax.get_ylim()[1] > 1.25  # room for the legend above the highest share
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["known classes (3)", "unknown classes (1)"]
    only = plots.open_set(table[:3]).axes[0]
    assert [text.get_text() for text in only.get_legend().get_texts()] == ["known classes (3)"]


def test_figures_of_empty_tables_are_refused():
    for figure in (plots.training_curves, plots.features, plots.open_set):
        with pytest.raises(ValueError, match="table has no rows"):
            figure(MAP[:0])


def test_png_has_two_pixels_for_each_of_the_page_and_is_the_same_each_time(runs):
    first, second = (plots.png(plots.accuracy_curves(runs)) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.size == (780, 696)  # 3.25 x 2.9 inches at 240 dots per inch


def test_a_notebook_shows_a_figure_in_its_own_size(runs):
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    plots.show_in(shell)
    figure = plots.accuracy_curves(runs)
    data, metadata = shell.display_formatter.format(figure)
    assert data["image/png"] == plots.png(figure) and metadata["image/png"] == {"width": 390, "height": 348}


def test_nothing_is_drawn_outside_the_figure(tmp_path, runs):
    linear, semantic = (runs[2].last_pseudo_labels(kind) for kind in ("linear", "semantic"))
    unknown = [make_run(tmp_path / "unknown", final=ALL_UNKNOWN), runs[2]]
    for fig in (plots.pseudo_label_bias(bias_table(runs)), plots.linear_against_semantic(linear, semantic),
                plots.class_distribution(runs), plots.accuracy_curves(runs),
                plots.pseudo_label_bias(bias_table(unknown)), plots.class_distribution(unknown),
                plots.linear_against_semantic(ALL_UNKNOWN, SOME_UNKNOWN),
                plots.class_distribution([make_run(tmp_path / "five", rebalance=names)
                                          for names in ("la", "la,daso", "daso", "abc", "darp")])):
        fig.draw_without_rendering()
        box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, fig


def test_a_figure_is_written_where_asked_and_nowhere_else(tmp_path):
    plots.save(plots.Figure(figsize=(1, 1)), "", "never")
    plots.save(plots.Figure(figsize=(1, 1)), tmp_path / "new", "small")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["small.png"]

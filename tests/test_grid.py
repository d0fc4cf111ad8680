"""Grids: the shipped ones say what they claim, lists are crossed as written, and whatever is wrong is named."""

import re
from pathlib import Path

import pandas as pd
import pytest

from dasolib import published
from dasolib.comparison import compare
from dasolib.cost import flop
from dasolib.grid import load_grid
from dasolib.launch import notebook_parameters
from dasolib.results import Run
from dasolib.run_folder import project_root, resolve
from tests.tiny import save_tiny

STUDIES = Path(__file__).resolve().parents[1] / "studies"
FILES = sorted(path.stem for path in STUDIES.glob("*.yaml"))
TABLES = {"table1": 96, "table2": 40, "table3": 24, "table4": 12, "table5": 8, "table6": 8, "table7": 8, "table8": 8,
          "table11": 96, "table12": 24, "table13": 24, "table14": 28, "table15": 10, "table16": 10,
          "table17": 10}  # cells
UNDECIDED = {"table3": 3, "table11": 54, "table13": 6}  # runs of a second law, where it is not known which was used
GRID = """
name: study
preset: cpu
common:
  dataset: mnist5k
  n_val: 100
  seed: [0, 1]
runs:
"""


@pytest.fixture
def load(tmp_path):
    """Load a grid from text; of a text that is a list only, the entries of `GRID`."""
    def load(text, **options):
        file = tmp_path / "grid.yaml"
        file.write_text(GRID + text if text.lstrip().startswith("-") else text)
        return load_grid(file, **options)
    return load


def combinations(grid):
    return [(run.config.method, ",".join(run.config.rebalance)) for run in grid.runs]


# ---- the shipped grids ----


@pytest.mark.filterwarnings("ignore:pretrain_steps")
@pytest.mark.parametrize("name", FILES)
def test_the_notebook_will_make_exactly_the_runs_of_a_shipped_grid(name):
    grid = load_grid(STUDIES / f"{name}.yaml")
    assert len({run.folder for run in grid.runs}) == len(grid.runs)
    for run in grid.runs:
        parameters = notebook_parameters(run, 1)
        assert parameters["run_dir"] == str(project_root() / "runs" / grid.name / run.config.run_name())


@pytest.mark.parametrize("name", FILES)
def test_the_head_of_a_shipped_grid_says_what_it_costs(name):
    grid = load_grid(STUDIES / f"{name}.yaml")
    total = sum(flop(run.config.model_dump()) for run in grid.runs)
    amount, rate = ((f"{total / 1e18:.1f} EFLOP", 10e12) if grid.name in ("paper", "authors_seed") else
                    (f"{total / 1e15:.2f} PFLOP", 100e9))
    hours = f"{total / rate / 3600:,.0f} hours".removesuffix("s" if round(total / rate / 3600) == 1 else "")
    cost = f"# Cost: {len(grid.runs)} runs, {amount} in the networks: {hours} of a "
    assert cost in (STUDIES / f"{name}.yaml").read_text()


def test_there_is_a_grid_for_each_table_of_accuracies_and_each_has_three_seeds_at_full_scale():
    assert {name for name in FILES if name.startswith("table")} == set(TABLES)
    for name, n_cells in TABLES.items():
        grid = load_grid(STUDIES / f"{name}.yaml")
        own = [run for run in grid.runs if run.config.method != "distribution_estimate"]
        # In table 14, 12 cells are 4 cells of FixMatch and 8 runs without LA, adjusted at test time.
        assert len(own) == 3 * (n_cells - 4 if name == "table14" else n_cells) + UNDECIDED.get(name, 0)
        assert {run.config.seed for run in grid.runs} == {0, 1, 2}
        steps = {run.config.total_steps for run in grid.runs if "crt" not in run.config.rebalance}
        aves = name == "table4"  # 90 epochs of 5,959 labeled, 26,640 or 148,848 unlabeled images
        assert (grid.name, steps) == ("paper", {23 * 90, 21 * 90, 116 * 90} if aves else {250_000})
        networks = {(run.config.network, run.config.depth, run.config.width) for run in grid.runs}
        assert {network for network, *_ in networks} == {"resnet34"} if aves else networks == {("wrn", 28, 2)}
        assert f"All {n_cells} cells" in re.sub(r"\n# ", " ", (STUDIES / f"{name}.yaml").read_text())


def test_the_grids_have_both_laws_where_it_is_not_known_which_one_the_paper_used():
    def found(table, *combination, **split):
        runs = [run.config for run in load_grid(STUDIES / f"{table}.yaml").runs]
        return [c for c in runs if (c.method, ",".join(c.rebalance)) == combination
                and all(getattr(c, name) == value for name, value in split.items())]

    uniform = found("table3", "remixmatch", "", dataset="cifar10", unlabeled="uniform")
    assert sorted(c.alignment for c in uniform) == [False] * 3 + [True] * 3
    for rebalance in ("cb", "cb,daso"):
        runs = found("table11", "fixmatch", rebalance)
        assert sorted(c.reweight_warmup_steps for c in runs) == [0] * 18 + [200_000] * 18
    assert sorted(c.mu for c in found("table11", "usadtm", "")) == [1] * 18 + [2] * 18
    aligned, plain = (found("table13", "remixmatch", name, dataset="stl10") for name in ("crest_plus", "crest"))
    assert len(aligned) == len(plain) == 6 and {c.parts() for c in plain} == {("crest",)}


def test_the_page_on_full_scale_has_a_line_with_command_and_cost_for_each_table_and_for_all():
    page = (STUDIES.parent / "docs/full_scale.md").read_text()
    everything = {}
    for name in TABLES:
        flops = {run.name: flop(run.config.model_dump()) for run in load_grid(STUDIES / f"{name}.yaml").runs}
        everything |= flops
        (line,) = (line for line in page.splitlines() if f"`python -m dasolib.sweep studies/{name}.yaml`" in line)
        assert line.startswith(f"| {name.removeprefix('table')} |") and line.endswith(cost_columns(flops))
    assert cost_columns(everything) in page


def test_the_authors_seed_has_a_run_for_each_of_its_published_numbers_apart_from_the_tables():
    grid = load_grid(STUDIES / "authors_seed.yaml")
    assert grid.name == "authors_seed" and {run.config.seed for run in grid.runs} == {published.AUTHORS_SEED}
    planned = [Run(Path(), run.config.identity(), pd.DataFrame(), {}, None, []) for run in grid.runs
               if run.config.method != "distribution_estimate"]
    table = compare(published.table("seed"), planned, seeds=(published.AUTHORS_SEED,))
    assert set(table["missing"]) == {f"s{published.AUTHORS_SEED} unfinished at step 0 of 250000"} and len(table) == 8
    flops = {run.name: flop(run.config.model_dump()) for run in grid.runs}
    page = (STUDIES.parent / "docs/full_scale.md").read_text()
    (line,) = (line for line in page.splitlines() if "`python -m dasolib.sweep studies/authors_seed.yaml`" in line)
    assert line.endswith(cost_columns(flops))


def cost_columns(flops):
    total = sum(flops.values())
    return f"| {len(flops)} | {total / 1e18:.1f} | {total / 10e12 / 3600:,.0f} |"


def test_the_wide_study_has_every_method_of_the_paper_three_distributions_and_five_seeds():
    grid = load_grid(STUDIES / "cpu_wide.yaml")
    on_fixmatch = {"la", "darp", "crest", "crest_plus", "distribution_alignment", "abc", "boss", "daso,abc", "la,daso"}
    expected = {("supervised", name) for name in ("", "la", "cb", "ldam_drw", "crt")}
    expected |= {(method, "") for method in ("pseudo_label", "usadtm")}
    expected |= {(method, part) for method in ("mean_teacher", "mixmatch", "remixmatch", "fixmatch")
                 for part in ("", "daso")}
    expected |= {("fixmatch", parts) for parts in on_fixmatch}
    found = {}
    for run in grid.runs:
        config = run.config
        found.setdefault((config.method, ",".join(config.rebalance)), []).append((config.unlabeled, config.seed))
        assert (config.dataset, config.total_steps, config.n_val, config.lr) == ("mnist5k", 1000, 400, 0.1)
    all_of_them = {(unlabeled, seed) for unlabeled in ("equal", "uniform", "reversed") for seed in range(5)}
    estimates = found.pop(("distribution_estimate", ""))
    assert set(estimates) == {(unlabeled, seed) for unlabeled, seed in all_of_them if unlabeled != "equal"}
    assert set(found) == expected
    # Supervised methods see no unlabeled image, so that they have nothing to be trained thrice for.
    with_equal = {(unlabeled, seed) for unlabeled, seed in all_of_them if unlabeled == "equal"}
    for (method, _), runs in found.items():
        assert len(runs) == len(set(runs))
        assert set(runs) == (with_equal if method == "supervised" else all_of_them)


def test_the_train_mode_of_the_moving_average_is_compared_on_the_splits_of_the_wide_study():
    wide = {run.config.identity()["seed"]: run.config for run in load_grid(STUDIES / "cpu_wide.yaml").runs
            if (run.config.rebalance, run.config.unlabeled) == (("daso",), "equal") and run.config.method == "fixmatch"}
    runs = [run.config for run in load_grid(STUDIES / "cpu_train_mode.yaml").runs]
    changed = [{name for name in type(c).model_fields if getattr(c, name) != getattr(wide[c.seed], name)}
               for c in runs if c.unlabeled == "equal"]
    assert changed == [{"ema_train_mode"}] * 5 + [{"fixed_blend", "lambda_align"}] * 5
    assert len(runs) == 30 and {c.unlabeled for c in runs} == {"equal", "uniform", "reversed"}


def test_the_deep_study_has_nine_methods_two_distributions_and_two_seeds():
    grid = load_grid(STUDIES / "cpu_deep.yaml")
    expected = [("supervised", "la")]
    expected += [("fixmatch", part) for part in ("", "la", "crest_plus", "abc", "daso", "la,daso")]
    expected += [("remixmatch", ""), ("remixmatch", "daso")]
    assert combinations(grid) == [combination for combination in expected for _ in range(4)]
    assert {(run.config.unlabeled, run.config.seed) for run in grid.runs} == {
        (unlabeled, seed) for unlabeled in ("equal", "reversed") for seed in (0, 1)}
    assert {(c.dataset, c.depth, c.width, c.batch_size, c.precision, c.total_steps)
            for c in (run.config for run in grid.runs)} == {("data/cifar10.npz", 10, 1, 32, "bf16", 10_000)}


# ---- what is crossed with what ----


def test_lists_are_crossed_in_the_order_written_and_the_common_ones_fastest(load):
    grid = load("- method: fixmatch\n  rebalance: ['', daso]\n  lambda_u: [1, 2]\n- method: usadtm\n  seed: 7")
    assert [(run.config.method, run.config.rebalance, run.config.lambda_u, run.config.seed) for run in grid.runs] == [
        ("fixmatch", rebalance, lambda_u, seed)
        for rebalance in ((), ("daso",)) for lambda_u in (1, 2) for seed in (0, 1)] + [("usadtm", (), 1, 7)]
    assert {run.config.n_val for run in grid.runs} == {100}
    assert all(run.folder == resolve(f"runs/study/{run.config.run_name()}") for run in grid.runs)


def test_settings_of_one_key_vary_together_and_null_leaves_one_to_the_preset(load):
    grid = load("- method: fixmatch\n  seed: 0\n  n1, m1, unlabeled: [[60, 200, equal], [70, null, unknown]]")
    assert [(run.config.n1, run.config.m1, run.config.unlabeled) for run in grid.runs] == [
        (60, 200, "equal"), (70, None, "unknown")]


def test_a_setting_that_is_a_list_is_written_as_a_list_of_lists(load):
    grid = load("- method: supervised\n  seed: 0\n  milestones: [[10, 20], [30]]")
    assert [run.config.milestones for run in grid.runs] == [(10, 20), (30,)]


def test_a_run_that_two_entries_have_is_in_the_grid_once(load):
    grid = load("- method: fixmatch\n  rebalance: ['', daso]\n- method: fixmatch\n  rebalance: daso\n"
                "  lambda_align: [1, 2]")  # 1 is what the first entry has
    assert [(run.config.rebalance, run.config.lambda_align, run.config.seed) for run in grid.runs][2:] == [
        (("daso",), 1, 0), (("daso",), 1, 1), (("daso",), 2, 0), (("daso",), 2, 1)]


def test_runs_lie_in_another_folder_on_request(load, tmp_path):
    grid = load("- method: fixmatch", runs=tmp_path / "elsewhere")
    assert grid.folder == tmp_path / "elsewhere" / "study"
    assert {run.folder.parent for run in grid.runs} == {grid.folder}


# ---- runs that need another ----


def test_a_source_is_the_run_of_the_named_entry_on_the_same_split(load):
    grid = load("- name: trained\n  method: supervised\n  n1: [50, 60]\n"
                "- method: supervised\n  rebalance: crt\n  n1: [50, 60]\n  source: trained")
    first, then = grid.runs[:4], grid.runs[4:]
    assert [run.after for run in first] == [None] * 4
    assert [run.after for run in then] == [run.folder for run in first]
    assert [run.config.source for run in then] == [f"runs/study/{run.name}" for run in first]
    assert [notebook_parameters(run, 1)["source"] for run in then] == [run.config.source for run in then]


def test_darp_takes_estimated_counts_from_a_named_entry(load):
    grid = load("- name: counts\n  method: distribution_estimate\n"
                "- method: fixmatch\n  rebalance: darp\n  source: counts")
    assert [run.after for run in grid.runs[2:]] == [run.folder for run in grid.runs[:2]]


def test_a_source_may_be_the_folder_of_a_run(load, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (run, _) = load(f"- method: supervised\n  rebalance: crt\n  source: {tmp_path}").runs
    assert run.after is None and run.config.source == str(tmp_path)


def test_what_a_merge_brings_may_be_set_anew(load):
    grid = load("- &first {method: fixmatch, n1: 50}\n- {<<: *first, method: usadtm}\n- {<<: *first, n1: 40}")
    assert [(run.config.method, run.config.n1) for run in grid.runs[::2]] == [
        ("fixmatch", 50), ("usadtm", 50), ("fixmatch", 40)]


# ---- what is refused ----

DARP = "  method: fixmatch\n  rebalance: darp\n"
CRT = "  method: supervised\n  rebalance: crt\n"


def anchors(n):
    """YAML of `n` lists, each ten times the one before."""
    lines = [f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}' if i else '0'])}]" for i in range(n)]
    return "\n".join(lines)


@pytest.mark.parametrize(("text", "message"), [
    ("- method: fixmach", "entry 1 of runs: method='fixmach': choose one of supervised, "),
    ("- method: fixmatch\n- method: fixmatch\n  sead: 1", "entry 2 of runs: sead=1: no such key; choose from data"),
    ("- method: fixmatch\n  threads: 2", "threads=2: no such key"),
    ("- method: fixmatch\n  rebalance: 'darp,daso'", "both correct the pseudo-labels; choose one"),
    ("- method: mixmatch\n  threshold: 0.9", "threshold=0.9 would change nothing: mixmatch has no such setting"),
    ("- method: fixmatch\n  n1: many", "n1='many': "),
    ("- method: []", r"method=\[\]: an empty list makes no run"),
    ("- method: [fixmatch, usadtm, fixmatch]", "fixmatch is listed twice"),
    ("- method: fixmatch\n  n1, m1: [10, 20]", r"n1, m1=\[10, 20\]: must be a list of lists of 2 values"),
    ("- method: fixmatch\n  n1, m1: [[1, 2, 3]]", "must be a list of lists of 2 values"),
    ("- method: fixmatch\n  n1: 5\n  n1, m1: [[1, 2]]", r"n1=\[\[1, 2\]\]: is set twice"),
    ("- method: fixmatch\n  n1: 5\n  n1: 6", "line 11: 'n1' stands twice in one mapping"),
    ("- rebalance: daso", "entry 1 of runs: method is missing"),
    ("- method: fixmatch\n  milestones: [5, 9]", r"milestones=\[5, 9\]: is itself a list; write \[\[5, 9\]\], "),
    ("- method: fixmatch\n  unlabeled_counts: [2.5, 1]", r"unlabeled_counts=\[2.5, 1\]: is itself a list; write "),
    ("- fixmatch", "entry 1 of runs: 'fixmatch': must be a mapping of settings to values"),
    ("- name: a\n  method: fixmatch\n- name: a\n  method: usadtm", "name='a': must be text, and of no other entry"),
    (f"-{DARP[1:]}", "rebalance='darp' with unlabeled='reversed' aims at estimated class counts: add "),
    (f"-{DARP[1:]}  source: counts", "source='counts': must name an entry above .none there has a name."),
    (f"- name: a\n  method: usadtm\n-{DARP[1:]}  source: a", "source='a' is an entry of method 'usadtm'; the class "),
    (f"- name: a\n  method: supervised\n  n1: 50\n-{CRT[1:]}  source: a",
     "source='a': 0 of the 2 runs of that entry have dataset='mnist5k', seed=0, n1=60, "),
    (f"- name: a\n  method: supervised\n  rebalance: ['', la]\n-{CRT[1:]}  source: a", "2 of the 4 runs"),
    (f"- name: a\n  method: supervised\n  depth: 16\n-{CRT[1:]}  source: a", "0 of the 2 runs .*depth=10"),
    ("- method: fixmatch\n- method: fixmatch\n  dataset: data/mnist5k.npz",
     "dataset='data/mnist5k.npz': an entry above has the same run, mnist5k-fixmatch-s0-"),
    ("name: a\npreset: cpu", "runs is missing"),
    ("name: a\npreset: gpu\nruns: [{}]", "preset='gpu': choose one of paper, cpu"),
    ("name: a\npreset: [cpu, paper]\nruns: [{}]", r"preset=\['cpu', 'paper'\]: choose one of paper, cpu"),
    ('name: "a\\nb"\npreset: cpu\nruns: [{}]', r"name='a\\nb': must be the name of a folder under runs/"),
    ("name: a/b\npreset: cpu\nruns: [{}]", "name='a/b': must be the name of a folder under runs/"),
    ("name: a\npreset: cpu\nseeds: 1\nruns: [{}]", "seeds=1: no such key; choose from name, preset, common, runs"),
    ("name: a\npreset: cpu\nruns: {}", "runs={}: must be a list of entries"),
    ("name: a\npreset: cpu\ncommon: {seed: []}\nruns: [{}]", r"common: seed=\[\]: an empty list makes no run"),
    ("name: [a", "grid.yaml: is no YAML: "),
    ("name: !!int ''", "grid.yaml: is no YAML: "),
    ("runs: " + 2000 * "[", "grid.yaml: is nested too deeply"),
    (anchors(12), r"grid.yaml: aliases \(\*name\) repeat 1.23e\+12 values, more than 100,000"),
    (anchors(1200), r"grid.yaml: aliases \(\*name\) repeat inf values"),
    ("name: &a [*a]", r"grid.yaml: aliases \(\*name\) repeat inf values"),
    ("", "must be a mapping with"),
    ("fixmatch", "must be a mapping with the keys name, preset, common, runs"),
    ("name: a\npreset: cpu\ncommon:\n  n1, m1: [[60, 200]]\nruns:\n- dataset: mnist5k\n  method: fixmatch\n  n1: 50",
     "entry 1 of runs: sets n1, which common varies together with others: set all of n1, m1"),
])
def test_a_wrong_grid_is_refused_with_the_place_the_value_and_the_choices(load, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        load(text)
    assert "grid.yaml: " in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="file='.*absent.yaml' cannot be read: "):
        load_grid(tmp_path / "absent.yaml")


def test_a_null_that_the_notebook_would_read_as_the_presets_value_is_refused(load, tmp_path):
    text = "- method: fixmatch\n  unlabeled, n1, m1, gamma_l, gamma_u: [[unknown, null, null, null, null]]"
    (run, _) = load(text).runs
    with pytest.raises(ValueError, match="n1, m1, gamma_l, gamma_u = null: the notebook would take the preset's"):
        notebook_parameters(run, 1)


def test_parameters_of_the_notebook_are_the_settings_that_the_grid_names(load, tmp_path):
    (run,) = load(f"- dataset: {save_tiny(tmp_path)}\n  n_val: 0\n  method: fixmatch\n  rebalance: 'daso, la'\n"
                  "  seed: 3\n  lr: 1e-5\n  queue_size: 8\n  eval_images: null").runs
    assert notebook_parameters(run, 2) == {
        "preset": "cpu", "dataset": str(tmp_path / "tiny.npz"), "method": "fixmatch", "rebalance": "la,daso", "seed": 3,
        "lr": 1e-5, "threads": 2, "run_dir": str(run.folder),
        "settings": {"n_val": 0, "queue_size": 8, "eval_images": None}}

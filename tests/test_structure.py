"""How the package is built: nothing stands in it twice, files are short, and a step is followed in a few of them."""

import ast
import io
import statistics
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

import dasolib
from tests.test_methods import new_training, random_batch, tiny_config

PACKAGE = Path(dasolib.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))
N_EQUAL = 6  # so many equal code lines in two places are a copy


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def code_lines(text):
    """Return the lines of Python source with code on them, stripped, with their numbers.

    Left out are blank lines, comments, docstrings and imports.
    """
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip() and i not in left_out]


def copies(texts):
    """Places (name, line) of every run of `N_EQUAL` equal code lines that stands in more than one place."""
    places = defaultdict(list)
    for name, text in texts.items():
        lines = code_lines(text)
        for window in zip(*(lines[i:] for i in range(N_EQUAL)), strict=False):
            places[tuple(line for _, line in window)].append((name, window[0][0]))
    return [found for found in places.values() if len(found) > 1]


# --- nothing twice ---------------------------------------------------------------------------------------------------


def test_code_lines_leave_out_what_is_no_code():
    text = '"""Module."""\n\nimport os\nfrom a import (\n    b,\n)\n\n\ndef f(x):  # why\n    """Say."""\n' \
           '    # how\n    y = "# no comment"\n    return (x,\n            y)\n'
    assert code_lines(text) == [(9, "def f(x):"), (12, 'y = "# no comment"'), (13, "return (x,"), (14, "y)")]


def test_the_search_for_copies_finds_one_however_it_is_indented_and_commented():
    rule = [f"x{i} = {i}" for i in range(N_EQUAL)]
    plain = "\n".join(rule)
    inside = "def f():\n    " + "  # again\n\n    ".join(rule)
    assert copies({"a": plain, "b": inside}) == [[("a", 1), ("b", 2)]]
    assert copies({"a": f"{plain}\nz = 0\n{plain}"}) == [[("a", 1), ("a", N_EQUAL + 2)]]
    assert copies({"a": plain, "b": "\n".join(rule[:-1])}) == []


def test_no_run_of_six_code_lines_stands_in_two_places():
    assert copies({name_of(path): path.read_text(encoding="utf-8") for path in FILES}) == []


@pytest.mark.parametrize("folder", ["methods", "rebalance"])
def test_half_of_the_methods_have_at_most_sixty_code_lines(folder):
    lengths = {name_of(path): len(code_lines(path.read_text(encoding="utf-8")))
               for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py"}
    assert len(lengths) >= 7
    assert statistics.median(lengths.values()) <= 60, lengths


# --- one rule in one place -------------------------------------------------------------------------------------------


def functions(tree, prefix=""):
    """Every function of a module as (qualified name, node); what it defines itself comes apart."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if isinstance(node, ast.FunctionDef):
                yield name, node
            yield from functions(node, f"{name}.")


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
DEFINED = {f"{file}:{name}": node for file, tree in TREES.items() for name, node in functions(tree)}


def where(is_formula, trees=TREES):
    """Functions that contain a matching expression; ``<module>`` for one outside of any."""
    found = set()
    for file, tree in trees.items():
        inside = set()
        for name, node in functions(tree):
            matches = {id(part) for part in ast.walk(node) if is_formula(part)}
            inside |= matches
            found |= {f"{file}:{name}"} if matches else set()
        if any(is_formula(part) and id(part) not in inside for part in ast.walk(tree)):
            found.add(f"{file}:<module>")
    return found


def is_operation(node, kind):
    return isinstance(node, ast.BinOp) and isinstance(node.op, kind)


def is_one(node):
    return isinstance(node, ast.Constant) and node.value == 1


def factors(node):
    """Factors of a product of two, as source; none of anything else."""
    return [ast.unparse(node.left), ast.unparse(node.right)] if is_operation(node, ast.Mult) else []


def is_power_of_inverse(node):
    """``x ** (1 / t)``."""
    return is_operation(node, ast.Pow) and is_operation(node.right, ast.Div) and is_one(node.right.left)


def is_mixture(node):
    """``(1 - w) * a + w * b`` in any order."""
    if not is_operation(node, ast.Add):
        return False
    for one, other in ((node.left, node.right), (node.right, node.left)):
        for factor in factors(one):
            tree = ast.parse(factor, mode="eval").body
            if is_operation(tree, ast.Sub) and is_one(tree.left) and ast.unparse(tree.right) in factors(other):
                return True
    return False


def is_quotient_with_eps(node):
    """``a * (target + eps) / (mean + eps)``: what brings a mean to a target."""
    def has_eps(part):
        return is_operation(part, ast.Add) and ast.unparse(part.right).lower() == "eps"
    if not is_operation(node, ast.Div) or not has_eps(node.right):
        return False
    return has_eps(node.left) or is_operation(node.left, ast.Mult) and has_eps(node.left.right)


def is_threshold(node):
    """``confidence >= threshold``."""
    return (isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.GtE)
            and "threshold" in ast.unparse(node.comparators[0]))


def is_call_of(*names):
    def check(node):
        return isinstance(node, ast.Call) and ast.unparse(node.func) in names
    return check


def is_bounded_ratio(node):
    """``min(t / length, 1)``."""
    return (isinstance(node, ast.Call) and ast.unparse(node.func) == "min" and len(node.args) == 2
            and is_operation(node.args[0], ast.Div) and is_one(node.args[1]))


# What it is, its one function, the form that gives it away, and other rules of the same form.
RULES = {
    "sharpening": ("pseudo_labels.py:sharpen", is_power_of_inverse,
                   {"pseudo_labels.py:blend_weights", "rebalance/crest.py:selection_share"}),
    "blend": ("pseudo_labels.py:blend", is_mixture, {"mixup.py:mixup"}),
    "MixUp": ("mixup.py:mixup", is_mixture, {"pseudo_labels.py:blend"}),
    "alignment": ("rebalance/distribution_alignment.py:DistributionAlignment.align", is_quotient_with_eps,
                  {"rebalance/darp.py:class_scale"}),  # of column sums
    "confidence mask": ("pseudo_labels.py:confident_labels", is_threshold, set()),
    "masked loss": ("losses.py:cross_entropy", is_call_of("F.cross_entropy", "F.nll_loss", "F.binary_cross_entropy"),
                    {"losses.py:ldam_loss"}),  # a mean over weights
    "cosine similarity": ("pseudo_labels.py:semantic_logits", is_call_of("F.normalize", "F.cosine_similarity"), set()),
    "ramp-up": ("schedules.py:ramp_up", is_bounded_ratio, set()),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_written_once(rule):
    """Its function is defined in one file, and the formula stands nowhere else."""
    place, is_formula, others = RULES[rule]
    name = place.partition(":")[2]
    assert [found for found in DEFINED if found.partition(":")[2] == name] == [place]
    assert where(is_formula) == {place} | others


@pytest.mark.parametrize(
    ("rule", "copy"),
    [
        ("sharpening", "def f(p, T):\n    return p ** (1 / T)"),
        ("blend", "def f(a, b, w):\n    return w * a + b * (1 - w)"),
        ("alignment", "def f(p, q, m):\n    return p * (q + eps) / (m + eps)"),
        ("confidence mask", "def f(p, threshold):\n    return p.amax(1) >= threshold"),
        ("masked loss", "def f(x, y):\n    return (F.cross_entropy(x, y, reduction='none') * m).mean()"),
        ("cosine similarity", "def f(a, b):\n    return F.cosine_similarity(a, b)"),
        ("ramp-up", "def f(t, length):\n    return min(t / length, 1.0)"),
    ],
)
def test_the_search_for_a_rule_notices_a_copy_of_it(rule, copy):
    assert where(RULES[rule][1], {"new.py": ast.parse(copy)}) == {"new.py:f"}


def test_further_definitions_of_align_only_pass_it_on():
    """`Part` aligns nothing, the set asks its parts, and CReST+ asks the alignment it holds."""
    names = {found for found in DEFINED if found.endswith(".align")}
    calls = {found for found in names if where(is_call_of("part.align", "self.alignment.align"),
                                               {"f": ast.Module([DEFINED[found]], [])})}
    assert names - calls == {"rebalance/part.py:Part.align", RULES["alignment"][0]}
    assert ast.unparse(DEFINED["rebalance/part.py:Part.align"].body[-1]) == "return probs"


def test_a_step_is_a_function_of_the_file_of_its_base_learner():
    """No base learner calls another one's step or imports its file."""
    for file, tree in TREES.items():
        if file.startswith("methods/") and file not in ("methods/__init__.py", "methods/step.py"):
            assert [name for name, _ in functions(tree)].count("step") == 1, file
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {m for m in imported if m.startswith("dasolib.methods.") and m != "dasolib.methods.step"}, file
            assert not {m for m in imported if m.startswith("dasolib.rebalance")}, file  # the step is handed the set


# --- following a step ------------------------------------------------------------------------------------------------

# The rules of FixMatch and DASO: in which order what happens, and each formula of theirs but the two below.
RULES_OF_FIXMATCH_WITH_DASO = {
    "methods/fixmatch.py",  # the step and its terms
    "rebalance/__init__.py",  # whom the step asks, and in which order
    "rebalance/daso.py",  # what DASO does at each moment
    "pseudo_labels.py",  # confidence, similarity, blending
}
# Primitives that know nothing of either method, with the functions of theirs that run: their names and docstrings say
# what they give, and no reader of a step needs to know how.
PRIMITIVES = {
    "models.py": {"forward_views", "Network.features", "WideResNet.encode", "Block.forward"},  # the network
    "losses.py": {"cross_entropy"},  # a mean over all rows, of which some may have weight 0
    "prototypes.py": {"PrototypeBank.push", "PrototypeBank.lengths"},  # the means of ring buffers
}
# Moments of a step at which DASO does nothing: the inherited methods return what they are given, or nothing.
SILENT = {"rebalance/part.py": {"Part.adjust_labeled", "Part.labeled_loss", "Part.align", "Part.confident"}}


def executed(call):
    """File of the package -> qualified names of the functions of it that run within `call`."""
    found = defaultdict(set)

    def note(frame, event, _argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            name = frame.f_code.co_qualname
            if "<" not in name:  # comprehensions belong to the function around them
                found[name_of(path)].add(name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return dict(found)


@pytest.fixture(scope="module")
def traced():
    """What runs within a step of FixMatch + DASO after DASO's start, and in the note DASO takes at its end."""
    config = tiny_config("fixmatch", "daso")
    training, batch = new_training(config), random_batch(config, 1)
    training.step(random_batch(config, 0), 0)

    def step():
        out = training.learner_step(training.net, training.ema, batch, training.rebalance, t=1)
        assert "semantic_alignment" in out.losses
        training.rebalance.end_step(out.labels, 1)

    return executed(step)


def test_to_follow_a_step_of_fixmatch_with_daso_a_reader_opens_four_files(traced):
    """Not counted are the training loop, which is the same for all methods, and the primitives."""
    assert len(RULES_OF_FIXMATCH_WITH_DASO) <= 4
    assert set(traced) == RULES_OF_FIXMATCH_WITH_DASO | set(PRIMITIVES) | set(SILENT)
    assert {file: names for file, names in traced.items() if file in PRIMITIVES} == PRIMITIVES


def test_a_step_of_fixmatch_alone_needs_no_file_of_daso():
    config = tiny_config("fixmatch")
    training, batch = new_training(config), random_batch(config, 0)
    ran = executed(lambda: training.learner_step(training.net, training.ema, batch, training.rebalance, t=0))
    assert set(ran) == {"methods/fixmatch.py", "rebalance/__init__.py", "pseudo_labels.py", "models.py", "losses.py"}


def test_primitives_know_no_method():
    """They import nothing of the package but a helper on class ids."""
    for file in PRIMITIVES:
        imports = [node for node in ast.walk(TREES[file]) if isinstance(node, ast.ImportFrom)]
        ours = {(node.module, alias.name) for node in imports for alias in node.names if "dasolib" in node.module}
        assert ours <= {("dasolib.pseudo_labels", "one_hot")}, file


def test_where_daso_is_silent_nothing_happens(traced):
    """Each inherited method is its docstring and one ``return`` of an argument or of None."""
    assert {file: traced[file] for file in SILENT} == SILENT
    for file, names in SILENT.items():
        for name in names:
            body = DEFINED[f"{file}:{name}"].body[1:]
            assert len(body) == 1 and isinstance(body[0], ast.Return), name
            assert isinstance(body[0].value, ast.Name | ast.Constant), name

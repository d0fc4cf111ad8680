"""A grid of runs, read from a YAML file: what is crossed with what, where each run lies, and what it waits for."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from dasolib.config import PRESETS, Config, has_control_characters, make_config
from dasolib.run_folder import resolve
from dasolib.sources import SAME_NETWORK, SAME_SPLIT

KEYS = ("name", "preset", "common", "runs")
NOT_OF_A_GRID = ("threads", "device")  # of the machine, not of what is run: the sweep decides them
MOST_REPEATED = 100_000  # values that aliases may repeat; a few lines of nested ones repeat billions
LISTS = ("milestones", "labeled_indices", "unlabeled_counts")  # settings whose value is a list
SETTINGS = tuple(name for name in Config.model_fields if name not in NOT_OF_A_GRID)


@dataclass(frozen=True, eq=False)
class GridRun:
    """One run of a grid.

    Attributes
    ----------
    config : dasolib.config.Config
        Its ``threads`` and ``device`` say nothing.
    preset : str
    given : tuple of str
        The settings that the grid names; all others are the preset's.
    folder : Path
        Absolute.
    after : Path or None
        Folder of the run of this grid that must be finished first.
    """

    config: Config
    preset: str
    given: tuple[str, ...]
    folder: Path
    after: Path | None

    @property
    def name(self):
        """Of the folder: that of the configuration."""
        return self.folder.name


@dataclass(frozen=True)
class Grid:
    """The runs of a file, in its order, each once."""

    name: str  # of the study, whose folder they lie in
    folder: Path
    runs: list[GridRun]


def load_grid(file, runs="runs"):
    """Read a grid and check every run of it.

    Parameters
    ----------
    file : path
        A YAML mapping: ``name``, the study, whose folder the runs lie in; ``preset``; ``common``, settings of every
        entry that has no own; and ``runs``, a list of entries. An entry maps settings, the fields of
        `dasolib.config.Config`, to a value or to a list of values. Lists are crossed, the last key fastest. A key that
        names several settings, such as ``n1, m1``, has a list of lists: its settings vary together. A setting that is
        itself a list, such as ``milestones``, is written as a list of lists, too. An entry with a ``name`` can be the
        ``source`` of an entry below it: of its runs, the one on the same split.
    runs : path
        Folder of the study's folder; a relative path starts from the project's root.

    Returns
    -------
    Grid

    Raises
    ------
    ValueError
        Naming the file, the entry, the key, its value and the choices.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file={str(file)!r} cannot be read: {error}") from None
    try:
        return _grid(_parse(text), Path(runs))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        """Build a dict of a mapping whose keys all differ."""
        keys = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # what it brings may be set anew
                continue
            keys.append(self.construct_object(key_node, deep=True))
            if keys.count(keys[-1]) > 1:
                raise ValueError(f"line {key_node.start_mark.line + 1}: {keys[-1]!r} stands twice in one mapping")
        return super().construct_mapping(node, deep)


def _parse(text):
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        n_repeated = _size(node, sizes := {}) - len(sizes)
        if n_repeated > MOST_REPEATED:
            raise ValueError(f"aliases (*name) repeat {n_repeated:.3g} values, more than {MOST_REPEATED:,}; write out "
                             "what is meant")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:  # the latter from a tag on a wrong value
        raise ValueError(f"is no YAML: {' '.join(str(error).split())}") from None


def _size(node, sizes):
    """Count the values in a node of YAML with each alias written out; fill `sizes`, those of all nodes by id."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # for an alias inside its own anchor
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = inside if isinstance(node, yaml.SequenceNode) else itertools.chain.from_iterable(inside)
        sizes[id(node)] = 1.0 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]


def _grid(content, runs):
    if not isinstance(content, dict):
        raise ValueError(f"must be a mapping with the keys {', '.join(KEYS)}")
    _check_keys(content, KEYS)
    for key in ("name", "preset", "runs"):
        if key not in content:
            raise ValueError(f"{key} is missing")
    name, preset, common, entries = (content.get(key, {}) for key in KEYS)
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or has_control_characters(name):
        raise ValueError(f"name={name!r}: must be the name of a folder under {runs}/")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: choose one of {', '.join(PRESETS)}")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"runs={entries!r}: must be a list of entries")
    try:
        common = _axes(common)
    except ValueError as error:
        raise ValueError(f"common: {error}") from None
    found, named = {}, {}  # GridRun by name; the runs of an entry by its name
    for i, entry in enumerate(entries, 1):
        try:
            if not isinstance(entry, dict):
                raise ValueError(f"{entry!r}: must be a mapping of settings to values")
            entry = dict(entry)
            entry_name = entry.pop("name", None)
            if entry_name is not None and (not isinstance(entry_name, str) or entry_name in named):
                raise ValueError(f"name={entry_name!r}: must be text, and of no other entry")
            own = [_run(preset, settings, runs / name, named) for settings in _crossed(_axes(entry), common)]
            for run in own:
                _check_same(found.setdefault(run.name, run), run)
        except ValueError as error:
            raise ValueError(f"entry {i} of runs: {error}") from None
        if entry_name is not None:
            named[entry_name] = own
    return Grid(name, resolve(runs / name), list(found.values()))


def _check_keys(mapping, choices):
    for key, value in mapping.items():
        if key not in choices:
            raise ValueError(f"{key}={value!r}: no such key; choose from {', '.join(choices)}")


def _axes(mapping):
    """Turn an entry into its axes: names of settings -> the values that they take, tuples of one value for each."""
    if not isinstance(mapping, dict):
        raise ValueError(f"{mapping!r}: must be a mapping of settings to values")
    axes = {}
    for key, value in mapping.items():
        names = tuple(name.strip() for name in str(key).split(","))
        _check_keys(dict.fromkeys(names, value), SETTINGS)
        taken = [name for other in axes for name in other]
        if repeated := [name for name in names if name in taken or names.count(name) > 1]:
            raise ValueError(f"{repeated[0]}={value!r}: is set twice")
        if key in LISTS and isinstance(value, list) and any(isinstance(each, int | float) for each in value):
            raise ValueError(f"{key}={value!r}: is itself a list; write [{value}], a list of the values that it takes")
        if len(names) == 1:
            values = [(each,) for each in (value if isinstance(value, list) else [value])]
        else:
            if not isinstance(value, list) or not all(isinstance(v, list) and len(v) == len(names) for v in value):
                raise ValueError(f"{key}={value!r}: must be a list of lists of {len(names)} values, as the key names "
                                 f"{len(names)} settings that vary together")
            values = [tuple(each) for each in value]
        if not values:
            raise ValueError(f"{key}={value!r}: an empty list makes no run")
        if repeated := [each for each in values if values.count(each) > 1]:
            raise ValueError(f"{key}={value!r}: {', '.join(map(str, repeated[0]))} is listed twice")
        axes[names] = values
    return axes


def _crossed(own, common):
    """Every combination of an entry's axes and those common axes that it does not replace, as settings by name."""
    mine = {name for names in own for name in names}
    axes = dict(own)
    for names, values in common.items():
        if not mine & set(names):
            axes[names] = values
        elif not set(names) <= mine:
            raise ValueError(f"sets {', '.join(sorted(mine & set(names)))}, which common varies together with others: "
                             f"set all of {', '.join(names)}")
    for combination in itertools.product(*axes.values()):
        yield {name: value for names, values in zip(axes, combination, strict=True)
               for name, value in zip(names, values, strict=True)}


def _run(preset, settings, study, named):
    for name in ("dataset", "method"):
        if name not in settings:
            raise ValueError(f"{name} is missing")
    source = settings.get("source")
    config = make_config(preset, threads=1, **settings)
    after = None
    if config.needs("unlabeled_counts") and config.unlabeled_counts is None and source is None:
        raise ValueError(f"rebalance='darp' with unlabeled={config.unlabeled!r} aims at estimated class counts: add an "
                         "entry of method distribution_estimate above, give it a name, and name it as source; or give "
                         "unlabeled_counts")
    if source in named:
        after = _source_run(config, source, named[source])
        config = config.model_copy(update={"source": str(study / after.name)})
    elif source is not None and not (resolve(source) / "config.json").exists():
        raise ValueError(f"source={source!r}: must name an entry above ({', '.join(named) or 'none there has a name'}) "
                         "or the folder of a run")
    return GridRun(config, preset, tuple(settings), resolve(study / config.run_name()), after and after.folder)


def _source_run(config, name, candidates):
    """Return the run of a named entry that has the split of `config`, and for cRT its network."""
    same = [field for field in ("dataset", *SAME_SPLIT) if field in Config.model_fields]
    same += SAME_NETWORK if config.needs("source") else ()
    fitting = [run for run in candidates
               if all(getattr(run.config, field) == getattr(config, field) for field in same)]
    if len(fitting) != 1:
        raise ValueError(f"source={name!r}: {len(fitting)} of the {len(candidates)} runs of that entry have "
                         + ", ".join(f"{field}={getattr(config, field)!r}" for field in same)
                         + "; it must be one")
    if config.needs("unlabeled_counts") and fitting[0].config.method != "distribution_estimate":
        raise ValueError(f"source={name!r} is an entry of method {fitting[0].config.method!r}; the class counts come "
                         "from one of distribution_estimate")
    return fitting[0]


def _check_same(one, other):
    """Refuse two descriptions of one run that differ in what is no part of its name, such as the path of its data."""
    for field in SETTINGS:
        here, there = getattr(other.config, field), getattr(one.config, field)
        if here != there and field not in one.config.without_effect():
            raise ValueError(f"{field}={here!r}: an entry above has the same run, {one.name}, with {there!r}")

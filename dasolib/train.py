"""A run from configuration to result: set up, loop, evaluate, checkpoint, finish. Knows no method by name."""

import functools
import time
import warnings
from contextlib import closing, contextmanager

import torch
from safetensors import torch as safetensors
from torch.utils.tensorboard import SummaryWriter

from dasolib import augment
from dasolib.batches import Batches, make_split
from dasolib.config import fastest_precision
from dasolib.data import DATASETS, load_data
from dasolib.diagnostics import KINDS, PseudoLabelCounts, accuracy
from dasolib.ema import EMA
from dasolib.estimate import average_estimates
from dasolib.evaluation import (
    TestSet,
    describe,
    estimate_counts,
    outputs,
    predict,
    predictions,
    pseudo_label,
    share_correct,
    summarize,
)
from dasolib.host import Interrupted, check_memory, names_file, prepare_host, stop_signals
from dasolib.methods import LEARNERS
from dasolib.models import build_network, prepare_network
from dasolib.notebooks import tqdm
from dasolib.rebalance import REBALANCERS, build_rebalance
from dasolib.residency import fits
from dasolib.run_folder import RunFolder, environment, project_root, resolve, write_bytes, write_json, write_npz
from dasolib.schedules import lr_at
from dasolib.seeds import host_generator
from dasolib.sources import NETWORK, trained_network, unlabeled_counts

# What the compiler calls the argument t of a step; it treats other numbers as constants.
T_IS_DYNAMIC = "L['t'],L['kwargs']['t']"


def run(config, run_dir=None, *, progress=True, resident=None):
    """Train what `config` describes, or go on where an interrupted run stopped, and return its result.

    Parameters
    ----------
    config : dasolib.config.Config
    run_dir : path, optional
        Default ``runs/<config.run_name()>``; a relative path starts from the project's root.
    progress : bool
        Print device and data, and show a progress bar.
    resident : bool, optional
        Whether the images live on the device, or stay on the host and are sent step by step; by default on the device
        if they fit, see `dasolib.residency.fits`. No number depends on it.

    Returns
    -------
    dict
        As in ``result.json``: accuracies in [0, 1], with and without logit adjustment at test time; if images are held
        out, ``validation_accuracy`` is that of the trained network on them, on which settings can be chosen.

    Raises
    ------
    ValueError
        Before anything is written: if data, split, folder or the run it starts from do not fit the configuration.
    ConnectionError
        If data or ImageNet weights are to be downloaded and cannot be.
    FloatingPointError
        If a loss, a number of the state or a logit was NaN or infinite: names the step and what. Nothing is written
        after it.
    dasolib.host.Interrupted
        If SIGINT, SIGTERM, SIGHUP or SIGUSR1 asked for an end, after a checkpoint of the step that was under way.
    """
    device = choose_device(config.device)
    prepare_host(config.threads)
    if config.compile:
        check_compiler(device)
    if device.type == "cpu" and config.precision == "bf16" != fastest_precision():
        warnings.warn("precision='bf16': this CPU has no arithmetic in it; fp32 is faster", stacklevel=2)
    prepare_network(config)
    check_network(config)
    is_path = config.dataset not in DATASETS and resolve(config.dataset).exists()
    data = load_data(resolve(config.dataset) if is_path else config.dataset, root=project_root() / "data",
                     resolution=config.resolution, skip_unreadable=config.skip_unreadable)
    normalize = functools.partial(
        augment.normalize, mean=data.mean, std=data.std, resolution=config.train_resolution,
        memory_format=torch.channels_last if config.channels_last else torch.contiguous_format,
    )
    if resident is None:
        resident = fits(data, device)
    split = make_split(config, data)
    batches = Batches(config, data, split, normalize, device, resident=resident)
    test = TestSet(data, config, batches.prior, normalize, device if resident else torch.device("cpu"))
    start_from = trained_network(config, data)
    aim = unlabeled_counts(config, data, batches.labeled_counts, len(batches.u))
    taken = {name: value.record for name, value in (("source", start_from), ("unlabeled_counts", aim))
             if value and value.record}
    run_dir = resolve(run_dir or f"runs/{config.run_name()}")
    say = tqdm.write if progress else lambda text: None

    with (RunFolder(run_dir, config, data, taken) as folder, closing(batches), stop_signals() as stops,
          diverged_explained(folder, lambda: t + 1)):
        result = folder.result()
        if result is not None:
            say(f"{run_dir.name} is finished; nothing to do")
            return result
        new_training = functools.partial(Training, config, in_channels=data.x_train.shape[1], device=device)
        state = folder.load_checkpoint(device)
        start = 0 if state is None else state["step"]
        evaluated_at = 0 if state is None else state.get("evaluated_at", start)
        batches.select(None if state is None else state.get("selected"))
        training = new_training(batches.population(aim and aim.counts, max(start - 1, 0) // config.generation_steps))
        if start_from is not None:
            training.net.load_state_dict(training.net.state_dict() | start_from.weights)
        seconds = training.restore(state)
        folder.begin(environment(device, config.threads), start)
        metrics = folder.cut_back(evaluated_at)
        say(f"{run_dir.name}: {len(batches.x)} labeled, {len(batches.u)} unlabeled, {len(test.images)} test images "
            f"of {' x '.join(map(str, data.x_train.shape[2:]))} pixels; "
            f"{device}, {config.threads} threads, {config.precision}" + (f", from step {start}" if start else ""))
        with names_file(folder.path / "events"):
            events = SummaryWriter(folder.path / "events")
        for record in metrics:
            write_events(events, record)
        window = Window(data.n_classes, device)
        window.restore(state and state.get("window"))
        began = time.perf_counter() - seconds

        def seconds_so_far():
            return round(time.perf_counter() - began, 3)

        window_began = began + (metrics[-1]["seconds"] if metrics else 0.0)

        name, t = "-".join((config.method, *config.rebalance)), start - 1
        bar = tqdm(range(start, config.total_steps), desc=name, initial=start, total=config.total_steps,
                   disable=not progress, mininterval=1)
        for t in bar:
            if t and t % config.generation_steps == 0:
                training = next_generation(training, new_training, batches, test, aim, t)
            batch, u_target = batches.at(t)
            out = training.step(batch, t)
            window.add(out, u_target, t)

            is_evaluated = (t + 1) % config.eval_steps == 0 or t + 1 == config.total_steps
            is_saved = is_evaluated or stops or folder.is_checkpoint_due()
            if is_saved:
                window.stop_if_not_finite()
                training.stop_if_not_finite()
                record = counts = None
                if is_evaluated:
                    n_steps = t + 1 - (metrics[-1]["step"] if metrics else 0)
                    speed = n_steps * batches.images_per_step / (time.perf_counter() - window_began)
                    plain, adjusted = test.evaluate(training.evaluated, step=t + 1)
                    estimate = {} if batches.held_out is None else estimate_counts(training.evaluated, batches, test)
                    record = {
                        "step": t + 1, "lr": training.lr_at(t % config.generation_steps),
                        "losses": window.mean_losses(), "mask_rate": window.mask_rate(),
                        "accuracy": float(accuracy(plain)), "accuracy_adjusted": float(accuracy(adjusted)),
                        "test_images": int(plain.sum()), "images_per_s": round(speed, 1),
                        "seconds": seconds_so_far(), **estimate,
                    }
                    metrics.append(record)
                    bar.set_postfix_str(describe(record))
                    write_events(events, record)
                    counts, window = (window.counts.take(), plain, adjusted), Window(data.n_classes, device)
                state = training.state(t + 1, seconds_so_far()) | {
                    "selected": batches.selected, "evaluated_at": metrics[-1]["step"] if metrics else 0,
                    "window": window.state()}
                folder.write(record, counts, state)
                if is_evaluated:
                    window_began = time.perf_counter()
            if is_saved and stops:  # else it came just now
                folder.flush()
                said = f"{run_dir.name}: saved at step {t + 1:,} of {config.total_steps:,}; run again to continue"
                say(said)
                raise Interrupted(said)

        folder.flush()
        events.close()
        training.save_network(folder.path, data, config.train_resolution)
        pseudo_labeled = pseudo_label(training, test, batches, t=config.generation_steps - 1)  # as in the last step
        write_npz(folder.path / "outputs.npz", outputs(training, test, batches, pseudo_labeled))
        if pseudo_labeled is not None:
            table = predictions(pseudo_labeled.probs, pseudo_labeled.labels.final, data.class_names,
                                index=batches.unlabeled_index, files=batches.unlabeled_names)
            text = table.to_csv(index=False, float_format="%.6f")
            # File names that are no UTF-8 go out as they came in.
            write_bytes(folder.path / "predictions.csv", text.encode(errors="surrogateescape"))
        result = summarize(metrics, folder.finish_counts(), batches.labeled_counts.tolist())
        if len(split.validation):
            validation = data.x_train[split.validation], data.y_train[split.validation]
            result["validation_accuracy"] = share_correct(training.evaluated, *validation, normalize)
        if batches.held_out is not None:
            result["unlabeled_counts"] = average_estimates([record["unlabeled_estimate"] for record in metrics])
        result = folder.finish(result)
    if stops:  # too late to save any time, and still for whatever would come next
        raise Interrupted(f"{run_dir.name}: finished; run again to see the result")
    return result


@contextmanager
def diverged_explained(folder, steps):
    """Have a `FloatingPointError` say after how many steps, as `steps` returns, it ended the run, and what is left."""
    try:
        yield
    except FloatingPointError as error:
        folder.flush()
        kept = "the checkpoint before is kept" if folder.checkpoint.exists() else "there is no checkpoint before"
        raise FloatingPointError(f"{error}. The run stopped after {steps()} steps, and {kept}; run again, it stops "
                                 "there again: choose a smaller lr or precision='fp32'") from error


def choose_device(name):
    """Return the `torch.device` for a configuration's ``device``; ``auto`` is a GPU if there is one, else the CPU.

    Raises
    ------
    ValueError
        If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("prototypes and class weights need double precision; cpu and cuda are supported")
        torch.zeros(1, device=device).item()  # "meta" gives no numbers back
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name!r}: choose auto, or a device that torch has here ({reason})") from None
    return device


def check_compiler(device):
    """Compile something small for `device`, so that a missing compiler is noticed before any work.

    Raises
    ------
    ValueError
        If torch cannot compile here; its reason is in the message.
    """
    try:
        torch.compile(lambda x: (x + 1).sum(), fullgraph=True)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a compiler makes of it
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(f"compile=True: torch cannot compile for {device.type} here ({type(error).__name__}: "
                         f"{reason}); install a C++ compiler, or choose compile=False") from error


def check_network(config):
    """Refuse a WideResNet whose weights, gradients and momentum take more memory than is free, before it is built.

    Raises
    ------
    ValueError
        Naming its depth and width.
    """
    if config.network == "wrn":
        with torch.device("meta"):  # takes no memory
            net = build_network(config, in_channels=3, n_classes=2)
        check_memory(f"depth={config.depth}, width={config.width}",
                     3 * sum(weights.nbytes for weights in net.parameters()), "choose a smaller depth or width")


def next_generation(old, new_training, batches, test, aim, t):
    """Label unlabeled images with the network of the last generation, and return a new `Training` from scratch.

    Parameters
    ----------
    old : Training
    new_training : callable
        Population -> Training.
    batches : dasolib.batches.Batches
        Its labeled images change.
    test : dasolib.evaluation.TestSet
    aim : dasolib.sources.UnlabeledCounts or None
    t : int
        First step of the new generation.
    """
    old.stop_if_not_finite()
    logits = predict(old.evaluated, batches.u, test.normalize)[1]
    rows, classes = old.rebalance.select(logits.softmax(dim=-1))
    batches.select({"rows": rows, "classes": classes})
    new = new_training(batches.population(aim and aim.counts, t // old.generation_steps))
    new.rebalance.carry_over(old.rebalance)
    return new


class Training:
    """Everything that training changes: network, moving average, optimiser, and state of the methods.

    Parameters
    ----------
    config : dasolib.config.Config
    population : dasolib.rebalance.part.Population
        What the re-balancing methods are built for; also says which generation of CReST this is.
    in_channels : int
        Channels of the images.
    device : torch.device
    """

    def __init__(self, config, population, in_channels, device):
        learner, lines = LEARNERS[config.method], [REBALANCERS[name] for name in config.parts()]
        n_classes = len(population.labeled)
        self.generation_steps = config.generation_steps
        self.temperature = config.sharpen_temperature if "sharpen_temperature" in learner.settings else 1
        self.net = build_network(
            config, n_classes=n_classes, in_channels=in_channels,
            heads=learner.heads | {line.head: n_classes for line in lines if line.head},
            predictor=next((line.head for line in lines if line.head), None),
            generator=host_generator(config.seed, "initial weights", population.generation),
        ).to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
        if any("source" in line.needs for line in lines):
            self.net.requires_grad_(False)  # in train mode still: the buffers of the encoder move
            self.net.head.requires_grad_(True)
        self.ema = EMA(self.net, cap=config.ema_decay, weight_decay=config.ema_weight_decay) if learner.ema else None
        self.rebalance = build_rebalance(config, population, self.net.feat_dim).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=config.lr, momentum=config.momentum,
                                         nesterov=config.nesterov, weight_decay=config.weight_decay, fused=True)
        self.memory, memory = None, {}
        if learner.memory is not None:
            settings = {name: getattr(config, name) for name in learner.memory_settings}
            self.memory = learner.memory(population.labeled, self.net.feat_dim, **settings).to(device)
            memory = {"memory": self.memory}
        learner_step = functools.partial(learner.step, **config.learner_settings(), **memory)
        as_graph = functools.partial(torch.compile, fullgraph=True) if config.compile else lambda function: function
        self.learner_step, self.end_step = as_graph(learner_step), as_graph(self.rebalance.end_step)
        self.lr_at = functools.partial(
            lr_at, lr=config.lr, schedule=config.schedule, total_steps=config.generation_steps,
            warmup_steps=config.warmup_steps, warmup_factor=config.warmup_factor,
            warmup_shape=config.warmup_shape, milestones=config.milestones, lr_decay=config.lr_decay,
            cosine_ratio=config.cosine_ratio,
        )

    @property
    def evaluated(self):
        """The network that is evaluated: the moving average where the method keeps one."""
        return self.net if self.ema is None else self.ema.model

    def step(self, batch, t):
        """Take optimizer step `t` (from 0) of the run on a `Batch`; return the method's `StepOutput`."""
        t %= self.generation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(t)
        self.net.train()
        # A graph is compiled for any t on one side of a threshold such as DASO's P, not for each t anew.
        with torch.compiler.config.patch(dynamic_sources=T_IS_DYNAMIC):
            out = self.learner_step(self.net, self.ema, batch, self.rebalance, t=t)
            self.end_step(out.labels, t=t)
        self.optimizer.zero_grad(set_to_none=True)
        sum(out.losses.values()).backward()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.net, t, lr=self.lr_at(t + 1))
        return out

    def stop_if_not_finite(self):
        """Raise `FloatingPointError` if a number of the state is NaN or infinite, though each loss was fine."""
        tensors = dict(_float_tensors(self.state(0, 0.0)))
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
        bad = [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]
        if bad:
            more = f" and {len(bad) - 1} more of {len(tensors)} tensors are" if len(bad) > 1 else " is"
            raise FloatingPointError(f"{bad[0]}{more} not finite")

    def state(self, step, seconds):
        """State after `step` steps, as a checkpoint stores it; random numbers need none, see `dasolib.seeds`."""
        return {
            "step": step, "seconds": seconds, "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(), "rebalance": self.rebalance.state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
        }

    def restore(self, state):
        """Take over a checkpoint's state, if there is one; return the seconds that its steps took."""
        if state is None:
            return 0.0
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rebalance.load_state_dict(state["rebalance"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
        return state["seconds"]

    def save_network(self, path, data, resolution):
        """Write the evaluated network as ``model.safetensors``, and how to rebuild and feed it as ``model.json``.

        What it is fed are images of ``image_size`` (height, width), of larger ones the center, then ``resolution``.
        """
        weights = {name: tensor.contiguous() for name, tensor in self.evaluated.state_dict().items()}
        write_bytes(path / NETWORK, safetensors.save(weights))
        write_json(path / "model.json", {
            **self.net.description(),
            "class_names": data.class_names, "mean": data.mean, "std": data.std, "resolution": resolution,
            "image_size": list(data.x_train.shape[-2:]), "image_crop": "center",
            "evaluated": "student" if self.ema is None else "ema",
        })


class Window:
    """What the steps between two evaluations add up to, on the device; read back only at the evaluation."""

    def __init__(self, n_classes, device):
        self.counts = PseudoLabelCounts(n_classes, device)
        self.losses = {}
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # first step with a loss not finite
        self.bad_losses = {}

    @torch.no_grad()
    def add(self, out, u_target, t):
        """Add the `StepOutput` of step `t` and the hidden classes of its unlabeled images."""
        is_first = (self.first_bad < 0) & ~torch.isfinite(sum(out.losses.values()))
        self.first_bad = torch.where(is_first, t, self.first_bad)
        for name, loss in out.losses.items():
            total, n_steps = self.losses.get(name, (0, 0))
            self.losses[name] = total + loss, n_steps + 1
            self.bad_losses[name] = torch.where(is_first, loss, self.bad_losses.get(name, torch.zeros_like(loss)))
        if out.labels is not None:
            self.counts.add(out.labels, out.mask, u_target)

    def stop_if_not_finite(self):
        """Raise `FloatingPointError` if the loss of a step, or the sum of a term, was NaN or infinite."""
        step = int(self.first_bad)
        if step >= 0:
            terms = ", ".join(f"{name} = {float(loss)}" for name, loss in self.bad_losses.items())
            raise FloatingPointError(f"the loss is not finite since step {step}: {terms}")
        if bad := [name for name, (total, _) in self.losses.items() if not total.isfinite()]:
            raise FloatingPointError(f"the sum of the loss {', '.join(bad)} since the last evaluation is not finite")

    def state(self):
        """State, as a checkpoint between two evaluations stores it: sums of losses that were all finite, and counts."""
        return {"counts": self.counts.counts, "losses": self.losses}

    def restore(self, state):
        """Take over the state of a window, if there is one."""
        if state is not None:
            self.counts.counts, self.losses = state["counts"], state["losses"]

    def mean_losses(self):
        """Mean of each loss term over the window's steps that have it."""
        return {name: _six_digits(float(total) / n_steps) for name, (total, n_steps) in self.losses.items()}

    def mask_rate(self):
        """Share of pseudo-labels in the loss, in [0, 1]; None for a method without pseudo-labels."""
        final, confident = (self.counts.counts[KINDS.index(kind)].sum() for kind in ("final", "confident"))
        return _six_digits(float(confident / final)) if final else None


def _float_tensors(value, name=""):
    """Yield each floating-point tensor in nested containers, with its path."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        yield name, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _float_tensors(item, f"{name}.{key}" if name else str(key))


def _six_digits(value):
    """Round to what float32 is sure of; more digits only make ``metrics.jsonl`` longer."""
    return float(f"{value:.6g}")


def write_events(events, record):
    """Write one line of ``metrics.jsonl`` to TensorBoard."""
    flat = {name: value for name, value in record.items() if name not in ("step", "losses", "unlabeled_estimate")}
    flat |= {f"loss/{name}": value for name, value in record["losses"].items()}
    with names_file(events.log_dir):
        for name, value in flat.items():
            if value is not None:
                events.add_scalar(name, value, record["step"])
        events.flush()  # a run that is stopped keeps them

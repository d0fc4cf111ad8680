"""Learning rate and loss ramp-up as pure functions of the step."""

import math

SCHEDULES = ("constant", "cosine", "cosine_half", "multistep")


def lr_at(t, *, lr, schedule, total_steps, warmup_steps=0, warmup_factor=0.0, warmup_shape="linear",
          milestones=(), lr_decay=0.1, cosine_ratio=7):
    """Learning rate of step `t`.

    Parameters
    ----------
    t : int
        Optimizer step, counted from 0.
    lr : float
        Base learning rate.
    schedule : {"constant", "cosine", "cosine_half", "multistep"}
        ``cosine`` is FixMatch's ``cos(ratio pi t / (16 T))``, ``cosine_half`` is ``(1 + cos(pi t / T)) / 2``,
        ``multistep`` multiplies by `lr_decay` at each of `milestones` (a milestone counts from ``t >= milestone``).
    total_steps : int
        T, the length of the run in steps.
    warmup_steps, warmup_factor, warmup_shape : int, float, {"linear", "constant"}
        While ``t < warmup_steps`` the rate is multiplied by ``f (1 - a) + a`` with ``a = t / warmup_steps``
        (linear), or by ``f`` (constant).

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If `schedule` or `warmup_shape` is unknown.

    Examples
    --------
    >>> [round(lr_at(t, lr=0.1, schedule="multistep", total_steps=10, milestones=(8, 9)), 6) for t in (0, 8, 9)]
    [0.1, 0.01, 0.001]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if warmup_shape not in ("linear", "constant"):
        raise ValueError(f"warmup_shape={warmup_shape!r}: choose linear or constant")
    if t < warmup_steps:
        passed = t / warmup_steps if warmup_shape == "linear" else 0.0
        lr = lr * (warmup_factor * (1 - passed) + passed)
    if schedule == "cosine":
        return lr * math.cos(cosine_ratio * math.pi * t / (16 * total_steps))
    if schedule == "cosine_half":
        return lr * (1 + math.cos(math.pi * t / total_steps)) / 2
    if schedule == "multistep":
        return lr * lr_decay ** sum(t >= milestone for milestone in milestones)
    return lr


def ramp_up(t, *, length, shape="linear"):
    """Weight in [0, 1] that a loss has at step `t`: ``min(t / length, 1)``, or ``exp(-5 (1 - min(t / length, 1))^2)``.

    Examples
    --------
    >>> ramp_up(25, length=100), ramp_up(200, length=100, shape="exp")
    (0.25, 1.0)
    """
    if shape not in ("linear", "exp"):
        raise ValueError(f"shape={shape!r}: choose linear or exp")
    done = min(t / length, 1.0)
    return done if shape == "linear" else math.exp(-5 * (1 - done) ** 2)

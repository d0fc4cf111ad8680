"""Random numbers as a function of (seed, purpose, step), so that resuming has no generator to restore."""

import zlib

import numpy as np
import torch


def host_generator(seed, purpose, step=0):
    """Return a CPU generator that depends on nothing but its arguments.

    Parameters
    ----------
    seed : int
        The run's seed, >= 0.
    purpose : str
        What is drawn, for example ``"weak"``; different purposes give independent streams.
    step : int
        Optimizer step or epoch, >= 0.

    Returns
    -------
    torch.Generator
        On the CPU: everything random is drawn there and passed on as ordinary arguments, so that a step on
        another device never waits for a random number.

    Examples
    --------
    >>> first = torch.rand(2, generator=host_generator(0, "weak", 7))
    >>> torch.equal(first, torch.rand(2, generator=host_generator(0, "weak", 7)))
    True
    >>> torch.equal(first, torch.rand(2, generator=host_generator(0, "weak", 8)))
    False
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))

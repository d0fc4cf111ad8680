"""A process and its machine: threads, what becomes of freed memory, and how much of it there is."""

import contextlib
import ctypes
import sys

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>


def prepare_host(threads):
    """Compute with `threads` threads, and keep freed memory in the process.

    A step on a CPU frees its activations and allocates as many in the next. By default the C library gives large pieces
    back to the system, which clears every page again: `python -m benchmarks.host_memory` measures what that costs. The
    process then holds its peak until it ends. Where the C library is not glibc, it does as it likes.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # everything from the heap,
        mallopt(M_TRIM_THRESHOLD, -1)  # of which nothing is returned


@contextlib.contextmanager
def names_file(path):
    """Let an `OSError` name a file: those of writing, such as "No space left on device", do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_memory(what, n_bytes, remedy):
    """Refuse what needs more memory than is free, before it is allocated.

    Parameters
    ----------
    what : str
        What is asked for: the start of the message.
    n_bytes : int
    remedy : str
        The end of the message.

    Raises
    ------
    ValueError
        If `n_bytes` is more than the system has left without swapping.
    """
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise ValueError(f"{what}: takes {n_bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; {remedy}")

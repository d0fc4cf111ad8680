"""A process and its machine: threads, memory freed and free, and how the process is asked to stop."""

import contextlib
import ctypes
import signal
import sys
import threading
import warnings

import psutil
import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>
# Ctrl-C; a scheduler takes the machine back; a terminal is closed; a scheduler is asked to warn in time.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
EXIT_INTERRUPTED = 130  # exit code of a process that was asked to stop and has lost nothing


class Interrupted(SystemExit):
    """A run was asked to stop and is saved: says at which step.

    A process that does not catch it ends with `EXIT_INTERRUPTED`, a cell of a notebook without a traceback.
    """

    def __init__(self, text):
        super().__init__(text)
        self.code = EXIT_INTERRUPTED
        warnings.filterwarnings("ignore", "To exit: use ", module="IPython")  # which is for its prompt


@contextlib.contextmanager
def stop_signals():
    """Have the signals that ask a process to stop only be noted, in the list that this yields.

    An exception would come in any moment: while a process is being started that then nobody ends, or while a state is
    half changed. A signal that is ignored, as nohup asks for, stays so. Only a main thread hears any.
    """
    asked = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

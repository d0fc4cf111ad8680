"""Where the images of a run live: on its device if they fit, else on the host, from where steps are served ahead."""

from concurrent.futures import ThreadPoolExecutor

import torch

# Of the memory that is free on a device at the start, what images may take there. The rest is for weights and their
# averages, for activations, which are by far the largest part, and for another run that starts on the same device.
RESIDENT_SHARE = 0.25


def fits(data, device):
    """Whether the images of `data` may live on `device`.

    Parameters
    ----------
    data : dasolib.data.ImageData
    device : torch.device

    Returns
    -------
    bool
        True for the host, where they are anyhow; for a GPU if they take at most `RESIDENT_SHARE` of its free memory.
    """
    if device.type == "cpu":
        return True
    images = (data.x_train, data.x_test, data.x_unlabeled)
    free, _ = torch.cuda.mem_get_info(device)
    return sum(part.nbytes for part in images if part is not None) <= RESIDENT_SHARE * free


def ready_for(images, device):
    """Return `images`, in pinned memory if they are on the host and `device` is a GPU: copying them does not wait.

    Only what is about to be copied is pinned. To pin a whole data set would hold it in memory twice for a while, and a
    gather reads ordinary memory as fast.
    """
    return images.pin_memory() if images.device.type == "cpu" and device.type == "cuda" else images


def send(values, device):
    """Copy a tensor to `device`: neither waits for the other, as it goes from pinned memory to a GPU."""
    return ready_for(values, device).to(device, non_blocking=True)


class Ahead:
    """A function of the step whose next value is computed by a thread while the present one is used.

    Parameters
    ----------
    function : callable
        Step -> value. Runs in the thread; what it raises is raised by the call that asks for that step.
    end : int
        First step that nobody will ask for.
    """

    def __init__(self, function, end):
        self.function, self.end = function, end
        self.thread, self.pending = None, {}

    def __call__(self, t):
        """Value of step `t`; it need not be the one that was expected."""
        self.thread = self.thread or ThreadPoolExecutor(1, thread_name_prefix="ahead")
        current = self.pending.pop(t, None) or self.thread.submit(self.function, t)
        self.forget()
        if t + 1 < self.end:
            self.pending = {t + 1: self.thread.submit(self.function, t + 1)}
        return current.result()

    def forget(self):
        """Drop what was computed ahead, as what it was computed from is about to change."""
        for future in self.pending.values():
            if not future.cancel():
                future.exception()  # waits until it no longer reads anything
        self.pending = {}

    def close(self):
        """Stop the thread; a later call starts another one."""
        self.forget()
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None

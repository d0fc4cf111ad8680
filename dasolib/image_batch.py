"""A batch of uint8 images and the random choices for it: what they must be, and the way from the host to a device."""

import numpy as np
import torch
from torch import Tensor

from dasolib.residency import send


def send_array(array, device):
    """Copy a host array to `device` as `dasolib.residency.send` does."""
    return send(torch.from_numpy(np.ascontiguousarray(array)), device)


def host_array(name, values, shape, low, high):
    """Array behind a host tensor of draws, after checking its device, shape and range."""
    if not isinstance(values, Tensor) or values.device.type != "cpu" or tuple(values.shape) != shape:
        got = f"{tuple(values.shape)} on {values.device}" if isinstance(values, Tensor) else repr(values)
        raise ValueError(f"{name} must be a CPU tensor of shape {shape}, got {got}")
    # Unlike `Tensor.numpy`, this reads memory without an operator call, so it also works where operators are traced.
    array = np.from_dlpack(values)
    if array.size and not (array.min() >= low and array.max() <= high):
        raise ValueError(f"{name} must be in {low}..{high}, got {array.min()}..{array.max()}")
    return array


def check_images(images):
    """Shape of `images`, which must be uint8 (N, C, H, W) with C 1 or 3."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be uint8 of shape (N, C, H, W), got {got}")
    if images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images must have 1 or 3 channels and at least one pixel, got shape {tuple(images.shape)}")
    return images.shape


def check_memory_format(memory_format):
    """Refuse a memory format that views and the network do not have."""
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")


def check_size(height, width):
    """Refuse images without a pixel."""
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be >= 1, got {height} and {width}")


def check_draws(n, generator, *, pad=0):
    """Refuse to draw for fewer than no images, from a generator on a device."""
    if n < 0 or pad < 0:
        raise ValueError(f"n and pad must be >= 0, got n {n} and pad {pad}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be on the CPU, got one on {generator.device}")

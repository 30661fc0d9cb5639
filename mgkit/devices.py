"""Devices and types of numbers to run on."""

import sys

import torch

from mgkit.brief import brief
from mgkit.packed import packable


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, by default the best one.

    Raises:
        ValueError: an unknown name, or a device that this machine lacks.
    """
    best = best_device()
    try:
        target = best if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"the device is {brief(device)}; it must be cuda, mps or cpu") from None
    if target.type not in ("cpu", best.type):
        raise ValueError(
            f"there is no {target.type} device here; leave device out for {best.type}, or give 'cpu'"
        )
    return target


def parse_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The type of the language model's weights, by default float32 on a CPU and float16 on a GPU.

    Raises:
        ValueError: another type, or int8 where it cannot be computed with.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype == torch.int8):
        raise ValueError(
            f"dtype is {brief(dtype)}; it must be torch.float32, .bfloat16, .float16 or, on a CPU, .int8"
        )
    if dtype == torch.int8 and device.type != "cpu":
        raise ValueError(f"torch.int8 is for a CPU; on {device.type}, leave dtype out for torch.float16")
    if dtype == torch.int8 and not packable(dtype):
        raise ValueError("this torch cannot multiply in torch.int8 on a CPU; give dtype=torch.float32")
    if dtype == torch.bfloat16 and device.type == "cpu" and not packable(dtype):
        print("this CPU has no instructions for bfloat16: float32 is faster", file=sys.stderr)
    return dtype

"""Numbers on a command line, for argparse's `type=`: a number out of range is refused before any work."""

import argparse
import math


def count(text: str) -> int:
    """An integer of at least 1, such as a number of steps.

    >>> count("12")
    12
    """
    return _integer(text, 1)


def index(text: str) -> int:
    """An integer of at least 0, such as a seed."""
    return _integer(text, 0)


def amount(text: str) -> float:
    """A finite number above 0, such as minutes.

    >>> amount("0.5")
    0.5
    """
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range; give a number above 0")
    return value


def weight(text: str) -> float:
    """A finite number of at least 0, such as the weight of a loss."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range; give a number of at least 0")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range; give a number from 0 to 1")
    return value


def shard(text: str) -> tuple[int, int]:
    """A part of a whole, counted from 1, as (index from 0, number of parts).

    >>> shard("2/4")
    (1, 4)
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 1/4, 2/4, 3/4 or 4/4")
    return int(part) - 1, int(parts)


def _integer(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    # torch's generators take 63 bits
    if not low <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range; give an integer of at least {low}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; give one, such as 1.5") from None

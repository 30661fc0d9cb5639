"""Numbers that may change over the seconds of a piece, such as the strength of guidance.

3.0                          the same at every second
[(0, 1.0), (4, 3.0)]         rises from second 0 to 4 and stays
[(2, 1.0), (2, 3.0)]         jumps at second 2
"""

from bisect import bisect_right
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

from mgkit.brief import brief

LATEST = 1e9  # seconds

Schedule: TypeAlias = float | Sequence[tuple[float, float]]
"""A number, or pairs of seconds and values: linear between two, constant before the first, after the last."""


def parse_schedule(value: object, name: str, low: float, high: float) -> Schedule:
    """The schedule of a number from `low` to `high`; a number if it never changes.

    Raises:
        ValueError: another type, falling times, or a value out of range.

    >>> parse_schedule([(0, 1), (4, 3)], "cfg_coef", -10, 10), parse_schedule([(0, 3)], "cfg_coef", -10, 10)
    (((0.0, 1.0), (4.0, 3.0)), 3.0)
    """
    expected = f"it must be a number from {low:g} to {high:g}, or a schedule such as [(0, 1.0), (4, 3.0)]"
    if _is_number(value, low, high):
        return float(value)  # type: ignore[arg-type]
    pairs = value if isinstance(value, list | tuple) else []
    if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{name} is {brief(value)}; {expected}")
    times, values = [time for time, _ in pairs], [number for _, number in pairs]
    if not all(_is_number(time, 0, LATEST) for time in times) or times != sorted(times):
        raise ValueError(f"the times of {name} are {brief(times)}; they must be rising seconds from 0 on")
    if not all(_is_number(number, low, high) for number in values):
        raise ValueError(f"the values of {name} are {brief(values)}; {expected}")
    if len(set(values)) == 1:
        return float(values[0])
    return tuple((float(time), float(number)) for time, number in pairs)


def value_at(schedule: Schedule, seconds: float) -> float:
    """The value of a schedule at a time; where it jumps, the later one.

    >>> [value_at(((0.0, 1.0), (4.0, 3.0), (4.0, 0.0)), seconds) for seconds in (0, 2, 4, 9)]
    [1.0, 2.0, 0.0, 0.0]
    """
    if isinstance(schedule, float | int):
        return schedule
    after = bisect_right([time for time, _ in schedule], seconds)
    if after == 0 or after == len(schedule):
        return schedule[max(0, after - 1)][1]
    (start, one), (end, other) = schedule[after - 1 : after + 1]
    return one + (other - one) * (seconds - start) / (end - start)


def _is_number(value: Any, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    number: Any = value  # mypy's Real has no order
    return bool(low <= number <= high)

"""Exercises in notebooks: check the reader's answer and print the result.

A missing answer, left as `...`, is not wrong: a notebook runs to its end before the exercises are done.
"""

from collections.abc import Callable
from types import EllipsisType
from typing import TypeVar

Answer = TypeVar("Answer")


def check(answer: Answer | EllipsisType, right: Callable[[Answer], bool], hint: str) -> None:
    """Print one line on whether `right(answer)`, with `hint` if not. Never raises.

    >>> check(..., lambda steps: steps == 503, "how long is the longest delay?")
    Your turn: replace the three dots with your answer and run the cell again.
    >>> check(503, lambda steps: steps == 503, "how long is the longest delay?")
    Correct.
    >>> check("many", lambda steps: steps > 100, "count")
    Not yet (got 'many'). Hint: count
    """
    if isinstance(answer, EllipsisType):
        print("Your turn: replace the three dots with your answer and run the cell again.")
        return
    # An answer of another type is wrong, but no reason for a traceback.
    try:
        correct = bool(right(answer))
    except Exception:
        correct = False
    shown = repr(answer)
    print("Correct." if correct else f"Not yet (got {shown[:60]}{'…' * (len(shown) > 60)}). Hint: {hint}")

"""What an exercise in a notebook needs: a place for the reader's answer, and a word on whether it is right.

An answer left as `...` is not wrong, only missing: a notebook runs to its end before anybody has done the exercises.
"""

from collections.abc import Callable
from typing import Any


def check(answer: Any, right: Callable[[Any], bool], hint: str) -> None:
    """Says in one line whether `right(answer)`; `hint` is where to look when it is not. Never raises.

    >>> check(..., lambda steps: steps == 503, "how long is the longest delay?")
    Your turn: put your answer in place of the three dots, and run the cell again.
    >>> check(503, lambda steps: steps == 503, "how long is the longest delay?")
    Right.
    >>> check("many", lambda steps: steps > 100, "count")
    Not yet (got 'many'). Hint: count
    """
    if answer is ...:
        print("Your turn: put your answer in place of the three dots, and run the cell again.")
        return
    # an answer of another kind than asked for is not yet right, and no reason for a traceback
    try:
        correct = bool(right(answer))
    except Exception:
        correct = False
    shown = repr(answer)
    print("Right." if correct else f"Not yet (got {shown[:60]}{'…' * (len(shown) > 60)}). Hint: {hint}")

"""Exercises in notebooks: check the reader's answer by the exercise's name, and print the result.

    answer = ...
    exercises.check("steps", answer)

`answers.py` holds what is right and the hints; notebooks/solutions explains. A missing answer, left as `...`,
is not wrong: a notebook runs to its end before the exercises are done.
"""

from collections.abc import Sequence
from types import EllipsisType
from typing import TypeVar

from mgkit.lab.answers import ANSWERS, Exercise, letters

Clip = TypeVar("Clip")


def check(name: str, answer: object, *context: object) -> None:
    """Print one line on whether the answer to the exercise is right, with a hint if not.

    Raises: ValueError if there is no exercise of this name. No answer, whatever its type, raises.

    >>> check("steps of small", ...)
    Your turn: replace the three dots with your answer and run the cell again.
    >>> check("steps of small", "many")
    Not yet (got 'many'). Hint: one step per frame, and a few more until the last codebook has caught up
    """
    if name not in ANSWERS:
        raise ValueError(
            f"there is no exercise {name!r}: restore the cell as it was, and change only the dots"
        )
    _print_result(ANSWERS[name], answer, context)


def _print_result(exercise: Exercise, answer: object, context: Sequence[object]) -> None:
    if isinstance(answer, EllipsisType):
        print("Your turn: replace the three dots with your answer and run the cell again.")
        return
    # An answer of another type is wrong, but no reason for a traceback.
    try:
        correct = bool(exercise.right(answer, *context))
    except Exception:
        correct = False
    if correct:
        print("Correct.")
        return
    shown = repr(answer)
    print(f"Not yet (got {shown[:60]}{'…' * (len(shown) > 60)}). Hint: {exercise.hint}")


def shuffled(name: str, clips: Sequence[Clip]) -> list[tuple[str, Clip]]:
    """The clips of a listening exercise under letters that do not give them away, as pairs (letter, clip).

    The order depends on the name alone, so an answer stays right when the notebook runs again.

    >>> shuffled("by ear", ["guitar", "flute", "drums"])
    [('A', 'flute'), ('B', 'guitar'), ('C', 'drums')]
    """
    return sorted(zip(letters(name, len(clips)), clips), key=lambda pair: pair[0])

"""What the notebooks' exercises accept, and their hints, by name. Solutions are in notebooks/solutions.

A notebook passes what a predicate needs beside the answer: `exercises.check("transposed", answer, classes)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from mgkit.edits import ScaleHead
from mgkit.melody import Similarity


@dataclass(frozen=True)
class Exercise:
    """A predicate of the answer and its context, and a hint that does not contain the answer."""

    right: Callable[..., bool]
    hint: str


def letters(name: str, count: int) -> list[str]:
    """Letters under which the `count` clips of a listening exercise are played: in a fixed, shuffled order.

    >>> sorted(letters("which is which", 3))
    ['A', 'B', 'C']
    """
    return Random(name).sample([chr(ord("A") + position) for position in range(count)], count)


def by_ear(name: str, position: int, count: int, hint: str) -> Exercise:
    """Exercise whose answer is the letter of the clip at `position` among the notebook's `count` clips."""
    return Exercise(lambda letter: letter.strip().upper() == letters(name, count)[position], hint)


def _accuracy(similarities: Sequence[Similarity]) -> float:
    """Mean accuracy of several pieces of music that follow a melody."""
    return sum(one.accuracy for one in similarities) / len(similarities)


ANSWERS = {
    # 02_sampling
    "largest entropy": Exercise(
        lambda bits, size: abs(2**bits - size) < 1, "how often can you halve the number of tokens?"
    ),
    "tokens in the nucleus": Exercise(
        lambda count: count == 2,
        "add them up, most likely first, until 0.7 is reached; sampling.probabilities does the same",
    ),
    "guided logit": Exercise(
        lambda logit: abs(logit - 4) < 1e-6, "null + (conditional - null) * cfg_coef: see sampling.guide"
    ),
    "temperature by ear": by_ear(
        "temperature by ear", 2, 3, "a high temperature draws unlikely tokens: listen for noise between notes"
    ),
    # 05_codec
    "published bitrate": Exercise(
        lambda bits: abs(bits - 2200) < 1e-6, "how many bits does it take to name one of 2048 entries?"
    ),
    "perplexity of eight": Exercise(
        lambda value: abs(value - 8) < 0.01, "call perplexity on counts of your own"
    ),
    "codebooks by ear": by_ear("codebooks by ear", 1, 3, "which one is the dullest and least steady?"),
    # 06_delay
    "steps of small": Exercise(
        lambda steps: steps == 1503,
        "one step per frame, and a few more until the last codebook has caught up",
    ),
    "frame at step 20": Exercise(
        lambda frame: frame == 16, "codebook 0 generates frame 0 at step 1; the slider shows the others"
    ),
    "steps of stereo": Exercise(
        lambda steps: steps == 503, "only the longest delay counts: see delays(8, channels=2)"
    ),
    "delay by ear": by_ear(
        "delay by ear", 1, 2, "listen for the attack of each drum: is it sharp or smeared?"
    ),
    # 13_chords
    "minor seventh": Exercise(
        lambda notes: set(notes) == {0, 2, 5, 9}, "a minor triad on D, and a minor seventh above its root"
    ),
    "frames of a chord": Exercise(
        lambda frames: abs(frames - 18.75) < 1,
        "seconds of four beats, times samples per second, divided by samples per frame",
    ),
    "chords by ear": by_ear("chords by ear", 0, 3, "follow the bass: does it move at the start of each bar?"),
    # 10_listen
    "prompts for five points": Exercise(
        lambda count, width: 0.095 < width(count) <= 0.1,
        "width(200) is too wide; four times the prompts halve it",
    ),
    "constant tempo": Exercise(
        lambda tempo, accuracy: accuracy(tempo) == max(map(accuracy, range(40, 201))),
        "try every tempo, and keep the one that is correct most often",
    ),
    "answers that agree": Exercise(
        lambda count: count == 10, "preferences.sign_test(8, 4) is 0.39; continue from there"
    ),
    "codec by ear": by_ear(
        "codec by ear", 1, 2, "listen to the chord while it fades: what is between its tones?"
    ),
    # 12_steer
    "heads that follow": Exercise(
        lambda count, following: count == int((following > 0.01).sum()), "compare, then count what is true"
    ),
    "half a head": Exercise(
        lambda share, follow, reader: abs(share - _accuracy(follow([ScaleHead(*reader, 0.5)])[1])) < 0.01,
        "follow(edits) returns the waves and their similarities, each with an accuracy: take the mean",
    ),
    "head by ear": by_ear("head by ear", 1, 2, "sing the melody along with each: which one goes elsewhere?"),
}

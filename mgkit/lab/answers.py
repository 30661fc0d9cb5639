"""What the notebooks' exercises accept, and their hints, by name. Solutions are in notebooks/solutions.

A notebook passes what a predicate needs beside the answer: `exercises.check("transposed", answer, classes)`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch

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


def by_ear(name: str, position: int, count: int, hint: str) -> dict[str, Exercise]:
    """Entry of an exercise whose answer is the letter of the clip at `position` among `count` clips."""
    return {name: Exercise(lambda letter: letter.strip().upper() == letters(name, count)[position], hint)}


def _accuracy(similarities: Sequence[Similarity]) -> float:
    """Mean accuracy of several pieces of music that follow a melody."""
    return sum(one.accuracy for one in similarities) / len(similarities)


ANSWERS = {
    # 01_demo
    "tokens of eight seconds": Exercise(
        lambda count: count == 1600, "50 frames per second; how many tokens has a frame?"
    ),
    "seed of the third": Exercise(
        lambda seed: seed == 12,
        "generate three samples of one second with return_manifests=True, and look at manifests[2]",
    ),
    "without guidance": Exercise(
        lambda take, prompt: take.manifest["settings"]["cfg_coef"] == 1 and take.manifest["text"] == prompt,
        "call panel.generate as above, and add a setting",
    ),
    **by_ear("drums by ear", 1, 3, "in which one do you hear a beat?"),
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
    **by_ear(
        "temperature by ear", 2, 3, "a high temperature draws unlikely tokens: listen for noise between notes"
    ),
    # 03_melody
    "melody of silence": Exercise(
        lambda name: name == "C", "melody.classes(torch.zeros(1, rate), rate, 1) is a number: name it"
    ),
    "three semitones up": Exercise(
        lambda moved, classes: torch.equal(moved, (classes + 3) % 12), "add to the numbers; which follows 11?"
    ),
    "seconds of 235 frames": Exercise(
        lambda seconds: abs(seconds - 29.952) < 0.1,
        "how many hops are there from the first frame to the last?",
    ),
    **by_ear("melody by ear", 0, 3, "sing the recording's first notes: do they go up or down?"),
    # 04_continuation
    "windows in a minute": Exercise(
        lambda count: count == 3, "windows() takes frames and returns a list; its second argument is 0 here"
    ),
    "there and back": Exercise(
        lambda timeline, calm, wild: list(map(tuple, timeline)) == [(0, calm), (4, wild), (7, calm)],
        "three pairs (second, prompt)",
    ),
    "context of window 2": Exercise(
        lambda seconds, plan, frame_rate: seconds == plan[1].known / frame_rate,
        "a window of the plan counts its `known` frames",
    ),
    **by_ear("change by ear", 2, 3, "when does each of them leave the piano and turn brighter?"),
    # 05_codec
    "published bitrate": Exercise(
        lambda bits: abs(bits - 2200) < 1e-6, "how many bits does it take to name one of 2048 entries?"
    ),
    "perplexity of eight": Exercise(
        lambda value: abs(value - 8) < 0.01, "call perplexity on counts of your own"
    ),
    **by_ear("codebooks by ear", 1, 3, "which one has the faintest wooden strokes and the most hiss?"),
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
    **by_ear("delay by ear", 1, 2, "listen for the attack of each drum: is it sharp or smeared?"),
    # 07_inside
    "most attended word": Exercise(
        lambda word, traced: word == traced.words[int(traced.to_words[2].mean(dim=(0, 1)).argmax())],
        "average away two axes of traced.to_words[2], which is [heads, steps, words]; then argmax",
    ),
    "empty prompt": Exercise(
        lambda distance: abs(distance) < 1e-6,
        "an edited manifest, as for the swapped words; a trace has its divergence",
    ),
    **by_ear(
        "swapped word by ear", 2, 3, "listen to how the notes of the melody begin, and whether they are held"
    ),
    # 08_live
    "seconds to buffer": Exercise(
        lambda seconds: abs(seconds - 15) < 0.1, "generation takes 60 s; when must playback end?"
    ),
    "four times calm": Exercise(
        lambda ask, calm, wild: [ask() for _ in range(6)] == [calm] * 4 + [wild] * 2,
        "itertools has chain and repeat; next takes one item after another",
    ),
    "rows of a mix": Exercise(
        lambda rows: rows == 5, "one for each prompt above zero, and what guidance compares them with"
    ),
    **by_ear("prompt change by ear", 1, 2, "listen to the last three seconds: is it still a piano?"),
    # 09_train
    "uniform loss": Exercise(
        lambda loss: abs(loss - math.log(2048)) < 0.01, "the logarithm of a number, as for nano's codec above"
    ),
    "tokens of a step": Exercise(
        lambda tokens: tokens == 3200, "crops, seconds, frames per second and codebooks, multiplied"
    ),
    **by_ear("tuned by ear", 1, 2, "read the caption of recordings[2]: which one fits it better?"),
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
    **by_ear("codec by ear", 1, 2, "listen to the chord while it fades: what is between its tones?"),
    # 11_probe
    "gain over the tokens": Exercise(
        lambda gain, tonic: abs(gain - tonic.best.accuracy.value + tonic.scores[0].accuracy.value) < 0.01,
        "a score has an accuracy, and an accuracy a value; layer 0 is the first score",
    ),
    "chance of four values": Exercise(
        lambda chance: abs(chance - 0.5) < 1e-9, "always the most frequent answer: how often is it right?"
    ),
    **by_ear("steered by ear", 1, 2, "listen for strokes that no sustained tone explains"),
    # 12_steer
    "heads that follow": Exercise(
        lambda count, following: count == int((following > 0.01).sum()), "compare, then count what is true"
    ),
    "half a head": Exercise(
        lambda share, follow, reader: (
            abs(share - _accuracy(follow([ScaleHead(reader[0], reader[1], 0.5)])[1])) < 0.01
        ),
        "follow(edits) returns the waves and their similarities, each with an accuracy: take the mean",
    ),
    **by_ear("head by ear", 1, 2, "sing the melody along with each: which one goes elsewhere?"),
    # 13_chords
    "minor seventh": Exercise(
        lambda notes: set(notes) == {0, 2, 5, 9}, "a minor triad on D, and a minor seventh above its root"
    ),
    "frames of a chord": Exercise(
        lambda frames: abs(frames - 18.75) < 1,
        "seconds of four beats, times samples per second, divided by samples per frame",
    ),
    **by_ear("chords by ear", 0, 3, "follow the bass: does it move at the start of each bar?"),
}

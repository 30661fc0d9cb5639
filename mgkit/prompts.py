"""Prompts: a text, a mix of weighted texts, or a timeline of both, parsed from a user's description.

"calm piano"                                       -> [(0.0, {"calm piano": 1.0})]
{"calm piano": 0.7, "fast jazz": 0.3}              -> [(0.0, {"calm piano": 0.7, "fast jazz": 0.3})]
[(0, "calm piano"), (6, "fast jazz")]              -> [(0.0, {"calm piano": 1.0}), (6.0, {"fast jazz": 1.0})]
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from mgkit.brief import brief

Texts = Sequence[str | None]
Prompt = str | None | Mapping[str, float]
"""A text, or a mix of texts with weights: {"calm piano": 0.7, "fast jazz": 0.3}."""
Descriptions = Sequence[Prompt | Sequence[tuple[float, Prompt]]]
"""For each sample a prompt, or a timeline of prompts in seconds: [(0, "calm piano"), (6, "fast jazz")]."""
Mix = dict[str, float]
"""A parsed prompt: texts and their weights."""
Timeline = list[tuple[float, Mix]]
"""A parsed description: the first entry starts at second 0, and each differs from the one before."""

PROMPT_FORMS = (
    "it must hold strings, None for no text, weights such as {'calm piano': 0.7, 'fast jazz': 0.3}, or times "
    "such as [(0, 'calm piano'), (6, 'fast jazz')]"
)


def parse_texts(texts: Texts, what: str = "descriptions") -> list[str]:
    """The texts as strings, None as an empty one.

    Raises:
        ValueError: another type, or an empty list.
    """
    return [_text(text, what, "it must hold strings, or None for no text") for text in _rows(texts, what)]


def parse_descriptions(descriptions: Descriptions) -> list[Timeline]:
    """The descriptions as timelines.

    Raises:
        ValueError: another type, wrong times or weights, or an empty list.
    """
    return [_timeline(description) for description in _rows(descriptions, "descriptions")]


def parse_prompt(prompt: Prompt) -> Mix:
    """The texts of a prompt with positive weights; a single text has weight 1, and None is the empty text.

    Raises:
        ValueError: another type, or a negative weight.

    >>> parse_prompt("calm piano"), parse_prompt({"calm piano": 0.5, "fast jazz": 0})
    ({'calm piano': 1.0}, {'calm piano': 0.5})
    """
    if not isinstance(prompt, Mapping) or not prompt:
        return {_text(prompt, "descriptions", PROMPT_FORMS): 1.0}
    mix = {}
    for text, weight in dict(prompt).items():
        if not _is_number(weight) or weight < 0:
            raise ValueError(
                f"the weight of {brief(text)} is {brief(weight)}; it must be a number of at least 0"
            )
        if weight:
            mix[_text(text, "descriptions", PROMPT_FORMS)] = float(weight)
    return mix or {"": 1.0}


def prompt_at(timeline: Timeline, frame: int, rate: int) -> Mix:
    """The prompt of the timeline at a frame; `rate` is in frames per second."""
    return next(mix for seconds, mix in reversed(timeline) if round(seconds * rate) <= frame)


def plain(timeline: Timeline) -> str | Mix | list[list]:
    """The timeline as a description in plain values, for a manifest.

    >>> plain(parse_descriptions([[(0, "calm piano"), (6, {"calm piano": 0.5, "fast jazz": 0.5})]])[0])
    [[0.0, 'calm piano'], [6.0, {'calm piano': 0.5, 'fast jazz': 0.5}]]
    """
    entries: list = [
        [seconds, next(iter(mix)) if list(mix.values()) == [1.0] else mix] for seconds, mix in timeline
    ]
    return entries if len(entries) > 1 else entries[0][1]


def _timeline(description: Any) -> Timeline:
    """A description, parsed; entries that change nothing are dropped."""
    pairs = isinstance(description, list | tuple) and all(
        isinstance(entry, list | tuple) and len(entry) == 2 for entry in description
    )
    if not pairs or not description:
        return [(0.0, parse_prompt(description))]
    times = [seconds for seconds, _ in description]
    if not all(map(_is_number, times)) or times[0] != 0 or any(b <= a for a, b in pairwise(times)):
        raise ValueError(
            f"the times of a description are {times}; they must be rising seconds, the first of them 0"
        )
    timeline: Timeline = []
    for seconds, prompt in description:
        mix = parse_prompt(prompt)
        if not timeline or mix != timeline[-1][1]:
            timeline.append((float(seconds), mix))
    return timeline


def _rows(given: Iterable, what: str) -> list:
    """The entries of a list of descriptions."""
    if isinstance(given, str):
        raise ValueError(f"{what} is one string; give a list, such as [{given[:40]!r}]")
    try:
        rows = [] if isinstance(given, bytes | Mapping) else list(given)
    except TypeError:
        rows = []
    if not rows:
        raise ValueError(
            f"{what} is {brief(given)}; it must be a list of at least one string, such as ['calm piano']"
        )
    return rows


def _text(text: object, what: str, forms: str) -> str:
    """A text as a string, None as an empty one; `forms` lists the valid forms."""
    if not (text is None or isinstance(text, str)):
        raise ValueError(f"{what} holds {brief(text)}, a {type(text).__name__}; {forms}")
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} holds {brief(text)}, which is not valid Unicode: read it again as UTF-8"
        ) from None
    return text or ""


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

"""Invalid descriptions are refused in one clear sentence before the first step."""

import numpy as np
import pytest
from refusals import refusal


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["list", "[]"]),
        (None, ["list", "None"]),
        (5, ["list", "5"]),
        ("calm", ["one string", "['calm']"]),
        (b"calm", ["list", "calm"]),
        ([b"calm"], ["b'calm'", "string"]),
        ([5], ["5", "string"]),
        (["calm", 5], ["5", "string"]),
        ([["calm"]], ["['calm']", "string"]),
        (["\ud800"], []),
    ],
)
def test_descriptions_are_a_list_of_strings(text, given, words):
    refusal(lambda: text.generate(given), *words)
    refusal(lambda: text.stream(given), *words) if words else refusal(lambda: list(text.stream(given)))


def test_any_iterable_of_strings_is_accepted_and_none_means_no_text(text):
    assert text.generate(("calm", None, "")).shape[0] == 3
    assert text.generate(np.array(["calm", "sad"])).shape[0] == 2
    assert text.generate(word for word in ("calm", "sad")).shape[0] == 2


def test_too_long_texts_are_refused_before_the_first_step(text):
    steps = []
    long = "calm piano " * 5000
    for prompts in ({"descriptions": [long]}, {"descriptions": ["calm"], "negative": long}):
        refusal(
            lambda prompts=prompts: text.generate(**prompts, on_step=lambda *n: steps.append(n)),
            "10001",
            "512",
        )
    assert not steps


@pytest.mark.parametrize("given", [5, [], [5], ["a", "b"], b"sad"])
def test_invalid_negative_descriptions_are_refused(text, given):
    refusal(lambda: text.generate(["calm"], negative=given), "negative")


@pytest.mark.parametrize("number", [0, -1, 2.5, "2", None])
def test_the_number_of_unconditional_samples_is_a_positive_integer(text, number):
    refusal(lambda: text.generate_unconditional(number), "num_samples", repr(number))

"""Invalid settings and seeds are named in one clear sentence."""

import json
import math

import numpy as np
import pytest
import torch
from refusals import SECONDS, refusal
from tiny import RATE

BAD_SETTINGS = {
    "duration": [0, -1, math.nan, math.inf, "8", None, [8], True],
    "temperature": [-0.1, math.nan, math.inf, "1", None],
    "top_p": [-0.1, 1.1, math.nan, "0.5", None],
    "min_p": [-0.1, 1.1, math.nan, "0.5", None],
    "top_k": [-1, 2.5, math.nan, math.inf, "5", None],
    "cfg_coef": [math.nan, -math.inf, "3", None, True, [], [3], [(0, 1, 2)]],
    "cfg_coef_beta": [math.nan, "5"],
    "extend_stride": [0, -1, math.nan, math.inf, "6"],
    "use_sampling": ["no", None],
    "two_step_cfg": ["no", 5],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, bad in BAD_SETTINGS.items() for value in bad]
)
def test_an_invalid_setting_is_named_and_the_others_stay(text, name, value):
    before = text.settings
    refusal(lambda: text.set_generation_params(**{name: value}), name, str(value), "must be")
    assert text.settings == before


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([(0, 1), (4, "3")], ["values of cfg_coef", "'3'"]),
        (10**400, ["cfg_coef is 1000"]),
        ([(0, 10**400)], ["values of cfg_coef"]),
        ([(0, math.nan)], ["values of cfg_coef", "nan"]),
        ([(4, 1), (0, 3)], ["times of cfg_coef", "[4, 0]"]),
        ([(-1, 1), (0, 3)], ["times of cfg_coef", "[-1, 0]"]),
        ([("now", 1)], ["times of cfg_coef", "'now'"]),
        ([(0, math.inf)], ["values of cfg_coef", "inf"]),
        ([(math.inf, 1)], ["times of cfg_coef", "inf"]),
    ],
)
def test_an_invalid_schedule_is_refused_with_the_times_or_values(text, schedule, words):
    refusal(lambda: text.set_generation_params(cfg_coef=schedule), *words)


def test_numpy_numbers_and_integral_floats_are_accepted(text):
    text.set_generation_params(
        duration=np.float32(SECONDS), top_k=3.0, temperature=np.float64(0.9), use_sampling=1
    )
    assert text.generate(["calm"]).shape == (1, 1, round(SECONDS * RATE))


@pytest.mark.parametrize("stride", [10, 18, 1e-9])
def test_an_impossible_stride_is_refused_only_for_several_windows(text, stride):
    text.set_generation_params(duration=SECONDS, extend_stride=stride)
    # within one window the stride does not matter
    text.generate(["calm"])
    text.set_generation_params(duration=12, extend_stride=stride)
    refusal(lambda: text.generate(["calm"]), "extend_stride", f"{stride:g}", "10 s")


def test_double_guidance_without_a_melody_is_refused(text, melody):
    for model in (text, melody):
        model.set_generation_params(duration=SECONDS, cfg_coef_beta=5)
        refusal(lambda model=model: model.generate(["calm"]), "cfg_coef_beta", "melody")


# --- seeds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [3.5, "12", "ab", 2**70, -(2**70), [1.7, 2], ["a", 1], [None, 1], [2**70, 1], [1], [1, 2, 3], []]
)
def test_seeds_are_integers_one_per_sample(text, seed):
    refusal(lambda: text.generate(["calm", "sad"], seed=seed), "seed")


@pytest.mark.parametrize(
    "seed", [np.int64(3), np.uint8(3), torch.tensor(3), [3, 4], (3, 4), np.array([3, 4]), range(3, 5)]
)
def test_seeds_may_be_integers_of_any_type(text, seed):
    tokens = [text.generate(["calm", "sad"], return_tokens=True, seed=s)[1] for s in (3, seed)]
    assert torch.equal(*tokens)
    json.dumps(text.generate(["calm", "sad"], seed=seed, return_manifests=True)[1])

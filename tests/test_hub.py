"""The published weights give the published numbers; with a network, run `pytest --hub tests/test_hub.py`.

Numbers and tolerance come from transformers' own tests (`tests/models/musicgen`, `musicgen_melody`), which
compute them in single precision. Those tests contain no codes of the 32 kHz codec; here the published waves
test its decoder, logits after an audio prompt its encoder, and one test compares both with transformers. The
downloads are about 11 GB, each model with its first test; tests of a model neither cached nor reachable are
skipped.
"""

import json
import math
import socket
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import RATE, oracle_run, tune
from torch import Tensor

from mgkit import MusicGen, hub
from mgkit.melody import classes

pytestmark = pytest.mark.hub

TEXTS = ["80s music", "Club techno"]


@cache
def reachable() -> bool:
    """Whether the hub answers within three seconds."""
    from huggingface_hub import constants

    host = constants.ENDPOINT.removeprefix("https://").removeprefix("http://").split("/")[0]
    name, _, port = host.partition(":")
    try:
        socket.create_connection((name, int(port or 443)), timeout=3).close()
    except OSError:
        return False
    return True


def folder_of(name: str) -> Path:
    """Folder of a published model, downloaded unless it is cached; skips the test if it cannot be."""
    from huggingface_hub import constants, try_to_load_from_cache

    hub_id = hub.PRESETS.get(name, name)
    cached = isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    if not cached and (constants.HF_HUB_OFFLINE or not reachable()):
        pytest.skip(f"{hub_id} is not in the cache, and {constants.ENDPOINT} does not answer")
    try:
        return hub.find(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@cache
def model_of(name: str) -> MusicGen:
    folder_of(name)
    return MusicGen.get_pretrained(name, "cpu", torch.float32)


def beeps(seconds: float) -> Tensor:
    """A tone of 440 Hz [1, N], off and on for an eighth of a second each: transformers' audio prompt."""
    time = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    on = (time % 0.25) / 0.25 >= 0.5
    return (torch.cos(2 * math.pi * 440 * time) * on).float()[None]


def prompts(channels: int = 1) -> Tensor:
    """A batch [2, C, N] padded on the left: half a second of silence and of beeps; one second of beeps."""
    padded = torch.cat([torch.zeros(1, RATE // 2), beeps(0.5)], dim=-1)
    return torch.stack([padded, beeps(1.0)]).expand(-1, channels, -1)


def greedy(model: MusicGen, frames: int, coef: float) -> None:
    model.set_generation_params(use_sampling=False, duration=frames / 50, cfg_coef=coef)


def close(ours: Tensor, published: list[float] | list[list[float]]) -> bool:
    return torch.allclose(ours, torch.tensor(published), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def logits_of(model: MusicGen, steps: Tensor, melody: Tensor | None = None) -> Tensor:
    """Logits [B, K, S, V] of `steps`, conditioned on TEXTS."""
    return model.lm(steps, model.conditioner(model.conditioner.encode(TEXTS), melody))


def start(model: MusicGen) -> Tensor:
    """The first step [2, K, 1], all special."""
    return torch.full((2, model.lm.config.codebooks, 1), model.lm.config.special)


# --- small ------------------------------------------------------------------------------------------------


def test_logits_of_small_after_a_text_match_the_published_ones() -> None:
    model = model_of("small")
    published = [
        *(-0.9708, -3.0149, -4.6415, -1.4754, -0.2786, -2.3523, -2.6049, -6.7467),
        *(-1.0206, -3.2984, -3.3968, -1.5108, -1.5786, -3.1493, -1.1503, -0.0545),
    ]
    assert close(logits_of(model, start(model))[0, 0, 0, :16], published)


def test_logits_of_small_after_an_audio_prompt_match_the_published_ones() -> None:
    """Undelayed codes without a start step, as in transformers' test."""
    model = model_of("small")
    published = [
        *(0.1841, -2.9324, -0.7898, 0.1857, 0.4971, -2.8685, -1.6525, -1.6541),
        *(2.7757, -2.5942, -3.0959, -1.0120, -1.0147, -0.4605, -0.8885, 0.6820),
    ]
    with torch.no_grad():
        codes = model.codec.encode(prompts())
    assert codes.shape == (2, 4, 50)
    assert close(logits_of(model, codes)[0, 0, -1, :16], published)


def test_greedy_music_of_small_matches_the_published_music() -> None:
    model = model_of("small")
    published = [
        *(-1.1998e-04, -2.2302e-04, 4.6296e-04, 1.0524e-03, 2.4827e-04),
        *(-4.0288e-05, -1.2468e-04, 4.9846e-05, 7.1485e-04, 4.4197e-04),
    ]
    greedy(model, 7, coef=1.0)
    assert close(model.generate(TEXTS)[0, 0, :10], published)


def test_guided_greedy_music_of_small_matches_the_published_music() -> None:
    model = model_of("small")
    published = [
        *(0.0283, 0.0246, 0.0650, 0.0640, 0.0599, 0.0711, 0.0420, 0.0112),
        *(0.0511, 0.0746, 0.1363, 0.1213, 0.0185, -0.0578, -0.0908, 0.0443),
    ]
    greedy(model, 7, coef=3.0)
    assert close(model.generate(TEXTS)[0, 0, :16], published)


def test_greedy_continuation_of_small_matches_the_published_music() -> None:
    model = model_of("small")
    published = [
        *(-0.0036, -0.0130, -0.0261, -0.0384, -0.0557, -0.0718, -0.0680, -0.0632),
        *(-0.0529, -0.0403, -0.0289, -0.0198, -0.0136, -0.0101, -0.0095, -0.0040),
    ]
    greedy(model, 57, coef=1.0)
    assert close(model.generate_continuation(prompts(), RATE, TEXTS)[0, 0, -16:], published)


# --- stereo -----------------------------------------------------------------------------------------------


def test_unconditional_greedy_music_of_stereo_small_matches_the_published_music() -> None:
    model = model_of("stereo-small")
    left = [
        *(0.0017, 0.0004, 0.0004, 0.0005, 0.0002, 0.0002, -0.0002, -0.0013),
        *(-0.0010, -0.0015, -0.0018, -0.0032, -0.0060, -0.0082, -0.0096, -0.0099),
    ]
    right = [
        *(0.0038, 0.0028, 0.0031, 0.0032, 0.0031, 0.0032, 0.0030, 0.0019),
        *(0.0021, 0.0015, 0.0009, -0.0008, -0.0040, -0.0067, -0.0087, -0.0096),
    ]
    greedy(model, 9, coef=1.0)
    wave = model.generate_unconditional(1)
    assert wave.shape == (1, 2, 5760)
    assert close(wave[0, :, :16], [left, right])


def test_guided_greedy_continuation_of_stereo_small_matches_the_published_music() -> None:
    model = model_of("stereo-small")
    left = [
        *(0.2535, 0.2008, 0.1471, 0.0896, 0.0306, -0.0200, -0.0501, -0.0728),
        *(-0.0832, -0.0856, -0.0867, -0.0884, -0.0864, -0.0866, -0.0744, -0.0430),
    ]
    right = [
        *(0.1695, 0.1213, 0.0732, 0.0239, -0.0264, -0.0705, -0.0935, -0.1103),
        *(-0.1163, -0.1139, -0.1104, -0.1082, -0.1027, -0.1004, -0.0900, -0.0614),
    ]
    greedy(model, 59, coef=3.0)
    wave = model.generate_continuation(prompts(channels=2), RATE, TEXTS)
    assert wave.shape == (2, 2, 37_760)
    assert close(wave[0, :, -16:], [left, right])


# --- melody -----------------------------------------------------------------------------------------------


def test_logits_of_melody_after_a_text_match_the_published_ones() -> None:
    """Published for `ylacombe/musicgen-melody`, the first conversion of `facebook/musicgen-melody`."""
    model = model_of("melody")
    published = [
        *(1.1100, -2.1065, -3.7699, -0.7102, 1.3707, -1.7028, -2.6802, -6.0367),
        *(1.0504, -2.5358, -4.3497, 0.7338, 0.4823, -2.5260, 1.2717, 1.5427),
    ]
    assert close(logits_of(model, start(model))[0, 0, 0, :16], published)


def test_logits_of_melody_after_a_melody_and_a_text_match_the_published_ones() -> None:
    model = model_of("melody")
    published = [
        [0.7479, 0.3742, 0.6253, -7.9405, 0.7105, -6.9995, 0.7792, -3.0482],
        [-2.7905, 0.7492, -0.2556, -8.1586, -1.6740, 0.5771, -8.3650, -0.0908],
    ]
    waves = list(prompts())
    side = json.loads((folder_of("melody") / "preprocessor_config.json").read_text(encoding="utf-8")).get(
        "padding_side", "right"
    )
    if side == "right":
        waves[0] = waves[0].roll(-RATE // 2, dims=-1)
    chroma = torch.stack([classes(wave, RATE, model.conditioner.melody_frames) for wave in waves])
    assert close(logits_of(model, start(model), chroma)[0, 1:3, 0, 32:40], published)


# --- side by side with transformers -----------------------------------------------------------------------


@torch.no_grad()
def test_the_published_codec_gives_the_same_codes_and_waves_in_transformers() -> None:
    from transformers import EncodecModel

    oracle = EncodecModel.from_pretrained(folder_of("facebook/encodec_32khz")).eval()
    ours, wave = model_of("small").codec, torch.stack([tune(2), beeps(2.0)])
    theirs = oracle.encode(wave, bandwidth=2.2).audio_codes
    assert torch.equal(ours.encode(wave), theirs[0])
    assert (ours.decode(theirs[0]) - oracle.decode(theirs, [None]).audio_values).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["small", "melody", "stereo-small"])
def test_greedy_tokens_are_the_same_in_transformers(name: str) -> None:
    from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

    model = model_of(name)
    kind = MusicgenForConditionalGeneration if name != "melody" else MusicgenMelodyForConditionalGeneration
    oracle = kind.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    ids, mask = model.conditioner.text.tokens(TEXTS[:1])
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "guidance_scale": 3.0}
    greedy(model, 100, coef=3.0)
    tokens = model.generate(TEXTS[:1], return_tokens=True)[1]
    assert torch.equal(tokens, oracle_run(oracle, 100, **inputs)[1])

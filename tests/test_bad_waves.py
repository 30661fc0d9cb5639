"""Invalid audio prompts, melodies and tokens are refused in one clear sentence."""

import math

import pytest
import torch
from refusals import BAD_WAVES, GOOD, SECONDS, refusal
from tiny import RATE, noise, tune

from mgkit import audio
from mgkit.melody import HOP
from mgkit.request import parse_melodies, plan_windows, window_chroma


@pytest.mark.parametrize(
    ("role", "case"),
    [
        *(("audio prompt", case) for case in BAD_WAVES),
        *(("melody", case) for case in BAD_WAVES if case != "None"),
    ],
)
def test_an_invalid_wave_is_refused_and_its_role_named(text, melody, role, case):
    wave, words = BAD_WAVES[case]
    calls = {
        "audio prompt": lambda: text.generate_continuation(wave, RATE, ["calm"]),
        "melody": lambda: melody.generate_with_chroma(["calm"], wave, RATE),
    }
    refusal(calls[role], role, *words)


@pytest.mark.parametrize("case", [case for case in BAD_WAVES if case != "too many"])
def test_an_invalid_prompt_without_descriptions_is_refused(text, case):
    wave, words = BAD_WAVES[case]
    refusal(lambda: text.generate_continuation(wave, RATE), *words)


@pytest.mark.parametrize("rate", [0, -44100, math.nan, math.inf, "44100", None])
def test_an_invalid_sample_rate_is_refused(text, melody, rate):
    refusal(lambda: text.generate_continuation(GOOD, rate, ["calm"]), "sample rate", str(rate))
    refusal(lambda: melody.generate_with_chroma(["calm"], GOOD, rate), "sample rate", str(rate))
    refusal(lambda: audio.resample(GOOD, RATE, rate), "sample rate", str(rate))


def test_one_sample_is_a_valid_prompt_and_a_valid_melody(text, melody, stereo):
    for model in (text, stereo):
        assert model.generate_continuation(GOOD[:, 99:100], 44100, ["calm"]).shape[-1] == SECONDS * RATE
    assert melody.generate_with_chroma(["calm"], GOOD[:, 99:100], 44100).shape[-1] == SECONDS * RATE


@pytest.mark.parametrize("channels", [3, 4, 6, 8])
def test_more_channels_are_mixed_as_in_audiocraft(text, melody, stereo, channels):
    """`convert_audio_channels`: the mean for a mono model, the first two for a stereo one."""
    wave = noise(channels, RATE // 10)
    for model in (text, stereo):
        mixed = audio.to_channels(wave, model.audio_channels)
        tokens = [
            model.generate_continuation(prompt, RATE, ["calm"], seed=1, return_tokens=True)[1]
            for prompt in (wave, mixed)
        ]
        assert torch.equal(*tokens)
    separate = lambda wave, rate: wave[:2]  # noqa: E731
    for how in (None, separate):
        tokens = [
            melody.generate_with_chroma(["calm"], tune, RATE, seed=1, return_tokens=True, separate=how)[1]
            for tune in (wave, wave.mean(dim=0, keepdim=True))
        ]
        assert torch.equal(*tokens)


@pytest.mark.parametrize("rate", [16000, RATE, 44100, 48000])
@pytest.mark.parametrize(("duration", "window"), [(0.2, None), (7.0, 2.0)])
def test_a_melody_is_cut_where_the_music_ends(melody, monkeypatch, rate, duration, window):
    """20 minutes for a second of music took 2 GB and 16 s, and the rest of the melody cannot matter."""
    if window:
        monkeypatch.setattr(melody.model, "window", window)
        melody.set_generation_params(duration=duration, extend_stride=1.0)
    length = melody.conditioner.melody_frames * HOP / RATE
    wave = tune(1).repeat(1, 300)[:, : 300 * rate]
    wave = wave * torch.linspace(0.1, 1, wave.shape[-1])
    wave = wave + noise(1, wave.shape[-1]) / 5
    whole = parse_melodies(melody.model, 1, wave, rate)
    cut = parse_melodies(melody.model, 1, wave, rate, duration=duration)
    assert cut[0].shape[-1] < RATE * (
        max(duration, window or 0, length) + 2 * max(window or 0, length, 30) + 3
    )
    assert cut[0].shape[-1] < whole[0].shape[-1] / 2
    plan = plan_windows(melody.model, melody.settings, 0, [(0.0, "")])
    assert (len(plan) > 1) == bool(window)
    for start in (step.start for step in plan):
        chroma = [window_chroma(melody.model, tunes, start, len(plan) > 1) for tunes in (whole, cut)]
        assert torch.equal(*chroma) and len(chroma[0].unique()) > 1


def test_a_wave_far_above_full_scale_is_a_valid_prompt_and_a_valid_melody(text, melody):
    assert text.generate_continuation(1e6 * GOOD, RATE, ["calm"]).isfinite().all()
    assert melody.generate_with_chroma(["calm"], 1e6 * GOOD, RATE).isfinite().all()


def test_silence_is_a_valid_prompt_but_not_a_melody(text, melody):
    assert text.generate_continuation(0 * GOOD, RATE, ["calm"]).shape[-1] == SECONDS * RATE
    refusal(lambda: melody.generate_with_chroma(["calm"], 0 * GOOD, RATE), "silent", "melody")


@pytest.mark.parametrize("classes", [[12, 0], [-1, 0], [], [[[0]]]])
def test_integers_other_than_pitch_classes_are_not_a_melody(text, melody, classes):
    classes = torch.tensor(classes, dtype=torch.long)
    refusal(lambda: melody.generate_with_chroma(["calm"], classes, RATE), "the melody", "pitch classes")
    refusal(lambda: text.generate_continuation(classes, RATE, ["calm"]), "prompt")


def test_chord_names_and_paths_are_not_a_melody_yet(melody):
    refusal(lambda: melody.generate_with_chroma(["calm"], "C G"), "'C G'", "melody.chords", "audio.read")


def test_chroma_may_be_an_array(melody):
    chroma = torch.eye(12)[:, :12]
    one, other = (
        melody.generate_with_chroma(["calm"], given, seed=1, return_tokens=True)[1]
        for given in (chroma, chroma.numpy())
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("chroma", [torch.rand(40, 12), torch.ones(0, 12), torch.full((3, 12), 2)])
def test_chroma_is_0_or_1(melody, chroma):
    refusal(lambda: melody.generate_with_chroma(["calm"], chroma), "the melody")


def test_pitch_classes_are_one_row_or_one_per_sample(melody):
    refusal(lambda: melody.generate_with_chroma(["calm"] * 3, torch.zeros(2, 9).long()), "2", "3")


def test_a_list_of_prompts_is_a_batch(text):
    assert text.generate_continuation([GOOD, GOOD], RATE).shape[0] == 2
    assert text.generate_continuation([GOOD, GOOD], RATE, ["calm", "sad"]).shape[0] == 2
    refusal(lambda: text.generate_continuation([GOOD, GOOD[:, :99]], RATE, ["calm", "sad"]), "one length")
    refusal(lambda: text.generate_continuation([GOOD, None], RATE, ["calm", "sad"]), "None")


def test_waves_are_one_or_one_per_sample(text, melody):
    waves = torch.stack([GOOD, GOOD])
    refusal(lambda: text.generate_continuation(waves, RATE, ["calm"] * 3), "2", "3")
    refusal(lambda: melody.generate_with_chroma(["calm"] * 3, waves, RATE), "2", "3")


def test_a_melody_needs_a_melody_model(text, stereo):
    for model in (text, stereo):
        refusal(lambda model=model: model.generate_with_chroma(["calm"], GOOD, RATE), "tiny", "melody-large")


@pytest.mark.parametrize("seconds", [SECONDS, SECONDS - 0.005, 3 * SECONDS])
def test_a_prompt_as_long_as_the_duration_is_refused(text, seconds):
    sentence = refusal(lambda: text.generate_continuation(tune(seconds), RATE, ["calm"]), f"{SECONDS:g} s")
    assert "longer duration" in sentence and "shorter prompt" in sentence


def test_a_stream_needs_the_sample_rates_of_its_waves(text, melody):
    refusal(lambda: text.stream(["calm"], prompt=GOOD), "sample rate")
    refusal(lambda: melody.stream(["calm"], melody_wavs=GOOD), "sample rate")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "1", None])
def test_chunk_seconds_must_be_positive(text, seconds):
    refusal(lambda: text.stream(["calm"], chunk_seconds=seconds), "chunk_seconds", str(seconds))


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        (torch.zeros(4, 3, dtype=torch.long), "[4, 3]"),
        (torch.zeros(1, 5, 3, dtype=torch.long), "codebooks"),
        (torch.zeros(1, 4, 3), "float"),
        (torch.full((1, 4, 3), 32), "32"),
        (torch.full((1, 4, 3), -1), "-1"),
    ],
)
def test_invalid_tokens_are_refused(text, tokens, word):
    refusal(lambda: text.generate_audio(tokens), word)


def test_refusals_leave_the_model_unchanged(melody):
    def tokens():
        return melody.generate_with_chroma(["calm", "sad"], GOOD, RATE, return_tokens=True, seed=1)[1]

    before = tokens()
    refusal(lambda: melody.generate([]))
    refusal(lambda: melody.generate(["calm " * 999]))
    refusal(lambda: melody.generate(["calm"], seed=2**70))
    refusal(lambda: melody.set_generation_params(duration=-1))
    refusal(lambda: melody.generate_with_chroma(["calm"], GOOD * math.nan, RATE))
    assert torch.equal(tokens(), before)

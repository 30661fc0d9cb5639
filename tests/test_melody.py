"""What the model hears of a melody, and how a recording is taken apart for it."""

import math
import sys

import pytest
import torch

from mgkit import melody

RATE = 32000


def tone(hertz: float, seconds: float, rate: int = RATE) -> torch.Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    return 0.5 * torch.sin(2 * math.pi * hertz * time)[None]


@pytest.mark.parametrize(("hertz", "name"), [(261.63, "C"), (329.63, "E"), (440.0, "A"), (880.0, "A")])
def test_a_tone_is_heard_as_its_pitch_class(hertz: float, name: str) -> None:
    heard = melody.classes(tone(hertz, 3), RATE, 20)
    assert [melody.PITCH_CLASSES[c] for c in heard.tolist()] == [name] * 20


def test_a_scale_is_heard_in_order() -> None:
    steps = (0, 2, 4, 5, 7, 9, 11)
    wave = torch.cat([tone(261.63 * 2 ** (step / 12), 2) for step in steps], dim=1)
    heard = melody.classes(wave, RATE, 1 + wave.shape[1] // melody.HOP)
    middle = [round((2 * i + 1) * RATE / melody.HOP) for i in range(len(steps))]
    assert heard[middle].tolist() == list(steps)


def test_a_short_melody_repeats_and_a_long_one_is_cut() -> None:
    wave = torch.cat([tone(261.63, 1.5), tone(440.0, 1.5)], dim=1)
    frames = 1 + wave.shape[1] // melody.HOP
    once, longer = melody.classes(wave, RATE, frames), melody.classes(wave, RATE, 2 * frames + 5)
    assert longer[:frames].equal(once)
    assert longer[frames : 2 * frames].equal(once)
    assert melody.classes(wave, RATE, 7).equal(once[:7])


def test_silence_is_the_null_melody() -> None:
    assert not melody.classes(torch.zeros(1, RATE), RATE, 79).any()


def test_stereo_is_heard_as_the_mean_of_its_channels() -> None:
    left, right = tone(261.63, 2), tone(440.0, 2)
    stereo = melody.chroma(torch.cat([left, right]), RATE)
    assert torch.equal(stereo, melody.chroma((left + right) / 2, RATE))


def test_rotate_is_a_loop_from_where_it_starts() -> None:
    wave = torch.arange(10.0)[None]
    assert melody.rotate(wave, 7, 6).tolist() == [[7, 8, 9, 0, 1, 2]]


def test_without_torchaudio_stem_separation_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(RuntimeError, match="stem separation needs torchaudio") as caught:
        melody.demucs()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "rate"), [(1, 32000), (2, 44100)])
def test_stem_separation_keeps_rate_and_length(
    channels: int, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an untrained HDemucs in place of the trained one, which has to be downloaded."""
    pipelines = pytest.importorskip("torchaudio.pipelines", exc_type=(ImportError, OSError, RuntimeError))
    from torchaudio.models import HDemucs

    bundle = pipelines.HDEMUCS_HIGH_MUSDB_PLUS
    untrained = HDemucs(["drums", "bass", "other", "vocals"], nfft=4096, depth=6, channels=4)
    monkeypatch.setattr(type(bundle), "get_model", lambda self: untrained)
    wave = tone(440.0, 1.3, rate).expand(channels, -1)
    stems = melody.demucs()(wave, rate)
    assert stems.shape == (2, wave.shape[1])
    assert stems.isfinite().all()

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


def grid(seed: int, runs: int = 12, least: int = 2) -> torch.Tensor:
    """Pitch classes of a random tune whose notes last `least` frames or more."""
    draw = torch.Generator().manual_seed(seed)
    notes = torch.randint(12, (runs,), generator=draw)
    return notes.repeat_interleave(torch.randint(least, least + 6, (runs,), generator=draw))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [32000, 44100])
def test_tones_are_heard_as_the_pitch_classes_that_they_play(seed: int, rate: int) -> None:
    told = grid(seed)
    wave = melody.tones(told, rate)
    assert wave.shape == (1, (len(told) - 1) * melody.HOP)
    assert wave.abs().max() <= 1
    assert melody.classes(wave, rate, len(told)).equal(told)


def test_tones_begin_and_end_in_silence_and_do_not_click() -> None:
    """A click is energy far above the highest tone, 2 kHz: joined without fades, the same notes leave plenty."""
    told = grid(1)
    wave = melody.tones(told, RATE)
    half = melody.HOP // 2
    joined = torch.cat([melody.tones(note.expand(3), RATE)[:, half:-half] for note in told], dim=1)

    def above(sound: torch.Tensor) -> float:
        power = torch.stft(sound, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs() ** 2
        return float(power[0, 6000 * 1024 // RATE :].sum() / power.sum())

    assert not wave[0, [0, -1]].any()
    assert above(wave) < 1e-10
    assert above(joined) > 1e-5


def test_editing_changes_the_frames_that_are_named_and_no_other() -> None:
    told = grid(2)
    second = RATE / melody.HOP  # frames
    edited = melody.edit(told, "A♯", 1.0, 2.0, RATE)
    inside = torch.arange(len(told)).div(second).sub(1.5).abs() < 0.5
    assert inside.sum() in (7, 8)
    assert edited[inside].tolist() == [10] * int(inside.sum())
    assert edited[~inside].equal(told[~inside])
    assert told.equal(grid(2))
    assert melody.edit(told, "A#", 1.0, 2.0, RATE).equal(edited)


def test_a_pitch_class_that_is_none_is_refused_with_the_twelve() -> None:
    with pytest.raises(ValueError, match=r"'H'.*C♯.*B"):
        melody.edit(grid(0), "H", 0, 1, RATE)


@pytest.mark.parametrize(
    "bad", [torch.tensor([0, 12]), torch.tensor([-1]), torch.zeros(3), torch.zeros(2, 3).long(), grid(0)[:0]]
)
def test_values_that_are_no_pitch_classes_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="pitch classes"):
        melody.check(bad)


def test_music_follows_itself_and_chance_is_the_mean_over_all_pairings_in_time() -> None:
    told, other = grid(3), grid(4)[: len(grid(3))]
    wave = melody.tones(told, RATE)
    assert melody.follows(wave, RATE, told).share == 1
    assert melody.follows(wave, RATE, told).cosine > 0.9
    other = other.repeat(2)[: len(told)]
    shifted = [melody.follows(wave, RATE, other.roll(shift)) for shift in range(len(told))]
    for met, chance in (("share", "chance_share"), ("cosine", "chance_cosine")):
        mean = sum(getattr(score, met) for score in shifted) / len(shifted)
        assert getattr(shifted[0], chance) == pytest.approx(mean, abs=1e-5)
        assert 0 < mean < 1


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

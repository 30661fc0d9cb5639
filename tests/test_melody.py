"""Melody conditioning: chroma, pitch classes and their tones, similarity, stem separation."""

import math
import sys

import pytest
import torch

from mgkit import melody
from mgkit.chords import QUALITIES, pitch_classes

RATE = 32000


def tone(hertz: float, seconds: float, rate: int = RATE) -> torch.Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    return 0.5 * torch.sin(2 * math.pi * hertz * time)[None]


@pytest.mark.parametrize(("hertz", "name"), [(261.63, "C"), (329.63, "E"), (440.0, "A"), (880.0, "A")])
def test_a_tone_is_its_pitch_class(hertz: float, name: str) -> None:
    detected = melody.classes(tone(hertz, 3), RATE, 20)
    assert [melody.PITCH_CLASSES[c] for c in detected.tolist()] == [name] * 20


def test_the_classes_of_a_scale_are_in_order() -> None:
    steps = (0, 2, 4, 5, 7, 9, 11)
    wave = torch.cat([tone(261.63 * 2 ** (step / 12), 2) for step in steps], dim=1)
    detected = melody.classes(wave, RATE, 1 + wave.shape[1] // melody.HOP)
    middle = [round((2 * i + 1) * RATE / melody.HOP) for i in range(len(steps))]
    assert detected[middle].tolist() == list(steps)


def test_a_short_melody_repeats_and_a_long_one_is_cut() -> None:
    wave = torch.cat([tone(261.63, 1.5), tone(440.0, 1.5)], dim=1)
    frames = 1 + wave.shape[1] // melody.HOP
    once, longer = melody.classes(wave, RATE, frames), melody.classes(wave, RATE, 2 * frames + 5)
    assert longer[:frames].equal(once)
    assert longer[frames : 2 * frames].equal(once)
    assert melody.classes(wave, RATE, 7).equal(once[:7])


def test_silence_is_the_null_melody() -> None:
    assert not melody.classes(torch.zeros(1, RATE), RATE, 79).any()


def test_chroma_of_stereo_is_that_of_the_channel_mean() -> None:
    left, right = tone(261.63, 2), tone(440.0, 2)
    stereo = melody.chroma(torch.cat([left, right]), RATE)
    assert torch.equal(stereo, melody.chroma((left + right) / 2, RATE))


def test_rotate_plays_in_a_loop() -> None:
    wave = torch.arange(10.0)[None]
    assert melody.rotate(wave, 7, 6).tolist() == [[7, 8, 9, 0, 1, 2]]


def random_tune(seed: int, notes: int = 12, least: int = 2) -> torch.Tensor:
    """Pitch classes of a random tune with notes of at least `least` frames."""
    draw = torch.Generator().manual_seed(seed)
    pitches = torch.randint(12, (notes,), generator=draw)
    return pitches.repeat_interleave(torch.randint(least, least + 6, (notes,), generator=draw))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [32000, 44100])
def test_classes_of_tones_are_the_classes_played(seed: int, rate: int) -> None:
    tune = random_tune(seed)
    wave = melody.tones(tune, rate)
    assert wave.shape == (1, (len(tune) - 1) * melody.HOP)
    assert wave.abs().max() <= 1
    assert melody.classes(wave, rate, len(tune)).equal(tune)


def test_tones_begin_and_end_in_silence_without_clicks() -> None:
    """A click has energy far above the highest tone, 2 kHz; joined without fades, the same notes click."""
    tune = random_tune(1)
    wave = melody.tones(tune, RATE)
    half = melody.HOP // 2
    joined = torch.cat([melody.tones(note.expand(3), RATE)[:, half:-half] for note in tune], dim=1)

    def above(sound: torch.Tensor) -> float:
        power = torch.stft(sound, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs() ** 2
        return float(power[0, 6000 * 1024 // RATE :].sum() / power.sum())

    assert not wave[0, [0, -1]].any()
    assert above(wave) < 1e-10
    assert above(joined) > 1e-5


def test_editing_changes_the_given_frames_only() -> None:
    tune = random_tune(2)
    second = RATE / melody.HOP  # frames
    edited = melody.edit(tune, "A♯", 1.0, 2.0, RATE)
    inside = torch.arange(len(tune)).div(second).sub(1.5).abs() < 0.5
    assert inside.sum() in (7, 8)
    assert edited[inside].tolist() == [10] * int(inside.sum())
    assert edited[~inside].equal(tune[~inside])
    assert tune.equal(random_tune(2))
    assert melody.edit(tune, "A#", 1.0, 2.0, RATE).equal(edited)


def test_an_unknown_pitch_class_is_refused_with_the_list_of_twelve() -> None:
    with pytest.raises(ValueError, match=r"'H'.*C♯.*B"):
        melody.edit(random_tune(0), "H", 0, 1, RATE)


@pytest.mark.parametrize(
    "bad",
    [torch.tensor([0, 12]), torch.tensor([-1]), torch.zeros(3), torch.zeros(2, 3).long(), random_tune(0)[:0]],
)
def test_invalid_pitch_classes_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="pitch classes"):
        melody.parse_classes(bad)


def test_similarity_to_itself_is_1_and_chance_is_the_mean_over_all_shifts() -> None:
    tune, other = random_tune(3), random_tune(4)[: len(random_tune(3))]
    wave = melody.tones(tune, RATE)
    chroma = melody.chroma(wave, RATE)
    assert melody.similarity(chroma, tune).accuracy == 1
    assert melody.similarity(chroma, tune).cosine > 0.9
    other = other.repeat(2)[: len(tune)]
    shifted = [melody.similarity(chroma, other.roll(shift)) for shift in range(len(tune))]
    for paired, chance in (("accuracy", "chance_accuracy"), ("cosine", "chance_cosine")):
        mean = sum(getattr(one, paired) for one in shifted) / len(shifted)
        assert getattr(shifted[0], chance) == pytest.approx(mean, abs=1e-5)
        assert 0 < mean < 1


def test_stem_separation_without_torchaudio_raises_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(RuntimeError, match="stem separation needs torchaudio") as caught:
        melody.demucs()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "rate"), [(1, 32000), (2, 44100)])
def test_stem_separation_keeps_rate_and_length(
    channels: int, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an untrained HDemucs, because the trained one would have to be downloaded."""
    pipelines = pytest.importorskip("torchaudio.pipelines", exc_type=(ImportError, OSError, RuntimeError))
    from torchaudio.models import HDemucs

    bundle = pipelines.HDEMUCS_HIGH_MUSDB_PLUS
    untrained = HDemucs(["drums", "bass", "other", "vocals"], nfft=4096, depth=6, channels=4)
    monkeypatch.setattr(type(bundle), "get_model", lambda self: untrained)
    wave = tone(440.0, 1.3, rate).expand(channels, -1)
    stems = melody.demucs()(wave, rate)
    assert stems.shape == (2, wave.shape[1])
    assert stems.isfinite().all()


# --- chords -----------------------------------------------------------------------------------------------


def names_of(chroma: torch.Tensor) -> list[str]:
    """The pitch classes of each frame, as in "C E G"."""
    return [" ".join(n for n, on in zip(melody.PITCH_CLASSES, row.tolist()) if on) for row in chroma]


@pytest.mark.parametrize("root", ["C", "F#", "Bb", "Ebb", "B##"])
@pytest.mark.parametrize("extra", ["", "/3", "/b7", "(*5)", "(b7)"])
def test_chords_are_those_of_mir_eval(root: str, extra: str) -> None:
    """Within an octave; mir_eval leaves out degrees beyond one."""
    labels = pytest.importorskip("mir_eval.chord")
    for quality in QUALITIES:
        if "9" in quality or extra == "(*5)" and "5" not in QUALITIES[quality].split():
            continue
        name = f"{root}:{quality}{extra}"
        base, bitmap, bass = labels.encode(name)
        expected = {(base + i) % 12 for i in range(12) if bitmap[i]} | {(base + bass) % 12}
        assert pitch_classes(name) == expected, name


def test_each_chord_sounds_for_its_beats_and_the_progression_repeats() -> None:
    chroma = melody.chords("C G A:min F", bpm=120, beats=1.024)  # 0.512 s, 4 frames each
    assert names_of(chroma) == ["C E G"] * 4 + ["D G B"] * 4 + ["C E A"] * 4 + ["C F A"] * 4
    longer = melody.chords("C G A:min F", bpm=120, beats=1.024, seconds=5)
    assert len(longer) == math.ceil(5 * RATE / melody.HOP)
    assert longer[16:32].equal(chroma) and longer[:7].equal(chroma[:7])


def test_a_progression_does_not_drift_from_its_tempo() -> None:
    """100 chords of 0.6 s: the chord of each frame is the one at its time."""
    chroma = melody.chords("C F#:min", bpm=100, beats=1, seconds=60)
    chord = [names == "C♯ F♯ A" for names in names_of(chroma)]
    assert chord == [int(i * melody.HOP / RATE / 0.6 + 1e-9) % 2 == 1 for i in range(len(chord))]


def test_chords_with_times_are_those_without() -> None:
    timed = melody.chords([(0, "C"), (2.4, "G:7/3"), (4.8, "N")], seconds=7.2)
    assert timed.equal(melody.chords("C G:7/3 N", bpm=100, beats=4))
    assert names_of(timed)[-1] == "C"  # no chord is what silence is


@pytest.mark.parametrize(
    ("progression", "expected"),
    [
        ("C G Am F", "chord 3 of 4: 'Am'.*probably A:min"),
        ("C H", "chord 2 of 2: 'H' is not a chord name"),
        ("C:foo", "unknown quality 'foo'.*maj7"),
        ("C:", "colon"),
        ("C:(1,8)", "unknown degree '8'"),
        ("C/x", "unknown degree 'x'"),
        ("", "no chords"),
        (7, "the chords are 7; give a text"),
        ([(0, 5)], "chord 1 of 1 is 5"),
        ([(1, "C")], "rise from 0"),
        ([(0, "C"), (0, "G")], "rise from 0"),
        ([(0, "C"), (9, "G")], "end at 8 s"),
    ],
)
def test_an_invalid_progression_is_refused_with_its_position(progression: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        melody.chords(progression, seconds=8)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bpm": 0}, "bpm is 0"),
        ({"beats": math.nan}, "beats is nan"),
        ({"seconds": 1e9}, "seconds is 1000000000.0"),
        ({"bpm": True}, "bpm is True"),
        ({"bpm": 3000}, "at least 0.128 s"),
        ({"progression": [(0, "C")]}, "no end"),
    ],
)
def test_an_invalid_tempo_or_length_is_refused(settings: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        melody.chords(**{"progression": "C G"} | settings)


@pytest.mark.parametrize("bad", [torch.full((4, 12), 0.5), torch.ones(0, 12), torch.ones(4, 11)])
def test_chroma_other_than_0_and_1_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="the chroma has"):
        melody.parse_chroma(bad)

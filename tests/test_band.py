"""Synthetic music: pieces match their attributes and captions; held-out values stay out of training."""

import json
import re
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

from mgkit.band import preview, synth
from mgkit.band.captions import (
    FIRST_TEST_SEED,
    FIRST_VALID_SEED,
    HELD_OUT_PAIRS,
    HELD_OUT_SYNONYMS,
    HELD_OUT_TUNES,
    KEYS,
    WORDS,
    captions,
    synonyms,
    tempo_word,
)
from mgkit.band.compose import compose
from mgkit.band.dataset import write_dataset
from mgkit.band.styles import LEADS, SCALES, STYLES
from mgkit.band.synth import RATE, find_soundfont, render
from mgkit.band.tunes import TUNES, bars, parse

SEEDS = [*range(450), *range(FIRST_VALID_SEED, FIRST_VALID_SEED + 50)]


@pytest.fixture(scope="module")
def training():
    return [compose(seed) for seed in SEEDS]


@lru_cache(None)
def phrases(*alternatives):
    """A pattern of any of these phrases as whole words, the longest first."""
    longest_first = "|".join(map(re.escape, sorted(alternatives, key=len, reverse=True)))
    return re.compile(rf"(?<![\w/])(?:{longest_first})(?![\w/])")


def test_every_tune_has_full_bars_with_chords():
    for tune in TUNES.values():
        start, duration, _ = parse(tune)[-1]
        assert start + duration <= len(bars(tune)) * tune.meter
        assert len(bars(tune)) == len(tune.melody.split("|")), tune.title


def test_same_seed_same_piece_and_other_seed_other_piece():
    assert compose(7) == compose(7)
    assert compose(7) != compose(8)


def test_fixed_attributes_are_kept_and_contradictions_refused():
    piece = compose(
        3,
        style="reggae",
        lead="sitar",
        key=6,
        mode="minor",
        tempo=71,
        meter=4,
        density="dense",
        drums=False,
        tune=None,
    )
    assert (piece.style, piece.lead, piece.key, piece.mode, piece.tempo) == (
        "reggae",
        "sitar",
        6,
        "minor",
        71,
    )
    assert (piece.meter, piece.density, piece.drums, piece.tune, piece.mood) == (
        4,
        "dense",
        False,
        None,
        "sad",
    )
    assert compose(3, tune="minuet in g").meter == 3
    for refused in (
        {"lead": "kazoo"},
        {"colour": "red"},
        {"mood": "sad", "mode": "major"},
        {"tune": "greensleeves", "meter": 4},
    ):
        with pytest.raises(ValueError, match="known|is minor and slow|is in minor"):
            compose(0, **refused)


def test_pieces_begin_at_once_and_fill_the_clip(training):
    for piece in training:
        starts = [note[0] for track in piece.tracks for note in track.notes]
        assert min(starts) < 0.05, piece.attributes()
        assert max(starts) < 10
        assert max(note[0] + note[1] for track in piece.tracks for note in track.notes) > 9.5


def test_melodies_stay_mostly_in_their_key(training):
    for piece in training:
        (melody,) = [track for track in piece.tracks if track.is_melody]
        scale = {(piece.key + step) % 12 for step in SCALES[piece.mode]}
        if piece.mode == "minor":
            scale.add((piece.key + 11) % 12)
        inside = sum(note[1] for note in melody.notes if note[2] % 12 in scale) / sum(
            note[1] for note in melody.notes
        )
        assert inside > (0.7 if piece.tune else 0.85), piece.attributes()


def test_the_accompaniment_plays_the_chords_of_the_piece(training):
    for piece in training:
        starts = np.array([start for start, _ in piece.chords])
        assert starts[0] == 0 and (np.diff(starts) > 0).all()
        [track] = [track for track in piece.tracks if track.role == "chords"]
        for start, _, pitch, _ in track.notes:
            # humanized onsets may precede the beat
            current = piece.chords[np.searchsorted(starts, start + 0.03, side="right") - 1][1]
            assert pitch % 12 in current, piece.attributes()


def test_training_spreads_over_all_values(training):
    for name in ("style", "lead", "key", "mood", "density"):
        counts = Counter(getattr(piece, name) for piece in training)
        assert min(counts.values()) > 0.3 * len(training) / len(counts), counts
    assert {piece.meter for piece in training} == {3, 4}
    assert min(piece.tempo for piece in training) < 66
    assert max(piece.tempo for piece in training) > 150


def test_held_out_values_never_reach_training(training):
    for piece in training:
        assert piece.tune not in HELD_OUT_TUNES
        assert (piece.style, piece.lead) not in HELD_OUT_PAIRS
        for caption in captions(piece, piece.seed, 6):
            assert not phrases(*HELD_OUT_SYNONYMS, *HELD_OUT_TUNES).findall(caption.lower()), caption


def test_held_out_values_exist_and_reach_the_test_split():
    assert set(HELD_OUT_TUNES) < set(TUNES)
    assert all(style in STYLES and lead in LEADS for style, lead in HELD_OUT_PAIRS)
    listed = {word for values in WORDS.values() for words in values.values() for word in words}
    assert listed >= HELD_OUT_SYNONYMS
    pieces = [compose(seed) for seed in range(FIRST_TEST_SEED, FIRST_TEST_SEED + 400)]
    assert {piece.tune for piece in pieces} & set(HELD_OUT_TUNES)
    assert {(piece.style, piece.lead) for piece in pieces} & set(HELD_OUT_PAIRS)
    texts = " ".join(captions(pieces[0], 0, 50, held_out=True)).lower()
    assert synonyms("lead", pieces[0].lead, held_out=True)[0] in texts


def test_captions_are_true(training):
    for piece in training:
        true = {name: getattr(piece, name) for name in WORDS if name != "tempo"}
        true["tempo"] = tempo_word(piece.tempo)
        own = phrases(*(word for attribute, value in true.items() for word in WORDS[attribute][value]))
        for caption in captions(piece, piece.seed, 6):
            text = caption.lower().replace(piece.tune or "no tune", "_")
            # With the true words removed, no false ones may remain.
            text = own.sub("_", text)
            for attribute in ("lead", "style", "drums", "meter", "mood"):
                others = [words for value, words in WORDS[attribute].items() if value != true[attribute]]
                assert not (false := phrases(*sum(others, ())).findall(text)), (caption, false)
            for number in re.findall(r"(\d+) (?:bpm|beats)", text):
                assert abs(int(number) - piece.tempo) <= 3, caption
            for tonic, mode in re.findall(
                r"\b([a-g](?: sharp| flat|#|b)?) (major|minor)\b(?! key)", caption.lower()
            ):
                assert mode == piece.mode, caption
                assert tonic == "a" or tonic in KEYS[piece.key], caption


def test_captions_are_partial_and_varied(training):
    texts = [caption for piece in training for caption in captions(piece, piece.seed, 6)]
    assert len(set(texts)) > 0.95 * len(texts)
    assert 0.2 < np.mean(["bpm" in text or "beats per minute" in text for text in texts]) < 0.8
    assert 0.2 < np.mean([" major" in text or " minor" in text for text in texts]) < 0.8
    assert all("{" not in text and "  " not in text for text in texts)


def test_renders_repeat_to_the_bit_and_have_the_exact_length(soundfont):
    piece = compose(11, seconds=3.3)
    mix, melody = render(piece, seconds=3.3)
    render(compose(12, seconds=1), seconds=1)
    again, melody_again = render(piece, seconds=3.3)
    assert mix.shape == melody.shape == (105600,)
    assert mix.dtype == melody.dtype == np.float32
    assert np.array_equal(mix, again)
    assert np.array_equal(melody, melody_again)


def test_renders_are_loud_without_clipping_or_gaps(soundfont):
    for seed in range(20, 28):
        mix, melody = render(compose(seed))
        assert np.abs(mix).max() < 0.98
        assert np.abs(melody).max() < 0.98
        assert -18 < 20 * np.log10(np.sqrt(np.mean(mix**2))) < -15
        half_seconds = np.square(mix.reshape(20, -1)).mean(axis=1)
        assert np.sqrt(half_seconds).min() > 0.01


def test_tempo_of_a_drum_piece_is_detected(soundfont):
    librosa = pytest.importorskip("librosa")
    correct = 0
    for seed, (style, tempo) in enumerate(
        (("rock", 128), ("jazz", 112), ("reggae", 76), ("march", 116), ("latin", 100))
    ):
        mix, _ = render(compose(seed, style=style, tempo=tempo, meter=4, drums=True))
        detected = float(np.ravel(librosa.beat.beat_track(y=mix, sr=RATE)[0])[0])
        correct += any(abs(detected / tempo / octave - 1) < 0.08 for octave in (0.5, 1, 2))
    assert correct >= 4


def test_chroma_of_the_melody_stem_follows_its_notes(soundfont):
    librosa = pytest.importorskip("librosa")
    for lead in ("flute", "piano", "violin"):
        piece = compose(5, lead=lead, density="sparse")
        _, stem = render(piece)
        chroma = librosa.feature.chroma_stft(y=stem, sr=RATE, n_fft=16384, hop_length=4096, tuning=0).argmax(
            axis=0
        )
        notes = [note for note in piece.tracks[0].notes if note[1] > 0.4 and note[0] + note[1] < 10]
        detected = [
            chroma[round((start + min(length, 1) / 2) * RATE / 4096)] for start, length, _, _ in notes
        ]
        assert np.mean([pc == pitch % 12 for pc, (_, _, pitch, _) in zip(detected, notes, strict=True)]) > 0.8


def test_a_dataset_is_complete_and_matches_its_description(soundfont, tmp_path):
    write_dataset(tmp_path, 3, first_seed=40, seconds=2.0, workers=1)
    about = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    assert about == {
        "clips": 3,
        "samples": 64000,
        "rate": 32000,
        "seconds": 2.0,
        "first_seed": 40,
        "soundfont": "fluidr3mono",
    }
    lines = [
        json.loads(line) for line in (tmp_path / "pieces.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["seed"] for line in lines] == [40, 41, 42]
    assert all(len(line["captions"]) == 6 for line in lines)
    mix = np.memmap(tmp_path / "mix.i16", np.int16).reshape(3, 64000)
    wave, _ = render(compose(41, seconds=2.0), seconds=2.0)
    assert np.array_equal(mix[1], np.round(wave * 32767).astype(np.int16))
    assert (tmp_path / "melody.i16").stat().st_size == 3 * 64000 * 2


def test_a_missing_soundfont_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(synth.Path, "is_file", lambda path: False)
    with pytest.raises(FileNotFoundError, match="apt-get install fluidr3mono-gm-soundfont"):
        find_soundfont()


# -- the preview -------------------------------------------------------------------------------------------


def test_piano_roll_draws_every_note_that_sounds():
    for seed in (0, 1, 2):
        piece = compose(seed)
        picture = preview.piano_roll(piece)
        drawn = sum(len(axes.patches) for axes in picture.axes)
        assert drawn == sum(len(track.notes) for track in piece.tracks)
        assert piece.lead in picture.alt


def test_preview_page_has_a_roll_captions_and_two_players_for_each_piece(soundfont, tmp_path):
    text = preview.page(tmp_path / "preview.html", pieces=2, first_seed=7).read_text(encoding="utf-8")
    assert text.count("<audio controls") == 4
    assert text.count("piano roll: ") == 2
    assert captions(compose(7), 7, 1)[0] in text


def test_preview_without_a_synthesizer_shows_piano_rolls_and_names_the_package(tmp_path, monkeypatch):
    def absent(*_, **__):
        raise ImportError("the band plays through tinysoundfont; pip install it")

    monkeypatch.setattr(preview, "render", absent)
    text = preview.page(tmp_path / "preview.html", pieces=1).read_text(encoding="utf-8")
    assert (
        "This cannot be played here" in text
        and "the band plays through tinysoundfont; pip install it" in text
    )
    assert "piano roll: " in text and "<audio controls" not in text

"""Judges hear what is there, what they find is kept, and the tables tell a good model from one that guesses."""

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgkit.band.captions import HELD_OUT_SYNONYMS
from mgkit.band.compose import compose
from mgkit.band.synth import render
from mgkit.evals import basic_pitch, memorization, metrics, musicnn, protocol, report
from mgkit.evals.protocol import Part

RATE = 32000


def tone(pitch: int, seconds: float) -> np.ndarray:
    """A decaying tone [N] with a few partials."""
    t = np.arange(round(seconds * RATE)) / RATE
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    partials = sum(np.sin(2 * np.pi * hertz * k * t) / k**2 for k in (1, 2, 3))
    return (0.3 * partials * np.exp(-4 * t) * np.minimum(1, t * 200)).astype(np.float32)


def scale() -> np.ndarray:
    """C major at 120 beats a minute, eight seconds."""
    pitches = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 60, 67, 60, 64, 60]
    return np.concatenate([tone(pitch, 0.5) for pitch in pitches])


# -- judges --------------------------------------------------------------------------------------------------------


def test_key_and_tempo_of_a_scale():
    wave = scale()
    assert metrics.key(wave, RATE) == (0, "major")
    assert metrics.tempo_right(metrics.tempo(wave, RATE), 120, octaves=True)


def test_key_judge_is_mostly_right_about_the_band(soundfont):
    pieces = [compose(20_000_000 + i) for i in range(8)]
    heard = [metrics.key(render(piece)[0], RATE) for piece in pieces]
    assert sum(found == (piece.key, piece.mode) for found, piece in zip(heard, pieces, strict=True)) >= 6


def test_a_tune_follows_itself_and_no_other():
    tune, other = metrics.chroma(scale(), RATE), metrics.chroma(np.roll(scale(), RATE // 2), RATE)
    agree, cosine = metrics.follows(tune, tune)
    assert agree == 1 and cosine > 0.9
    assert metrics.follows(other, tune)[0] < 0.7
    assert math.isnan(metrics.follows(tune, np.zeros_like(tune))[0])


def test_notes_of_a_rendered_tune_are_written_down(soundfont):
    pieces = [compose(seed, lead="piano", density="medium", meter=4) for seed in (1, 2)]
    told = [np.array(piece.tracks[0].notes) for piece in pieces]
    heard = [metrics.notes(render(piece)[1], RATE) for piece in pieces]
    assert all(metrics.note_f1(found, tune) > 0.7 for found, tune in zip(heard, told, strict=True))
    assert metrics.note_f1(heard[0], told[1]) < 0.4
    assert metrics.note_f1(told[0], told[0]) == 1
    assert metrics.note_f1(np.zeros((0, 4)), told[0]) == 0


def test_each_note_counts_once():
    tune = np.array([[0.0, 0.5, 60]])
    twice = np.array([[0.0, 0.5, 60], [0.01, 0.5, 72]])
    assert metrics.note_f1(twice, tune) == pytest.approx(2 / 3)


def test_a_click_at_the_seam_is_heard(soundfont):
    wave = render(compose(20_000_001))[0].copy()
    assert metrics.seam(wave, RATE, 4.0)
    wave[4 * RATE : 4 * RATE + 8] = 0.95
    wave[4 * RATE + 8 : 4 * RATE + 16] = -0.95
    assert not metrics.seam(wave, RATE, 4.0)


def test_frechet_distance_is_zero_for_equal_sets_and_grows_with_noise():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 12))
    noise = rng.normal(size=points.shape)
    found = [metrics.frechet(points, points + amount * noise) for amount in (0, 0.5, 1, 2)]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found == sorted(found) and found[1] > 0.01


def test_classifier_tells_leads_apart_by_their_features(soundfont):
    pieces = [compose(seed, lead=lead, drums=False) for seed in range(6) for lead in ("violin", "music box")]
    features = np.stack([metrics.timbre(render(piece, seconds=4)[0], RATE)[0] for piece in pieces])
    judge = metrics.Classifier(features[:8], [piece.lead for piece in pieces[:8]])
    assert judge(features[8:]) == [piece.lead for piece in pieces[8:]]


# -- musicnn -------------------------------------------------------------------------------------------------------


def test_musicnn_sees_of_music_what_its_norms_learned_to_expect(soundfont, monkeypatch):
    """A port with a wrong order of axes would still give numbers; the running means of training would not fit them."""
    seen: dict[int, list[torch.Tensor]] = {}
    norm = musicnn.Musicnn._norm

    def watched(self, x, number):
        seen.setdefault(number, []).append(x.transpose(0, 1).flatten(1).mean(dim=1))
        return norm(self, x, number)

    monkeypatch.setattr(musicnn.Musicnn, "_norm", watched)
    network = musicnn.musicnn()
    for seed in range(8):
        network(musicnn.patches(render(compose(seed))[0], RATE))
    for number in (1, 2, 3, 4, 5, 6, 8, 9):
        found, expected = (
            torch.stack(seen[number]).mean(dim=0),
            network.v[f"batch_normalization_{number}/moving_mean"],
        )
        assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.85, number


def test_musicnn_names_the_instruments_of_clean_renders(soundfont):
    leads = ("violin", "sitar", "guitar", "choir", "cello", "piano", "flute")
    waves = [[render(compose(seed, lead=lead), seconds=4)[0] for seed in (3, 4, 5)] for lead in leads]
    tags = torch.stack(
        [
            torch.cat([musicnn.musicnn()(musicnn.patches(wave, RATE))[0] for wave in some]).mean(dim=0)
            for some in waves
        ]
    )[:, [musicnn.TAGS.index(lead) for lead in leads]]
    named = (tags / tags.mean(dim=0)).argmax(dim=1)
    assert [leads[i] for i in named] == list(leads)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for name in (".index", ".data-00000-of-00001"):
        (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(ValueError, match="not the index of a TensorFlow checkpoint"):
        musicnn.read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="three seconds at a time, and there are 1.00"):
        musicnn.patches(np.zeros(RATE, np.float32), RATE)


@pytest.mark.parametrize("module, load", [(musicnn, "musicnn"), (basic_pitch, "network")])
def test_absent_judges_say_what_to_install(module, load, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install"):
        getattr(module, load).__wrapped__()


# -- what is heard is kept -----------------------------------------------------------------------------------------


def test_a_part_is_heard_once_and_its_tokens_made_once(soundfont, tmp_path, monkeypatch):
    made = []

    def make(self, rendered):
        made.append(self.way)
        return np.zeros((self.size, 4, 150), np.int16)

    monkeypatch.setattr(Part, "_make", make)
    part = Part(tmp_path, "nano", "continued", 0, 2, 4.0)
    first = part.findings()
    assert [set(one) for one in first] == [{"seam_tempo", "seam_key", "smooth"}] * 2
    heard = next(tmp_path.glob("*.npz"))
    again = part.findings()
    assert made == ["continued"]
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(first, again, strict=True) for k in a)
    heard.unlink()  # other judges: the tokens stay
    part.hear()
    assert made == ["continued"]
    replace(part, start=2).hear()
    assert len(made) == 2


def test_other_takes_answer_the_same_prompt():
    asked, take = (protocol.piece_of(protocol.WAYS[way], 3, 4.0) for way in ("renders", "takes"))
    assert asked.tracks != take.tracks
    assert protocol.prompt(asked) == protocol.prompt(take)


def test_held_out_prompts_hold_held_out_words_for_the_same_values():
    piece = compose(20_000_005)
    seen, held_out, few = (protocol.prompt(piece, words) for words in ("seen", "held out", "few"))
    assert sum(word in HELD_OUT_SYNONYMS for word in held_out.split(", ")) == 3
    assert not any(word in HELD_OUT_SYNONYMS for word in seen.split(", "))
    assert "bpm" not in few and "bpm" in held_out


# -- tables --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """Pieces with what perfect ears hear of them, without a sound."""
    pieces = [compose(20_000_000 + i, seconds=4) for i in range(24)]
    leads = sorted({piece.lead for piece in pieces})
    rng = np.random.default_rng(0)

    def finding(piece) -> dict:
        tags = np.full(len(musicnn.TAGS), 0.1)
        if piece.lead in musicnn.TAGS:
            tags[musicnn.TAGS.index(piece.lead)] = 0.9
        chroma = np.zeros((12, 8))
        chroma[np.random.default_rng(piece.seed).integers(0, 12, 8), np.arange(8)] = 1
        key = np.array([piece.key, metrics.MODES.index(piece.mode)])
        sheet = np.array(next(track.notes for track in piece.tracks if track.is_melody))
        return {"tempo": piece.tempo, "key": key, "chroma": chroma, "tune": chroma, "notes": sheet,
                "features": np.array([*(5.0 * (piece.lead == lead) for lead in leads), 9 * piece.drums, *tags]),
                "embedding": rng.normal(size=(3, 4)), "levels": rng.normal(size=(3, 64)),
                "seam_tempo": piece.tempo, "seam_key": key, "smooth": True}  # fmt: skip

    return pieces, [finding(piece) for piece in pieces]


def rows_of(world, model: list[dict]) -> dict[str, report.Row]:
    """All rows for a model that answers with `model`, by name."""
    pieces, perfect = world
    heard = dict.fromkeys(protocol.WAYS, perfect) | dict.fromkeys(
        ("guided", "mild", "free", "unseen", "sung", "sung, free", "continued", "continued, free"), model
    )
    court = report.Court(perfect, pieces)
    rows = [*report.text_rows(heard, pieces, court), *report.melody_rows(heard, pieces),
            *report.sound_rows(heard, len(pieces)), *report.continuation_rows(heard, pieces)]  # fmt: skip
    return {f"{row.table}: {row.name}": row for row in rows}


def test_a_perfect_model_meets_every_goal_and_one_that_does_not_listen_none(world):
    goals = [row for row in rows_of(world, world[1]).values() if row.goal]
    assert len(goals) >= 14 and all(row.met for row in goals if "distance" not in row.table)
    deaf = rows_of(world, report.others(world[1]))
    for name in ("tempo", "key", "lead instrument", "drums or none"):
        assert deaf[f"right in the music: {name}"].met is False, name
    assert deaf["melody given: cosine of the loudest pitch classes"].met is False
    assert deaf["continuation of 4 of 10 s: key kept"].met is False


def test_tempo_with_drums_counts_only_pieces_that_have_some(world):
    pieces, perfect = world
    steady = [
        one if p.drums else one | {"tempo": 1.3 * p.tempo} for one, p in zip(perfect, pieces, strict=True)
    ]
    rows = rows_of(world, steady)
    assert rows["right in the music: the same, with drums"].cells[report.GUIDED][0] == 1
    share = rows["right in the music: tempo, or half or double"].cells[report.GUIDED][0]
    assert share == pytest.approx(np.mean([piece.drums for piece in pieces]))


def test_controls_stand_where_guessing_does(world):
    row = rows_of(world, world[1])["right in the music: key"]
    assert row.cells[report.GUIDED][0] == 1
    assert row.cells[report.CHANCE][0] < 0.2 and row.cells[report.SHUFFLED][0] < 0.3


def test_words_that_are_lost_are_counted_in_points(world):
    pieces, perfect = world
    heard = dict.fromkeys(protocol.WAYS, perfect) | {"unseen": report.others(perfect)}
    rows = report.text_rows(heard, pieces, report.Court(perfect, pieces))
    lead = next(row for row in rows if "held-out" in row.table and row.name == "lead instrument")
    assert lead.met is False and lead.cells["lost"][0] > 0.5


def test_intervals_hold_their_value_and_shrink_with_more():
    few, many = report.interval([True, False] * 5), report.interval([True, False] * 500)
    assert few[1] < many[1] < 0.5 < many[2] < few[2]
    assert report.spread([1.0, math.nan, 3.0])[0] == 2
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(n, 3)) for n in (50, 5000)]
    wide, narrow = (report.jackknife(lambda x: float(x.mean()), one) for one in sets)
    assert wide[2] - wide[1] > 3 * (narrow[2] - narrow[1])


def test_tables_name_every_column_and_say_what_is_met(world):
    rows = list(rows_of(world, world[1]).values())
    whole, short = report.table(rows), report.short(rows)
    assert whole.count("| goal | reached |") == len({row.table for row in rows})
    assert short.count("| goal | reached |") == 1 and "100%: met" in short
    for line in short.splitlines():
        assert line.count("|") == short.splitlines()[0].count("|")


def test_only_a_whole_measurement_enters_the_card(tmp_path, monkeypatch):
    row = report.Row("t", "n", {report.GUIDED: (0.5, 0.4, 0.6)}, goal="g", reached="50%", met=True)
    monkeypatch.setattr(report, "measure", lambda *_: [row])
    monkeypatch.setattr(report.hub, "find", Path)
    card = tmp_path / "README.md"
    card.write_text("a\n<!-- scores -->\nold\n<!-- end of scores -->\nb\n")
    report.main([str(tmp_path), "--count", "12", "--out", str(tmp_path)])
    assert "old" in card.read_text() and "50%: met" in (tmp_path / "scores.md").read_text()
    assert json.loads((tmp_path / "scores.json").read_text())[0]["met"] is True
    report.main([str(tmp_path), "--out", str(tmp_path)])
    assert "old" not in card.read_text() and "50%: met" in card.read_text()
    with pytest.raises(ValueError, match="8 to 10 seconds"):
        report.main([str(tmp_path), "--seconds", "4"])


# -- nothing is copied ---------------------------------------------------------------------------------------------


def test_the_longest_stretch_is_the_one_that_was_copied():
    rng = np.random.default_rng(0)
    training, made = rng.integers(0, 1024, (40, 300)), rng.integers(0, 1024, (3, 250))
    made[0, 30:90] = training[17, 200:260]
    made[1, 0:20], made[1, 100:125] = training[3, :20], training[5, 50:75]
    found = memorization.longest_stretches(made, training)
    assert found[:2] == [memorization.Stretch(60, 30, 17, 200), memorization.Stretch(25, 100, 5, 50)]
    assert found[2].length <= 3


def test_a_whole_copy_is_found_whole():
    training = np.random.default_rng(1).integers(0, 1024, (10, 80))
    assert memorization.longest_stretches(training[4:5], training) == [memorization.Stretch(80, 0, 4, 0)]


def test_the_nearest_clip_uses_the_same_codes():
    rng = np.random.default_rng(2)
    training = np.stack([rng.choice(rng.integers(0, 64, 6), (4, 100)) for _ in range(20)])
    made = training[[7, 12]].copy()
    made[:, :, ::2] = made[:, :, ::-2]
    assert memorization.nearest(made, training, 64) == [7, 12]


@pytest.mark.parametrize("module", [metrics, memorization, report])
def test_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0

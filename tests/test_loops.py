"""Loops: cut at beats, chosen by likelihood, decoded as a ring; bridges between two recordings."""

import json
import math
import threading

import pytest
import torch
from test_cli import error_of, run
from tiny import RATE, noise, tiny, tune

from mgkit import audio, between, candidates, loops, melody
from mgkit.between import generate_between
from mgkit.loops import generate_loop, recut, resample_ring, seam_change

HOP = 640
BEFORE, AFTER = noise(1, RATE), noise(1, 3 * RATE // 2, seed=1)


@pytest.fixture(scope="module")
def model():
    model = tiny(melody=True, window=4.0)
    model.set_generation_params(top_k=9)
    return model


@pytest.fixture
def likelihoods(monkeypatch):
    """The pairs that are compared, with their likelihoods: (before, after, likelihood)."""
    seen, real = [], candidates.likelihood

    def record(model, text, before, after, *rest):
        value = real(model, text, before, after, *rest)
        seen.append((before.clone(), after.clone(), value))
        return value

    monkeypatch.setattr(loops, "likelihood", record)
    monkeypatch.setattr(between, "likelihood", record)
    return seen


# --- loops ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bpm", "beats"), [(120, 4), (97, 3), (133.7, 8)])
def test_a_loop_has_the_exact_length_of_its_beats_and_begins_at_one(model, bpm, beats):
    loop = generate_loop(model, "calm", bpm, beats, candidates=2, seed=1)
    assert loop.wave.shape == (1, round(beats * 60 / bpm * RATE))
    assert loop.codes.shape[-1] == round(beats * 60 / bpm * 50)
    beat = loop.manifest["loop"]["start"] / 50 * bpm / 60
    assert abs(beat - round(beat)) < 0.5 / 50 * bpm / 60 + 1e-9 and round(beat) < 4


def test_the_likeliest_cut_of_all_candidates_is_taken(model, likelihoods):
    loop = generate_loop(model, "calm", 120, 4, candidates=3, seed=1)
    *cuts, own = likelihoods
    assert len(cuts) == 3 * 4 and loop.seam.likelihood == max(value for *_, value in cuts)
    best = max(cuts, key=lambda cut: cut[-1])
    assert torch.equal(best[0], loop.codes) and torch.equal(best[1], loop.codes[:, :50])
    assert loop.seam.own == own[-1]


def test_the_likelihood_is_that_of_generation(model):
    """What the model generates after a piece is likelier there than what it generates after another."""
    model.set_generation_params(duration=3.0)
    _, codes = model.generate(["calm"] * 6, seed=1, return_tokens=True)
    text = candidates.encode_text(model.model, "calm")
    own, other = (
        [
            candidates.likelihood(model.model, text, codes[i, :, :100], codes[(i + shift) % 6, :, 100:])
            for i in range(6)
        ]
        for shift in (0, 1)
    )
    assert sum(own) > sum(other) + 6 * 0.3


def test_a_loop_replays_from_its_file(model, tmp_path):
    told = melody.chords("C G", bpm=120, beats=2)
    loop = generate_loop(model, "calm", 97, 4, melody_wavs=told, candidates=2, seed=3)
    path = audio.write(tmp_path / "a.flac", loop.wave, RATE, manifest=loop.manifest)
    wave, codes = model.replay(audio.read_manifest(path))
    assert torch.equal(wave[0], loop.wave) and torch.equal(codes[0], loop.codes)


def test_a_loop_follows_chords(model):
    loop = generate_loop(model, "calm", 120, 4, candidates=1, seed=3)
    other = generate_loop(
        model, "calm", 120, 4, melody_wavs=melody.chords("C G", 120, 2), candidates=1, seed=3
    )
    assert other.manifest["chords"] and not torch.equal(loop.codes[:, :50], other.codes[:, :50])


def test_a_loop_sounds_the_same_wherever_it_is_entered(model):
    """Turned codes decode to the turned wave: the seam is not different from any other frame."""
    codes = generate_loop(model, "calm", 120, 4, candidates=1, seed=1).codes[None]
    entry = {"bpm": 120, "beats": 4, "start": 0}
    wave, _ = recut(model.model, entry, codes)
    for frames in (1, 30, 77):
        turned, _ = recut(model.model, entry, codes.roll(frames, dims=-1))
        assert (turned - wave.roll(frames * HOP, dims=-1)).abs().max() < 1e-3 * wave.abs().max()
        alone = model.generate_audio(codes.roll(frames, dims=-1))
        assert (alone - wave.roll(frames * HOP, dims=-1)).abs().max() > 0.1 * wave.abs().max()


def test_resampling_a_ring_keeps_its_sines_and_wraps():
    time = torch.arange(1000, dtype=torch.float64) / 1000
    longer = torch.arange(1010, dtype=torch.float64) / 1010
    for harmonic in (1, 7, 200):
        wave = torch.sin(2 * math.pi * harmonic * time)
        assert torch.allclose(
            resample_ring(wave, 1010), torch.sin(2 * math.pi * harmonic * longer), atol=1e-9
        )
        assert torch.allclose(resample_ring(resample_ring(wave, 1010), 1000), wave, atol=1e-9)


def test_the_change_at_a_seam_is_measured():
    steady = (
        0.3 * torch.sin(2 * math.pi * 440 * torch.arange(2 * RATE) / RATE)[None] + noise(1, 2 * RATE) / 99
    )
    assert seam_change(steady) < 0.95
    halves = torch.cat([steady[:, :RATE], tune(1.0, notes=(61,))], dim=-1)
    assert seam_change(halves) > 0.98


def test_a_stop_returns_the_music_so_far(model):
    stop = threading.Event()
    loop = generate_loop(
        model,
        "calm",
        120,
        8,
        candidates=2,
        seed=1,
        stop=stop,
        on_step=lambda done, _: done < 40 or stop.set(),
    )
    assert loop.seam is None and loop.codes.shape[-1] == 37 and loop.wave.shape == (1, 37 * HOP)
    assert torch.equal(model.replay(loop.manifest)[1][0], loop.codes)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"bpm": 0}, "bpm is 0"),
        ({"bpm": math.inf}, "bpm is inf"),
        ({"beats": True}, "beats is True"),
        ({"beats": 1}, "at least|from 1 s"),
        ({"beats": 86400, "bpm": 1}, "12 hours"),
        ({"candidates": 0}, "candidates is 0"),
        ({"candidates": 10**6}, "candidates is 1000000"),
        ({"seed": -1}, "seed"),
        ({"description": 5}, "5, a int"),
    ],
)
def test_an_invalid_loop_is_refused_before_any_step(model, monkeypatch, arguments, expected):
    monkeypatch.setattr(candidates, "request_frames", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=expected):
        generate_loop(model, **{"description": "calm", "bpm": 120, "beats": 4} | arguments)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        5,
        {"bpm": 120, "beats": 4},
        {"bpm": 120, "beats": 4, "start": 10**9},
        {"bpm": 0, "beats": 4, "start": 0},
    ],
)
def test_a_changed_entry_of_a_manifest_is_refused(model, entry):
    model.set_generation_params(duration=0.3)
    _, [manifest] = model.generate(["calm"], seed=1, return_manifests=True)
    for name in ("loop", "between"):
        with pytest.raises(ValueError, match="cannot be replayed"):
            model.replay(manifest | {name: entry})


def test_the_command_writes_a_loop_that_replays(tmp_path, capsys):
    tiny(melody=True).save_pretrained(tmp_path / "tiny")
    argv = ("generate", "calm", "--model", tmp_path / "tiny", "--loop", "4", "--bpm", "97", "--chords", "C G")
    run(*argv, "--seed", 1, "-o", tmp_path / "a.wav")
    assert "seam -" in capsys.readouterr().out
    assert audio.read(tmp_path / "a.wav")[0].shape == (1, round(4 * 60 / 97 * RATE))
    run("replay", tmp_path / "a.wav", "--model", tmp_path / "tiny", "-o", tmp_path / "b.wav")
    assert torch.equal(audio.read(tmp_path / "a.wav")[0], audio.read(tmp_path / "b.wav")[0])
    assert "--loop excludes" in error_of(capsys, *argv, "--duration", "3")


# --- a bridge between two recordings ----------------------------------------------------------------------


def test_a_bridge_is_as_long_as_asked_and_keeps_both_recordings(model):
    bridge = generate_between(model, BEFORE, AFTER, RATE, 1.3, "calm", candidates=3, seed=1)
    first, second = (model.codec.encode(wave[None])[0] for wave in (BEFORE, AFTER))
    assert bridge.codes.shape[-1] == 50 + 65 + 75 and bridge.wave.shape == (1, 190 * HOP)
    join = round(bridge.join * 50)
    assert bridge.start == 1.0 and 115 <= join <= 140
    assert torch.equal(bridge.codes[:, :50], first)
    assert torch.equal(bridge.codes[:, join:], second[:, join - 115 :])


def test_the_bridge_and_the_join_are_the_likeliest(model, likelihoods):
    bridge = generate_between(model, BEFORE, AFTER, RATE, 1, "calm", candidates=5, seed=1)
    bridges, joins = likelihoods[:5], likelihoods[5:]
    assert bridge.likelihoods == sorted((value for *_, value in bridges), reverse=True)
    best = max(bridges, key=lambda one: one[-1])
    assert torch.equal(best[0], joins[0][0]) and torch.equal(best[0], bridge.codes[:, :100])
    assert [before.shape[-1] for before, *_ in joins] == [100, 105, 110, 115, 120, 125]
    second = model.codec.encode(AFTER[None])[0]
    for before, after, _ in joins:
        assert torch.equal(after, second[:, before.shape[-1] - 100 :][:, :50])
    assert round(bridge.join * 50) == max(joins, key=lambda one: one[-1])[0].shape[-1]


def test_a_bridge_replays(model, tmp_path):
    bridge = generate_between(model, BEFORE, AFTER, RATE, 1, candidates=2, seed=1)
    wave, codes = model.replay(json.loads(json.dumps(bridge.manifest)))
    assert torch.equal(codes[0], bridge.codes) and torch.equal(wave[0], bridge.wave)


def test_a_bridge_from_a_recording_longer_than_a_window(model):
    bridge = generate_between(model, noise(2, 5 * 16000), AFTER, 16000, 1, candidates=2, seed=1)
    assert bridge.codes.shape[-1] == 250 + 50 + 150


def test_a_stopped_bridge_returns_the_music_so_far(model):
    stop = threading.Event()
    bridge = generate_between(
        model,
        BEFORE,
        AFTER,
        RATE,
        2,
        candidates=2,
        stop=stop,
        on_step=lambda done, _: done < 20 or stop.set(),
    )
    assert bridge.join is None and bridge.likelihoods == [] and bridge.codes.shape[-1] == 50 + 17


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"after": AFTER[:, : RATE // 2]}, "after the bridge lasts 0.5 s; give at least 1 s"),
        ({"before": BEFORE * math.nan}, "NaN"),
        ({"sample_rate": 0}, "sample rate"),
        ({"candidates": 1.5}, "candidates is 1.5"),
    ],
)
def test_an_invalid_bridge_is_refused_before_any_step(model, monkeypatch, arguments, expected):
    monkeypatch.setattr(candidates, "request_frames", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=expected):
        generate_between(
            model, **{"before": BEFORE, "after": AFTER, "sample_rate": RATE, "seconds": 1} | arguments
        )

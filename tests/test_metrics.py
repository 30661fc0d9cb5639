"""Metrics find known properties of audio; the networks behind them match their packages."""

import doctest
import math

import numpy as np
import pytest
import torch

from mgkit.band.compose import compose
from mgkit.band.synth import render
from mgkit.evals import basic_pitch, metrics, musicnn

RATE = 32000


def tone(pitch: int, seconds: float) -> np.ndarray:
    """A decaying tone [N] with three partials."""
    t = np.arange(round(seconds * RATE)) / RATE
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    partials = sum(np.sin(2 * np.pi * hertz * k * t) / k**2 for k in (1, 2, 3))
    return (0.3 * partials * np.exp(-4 * t) * np.minimum(1, t * 200)).astype(np.float32)


def scale() -> np.ndarray:
    """C major at 120 bpm, eight seconds."""
    pitches = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 60, 67, 60, 64, 60]
    return np.concatenate([tone(pitch, 0.5) for pitch in pitches])


# -- metrics -----------------------------------------------------------------------------------------------


def test_key_and_tempo_of_a_scale():
    wave = scale()
    assert metrics.key(wave, RATE) == (0, "major")
    assert metrics.tempo_matches(metrics.tempo(wave, RATE), 120, octaves=True)


def test_key_is_mostly_correct_on_renders(soundfont):
    pieces = [compose(20_000_000 + i) for i in range(8)]
    keys = [metrics.key(render(piece)[0], RATE) for piece in pieces]
    assert sum(key == (piece.key, piece.mode) for key, piece in zip(keys, pieces, strict=True)) >= 6


def test_a_melody_is_similar_to_itself_and_to_no_other():
    melody, other = metrics.chroma(scale(), RATE), metrics.chroma(np.roll(scale(), RATE // 2), RATE)
    quantized, soft = metrics.melody_similarity(melody, melody)
    assert quantized == 1 and soft > 0.9
    assert metrics.melody_similarity(other, melody)[0] < 0.7
    assert math.isnan(metrics.melody_similarity(melody, np.zeros_like(melody))[0])


def test_a_rendered_melody_is_transcribed(soundfont):
    pieces = [compose(seed, lead="piano", density="medium", meter=4) for seed in (1, 2)]
    references = [np.array(piece.tracks[0].notes) for piece in pieces]
    transcribed = [metrics.transcribe(render(piece)[1], RATE) for piece in pieces]
    pairs = zip(transcribed, references, strict=True)
    assert all(metrics.note_f1(notes, reference) > 0.7 for notes, reference in pairs)
    assert metrics.note_f1(transcribed[0], references[1]) < 0.4
    assert metrics.note_f1(references[0], references[0]) == 1
    assert metrics.note_f1(np.zeros((0, 4)), references[0]) == 0


def test_each_note_counts_once():
    reference = np.array([[0.0, 0.5, 60]])
    twice = np.array([[0.0, 0.5, 60], [0.01, 0.5, 72]])
    assert metrics.note_f1(twice, reference) == pytest.approx(2 / 3)


def test_a_click_at_the_seam_is_detected(soundfont):
    wave = render(compose(20_000_001))[0].copy()
    assert metrics.seam_is_smooth(wave, RATE, 4.0)
    wave[4 * RATE : 4 * RATE + 8] = 0.95
    wave[4 * RATE + 8 : 4 * RATE + 16] = -0.95
    assert not metrics.seam_is_smooth(wave, RATE, 4.0)


def test_frechet_distance_is_zero_for_equal_sets_and_grows_with_noise():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 12))
    noise = rng.normal(size=points.shape)
    distances = [metrics.frechet_distance(points, points + amount * noise) for amount in (0, 0.5, 1, 2)]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances == sorted(distances) and distances[1] > 0.01


def test_classifier_separates_leads_by_timbre(soundfont):
    pieces = [compose(seed, lead=lead, drums=False) for seed in range(6) for lead in ("violin", "music box")]
    features = np.stack([metrics.timbre(render(piece, seconds=4)[0], RATE)[0] for piece in pieces])
    classifier = metrics.Classifier(features[:8], [piece.lead for piece in pieces[:8]])
    assert classifier(features[8:]) == [piece.lead for piece in pieces[8:]]


# -- musicnn -----------------------------------------------------------------------------------------------


def test_musicnn_activations_have_the_running_means_of_its_training(soundfont, monkeypatch):
    """A port with a wrong order of axes would still give numbers, but not with these means."""
    inputs: dict[int, list[torch.Tensor]] = {}
    norm = musicnn.Musicnn._norm

    def recording(self, x, number):
        inputs.setdefault(number, []).append(x.transpose(0, 1).flatten(1).mean(dim=1))
        return norm(self, x, number)

    monkeypatch.setattr(musicnn.Musicnn, "_norm", recording)
    network = musicnn.musicnn()
    for seed in range(8):
        network(musicnn.patches(render(compose(seed))[0], RATE))
    for number in (1, 2, 3, 4, 5, 6, 8, 9):
        measured = torch.stack(inputs[number]).mean(dim=0)
        expected = network.v[f"batch_normalization_{number}/moving_mean"]
        assert torch.corrcoef(torch.stack([measured, expected]))[0, 1] > 0.85, number


def test_musicnn_tags_the_instruments_of_clean_renders(soundfont):
    leads = ("violin", "sitar", "guitar", "choir", "cello", "piano", "flute")
    waves = [[render(compose(seed, lead=lead), seconds=4)[0] for seed in (3, 4, 5)] for lead in leads]
    tags = torch.stack(
        [
            torch.cat([musicnn.musicnn()(musicnn.patches(wave, RATE))[0] for wave in some]).mean(dim=0)
            for some in waves
        ]
    )[:, [musicnn.TAGS.index(lead) for lead in leads]]
    salient = (tags / tags.mean(dim=0)).argmax(dim=1)
    assert [leads[i] for i in salient] == list(leads)


def test_other_files_and_short_clips_are_refused(tmp_path):
    for name in (".index", ".data-00000-of-00001"):
        (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(ValueError, match="not the index of a TensorFlow checkpoint"):
        musicnn.read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="lasts 1.00 s; musicnn needs at least three seconds"):
        musicnn.patches(np.zeros(RATE, np.float32), RATE)


@pytest.mark.parametrize("module, load", [(musicnn, "musicnn"), (basic_pitch, "network")])
def test_a_missing_package_is_reported_with_the_command_to_install_it(module, load, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install"):
        getattr(module, load).__wrapped__()


def test_doctests_of_metrics_pass():
    assert doctest.testmod(metrics).failed == 0

"""Frame labels of composed pieces."""

import numpy as np
import pytest

from mgkit.band import labels as labels_module
from mgkit.band.compose import compose
from mgkit.band.labels import BINARY, CLASSES, chord_bits, dataset_labels, frame_labels
from mgkit.band.piece import Piece, Track


def test_labels_hold_the_notes_of_every_frame():
    tracks = (
        Track("melody", 0, ((0.0, 0.5, 60, 80), (0.5, 0.5, 67, 80))),
        Track("bass", 32, ((0.0, 1.0, 43, 80),)),
        Track("chords", 0, ((0.5, 0.5, 64, 60),)),
        Track("drums", 0, ((0.5, 0.1, 38, 90),)),
    )
    piece = Piece(0, "rock", "piano", 9, "minor", 120, 3, "tense", "dense", True, None, tracks)
    labels = frame_labels(piece, 60)
    row = dict(zip(CLASSES, labels, strict=False))
    binary = labels[len(CLASSES) :]
    assert labels.shape == (len(CLASSES) + len(BINARY), 60)
    assert (row["key"] == 9 + 12).all() and (row["drums"] == 1).all() and (row["meter"] == 0).all()
    # a beat is 25 frames; the first frame of each is in its first sixteenth
    assert row["beat"][[0, 24, 25, 50]].tolist() == [0, 0, 1, 2]
    assert row["phase"][[0, 12, 24, 25]].tolist() == [0, 8, 15, 0]
    assert row["melody"][[0, 24, 25, 49, 50]].tolist() == [25, 25, 32, 32, 0]
    assert row["bass"][[0, 49, 50]].tolist() == [8, 8, 0]
    assert binary[:12, 0].nonzero()[0].tolist() == [7] and binary[:12, 30].nonzero()[0].tolist() == [4, 7]
    assert binary[12].nonzero()[0].tolist() == [0, 1, 25, 26]
    assert binary[13:].nonzero()[0].tolist() == [1, 1] and binary[14, 25]


def test_labels_from_several_processes_are_those_of_one(monkeypatch):
    pieces = [compose(seed).attributes() for seed in range(5)]
    one = dataset_labels(pieces, 10.0, 500, 79)
    monkeypatch.setattr(labels_module, "FEW_CLIPS", 1)
    monkeypatch.setattr(labels_module.os, "cpu_count", lambda: 2)
    several = dataset_labels(pieces, 10.0, 500, 79)
    assert all(np.array_equal(a, b) for a, b in zip(one, several, strict=True))


def test_pieces_that_compose_differently_now_are_refused():
    pieces = [compose(3).attributes() | {"lead": "kazoo"}]
    with pytest.raises(ValueError, match="seed 3 now composes a different piece"):
        dataset_labels(pieces, 1.0, 50, 8)
    with pytest.raises(ValueError, match="--auxiliary 0"):
        dataset_labels([{"captions": ["a real recording"]}], 1.0, 50, 8)


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_valid_classes(seed):
    labels = frame_labels(compose(seed), 500)
    for values, count in zip(labels, CLASSES.values(), strict=False):
        assert values.min() >= 0 and values.max() < count


@pytest.mark.parametrize("seed", range(20))
def test_chords_are_those_that_sound_at_that_time(seed):
    piece = compose(seed)
    bits = chord_bits(piece, 79)
    accompaniment = [track for track in piece.tracks if track.role in ("chords", "pad")]
    ends = [*(start for start, _ in piece.chords[1:]), 20.0]
    compared = 0
    for (start, chord), end in zip(piece.chords, ends, strict=True):
        for frame in range(79):
            time = frame * 4096 / 32000
            if not start <= time < end:
                continue
            tones = {pitch_class for pitch_class in range(12) if bits[frame] >> pitch_class & 1}
            assert tones == set(chord) and 3 <= len(tones) <= 4
            # Notes are played up to 20 ms early or late.
            sounding = {
                pitch % 12
                for track in accompaniment
                for begin, length, pitch, _ in track.notes
                if start - 0.02 <= begin <= time < min(begin + length, end - 0.02)
            }
            assert sounding <= tones
            compared += len(sounding)
    assert compared > 20

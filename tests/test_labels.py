"""Frame labels of composed pieces."""

import numpy as np
import pytest

from mgkit.band import labels as labels_module
from mgkit.band.compose import compose
from mgkit.band.labels import BINARY, CLASSES, dataset_labels, frame_labels
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
    one = dataset_labels(pieces, 10.0, 500)
    monkeypatch.setattr(labels_module, "FEW_CLIPS", 1)
    monkeypatch.setattr(labels_module.os, "cpu_count", lambda: 2)
    assert np.array_equal(dataset_labels(pieces, 10.0, 500), one)


def test_pieces_that_compose_differently_now_are_refused():
    pieces = [compose(3).attributes() | {"lead": "kazoo"}]
    with pytest.raises(ValueError, match="seed 3 now composes a different piece"):
        dataset_labels(pieces, 1.0, 50)
    with pytest.raises(ValueError, match="--auxiliary 0"):
        dataset_labels([{"captions": ["a real recording"]}], 1.0, 50)


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_valid_classes(seed):
    labels = frame_labels(compose(seed), 500)
    for values, count in zip(labels, CLASSES.values(), strict=False):
        assert values.min() >= 0 and values.max() < count

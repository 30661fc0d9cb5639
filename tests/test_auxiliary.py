"""The labels of a piece, and the auxiliary head that predicts them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_runs import LM_SHAPE

from mgkit.band.compose import Piece, Track, compose
from mgkit.lm import LM
from mgkit.train.auxiliary import CHOICES, EVENTS, Reader, score, scores


def test_score_says_what_sounds_in_every_frame():
    tracks = (
        Track("melody", 0, ((0.0, 0.5, 60, 80), (0.5, 0.5, 67, 80))),
        Track("bass", 32, ((0.0, 1.0, 43, 80),)),
        Track("chords", 0, ((0.5, 0.5, 64, 60),)),
        Track("drums", 0, ((0.5, 0.1, 38, 90),)),
    )
    piece = Piece(0, "rock", "piano", 9, "minor", 120, 3, "tense", "dense", True, None, tracks)
    found = score(piece, 60)
    said = dict(zip(CHOICES, found, strict=False))
    events = found[len(CHOICES) :]
    assert found.shape == (len(CHOICES) + EVENTS, 60)
    assert (said["key"] == 9 + 12).all() and (said["drums"] == 1).all() and (said["meter"] == 0).all()
    # a beat is 25 frames; the first frame of each is in its first sixteenth
    assert said["beat"][[0, 24, 25, 50]].tolist() == [0, 0, 1, 2]
    assert said["phase"][[0, 12, 24, 25]].tolist() == [0, 8, 15, 0]
    assert said["melody"][[0, 24, 25, 49, 50]].tolist() == [25, 25, 32, 32, 0]
    assert said["bass"][[0, 49, 50]].tolist() == [8, 8, 0]
    assert events[:12, 0].nonzero()[0].tolist() == [7] and events[:12, 30].nonzero()[0].tolist() == [4, 7]
    assert events[12].nonzero()[0].tolist() == [0, 1, 25, 26]
    assert events[13:].nonzero()[0].tolist() == [1, 1] and events[14, 25]


def test_scores_of_another_band_are_refused():
    pieces = [compose(3).attributes() | {"lead": "kazoo"}]
    with pytest.raises(ValueError, match="band has changed since it played piece 3"):
        scores(pieces, 1.0, 50)
    with pytest.raises(ValueError, match="learn with --score 0"):
        scores([{"captions": ["a real recording"]}], 1.0, 50)


@pytest.mark.parametrize("seed", range(20))
def test_answers_fit_every_piece(seed):
    found = score(compose(seed), 500)
    for values, count in zip(found, CHOICES.values(), strict=False):
        assert values.min() >= 0 and values.max() < count


def test_a_reader_hears_its_own_thread_and_learns_what_the_layer_knows():
    torch.manual_seed(0)
    lm = LM(LM_SHAPE)
    reader = Reader(lm, 1)
    piece = torch.from_numpy(score(compose(1), 40))[None]
    steps = torch.randint(0, 16, (1, 2, 40))

    def ask(steps: torch.Tensor) -> torch.Tensor:
        lm(steps)
        return reader(reader.heard(40), piece)

    with ThreadPoolExecutor(2) as pool:
        other = torch.randint(0, 16, (1, 2, 40))
        assert all(torch.equal(a, b) for a, b in zip(pool.map(ask, [steps, other]), [ask(steps), ask(other)]))
    learned = [*lm.parameters(), *reader.parameters()]
    optimizer = torch.optim.Adam(learned, 1e-2)
    first = float(ask(steps).sum().detach())
    for _ in range(60):
        optimizer.zero_grad()
        ask(steps).sum().backward()
        optimizer.step()
    assert float(ask(steps).sum().detach()) < 0.2 * first
    assert lm.layers[0].linear1.weight.grad.any() and lm.layers[1].linear1.weight.grad is None

"""Reinforcement learning on own samples."""

import copy
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import CAPTIONS, Music, lm_run

from mgkit.train import lm as lm_training
from mgkit.train import loop, reinforce
from mgkit.train.lm import LMLearner, LMRun
from mgkit.train.reinforce import AHEAD, ATTRIBUTES, LAG, Critic, Rehearsal, Rehearser, ask, gains, pace


@pytest.fixture(scope="module")
def tokenizer():
    return lm_training.make_tokenizer(CAPTIONS, 150)


def clock(tempo: float, frames: int = 200) -> torch.Tensor:
    """Chances [1, frames, 16] of each sixteenth of the beat, of a listener who is sure."""
    place = (np.arange(frames) / 50 * tempo / 60 % 1 * 16).astype(int)
    return torch.eye(16)[torch.from_numpy(place)][None]


def test_pace_is_best_at_the_asked_tempo_and_none_without_a_beat():
    right, near, off = (float(pace(clock(tempo), [120.0])[0, LAG:].mean()) for tempo in (120, 126, 150))
    assert right > 0.95
    assert abs(near - math.cos(2 * math.pi * 6 / 60)) < 0.05
    assert off < 0
    assert not pace(clock(120), [120.0])[0, :LAG].any()
    assert float(pace(torch.full((1, 200, 16), 1 / 16), [120.0]).abs().max()) < 1e-5


def test_a_take_gains_where_what_follows_is_better_than_in_the_other_takes():
    heard = torch.zeros(2, 4, 300)
    heard[:, 1, 200:] = 1.0  # the second take of the first request turns right at frame 200
    found = gains(heard, takes=2)
    assert found.shape == (4, 300)
    assert torch.allclose(found[0], -found[1]) and not found[2:].any()
    assert not found[1, : 199 - AHEAD].any()
    assert found[1, 199 - AHEAD + 1] > 0 and found[1].argmax() in range(199, 225)
    assert found[1, -1] == 0  # nothing follows


def test_requests_name_what_is_listened_for():
    piece = {"style": "folk", "lead": "flute", "tempo": 97, "key": 9, "mode": "minor", "drums": False}
    rng = np.random.default_rng(0)
    for _ in range(20):
        text = ask(piece, rng, goes_on=False)
        assert "97 bpm" in text and "a minor" in text and len(text.split(", ")) == 5
        text = ask(piece, rng, goes_on=True)
        assert "bpm" not in text and "minor" not in text and len(text.split(", ")) == 3


@pytest.fixture(scope="module")
def taught(tmp_path_factory, tokenizer):
    """A run of a few steps with a reader of the score."""
    out = tmp_path_factory.mktemp("taught")
    data = Music(frames=120)
    first = replace(lm_run(), score=0.25)
    loop.train(first, out, LMLearner(first, data, data, tokenizer), lr=first.lr, measure_every=6)
    return out


def rehearsal(start: Path) -> Rehearsal:
    plain = {each.name: getattr(lm_run(), each.name) for each in fields(LMRun)}
    return Rehearsal(**plain | {"start": str(start), "requests": 2, "takes": 2, "turns": 2})


def test_a_round_teaches_and_resumes_to_the_same(taught, tokenizer):
    data, whole = Music(frames=120), rehearsal(taught)
    learner = Rehearser(whole, data, data, tokenizer)
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    row = learner.step(0, 1e-3)
    assert set(ATTRIBUTES) < set(row) and all(math.isfinite(value) for value in row.values())
    assert any(not torch.equal(before[name], p) for name, p in learner.model.named_parameters())
    critic = Critic(taught, torch.device("cpu")).model.state_dict()
    assert all(torch.equal(value, critic[name]) for name, value in learner.critic.model.state_dict().items())

    state = copy.deepcopy(learner.state_dict())
    again = Rehearser(whole, data, data, tokenizer, resumed=True)
    again.load_state_dict(state)
    assert learner.step(1, 1e-3) == again.step(1, 1e-3)


def test_what_has_a_gain_becomes_likelier(taught, tokenizer):
    data = Music(frames=120)
    learner = Rehearser(rehearsal(taught), data, data, tokenizer)
    requests = learner._requests(np.random.default_rng(0), goes_on=False)
    texts, codes = learner._play(requests, 0)
    better = torch.zeros(codes.shape[0], codes.shape[-1])
    better[0], better[1] = 1.0, -1.0
    optimizer = torch.optim.SGD(learner.model["lm"].parameters(), 0.1)
    losses = []
    for _ in range(5):
        urge = learner._urge(codes, texts, better)
        optimizer.zero_grad()
        urge.backward()
        optimizer.step()
        losses.append(float(urge.detach()))
    assert losses[-1] < losses[0]


def test_a_model_without_a_reader_gets_one_that_learns_from_true_music(
    taught, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(reinforce, "PASSES", 60)  # five clips are one batch
    bare = tmp_path / "bare"
    shutil.copytree(taught, bare, ignore=shutil.ignore_patterns("checkpoint.pt"))
    fresh, data = Critic(bare, torch.device("cpu")), Music(frames=120)
    assert Critic(taught, torch.device("cpu")).knows and not fresh.knows
    learner = Rehearser(rehearsal(bare), data, data, tokenizer)
    codes, _ = data.batch(np.arange(len(data)), 120)
    truth = torch.from_numpy(learner.scores)
    before, after = (
        float(critic.reader(critic._states(codes), truth).sum().detach())
        for critic in (fresh, learner.critic)
    )
    assert after < 0.9 * before
    assert all(torch.equal(p, q) for p, q in zip(fresh.model.parameters(), learner.critic.model.parameters()))

    again = Rehearser(rehearsal(bare), data, data, tokenizer, resumed=True)
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert learner.step(0, 1e-3) == again.step(0, 1e-3)

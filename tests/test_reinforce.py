"""Reinforcement learning of the language model on its own samples."""

import copy
import math
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import CAPTIONS, Music, lm_run

from mgkit.train import loop, rewards
from mgkit.train.lm import LMLearner, LMRun
from mgkit.train.reinforce import ReinforceLearner, ReinforceRun, prompt_text
from mgkit.train.rewards import HORIZON, LAG, REWARDS, RewardModel, advantages, tempo_reward
from mgkit.train.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CAPTIONS, 150)


def clock(tempo: float, frames: int = 200) -> torch.Tensor:
    """Probabilities [1, frames, 16] of the phase of a steady beat, all on one sixteenth."""
    phase = (np.arange(frames) / 50 * tempo / 60 % 1 * 16).astype(int)
    return torch.eye(16)[torch.from_numpy(phase)][None]


def test_tempo_reward_is_highest_at_the_requested_tempo_and_zero_without_a_beat():
    right, near, off = (
        float(tempo_reward(clock(tempo), [120.0])[0, LAG:].mean()) for tempo in (120, 126, 150)
    )
    assert right > 0.95
    assert abs(near - math.cos(2 * math.pi * 6 / 60)) < 0.05
    assert off < 0
    assert not tempo_reward(clock(120), [120.0])[0, :LAG].any()
    assert float(tempo_reward(torch.full((1, 200, 16), 1 / 16), [120.0]).abs().max()) < 1e-5


def test_advantage_is_positive_before_an_improvement_over_the_other_samples():
    reward = torch.zeros(2, 4, 300)
    # the second sample of the first prompt improves at frame 200
    reward[:, 1, 200:] = 1.0
    advantage = advantages(reward, samples=2)
    assert advantage.shape == (4, 300)
    assert torch.allclose(advantage[0], -advantage[1]) and not advantage[2:].any()
    assert not advantage[1, : 199 - HORIZON].any()
    assert advantage[1, 199 - HORIZON + 1] > 0 and advantage[1].argmax() in range(199, 225)
    # no frame follows
    assert advantage[1, -1] == 0


def test_prompts_name_the_rewarded_attributes():
    piece = {"style": "folk", "lead": "flute", "tempo": 97, "key": 9, "mode": "minor", "drums": False}
    rng = np.random.default_rng(0)
    for _ in range(20):
        text = prompt_text(piece, rng, continuation=False)
        assert "97 bpm" in text and "a minor" in text and len(text.split(", ")) == 5
        text = prompt_text(piece, rng, continuation=True)
        assert "bpm" not in text and "minor" not in text and len(text.split(", ")) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """The folder of a run of a few steps, with an auxiliary head."""
    out = tmp_path_factory.mktemp("trained")
    data = Music(frames=120)
    run = lm_run(auxiliary=0.25)
    loop.train(run, out, LMLearner(run, data, data, tokenizer), lr=run.lr, measure_every=6)
    return out


def reinforce_run(start: Path) -> ReinforceRun:
    shared = {each.name: getattr(lm_run(), each.name) for each in fields(LMRun)}
    return ReinforceRun(**shared | {"start": str(start), "prompts": 2, "samples": 2, "updates": 2})


def test_a_round_changes_the_policy_alone_and_resumes_to_the_same(trained, tokenizer):
    data, run = Music(frames=120), reinforce_run(trained)
    learner = ReinforceLearner(run, data, data, tokenizer)
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    row = learner.step(0, 1e-3)
    assert {f"reward_{name}" for name in REWARDS} < set(row)
    assert all(math.isfinite(value) for value in row.values())
    assert any(not torch.equal(before[name], p) for name, p in learner.model.named_parameters())
    fixed = RewardModel(trained, torch.device("cpu")).model.state_dict()
    used = learner.reward_model.model.state_dict()
    assert all(torch.equal(value, fixed[name]) for name, value in used.items())

    state = copy.deepcopy(learner.state_dict())
    again = ReinforceLearner(run, data, data, tokenizer, resumed=True)
    again.load_state_dict(state)
    assert learner.step(1, 1e-3) == again.step(1, 1e-3)


def test_policy_gradient_raises_the_probability_of_samples_with_an_advantage(trained, tokenizer):
    data = Music(frames=120)
    learner = ReinforceLearner(reinforce_run(trained), data, data, tokenizer)
    prompts = learner.prompts(np.random.default_rng(0), continuation=False)
    texts, codes = learner.sample(prompts, 0)
    advantage = torch.zeros(codes.shape[0], codes.shape[-1])
    advantage[0], advantage[1] = 1.0, -1.0
    optimizer = torch.optim.SGD(learner.model.lm.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = learner.policy_loss(codes, texts, advantage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_model_without_an_auxiliary_head_gets_one_fitted_to_true_music(
    trained, tokenizer, tmp_path, monkeypatch
):
    # five clips are one batch
    monkeypatch.setattr(rewards, "FIT_EPOCHS", 60)
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("checkpoint.pt"))
    fresh, data = RewardModel(bare, torch.device("cpu")), Music(frames=120)
    assert RewardModel(trained, torch.device("cpu")).pretrained and not fresh.pretrained
    learner = ReinforceLearner(reinforce_run(bare), data, data, tokenizer)
    codes, _ = data.batch(np.arange(len(data)), 120)
    labels = torch.from_numpy(learner.labels)
    before, after = (
        float(each.head(each.residual(codes), labels).sum().detach())
        for each in (fresh, learner.reward_model)
    )
    assert after < 0.9 * before
    assert all(
        torch.equal(p, q) for p, q in zip(fresh.model.parameters(), learner.reward_model.model.parameters())
    )

    again = ReinforceLearner(reinforce_run(bare), data, data, tokenizer, resumed=True)
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert learner.step(0, 1e-3) == again.step(0, 1e-3)

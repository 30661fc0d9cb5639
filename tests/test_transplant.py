"""Transplanting a language model onto another codec's tokens."""

import copy

import numpy as np
import pytest
import torch
from tiny_runs import CAPTIONS, LM_SHAPE, TEXT_SHAPE, Music

from mgkit.lm import Condition
from mgkit.train import transplant
from mgkit.train.loss import losses
from mgkit.train.model import load, new_model, save
from mgkit.train.tokenizer import make_tokenizer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return new_model(LM_SHAPE, TEXT_SHAPE, make_tokenizer(CAPTIONS, 150), 4).requires_grad_(False)


def renamed(codes, seed=1):
    """The same music in tokens of other numbers, differently in each codebook [clips, K, T]."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(16) for _ in range(codes.shape[1])]
    return np.stack([order[codes[:, k]] for k, order in enumerate(orders)], axis=1)


def test_tokens_of_other_numbers_get_the_same_hidden_states(model, monkeypatch):
    monkeypatch.setattr(transplant, "RIDGE", 1e-6)
    old = torch.from_numpy(Music(40).codes)
    new = torch.from_numpy(renamed(old.numpy()))
    transplanted = copy.deepcopy(model.lm)
    assert transplant.fit_embeddings(transplanted, old, new) > 0.999
    before = model.lm.hidden(old[:3], Condition())
    assert torch.allclose(transplanted.hidden(new[:3], Condition()), before, atol=1e-3)
    assert not torch.allclose(transplanted.hidden(old[:3], Condition()), before, atol=0.1)


def test_unrelated_tokens_explain_nothing(model):
    old, new = (torch.from_numpy(music) for music in (Music(80).codes, renamed(Music(80).codes[::-1])))
    assert transplant.fit_embeddings(model.lm, old, new) < 0.1


def test_heads_learn_what_the_hidden_states_tell_and_nothing_else_changes(model, monkeypatch):
    music = Music(40)
    # The next code of a codebook is the last one plus 1.
    music.codes = (np.arange(40)[:, None, None] + np.arange(40)) % 16 * np.ones((1, 2, 1), int)
    others = {name: w.clone() for name, w in model.state_dict().items() if "heads" not in name}
    model.lm.heads.requires_grad_(True)
    monkeypatch.setattr(transplant, "PASSES", 30)
    final = transplant.fit_heads(model, music, 40)
    assert all(loss < 0.5 * np.log(16) for loss in final)
    measured = losses(model.lm, torch.from_numpy(music.codes[:8]), Condition())
    assert measured.max() < 0.7 * np.log(16)
    assert all(torch.equal(model.state_dict()[name], w) for name, w in others.items())


def test_a_saved_model_is_loaded_with_its_own_shape(model, tmp_path):
    save(model, model.state_dict(), tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.lm.config == LM_SHAPE
    codes = torch.from_numpy(Music(3).codes)
    assert torch.equal(again.lm(codes, Condition()), model.lm(codes, Condition()))
    assert again.conditioner.text.t5.config.d_model == TEXT_SHAPE.dim

"""The log-likelihood of a piece is that of its generation, one step after another."""

import math
from dataclasses import replace

import pytest
import torch
from refusals import refusal
from tiny import CODEC, RATE, tiny, tune
from torch import Tensor

from mgkit import MusicGen, melody, trace
from mgkit.edits import Add
from mgkit.score import rank, score

LAYOUTS = ("text", "melody", "stereo")
TEXTS = ["calm piano", "fast loud drums with a dark choir"]


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[MusicGen, Tensor]]:
    """A model of each layout, and the codes [B, K, T] of a piece for each text."""
    models = {name: tiny(melody=name == "melody", channels=1 + (name == "stereo")) for name in LAYOUTS}
    for model in models.values():
        model.set_generation_params(duration=0.5, cfg_coef=1.0)
    return {
        name: (model, model.generate(TEXTS, seed=3, return_tokens=True)[1]) for name, model in models.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_the_log_probabilities_of_a_trace(made, layout):
    model, codes = made[layout]
    scores = score(model, codes, TEXTS)
    assert scores.shape == codes.shape
    _, [_, manifest] = model.generate(TEXTS, seed=3, return_manifests=True)
    expected = trace.retrace(model, codes[1], manifest).conditional.log_softmax(-1)
    torch.testing.assert_close(scores[1], expected.gather(-1, codes[1][..., None])[..., 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_piece_in_a_batch_scores_as_alone(made, layout):
    model, codes = made[layout]
    together = score(model, codes, TEXTS)
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(score(model, codes[i], [text]), together[i])
    torch.testing.assert_close(score(model, codes, [None]), score(model.model, codes, ["", None]))


def test_the_likelihoods_of_all_tokens_sum_to_one(made):
    model, codes = made["text"]
    others = codes[0].repeat(CODEC.codebook_size, 1, 1)
    others[:, 3, -1] = torch.arange(CODEC.codebook_size)
    assert float(score(model, others, ["calm piano"])[:, 3, -1].exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_melody_enters_as_a_condition(made):
    model, _ = made["melody"]
    classes = melody.classes(tune(1), RATE, model.conditioner.melody_frames)[None]
    _, [codes] = model.generate_with_chroma(["calm piano"], tune(1), RATE, seed=3, return_tokens=True)
    condition = model.conditioner(model.conditioner.encode(["calm piano"]), classes)
    assert score(model, codes, condition).mean() > score(model, codes, ["calm piano"]).mean()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_predicts_the_change_of_the_score(made, layout):
    model, codes = made[layout]
    with torch.no_grad():
        condition = model.conditioner(model.conditioner.encode(TEXTS))
    name = "prefix" if layout == "melody" else "cross"
    vectors = getattr(condition, name).clone().requires_grad_()
    total = score(model, codes, replace(condition, **{name: vectors}), grad=True).mean()
    [slope] = torch.autograd.grad(total, vectors)
    step = 1e-2 * slope / slope.norm()
    after = score(model, codes, replace(condition, **{name: vectors.detach() + step})).mean()
    assert float(after - total.detach()) == pytest.approx(1e-2 * float(slope.norm()), rel=0.05)
    assert not score(model, codes, condition).requires_grad


def test_the_gradient_of_an_edits_direction_predicts_the_change_of_the_score(made):
    model, codes = made["text"]
    direction = torch.zeros(128, requires_grad=True)
    before = score(model, codes, TEXTS, edits=[Add(1, direction)], grad=True).mean()
    torch.testing.assert_close(before.detach(), score(model, codes, TEXTS).mean())
    [slope] = torch.autograd.grad(before, direction)
    step = 0.1 * slope / slope.norm()
    after = score(model, codes, TEXTS, edits=[Add(1, step)]).mean()
    assert float(after - before.detach()) == pytest.approx(0.1 * float(slope.norm()), rel=0.1)
    refusal(lambda: score(model, codes, TEXTS, edits=[Add(7, step)]), "layer", "0 to 2")


def test_rank_puts_the_likeliest_first_whatever_the_lengths(made):
    model, codes = made["text"]
    noise = torch.randint(CODEC.codebook_size, (4, 20), generator=torch.Generator().manual_seed(0))
    candidates = [noise, codes[0], codes[0].roll(7, dims=-1)]
    order = rank(model, candidates, ["calm piano"])
    means = [float(score(model, piece, ["calm piano"]).mean()) for piece in candidates]
    assert order[0] == 1 and [means[i] for i in order] == sorted(means, reverse=True)
    assert rank(model, [codes[0], codes[0]], ["calm piano"]) == [0, 1]


def test_rank_compares_from_start_only(made):
    model, codes = made["text"]
    spoilt = codes[0].clone()
    spoilt[:, :5] = (spoilt[:, :5] + 1) % CODEC.codebook_size
    means = [score(model, piece, [None])[:, 15:].mean() for piece in (spoilt, codes[0])]
    assert rank(model, [spoilt, codes[0]], [None], start=15)[0] == int(means[1] > means[0])


@pytest.mark.parametrize(
    "codes", [torch.zeros(3, 10), torch.zeros(4, 0), torch.zeros(4, 501), torch.zeros(4), None, "codes"]
)
def test_codes_of_another_shape_are_refused(text, codes):
    refusal(lambda: score(text, codes, [None]), "[4, T]", "1 to 500")


@pytest.mark.parametrize("value", [-1, CODEC.codebook_size, 0.5, math.nan])
def test_values_other_than_tokens_are_refused(text, value):
    refusal(lambda: score(text, torch.full((4, 5), value), [None]), "integers from 0 to 31")


def test_a_wrong_number_of_conditions_or_a_late_start_is_refused(text):
    codes = torch.zeros(2, 4, 5, dtype=torch.long)
    refusal(lambda: score(text, codes, ["calm", "sad", "fast"]), "3 conditions", "2 pieces")
    refusal(lambda: score(text, codes, "calm"), "conditions is one string")
    condition = text.conditioner(text.conditioner.encode(["calm"]))
    refusal(lambda: score(text, codes, condition), "batch size of 1", "one of 2")
    refusal(lambda: rank(text, list(codes), [None], start=5), "candidate 0 has 5 frames", "frame 5")

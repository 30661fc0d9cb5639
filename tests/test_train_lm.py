"""Training the language model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import CAPTIONS, LM_SHAPE, Music, lm_run

from mgkit import lm as lm_module
from mgkit.condition import Condition
from mgkit.delay import delay, delays
from mgkit.lm import LM
from mgkit.train import lm as lm_training
from mgkit.train.align import align
from mgkit.train.attributes import pretrain_text_encoder
from mgkit.train.lm import LMLearner


@pytest.fixture(scope="module")
def tokenizer():
    return lm_training.make_tokenizer(CAPTIONS, 150)


def test_loss_counts_codes_and_no_gaps():
    torch.manual_seed(0)
    lm = LM(LM_SHAPE)
    codes = torch.randint(0, 16, (2, 2, 7))
    nothing = Condition()
    steps = delay(codes, delays(2), LM_SHAPE.special)[..., :8]
    logits = lm(steps[..., :-1]).log_softmax(dim=-1)
    for k, found in enumerate(lm_training.losses(lm, codes, nothing)):
        # step s predicts step s + 1; codebook k holds its first code at step k + 1 and loses its last k ones
        said = [-logits[b, k, s, codes[b, k, s - k]] for b in range(2) for s in range(k, 7)]
        assert torch.allclose(found, torch.stack(said).mean(), atol=1e-5)


def test_loss_on_another_past_still_counts_the_true_codes():
    torch.manual_seed(0)
    lm, nothing = LM(LM_SHAPE), Condition()
    codes, past = torch.randint(0, 16, (2, 2, 2, 7))
    logits = lm(delay(past, delays(2), LM_SHAPE.special)[..., :7]).log_softmax(dim=-1)
    for k, found in enumerate(lm_training.losses(lm, codes, nothing, past)):
        said = [-logits[b, k, s, codes[b, k, s - k]] for b in range(2) for s in range(k, 7)]
        assert torch.allclose(found, torch.stack(said).mean(), atol=1e-5)


def test_the_past_is_led_astray_by_whole_frames_of_the_next_clip():
    codes = torch.arange(64)[:, None, None].expand(64, 4, 500)  # every clip's codes are its number
    told = np.arange(64) < 32
    past = lm_training.led_astray(codes, told, 0.5, np.random.default_rng(0))
    assert torch.equal(past, lm_training.led_astray(codes, told, 0.5, np.random.default_rng(0)))
    assert torch.equal(past, past[:, :1].expand_as(past))
    swapped = past[:, 0] != codes[:, 0]
    assert torch.equal(past[:, 0][swapped], codes.roll(1, 0)[:, 0][swapped])
    assert 20 < int(swapped.any(dim=1).sum()) < 44
    assert 0.1 < swapped[:32].float().mean() < 0.25  # a third of the half that is led astray
    assert 0.05 < swapped[32:].float().mean() < 0.2
    assert swapped[:32, 0].any() and not swapped[32:, : lm_training.OWN_FIRST].any()
    assert torch.equal(lm_training.led_astray(codes, told, 0.0, np.random.default_rng(0)), codes)


def test_attention_written_out_is_torchs_own():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 2, 5, 8)
    mask = torch.rand(2, 1, 5, 5) > 0.4
    mask |= torch.eye(5, dtype=torch.bool)
    for how in ((None, True), (None, False), (mask, False)):
        ours, torchs = (
            attend(queries, keys, values, *how) for attend in (lm_training.attend, lm_module.attend)
        )
        assert torch.allclose(ours, torchs, atol=1e-6)


def test_loss_does_not_see_what_it_predicts():
    torch.manual_seed(0)
    lm, seen = LM(LM_SHAPE), []
    codes = torch.randint(0, 16, (1, 2, 7))
    steps = delay(codes, delays(2), LM_SHAPE.special)[..., :8]
    for value in (1, 2):
        changed = steps.clone()
        changed[..., 5] = value
        seen.append(lm(changed[..., :-1]))
    assert torch.allclose(seen[0][:, :, :5], seen[1][:, :, :5], atol=1e-6)
    assert not torch.allclose(seen[0][:, :, 5:], seen[1][:, :, 5:], atol=1e-6)


def test_what_training_drops_is_what_generation_calls_null(tokenizer):
    model = lm_training.new_model(lm_run(), tokenizer, 4)
    texts, melody = ["calm piano", "fast violin, drums"], torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    conditioner = model["conditioner"].eval()
    with torch.no_grad():
        described = conditioner.describe(texts)
        for keep, hears, expected in (
            (True, True, conditioner(described, melody)),
            (False, False, conditioner.null(described)),
            (True, False, conditioner(described)),
        ):
            found = lm_training.told(conditioner, texts, melody * hears, torch.tensor([keep, keep]))
            assert torch.allclose(found.prefix, expected.prefix, atol=1e-6)
            assert torch.equal(found.prefix_mask, expected.prefix_mask)


def test_aligned_heads_look_at_the_melodys_present_and_say_nothing_of_it_yet(tokenizer):
    torch.manual_seed(0)
    shape = replace(LM_SHAPE, dim=128, layers=2)
    model = lm_training.new_model(lm_run(lm=shape), tokenizer, 40).eval()
    codes, melody = torch.randint(0, 16, (6, 2, 256)), torch.randint(0, 12, (6, 40))
    shares = align(model, codes, ["calm piano", "fast violin, drums", "cello"] * 2, melody)
    assert shares[0] > 0.8  # chance: 5 of 40 frames, and the music besides
    size = shape.dim // shape.heads
    for layer in model["lm"].layers:
        assert not layer.attention.out_proj.weight[:, -size:].any()
        assert layer.attention.out_proj.weight[:, :-size].any()


def test_language_model_learns_its_batch(tokenizer):
    learner = LMLearner(lm_run(drop_all=0.0, batch=4), Music(), Music(), tokenizer)
    first = learner.step(0, 0.0)["loss"]
    last = [learner.step(step, 1e-2)["loss"] for step in range(90)][-1]
    assert last < 0.6 * first
    assert learner.measure()["valid_none"] > 0


def test_every_clip_is_seen_once_before_any_is_seen_twice(tokenizer):
    views = lm_training.VIEWS
    count = 2 * sum(times for _, times, _ in views)
    learner = LMLearner(lm_run(batch=2), Music(count), Music(count), tokenizer)
    seen = np.concatenate([learner._rows(step, view[1]) for step, view in enumerate(views)])
    assert sorted(seen.tolist()) == list(range(count))


def test_tokenizer_knows_every_sign_and_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Calm PIANO", "ukulele & kazoo (#7)!", "café"):
        ids = again(text).input_ids
        assert ids == tokenizer(text.lower()).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids[-1] == tokenizer.eos_token_id


def test_text_encoder_learns_what_captions_say(tokenizer):
    torch.manual_seed(0)
    text = lm_training.new_model(lm_run(), tokenizer, 4)["conditioner"].text
    alike = {
        "style": "folk",
        "lead": "piano",
        "key": 0,
        "mode": "major",
        "meter": 4,
        "mood": "calm",
        "density": "sparse",
    }
    pieces = [alike | {"captions": ["slow piano"], "tempo": 64, "drums": False},
              alike | {"captions": ["fast piano, drums"], "tempo": 152, "drums": True}]  # fmt: skip
    history = pretrain_text_encoder(text, pieces, 100, batch=8, lr=3e-3)
    assert history[-1]["style"] == 0  # one style: nothing to guess
    assert history[-1]["tempo"] < 0.3 and history[-1]["drums"] < 0.3


def test_tokens_of_other_codebooks_are_refused_in_a_sentence():
    metadata = {"codebooks": 4, "codebook_size": 16}
    with pytest.raises(ValueError, match="toks has 4 codebooks of 16; the language model is for 2 of 16"):
        lm_training.must_fit(lm_run(tokens="toks"), SimpleNamespace(metadata=metadata))
    lm_training.must_fit(lm_run(), SimpleNamespace(metadata=metadata | {"codebooks": 2}))

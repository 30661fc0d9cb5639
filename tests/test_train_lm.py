"""Training the language model."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import CAPTIONS, LM_SHAPE, TEXT_SHAPE, Music, lm_run

from mgkit import lm as lm_module
from mgkit.band.compose import compose
from mgkit.band.labels import dataset_labels
from mgkit.delay import delay, delays
from mgkit.lm import LM, Condition
from mgkit.melody import one_hot
from mgkit.train import batches, loss
from mgkit.train.align import align
from mgkit.train.attributes import pretrain_text_encoder
from mgkit.train.batches import CROPS, Augmentation, Batches, Planner, foreign_frames
from mgkit.train.lm import LMLearner, validate_codebooks
from mgkit.train.loss import losses
from mgkit.train.model import new_model
from mgkit.train.muon import Muon
from mgkit.train.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CAPTIONS, 150)


def test_loss_counts_codes_and_no_special_tokens():
    torch.manual_seed(0)
    lm = LM(LM_SHAPE)
    codes = torch.randint(0, 16, (2, 2, 7))
    steps = delay(codes, delays(2), LM_SHAPE.special)[..., :8]
    logits = lm(steps[..., :-1]).log_softmax(dim=-1)
    for k, value in enumerate(losses(lm, codes, Condition())):
        # step s predicts step s + 1; codebook k holds its first code at step k + 1 and loses its last k ones
        expected = [-logits[b, k, s, codes[b, k, s - k]] for b in range(2) for s in range(k, 7)]
        assert torch.allclose(value, torch.stack(expected).mean(), atol=1e-5)


def test_loss_with_another_history_counts_the_true_codes():
    torch.manual_seed(0)
    lm = LM(LM_SHAPE)
    codes, history = torch.randint(0, 16, (2, 2, 2, 7))
    logits = lm(delay(history, delays(2), LM_SHAPE.special)[..., :7]).log_softmax(dim=-1)
    for k, value in enumerate(losses(lm, codes, Condition(), history)):
        expected = [-logits[b, k, s, codes[b, k, s - k]] for b in range(2) for s in range(k, 7)]
        assert torch.allclose(value, torch.stack(expected).mean(), atol=1e-5)


def test_history_is_corrupted_by_whole_frames_of_the_next_clip():
    informed = np.arange(64) < 32
    none = np.zeros(64, int)
    swapped = foreign_frames(500, informed, none, 0.5, np.random.default_rng(0))
    assert np.array_equal(swapped, foreign_frames(500, informed, none, 0.5, np.random.default_rng(0)))
    assert 20 < swapped.any(axis=1).sum() < 44
    # a third of the corrupted half
    assert 0.1 < swapped[:32].mean() < 0.25
    assert 0.05 < swapped[32:].mean() < 0.2
    assert swapped[:32, 0].any() and not swapped[32:, : batches.MIN_OWN].any()
    assert not foreign_frames(500, informed, none, 0.0, np.random.default_rng(0)).any()
    given = np.full(64, 250)
    assert not foreign_frames(500, informed, given, 1.0, np.random.default_rng(0))[:, :250].any()


def test_a_batch_holds_its_clips_and_its_history_those_of_the_next_row(tokenizer):
    # every clip's codes are its number
    music = Music(80, frames=500)
    music.codes[:] = np.arange(80)[:, None, None]
    options = Augmentation(corrupt_history=1.0, continuation=0.0, chords=0.0)
    learner = LMLearner(lm_run(augmentation=options, batch=64), music, music, tokenizer)
    batch, rows = learner.batches[0], torch.from_numpy(learner.batches.planner.rows(0))
    assert torch.equal(batch.codes, rows[:, None, None].expand_as(batch.codes))
    foreign = learner.batches.planner[0].foreign[:, None].expand_as(batch.codes)
    assert torch.equal(batch.history[~foreign], batch.codes[~foreign])
    assert torch.equal(batch.history[foreign], batch.codes.roll(1, 0)[foreign])
    kept = batch.melody.argmax(dim=-1).any(dim=1)
    assert torch.equal(batch.melody[kept], one_hot(torch.from_numpy(music.melody)[rows][kept]))
    assert torch.equal(batch.melody[~kept], one_hot(torch.zeros_like(rows[~kept])[:, None].expand(-1, 4)))


def test_beginnings_to_be_continued_are_true_and_uncounted_under_captions_without_key_and_tempo(tokenizer):
    music = Music(80, frames=500)
    music.codes[:] = np.arange(80)[:, None, None]
    special = 1000
    pieces = [compose(seed).attributes() for seed in range(80)]
    planner = Planner(pieces, tokenizer, 500, 80, Augmentation(corrupt_history=1.0), 0)
    data = Batches(music, planner, torch.device("cpu"), special)
    for step in (0, 3):
        plan, batch = planner[step], data[step]
        chosen = plan.given > 0
        assert 0.1 < chosen.float().mean() < 0.4
        assert plan.given[chosen].min() >= 100 and plan.given.max() <= 0.6 * plan.frames
        early = torch.arange(plan.frames) < plan.given[:, None]
        assert (batch.codes[:, 0] == special).equal(early)
        assert torch.equal(batch.history[:, 0][early], plan.rows[:, None].expand_as(early)[early])
        assert not plan.keep_melody[chosen].any() and plan.foreign[chosen].any()
        for text, row, first in zip(plan.captions, plan.rows.tolist(), chosen, strict=True):
            if first:
                assert not re.search(r"\d bpm|major|minor", text.lower()), text
                assert pieces[row]["mood"] not in text.split(", ")
    assert not (planner[1].given > 0).any()


def test_chords_replace_the_melody_of_some_clips(tokenizer):
    music, seconds = Music(80, frames=500), 10.0
    music.melody = np.zeros((80, 79), np.int8)
    pieces = [compose(seed, seconds=seconds) for seed in range(80)]
    rows = [piece.attributes() for piece in pieces]
    options = Augmentation(drop_all=0.0, drop_melody=0.0, continuation=0.0, chords=0.25)
    planner = Planner(rows, tokenizer, 500, 80, options, 0)
    data = Batches(music, planner, torch.device("cpu"), 16, dataset_labels(rows, seconds, 500, 79))
    for step in (0, 3):
        plan, batch = planner[step], data[step]
        assert 0.15 < plan.chords.sum() / plan.keep_melody.sum() < 0.35
        for row in plan.chords.nonzero().flatten().tolist():
            piece = pieces[plan.rows[row]]
            for frame in range(78 - 5 * plan.start):
                # 5 chroma frames last as long as 32 frames of codes
                time = (5 * plan.start + frame) * 4096 / 32000
                chord = [tones for start, tones in piece.chords if start <= time][-1]
                expected = torch.zeros(12).index_fill_(0, torch.tensor(chord), 1.0)
                assert torch.equal(batch.melody[row, frame], expected)
        others = batch.melody[~plan.chords]
        assert len(others) and others[..., 0].all() and not others[..., 1:].any()


def test_batches_from_worker_processes_are_the_same_from_any_step(tokenizer):
    learner = LMLearner(lm_run(), Music(), Music(), tokenizer)
    plain = learner.batches
    labels = plain.labels.numpy(), plain.chords.numpy()
    prefetched = Batches(Music(), plain.planner, torch.device("cpu"), plain.special, labels, workers=2)
    for step in (0, 1, 2, 7, 8, 3):
        one, other = plain[step], prefetched[step]
        for name in ("codes", "history", "ids", "mask", "melody", "keep_caption", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name)), (step, name)


def test_explicit_attention_equals_the_fused_kernel():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 2, 5, 8)
    mask = torch.rand(2, 1, 5, 5) > 0.4
    mask |= torch.eye(5, dtype=torch.bool)
    for options in ((None, True), (None, False), (mask, False)):
        explicit = loss.attend(queries, keys, values, *options)
        fused = lm_module.attend(queries, keys, values, *options)
        assert torch.allclose(explicit, fused, atol=1e-6)


def test_attention_without_cudnn_leaves_torchs_choice_of_kernels_as_it_was(monkeypatch):
    torch.manual_seed(0)
    given, seen = (*torch.randn(3, 2, 2, 5, 8), None, True), []
    flag = torch.backends.cuda.cudnn_sdp_enabled

    def fused(*given):
        seen.append(flag())
        return lm_module.attend(*given)

    monkeypatch.setattr(loss, "fused_attend", fused)
    lm = SimpleNamespace(device=torch.device("cuda"))
    before = flag()
    try:
        for enabled in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(enabled)
            assert torch.equal(loss.attend_for(lm)(*given), lm_module.attend(*given))
            with pytest.raises(RuntimeError, match="size"):
                loss.attend_for(lm)(given[0][..., :3], *given[1:])
            assert flag() == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert seen == [False] * 4


def test_logits_do_not_depend_on_their_targets():
    torch.manual_seed(0)
    lm, logits = LM(LM_SHAPE), []
    codes = torch.randint(0, 16, (1, 2, 7))
    steps = delay(codes, delays(2), LM_SHAPE.special)[..., :8]
    for value in (1, 2):
        changed = steps.clone()
        changed[..., 5] = value
        logits.append(lm(changed[..., :-1]))
    assert torch.allclose(logits[0][:, :, :5], logits[1][:, :, :5], atol=1e-6)
    assert not torch.allclose(logits[0][:, :, 5:], logits[1][:, :, 5:], atol=1e-6)


def test_dropped_conditions_equal_the_null_condition_of_generation(tokenizer):
    model = new_model(LM_SHAPE, TEXT_SHAPE, tokenizer, 4)
    texts, melody = ["calm piano", "fast violin, drums"], torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    conditioner = model.conditioner.eval()
    with torch.no_grad():
        encoded = conditioner.encode(texts)
        for keep_text, keep_melody, expected in (
            (True, True, conditioner(encoded, melody)),
            (False, False, conditioner.null(encoded)),
            (True, False, conditioner(encoded)),
        ):
            condition = model.condition(texts, melody * keep_melody, torch.tensor([keep_text, keep_text]))
            assert torch.allclose(condition.prefix, expected.prefix, atol=1e-6)
            assert torch.equal(condition.prefix_mask, expected.prefix_mask)


def test_text_alone_gives_the_condition_of_the_conditioner(tokenizer):
    model = new_model(replace(LM_SHAPE, cross_attention=True), TEXT_SHAPE, tokenizer, None).eval()
    texts = ["calm piano", "", "fast violin, drums"]
    with torch.no_grad():
        condition = model.condition(
            texts, torch.zeros(3, 0, dtype=torch.long), torch.ones(3, dtype=torch.bool)
        )
        expected = model.conditioner(model.conditioner.encode(texts))
    assert torch.allclose(condition.cross * condition.cross_mask[..., None], expected.cross, atol=1e-6)
    assert torch.equal(condition.cross_mask, expected.cross_mask)


def test_matrices_updated_together_are_updated_alike():
    shapes = [(8, 6), (6, 8), (8, 6)]
    each, together = ([torch.ones(shape, requires_grad=True) for shape in shapes] for _ in range(2))
    optimizers = [Muon(matrices, 0.1, 0.05, torch.float32) for matrices in (each, together)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, other in zip(each, together, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=generator)
        optimizers[0].step()
        [group] = optimizers[1].param_groups
        optimizers[1]._update_together(together, group)
    for one, other in zip(each, together, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert not torch.equal(one, torch.ones_like(one))


def test_aligned_heads_attend_to_the_current_melody_frame_without_any_output_yet(tokenizer):
    torch.manual_seed(0)
    shape = replace(LM_SHAPE, dim=128, layers=2)
    model = new_model(shape, TEXT_SHAPE, tokenizer, 40).eval()
    codes, melody = torch.randint(0, 16, (6, 2, 256)), torch.randint(0, 12, (6, 40))
    fractions = align(model, codes, ["calm piano", "fast violin, drums", "cello"] * 2, melody)
    # chance: 5 of 40 frames, besides the music
    assert fractions[0] > 0.8
    size = shape.dim // shape.heads
    for layer in model.lm.layers:
        assert not layer.attention.out_proj.weight[:, -size:].any()
        assert layer.attention.out_proj.weight[:, :-size].any()


def test_language_model_learns_its_batch(tokenizer):
    learner = LMLearner(lm_run(augmentation=Augmentation(drop_all=0.0), batch=4), Music(), Music(), tokenizer)
    first = learner.step(0, 0.0)["loss"]
    last = [learner.step(step, 1e-2)["loss"] for step in range(90)][-1]
    assert last < 0.6 * first
    assert learner.measure()["valid_none"] > 0


def test_every_clip_is_seen_once_before_any_is_seen_twice(tokenizer):
    count = 2 * sum(crop.factor for crop in CROPS)
    learner = LMLearner(lm_run(batch=2), Music(count), Music(count), tokenizer)
    seen = np.concatenate([learner.batches.planner.rows(step) for step in range(len(CROPS))])
    assert sorted(seen.tolist()) == list(range(count))


def test_tokenizer_knows_every_ascii_character_and_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Calm PIANO", "ukulele & kazoo (#7)!", "café"):
        ids = again(text).input_ids
        assert ids == tokenizer(text.lower()).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids[-1] == tokenizer.eos_token_id


def test_text_encoder_learns_the_attributes_of_captions(tokenizer):
    torch.manual_seed(0)
    text = new_model(LM_SHAPE, TEXT_SHAPE, tokenizer, 4).conditioner.text
    shared = {
        "style": "folk",
        "lead": "piano",
        "key": 0,
        "mode": "major",
        "meter": 4,
        "mood": "calm",
        "density": "sparse",
    }
    pieces = [
        shared | {"captions": ["slow piano"], "tempo": 64, "drums": False},
        shared | {"captions": ["fast piano, drums"], "tempo": 152, "drums": True},
    ]
    history = pretrain_text_encoder(text, pieces, 100, batch=8, lr=3e-3)
    # there is one style alone
    assert history[-1]["style"] == 0
    assert history[-1]["tempo"] < 0.3 and history[-1]["drums"] < 0.3


def test_tokens_of_other_codebooks_are_refused():
    metadata = {"codebooks": 4, "codebook_size": 16}
    with pytest.raises(
        ValueError, match="toks has 4 codebooks of 16, but the language model predicts 2 of 16"
    ):
        validate_codebooks(lm_run(tokens="toks"), SimpleNamespace(metadata=metadata))
    validate_codebooks(lm_run(), SimpleNamespace(metadata=metadata | {"codebooks": 2}))

"""Training: codewords, codec, language model, and runs that can be stopped and trusted."""

import copy
import doctest
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgkit import lm as lm_module
from mgkit.band.compose import Piece, Track, compose
from mgkit.codec import CodecConfig, Quantizer
from mgkit.condition import Condition
from mgkit.delay import delay, delays
from mgkit.lm import LM, LMConfig
from mgkit.train import codec as codec_training
from mgkit.train import lm as lm_training
from mgkit.train import loop, reinforce, tokens
from mgkit.train.align import align
from mgkit.train.auxiliary import CHOICES, EVENTS, Reader, score, scores
from mgkit.train.codec import Books, CodecLearner, CodecRun, mel_distances, si_sdr
from mgkit.train.discriminator import Adversary, Balance
from mgkit.train.lm import LMLearner, LMRun, TextConfig
from mgkit.train.muon import Muon, rotation
from mgkit.train.reinforce import AHEAD, ATTRIBUTES, LAG, Critic, Rehearsal, Rehearser, ask, gains, pace
from mgkit.train.text import learn_attributes

RATE = 32000
CODEC = CodecConfig(filters=4, dim=8, codebooks=2, codebook_size=16)
CAPTIONS = [["calm piano", "slow piano"], ["fast violin, drums", "violin"], ["sad cello", "cello"]]


def sound(seed: int, seconds: float = 1.5) -> np.ndarray:
    """int16 [N]: a few decaying tones."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * f * t) * np.exp(-3 * (t % 0.5)) for f in rng.uniform(150, 900, 3))
    return (wave * 6000).astype(np.int16)


def clips() -> SimpleNamespace:
    mix = np.stack([sound(seed) for seed in range(3)])
    return SimpleNamespace(mix=mix, melody=mix)


def codec_run(**changed) -> CodecRun:
    run = CodecRun("", "", None, CODEC, steps=6, minutes=None, batch=2, frames=25, books_from=2, bf16=False)
    return replace(run, **changed)


class Music:
    """A stand-in for `Tokens`: codes [clips, 2, frames] and pitch classes [clips, 4]."""

    def __init__(self, clips: int = 5, frames: int = 40):
        rng = np.random.default_rng(0)
        self.codes, self.melody = rng.integers(0, 16, (clips, 2, frames)), rng.integers(0, 12, (clips, 4))
        self.captions = [CAPTIONS[i % 3] for i in range(clips)]
        self.seconds = frames / 50
        self.pieces = [compose(seed, seconds=self.seconds).attributes() for seed in range(clips)]

    def __len__(self) -> int:
        return len(self.codes)

    def caption(self, row: int, rng: np.random.Generator) -> str:
        return str(rng.choice(self.captions[row]))

    music = tokens.Tokens.music


LM_SHAPE = LMConfig(32, 2, 2, 64, 2, 16, cross_attention=False)


def lm_run(**changed) -> LMRun:
    text = TextConfig(dim=24, layers=1, heads=2, head_dim=12, feed_forward=32, pieces=150)
    return replace(
        LMRun("", "", "", "", LM_SHAPE, text, text_steps=0, steps=6, minutes=None, batch=2, bf16=False),
        **changed,
    )


@pytest.fixture(scope="module")
def tokenizer():
    return lm_training.make_tokenizer(CAPTIONS, 150)


# -- codewords -----------------------------------------------------------------------------------------------------


def test_codewords_learn_and_the_unused_move():
    torch.manual_seed(0)
    centres = torch.randn(12, 8) * 3
    rng = np.random.default_rng(0)

    def batch() -> torch.Tensor:
        return (centres[torch.randint(12, (200,))] + 0.1 * torch.randn(200, 8)).view(4, 50, 8).transpose(1, 2)

    quantizer = Quantizer(CODEC)
    with torch.no_grad():
        quantizer.codebooks[0].fill_(50.0)  # out of reach: all but one of them are dead
    books = Books(quantizer)
    before = float(books(batch(), 2, None)[1])
    for _ in range(500):
        books(batch(), 2, rng)
    latents = batch()
    words, commit = books(latents, 2, None)
    assert float(commit) < 0.1 * before
    assert F.mse_loss(words, latents) < 0.05 * latents.var()
    assert books.perplexity()[0] > 8
    assert torch.equal(
        words.detach().round(decimals=4), quantizer.decode(quantizer.encode(latents, 2)).round(decimals=4)
    )


def test_k_means_starts_near_the_latents():
    latents = torch.randn(400, 8) * 0.05 + 2
    quantizer = Quantizer(CODEC)
    books = Books(quantizer)
    books.start(latents, np.random.default_rng(0))
    left = latents.t()[None] - books(latents.t()[None], 2, None)[0]
    assert left.pow(2).mean() < 0.6 * latents.var()


def test_gradients_pass_the_codewords_straight():
    books = Books(Quantizer(CODEC))
    latents = torch.randn(1, 8, 5, requires_grad=True)
    books(latents, 2, None)[0].sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_codec_overfits_a_second_of_sound():
    data = clips()
    learner = CodecLearner(codec_run(batch=4, books_from=20), data, data)
    start = learner.measure()["valid_mel_db"]
    rows = [learner.step(step, 3e-3 * min(1, step / 10)) for step in range(90)]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert learner.measure()["valid_mel_db"] < 0.8 * start


def test_a_decoder_that_learns_alone_leaves_all_tokens_as_they_are(tmp_path):
    data, first = clips(), CodecLearner(codec_run(), clips(), clips())
    first.save(tmp_path)
    again = CodecLearner(codec_run(start=str(tmp_path), decoder_only=True, adversary_from=1), data, data)
    wave = loop.waves(data.mix)[:, None]
    with torch.no_grad():
        before = first.codec.encode(wave)
        heard_before = again.codec.decode(before)
    rows = [again.step(step, 1e-3) for step in range(3)]
    with torch.no_grad():
        assert torch.equal(again.codec.encode(wave), before)
        assert not torch.allclose(again.codec.decode(before), heard_before, atol=1e-4)
    assert "adversary" not in rows[0]
    assert {"adversary", "deceived", "unlike"} <= set(rows[2])


def test_adversary_learns_to_tell_and_is_least_deceived_by_the_worst():
    torch.manual_seed(0)
    real = loop.waves(np.stack([sound(seed) for seed in range(4)]))[:, None]
    decoded = real + 0.05 * torch.randn_like(real)
    adversary = Adversary(width=4)
    optimizer = torch.optim.Adam(adversary.parameters(), 2e-3)
    first = float(adversary.learn(real, decoded).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = adversary.learn(real, decoded)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    with torch.no_grad():
        worst, same = adversary.deceived(real, decoded), adversary.deceived(real, real)
    assert worst[0] > same[0]
    assert worst[1] > same[1] == 0


def test_balanced_gradients_have_the_sizes_that_they_are_given():
    heard = torch.randn(1, 1, 50, requires_grad=True)
    balance = Balance({"big": 2.0, "small": 1.0})
    gradient = balance.gradient({"big": 1000 * heard.sum(), "small": 1e-3 * heard.pow(2).sum()}, heard)
    expected = 2 * torch.ones_like(heard) / 50**0.5 + heard.detach() / heard.detach().norm()
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_distances_are_zero_for_equal_and_known_for_scaled_sounds():
    wave = torch.from_numpy(sound(0).astype(np.float32) / 32768)
    assert mel_distances(wave, wave, RATE)[0] == 0
    loud = mel_distances(wave, wave * 2, RATE)[0]
    assert 1.0 < float(loud) <= 6.03  # 6.02 dB but in the bands that are silent
    assert float(si_sdr(wave, 0.5 * wave)) > 60
    noise = torch.randn_like(wave) * wave.std()
    assert abs(float(si_sdr(wave, wave + noise))) < 0.5


# -- the language model --------------------------------------------------------------------------------------------


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


def test_muon_is_torchs_own_in_bfloat16():
    torch.manual_seed(0)
    mine, torchs = (
        [nn.Parameter(torch.ones(shape)) for shape in ((32, 48), (48, 32), (16, 16))] for _ in "ab"
    )
    optimizers = Muon(mine, 1e-2, 0.05, torch.bfloat16), torch.optim.Muon(torchs, 1e-2, 0.05, adjust_lr_fn="match_rms_adamw")  # fmt: skip
    for _ in range(3):
        for a, b in zip(mine, torchs, strict=True):
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, torchs, strict=True))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_muon_moves_a_matrix_alike_in_all_its_directions(shape):
    torch.manual_seed(0)
    rank = min(shape)
    steep = torch.linalg.qr(torch.randn(shape[0], rank))[0] * torch.linspace(0.05, 1, rank)
    gradient = steep @ torch.linalg.qr(torch.randn(shape[1], rank))[0].T
    assert float(torch.linalg.cond(gradient)) > 19
    sizes = torch.linalg.svdvals(rotation(gradient, torch.float32))
    assert float(sizes.min()) > 0.6 and float(sizes.max()) < 1.3
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = gradient
    Muon([matrix], 0.1, 0.0, torch.float32).step()
    step = float(matrix.detach().square().mean().sqrt())
    assert step == pytest.approx(0.1 * 0.2, rel=0.2)


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


def test_language_model_learns_its_batch(tokenizer):
    learner = LMLearner(lm_run(drop_all=0.0, batch=4), Music(), Music(), tokenizer)
    first = learner.step(0, 0.0)["loss"]
    last = [learner.step(step, 1e-2)["loss"] for step in range(90)][-1]
    assert last < 0.6 * first
    assert learner.measure()["valid_none"] > 0


def test_halves_side_by_side_give_the_gradients_of_the_whole():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3), torch.randn(6, 4)
    model(x).pow(2).mean(dim=0).mean().backward()
    expected = model.weight.grad.clone()
    found = loop.side_by_side(
        lambda part: model(x[part]).pow(2).mean(dim=0),
        loop.Team().parts(6),
        list(model.parameters()),
        loop.Team(),
    )
    assert torch.allclose(model.weight.grad, expected, atol=1e-6)
    assert torch.allclose(found, model(x).pow(2).mean(dim=0), atol=1e-6)


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
    history = learn_attributes(text, pieces, 100, batch=8, lr=3e-3)
    assert history[-1]["style"] == 0  # one style: nothing to guess
    assert history[-1]["tempo"] < 0.3 and history[-1]["drums"] < 0.3


# -- runs ----------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for a power cut."""


def weights_of(out, name: str) -> dict:
    return torch.load(out / name, weights_only=True)["weights"]


@pytest.mark.parametrize("kind", ["codec", "lm"])
def test_resumed_run_equals_an_unbroken_one(kind, tmp_path, tokenizer):
    settings = codec_run() if kind == "codec" else lm_run()

    def learner():
        return (
            CodecLearner(settings, clips(), clips())
            if kind == "codec"
            else LMLearner(settings, Music(), Music(), tokenizer)
        )

    whole = learner()
    loop.train(settings, tmp_path / "whole", whole, lr=1e-3, measure_every=2)
    broken = learner()
    step = broken.step

    def cut(number: int, lr: float) -> dict:
        if number == 5:
            raise Stopped
        return step(number, lr)

    broken.step = cut
    with pytest.raises(Stopped):
        loop.train(settings, tmp_path / "broken", broken, lr=1e-3, measure_every=2)
    loop.train(settings, tmp_path / "broken", learner(), lr=1e-3, measure_every=2)
    one, other = (weights_of(tmp_path / name, f"{kind}.pt") for name in ("whole", "broken"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert (tmp_path / "broken" / "log.csv").read_text().count("\n") == (
        tmp_path / "whole" / "log.csv"
    ).read_text().count("\n")


def test_broken_save_leaves_the_former_checkpoint(tmp_path):
    settings = codec_run(steps=2)
    loop.train(settings, tmp_path, CodecLearner(settings, clips(), clips()), lr=1e-3, measure_every=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(path) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        loop.write_whole(tmp_path / "checkpoint.pt", full_disk)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_another_run_is_not_continued(tmp_path):
    loop.claim(tmp_path / "run", codec_run())
    loop.claim(tmp_path / "run", codec_run())
    with pytest.raises(ValueError, match="holds another run: batch 2 .now 4.; start in another folder"):
        loop.claim(tmp_path / "run", codec_run(batch=4))


def test_unusable_folders_are_named_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset.json"):
        loop.Clips(tmp_path, RATE)
    (tmp_path / "dataset.json").write_text(json.dumps({"rate": 32000, "clips": 1, "samples": 8}))
    (tmp_path / "pieces.jsonl").write_text(json.dumps({"captions": ["a"]}) + "\n")
    for name in ("mix.i16", "melody.i16"):
        (tmp_path / name).write_bytes(bytes(16))
    assert loop.Clips(tmp_path, RATE).mix.shape == (1, 8)
    with pytest.raises(ValueError, match="32000 Hz, and the codec is for 16000"):
        loop.Clips(tmp_path, 16000)
    os.truncate(tmp_path / "melody.i16", 10)
    with pytest.raises(ValueError, match="10 bytes where 16 are promised"):
        loop.Clips(tmp_path, RATE)
    with pytest.raises(FileNotFoundError, match="train tokens"):
        tokens.Tokens(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="train codec"):
        codec_training.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="train lm"):
        lm_training.load(tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    settings = codec_run(steps=2)
    learner = CodecLearner(settings, clips(), clips())
    learner.step = lambda step, lr: {"loss": float("nan")}
    with pytest.raises(FloatingPointError, match="step 1"):
        loop.train(settings, tmp_path, learner, lr=1e-3, measure_every=1)


def test_tokens_are_what_the_codec_says(tmp_path):
    mix = np.stack([sound(seed, 1.0) for seed in range(3)])
    data = SimpleNamespace(mix=mix, melody=mix, samples=mix.shape[1])
    codec = CodecLearner(codec_run(), clips(), clips()).codec.eval()
    tokens.write(codec, data, tmp_path, 3)
    (tmp_path / "pieces.jsonl").write_text("".join(json.dumps({"captions": c}) + "\n" for c in CAPTIONS))
    codes, heard = tokens.Tokens(tmp_path, tmp_path).music(np.array([2, 0]), 50)
    with torch.no_grad():
        assert torch.equal(codes, codec.encode(loop.waves(mix[[2, 0]])[:, None]))
    assert heard.shape == (2, 8)
    other = CodecLearner(codec_run(seed=1), clips(), clips()).codec
    with pytest.raises(ValueError, match="tokens of another codec"):
        tokens.write(other, data, tmp_path, 3)


@pytest.mark.parametrize("module", [loop])
def test_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


# -- rehearsing --------------------------------------------------------------------------------------------------------


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


def test_tokens_of_other_codebooks_are_refused_in_a_sentence():
    plan = {"codebooks": 4, "codebook_size": 16}
    with pytest.raises(ValueError, match="toks has 4 codebooks of 16; the language model is for 2 of 16"):
        lm_training.must_fit(lm_run(tokens="toks"), SimpleNamespace(plan=plan))
    lm_training.must_fit(lm_run(), SimpleNamespace(plan=plan | {"codebooks": 2}))


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
    codes, _ = data.music(np.arange(len(data)), 120)
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

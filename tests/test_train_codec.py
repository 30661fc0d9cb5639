"""Training the codec: codewords, adversary, distances."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import CAPTIONS, CODEC, RATE, clips, codec_run, sound

from mgkit.codec import Quantizer
from mgkit.train import tokens
from mgkit.train.clips import to_float
from mgkit.train.codec import Books, CodecLearner, mel_distances, si_sdr
from mgkit.train.discriminator import Adversary, Balance


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
    wave = to_float(data.mix)[:, None]
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
    real = to_float(np.stack([sound(seed) for seed in range(4)]))[:, None]
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


def test_tokens_are_what_the_codec_says(tmp_path):
    mix = np.stack([sound(seed, 1.0) for seed in range(3)])
    data = SimpleNamespace(mix=mix, melody=mix, samples=mix.shape[1])
    codec = CodecLearner(codec_run(), clips(), clips()).codec.eval()
    tokens.write(codec, data, tmp_path, 3)
    (tmp_path / "pieces.jsonl").write_text("".join(json.dumps({"captions": c}) + "\n" for c in CAPTIONS))
    codes, heard = tokens.Tokens(tmp_path, tmp_path).batch(np.array([2, 0]), 50)
    with torch.no_grad():
        assert torch.equal(codes, codec.encode(to_float(mix[[2, 0]])[:, None]))
    assert heard.shape == (2, 8)
    other = CodecLearner(codec_run(seed=1), clips(), clips()).codec
    with pytest.raises(ValueError, match="tokens of another codec"):
        tokens.write(other, data, tmp_path, 3)

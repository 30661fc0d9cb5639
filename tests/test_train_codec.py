"""Training the codec: codebooks, discriminator, distances, crops, the channels-last layout, snapshots."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import CAPTIONS, CODEC, RATE, clips, codec_run, sound

from mgkit.band import stems
from mgkit.band.compose import compose
from mgkit.codec import Codec, Quantizer
from mgkit.train import codec as codec_training
from mgkit.train import history, loop, sounds, tokens
from mgkit.train.channels_last import ChannelsLast
from mgkit.train.clips import Clips, to_float
from mgkit.train.codebooks import Codebooks
from mgkit.train.codec import CodecLearner, mel_distances, si_sdr
from mgkit.train.discriminator import Discriminator, LossBalancer
from mgkit.train.distances import noise_between_partials, noise_level, onset_correlation, spectral_losses


def codebooks(quantizer: Quantizer | None = None) -> Codebooks:
    return Codebooks(quantizer or Quantizer(CODEC), torch.Generator().manual_seed(0))


def test_codebooks_follow_the_latents_and_unused_entries_restart():
    torch.manual_seed(0)
    centres = torch.randn(12, 8) * 3

    def batch() -> torch.Tensor:
        return (centres[torch.randint(12, (200,))] + 0.1 * torch.randn(200, 8)).view(4, 50, 8).transpose(1, 2)

    quantizer = Quantizer(CODEC)
    with torch.no_grad():
        quantizer.codebooks[0].fill_(50.0)  # out of reach: all but one of them are dead
    books = codebooks(quantizer)
    before = float(books(batch(), 2, update=False)[1])
    for _ in range(500):
        books(batch(), 2)
    latents = batch()
    quantized, commit = books(latents, 2, update=False)
    assert float(commit) < 0.1 * before
    assert F.mse_loss(quantized, latents) < 0.05 * latents.var()
    assert books.perplexity()[0] > 8
    assert torch.allclose(quantized, quantizer.decode(quantizer.encode(latents, 2)), atol=1e-4)


def test_k_means_starts_near_the_latents():
    torch.manual_seed(0)
    latents = torch.randn(400, 8) * 0.05 + 2
    books = codebooks()
    books.start(latents)
    left = latents.t()[None] - books(latents.t()[None], 2, update=False)[0]
    assert left.pow(2).mean() < 0.6 * latents.var()


def test_gradients_pass_the_quantizer_straight_through():
    latents = torch.randn(1, 8, 5, requires_grad=True)
    codebooks()(latents, 2, update=False)[0].sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
@pytest.mark.parametrize("samples", [640 * 25, 640 * 24 + 100])
def test_channels_last_computes_the_codec(pad_mode, samples):
    torch.manual_seed(0)
    codec = Codec(replace(CODEC, pad_mode=pad_mode))
    codec_training.initialize(codec)
    wave, fast = 0.1 * torch.randn(2, 1, samples), ChannelsLast(codec)
    latents = codec.encoder(wave)
    torch.testing.assert_close(fast.encode(wave), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fast.decode(latents), codec.decoder(latents), atol=1e-5, rtol=1e-4)


def test_codec_overfits_a_second_of_sound():
    data = clips()
    learner = CodecLearner(
        codec_run(steps=None, minutes=1.0, batch=4, books_from=20, average=0.9), data, data
    )
    start = learner.measure()["valid_mel_db"]
    rows = [learner.step(step, 3e-3 * min(1, step / 10)) for step in range(90)]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert learner.measure()["valid_mel_db"] < 0.8 * start


def test_training_the_decoder_alone_keeps_all_tokens(tmp_path):
    data, first = clips(), CodecLearner(codec_run(), clips(), clips())
    first.save(tmp_path)
    again = CodecLearner(codec_run(start=str(tmp_path), decoder_only=True, adversary_from=1), data, data)
    wave = to_float(data.mix)[:, None]
    with torch.no_grad():
        before = first.codec.encode(wave)
        decoded_before = again.codec.decode(before)
    rows = [again.step(step, 1e-3) for step in range(3)]
    with torch.no_grad():
        assert torch.equal(again.codec.encode(wave), before)
        assert not torch.allclose(again.codec.decode(before), decoded_before, atol=1e-4)
    assert "discriminator" not in rows[0]
    assert {"discriminator", "adversarial", "features"} <= set(rows[2])


def test_decoder_alone_is_not_rewarded_for_a_small_error(tmp_path):
    CodecLearner(codec_run(), clips(), clips()).save(tmp_path)
    wave = to_float(clips().mix)[:, None]

    def gradient(**settings) -> torch.Tensor:
        learner = CodecLearner(codec_run(start=str(tmp_path), **settings), clips(), clips())
        found = learner._distances(wave, 0.5 * wave, np.random.default_rng(0))
        return found[1]["distance"]

    assert torch.equal(gradient(decoder_only=True, noise=0.0), gradient(decoder_only=True, noise=5.0))
    assert not torch.equal(gradient(noise=0.0), gradient(noise=5.0))


def test_recordings_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "recordings" in CodecLearner(codec_run(recordings=True), clips(), clips()).sounds.sources
    assert "recordings" not in CodecLearner(codec_run(), clips(), clips()).sounds.sources


def test_encoder_and_discriminator_train_together():
    learner = CodecLearner(codec_run(adversary_from=0, books_from=0), clips(), clips())
    before = learner.codec.encoder[0].weight.clone()
    for step in range(1, 3):
        learner.step(step, 1e-3)
    assert not torch.equal(learner.codec.encoder[0].weight, before)


def test_discriminator_learns_to_tell_decoded_from_real():
    torch.manual_seed(0)
    real = to_float(np.stack([sound(seed) for seed in range(4)]))[:, None]
    decoded = real + 0.05 * torch.randn_like(real)
    discriminator = Discriminator(width=4)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    first = float(discriminator.loss(real, decoded).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = discriminator.loss(real, decoded)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    with torch.no_grad():
        worse, same = (discriminator.generator_losses(real, wave) for wave in (decoded, real))
    assert worse[0] > same[0]
    assert worse[1] > same[1] == 0


def test_balanced_gradients_have_the_norms_they_are_given():
    decoded = torch.randn(1, 1, 50, requires_grad=True)
    balancer = LossBalancer({"big": 2.0, "small": 1.0})
    losses = {"big": 1000 * decoded.sum(), "small": 1e-3 * decoded.pow(2).sum()}
    gradient = balancer({name: torch.autograd.grad(loss, decoded)[0] for name, loss in losses.items()})
    expected = 2 * torch.ones_like(decoded) / 50**0.5 + decoded.detach() / decoded.detach().norm()
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_snapshot_resumes_a_run_at_its_step(tmp_path):
    settings = codec_run(steps=4)
    loop.train(settings, tmp_path / "a", CodecLearner(settings, clips(), clips()), lr=1e-3, measure_every=2)
    codec_training.snapshot(tmp_path / "a", tmp_path / "snapshot.pt")
    sizes = [path.stat().st_size for path in (tmp_path / "snapshot.pt", tmp_path / "a" / "checkpoint.pt")]
    assert sizes[0] < 0.3 * sizes[1]
    longer = codec_run(steps=6)
    (tmp_path / "b").mkdir()
    (tmp_path / "snapshot.pt").rename(tmp_path / "b" / "checkpoint.pt")
    learner = CodecLearner(longer, clips(), clips())
    loop.train(longer, tmp_path / "b", learner, lr=1e-3, measure_every=2)
    rows = history.read(tmp_path / "b" / "log.csv")
    assert [row["step"] for row in rows if "valid_mel_db" in row][-1] == 6
    first = codec_training.load(tmp_path / "a").encoder[0].weight
    assert torch.allclose(codec_training.load(tmp_path / "b").encoder[0].weight, first, atol=0.05)


# -- crops -------------------------------------------------------------------------------------------------


def test_crops_are_the_same_for_the_same_generator_and_hold_every_source():
    mix = np.stack([sound(seed, 3.0) for seed in range(3)])
    data = SimpleNamespace(mix=mix, melody=mix // 2)
    source = sounds.Sounds(data, "", [sound(9, 3.0)[None]], torch.device("cpu"))
    first, again = (source.crops(np.random.default_rng(4), 40, 16000) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (40, 1, 16000)
    assert set(source.sources) == {"mix", "melody", "recordings"}
    assert first.abs().amax() <= 1
    quiet = first[:, 0].abs() < 1e-6
    assert (quiet[:, :1000].all(dim=1) | quiet[:, -1000:].all(dim=1)).any()  # silence for one half


def test_stems_are_parts_of_their_piece_and_onsets_are_note_starts():
    import random

    piece = compose(3)
    kinds = [stems.solo(piece, random.Random(seed)) for seed in range(40)]
    notes = {track.notes for track in piece.tracks}
    assert all({track.notes for track in part.tracks} <= notes for part, _ in kinds)
    assert {len(part.tracks) for part, _ in kinds} == {1, 2}
    assert any(dry for _, dry in kinds)
    starts = {round(note[0] * RATE) for track in piece.tracks for note in track.notes}
    assert set(stems.onsets(piece, 10 * RATE, RATE, random.Random(0))) <= starts


def test_write_stems_is_whole_and_used(tmp_path, soundfont):
    from mgkit.band.dataset import write_dataset

    write_dataset(tmp_path, 2, seconds=2.0, workers=1, stems=True)
    data = Clips(tmp_path, RATE)
    source = sounds.Sounds(data, tmp_path, [], torch.device("cpu"))
    assert source.sources["mix"].onsets.shape == (2, stems.ONSETS)
    assert len(source.sources["stems"].flat) == data.mix.size
    assert source.crops(np.random.default_rng(0), 8, 16000).abs().amax(dim=(1, 2)).gt(0).any()
    written = (tmp_path / "stems.i16").stat().st_mtime_ns
    write_dataset(tmp_path, 2, seconds=2.0, workers=1, stems=True)
    assert (tmp_path / "stems.i16").stat().st_mtime_ns == written


# -- distances ---------------------------------------------------------------------------------------------


def test_distances_are_zero_for_equal_and_known_for_scaled_sounds():
    wave = torch.from_numpy(sound(0).astype(np.float32) / 32768)
    assert mel_distances(wave, wave, RATE)[0] == 0
    loud = mel_distances(wave, wave * 2, RATE)[0]
    assert 1.0 < float(loud) <= 6.03  # 6.02 dB but in the bands that are silent
    assert float(si_sdr(wave, 0.5 * wave)) > 60
    noise = torch.randn_like(wave) * wave.std()
    assert abs(float(si_sdr(wave, wave + noise))) < 0.5


def test_noise_level_is_the_negative_signal_to_noise_ratio():
    wave = torch.from_numpy(sound(0).astype(np.float32) / 32768)
    assert abs(float(noise_level(wave, 0.9 * wave)) + 20) < 0.1
    silence = torch.zeros(16000)
    assert float(noise_level(silence, silence)) == 0
    assert float(noise_level(silence, silence + 1e-2)) > 20  # hiss in silence


def test_fine_distance_hears_noise_between_partials_better_than_mel_bands():
    torch.manual_seed(0)
    time = torch.arange(32000) / RATE
    partials = sum(0.1 * torch.sin(2 * torch.pi * 220 * k * time) for k in range(1, 20))
    foggy = partials + 0.003 * torch.randn(32000)
    found = spectral_losses(partials, foggy, RATE, 4096)
    assert found["fine"] > 1.3 * found["mel_db"]
    assert "fine" not in spectral_losses(partials, foggy, RATE, 512)


def test_steady_distance_hears_lines_in_noise_that_single_frames_hide():
    torch.manual_seed(0)
    time = torch.arange(32000) / RATE
    lines = sum(0.01 * torch.sin(2 * torch.pi * 400 * k * time) for k in range(1, 40))
    noise, other = 0.1 * torch.randn(2, 32000)
    clean, combed = (spectral_losses(noise, wave, RATE, 4096) for wave in (other, other + lines))
    assert combed["steady"] > 1.2 * clean["steady"]
    assert combed["fine"] < 1.05 * clean["fine"]
    assert "steady" not in spectral_losses(noise, other, RATE, 512)


def test_noise_between_partials_is_measured_in_the_gaps_alone():
    torch.manual_seed(0)
    time = torch.arange(32000) / RATE
    partials = sum(0.1 * torch.sin(2 * torch.pi * 440 * k * time) for k in range(1, 12))[None]
    noise = torch.randn(1, 32000)
    clean = partials + 0.01 * noise
    assert abs(noise_between_partials(clean, clean, RATE)) < 1e-6
    assert 15 < noise_between_partials(clean, partials + 0.1 * noise, RATE) < 22
    assert abs(noise_between_partials(clean, 1.2 * partials + 0.01 * noise, RATE)) < 1
    assert noise_between_partials(0 * clean, clean, RATE) == 0


def test_onset_distance_counts_rises_that_are_missing():
    wave = torch.from_numpy(sound(0, 2.0).astype(np.float32) / 32768)
    late = torch.cat([torch.zeros(800), wave[:-800]])
    assert float(spectral_losses(wave, wave, RATE, 512)["onset"]) == 0
    assert float(spectral_losses(wave, late, RATE, 512)["onset"]) > 0.05
    assert onset_correlation(wave[None], wave[None], RATE) > 0.999
    assert onset_correlation(wave[None], late[None], RATE) < 0.9


def test_tokens_are_what_the_codec_says(tmp_path):
    mix = np.stack([sound(seed, 1.0) for seed in range(3)])
    data = SimpleNamespace(mix=mix, melody=mix, samples=mix.shape[1])
    codec = CodecLearner(codec_run(), clips(), clips()).codec.eval()
    tokens.write(codec, data, tmp_path, 3)
    (tmp_path / "pieces.jsonl").write_text(
        "".join(json.dumps({"captions": c}) + "\n" for c in CAPTIONS), encoding="utf-8"
    )
    codes, heard = tokens.Tokens(tmp_path, tmp_path).batch(np.array([2, 0]), 50)
    with torch.no_grad():
        assert torch.equal(codes, codec.encode(to_float(mix[[2, 0]])[:, None]))
    assert heard.shape == (2, 8)
    other = CodecLearner(codec_run(seed=1), clips(), clips()).codec
    with pytest.raises(ValueError, match="tokens of another codec"):
        tokens.write(other, data, tmp_path, 3)

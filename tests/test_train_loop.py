"""Training runs can be stopped and trusted; the optimizer."""

import doctest
import json
import os

import pytest
import torch
from tiny_runs import CAPTIONS, RATE, Music, clips, codec_run, lm_run
from torch import nn

from mgkit import audio
from mgkit.train import codec as codec_training
from mgkit.train import loop, parallel, tokens
from mgkit.train.clips import Clips
from mgkit.train.codec import CodecLearner
from mgkit.train.lm import LMLearner
from mgkit.train.model import load
from mgkit.train.muon import Muon, orthogonalize
from mgkit.train.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CAPTIONS, 150)


def test_halves_side_by_side_give_the_gradients_of_the_whole():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3), torch.randn(6, 4)
    model(x).pow(2).mean(dim=0).mean().backward()
    expected = model.weight.grad.clone()
    value = parallel.backward(
        lambda part: model(x[part]).pow(2).mean(dim=0),
        parallel.Processes().shards(6),
        list(model.parameters()),
        parallel.Processes(),
    )
    assert torch.allclose(model.weight.grad, expected, atol=1e-6)
    assert torch.allclose(value, model(x).pow(2).mean(dim=0), atol=1e-6)


def test_muon_is_torchs_own_in_bfloat16():
    torch.manual_seed(0)
    mine, torchs = (
        [nn.Parameter(torch.ones(shape)) for shape in ((32, 48), (48, 32), (16, 16))] for _ in "ab"
    )
    optimizers = (
        Muon(mine, 1e-2, 0.05, torch.bfloat16),
        torch.optim.Muon(torchs, 1e-2, 0.05, adjust_lr_fn="match_rms_adamw"),
    )
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
    sizes = torch.linalg.svdvals(orthogonalize(gradient, torch.float32))
    assert float(sizes.min()) > 0.6 and float(sizes.max()) < 1.3
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = gradient
    Muon([matrix], 0.1, 0.0, torch.float32).step()
    step = float(matrix.detach().square().mean().sqrt())
    assert step == pytest.approx(0.1 * 0.2, rel=0.2)


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
    assert (tmp_path / "broken" / "log.csv").read_text(encoding="utf-8").count("\n") == (
        tmp_path / "whole" / "log.csv"
    ).read_text(encoding="utf-8").count("\n")


def test_broken_save_leaves_the_former_checkpoint(tmp_path):
    settings = codec_run(steps=2)
    loop.train(settings, tmp_path, CodecLearner(settings, clips(), clips()), lr=1e-3, measure_every=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(path) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        audio.replace_file(tmp_path / "checkpoint.pt", full_disk)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_another_run_is_not_continued(tmp_path):
    loop.claim(tmp_path / "run", codec_run())
    loop.claim(tmp_path / "run", codec_run())
    with pytest.raises(ValueError, match="holds another run: batch 2 .now 4.; start in another folder"):
        loop.claim(tmp_path / "run", codec_run(batch=4))


def test_unusable_folders_are_named_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset.json"):
        Clips(tmp_path, RATE)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"rate": 32000, "clips": 1, "samples": 8}), encoding="utf-8"
    )
    (tmp_path / "pieces.jsonl").write_text(json.dumps({"captions": ["a"]}) + "\n", encoding="utf-8")
    for name in ("mix.i16", "melody.i16"):
        (tmp_path / name).write_bytes(bytes(16))
    assert Clips(tmp_path, RATE).mix.shape == (1, 8)
    with pytest.raises(ValueError, match="32000 Hz, but the codec works at 16000"):
        Clips(tmp_path, 16000)
    os.truncate(tmp_path / "melody.i16", 10)
    with pytest.raises(ValueError, match="10 bytes instead of 16"):
        Clips(tmp_path, RATE)
    with pytest.raises(FileNotFoundError, match="train tokens"):
        tokens.Tokens(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="train codec"):
        codec_training.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="train lm"):
        load(tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    settings = codec_run(steps=2)
    learner = CodecLearner(settings, clips(), clips())
    learner.step = lambda step, lr: {"loss": float("nan")}
    with pytest.raises(FloatingPointError, match="step 1"):
        loop.train(settings, tmp_path, learner, lr=1e-3, measure_every=1)


def test_the_progress_bar_ends_full_also_when_a_finished_run_is_run_again(tmp_path, monkeypatch):
    original, made = loop._progress_bar, []

    def record(name, hidden):
        made.append(original(name, hidden))
        return made[-1]

    monkeypatch.setattr(loop, "_progress_bar", record)
    settings = codec_run(steps=7)
    for _ in range(2):
        learner = CodecLearner(settings, clips(), clips())
        loop.train(settings, tmp_path, learner, lr=1e-3, measure_every=10)
    assert [bar.n for bar in made] == [100, 100]


@pytest.mark.parametrize("module", [loop])
def test_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0

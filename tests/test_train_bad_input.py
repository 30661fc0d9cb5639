"""Training errors are one sentence, and the last good checkpoint survives them."""

import json
import os
import pickle
import re
import resource
from argparse import ArgumentTypeError
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refusal
from test_finetune import plan, recordings
from tiny import CODEC, tiny
from tiny import codec as tiny_codec

from mgkit import ranges
from mgkit.__main__ import main
from mgkit.codec import CodecConfig
from mgkit.train import codec as codec_training
from mgkit.train import export, folder, history, loop, storage, tokens
from mgkit.train import finetune as tuning
from mgkit.train.finetune import TuneLearner, crop_seconds, tune
from mgkit.train.model import load

FULL = 200_000  # bytes; no file grows further


@pytest.fixture
def disk():
    """A disk that fills when `disk.fill()` is called: the kernel then refuses every write beyond FULL."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, before[1]))

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield SimpleNamespace(fill=fill, free=free)
    free()


def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_last_one(tmp_path, monkeypatch, disk):
    tiny().save_pretrained(str(tmp_path / "start"))
    settings, out = plan(recordings(tmp_path / "own"), str(tmp_path / "start"), steps=4), tmp_path / "out"
    monkeypatch.setattr(tuning, "MEASURE_EVERY", 2)
    step = TuneLearner.step

    def fills(self: TuneLearner, number: int, lr: float) -> dict:
        # The checkpoint of step 2 has been written.
        if number == 2:
            disk.fill()
        return step(self, number, lr)

    monkeypatch.setattr(TuneLearner, "step", fills)
    with pytest.raises(
        OSError,
        match=r"could not write .*checkpoint\.pt .* an earlier version, if there is one, is unchanged",
    ) as error:
        tune(settings, out)
    disk.free()
    assert "\n" not in str(error.value)
    assert (out / "checkpoint.pt").stat().st_size > FULL
    assert storage.load(out / "checkpoint.pt")["step"] == 2
    assert not list(out.glob(".draft*"))
    # With space again, the run resumes from there.
    monkeypatch.setattr(TuneLearner, "step", step)
    tune(settings, out)
    assert storage.load(out / "checkpoint.pt")["step"] == 4
    assert [row["step"] for row in history.read(out / "log.csv")] == [0, 2, 4, 4]


def test_a_codec_with_another_frame_length_is_refused(tmp_path):
    data = SimpleNamespace(
        mix=np.zeros((1, 3200), np.int16), melody=np.zeros((1, 3200), np.int16), samples=3200
    )
    other = tiny_codec(
        CodecConfig(filters=4, dim=16, codebook_size=32, sample_rate=16000, ratios=(8, 5, 4, 2))
    )
    with pytest.raises(ValueError, match="a frame of this codec is 320 samples, .* frames of 640"):
        tokens.write(other, data, tmp_path / "tokens", 1)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"sample_rate": 16000}, r"takes 79 melody frames, but 10 s at the 16000 Hz of .* are 40"),
        ({"codebooks": 2}, r"predicts 4 codebooks of 32, but .* has 2 of 32"),
        ({"codebook_size": 64}, r"predicts 4 codebooks of 32, but .* has 4 of 64"),
    ],
    ids=["rate", "codebooks", "codebook size"],
)
def test_a_codec_and_a_language_model_that_do_not_match_are_not_exported(tmp_path, changed, message):
    tiny(melody=True).save_pretrained(str(tmp_path / "lm"))
    config = replace(CODEC, **changed)
    (tmp_path / "codec").mkdir()
    torch.save(
        {"config": asdict(config), "weights": tiny_codec(config).state_dict()},
        tmp_path / "codec" / "codec.pt",
    )
    with pytest.raises(ValueError, match=message):
        export.export(tmp_path / "codec", tmp_path / "lm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_logs_are_plotted(tmp_path):
    (tmp_path / "log.csv").write_text(
        "step,minutes,loss,valid_text\n0,0,,4.5\n20,0.1,4.2,\n20,0.1,,4.1\n", encoding="utf-8"
    )
    picture = history.plot(tmp_path / "log.csv")
    assert [line.get_label() for line in picture.axes[0].lines] == ["valid, text", "loss"]
    assert picture.axes[0].lines[0].get_xydata().tolist() == [[0, 4.5], [20, 4.1]]
    for wrong in ("", "name,caption\na,b\n"):
        (tmp_path / "log.csv").write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match="is not the log of a run"):
            history.plot(tmp_path / "log.csv")


# --- files ------------------------------------------------------------------------------------------------


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["code", "pickle", "cut", "empty", "list"])
def test_a_file_of_a_run_with_code_or_damage_is_refused_in_a_sentence(tmp_path, content):
    trap = tmp_path / "trap"
    for name in ("checkpoint.pt", "codec.pt", "lm.pt"):
        path = tmp_path / name
        torch.save({"step": Evil(trap)} if content == "code" else [torch.zeros(99)], path)
        if content == "pickle":
            path.write_bytes(pickle.dumps({"learner": Evil(trap)}))
        elif content in ("cut", "empty"):
            path.write_bytes(path.read_bytes()[: 300 if content == "cut" else 0])
    calls = {
        "checkpoint.pt": lambda: loop.Loop(None, tmp_path, None, 1e-3).resume(),
        "codec.pt": lambda: codec_training.load(tmp_path),
        "lm.pt": lambda: load(tmp_path),
    }
    for name, call in calls.items():
        assert "weights_only" not in refusal(call, str(tmp_path / name), "plain values")
    assert not trap.exists()


def test_values_of_numpy_are_stored_as_plain_ones_bit_by_bit(tmp_path):
    values = {"f": np.float64(0.1), "g": np.float32(0.1), "i": [np.int64(2**62)], "b": (np.bool_(True),)}
    storage.save(tmp_path / "a.pt", values | {"t": torch.tensor([0.1]), 3: None, "a": np.arange(3)})
    read = storage.load(tmp_path / "a.pt")
    assert {name: read[name] for name in values} == values
    assert type(read["f"]) is float and type(read["i"][0]) is int and read["b"] == (True,)
    assert torch.equal(read["t"], torch.tensor([0.1])) and read["a"].tolist() == [0, 1, 2] and read[3] is None


def test_a_checkpoint_of_another_kind_of_run_is_refused(tmp_path):
    storage.save(tmp_path / "checkpoint.pt", {"learner": {}, "step": 1})

    class Learner:
        def load_state_dict(self, state):
            state["model"]

    refusal(lambda: loop.Loop(None, tmp_path, Learner(), 1e-3).resume(), "checkpoint.pt", "another folder")


def test_a_damaged_cache_of_tokens_is_made_again(tmp_path):
    model, found = tiny(), folder.find(recordings(tmp_path / "own"))
    cache = tmp_path / "tokens.safetensors"
    first = folder.tokenize(model, found, cache)
    whole = cache.read_bytes()
    for damaged in (b"", whole[:100], b"words", pickle.dumps({"key": Evil(tmp_path / "trap")})):
        cache.write_bytes(damaged)
        again = folder.tokenize(model, found, cache)
        assert all(torch.equal(a.codes, b.codes) for a, b in zip(first, again, strict=True))
        assert len(cache.read_bytes()) == len(whole)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("damaged", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_run_json_blocks_only_a_folder_with_a_checkpoint(tmp_path, damaged):
    settings = plan(tmp_path, "nano")
    (tmp_path / "run.json").write_text(damaged, encoding="utf-8")
    loop.claim(tmp_path, settings)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["model"] == "nano"
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    loop.claim(tmp_path, settings)
    (tmp_path / "run.json").write_text(damaged, encoding="utf-8")
    refusal(lambda: loop.claim(tmp_path, settings), "run.json is damaged", "another folder")


@pytest.mark.parametrize("content", ["objects", "cut", "empty", "words", "several"])
def test_an_array_with_objects_or_damage_is_refused_in_a_sentence(tmp_path, content):
    path, trap = tmp_path / "codes.npy", tmp_path / "trap"
    np.save(path, np.array([Evil(trap)], object) if content == "objects" else np.arange(99))
    if content == "several":
        np.savez(tmp_path / "a.npz", np.arange(3))
        os.replace(tmp_path / "a.npz", path)
    elif content != "objects":
        path.write_bytes({"cut": path.read_bytes()[:200], "empty": b"", "words": b"some words"}[content])
    assert "allow_pickle" not in refusal(lambda: storage.read_array(path), str(path), "damaged")
    assert not trap.exists()
    np.save(path, np.arange(99))
    assert storage.read_array(path).tolist() == list(range(99))


@pytest.mark.parametrize("name", ["dataset.json", "tokens.json"])
def test_a_damaged_json_of_the_data_is_named(tmp_path, name):
    (tmp_path / name).write_text("", encoding="utf-8")
    call = {
        "dataset.json": lambda: tokens.Clips(tmp_path, 32000),
        "tokens.json": lambda: tokens.Tokens(tmp_path, tmp_path),
    }[name]
    refusal(call, name, "damaged")


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 0}, ["steps is 0", "at least 1"]),
        ({"steps": -5}, ["steps is -5"]),
        ({"steps": 1.5}, ["steps is 1.5"]),
        ({"steps": None}, ["budget"]),
        ({"minutes": 1.0}, ["budget"]),
        ({"steps": None, "minutes": -1.0}, ["minutes is -1.0", "above 0"]),
        ({"steps": None, "minutes": float("nan")}, ["minutes is nan"]),
        ({"steps": None, "minutes": float("inf")}, ["minutes is inf"]),
        ({"lr": float("nan")}, ["lr is nan"]),
        ({"lr": 0.0}, ["lr is 0.0"]),
    ],
)
def test_a_budget_that_never_ends_or_is_empty_is_refused_before_any_work(tmp_path, changed, words):
    settings = plan(tmp_path / "own", "no model", **changed)
    refusal(lambda: tune(settings, tmp_path / "out"), *words)
    refusal(lambda: loop.train(settings, tmp_path, None, lr=settings.lr, measure_every=1), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seconds": 0.0}, ["seconds is 0", "0.02 s"]),
        ({"seconds": 0.001}, ["seconds is 0.001"]),
        ({"seconds": 60.0}, ["seconds is 60", "10 s"]),
        ({"seconds": float("nan")}, ["seconds is nan"]),
        ({"batch": 0}, ["batch is 0"]),
        ({"batch": -1}, ["batch is -1"]),
    ],
)
def test_crops_that_do_not_fit_and_empty_batches_are_refused(changed, words):
    settings = plan(".", "nano", **changed)
    refusal(lambda: crop_seconds(settings, tiny()), *words)


@pytest.mark.parametrize("command", ["tune", "lm", "codec", "reinforce"])
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--minutes", ["-1", "0", "nan", "inf", "soon"]),
        ("--steps", ["0", "-5", "1.5", "9" * 30]),
        ("--lr", ["0", "nan", "-1"]),
        ("--seed", ["-1", "x", str(2**63)]),
    ],
)
def test_numbers_out_of_range_are_refused_by_every_command_that_trains(capsys, command, option, values):
    words = ["train", command, *(["own"] if command == "tune" else [])]
    for value in values:
        with pytest.raises(SystemExit) as end:
            main([*words, f"{option}={value}"])
        line = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2 and f"argument {option}: {value!r}" in line and "give" in line


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["train", "tune", "own"], "--batch"),
        (["train", "tune", "own"], "--seconds"),
        (["train", "tune", "own"], "--layers"),
        (["train", "lm"], "--batch"),
        (["train", "codec"], "--batch"),
        (["train", "codec"], "--filters"),
        (["train", "tokens"], "--clips"),
        (["train", "stems"], "--workers"),
        (["train", "data", "--out=x"], "--clips"),
        (["train", "data", "--out=x", "--clips=1"], "--seconds"),
        (["train", "data", "--out=x", "--clips=1"], "--workers"),
        (["train", "preview"], "--pieces"),
        (["train", "nano"], "--budget"),
        (["train", "nano"], "--seconds"),
        (["bench"], "--duration"),
        (["bench"], "--pairs"),
        (["measure"], "--count"),
        (["measure"], "--seconds"),
        (["memorization"], "--count"),
    ],
)
def test_zero_of_anything_is_refused(capsys, words, option):
    for value in ("0", "-1"):
        with pytest.raises(SystemExit) as end:
            main([*words, f"{option}={value}"])
        line = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2 and re.search(rf"argument {option}: '{value}' is out of range; give", line)


def test_ranges():
    for parse, good, bad in (
        (ranges.count, "1", ["0", "", "1e3"]),
        (ranges.index, "0", ["-1", str(2**63)]),
        (ranges.amount, "1e-9", ["0", "nan", "inf", "1e999", ""]),
        (ranges.weight, "0", ["-1", "nan", "inf"]),
        (ranges.fraction, "1", ["-0.1", "1.1", "nan"]),
    ):
        assert parse(good) == float(good)
        for text in bad:
            with pytest.raises(ArgumentTypeError, match="give"):
                parse(text)

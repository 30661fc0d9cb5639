"""Training in several processes: `accelerate launch` shares every batch and matches one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_finetune import recordings, tune_command
from tiny import tiny

from mgkit.__main__ import main
from mgkit.band.compose import compose
from mgkit.train import history, parallel

ROOT = Path(__file__).parent.parent


def launch(*arguments: str) -> subprocess.CompletedProcess:
    """Runs `python -m mgkit` in two processes on the CPU."""
    pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "-m", "mgkit", *arguments], capture_output=True, text=True, env=environment, timeout=600
    )


def token_folder(folder: Path, clips: int = 6) -> Path:
    """Random codes with true descriptions, in the layout of `train tokens`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "codes.npy", rng.integers(0, 1024, (clips, 4, 100)).astype(np.int16))
    np.save(folder / "melody.npy", rng.integers(0, 12, (clips, 16)).astype(np.int8))
    plan = {"codec": "random", "codebooks": 4, "codebook_size": 1024, "rate": 32000, "samples": 64000}
    (folder / "tokens.json").write_text(json.dumps(plan), encoding="utf-8")
    pieces = [
        compose(seed, seconds=2.0).attributes() | {"captions": ["calm piano", "piano"]}
        for seed in range(clips)
    ]
    (folder / "pieces.jsonl").write_text(
        "".join(json.dumps(piece) + "\n" for piece in pieces), encoding="utf-8"
    )
    return folder


def losses_of(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "minutes"} for row in history.read(out / "log.csv")]


def assert_same(one: Path, other: Path) -> None:
    """The same curves up to rounding: sums in another order show first in the gradient norm."""
    for a, b in zip(losses_of(one), losses_of(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-2 if name == "norm" else 2e-3), name


@pytest.mark.slow
def test_two_processes_train_the_language_model_like_one(tmp_path):
    folder = str(token_folder(tmp_path / "tokens"))
    command = ["train", "lm", "--text-steps", "0", "--steps", "20", "--batch", "2"]
    for name in ("--data", "--valid", "--tokens", "--valid-tokens"):
        command += [name, folder]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    done = launch(*command, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes share every batch" in done.stderr
    assert_same(tmp_path / "one", tmp_path / "two")
    assert [row["step"] for row in losses_of(tmp_path / "one")] == [0, 20, 20]
    # Only the first process prints.
    assert done.stdout.count("valid_all") == 1


@pytest.mark.slow
def test_two_processes_fine_tune_like_one(tmp_path):
    tiny(melody=True, window=2.0).save_pretrained(str(tmp_path / "start"))
    recordings(tmp_path / "own")
    command = tune_command(tmp_path, "--steps", "20", "--batch", "4")
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    done = launch(*command, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes share every batch" in done.stderr
    assert_same(tmp_path / "one", tmp_path / "two")
    assert done.stdout.count("load it with") == 1


@pytest.mark.slow
def test_two_processes_report_errors_in_a_sentence(tmp_path):
    tiny().save_pretrained(str(tmp_path / "start"))
    recordings(tmp_path / "own")
    command = tune_command(tmp_path, "--steps", "1", "--batch", "3")
    done = launch(*command, "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "mgkit: 2 processes cannot share a batch of 3; give a multiple of 2" in done.stderr
    done = launch("train", "codec")
    assert done.returncode != 0
    assert "mgkit: the codec trains in one process" in done.stderr


def test_shards_cover_a_batch_and_have_one_size():
    processes = parallel.Processes()
    assert (processes.size, processes.rank) == (1, 0)
    for size in (1, 2, 3):
        processes.size = size
        for batch in (6, 12):
            places = [list(range(batch))[part] for part in processes.shards(batch)]
            assert len(places) % size == 0 and len({len(part) for part in places}) == 1
            assert sum(places, []) == list(range(batch))
    processes.size = 1
    assert processes.shards(3) == (slice(0, 3),)


def test_bfloat16_is_used_only_on_request_and_with_hardware_support(monkeypatch):
    cpu = torch.device("cpu")
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        for asked in (True, False):
            with parallel.autocast(cpu, asked):
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert (product.dtype == torch.bfloat16) == (able and asked)

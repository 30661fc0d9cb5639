"""`bench`: the same weights in both libraries, a table that names its conditions, an end in time."""

import json

import pytest
import torch

from mgkit import bench, hub, shapes
from mgkit.__main__ import main

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """A `random-small` of two narrow layers."""
    monkeypatch.setitem(hub.SHAPES, "small", (2, 128))


def test_transformers_gets_the_same_weights(small):
    model = shapes.random("small", CPU, torch.float32)
    theirs = shapes.in_transformers(model)
    steps = torch.randint(2048, (1, 4, 5))
    text = model.conditioner.text.tokenizer(["calm piano"], return_tensors="pt")
    with torch.no_grad():
        condition = model.conditioner(model.conditioner.encode(["calm piano"]))
        given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        logits = theirs(**given, decoder_input_ids=steps[0]).logits
        torch.testing.assert_close(logits, model.lm(steps, condition)[0], rtol=1e-3, atol=1e-4)


def test_a_step_reads_the_weights_it_uses_once_and_the_cache(small):
    lm = shapes.random("small", CPU, torch.float16).lm
    unused = sum(p.numel() for name, p in lm.named_parameters() if "embeddings" in name)
    unused += 2 * 2 * 128 * 128  # keys and values of the text, in two layers
    weights = 2 * (sum(p.numel() for p in lm.parameters()) - unused)
    assert shapes.bytes_of_a_step(lm, 2, 0) == weights
    assert shapes.bytes_of_a_step(lm, 2, 100) - weights == 2 * 2 * 2 * 100 * 128 * 2


@pytest.mark.slow
def test_the_table_has_both_libraries_positions_and_the_floor(small, tmp_path, capsys):
    file = tmp_path / "bench.json"
    argv = ["bench", "--model", "random-small", "--device", "cpu", "--duration", "0.4", "--pairs", "1"]
    assert main([*argv, "--json", str(file)]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["bandwidth"] > 1e8 and "load" in result["machine"]
    rows = {(row["path"], row["batch"]): row for row in result["rows"]}
    assert {("mgkit float32", 1), ("mgkit float32", 8), ("transformers float32", 1)} <= set(rows)
    for path in ("mgkit float32", "transformers float32"):
        row = rows[path, 1]
        assert set(row["steps"]) == set(row["floor"]) == {"1", "10", "30"}
        assert all(low <= middle <= high for middle, low, high in row["steps"].values())
        assert row["piece"][0] > 0
    out = capsys.readouterr().out
    assert "memory bandwidth" in out and "times as fast as transformers" in out


def test_nothing_new_is_measured_after_the_limit(small, capsys):
    main(["bench", "--model", "random-small", "--device", "cpu", "--duration", "0.1", "--limit", "1e-9"])
    assert "ms a step" not in capsys.readouterr().out


def test_an_unknown_random_shape_is_refused(capsys):
    assert main(["bench", "--model", "random-tiny", "--device", "cpu"]) == 2
    assert "random-small" in capsys.readouterr().err
    assert bench.TEXT

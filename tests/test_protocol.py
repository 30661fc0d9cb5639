"""Prompts of the protocol match its pieces; cached shards are reused exactly while they are valid."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mgkit.band.captions import HELD_OUT_SYNONYMS
from mgkit.band.compose import compose
from mgkit.evals import protocol, shards
from mgkit.evals.shards import Shard

PACKAGE = Path(shards.__file__).parents[1]


@pytest.fixture
def generated(monkeypatch) -> list[str]:
    """Names of the conditions for which tokens were generated, by a stand-in for the model's generation."""
    names: list[str] = []

    def generate(self, renders):
        names.append(self.name)
        return np.zeros((self.size, 4, 150), np.int16)

    monkeypatch.setattr(Shard, "_generate", generate)
    return names


def test_a_shard_is_measured_once_and_its_tokens_generated_once(soundfont, tmp_path, generated):
    name = "continuation, guidance 3"
    shard = Shard(tmp_path, "nano", name, 0, 2, 4.0)
    first = shard.measurements()
    assert [set(clip) for clip in first] == [{"seam_tempo", "seam_key", "smooth"}] * 2
    file = next(tmp_path.glob("*.npz"))
    again = shard.measurements()
    assert generated == [name]
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(first, again, strict=True) for k in a)
    # without its measurements, a shard keeps its tokens
    file.unlink()
    shard.run()
    assert generated == [name]
    replace(shard, start=2).run()
    assert len(generated) == 2


@pytest.mark.parametrize("code, generations", [("METRIC_CODE", 1), ("BAND_CODE", 2)])
def test_a_change_of_code_discards_what_depends_on_it(
    soundfont, tmp_path, generated, monkeypatch, code, generations
):
    shard = Shard(tmp_path, "nano", "continuation, guidance 1", 0, 1, 4.0)
    shard.run()
    monkeypatch.setattr(shards, code, (*getattr(shards, code), "mgkit.delay"))
    shard.run()
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert len(generated) == len(list(tmp_path.glob("*.npy"))) == generations


def test_the_digest_of_code_ignores_comments_and_docstrings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def digest(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return shards.code_digest(name)

    plain = digest("first_version", '"""A."""\ndef f(x):\n    """B."""\n    return x + 1\n')
    reworded = digest("second_version", '"""C."""\n\n\ndef f(x):\n    """D.""" # e\n    return (x + 1)\n')
    changed = digest("third_version", '"""A."""\ndef f(x):\n    """B."""\n    return x + 2\n')
    assert plain == reworded != changed


def dependencies(module: str) -> set[str]:
    """A module of mgkit and its direct and indirect imports within mgkit."""
    found, queue = set(), [module]
    while queue:
        name = queue.pop()
        # names of functions, classes and packages are skipped
        path = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "mgkit":
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def test_cache_keys_cover_every_module_that_the_numbers_depend_on():
    band = dependencies("mgkit.band.compose") | dependencies("mgkit.band.synth")
    band |= dependencies("mgkit.band.captions")
    assert {name for name in band if name.startswith("mgkit.band.")} == set(shards.BAND_CODE)
    assert dependencies("mgkit.evals.metrics") <= set(shards.METRIC_CODE)


def test_reference_pieces_have_the_same_prompt():
    piece, reference = (
        protocol.compose_piece(protocol.CONDITIONS[name], 3, 4.0) for name in ("renders", "reference set")
    )
    assert piece.tracks != reference.tracks
    assert protocol.prompt(piece) == protocol.prompt(reference)


def test_held_out_prompts_use_held_out_synonyms_for_the_same_values():
    piece = compose(20_000_005)
    training, held_out, short = (
        protocol.prompt(piece, wording) for wording in ("training", "held-out", "short")
    )
    assert sum(word in HELD_OUT_SYNONYMS for word in held_out.split(", ")) == 3
    assert not any(word in HELD_OUT_SYNONYMS for word in training.split(", "))
    assert "bpm" not in short and "bpm" in held_out

"""Scores separate a good model from one that guesses; tables and cards show them under the same names."""

import doctest
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from mgkit.band.compose import compose
from mgkit.evals import estimates, measure, metrics, musicnn, protocol, report, scores
from mgkit.evals.estimates import Estimate
from mgkit.evals.scores import CHANCE, GUIDANCE_3, SHUFFLED, Goal, Row

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world():
    """Pieces, with measurements free of errors and without audio."""
    pieces = [compose(20_000_000 + i, seconds=4) for i in range(24)]
    leads = sorted({piece.lead for piece in pieces})
    rng = np.random.default_rng(0)

    def measurement(piece) -> dict:
        tags = np.full(len(musicnn.TAGS), 0.1)
        if piece.lead in musicnn.TAGS:
            tags[musicnn.TAGS.index(piece.lead)] = 0.9
        chroma = np.zeros((12, 8))
        chroma[np.random.default_rng(piece.seed).integers(0, 12, 8), np.arange(8)] = 1
        key = np.array([piece.key, metrics.MODES.index(piece.mode)])
        return {
            "tempo": piece.tempo,
            "key": key,
            "chroma": chroma,
            "melody": chroma,
            "notes": np.array(next(track.notes for track in piece.tracks if track.is_melody)),
            "features": np.array([*(5.0 * (piece.lead == lead) for lead in leads), 9 * piece.drums, *tags]),
            "embedding": rng.normal(size=(3, 4)),
            "levels": rng.normal(size=(3, 64)),
            "seam_tempo": piece.tempo,
            "seam_key": key,
            "smooth": True,
            "mel": 1.0,
            "si_sdr": 20.0,
        }

    return pieces, [measurement(piece) for piece in pieces]


def rows_of(world, model: list[dict]) -> dict[str, Row]:
    """All rows for a model with the measurements `model`, by table and name."""
    pieces, perfect = world
    names = protocol.CONDITIONS
    measurements = {name: perfect if names[name].guidance is None else model for name in names}
    accuracy, synonyms = scores.text_rows(measurements, pieces, scores.AttributeEstimator(perfect, pieces))
    rows = [
        *accuracy,
        *synonyms,
        *scores.melody_rows(measurements, pieces),
        *scores.distance_rows(measurements, len(pieces)),
        *scores.continuation_rows(measurements, pieces),
        *scores.codec_rows(measurements, (perfect[:6], perfect[:6])),
        *scores.performance_rows(Estimate(6.0, 5.0, 7.0), 25.0, threads=2),
    ]
    return {f"{row.table}: {row.name}": row for row in rows}


# -- scores ------------------------------------------------------------------------------------------------


def test_a_perfect_model_meets_every_goal_and_one_that_ignores_its_prompts_none(world):
    goals = [row for row in rows_of(world, world[1]).values() if row.goal]
    assert len(goals) >= 14 and all(row.goal.met for row in goals if row.table != scores.DISTANCES)
    ignorant = rows_of(world, scores.rotate(world[1]))
    for name in ("tempo", "key", "lead instrument", "presence of drums"):
        assert ignorant[f"{scores.TEXT}: {name}"].goal.met is False, name
    assert ignorant[f"{scores.MELODY}: cosine similarity of quantized chroma"].goal.met is False
    assert ignorant[f"{scores.CONTINUATION}: same key"].goal.met is False


def test_tempo_with_drums_counts_only_pieces_that_have_drums(world):
    pieces, perfect = world
    steady = [
        clip if p.drums else clip | {"tempo": 1.3 * p.tempo} for clip, p in zip(perfect, pieces, strict=True)
    ]
    rows = rows_of(world, steady)
    name = f"{scores.TEXT}: tempo, octave errors allowed"
    assert rows[f"{name}, with drums"].cells[GUIDANCE_3].value == 1
    assert rows[name].cells[GUIDANCE_3].value == pytest.approx(np.mean([piece.drums for piece in pieces]))


def test_controls_are_near_chance(world):
    row = rows_of(world, world[1])[f"{scores.TEXT}: key"]
    assert row.cells[GUIDANCE_3].value == 1
    assert row.cells[CHANCE].value < 0.2 and row.cells[SHUFFLED].value < 0.3


def test_the_drop_with_held_out_synonyms_is_counted_in_points(world):
    pieces, perfect = world
    measurements = dict.fromkeys(protocol.CONDITIONS, perfect) | {"held-out synonyms": scores.rotate(perfect)}
    _, rows = scores.text_rows(measurements, pieces, scores.AttributeEstimator(perfect, pieces))
    lead = next(row for row in rows if row.name == "lead instrument")
    assert lead.goal.met is False and lead.cells["drop"].value > 0.5


def test_intervals_contain_their_value_and_shrink_with_the_sample():
    few, many = estimates.proportion([True, False] * 5), estimates.proportion([True, False] * 500)
    assert few.low < many.low < 0.5 < many.high < few.high
    assert estimates.mean([1.0, math.nan, 3.0]).value == 2
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(n, 3)) for n in (50, 5000)]
    wide, narrow = (estimates.jackknife(lambda x: float(x.mean()), one) for one in sets)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


# -- tables ------------------------------------------------------------------------------------------------


def test_tables_have_every_column_and_say_which_goals_are_met(world):
    rows = list(rows_of(world, world[1]).values())
    tables, summary = report.tables(rows), report.summary(rows)
    assert tables.count("| goal | reached |") == len({row.table for row in rows})
    assert summary.count("| goal | reached |") == 1 and "100%: met" in summary
    for line in summary.splitlines():
        assert line.count("|") == summary.splitlines()[0].count("|")


def labels(markdown: str) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """Header, and first cell and goal of each row in Markdown tables; no sample sizes or thread counts."""
    markdown = re.sub(r"n = \d+", "n", re.sub(r"\d+ CPU threads", "CPU threads", markdown))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    starts = [i for i, line in enumerate(lines) if "goal" in line]
    return [
        (lines[start], [(line[0], line[-2]) for line in lines[start + 2 : end]])
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
    ]


@pytest.mark.parametrize(
    "card, form", [("data/nano/README.md", report.tables), ("README.md", report.summary)]
)
def test_cards_have_the_labels_of_the_code(world, card, form):
    text = (ROOT / card).read_text(encoding="utf-8")
    scored = text.partition("<!-- scores -->")[2].partition("<!-- end of scores -->")[0]
    assert labels(scored) == labels(form(list(rows_of(world, world[1]).values())))


def test_only_a_full_evaluation_enters_the_card(tmp_path, monkeypatch):
    row = Row("t", "n", {GUIDANCE_3: Estimate(0.5, 0.4, 0.6)}, goal=Goal("g", "50%", True))
    monkeypatch.setattr(report, "evaluate", lambda *_: [row])
    monkeypatch.setattr(report.hub, "find", Path)
    card = tmp_path / "README.md"
    card.write_text("a\n<!-- scores -->\nold\n<!-- end of scores -->\nb\n", encoding="utf-8")
    measure.main([str(tmp_path), "--count", "12", "--out", str(tmp_path)])
    assert "old" in card.read_text(encoding="utf-8") and "50%: met" in (tmp_path / "scores.md").read_text(
        encoding="utf-8"
    )
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))[0]["goal"]["met"] is True
    measure.main([str(tmp_path), "--out", str(tmp_path)])
    assert "old" not in card.read_text(encoding="utf-8") and "50%: met" in card.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="8 to 10 seconds"):
        measure.main([str(tmp_path), "--seconds", "4"])


def test_too_few_prompts_for_the_classifiers_are_refused_before_the_work(tmp_path, soundfont):
    with pytest.raises(ValueError, match="--count is 2: the 4 pieces .* do not differ in drums"):
        report.evaluate("nano", tmp_path, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [estimates, report])
def test_doctests_of_the_report_pass(module):
    assert doctest.testmod(module).failed == 0

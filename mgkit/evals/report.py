"""Scores of a model as Markdown tables, in files and in its model card (`python -m mgkit measure MODEL`).

measurements -> rows (scores) -> scores.json, scores.md
                              -> every row into the model card
                              -> rows with a goal into README, if the model is the one in the repository
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import torch

from mgkit import audio, hub
from mgkit.band import synth
from mgkit.band.captions import MEASURING_FONT
from mgkit.evals import basic_pitch, musicnn, protocol, scores, shards
from mgkit.evals.estimates import Estimate
from mgkit.evals.protocol import CONDITIONS
from mgkit.evals.scores import Row

# Prompts, and seconds each, for scores to enter a model card.
CARD_COUNT, CARD_SECONDS = 200, 10.0


# -- evaluation --------------------------------------------------------------------------------------------


def evaluate(model: str, out: Path, count: int, seconds: float = CARD_SECONDS) -> list[Row]:
    """All rows for a model, from `count` held-out prompts; intermediate results are cached in `out`/shards.

    Raises: RuntimeError, FileNotFoundError or ImportError with the command to run, if a network or sound font
    is missing; ValueError if there are too few prompts for the classifiers.
    """
    # Fail before the work, not during it.
    musicnn.musicnn()
    basic_pitch.network()
    synth.find_soundfont()
    synth.find_soundfont(MEASURING_FONT)
    condition, training = CONDITIONS["renders"], CONDITIONS["classifier set"]
    pieces = [protocol.compose_piece(condition, i, seconds) for i in range(count)]
    training_pieces = [
        protocol.compose_piece(training, i, seconds) for i in range(count * training.clips_per_prompt)
    ]
    for name in ("lead", "drums"):
        if len({getattr(piece, name) for piece in training_pieces}) < 2:
            raise ValueError(
                f"--count is {count}: the {len(training_pieces)} pieces that a classifier learns from do not "
                f"differ in {name}; give a larger number"
            )
    measurements = shards.measure(model, out / "shards", count, seconds)
    examples = measurements["classifier set"] + measurements["classifier set, round trip"]
    estimator = scores.AttributeEstimator(examples, training_pieces * 2)
    accuracy, synonyms = scores.text_rows(measurements, pieces, estimator)
    return [
        *accuracy,
        *synonyms,
        *scores.melody_rows(measurements, pieces),
        *scores.distance_rows(measurements, count),
        *scores.continuation_rows(measurements, pieces),
        *scores.codec_rows(measurements, shards.measure_recordings(model)),
        *scores.performance_rows(
            measure_speed(model, protocol.prompt(pieces[0])), folder_size(model), torch.get_num_threads()
        ),
    ]


def measure_speed(name: str, prompt: str) -> Estimate:
    """Speed in multiples of real time, for a 10 s clip with guidance 3: median and range of three runs."""
    model = shards.load_model(name)
    model.set_generation_params(duration=10.0, cfg_coef=3.0)
    seconds = []
    for seed in range(3):
        start = time.perf_counter()
        model.generate([prompt], seed=seed)
        seconds.append(time.perf_counter() - start)
    return Estimate(10 / median(seconds), 10 / max(seconds), 10 / min(seconds))


def folder_size(name: str) -> float:
    """Size of a model's folder in MB."""
    return sum(file.stat().st_size for file in hub.find(name).iterdir()) / 1e6


# -- Markdown ----------------------------------------------------------------------------------------------


def cell(estimate: Estimate | None, percent: bool) -> str:
    """An estimate as text, its interval in parentheses.

    >>> cell(Estimate(0.5, 0.4, 0.6), True), cell(Estimate(2.0, math.nan, math.nan), False), cell(None, True)
    ('50% (40–60)', '2.00', '')
    """
    if estimate is None or math.isnan(estimate.value):
        return ""
    value, low, high = (100 * x for x in estimate) if percent else estimate
    form = "{:.0f}" if percent else "{:.2f}"
    dash = "–" if low >= 0 else " to "
    interval = "" if math.isnan(low) else f" ({form}{dash}{form})".format(low, high)
    return form.format(value) + "%" * percent + interval


def tables(rows: Sequence[Row]) -> str:
    """All rows as Markdown, one table for each title."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.table, []).append(row)
    return "\n\n".join(
        _table(title, group, list(dict.fromkeys(column for row in group for column in row.cells)))
        for title, group in groups.items()
    )


def summary(rows: Sequence[Row]) -> str:
    """The rows that have a goal for the model, as one table."""
    chosen = [row for row in rows if row.goal and scores.GUIDANCE_3 in row.cells]
    present = {column for row in chosen for column in row.cells}
    columns = (
        scores.CEILING,
        scores.ROUND_TRIP,
        scores.GUIDANCE_3,
        scores.GUIDANCE_2,
        scores.GUIDANCE_1,
        scores.SHUFFLED,
        scores.CHANCE,
    )
    return _table("metric", chosen, [column for column in columns if column in present])


def _table(title: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = [[title, *columns, "goal", "reached"]]
    for row in rows:
        target = row.goal.target if row.goal else ""
        reached = f"{row.goal.reached}: {'met' if row.goal.met else 'not met'}" if row.goal else ""
        cells = [cell(row.cells.get(column), row.percent) for column in columns]
        lines.append([row.name, *cells, target, reached])
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * (len(columns) + 3) + "|", *body])


def insert_tables(card: str, text: str) -> str:
    """A model card with `text` between its two marks, if it has them.

    >>> insert_tables("a <!-- scores -->old<!-- end of scores --> b", "new").split()
    ['a', '<!--', 'scores', '-->', 'new', '<!--', 'end', 'of', 'scores', '-->', 'b']
    """
    before, mark, rest = card.partition("<!-- scores -->")
    _, end, after = rest.partition("<!-- end of scores -->")
    return f"{before}{mark}\n{text}\n{end}{after}" if mark and end else card


# -- files -------------------------------------------------------------------------------------------------


def run(model: str, out: Path, count: int = CARD_COUNT, seconds: float = CARD_SECONDS) -> None:
    """Score a model; write scores.json and scores.md into `out`, and the model card if there are enough.

    Raises: ValueError for too few prompts or seconds; as `evaluate`.
    """
    if count < 2 or not 8 <= seconds <= CARD_SECONDS:
        raise ValueError(
            f"--count is {count} and --seconds {seconds:g}; at least 2 prompts and 8 to 10 seconds "
            "are needed (the tempo is estimated on half a clip)"
        )
    rows = evaluate(model, out, count, seconds)
    caption = (
        f"{count} held-out prompts, clips of {seconds:g} s, seeds 0, 1, 2, …; "
        "95 % confidence intervals in parentheses.\n\n"
    )
    records = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
    audio.replace_file(out / "scores.json", partial(Path.write_text, data=records, encoding="utf-8"))
    audio.replace_file(
        out / "scores.md", partial(Path.write_text, data=caption + tables(rows) + "\n", encoding="utf-8")
    )
    if count >= CARD_COUNT and seconds == CARD_SECONDS:
        folder = hub.find(model)
        cards = {folder / "README.md": tables(rows)}
        if folder.resolve() == hub.embedded().resolve():
            cards[hub.embedded().parents[1] / "README.md"] = summary(rows)
        for card, text in cards.items():
            if card.is_file():
                filled = insert_tables(card.read_text(encoding="utf-8"), caption + text)
                audio.replace_file(card, partial(Path.write_text, data=filled, encoding="utf-8"))
    print(caption + tables(rows))

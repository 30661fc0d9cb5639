"""How well a model does what it is told, beside what could be reached at best and what chance would give.

`hearing` makes the music and says what is heard in it; here that becomes numbers, each a (value, low, high) with its 95 %
interval, beside its ceiling (the renders themselves), what the codec leaves of them, and its controls:

    guidance 2, 1       the model with less guidance, and without any
    shuffled captions   what it made of another piece's prompt, judged by this one's
    chance              a render, judged by another piece's prompt
"""

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mgkit import audio, hub
from mgkit.band.captions import MEASURING_FONT
from mgkit.band.piece import Piece
from mgkit.band.synth import find_soundfont
from mgkit.evals import basic_pitch, metrics, musicnn, protocol
from mgkit.evals.metrics import Classifier
from mgkit.evals.protocol import PART, WAYS, Finding, Part

LESSONS = 2  # pieces that the classifiers learn from, for each that is measured
ENOUGH = 200  # prompts of ten seconds: what is measured on fewer does not enter a model card
RECORDINGS = Path(__file__).parents[2] / "data" / "recordings"
BY_TAG = (
    "piano",
    "guitar",
    "violin",
    "cello",
    "flute",
    "sitar",
)  # leads that musicnn knows, by the name of its tag

Score = tuple[float, float, float]  # value, and the ends of its 95 % interval; nan where it has none

CEILING, CODEC, GUIDED, MILD, FREE = (
    "renders (ceiling)",
    "codec round trip",
    "model, guidance 3",
    "model, guidance 2",
    "model, guidance 1",
)
SHUFFLED, CHANCE, OTHERS = "shuffled captions", "chance", "another's melody"


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    table: str
    name: str
    cells: dict[str, Score]  # by column
    share: bool = True  # printed in per cent
    goal: str = ""
    reached: str = ""  # where the model is on the goal's scale
    met: bool | None = None


# -- numbers -------------------------------------------------------------------------------------------------------


def interval(hits: Sequence[bool]) -> Score:
    """Share, and the ends of its 95 % interval (Wilson).

    >>> [round(x, 2) for x in interval([True] * 8 + [False] * 2)]
    [0.8, 0.49, 0.94]
    """
    if not len(hits):
        return math.nan, math.nan, math.nan
    n, share, z = len(hits), float(np.mean(hits)), 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return share, max(0.0, centre - half), min(1.0, centre + half)


def spread(values: Sequence[float]) -> Score:
    """Mean, and the ends of its 95 % interval; values that are nan do not count."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return float(known.mean()) if len(known) else math.nan, math.nan, math.nan
    mean, half = float(known.mean()), 1.96 * float(known.std(ddof=1)) / math.sqrt(len(known))
    return mean, mean - half, mean + half


def jackknife(distance: Callable[..., float], *sets: np.ndarray, groups: int = 10) -> Score:
    """A number that only whole sets have, and its 95 % interval: how it changes when a tenth of their rows is left out."""
    value = distance(*sets)
    left = [distance(*(np.delete(rows, np.s_[g::groups], axis=0) for rows in sets)) for g in range(groups)]
    half = 1.96 * math.sqrt((groups - 1) * np.var(left))
    return value, max(0.0, value - half), value + half


# -- what is right -------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What the judges say that a piece is."""

    tempo: float
    key: tuple[int, str]
    lead: str
    drums: bool
    tag: str  # of the leads that musicnn knows, the one it finds most


class Court:
    """The judges of lead and drums, who learned on pieces of another soundfont and on what the codec makes of them."""

    def __init__(self, findings: Sequence[Finding], pieces: Sequence[Piece]):
        features = np.stack([one["features"] for one in findings])
        self.lead = Classifier(features, [piece.lead for piece in pieces])
        self.drums = Classifier(features, [piece.drums for piece in pieces])
        self.usual = self._tags(features).mean(axis=0)

    @staticmethod
    def _tags(features: np.ndarray) -> np.ndarray:
        return features[:, -len(musicnn.TAGS) :][:, [musicnn.TAGS.index(tag) for tag in BY_TAG]]

    def __call__(self, findings: Sequence[Finding]) -> list[Verdict]:
        features = np.stack([one["features"] for one in findings])
        tags = (self._tags(features) / self.usual).argmax(axis=1)
        parts = zip(findings, self.lead(features), self.drums(features), tags, strict=True)
        return [
            Verdict(float(one["tempo"]), _key(one["key"]), lead, drums, BY_TAG[tag])
            for one, lead, drums, tag in parts
        ]


def _key(found: np.ndarray) -> tuple[int, str]:
    return int(found[0]), metrics.MODES[int(found[1])]


def right(verdicts: Sequence[Verdict], pieces: Sequence[Piece]) -> dict[str, list[bool]]:
    """Where that is what the piece is."""
    both = list(zip(verdicts, pieces, strict=True))
    return {
        "tempo": [metrics.tempo_right(v.tempo, p.tempo, octaves=False) for v, p in both],
        "tempo, or half or double": [metrics.tempo_right(v.tempo, p.tempo, octaves=True) for v, p in both],
        "the same, with drums": [
            metrics.tempo_right(v.tempo, p.tempo, octaves=True) for v, p in both if p.drums
        ],
        "key": [v.key == (p.key, p.mode) for v, p in both],
        "mode": [v.key[1] == p.mode for v, p in both],
        "lead instrument": [v.lead == p.lead for v, p in both],
        "lead, by musicnn's tag": [v.tag == p.lead for v, p in both if p.lead in BY_TAG],
        "drums or none": [v.drums == p.drums for v, p in both],
    }


OF_CEILING = {"tempo": 0.75, "tempo, or half or double": 0.75, "the same, with drums": 0.75, "key": 0.6,
              "mode": 0.85, "lead instrument": 0.7, "drums or none": 0.95}  # fmt: skip


def of_ceiling(cells: dict[str, Score], share: float) -> dict[str, Any]:
    """Goal of a row that wants a share of the ceiling."""
    reached = cells[GUIDED][0] / cells[CEILING][0] if cells[CEILING][0] else math.nan
    return {"goal": f"{share:.0%} of ceiling", "reached": f"{reached:.0%}", "met": reached >= share}


def others(things: Sequence) -> list:
    """Each one's neighbour: for controls."""
    return [*things[1:], things[0]]


# -- the tables ----------------------------------------------------------------------------------------------------

Heard = dict[str, list[Finding]]  # by way


def text_rows(heard: Heard, pieces: list[Piece], court: Court) -> list[Row]:
    """Whether what the text names is in the music; and the same for words that were held out of training."""
    verdicts = {way: court(heard[way]) for way in ("renders", "codec", "guided", "mild", "free", "unseen")}
    columns = {CEILING: "renders", CODEC: "codec", GUIDED: "guided", MILD: "mild", FREE: "free"}
    judged = {column: right(verdicts[way], pieces) for column, way in columns.items()}
    judged[SHUFFLED] = right(verdicts["guided"], others(pieces))
    turns = [right(verdicts["renders"], pieces[k:] + pieces[:k]) for k in range(1, len(pieces))]
    unseen = right(verdicts["unseen"], pieces)
    rows, unseen_rows = [], []
    for name in judged[CEILING]:
        cells = {column: interval(hits[name]) for column, hits in judged.items()}
        cells[CHANCE] = float(np.mean([hit for turn in turns for hit in turn[name]])), math.nan, math.nan
        goal: dict[str, Any] = of_ceiling(cells, OF_CEILING[name]) if name in OF_CEILING else {}
        rows.append(Row("right in the music", name, cells, **goal))
        seen, new = judged[GUIDED][name], unseen[name]
        less = spread([int(a) - int(b) for a, b in zip(seen, new, strict=True)])
        cells = {"words it learned": interval(seen), "held-out words": interval(new), "lost": less}
        goal = {"goal": "at most 10 points lost", "reached": f"{100 * less[0]:.0f}", "met": less[0] <= 0.1}
        named = name in ("lead instrument", "drums or none")  # tempo and key have no held-out words
        unseen_rows.append(
            Row("held-out words for style, lead and drums", name, cells, **(goal if named else {}))
        )
    return rows + unseen_rows


def melody_rows(heard: Heard, pieces: list[Piece]) -> list[Row]:
    """Whether a given melody is in the music."""
    tunes = [one["tune"] for one in heard["renders"]]
    sheets = [np.array(next(track.notes for track in piece.tracks if track.is_melody)) for piece in pieces]
    columns = {CEILING: ("renders", tunes, sheets), CODEC: ("codec", tunes, sheets), GUIDED: ("sung", tunes, sheets),
               FREE: ("sung, free", tunes, sheets), "model, text alone": ("guided", tunes, sheets),
               OTHERS: ("sung", others(tunes), others(sheets))}  # fmt: skip
    agree, cosine, found = {}, {}, {}
    for column, (way, told, sheet) in columns.items():
        follows = [metrics.follows(one["chroma"], tune) for one, tune in zip(heard[way], told, strict=True)]
        agree[column], cosine[column] = (spread(values) for values in zip(*follows, strict=True))
        found[column] = spread(
            [metrics.note_f1(one["notes"], tune) for one, tune in zip(heard[way], sheet, strict=True)]
        )
    mine, another = agree[GUIDED][0], agree[OTHERS][0]
    goal: dict[str, Any] = {"goal": "≥ 0.6, and ≤ 0.2 for another's", "reached": f"{mine:.2f}, {another:.2f}",
            "met": mine >= 0.6 and another <= 0.2}  # fmt: skip
    return [
        Row("melody given", "cosine of the loudest pitch classes", agree, False, **goal),
        Row("melody given", "cosine of all with the melody's pitch class", cosine, False),
        Row("melody given", "F1 of notes, octaves aside", found, False),
    ]


def sound_rows(heard: Heard, count: int) -> list[Row]:
    """How far the sound is from that of other pieces which the same prompts describe."""
    columns = {CEILING: "renders", CODEC: "codec", GUIDED: "guided", FREE: "free", "model, text + melody": "sung",
               "another soundfont": "lessons"}  # fmt: skip
    embedding, levels = (
        {way: np.stack([one[part] for one in heard[way][:count]]) for way in (*columns.values(), "takes")}
        for part in ("embedding", "levels")
    )

    def apart(way: str, takes: np.ndarray) -> Score:
        return spread(np.abs(levels[way] - takes).mean(axis=(1, 2)).tolist())

    def between(a: np.ndarray, b: np.ndarray) -> float:  # [n, B, D]: left out are whole pieces
        return metrics.frechet(*(x.reshape(-1, x.shape[-1]) for x in (a, b)))

    frechet = {
        column: jackknife(between, embedding[way], embedding["takes"]) for column, way in columns.items()
    }
    mel = {column: apart(way, levels["takes"]) for column, way in columns.items()}
    mel[SHUFFLED] = apart("guided", np.roll(levels["takes"], 1, axis=0))
    mel[CHANCE] = apart("renders", np.roll(levels["takes"], 1, axis=0))
    rows = []
    for name, cells in (("Fréchet distance, musicnn", frechet), ("mel distance of levels, dB", mel)):
        times = cells[GUIDED][0] / max(cells[CODEC][0], 1e-9)
        goal: dict[str, Any] = {
            "goal": "≤ 1.5 × the codec's",
            "reached": f"{times:.2f} ×",
            "met": times <= 1.5,
        }
        rows.append(Row("distance from other pieces of the same prompts", name, cells, False, **goal))
    return rows


def continuation_rows(heard: Heard, pieces: list[Piece]) -> list[Row]:
    """Whether what follows a beginning keeps its key and tempo, which the prompt does not name, and does not click."""
    columns = {CEILING: "renders", CODEC: "codec", GUIDED: "continued", FREE: "continued, free"}

    def kept(way: str, told: list[Piece]) -> dict[str, list[bool]]:
        both = list(zip(heard[way], told, strict=True))
        return {
            "key kept": [_key(one["seam_key"]) == (p.key, p.mode) for one, p in both],
            "tempo kept, or half or double": [
                metrics.tempo_right(float(one["seam_tempo"]), p.tempo, octaves=True) for one, p in both
            ],
            "no click at the seam": [bool(one["smooth"]) for one, _ in both],
        }

    judged = {column: kept(way, pieces) for column, way in columns.items()}
    judged[SHUFFLED] = kept("continued", others(pieces))
    del judged[SHUFFLED]["no click at the seam"]
    rows = []
    for name in judged[CEILING]:
        cells = {column: interval(hits[name]) for column, hits in judged.items() if name in hits}
        rows.append(Row("continuation of 4 of 10 s", name, cells, **of_ceiling(cells, 0.8)))
    return rows


def codec_rows(heard: Heard, model: str) -> list[Row]:
    """What is left after the codec, of renders on both soundfonts and of real recordings."""
    pairs = {
        "renders": (heard["renders"], heard["codec"]),
        "another soundfont": (heard["lessons"], heard["lessons, codec"]),
        "recordings": _recordings(model),
    }
    rows: dict[str, dict[str, Score]] = {}
    for column, (before, after) in pairs.items():
        same = [metrics.same_chroma(a["chroma"], b["chroma"]) for a, b in zip(before, after, strict=True)]
        tempos = [(float(a["tempo"]), float(b["tempo"])) for a, b in zip(before, after, strict=True)]
        found = {"SI-SDR, dB": spread([float(one["si_sdr"]) for one in after]),
                 "mel distance, dB": spread([float(one["mel"]) for one in after]),
                 "cosine of pitch classes, before and after": spread(same),
                 "tempo kept": interval([metrics.tempo_right(b, a, octaves=False) for a, b in tempos])}  # fmt: skip
        for name, score in found.items():
            rows.setdefault(name, {})[f"{column}, n = {len(before)}"] = score
    least = min(score[0] for score in rows["cosine of pitch classes, before and after"].values())
    goal: dict[str, Any] = {"goal": "≥ 0.9 on each", "reached": f"{least:.2f}", "met": least >= 0.9}
    return [
        Row("codec, there and back", name, cells, name == "tempo kept", **(goal if "cosine" in name else {}))
        for name, cells in rows.items()
    ]


def _recordings(name: str) -> tuple[list[Finding], list[Finding]]:
    """What is heard in the recordings of the repository, before and after the codec."""
    model, before, after = protocol.load(name), [], []
    for path in sorted(RECORDINGS.glob("*.flac")):
        wave, rate = audio.read(path)
        wave = audio.resample(audio.to_channels(wave, 1), rate, model.sample_rate)[
            0, : 10 * model.sample_rate
        ]
        take = protocol.Take(wave.numpy(), model.sample_rate, wave.numpy(), wave.numpy(), 0.0)
        back = take._replace(wave=protocol.round_trip(model, wave.numpy()[None])[0])
        before.append(protocol.listen(take, ("tempo", "chroma")))
        after.append(protocol.listen(back, ("tempo", "chroma", "distance")))
    return before, after


def size_and_speed_rows(name: str, text: str) -> list[Row]:
    """How large the model is and how fast."""
    model = protocol.load(name)
    model.set_generation_params(duration=10.0, cfg_coef=3.0)
    took = []
    for seed in range(3):
        began = time.perf_counter()
        model.generate([text], seed=seed)
        took.append(time.perf_counter() - began)
    fast = 10 / median(took), 10 / max(took), 10 / min(took)
    size = sum(file.stat().st_size for file in hub.find(name).iterdir()) / 1e6
    threads = f"ten seconds, guidance 3, {torch.get_num_threads()} CPU threads: × real time"
    table = "size and speed"
    return [
        Row(table, threads, {"model": fast}, False, "≥ 5", f"{fast[0]:.1f}", fast[0] >= 5),
        Row(table, "all of its folder, MB", {"model": (size, math.nan, math.nan)}, False, "≤ 40", f"{size:.0f}", size <= 40),
    ]  # fmt: skip


# -- as Markdown ---------------------------------------------------------------------------------------------------


def cell(score: Score | None, share: bool) -> str:
    """A score as text.

    >>> cell((0.5, 0.4, 0.6), True), cell((2.0, math.nan, math.nan), False), cell(None, True)
    ('50% (40–60)', '2.00', '')
    """
    if score is None or math.isnan(score[0]):
        return ""
    value, low, high = (100 * x for x in score) if share else score
    form = "{:.0f}" if share else "{:.2f}"
    between = "–" if low >= 0 else " to "
    ends = "" if math.isnan(low) else f" ({form}{between}{form})".format(low, high)
    return form.format(value) + "%" * share + ends


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """The rows as Markdown, a table for each group; with `columns` only these, as one table."""
    groups = {None: rows} if columns else {name: [row for row in rows if row.table == name] for name in dict.fromkeys(row.table for row in rows)}  # fmt: skip
    lines = []
    for title, some in groups.items():
        heads = columns or list(dict.fromkeys(column for row in some for column in row.cells))
        lines += ["", f"| {title or 'measured'} | {' | '.join(heads)} | goal | reached |", "|---" * (len(heads) + 3) + "|"]  # fmt: skip
        for row in some:
            met = {True: f"{row.reached}: met", False: f"{row.reached}: not met", None: row.reached}[row.met]
            cells = [cell(row.cells.get(head), row.share) for head in heads]
            lines.append(f"| {' | '.join([row.name, *cells, row.goal, met])} |")
    return "\n".join(lines[1:])


def short(rows: Sequence[Row]) -> str:
    """The rows that have a goal and a model, in one table."""
    some = [row for row in rows if row.goal and GUIDED in row.cells]
    heads = [CEILING, CODEC, GUIDED, MILD, FREE, SHUFFLED, CHANCE]
    names = {head for row in some for head in row.cells}
    return table(some, [head for head in heads if head in names])


def with_table(card: str, scores: str) -> str:
    """A model card with `scores` between its two marks, where it has them.

    >>> with_table("a <!-- scores -->old<!-- end of scores --> b", "new").split()
    ['a', '<!--', 'scores', '-->', 'new', '<!--', 'end', 'of', 'scores', '-->', 'b']
    """
    first, mark, rest = card.partition("<!-- scores -->")
    _, end, last = rest.partition("<!-- end of scores -->")
    return f"{first}{mark}\n{scores}\n{end}{last}" if mark and end else card


# -- measuring -----------------------------------------------------------------------------------------------------


def measure(model: str, out: Path, count: int, seconds: float = 10.0) -> list[Row]:
    """All rows, from `count` held-out prompts; parts of the work are kept in `out`/parts.

    Errors: RuntimeError, FileNotFoundError or ImportError, with what to install, where a judge or a soundfont is absent.
    """
    musicnn.musicnn(), basic_pitch.network(), find_soundfont(), find_soundfont(MEASURING_FONT)
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {way: count * (LESSONS if how.first == protocol.LESSONS else 1) for way, how in WAYS.items()}
    parts = [
        Part(folder, model, way, start, min(PART, size - start), seconds)
        for way, size in sizes.items()
        for start in range(0, size, PART)
    ]
    work = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=_start_worker)
    with work as pool, tqdm(total=len(parts), unit="part") as bar:
        for part, _ in zip(parts, pool.map(Part.hear, parts), strict=True):
            bar.set_description(part.way)
            bar.update()
    heard: Heard = {way: [] for way in WAYS}
    for part in parts:
        heard[part.way] += part.findings()
    pieces = [protocol.piece_of(WAYS["renders"], i, seconds) for i in range(count)]
    learned = [protocol.piece_of(WAYS["lessons"], i, seconds) for i in range(count * LESSONS)]
    court = Court(heard["lessons"] + heard["lessons, codec"], learned * 2)
    return [
        *text_rows(heard, pieces, court), *melody_rows(heard, pieces), *sound_rows(heard, count),
        *continuation_rows(heard, pieces), *codec_rows(heard, model),
        *size_and_speed_rows(model, protocol.prompt(pieces[0])),
    ]  # fmt: skip


def _start_worker() -> None:
    """One thread each: two that share every operation wait for each other after each. Ctrl-C is for the process that
    waits; the parts that are being heard are finished and kept."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train measure`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit train measure", description="Scores a model.")
    parser.add_argument("model", nargs="?", default="nano", help="name or folder of the model")
    parser.add_argument("--count", type=int, default=ENOUGH, help=f"held-out prompts; from {ENOUGH} on, the scores enter the model's card")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=10.0, help="of each; shorter only to try things out")
    parser.add_argument(
        "--out", default="runs/measure", help="folder for scores.md, scores.json and parts of the work"
    )
    args = parser.parse_args(argv)
    if args.count < 2 or not 8 <= args.seconds <= 10:
        raise ValueError(
            "at least 2 prompts and 8 to 10 seconds are needed: half of it must be enough to hear a tempo"
        )
    out = Path(args.out)
    rows = measure(args.model, out, args.count, args.seconds)
    said = f"{args.count} held-out prompts of {args.seconds:g} s, seeds 0, 1, 2, …; 95 % intervals in brackets.\n\n"
    audio.replace_file(out / "scores.json", lambda path: path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n"))  # fmt: skip
    audio.replace_file(out / "scores.md", lambda path: path.write_text(said + table(rows) + "\n"))
    if args.count >= ENOUGH and args.seconds == 10:
        folder = hub.find(args.model)
        cards = {folder / "README.md": table(rows)}
        if folder.resolve() == hub.embedded().resolve():
            cards[hub.embedded().parents[1] / "README.md"] = short(rows)
        for card, scores in cards.items():
            if card.is_file():
                text = with_table(card.read_text(), said + scores)
                audio.replace_file(card, partial(Path.write_text, data=text))
    print(said + table(rows))


if __name__ == "__main__":
    main()

"""How well a model does what it is told, beside what could be reached at best and what chance would give.

    held-out pieces -> renders ------------------------------> judges   ceiling
                    -> renders -> codec -> back -------------> judges   what the codec leaves
                    -> prompts -> model, guidance 3 and 1 ---> judges   the model
                    -> prompts -> model, judged by the prompt of another piece: chance
                    -> prompts and melodies -> model --------> melody judge

The judges are librosa's tempo, a key profile, a small drum detector that learned on renders, and the chroma that
the model itself is given. None of them is perfect: that is what the ceiling shows.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mgkit import MusicGen, melody

from .band import Piece, compose, render
from .captions import FIRST_TEST_SEED, FIRST_VALID_SEED, synonyms
from .codec import mel_distances, si_sdr
from .run import write_whole

KEY_NAMES = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")
PROFILES = {  # how much each step of a key sounds (Temperley, The Cognition of Basic Musical Structures, 2001)
    "major": (5, 2, 3.5, 2, 4.5, 4, 2, 4.5, 2, 3.5, 1.5, 4),
    "minor": (5, 2, 3.5, 4.5, 2, 4, 2, 4.5, 3.5, 2, 1.5, 4),
}
NEAR = 0.08  # relative error of a tempo that still counts as right
BATCH = 12

Wave = np.ndarray  # [N] float32


def prompt(piece: Piece) -> str:
    """A prompt that names everything that is judged, in words of the training captions."""
    drums = synonyms("drums", piece.drums)[0]
    return f"{piece.style}, {piece.lead}, {piece.tempo} bpm, {KEY_NAMES[piece.key]} {piece.mode}, {drums}"


# -- judges --------------------------------------------------------------------------------------------------------


def tempo(wave: Wave, rate: int) -> float:
    """Beats a minute, as librosa hears them."""
    import librosa

    return float(np.squeeze(librosa.beat.beat_track(y=wave, sr=rate)[0]))


def tempo_right(heard: float, named: float, octaves: bool) -> bool:
    """Whether the tempo is within NEAR of the named one; with `octaves` of its half or double too.

    >>> tempo_right(121, 60, octaves=False), tempo_right(121, 60, octaves=True)
    (False, True)
    """
    return any(abs(heard / (named * factor) - 1) <= NEAR for factor in ((0.5, 1, 2) if octaves else (1,)))


def key(wave: Wave, rate: int) -> tuple[int, str]:
    """Tonic and mode whose profile fits the pitch classes best, drums left out."""
    import librosa

    harmonic, _ = librosa.decompose.hpss(np.abs(librosa.stft(wave, n_fft=8192, hop_length=2048)))
    heard = librosa.feature.chroma_stft(S=harmonic**2, sr=rate, n_fft=8192, tuning=0, norm=None).mean(axis=1)
    fits = {
        (tonic, mode): float(np.corrcoef(heard, np.roll(profile, tonic))[0, 1])
        for mode, profile in PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=lambda candidate: fits[candidate])


def drum_features(wave: Wave, rate: int) -> list[float]:
    """What tells drums: how percussive the sound is, and how its onsets stand out, in three bands."""
    import librosa

    power = np.abs(librosa.stft(wave, n_fft=1024, hop_length=256)) + 1e-6
    harmonic, percussive = librosa.decompose.hpss(power)
    rows = [float(np.log((percussive**2).sum() / (harmonic**2).sum()))]
    edges = [int(hertz * 1024 / rate) for hertz in (0, 200, 3000, rate / 2)]
    for low, high in zip(edges, edges[1:], strict=False):
        part = np.log(power[low:high].mean(axis=0))
        rise = np.maximum(np.diff(part), 0)
        rows += [float(part.mean()), float(rise.mean()), float(np.quantile(rise, 0.97))]
    rows.append(float(np.log(librosa.feature.spectral_flatness(S=power)).mean()))
    return rows


def drum_judge(pieces: Sequence[Piece], takes: Sequence[Sequence[Wave]], rate: int) -> Callable[[Wave], bool]:
    """A detector of drums that learned on `takes` of the pieces, such as renders and what the codec makes of them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with ThreadPoolExecutor() as pool:
        features = list(
            pool.map(lambda wave: drum_features(wave, rate), [w for waves in takes for w in waves])
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000))
    model.fit(features, [piece.drums for piece in pieces] * len(takes))
    return lambda wave: bool(model.predict([drum_features(wave, rate)])[0])


def follows(wave: Wave, tune: Wave, rate: int) -> tuple[float, float]:
    """How the sound follows a tune, over the frames in which it sounds: share of frames whose loudest pitch class is
    the tune's, and mean cosine of the pitch classes with it."""
    heard, told = (melody.chroma(torch.from_numpy(w)[None], rate) for w in (wave, tune))
    frames = min(heard.shape[1], told.shape[1])
    heard, told = heard[:, :frames], told[:, :frames]
    sounding = told.max(dim=0).values > 0.5
    note = told.argmax(dim=0)
    cosine = heard.gather(0, note[None])[0] / heard.norm(dim=0).clamp(min=1e-6)
    same = (heard.argmax(dim=0) == note).float()
    return float(same[sounding].mean()), float(cosine[sounding].mean())


class Heard(NamedTuple):
    """What the judges hear in a wave."""

    tempo: float
    key: tuple[int, str]
    drums: bool


def hear(waves: Sequence[Wave], rate: int, drums: Callable[[Wave], bool]) -> list[Heard]:
    """What the judges hear in each wave."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda wave: Heard(tempo(wave, rate), key(wave, rate), drums(wave)), waves))


def right(heard: Sequence[Heard], pieces: Sequence[Piece]) -> dict[str, list[bool]]:
    """Where that is what the piece is."""
    both = list(zip(heard, pieces, strict=True))
    return {
        "tempo": [tempo_right(h.tempo, p.tempo, octaves=False) for h, p in both],
        "tempo or its octave": [tempo_right(h.tempo, p.tempo, octaves=True) for h, p in both],
        "key": [h.key == (p.key, p.mode) for h, p in both],
        "mode": [h.key[1] == p.mode for h, p in both],
        "drums or none": [h.drums == p.drums for h, p in both],
    }


# -- numbers -------------------------------------------------------------------------------------------------------


def interval(hits: Sequence[bool]) -> tuple[float, float, float]:
    """Share, and the ends of its 95 % interval (Wilson).

    >>> [round(x, 2) for x in interval([True] * 8 + [False] * 2)]
    [0.8, 0.49, 0.94]
    """
    n, share, z = len(hits), float(np.mean(hits)), 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return share, max(0.0, centre - half), min(1.0, centre + half)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval."""
    mean, half = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def table(scores: dict) -> str:
    """The scores as Markdown."""
    columns = list(scores["told"])
    lines = [f"n = {scores['n']} held-out prompts, 10 s each; 95 % intervals in brackets.", ""]
    lines += ["| right in the music | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in scores["told"][columns[0]]:
        cells = ["{:.0%} ({:.0%}–{:.0%})".format(*scores["told"][column][name]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    columns = list(scores["melody"])
    lines += ["", "| melody | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in scores["melody"][columns[0]]:
        cells = ["{:.2f} ({:.2f}–{:.2f})".format(*scores["melody"][column][name]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| codec, round trip of the renders | |", "|---|---|"]
    lines += [
        "| {} | {:.2f} ({:.2f}–{:.2f}) |".format(name, *value) for name, value in scores["codec"].items()
    ]
    lines += [
        "",
        f"Speed: {scores['speed']:.1f} × real time (10 s, one sample, guidance 3, {scores['threads']} CPU threads).",
    ]
    return "\n".join(lines)


def with_table(card: str, scores: str) -> str:
    """A model card with `scores` between its two marks, where it has them.

    >>> with_table("a <!-- scores -->old<!-- end of scores --> b", "new").split()
    ['a', '<!--', 'scores', '-->', 'new', '<!--', 'end', 'of', 'scores', '-->', 'b']
    """
    first, mark, rest = card.partition("<!-- scores -->")
    _, end, last = rest.partition("<!-- end of scores -->")
    return f"{first}{mark}\n{scores}\n{end}{last}" if mark and end else card


# -- measuring -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def round_trip(model: MusicGen, waves: Sequence[Wave]) -> list[Wave]:
    """The waves after the codec, as long as they were."""
    heard = []
    for at in range(0, len(waves), BATCH):
        batch = torch.from_numpy(np.stack(waves[at : at + BATCH]))[:, None]
        back = model.codec.decode(model.codec.encode(batch))
        heard += list(back[:, 0, : batch.shape[-1]].numpy())
    return heard


def play(
    model: MusicGen, texts: Sequence[str], guidance: float, tunes: Sequence[Wave] | None = None
) -> list[Wave]:
    """What the model makes of the prompts, and of the tunes where there are some; seeds 0, 1, 2, …"""
    model.set_generation_params(duration=10.0, cfg_coef=guidance)
    heard: list[Wave] = []
    for at in tqdm(range(0, len(texts), BATCH), desc=f"guidance {guidance:g}{', melody' if tunes else ''}"):
        part = list(texts[at : at + BATCH])
        if tunes is None:
            wave = model.generate(part, seed=at)
        else:
            given = [torch.from_numpy(tune)[None] for tune in tunes[at : at + BATCH]]
            wave = model.generate_with_chroma(part, given, model.sample_rate, seed=at)
        assert isinstance(wave, Tensor)
        heard += list(wave[:, 0].numpy())
    return heard


def measure(model: MusicGen, count: int = 60) -> dict:
    """All the scores, each as (value, low, high), from `count` held-out pieces."""
    rate = model.sample_rate
    pieces = [compose(FIRST_TEST_SEED + i) for i in range(count)]
    mixes, tunes = zip(*(render(piece) for piece in tqdm(pieces, desc="renders")), strict=True)
    texts = [prompt(piece) for piece in pieces]

    learned = [compose(FIRST_VALID_SEED + 5000 + i) for i in range(count)]
    takes = [render(piece)[0] for piece in tqdm(learned, desc="renders for the drum judge")]
    drums = drum_judge(learned, [takes, round_trip(model, takes)], rate)

    back = round_trip(model, mixes)
    guided, free = play(model, texts, 3.0), play(model, texts, 1.0)
    heard = [hear(waves, rate, drums) for waves in (mixes, back, guided, free)]
    other = pieces[1:] + pieces[:1]
    told = {
        "renders (ceiling)": right(heard[0], pieces),
        "codec round trip": right(heard[1], pieces),
        "model, guidance 3": right(heard[2], pieces),
        "model, guidance 1": right(heard[3], pieces),
        "another's prompt (chance)": right(heard[2], other),
    }

    sung = play(model, texts, 3.0, tunes)
    hum = play(model, [""] * count, 3.0, tunes)
    others = tunes[1:] + tunes[:1]
    pairs = {
        "renders (ceiling)": zip(mixes, tunes, strict=True),
        "codec round trip": zip(back, tunes, strict=True),
        "model, text + melody": zip(sung, tunes, strict=True),
        "model, melody alone": zip(hum, tunes, strict=True),
        "another's melody (chance)": zip(sung, others, strict=True),
    }
    sounds = {column: [follows(wave, tune, rate) for wave, tune in some] for column, some in pairs.items()}

    original, copy = (torch.from_numpy(np.stack(waves)) for waves in (mixes, back))
    distances = [float(mel_distances(a, b, rate)[0]) for a, b in zip(original, copy, strict=True)]
    kept = [chroma_kept(a, b, rate) for a, b in zip(original, copy, strict=True)]
    model.set_generation_params(duration=10.0)
    began = time.perf_counter()
    model.generate(texts[:1], seed=0)
    return {
        "n": count,
        "told": {
            column: {name: interval(hits) for name, hits in judged.items()} for column, judged in told.items()
        },
        "melody": {
            column: {
                "pitch class agrees, share of frames": spread([agree for agree, _ in both]),
                "cosine with the melody's pitch class": spread([cosine for _, cosine in both]),
            }
            for column, both in sounds.items()
        },
        "codec": {
            "mel distance, dB": spread(distances),
            "SI-SDR, dB": spread(si_sdr(original, copy).tolist()),
            "cosine of the chroma before and after": spread(kept),
        },
        "speed": 10.0 / (time.perf_counter() - began),
        "threads": torch.get_num_threads(),
    }


def chroma_kept(a: Tensor, b: Tensor, rate: int) -> float:
    """Mean cosine of the pitch classes of two waves [N], frame by frame."""
    return float(torch.cosine_similarity(*(melody.chroma(w[None], rate) for w in (a, b)), dim=0).mean())


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train measure`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit train measure", description="Scores a model.")
    parser.add_argument(
        "model", nargs="?", default="nano", help="name or folder of the model; a folder's README is updated"
    )
    parser.add_argument("--count", type=int, default=60, help="held-out prompts")
    parser.add_argument("--out", default="runs/measure", help="folder for scores.json and scores.md")
    args = parser.parse_args(argv)
    scores = measure(MusicGen.get_pretrained(args.model, device="cpu"), args.count)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "scores.json", lambda path: path.write_text(json.dumps(scores, indent=1) + "\n"))
    write_whole(out / "scores.md", lambda path: path.write_text(table(scores) + "\n"))
    card = Path(args.model) / "README.md"
    if card.is_file():
        write_whole(card, lambda path: path.write_text(with_table(card.read_text(), table(scores))))
    print(table(scores))


if __name__ == "__main__":
    main()

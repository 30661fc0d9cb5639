"""Metrics of a folder of anyone's recordings: each file, the whole set, and its distance to a reference.

    folder    -> each file: length, tempo, key, loudness, chroma, embeddings
    reference -> Fréchet distance and KAD; files of the same name: cosine of chroma, same key, same tempo
    prompts   -> text adherence: cosine of the CLAP embeddings of a prompt and its recording
    training  -> the most similar training recording of each file, to see what may be memorized

Every estimator makes errors (see `metrics`); values become meaningful beside those of other sets.
"""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from mgkit import audio
from mgkit.evals import distances, embeddings, metrics
from mgkit.evals.estimates import Estimate, mean, proportion
from mgkit.evals.labelled import NOTES
from mgkit.evals.shards import start_worker
from mgkit.train.captions import abbreviate, name_in, read_table, visible

RATE = 32000  # Hz, at which properties are estimated
# Starting processes takes longer than to analyse fewer files than this.
FEW_FILES = 16
FRECHET = "Fréchet distance"


@dataclass(frozen=True)
class Analysis:
    """Properties of one file, and its embeddings [B, D] by the name of the network."""

    seconds: float
    tempo: float  # beats per minute
    key: str  # "" for silence
    loudness: float  # LUFS, -inf for silence
    chroma: np.ndarray  # [12, F]
    embeddings: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Measure:
    """A metric of the whole set: its estimate, what it was computed from, and the embedding it depends on."""

    name: str
    estimate: Estimate
    basis: str
    embedding: str = ""

    def record(self) -> dict[str, str | float | None]:
        """All values for JSON; None for bounds that there are not."""
        bounds = {
            name: value if math.isfinite(value) else None for name, value in self.estimate._asdict().items()
        }
        return {"measure": self.name, **bounds, "embedding": self.embedding, "basis": self.basis}


@dataclass(frozen=True)
class Measured:
    """A row of values for each file, and the measures of the set."""

    files: list[dict[str, object]]
    measures: list[Measure]

    def write(self, out: Path) -> None:
        """Write recordings.csv, measures.json and measures.md into the folder `out`."""
        out.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(name for row in self.files for name in row))
        table = StringIO(newline="")
        writer = csv.DictWriter(table, names)
        writer.writeheader()
        writer.writerows(self.files)
        records = json.dumps([measure.record() for measure in self.measures], indent=1) + "\n"
        for name, text in (
            ("recordings.csv", table.getvalue()),
            ("measures.json", records),
            ("measures.md", self.table() + "\n"),
        ):
            write = partial(Path.write_text, data=text, encoding="utf-8", newline="")
            audio.replace_file(out / name, write)

    def table(self) -> str:
        """The measures as Markdown, with 95 % confidence intervals."""
        lines = ["| measure | value (95 % interval) | embedding | of |", "|---|---|---|---|"]
        for measure in self.measures:
            value, low, high = measure.estimate
            interval = "" if math.isnan(low) else f" ({low:.3g} to {high:.3g})"
            lines.append(
                f"| {measure.name} | {value:.3g}{interval} | {measure.embedding} | {measure.basis} |"
            )
        if any(measure.name == FRECHET for measure in self.measures):
            lines += ["", "The Fréchet distance is biased upwards: compare only values from as many windows."]
        return "\n".join(lines)


# -- files -------------------------------------------------------------------------------------------------


def find(folder: Path) -> dict[str, Path]:
    """Audio files in a folder and its subfolders, by name.

    Raises: FileNotFoundError without a folder; ValueError for one without audio files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    paths = sorted(path for path in folder.rglob("*") if visible(path, folder))
    files = {name_in(path, folder): path for path in paths if path.suffix.lower() in audio.FORMATS}
    if not files:
        raise ValueError(f"{folder} has no audio files: put {', '.join(audio.FORMATS)} files into it")
    return files


def analyse(path: Path, networks: Sequence[str]) -> Analysis:
    """Properties of a file, and its embeddings by `networks`.

    Raises: ValueError, naming the file, if it is not audio or too short for a network.
    """
    wave, rate = audio.read(path)
    wave = audio.as_wave(wave, str(path), channels=audio.CHANNELS)
    loudness = audio.loudness(wave, rate)
    mono = audio.resample(audio.to_channels(wave, 1), rate, RATE)[0].numpy()
    try:
        tonic, mode = metrics.key(mono, RATE) if mono.any() else (0, "")
        return Analysis(
            len(mono) / RATE,
            metrics.tempo(mono, RATE),
            f"{NOTES[tonic]} {mode}" if mode else "",
            loudness,
            metrics.chroma(mono, RATE),
            {name: _load(name)(mono, RATE) for name in networks},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}; remove it from the folder") from None


@lru_cache(maxsize=4)
def _load(name: str) -> embeddings.Embedding:
    """An embedding, loaded once per process."""
    return embeddings.load(name)


def _analyse_all(files: Mapping[str, Path], networks: Sequence[str], title: str) -> dict[str, Analysis]:
    work = partial(analyse, networks=tuple(networks))
    bar = partial(tqdm, total=len(files), desc=title, unit="file")
    if len(files) < FEW_FILES:
        return dict(zip(files, bar(map(work, files.values())), strict=True))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker) as pool:
        return dict(zip(files, bar(pool.map(work, files.values())), strict=True))


# -- measures ----------------------------------------------------------------------------------------------


def measure(
    folder: str | Path,
    reference: str | Path | None = None,
    prompts: str | Path | None = None,
    training: str | Path | None = None,
    networks: Sequence[str] = ("musicnn",),
) -> Measured:
    """Metrics of the recordings in `folder`, with 95 % confidence intervals over recordings.

    `networks` are embeddings: "musicnn", or CLAP checkpoints of transformers (folders or hub ids). `prompts`
    is a table with the columns file and caption; without one, prompts are those in the manifests of files
    that mgkit wrote. `reference` and `training` are folders of recordings.

    Raises: FileNotFoundError for a missing folder or file; ValueError for a file that cannot be read, a table
    that names other files, prompts without a CLAP checkpoint, and as `embeddings.load`.
    """
    folders = {"recordings": folder, "reference": reference, "training": training}
    files = {title: find(Path(path)) for title, path in folders.items() if path is not None}
    claps = [name for name in networks if name != "musicnn"]
    if prompts is not None and not claps:
        raise ValueError(
            "text adherence is measured with CLAP: name a checkpoint, as in "
            "--embedding musicnn laion/larger_clap_music"
        )
    texts = _prompts(files["recordings"], prompts) if claps else {}
    for name in networks:
        _load(name)
    found = {title: _analyse_all(some, networks, title) for title, some in files.items()}
    recordings = found["recordings"]
    rows: dict[str, dict[str, object]] = {
        name: {"file": name} | _row(recordings[name]) for name in recordings
    }
    measures = _of_the_set(recordings)
    if "reference" in found:
        measures += _against_reference(recordings, found["reference"], networks, rows)
    for name in claps:
        measures += _text_adherence(recordings, texts, name, rows)
    if "training" in found:
        measures += _nearest_training(recordings, found["training"], networks[0], rows)
    return Measured(list(rows.values()), measures)


def _row(analysis: Analysis) -> dict[str, object]:
    """The values of a file for the table."""
    return {
        "seconds": round(analysis.seconds, 3),
        "tempo": round(analysis.tempo, 1),
        "key": analysis.key,
        "loudness": round(analysis.loudness, 2),
    }


def _of_the_set(recordings: Mapping[str, Analysis]) -> list[Measure]:
    basis = f"{len(recordings)} recordings"
    some = list(recordings.values())
    keys = [each.key for each in some if each.key]
    # silence has no loudness
    loud = [each.loudness if math.isfinite(each.loudness) else math.nan for each in some]
    return [
        Measure("length, s", mean([each.seconds for each in some]), basis),
        Measure("tempo, bpm", mean([each.tempo or math.nan for each in some]), basis),
        Measure("share in major", proportion([key.endswith("major") for key in keys]), basis),
        Measure("loudness, LUFS", mean(loud), basis),
    ]


def _against_reference(
    recordings: Mapping[str, Analysis],
    reference: Mapping[str, Analysis],
    networks: Sequence[str],
    rows: Mapping[str, dict[str, object]],
) -> list[Measure]:
    """Distances of the sets, and comparisons of files with the same name, whatever their formats."""
    measures = []
    for name in networks:
        own, others = (
            [each.embeddings[name] for each in every.values()] for every in (recordings, reference)
        )
        basis = (
            f"{len(own)} recordings ({sum(map(len, own))} windows), {len(others)} in the reference "
            f"({sum(map(len, others))} windows), {own[0].shape[1]} features"
        )
        label = _load(name).name
        measures += [
            Measure(FRECHET, distances.frechet(own, others), basis, label),
            Measure("KAD (100 × MMD²)", distances.kernel_distance(own, others), basis, label),
        ]
    partners = {str(Path(name).with_suffix("")): name for name in reference}
    pairs = {
        name: partners[stem] for name in recordings if (stem := str(Path(name).with_suffix(""))) in partners
    }
    if not pairs:
        return measures
    cosines, keys, tempos = [], [], []
    for name, partner in pairs.items():
        one, other = recordings[name], reference[partner]
        frames = min(one.chroma.shape[1], other.chroma.shape[1])
        cosines.append(metrics.chroma_cosine(one.chroma[:, :frames], other.chroma[:, :frames]))
        keys.append(one.key == other.key)
        tempos.append(metrics.tempo_matches(one.tempo, other.tempo, octaves=True))
        rows[name] |= {
            "reference": partner,
            "chroma cosine": round(cosines[-1], 4),
            "same key": keys[-1],
            "same tempo": tempos[-1],
        }
    basis = f"{len(pairs)} pairs of recordings with the same name"
    return [
        *measures,
        Measure("cosine similarity of chroma", mean(cosines), basis),
        Measure("same key", proportion(keys), basis),
        Measure("same tempo, octave errors allowed", proportion(tempos), basis),
    ]


def _text_adherence(
    recordings: Mapping[str, Analysis],
    texts: Mapping[str, str],
    name: str,
    rows: Mapping[str, dict[str, object]],
) -> list[Measure]:
    """Cosine of each recording with its prompt and, as a control, with the next recording's."""
    if not texts:
        return []
    network = _load(name)
    assert isinstance(network, embeddings.ClapEmbedding)
    clips = np.stack([recordings[file].embeddings[name].mean(axis=0) for file in texts])
    clips /= np.linalg.norm(clips, axis=1, keepdims=True)
    words = network.texts(list(texts.values()))
    own, others = ((clips * rows).sum(axis=1).tolist() for rows in (words, np.roll(words, 1, axis=0)))
    for (file, text), value in zip(texts.items(), own, strict=True):
        rows[file] |= {"prompt": text, f"text adherence, {network.name}": round(value, 4)}
    basis = f"{len(texts)} recordings with prompts"
    measures = [Measure("text adherence (cosine)", mean(own), basis, network.name)]
    if len(set(texts.values())) > 1:
        measures.append(Measure("text adherence, shuffled prompts", mean(others), basis, network.name))
    return measures


def _nearest_training(
    recordings: Mapping[str, Analysis],
    training: Mapping[str, Analysis],
    name: str,
    rows: Mapping[str, dict[str, object]],
) -> list[Measure]:
    """Similarity of recordings to the nearest training recording; as a control, that of a training one."""
    some, others = ([each.embeddings[name] for each in every.values()] for every in (recordings, training))
    names = list(training)
    near = distances.nearest(some, others)
    for file, (index, similarity) in zip(recordings, near, strict=True):
        rows[file] |= {"nearest training recording": names[index], "similarity": round(similarity, 4)}
    label, basis = _load(name).name, f"{len(recordings)} and {len(training)} recordings"
    title = "cosine similarity to the nearest training recording"
    measures = [Measure(title, mean([similarity for _, similarity in near]), basis, label)]
    if len(training) > 1:
        among = distances.nearest(others, others, itself=True)
        own = mean([similarity for _, similarity in among])
        measures.append(Measure(f"{title}, of a training recording", own, basis, label))
    return measures


def _prompts(files: Mapping[str, Path], table: str | Path | None) -> dict[str, str]:
    """The prompt of each file that has one: from a table, or from the manifests that mgkit wrote."""
    if table is not None:
        if not Path(table).is_file():
            raise FileNotFoundError(
                f"there is no file {str(table)!r}; give a table with the columns file,caption"
            )
        texts = read_table(Path(table))
        if missing := [name for name in texts if name not in files]:
            raise ValueError(
                f"{table} names files that are not among the recordings: {abbreviate(missing)}; give names "
                "within the folder"
            )
        return {name: texts[name] for name in files if name in texts}
    texts = {}
    for name, path in files.items():
        with suppress(ValueError, OSError):
            text = audio.read_manifest(path).get("text")
            if isinstance(text, str) and text:
                texts[name] = text
    return texts

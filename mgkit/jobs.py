"""Jobs in batches: a table of experiments into a folder of audio files, however often the run is interrupted.

Axes: B batch, C channels, K codebooks, T frames, N samples.

    jobs -> batches -> tokens [B, K, T] -> calm-piano-seed-1-3fa2b6c190de.wav, a file for each job
                                        -> results.csv, manifest.jsonl: a line for each file

A file's name has a digest of everything that determines its music, so a file that is there is not generated
again. A batch holds the same jobs in every run of a table, and each sample is decoded alone: a run that was
killed and resumed, or shared by several processes, leaves the same files.
"""

import csv
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from mgkit import __version__, audio, melody, midi
from mgkit.checkpoint import Model
from mgkit.files import check_output, replace_file
from mgkit.generate import Stop
from mgkit.manifest import fingerprint, manifests
from mgkit.perform import OnStep, decode_whole, request_frames
from mgkit.request import Request, no_melody, parse_melodies, parse_request
from mgkit.settings import Settings
from mgkit.table import SETTINGS, Job
from mgkit.threads import counted

LARGEST_BATCH = 32  # beyond it, a GPU gains little with a small model, and a CPU nothing
SHARE = 0.25  # of the memory, for the keys and values of a batch
RESULTS, MANIFESTS = "results.csv", "manifest.jsonl"


class Sample(NamedTuple):
    """What came of a job."""

    job: Job
    wave: Tensor  # [C, N], on the CPU
    rate: int
    codes: Tensor  # [K, T], on the CPU
    manifest: dict


# --- batches ----------------------------------------------------------------------------------------------


def settings_of(model: Model, job: Job) -> Settings:
    """The job's settings; the default duration is 15 s, or a window of the model if that is shorter."""
    return Settings(**({"duration": min(15.0, model.window)} | dict(job.settings)))


def batches(model: Model, jobs: Sequence[Job], size: int | None = None) -> list[list[Job]]:
    """The jobs in batches of at most `size`, by default as many as fit in memory, in the order of the table.

    A batch has one set of settings and, if its jobs continue audio, one audio prompt.
    """
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        settings, follows = settings_of(model, job), bool(job.melody or job.chords)
        if follows and model.conditioner.melody_frames is None:
            raise ValueError(f"{job.place + ': ' if job.place else ''}{no_melody(model)}")
        groups.setdefault((settings, follows, job.audio_prompt), []).append(job)
    parts = []
    for (settings, _, _), group in groups.items():
        most = size or batch_size(model, settings)
        parts += [group[i : i + most] for i in range(0, len(group), most)]
    return parts


def batch_size(model: Model, settings: Settings) -> int:
    """The largest batch whose keys and values take a quarter of the device's memory, at most 32."""
    config, streams = model.lm.config, 2 + (settings.cfg_coef_beta is not None)
    frames = min(round(settings.duration * model.frame_rate), model.window_frames)
    positions = frames + (model.conditioner.melody_frames or 0) + 64
    sample = 2 * streams * positions * config.layers * config.dim * model.lm.dtype.itemsize
    return max(1, min(LARGEST_BATCH, int(SHARE * _memory(model.lm.device)) // sample))


def _memory(device: torch.device) -> int:
    """Bytes of memory of a device, free or not, so that batches do not depend on the moment."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return counted(lambda: psutil.virtual_memory().total, 8 << 30)


def generate_batch(
    model: Model, batch: Sequence[Job], on_step: OnStep | None = None, stop: Stop | None = None
) -> list[Sample]:
    """The samples of a batch; none if `stop` was set before it was complete.

    A batch that does not fit in the memory is divided.

    Raises: ValueError for an invalid job, with its place in the table.
    """
    request = _request(model, batch)
    codes = [request.audio_prompt]
    try:
        codes += [frame[..., None] for frame in request_frames(model, request, on_step, stop)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        codes.clear()
        half = len(batch) // 2
        return [
            sample
            for part in (batch[:half], batch[half:])
            for sample in generate_batch(model, part, on_step, stop)
        ]
    tokens = torch.cat(codes, dim=-1)
    if tokens.shape[-1] < request.plans[0][-1].end:
        return []
    return [
        # Decoded alone: in a batch, the last bit of a sample may depend on the others.
        Sample(job, decode_whole(model, row[None])[0].cpu(), model.sample_rate, row.cpu(), manifest)
        for job, row, manifest in zip(batch, tokens, manifests(model, request, tokens), strict=True)
    ]


def _request(model: Model, batch: Sequence[Job]) -> Request:
    first, settings = batch[0], settings_of(model, batch[0])
    texts, seeds = [job.prompt for job in batch], [job.seed for job in batch]
    negative = [job.negative for job in batch]
    try:
        tunes = None
        if first.melody or first.chords:
            tunes = [_melody(model, job, settings) for job in batch]
        prompt = audio.read(first.audio_prompt) if first.audio_prompt else None
        return parse_request(model, settings, texts, seeds, negative, tunes, prompt)
    except ValueError as error:
        places = " and ".join(dict.fromkeys(job.place for job in batch if job.place))
        raise ValueError(f"{places}: {error}" if places else str(error)) from None


def _melody(model: Model, job: Job, settings: Settings) -> Tensor | None:
    if job.chords:
        # The last window starts before the end.
        seconds = settings.duration + model.window
        tune, rate = melody.chords(job.chords, job.bpm, job.beats, seconds, model.sample_rate), 0
    else:
        assert job.melody is not None
        tune, rate = midi.read_melody(job.melody, model.sample_rate)
    [parsed] = parse_melodies(model, 1, tune, rate, duration=settings.duration)
    return parsed


# --- a folder of files ------------------------------------------------------------------------------------


def run_table(
    model: Model,
    jobs: Sequence[Job],
    folder: str | os.PathLike,
    size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    strategy: audio.Strategy = "loudness",
    on_frame: OnStep | None = None,
    stop: Stop | None = None,
) -> list[Path]:
    """Generate the files of `jobs` that are missing in `folder`, and its tables; return all files there are.

    Of n processes, number i with `shard` (i, n) generates every n-th batch; each writes the tables of all
    files that are there. Equal jobs are generated once. `on_frame` is called after each step with the frames
    done and all frames; once `stop` is set, the current batch is dropped.

    Raises: ValueError for an invalid job; OSError if the folder cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output {str(folder)!r} is a file; choose a folder")
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: job for job, name in zip(jobs, file_names(model, jobs, strategy), strict=True)}
    paths = {job: folder / name for name, job in named.items()}
    index, count = shard
    own = batches(model, list(paths), size)[index::count]
    own = [batch for batch in own if not all(paths[job].exists() for job in batch)]
    frames = sum(count_frames(model, batch) for batch in own)
    check_output(folder / RESULTS, 2 * model.channels * frames * model.codec.config.hop)
    tables, progress = Tables(folder, named), Progress(on_frame, frames)
    for batch in own:
        if stop is not None and stop.is_set():
            break
        progress.size = count_frames(model, batch)
        for sample in generate_batch(model, batch, progress, stop):
            if not paths[sample.job].exists():
                audio.write(paths[sample.job], sample.wave, sample.rate, strategy, sample.manifest)
        progress.before += progress.size
        tables.refresh()
    tables.write()
    return tables.files


@dataclass
class Progress:
    """An `OnStep` for the steps of a batch, which counts the frames of all batches."""

    on_frame: OnStep | None
    total: int
    before: int = 0  # frames of the batches that are done
    size: int = 0  # frames of the current one

    def __call__(self, done: int, total: int) -> None:
        if self.on_frame:
            self.on_frame(self.before + self.size * done // total, self.total)


def count_frames(model: Model, batch: Sequence[Job]) -> int:
    """Frames of all samples of a batch."""
    return len(batch) * round(settings_of(model, batch[0]).duration * model.frame_rate)


def file_names(model: Model, jobs: Sequence[Job], strategy: str) -> list[str]:
    """The name of each job's file: its prompt, its seed, and a digest of all that determines the file."""
    weights, contents = [fingerprint(model), *map(asdict, model.adapters)], dict[Path, str]()
    names = []
    for job in jobs:
        for path in filter(None, (job.melody, job.audio_prompt)):
            if path not in contents:
                contents[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        parts = asdict(job) | {
            "settings": asdict(settings_of(model, job)),
            "melody": contents.get(job.melody) if job.melody else None,
            "audio_prompt": contents.get(job.audio_prompt) if job.audio_prompt else None,
            "place": None,
        }
        text = json.dumps([__version__, weights, strategy, parts], sort_keys=True)
        slug = re.sub("[^a-z0-9]+", "-", job.prompt.lower())[:40].strip("-") or "no-prompt"
        names.append(f"{slug}-seed-{job.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.wav")
    return names


class Tables:
    """`results.csv` and `manifest.jsonl` of a folder: a line for each file there is, in the jobs' order."""

    def __init__(self, folder: Path, jobs: Mapping[str, Job]):
        self.folder, self.jobs = folder, jobs
        self._manifests: dict[str, dict] = {}
        self._written, self._took = -math.inf, 0.0  # seconds: when, and how long

    @property
    def files(self) -> list[Path]:
        """The files that are there."""
        known = self._manifests
        return [self.folder / name for name in self.jobs if name in known or (self.folder / name).exists()]

    def refresh(self) -> None:
        """Write both, unless the tables of a long run would take more than a tenth of its time."""
        if time.monotonic() - self._written >= 9 * self._took:
            self.write()

    def write(self) -> None:
        """Write both, and again if another process has added files meanwhile."""
        started, files = time.monotonic(), None
        while files != self.files:
            files = self.files
            for path in files:
                if path.name not in self._manifests:
                    self._manifests[path.name] = audio.read_manifest(path)
            replace_file(self.folder / MANIFESTS, partial(self._write_manifests, files=files))
            replace_file(self.folder / RESULTS, partial(self._write_results, files=files))
        self._written = time.monotonic()
        self._took = self._written - started

    def _write_manifests(self, draft: Path, files: Sequence[Path]) -> None:
        lines = (json.dumps({"file": path.name} | self._manifests[path.name]) + "\n" for path in files)
        draft.write_text("".join(lines), encoding="utf-8")

    def _write_results(self, draft: Path, files: Sequence[Path]) -> None:
        with open(draft, "w", encoding="utf-8", newline="") as file:
            rows = list(self._rows(files))
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["file"])
            writer.writeheader()
            writer.writerows(rows)

    def _rows(self, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
        for path in files:
            job, manifest = self.jobs[path.name], self._manifests[path.name]
            made = {"frames": manifest["frames"], "tokens": manifest["tokens"]}
            yield {"file": path.name} | describe(job, manifest) | made


def describe(job: Job, manifest: dict) -> dict[str, Any]:
    """The columns of a job, all settings included, for a table of results."""
    columns = {name: value for name, value in vars(job).items() if name not in ("settings", "place")}
    if not job.chords:
        columns |= {"bpm": None, "beats": None}
    return columns | {name: manifest["settings"][name] for name in SETTINGS}

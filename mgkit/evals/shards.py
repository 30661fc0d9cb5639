"""Clips of the protocol in shards: generated, measured in parallel, and cached on disk.

Axes: B clips of a shard, N samples, K codebooks, T frames.

    prompts -> model -> tokens [B, K, T] -> codec -> waves [B, N] -> metrics -> measurements
                        CONDITION-START-KEY.npy                      CONDITION-START-KEY.npz

KEY is a digest of prompts, settings, weights and the code of `mgkit.band`; for measurements, of the metrics'
code as well. An interrupted run resumes, a larger run reuses the shards of a smaller one, and a change of
this code never leaves stale numbers. The code of the model is not in the key: its own tests ensure equal
tokens for equal weights and seeds.
"""

import ast
import hashlib
import json
import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mgkit import MusicGen, audio, hub
from mgkit.band.piece import Piece
from mgkit.band.synth import render
from mgkit.evals import protocol
from mgkit.evals.metrics import Wave
from mgkit.evals.protocol import CONDITIONS, Clip, EvalCondition, Measurement
from mgkit.train.tokens import digest

SHARD_SIZE = 8  # clips
AUDIO_PROMPT = 0.4  # share of a clip, in continuations
# Modules whose code determines the renders and prompts, and the metric values.
BAND_CODE = (
    "mgkit.band.captions",
    "mgkit.band.compose",
    "mgkit.band.parts",
    "mgkit.band.piece",
    "mgkit.band.styles",
    "mgkit.band.synth",
    "mgkit.band.tunes",
)
METRIC_CODE = (
    "mgkit.brief",
    "mgkit.chords",
    "mgkit.evals.basic_pitch",
    "mgkit.evals.metrics",
    "mgkit.evals.musicnn",
    "mgkit.evals.protocol",
    "mgkit.melody",
    "mgkit.spectra",
    "mgkit.train.codec",
)

Measurements = dict[str, list[Measurement]]
"""Measurements of every clip, by condition."""


@dataclass(frozen=True)
class Shard:
    """Consecutive clips of one condition."""

    folder: Path
    model: str  # name or folder
    name: str  # of the condition
    start: int
    size: int
    seconds: float

    @property
    def condition(self) -> EvalCondition:
        return CONDITIONS[self.name]

    @property
    def pieces(self) -> list[Piece]:
        return [
            protocol.compose_piece(self.condition, self.start + i, self.seconds) for i in range(self.size)
        ]

    @property
    def prompts(self) -> list[str]:
        return [protocol.prompt(piece, self.condition.wording) for piece in self.pieces]

    @property
    def seam(self) -> float:
        """Length of the audio prompt in seconds, rounded to whole frames of 20 ms."""
        return round(AUDIO_PROMPT * self.seconds * 50) / 50

    def renders(self) -> list[tuple[Wave, Wave]]:
        """(mix, melody track) [N] of each piece."""
        rate = load_model(self.model).sample_rate
        return [
            render(piece, seconds=self.seconds, rate=rate, soundfont=self.condition.soundfont)
            for piece in self.pieces
        ]

    def tokens(self, renders: list[tuple[Wave, Wave]] | None = None) -> np.ndarray:
        """Tokens int16 [B, K, T] generated with consecutive seeds, cached."""
        if not self._tokens_path.is_file():
            tokens = self._generate(self.renders() if renders is None else renders)
            audio.replace_file(self._tokens_path, lambda path: np.save(path, tokens))
        return np.load(self._tokens_path)

    def run(self) -> None:
        """Write the file of measurements, unless it exists."""
        if not self._measurements_path.is_file():
            arrays = {
                f"{i} {key}": value for i, clip in enumerate(self._measure()) for key, value in clip.items()
            }
            audio.replace_file(
                self._measurements_path,
                # numpy's stub takes `**arrays` for its keyword `allow_pickle`
                lambda path: np.savez_compressed(path, **arrays),  # type: ignore[arg-type]
            )

    def measurements(self) -> list[Measurement]:
        """The measurement of each clip, cached."""
        self.run()
        clips: list[Measurement] = [{} for _ in range(self.size)]
        with np.load(self._measurements_path) as file:
            for entry in file.files:
                index, _, key = entry.partition(" ")
                clips[int(index)][key] = file[entry]
        return clips

    def _measure(self) -> list[Measurement]:
        model, renders = load_model(self.model), self.renders()
        waves = np.stack([mix for mix, _ in renders])
        if self.condition.round_trip:
            waves = round_trip(model, waves)
        if self.condition.guidance is not None:
            tokens = torch.from_numpy(self.tokens(renders).astype(np.int64))
            waves = model.generate_audio(tokens)[:, 0].numpy()
        clips = [
            Clip(wave, model.sample_rate, mix, melody, self.seam)
            for wave, (mix, melody) in zip(waves, renders, strict=True)
        ]
        return [protocol.measure_clip(clip, self.condition.metrics) for clip in clips]

    def _generate(self, renders: list[tuple[Wave, Wave]]) -> np.ndarray:
        model, prompts, rate = load_model(self.model), self.prompts, load_model(self.model).sample_rate
        model.set_generation_params(duration=self.seconds, cfg_coef=self.condition.guidance or 1.0)
        if self.condition.melody:
            melodies = [torch.from_numpy(melody)[None] for _, melody in renders]
            result = model.generate_with_chroma(prompts, melodies, rate, return_tokens=True, seed=self.start)
        elif self.condition.continuation:
            starts = [torch.from_numpy(mix[: round(self.seam * rate)])[None] for mix, _ in renders]
            result = model.generate_continuation(starts, rate, prompts, return_tokens=True, seed=self.start)
        else:
            result = model.generate(prompts, return_tokens=True, seed=self.start)
        return result[1].to(torch.int16).numpy()

    # -- cache keys

    @property
    def _tokens_path(self) -> Path:
        return self.folder / f"{self._stem}-{_digest(self._clip_key())}.npy"

    @property
    def _measurements_path(self) -> Path:
        key = [self._clip_key(), self.condition.metrics, code_digest(*METRIC_CODE)]
        return self.folder / f"{self._stem}-{_digest(key)}.npz"

    @property
    def _stem(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '_', self.name)}-{self.start:04}"

    def _clip_key(self) -> dict[str, object]:
        """All inputs of the waves."""
        return {
            "condition": asdict(self.condition) | {"metrics": None},
            "prompts": self.prompts,
            "seconds": self.seconds,
            "start": self.start,
            "weights": self._weights_digest(),
            "band": code_digest(*BAND_CODE),
        }

    def _weights_digest(self) -> str | None:
        """Digest of the weights used, None for renders."""
        if self.condition.guidance is not None:
            return _folder_digest(self.model)
        return digest(load_model(self.model).codec) if self.condition.round_trip else None


# -- all shards --------------------------------------------------------------------------------------------


def measure(model: str, folder: Path, count: int, seconds: float) -> Measurements:
    """Measurements of all conditions for `count` prompts, one process per core, cached in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for name, condition in CONDITIONS.items():
        clips = count * condition.clips_per_prompt
        shards += [
            Shard(folder, model, name, start, min(SHARD_SIZE, clips - start), seconds)
            for start in range(0, clips, SHARD_SIZE)
        ]
    _run_all(shards)
    measurements: Measurements = {name: [] for name in CONDITIONS}
    for shard in shards:
        measurements[shard.name] += shard.measurements()
    return measurements


def _run_all(shards: Sequence[Shard]) -> None:
    workers = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start_worker)
    with workers as pool, tqdm(total=len(shards), unit="shard") as bar:
        for shard, _ in zip(shards, pool.map(Shard.run, shards), strict=True):
            bar.set_description(shard.name)
            bar.update()


def start_worker() -> None:
    """Limit a worker to one thread, and leave Ctrl-C to the parent process.

    Multithreaded workers would block each other at every operation. After Ctrl-C, they complete their shards.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def measure_recordings(name: str) -> tuple[list[Measurement], list[Measurement]]:
    """Measurements of the recordings that ship with mgkit, before and after the codec of the model."""
    model = load_model(name)
    before, after = [], []
    for path in sorted(hub.shipped("recordings").glob("*.flac")):
        wave, rate = audio.read(path)
        wave = audio.resample(audio.to_channels(wave, 1), rate, model.sample_rate)
        samples = wave[0, : 10 * model.sample_rate].numpy()
        clip = Clip(samples, model.sample_rate, samples, samples, 0.0)
        decoded = clip._replace(wave=round_trip(model, samples[None])[0])
        before.append(protocol.measure_clip(clip, ("tempo", "chroma")))
        after.append(protocol.measure_clip(decoded, ("tempo", "chroma", "distance")))
    return before, after


@torch.no_grad()
def round_trip(model: MusicGen, waves: np.ndarray) -> np.ndarray:
    """Waves [B, N] encoded and decoded by the model's codec, of the same length."""
    decoded = model.codec.decode(model.codec.encode(torch.from_numpy(waves)[:, None]))
    return decoded[:, 0, : waves.shape[1]].numpy()


@lru_cache(maxsize=1)
def load_model(name: str) -> MusicGen:
    """The model on the CPU, loaded once per process."""
    return MusicGen.get_pretrained(name, device="cpu")


# -- digests -----------------------------------------------------------------------------------------------


@lru_cache
def _folder_digest(name: str) -> str:
    """Digest of a model's weights and configuration files."""
    files = (p for p in sorted(hub.find(name).iterdir()) if p.suffix in (".safetensors", ".bin", ".json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@lru_cache
def code_digest(*modules: str) -> str:
    """Digest of the code of modules, by name; comments, docstrings and formatting do not change it."""
    trees = []
    for name in modules:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, f"{name} is not a module"
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        trees.append(ast.dump(tree))
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()[:16]


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]

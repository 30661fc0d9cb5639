"""A take: one request, and the music generated for it.

Axes: C channels, N samples, F chroma frames.

    TakeRequest -> generate_take -> Take -> its file (see `shelf`), its card (see `cards`)
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mgkit import MusicGen, audio
from mgkit.generate import Stop
from mgkit.lab import pages
from mgkit.manifest import unpack, unpack_chroma
from mgkit.melody import demucs
from mgkit.settings import Settings

# Seconds decoded at a time during generation: heard soon, and little work left after a stop.
CHUNK = 0.5


class Sound(NamedTuple):
    """A wave [C, N] at `rate` Hz, and its name."""

    name: str
    wave: Tensor
    rate: int


@dataclass(frozen=True)
class TakeRequest:
    """The conditions and settings of one take."""

    model: str
    prompt: str
    negative: str
    seed: int
    settings: Settings
    melody: Sound | None = None
    # Pitch classes [F] or chroma [F, 12] in place of the melody's own, and whether a hand drew them.
    chroma: Tensor | None = None
    edited: bool = False
    audio_prompt: Sound | None = None
    # Whether drums and bass are removed from the melody first.
    separate: bool = False

    @property
    def source(self) -> str:
        """The audio it is conditioned on, in words; may be empty."""
        if self.chroma is not None and self.chroma.dim() == 2:
            return "follows chords"
        if self.melody:
            return f"follows {self.melody.name}{', edited' * self.edited}"
        if self.chroma is not None:
            return "follows a melody"
        return f"continues {self.audio_prompt.name}" if self.audio_prompt else ""


@dataclass(eq=False)
class Take:
    """A generated wave [C, N] at `rate` Hz with its manifest and provenance."""

    number: int
    wave: Tensor
    rate: int
    manifest: dict
    # Seconds of the audio prompt, if there was one.
    seam: float | None
    # The audio it was conditioned on, in words; may be empty.
    source: str
    # Seconds of computation.
    elapsed: float
    # Of this session; None for a take read from a file.
    request: TakeRequest | None = None
    # Given by the reader.
    name: str = ""
    starred: bool = False
    # The file, once there is one.
    path: Path | None = None

    @property
    def title(self) -> str:
        """Number, and name or prompt."""
        return f"{self.number} · {self.name or self.prompt or 'no prompt'}"

    @property
    def prompt(self) -> str:
        """The text prompt, or an empty text."""
        return str(self.manifest["text"] or "")

    @property
    def file_name(self) -> str:
        """File name without an extension, unique within a studio."""
        return f"take-{self.number:03d}-seed-{self.manifest['seed']}"

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.wave.shape[-1] / self.rate

    @property
    def stopped(self) -> bool:
        """Whether it is shorter than requested."""
        return self.seconds < self.manifest["settings"]["duration"] - 0.1

    @property
    def place(self) -> str:
        """Path of its file from the working folder; the name that a download has, if there is none."""
        return os.path.relpath(self.path) if self.path else f"{self.file_name}.flac"

    @property
    def facts(self) -> list[str]:
        """What it was made of, one fact a line."""
        manifest, defaults = self.manifest, asdict(Settings())
        changed = [
            f"{name} {value}"
            for name, value in manifest["settings"].items()
            if name != "duration" and value != defaults.get(name)
        ]
        lines = [
            f"{manifest['model']} · seed {manifest['seed']}{' · stopped early' * self.stopped}",
            self.source,
            f"prompt: {self.prompt}" if self.name and self.prompt else "",
            f"negative prompt: {manifest['negative']}" if manifest["negative"] else "",
            ", ".join(changed),
            f"generated in {self.elapsed:.1f} s, {self.seconds / self.elapsed:.1f} × real time"
            if self.elapsed
            else "",
            f"file: {self.place}" if self.path else "",
            f"licence of the weights: {manifest['licence']}",
        ]
        return [line for line in lines if line]

    @property
    def code(self) -> str:
        """Python that generates it again; from its file if it was conditioned on audio."""
        manifest, defaults = self.manifest, asdict(Settings())
        head = "from mgkit import MusicGen, audio\n\n"
        load = f"model = MusicGen.get_pretrained({manifest['model']!r})\n"
        if self.source or self.seam:
            return f"{head}{load}wave, tokens = model.replay(audio.read_manifest({self.place!r}))\n"
        settings = ", ".join(
            f"{name}={value!r}"
            for name, value in manifest["settings"].items()
            if value != defaults.get(name) or name == "duration"
        )
        negative = f", negative={manifest['negative']!r}" if manifest["negative"] else ""
        return (
            f"{head.replace(', audio', '')}{load}model.set_generation_params({settings})\n"
            f"[wave] = model.generate([{self.prompt!r}], seed={manifest['seed']}{negative})\n"
        )

    def again(self, seed: int) -> TakeRequest:
        """The request for the same with another seed; of a take read from a file, as its manifest has it."""
        if self.request:
            return replace(self.request, seed=seed)
        manifest, windows = self.manifest, unpack_chroma(self.manifest)
        given = self.wave[:, : round(self.seam * self.rate)] if self.seam else None
        return TakeRequest(
            model=manifest["model"],
            prompt=self.prompt,
            negative=manifest["negative"] or "",
            seed=seed,
            settings=Settings(**manifest["settings"]),
            chroma=_melody(windows[0][0]) if 0 in windows else None,
            audio_prompt=Sound(self.source.removeprefix("continues "), given, self.rate)
            if given is not None
            else None,
        )

    def player(self, level: float | None = None) -> pages.Player:
        """Player; `level` as in `figures.player`."""
        return pages.player(self.wave, self.rate, self.title, self.seam, level)

    def save(self, path: str | os.PathLike, strategy: audio.Strategy = "loudness") -> Path:
        """Write the audio file with its manifest and return the path. Raises: as `audio.write`."""
        return audio.write(path, self.wave, self.rate, strategy, self.manifest)

    def _repr_html_(self) -> str:
        return self.player()._repr_html_()


def _melody(chroma: Tensor) -> Tensor:
    """Pitch classes [F] of a melody's `chroma` [F, 12]; the chroma itself if it has chords."""
    return chroma.argmax(dim=1) if (chroma.sum(dim=1) == 1).all() else chroma


def generate_take(
    model: MusicGen,
    request: TakeRequest,
    number: int = 1,
    on_step: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
    on_chunk: Callable[[Tensor], None] | None = None,
) -> Take:
    """Generate the take for `request`; after `stop` is set, return the part generated so far.

    `on_chunk` receives the music [C, n] as it is decoded. Raises: ValueError for invalid conditions or
    settings, or if stopped before the first frame.
    """
    started = time.perf_counter()
    model.settings = request.settings
    melody, start = request.melody, request.audio_prompt
    tune: Tensor | None = melody.wave if melody else None
    if request.chroma is not None:
        tune = request.chroma
    elif melody and request.separate:
        tune = demucs()(melody.wave, melody.rate)
    stream = model.stream(
        [request.prompt],
        melody_wavs=tune,
        melody_sample_rate=melody.rate if melody and request.chroma is None else 0,
        prompt=start.wave if start else None,
        prompt_sample_rate=start.rate if start else 0,
        negative=request.negative or None,
        seed=request.seed,
        chunk_seconds=CHUNK,
        on_step=on_step,
        stop=stop,
    )
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if on_chunk:
            on_chunk(chunk[0])
    if not chunks:
        raise ValueError("stopped before any music was generated")
    [manifest] = stream.manifests
    frames = len(unpack(manifest["prompt"])) / model.lm.config.codebooks
    return Take(
        number=number,
        wave=torch.cat(chunks, dim=-1)[0],
        rate=model.sample_rate,
        manifest=manifest,
        seam=frames / model.frame_rate or None,
        source=request.source,
        elapsed=time.perf_counter() - started,
        request=request,
    )

"""A take: one request, the music generated for it, and how both are saved and shown.

Axes: C channels, N samples.

    TakeRequest -> generate_take -> Take -> card (HTML with player, facts and download)
"""

import base64
import html
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mgkit import MusicGen, audio
from mgkit.generate import Stop
from mgkit.lab import figures
from mgkit.manifest import unpack
from mgkit.melody import demucs
from mgkit.settings import Settings

# Seconds decoded at a time during generation, which bounds the work left after a stop.
CHUNK = 2.0


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
    melody: Sound | None
    audio_prompt: Sound | None
    # Whether drums and bass are removed from the melody first.
    separate: bool


@dataclass(frozen=True)
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

    @property
    def title(self) -> str:
        """Number and prompt."""
        return f"{self.number} · {self.manifest['text'] or 'no prompt'}"

    @property
    def file_name(self) -> str:
        """File name, unique within a studio."""
        return f"take-{self.number:03d}-seed-{self.manifest['seed']}.wav"

    @property
    def stopped(self) -> bool:
        """Whether it is shorter than requested."""
        requested = round(self.manifest["settings"]["duration"] * self.rate)
        return self.wave.shape[-1] < requested - self.rate // 10

    def player(self, level: float | None = None) -> figures.Player:
        """Static player; `level` as in `figures.player`."""
        return figures.player(self.wave, self.rate, self.title, self.seam, level)

    def save(self, path: str | os.PathLike, strategy: audio.Strategy = "loudness") -> Path:
        """Write the audio file with its manifest and return the path. Raises: as `audio.write`."""
        return audio.write(path, self.wave, self.rate, strategy, self.manifest)

    def _repr_html_(self) -> str:
        return self.player().html


def generate_take(
    model: MusicGen,
    request: TakeRequest,
    number: int = 1,
    on_step: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> Take:
    """Generate the take for `request`; after `stop` is set, return the part generated so far.

    Raises: ValueError for invalid conditions or settings, or if stopped before the first frame.
    """
    started = time.perf_counter()
    model.settings = request.settings
    melody, start = request.melody, request.audio_prompt
    if melody and request.separate:
        melody = melody._replace(wave=demucs()(melody.wave, melody.rate))
    stream = model.stream(
        [request.prompt],
        melody_wavs=melody.wave if melody else None,
        melody_sample_rate=melody.rate if melody else 0,
        prompt=start.wave if start else None,
        prompt_sample_rate=start.rate if start else 0,
        negative=request.negative or None,
        seed=request.seed,
        chunk_seconds=CHUNK,
        on_step=on_step,
        stop=stop,
    )
    chunks = list(stream)
    if not chunks:
        raise ValueError("stopped before any music was generated")
    [manifest] = stream.manifests
    frames = len(unpack(manifest["prompt"])) / model.lm.config.codebooks
    source = f"follows {melody.name}" if melody else f"continues {start.name}" if start else ""
    return Take(
        number=number,
        wave=torch.cat(chunks, dim=-1)[0],
        rate=model.sample_rate,
        manifest=manifest,
        seam=frames / model.frame_rate or None,
        source=source,
        elapsed=time.perf_counter() - started,
    )


def card(take: Take) -> str:
    """HTML of a take: player, settings other than the defaults, and a download link."""
    with tempfile.TemporaryDirectory() as folder:
        file = take.save(Path(folder) / take.file_name).read_bytes()
    manifest, seconds = take.manifest, take.wave.shape[-1] / take.rate
    defaults = asdict(Settings())
    changed = [
        f"{name} {value}"
        for name, value in manifest["settings"].items()
        if name != "duration" and value != defaults[name]
    ]
    lines = [
        f"{manifest['model']} · seed {manifest['seed']}{' · stopped early' * take.stopped}",
        f"generated in {take.elapsed:.1f} s, {seconds / take.elapsed:.1f} × real time",
        take.source,
        f"negative prompt: {manifest['negative']}" if manifest["negative"] else "",
        ", ".join(changed),
        f"licence of the weights: {manifest['licence']}",
    ]
    facts = "<br>".join(html.escape(line) for line in lines if line)
    uri = f"data:audio/wav;base64,{base64.b64encode(file).decode()}"
    link = f'<a download="{take.file_name}" href="{uri}">Download {take.file_name}</a>'
    return f'<div class="mgkit-take">{take.player().html}<div>{facts}<br>{link}</div></div>'

"""`python -m mgkit bench`: the time of a step and of a piece, beside transformers and the memory's floor.

    floor          bytes that a step must read / bandwidth of the memory, measured in the same run
    ms a step      after 1, 10 and 30 s of music: medians within `generate`, sampling included
    a piece        seconds for `--duration` s of music, text encoder and codec included; the runs alternate

transformers runs as its users call it, without compilation. On a GPU it generates 5 s, whose time for the
whole piece is scaled by the number of steps: its steps do not get shorter.
"""

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from mgkit import ranges, shapes
from mgkit.devices import best_device
from mgkit.files import printable
from mgkit.musicgen import MusicGen
from mgkit.perform import request_frames
from mgkit.request import parse_request, plan_windows
from mgkit.shapes import Stamps, bandwidth, bytes_of_a_step, seconds, spread

TEXT = "calm piano with soft strings"
POSITIONS = (1, 10, 30)  # seconds of music before the steps that are timed
TIMED, SKIPPED = 40, 10  # steps
REFERENCE = 5.0  # seconds of music that transformers generates on a GPU


@dataclass
class Row:
    """A line of the table."""

    model: str
    path: str
    batch: int
    steps: dict[str, tuple[float, float, float]]  # position in s: median and quartiles in ms
    floor: dict[str, float]  # position in s: ms
    duration: float  # seconds of music of a piece
    piece: tuple[float, float, float] | None = None  # seconds of work: median and quartiles
    scaled: bool = False  # the piece was shorter, and its time is scaled
    first_sound: float | None = None  # seconds
    memory: float | None = None  # peak in GB


class Mgkit:
    """A model of mgkit under the stopwatch."""

    name = "mgkit"

    def __init__(self, model: MusicGen):
        self.model, self.device = model, model.lm.device

    def piece(self, duration: float, batch: int) -> float:
        """Seconds of work for a piece."""
        self.model.set_generation_params(duration=duration)
        return seconds(lambda: self.model.generate([TEXT] * batch, seed=0), self.device)

    def first_sound(self) -> float:
        """Seconds until a stream yields its first wave."""
        self.model.set_generation_params(duration=2.0)
        stream = self.model.stream([TEXT], seed=0)
        waited = seconds(lambda: next(stream), self.device)
        stream.close()
        return waited

    def steps(self, position: float, batch: int) -> list[float]:
        """Milliseconds of single steps after `position` seconds of music, random tokens."""
        model, lm = self.model.model, self.model.lm
        known, total = frames_at(self.model, position)
        settings = replace(self.model.settings, duration=total / model.frame_rate)
        request = parse_request(model, settings, [TEXT] * batch, 0)
        shape = (batch, lm.config.codebooks, known)
        prompt = torch.randint(lm.config.codebook_size, shape, device=self.device)
        plan = plan_windows(model, settings, known, request.texts[0])
        request, stamps = replace(request, audio_prompt=prompt, plans=[plan] * batch), Stamps()
        for _ in request_frames(model, request, stamps.on_step):
            pass
        return stamps.milliseconds(SKIPPED)


class Transformers:
    """The same model in transformers."""

    name = "transformers"

    def __init__(self, model: MusicGen):
        self.model, self.device = model, model.lm.device
        self.theirs = shapes.in_transformers(model.model)

    def piece(self, duration: float, batch: int) -> float:
        """Seconds of work for a piece."""
        # The last codebook is delayed by three steps, so there are three more steps than frames.
        steps = round(duration * self.model.frame_rate) + 3
        return seconds(lambda: self._generate(batch, max_new_tokens=steps), self.device)

    def steps(self, position: float, batch: int) -> list[float]:
        """Milliseconds of single steps after `position` seconds of music, random tokens."""
        config, stamps = self.model.lm.config, Stamps()
        known, total = frames_at(self.model, position)
        prompt = torch.randint(config.codebook_size, (batch * config.codebooks, known), device=self.device)
        self._generate(
            batch, decoder_input_ids=prompt, max_new_tokens=total - known, logits_processor=[stamps]
        )
        return stamps.milliseconds(SKIPPED)

    def _generate(self, batch: int, **settings: object) -> None:
        text = self.model.conditioner.text.tokenizer([TEXT] * batch, return_tensors="pt").to(self.device)
        self.theirs.generate(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            do_sample=True,
            top_k=250,
            guidance_scale=3.0,
            **settings,
        )


def frames_at(model: MusicGen, position: float) -> tuple[int, int]:
    """Frames before the timed steps, and with them; at most a window."""
    total = min(round(position * model.frame_rate) + TIMED, model.model.window_frames)
    return total - TIMED, total


class Bench:
    """Measures rows until its time is up."""

    def __init__(
        self, device: torch.device, dtypes: list[torch.dtype], duration: float, pairs: int, limit: float
    ):
        self.device, self.dtypes, self.duration, self.pairs = device, dtypes, duration, pairs
        self.end = time.monotonic() + limit
        self.bandwidth = bandwidth(device)
        self.rows: list[Row] = []

    def measure(self, name: str, batches: list[int]) -> None:
        """Add the rows of the model `name`."""
        for dtype in self.dtypes:
            if self._late():
                return
            model = shapes.load(name, self.device, dtype)
            label = f"mgkit {str(dtype).removeprefix('torch.')}"
            ours = Mgkit(model)
            duration = min(self.duration, model.max_duration)
            batches = [batch for batch in batches if self._fits(model, batch)]
            rows = {batch: self._row(name, label, batch, model, duration) for batch in batches}
            ours.piece(1.0, 1)  # the first run of each is not timed
            self._reset_memory()
            for batch in batches:
                self._steps(ours, rows[batch])
            rows[1].first_sound = ours.first_sound()
            rows[1].piece = spread([ours.piece(duration, 1)])
            rows[1].memory = self._memory()
            self._print(rows[1])
            if dtype is self.dtypes[0] and not self._late():
                self._compare(ours, rows[1], duration)
            for batch in batches[1:]:
                if not self._late():
                    rows[batch].piece = spread([ours.piece(duration, batch)])
                self._print(rows[batch])

    def _compare(self, ours: Mgkit, row: Row, duration: float) -> None:
        """Add transformers' row, with pieces that alternate with ours."""
        theirs = Transformers(ours.model)
        length = duration if self.device.type == "cpu" else min(REFERENCE, duration)
        rate, delay = ours.model.frame_rate, 3
        scale = (duration * rate + delay) / (length * rate + delay)
        rival = self._row(row.model, f"transformers {row.path.split()[1]}", 1, ours.model, duration)
        rival.scaled = scale > 1
        theirs.piece(0.5, 1)
        pairs = []
        for _ in range(self.pairs):
            pairs.append((ours.piece(duration, 1), scale * theirs.piece(length, 1)))
            if self._late():
                break
        row.piece, rival.piece = (spread(list(column)) for column in zip(*pairs, strict=True))
        if not self._late():
            self._steps(theirs, rival)
        self._print(row)
        self._print(rival)
        print(
            f"  mgkit is {spread([b / a for a, b in pairs])[0]:.2f} times as fast as transformers", flush=True
        )

    def _row(self, name: str, path: str, batch: int, model: MusicGen, duration: float) -> Row:
        streams = 2 * batch  # with guidance
        floor = {
            f"{p:g}": 1000 * bytes_of_a_step(model.lm, streams, frames_at(model, p)[0]) / self.bandwidth
            for p in POSITIONS
            if p <= model.max_duration
        }
        row = Row(name, path, batch, {}, floor, duration)
        self.rows.append(row)
        return row

    def _steps(self, path: Mgkit | Transformers, row: Row) -> None:
        for position in row.floor:
            if not self._late():
                row.steps[position] = spread(path.steps(float(position), row.batch))

    def _fits(self, model: MusicGen, batch: int) -> bool:
        """Whether the keys and values of a window fit into half of a GPU's free memory."""
        if self.device.type != "cuda":
            return True
        lm, frames = model.lm, model.model.window_frames
        return bytes_of_a_step(lm, 2 * batch, frames) < torch.cuda.mem_get_info()[0] / 2

    def _late(self) -> bool:
        return time.monotonic() > self.end

    def _reset_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        # of the whole process so far; kilobytes on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def _print(self, row: Row) -> None:
        steps = "  ".join(
            f"{p:>2} s {row.steps[p][0]:7.2f} ({low:.2f})" if p in row.steps else f"{p:>2} s       –"
            for p, low in row.floor.items()
        )
        piece = "" if row.piece is None else f"{row.duration:g} s: {row.piece[0]:.2f} s{'*' * row.scaled}"
        speed = "" if row.piece is None else f"{row.batch * row.duration / row.piece[0]:6.2f} x real time"
        first = "" if row.first_sound is None else f"first sound {row.first_sound:.2f} s"
        memory = "" if row.memory is None else f"{row.memory:.1f} GB"
        print(
            f"{row.model:13} {row.path:21} batch {row.batch:<3} ms a step (floor): {steps}  "
            f"{piece} {speed} {first} {memory}",
            flush=True,
        )


def machine(device: torch.device) -> str:
    """The machine's name, its load, and versions."""
    import transformers

    kind = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{kind}, {torch.get_num_threads()} threads, load {load}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def bench(
    models: list[str], device: torch.device, duration: float, pairs: int, limit: float, file: Path | None
) -> None:
    """Print the table and write it to a JSON `file`."""
    print(machine(device), flush=True)
    dtypes = [torch.float32] if device.type == "cpu" else [torch.float16]
    run = Bench(device, dtypes, duration, pairs, limit)
    print(f"memory bandwidth {run.bandwidth / 1e9:.0f} GB/s", flush=True)
    failed = {}
    for name in models:
        try:
            run.measure(name, [1, 8] if device.type == "cpu" else [1, 8, 64])
        except RuntimeError as error:
            # Out of memory, for example: the other models are measured all the same.
            failed[name] = str(error).splitlines()[0]
            print(f"{name}: failed: {failed[name]}", flush=True)
    if any(row.scaled for row in run.rows):
        print(f"* scaled from {REFERENCE:g} s")
    if file is not None:
        result = {
            "machine": machine(device),
            "bandwidth": run.bandwidth,
            "rows": [asdict(row) for row in run.rows],
            "failed": failed,
        }
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(printable(file))


def main(argv: list[str] | None = None) -> None:
    """Run `python -m mgkit bench`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit bench", description=__doc__.split("\n\n")[0])
    option: Callable = partial(parser.add_argument)
    option("--model", default="nano", help=f"{', '.join(shapes.NAMES)} (random weights), or a name or folder")
    option("--all", action="store_true", help="all of these models; large only on a GPU")
    option("--device", help="cuda or cpu; by default the fastest available")
    option("--duration", type=ranges.amount, default=30.0, help="seconds of music in a piece")
    option("--pairs", type=ranges.count, default=3, help="timed pieces of each library")
    option("--limit", type=ranges.amount, default=3600.0, help="seconds after which nothing new is measured")
    option("--json", type=Path, help="file for the results")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    device = best_device() if arguments.device is None else torch.device(arguments.device)
    models = [arguments.model]
    if arguments.all:
        # the shapes that matter most first, if time runs out
        models = ["random-small", "random-large", "random-medium", "nano"]
        if device.type == "cpu":
            models = ["nano", "random-small", "random-medium"]
    bench(models, device, arguments.duration, arguments.pairs, arguments.limit, arguments.json)

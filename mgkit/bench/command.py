"""`python -m mgkit bench`: the time of a step and of a piece, beside other libraries and the memory's floor.

    floor       bytes that a step must read / bandwidth of the memory, measured in the same run
    ms a step   after 1, 10 and 30 s of music; the runs of all libraries alternate
    a piece     seconds of work for `--duration` s of music, text encoder and codec included, alternating

Only ratios within a run can be compared with another machine's. See `stopwatch` for what is timed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mgkit import ranges
from mgkit.bench import shapes
from mgkit.bench.reference import Audiocraft
from mgkit.bench.shapes import bytes_of_a_step
from mgkit.bench.stopwatch import TIMED, Clock, Mgkit, Transformers, Way, bandwidth, held, peak_memory
from mgkit.bench.timings import Row, insert, line, plot, table
from mgkit.devices import best_device
from mgkit.files import printable
from mgkit.musicgen import MusicGen

POSITIONS = ("1", "10", "30")  # seconds of music before the steps that are timed
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 64)}
START = 1.0  # seconds in which busy processes start, and are noticed (`threads`)
# Types of mgkit, and whether steps are compiled (`MusicGen.compile`; in int8 they always are).
TYPES = {
    "cpu": ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.int8, True)),
    "cuda": ((torch.float16, False),),
}


class Bench:
    """Measures rows until its time is up."""

    def __init__(
        self,
        device: torch.device,
        duration: float,
        pairs: int,
        limit: float,
        beside: int,
        clock: Clock,
        memory: bool,
    ):
        self.device, self.duration, self.pairs, self.beside = device, duration, pairs, beside
        self.clock, self.with_memory = clock, memory
        self.end = time.monotonic() + limit
        self.bandwidth = bandwidth(device, clock)
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}
        self.memory: dict[tuple[str, str], float] = {}  # of model and way, in GB

    def measure(self, name: str) -> None:
        """Add the rows of the model `name` and print them."""
        if self._late():
            return
        ways = list(self._ways(name))
        batches = [batch for batch in BATCHES[self.device.type] if ways and self._fits(ways[0].model, batch)]
        for batch in batches:
            # Compiled steps in float32 are for a few rows; more take the ordinary ones.
            present = [way for way in ways if batch == 1 or not way.name.endswith("compiled")]
            rows = [self._row(name, way, batch) for way in present]
            with self._reported(f"{name}, batch {batch}"):
                self._measure(present, rows, batch)
            done = [row for row in rows if row.steps or row.pieces]
            self.rows += done
            print("\n".join(map(line, done)), flush=True)

    def _measure(self, ways: list[Way], rows: list[Row], batch: int) -> None:
        if batch == 1:
            self._warm_up(ways, rows)
            for way, row in self._turns(ways, rows):
                row.pieces.append(way.piece(row.duration, batch))
                if isinstance(way, Mgkit):
                    row.first_sound.append(way.first_sound())
        for position in POSITIONS:
            for way, row in self._turns(ways, rows, None if batch == 1 else 1):
                frames = round(float(position) * way.model.frame_rate) - TIMED
                if position in row.floor:
                    row.steps.setdefault(position, []).extend(way.steps(frames, batch))
        if batch == 1 and self.beside:
            with busy(self.beside):
                for way, row in self._turns(ways, rows, 1):
                    # Other libraries may take fifty times as long: a second of music is scaled.
                    seconds = row.duration if isinstance(way, Mgkit) else min(1.0, row.duration)
                    row.beside.append(way.piece(seconds, batch) * row.duration / seconds)
        if batch > 1 and not self._late() and self.device.type == "cuda":
            rows[0].pieces.append(ways[0].piece(rows[0].duration, batch))

    def _ways(self, name: str) -> Iterator[Way]:
        """mgkit in every type of the device, then the other libraries; what cannot be loaded is reported."""
        model = None
        for dtype, compiled in TYPES[self.device.type]:
            way = f"mgkit {str(dtype).removeprefix('torch.')}"
            if compiled and dtype == torch.float32:
                way += " compiled"
            with self._reported(f"{name}, {way}"):
                if self.with_memory and self.device.type == "cpu":
                    # In a process of its own, while there is memory for it.
                    self.memory[name, way] = peak_memory(name, dtype, compiled)
                loaded = model if model and dtype == model.lm.dtype else shapes.load(name, self.device, dtype)
                if model is not None and loaded is not model:
                    # One copy of the parts that are the same.
                    loaded.model.codec, loaded.model.conditioner = model.model.codec, model.model.conditioner
                    loaded = MusicGen(loaded.model)
                model = model or loaded
                yield Mgkit(loaded, way, self.clock, compiled)
        if model is not None:
            for library in (Transformers, Audiocraft):
                way = f"{library.__name__.lower()} {str(model.lm.dtype).removeprefix('torch.')}"
                with self._reported(f"{name}, {way}"):
                    yield library(model, way, self.clock)

    def _turns(self, ways: list[Way], rows: list[Row], times: int | None = None) -> Iterator[tuple[Way, Row]]:
        """The ways in turn, forwards and backwards, `times` or `pairs` times, until the time is up."""
        # What runs after another library finds cold caches; it should not always be the same one.
        turns = list(zip(ways, rows, strict=True))
        for n in range(times or self.pairs):
            for turn in turns[:: -1 if n % 2 else 1]:
                if self._late():
                    return
                yield turn

    def _row(self, name: str, way: Way, batch: int) -> Row:
        lm, rate = way.model.lm, way.model.frame_rate
        floor = {
            p: 1000 * bytes_of_a_step(lm, 2 * batch, round(float(p) * rate)) / self.bandwidth
            for p in POSITIONS
            if float(p) <= way.model.max_duration
        }
        row = Row(name, way.name, batch, min(self.duration, way.model.max_duration), floor)
        row.memory = self.memory.get((name, way.name)) if batch == 1 else None
        return row

    def _warm_up(self, ways: list[Way], rows: list[Row]) -> None:
        """Run each way once, untimed; on a GPU, note the peak memory."""
        for way, row in zip(ways, rows, strict=True):
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            way.piece(1.0, 1)
            if self.device.type == "cuda" and isinstance(way, Mgkit):
                row.memory = (torch.cuda.max_memory_allocated() - before + held(way.model)) / 1e9

    def _fits(self, model: MusicGen, batch: int) -> bool:
        """Whether the keys and values of a window fit into half of a GPU's free memory."""
        if self.device.type != "cuda":
            return True
        read = bytes_of_a_step(model.lm, 2 * batch, model.model.window_frames)
        return read < torch.cuda.mem_get_info()[0] / 2

    def _late(self) -> bool:
        return time.monotonic() > self.end

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Report a failure, out of memory for example, and go on: the rest is measured all the same."""
        try:
            yield
        except Exception as error:
            self.failed[what] = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"{what}: not measured: {self.failed[what]}", flush=True)


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen]]:
    """`count` processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(START)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def machine(device: torch.device) -> str:
    """The machine's name, its load, and versions."""
    import transformers

    kind = processor()
    if device.type == "cuda":
        kind = f"{torch.cuda.get_device_name()} {'with' if has_kernels(device) else 'without'} Triton kernels"
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if find_spec("audiocraft"):
        versions += f", audiocraft {metadata.version('audiocraft')}"
    return f"{kind}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load}; {versions}"


def has_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels of `mgkit.kernels` work on this GPU."""
    try:
        from mgkit import kernels
    except ImportError:
        return False
    return kernels.compiles(device)


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def bench(models: list[str], run: Bench, conditions: str) -> dict[str, Any]:
    """Print the rows of all models; the content of the JSON file."""
    print(conditions, flush=True)
    print(f"memory bandwidth {run.bandwidth / 1e9:.0f} GB/s", flush=True)
    for name in models:
        run.measure(name)
    return {
        "machine": conditions,
        "bandwidth": run.bandwidth,
        "beside": run.beside,
        "rows": [asdict(row) for row in run.rows],
        "failed": run.failed,
    }


def main(argv: list[str] | None = None) -> None:
    """Run `python -m mgkit bench`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit bench", description=__doc__.split("\n\n")[0])
    option: Callable = partial(parser.add_argument)
    option("--model", default="nano", help=f"{', '.join(shapes.NAMES)} (random weights), or a name or folder")
    option("--all", action="store_true", help="nano and random-small; on a GPU medium and large as well")
    option("--device", choices=["cpu", "cuda"], help="by default the fastest available")
    option(
        "--duration", type=ranges.amount, help="seconds of music in a piece; default: 30 on a GPU, 4 on a CPU"
    )
    option("--pairs", type=ranges.count, default=2, help="timed runs of each library")
    option("--limit", type=ranges.amount, default=3600.0, help="seconds after which nothing new is measured")
    option("--beside", type=ranges.count, default=0, help="also time pieces beside this many busy processes")
    option("--memory", action="store_true", help="also peak memory, on a CPU in a process for each type")
    option("--cpu-time", action="store_true", help="one thread, and its own time: for a busy machine")
    option("--json", type=Path, help="file for the results")
    option("--plot", type=Path, help="PNG: ms a step against the position")
    option("--readme", type=Path, help="file in which to replace the table between the marks")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    device = best_device() if arguments.device is None else torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; leave --device out, or give cpu")
    models = [arguments.model]
    if arguments.model.startswith(shapes.RANDOM) and arguments.model not in shapes.NAMES:
        raise ValueError(f"there is no {arguments.model!r}; give one of {', '.join(shapes.NAMES)}")
    if arguments.all:
        # the shapes that matter most first, if time runs out
        models = ["random-small", "random-large", "random-medium", "nano"]
        if device.type == "cpu":
            models = ["nano", "random-small"]
    duration = arguments.duration or (30.0 if device.type == "cuda" else 4.0)
    conditions, clock = machine(device), time.perf_counter
    if arguments.cpu_time:
        torch.set_num_threads(1)
        conditions, clock = f"{machine(device)}; CPU time of one thread", time.process_time
    settings = (device, duration, arguments.pairs, arguments.limit, arguments.beside)
    result = bench(models, Bench(*settings, clock, arguments.memory), conditions)
    rows = [Row(**row) for row in result["rows"]]
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(printable(arguments.json))
    if arguments.plot:
        plot(rows, result["machine"], arguments.plot)
        print(printable(arguments.plot))
    if arguments.readme:
        insert(
            arguments.readme,
            f"{result['machine']}; memory {result['bandwidth'] / 1e9:.0f} GB/s\n\n{table(rows)}",
        )

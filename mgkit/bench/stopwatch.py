"""Single steps and whole pieces under the stopwatch, in mgkit and in transformers; `bench` compares them.

Axes: R rows (samples times streams of guidance), K codebooks, S delayed steps, D width, H heads.

Steps late in a piece are timed without generating all before them: the cache is filled with random keys and
values, which take as long. A step of mgkit is that of `generate`, with guidance and sampling; one of another
library is its forward pass alone. Pieces are complete calls of `generate`, text and codec included.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

import torch

from mgkit.bench import shapes
from mgkit.condition import cat
from mgkit.generate import choose
from mgkit.musicgen import MusicGen
from mgkit.sampling import noise
from mgkit.steps import Steps
from mgkit.threads import usable

TEXT = "calm piano with soft strings"
TIMED, SKIPPED = 30, 6  # steps; the first compile, capture, or choose a number of threads
REFERENCE = 5.0  # seconds of music that the other libraries generate on a GPU, scaled


Clock = Callable[[], float]
"""Seconds: `time.perf_counter`, or `time.process_time`, which stands still while others compute."""


class Way(Protocol):
    """A library with a model."""

    name: str
    model: MusicGen

    def piece(self, duration: float, batch: int) -> float:
        """Seconds of work for `batch` pieces of `duration` seconds."""

    def steps(self, frames: int, batch: int) -> list[float]:
        """Milliseconds of single steps after `frames` frames."""


class Mgkit:
    """mgkit's `generate`, after `MusicGen.compile()` if `compiled`."""

    def __init__(self, model: MusicGen, name: str, clock: Clock = time.perf_counter, compiled: bool = False):
        self.model, self.device, self.name, self.clock = model, model.lm.device, name, clock
        self.compiled = compiled
        if compiled:
            model.compile()

    def piece(self, duration: float, batch: int) -> float:
        """Seconds of work for `batch` pieces of `duration` seconds."""
        self.model.lm.compiled = self.compiled  # two ways may have the same model
        self.model.set_generation_params(duration=duration)
        return seconds(lambda: self.model.generate([TEXT] * batch, seed=0), self.device, self.clock)

    def first_sound(self) -> float:
        """Seconds until a stream yields its first wave."""
        self.model.lm.compiled = self.compiled
        self.model.set_generation_params(duration=3.0)
        stream = self.model.stream([TEXT], seed=0)
        waited = seconds(lambda: next(stream), self.device, self.clock)
        stream.close()
        return waited

    @torch.no_grad()
    def steps(self, frames: int, batch: int) -> list[float]:
        """Milliseconds of single steps after `frames` frames."""
        lm, settings = self.model.lm, self.model.settings
        lm.compiled = self.compiled
        codebooks, size = lm.config.codebooks, lm.config.codebook_size
        texts = self.model.conditioner.encode([TEXT] * batch)
        condition = cat([self.model.conditioner(texts), self.model.conditioner.null(texts)])
        tokens = torch.full((batch, codebooks, frames + TIMED + 2), -1, device=self.device)
        tokens[..., : frames + 1] = torch.randint(size, (batch, codebooks, frames + 1), device=self.device)
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        run = Steps(lm, [condition], tokens, lambda _, logits, e: choose(logits.chunk(2), settings, e))
        usable()  # the number of free cores is known, as it is in the middle of a piece
        run.fill(1, noise(generators, (codebooks, size)))
        if frames > 1:
            shape = (condition.batch, lm.config.heads, frames - 1, lm.config.dim // lm.config.heads)
            keys = torch.randn(shape, device=self.device, dtype=lm.norm.weight.dtype)
            for step in run.runs:
                for cache in step.cache:
                    cache.append(keys, keys)
            run.done = frames
        times = []
        for column in range(frames + 1, tokens.shape[-1]):
            run.fill(column, noise(generators, (codebooks, size)))
            if column % 10 == 0:
                synchronize(self.device)
            times.append(self.clock())
        return differences(times, self.device)


class Transformers:
    """transformers' `generate`, as its users call it, on the same weights."""

    def __init__(self, model: MusicGen, name: str, clock: Clock = time.perf_counter):
        self.model, self.device, self.name, self.clock = model, model.lm.device, name, clock
        self.theirs = shapes.in_transformers(model.model)

    def piece(self, duration: float, batch: int) -> float:
        """Seconds of work for `batch` pieces of `duration` seconds; on a GPU scaled from REFERENCE."""
        text = self.model.conditioner.text.tokenizer([TEXT] * batch, return_tensors="pt").to(self.device)
        # The last codebook is delayed by three steps, so there are three more steps than frames.
        whole = steps = round(duration * self.model.frame_rate) + 3
        if self.device.type == "cuda":
            steps = min(whole, round(REFERENCE * self.model.frame_rate))
        given = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        chosen = {"do_sample": True, "top_k": 250, "guidance_scale": 3.0, "max_new_tokens": steps}
        return (
            seconds(lambda: self.theirs.generate(**given, **chosen), self.device, self.clock) * whole / steps
        )

    @torch.no_grad()
    def steps(self, frames: int, batch: int) -> list[float]:
        """Milliseconds of single forward passes after `frames` frames."""
        from transformers import DynamicCache, EncoderDecoderCache

        config, rows = self.model.lm.config, 2 * batch
        cache, given = DynamicCache(), {}
        shape = (rows, config.heads, frames, config.dim // config.heads)
        keys = torch.randn(shape, device=self.device, dtype=self.model.lm.dtype)
        for layer in range(config.layers):
            cache.update(keys, keys, layer)
        if config.cross_attention:
            text = torch.randn(rows, 8, config.dim, device=self.device, dtype=self.model.lm.dtype)
            given = {"encoder_hidden_states": text}
            cache = EncoderDecoderCache(cache, DynamicCache())
        ids = torch.randint(config.codebook_size, (rows * config.codebooks, 1), device=self.device)
        times = []
        for _ in range(TIMED):
            self.theirs.decoder(input_ids=ids, past_key_values=cache, use_cache=True, **given)
            synchronize(self.device)
            times.append(self.clock())
        return differences(times, torch.device("cpu"))


def differences(times: list[float], device: torch.device) -> list[float]:
    """Milliseconds between points of time, without the first; on a GPU, whose steps overlap, their mean."""
    times = times[SKIPPED:]
    if device.type == "cuda":
        return [1000 * (times[-1] - times[0]) / (len(times) - 1)]
    return [1000 * (after - before) for before, after in zip(times, times[1:], strict=False)]


def seconds(run: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Time of `run`, its work on the GPU included."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Memory bandwidth in bytes per second: the best of ten runs over 512 MB (on a GPU 1 GB).

    On a CPU a sum, which only reads; on a GPU a copy, counting bytes read and written.
    """
    if device.type == "cpu":
        numbers = torch.ones(2**27)
        return 4 * numbers.numel() / min(seconds(numbers.sum, device, clock) for _ in range(10))
    source = torch.rand(2**28, device=device)
    target = torch.empty_like(source)
    return (
        2 * 4 * source.numel() / min(seconds(lambda: target.copy_(source), device, clock) for _ in range(10))
    )


def held(model: MusicGen) -> int:
    """Bytes of the model's parameters."""
    return sum(p.numel() * p.element_size() for _, p in model.model.named_parameters())


def peak_memory(name: str, dtype: torch.dtype, compiled: bool = False) -> float:
    """Peak memory in GB of a process of its own while it generates a second on the CPU, after loading."""
    arguments = [name, str(dtype), *["compiled"] * compiled]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the process was killed"])[-1])
    return int(done.stdout.split()[-1]) * 1024 / 1e9


# Linux forgets the peak of loading if asked to; elsewhere it is included.
PEAK = """
import resource, sys, torch
from pathlib import Path
from mgkit.bench import shapes, stopwatch

model = shapes.load(sys.argv[1], torch.device("cpu"), getattr(torch, sys.argv[2][6:]))
way = stopwatch.Mgkit(model, "", compiled="compiled" in sys.argv)
reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
if reset.exists():
    reset.write_text("5")
way.piece(1.0, 1)
lines = status.read_text().splitlines() if status.exists() else []
peaks = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(*peaks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
"""

"""What `python -m mgkit generate` does: one piece, a loop, or a table of pieces.

Axes: C channels, N samples.
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgkit import audio, loops, melody, midi
from mgkit.files import printable
from mgkit.interrupt import CtrlC
from mgkit.jobs import run_table
from mgkit.musicgen import MusicGen
from mgkit.progress import ProgressBar
from mgkit.settings import Settings
from mgkit.table import read_jobs


def generate(arguments: argparse.Namespace) -> int | None:
    """Write the file, or the files of a table; 130 if Ctrl-C stopped it before the last."""
    if (arguments.csv is None) == (arguments.prompt is None):
        raise ValueError("give a prompt, such as 'calm piano', or a table of them with --csv")
    starts = ("melody", "chords", "prompt_audio")
    given = [f"--{name.replace('_', '-')}" for name in starts if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
    if arguments.loop is not None and (arguments.prompt_audio or arguments.separate or arguments.duration):
        raise ValueError("--loop excludes --prompt-audio, --separate and --duration; leave them out")
    chosen = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    Settings(**chosen)
    if arguments.csv is not None:
        return _table(arguments, given, chosen)
    # Report these errors before minutes of work, not after.
    out = Path("out.wav") if arguments.out is None else arguments.out
    audio.check_output(out)
    if arguments.chords is not None:
        melody.chords(arguments.chords, arguments.bpm, arguments.beats)
    model = MusicGen.get_pretrained(arguments.model, arguments.device)
    load_adapters(model, arguments.adapter, merge=True)
    model.set_generation_params(**{"duration": model.duration, **chosen})
    audio.check_output(out, model.sample_rate, model.audio_channels, model.duration)
    common: dict[str, Any] = {
        "progress": True,
        "seed": arguments.seed,
        "negative": arguments.negative,
        "return_manifests": True,
    }
    # No Ctrl-C may fall between the last step and the file.
    with CtrlC() as common["stop"]:
        wave, manifest, note = _music(arguments, model, common)
        if wave.shape[-1] == 0:
            raise ValueError("stopped before the first frame; no file was written")
        path = audio.write_or_rescue(out, wave, model.sample_rate, arguments.strategy, manifest)
        seconds = wave.shape[-1] / model.sample_rate
        print(f"{printable(path)}: {seconds:g} s, seed {manifest['seed']}{note}")
    return None


def load_adapters(model: MusicGen, given: list[tuple[str, float]], merge: bool) -> None:
    """Load the adapters of `--adapter`, and `merge` them, so that the speed stays the same."""
    for path, strength in given:
        model.load_adapter(path, strength)
    if merge and model.model.tuner is not None:
        model.merge()


def _music(
    arguments: argparse.Namespace, model: MusicGen, common: dict[str, Any]
) -> tuple[Tensor, dict, str]:
    """The wave [C, N] that was asked for, its manifest, and a remark for the user."""
    texts = [arguments.prompt]
    if arguments.loop is not None:
        return _loop(arguments, model, common)
    tune = _tune(arguments, model, model.duration)
    if tune is not None:
        separate = melody.demucs() if arguments.separate else None
        waves, [manifest] = model.generate_with_chroma(texts, *tune, separate=separate, **common)
    elif arguments.prompt_audio:
        start = audio.read(arguments.prompt_audio)
        waves, [manifest] = model.generate_continuation(*start, texts, **common)
    else:
        waves, [manifest] = model.generate(texts, **common)
    return waves[0], manifest, ""


def _loop(arguments: argparse.Namespace, model: MusicGen, common: dict[str, Any]) -> tuple[Tensor, dict, str]:
    """The wave [C, N] of a loop, its manifest, and how well its seam fits."""
    wanted = {name: value for name, value in common.items() if name != "return_manifests"}
    tune = _tune(arguments, model, 2 * arguments.loop * 60 / arguments.bpm)
    if tune is not None:
        wanted |= {"melody_wavs": tune[0], "melody_sample_rate": tune[1]}
    loop = loops.generate_loop(model, arguments.prompt, arguments.bpm, arguments.loop, **wanted)
    if loop.seam is None:
        return loop.wave, loop.manifest, ""
    note = f", seam {loop.seam.likelihood:.2f} nats per token (own continuation {loop.seam.own:.2f})"
    return loop.wave, loop.manifest, note


def _tune(arguments: argparse.Namespace, model: MusicGen, seconds: float) -> tuple[Tensor, int] | None:
    """The melody or the chords for music of `seconds` seconds, and their rate."""
    if arguments.melody:
        return midi.read_melody(arguments.melody, model.sample_rate)
    if arguments.chords is None:
        return None
    # The last window starts before the end.
    length = (arguments.bpm, arguments.beats, seconds + model.max_duration)
    return melody.chords(arguments.chords, *length, model.sample_rate), model.sample_rate


def _table(arguments: argparse.Namespace, starts: list[str], chosen: dict[str, Any]) -> int:
    """Generate the files of `--csv`; 130 if Ctrl-C stopped it before the last."""
    if starts or arguments.separate or arguments.loop is not None:
        names = " and ".join(starts) or "--separate and --loop"
        raise ValueError(f"{names} cannot be combined with --csv; see --help for the columns of a table")
    if arguments.out is None:
        raise ValueError("a table needs a folder for its files: add --out FOLDER")
    named = ("seed", "negative", "bpm", "beats")
    chosen |= {name: getattr(arguments, name) for name in named if getattr(arguments, name) is not None}
    jobs = read_jobs(arguments.csv, chosen)
    shard, device = process(arguments.shard, arguments.device)
    model = MusicGen.get_pretrained(arguments.model, device)
    load_adapters(model, arguments.adapter, merge=True)
    with CtrlC() as stop, ProgressBar(None, " frames") as bar:
        how = (arguments.batch, shard, arguments.strategy)
        files = run_table(model.model, jobs, arguments.out, *how, on_frame=bar, stop=stop)
    print(f"{printable(arguments.out)}: {len(files)} files, results.csv, manifest.jsonl")
    if stop.pressed:
        print("mgkit: stopped; the same command continues", file=sys.stderr)
    return 130 if stop.pressed else 0


def process(shard: tuple[int, int] | None, device: str | None) -> tuple[tuple[int, int], str | None]:
    """The shard and the device of this process: as given, or as `accelerate launch` or `torchrun` set them.

    Raises: ValueError for a shard in a process that has been given one already.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return shard or (0, 1), device
    if shard is not None:
        raise ValueError(f"there are {count} processes, and each has its shard: leave --shard out")
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    return (int(os.environ["RANK"]), count), device

"""The whole recipe of the small model in one command, from nothing to a folder that `get_pretrained` loads.

    python -m mgkit train nano --out runs/nano --budget 600                  ten hours on two CPU cores
    python -m mgkit train nano --out runs/nano --budget 9 --device cuda      nine minutes on a data-centre GPU

    stage       share   what it does
    data         8 %    compose and render clips, validation clips and stems, on all cores
    codec       36 %    encoder, codebooks and decoder together
    decoder     13 %    the decoder alone, against the discriminator; the tokens stay the same
    tokens       5 %    encode all clips
    lm          25 %    the language model and its text encoder
    reinforce   12 %    the language model on its own samples
    export       1 %    write the model in float16

On a GPU the data stage renders only the codec's clips; all others are rendered while the codec trains.

A stage gets its share of the time that is left when it begins, so what one takes too long the others make up
for. Every step is one of the other `train` commands, printed before it runs. The recipe can be interrupted at
any time; the same command continues it. For a machine without a package registry:

    python -m mgkit train nano --pack runs/pack                    here: wheels, soundfont and run.sh
    sh runs/pack/run.sh --out runs/nano --budget 9 --parts parts   there, in the repository
    cat parts/nano.tar.* | tar x                                   here again: model, codec snapshots, curves
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mgkit import audio, ranges
from mgkit.band import dataset
from mgkit.band.captions import FIRST_VALID_SEED
from mgkit.devices import best_device
from mgkit.train import codec, export, lm, pack, reinforce, storage, tokens

SHARES = {
    "data": 0.08,
    "codec": 0.36,
    "decoder": 0.13,
    "tokens": 0.05,
    "lm": 0.25,
    "reinforce": 0.12,
    "export": 0.01,
}
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": dataset.main,
    "codec": codec.main,
    "tokens": tokens.main,
    "lm": lm.main,
    "reinforce": reinforce.main,
}
# The folder of each stage's training run
RUNS = {"codec": "codec", "decoder": "decoder", "lm": "lm", "reinforce": "reinforced"}
# Core-seconds per ten-second clip, measured on a CPU with AVX-512: rendering it and its stem, and encoding it
RENDER, ENCODE = 0.07, 0.2
# Fewest and most clips to train on, and how many of them train the codec if the others are rendered meanwhile
CLIPS, CODEC_CLIPS = (24, 24_000), 1600
# Cores that a training run on a GPU needs beside those that render
FREE_CORES = 2
# Steps of the text encoder alone, at most
MOST_TEXT_STEPS = 1000


@dataclass(frozen=True)
class Size:
    """Sizes for a kind of device."""

    # of the codec: width, crops per batch, peak learning rate
    filters: int
    codec_batch: int
    codec_lr: float
    # Crops per batch with the discriminator, which takes most of the time
    decoder_batch: int
    # of the language model: clips per batch, and steps of its text encoder alone per minute
    lm_batch: int
    text_steps: int
    # Prompts per round of reinforcement
    prompts: int


SIZES = {
    "cpu": Size(16, 8, 1e-3, 8, 6, 40, 12),
    "mps": Size(16, 16, 1e-3, 16, 12, 40, 12),
    "cuda": Size(24, 64, 1.5e-3, 32, 128, 200, 64),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the steps."""

    # minutes
    budget: float
    # a key of SIZES
    device: str
    cores: int
    # length of a clip
    seconds: float = 10.0
    # The last stage; those up to it share the whole budget.
    until: str = "export"
    # Train the codec with torch.compile.
    compiled: bool = False
    # A trained codec, a folder or a file: the stages that train one are left out.
    codec: str | None = None

    def stages(self) -> list[str]:
        """The stages, in order."""
        stages = list(SHARES)[: list(SHARES).index(self.until) + 1]
        return [stage for stage in stages if not (self.codec and stage in ("codec", "decoder"))]

    def share(self, stage: str) -> float:
        """A stage's part of the time left when it begins."""
        stages = self.stages()
        return SHARES[stage] / sum(SHARES[name] for name in stages[stages.index(stage) :])

    def clips(self) -> int:
        """Clips to train on: as many as the stages' shares allow to render, and to encode without a GPU."""
        total = sum(SHARES[stage] for stage in self.stages())
        power = 60 * self.budget / total * 10 / self.seconds
        if self.renders_meanwhile:
            # half of what the cores could do: they may be slower than those measured
            time = SHARES["codec"] + SHARES["decoder"]
            count = 0.5 * time * power * (self.cores - FREE_CORES) / RENDER
        else:
            count = SHARES["data"] * power * self.cores / RENDER
        if self.device == "cpu" and "tokens" in self.stages():
            count = min(count, SHARES["tokens"] * power * self.cores / ENCODE)
        most = CODEC_CLIPS if "tokens" not in self.stages() and self.device == "cuda" else CLIPS[1]
        return round(min(max(count, CLIPS[0]), most))

    @property
    def renders_meanwhile(self) -> bool:
        """Whether the language model's clips are rendered while the codec trains on clips of its own."""
        return self.device == "cuda" and {"codec", "tokens"} <= set(self.stages())

    def rendering(self, out: Path) -> list[str]:
        """Arguments of `train data` for the language model's clips."""
        workers = max(1, self.cores - FREE_CORES) if self.renders_meanwhile else self.cores
        named = [f"--out={out / 'band'}", f"--clips={self.clips()}", f"--seconds={self.seconds:g}"]
        return [*named, f"--workers={workers}"]

    def steps(self, stage: str, minutes: float, out: Path) -> list[tuple[str, list[str]]]:
        """(command, arguments) of each step of a stage with a budget of `minutes`; none for the export."""
        size, clips = SIZES[self.device], self.clips()
        band, valid, seconds = out / "band", out / "valid", f"--seconds={self.seconds:g}"
        sounds = out / "sounds" if self.renders_meanwhile else band
        encoded = [
            f"--data={band}",
            f"--valid={valid}",
            f"--tokens={out / 'tokens'}",
            f"--valid-tokens={out / 'valid_tokens'}",
        ]
        run = [f"--out={out / RUNS.get(stage, stage)}", f"--minutes={minutes:.6g}"]
        codec_run = [
            f"--data={sounds}",
            f"--valid={valid}",
            *run,
            *(["--compile"] if self.compiled else []),
        ]
        if stage == "data":
            few = [
                f"--out={valid}",
                f"--clips={min(96, max(4, clips // 20))}",
                f"--first-seed={FIRST_VALID_SEED}",
            ]
            many = self.rendering(out)
            if self.renders_meanwhile:
                many = [f"--out={sounds}", f"--clips={min(clips, CODEC_CLIPS)}", seconds]
            stems = [] if self.codec else ["--stems"]
            return [("data", [*many, *stems]), ("data", [*few, seconds])]
        if stage == "codec":
            fresh = [f"--batch={size.codec_batch}", f"--filters={size.filters}", f"--lr={size.codec_lr:g}"]
            return [("codec", [*codec_run, *fresh])]
        if stage == "decoder":
            alone = [f"--start={out / 'codec'}", "--decoder-only", "--adversary-from=0", "--lr=6e-4"]
            return [("codec", [*codec_run, *alone, f"--batch={size.decoder_batch}"])]
        if stage == "tokens":
            pairs = ((band, out / "tokens"), (valid, out / "valid_tokens"))
            return [
                ("tokens", [f"--data={data}", f"--codec={self.codec or out / 'decoder'}", f"--out={folder}"])
                for data, folder in pairs
            ]
        if stage == "lm":
            text_steps = max(1, min(MOST_TEXT_STEPS, round(size.text_steps * minutes)))
            first = ["--align", f"--text-steps={text_steps}", f"--batch={size.lm_batch}"]
            return [("lm", [*encoded, *run, *first])]
        if stage == "reinforce":
            more = [f"--prompts={size.prompts}", f"--batch={size.lm_batch}"]
            return [("reinforce", [*encoded, *run, f"--start={out / 'lm'}", *more])]
        return []


class Progress:
    """Minutes of the stages that have begun, and seconds of the steps that are finished, in `out`/nano.json.

    Raises: ValueError if `out` holds another recipe.
    """

    def __init__(self, out: Path, recipe: Recipe):
        self.out, self.recipe = out, recipe
        self.minutes: dict[str, float] = {}
        self.done: dict[str, float] = {}
        path = out / "nano.json"
        if path.is_file():
            saved = storage.read_json(path)
            if saved.get("recipe") != asdict(recipe):
                raise ValueError(
                    f"{out} holds the recipe {saved.get('recipe')}; give the same options, or another folder"
                )
            self.minutes, self.done = saved["minutes"], saved["done"]
        out.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self) -> None:
        """Writes nano.json."""
        content = {"recipe": asdict(self.recipe), "minutes": self.minutes, "done": self.done}
        text = json.dumps(content, indent=1) + "\n"
        audio.replace_file(self.out / "nano.json", lambda draft: draft.write_text(text, encoding="utf-8"))

    def left(self) -> float:
        """Minutes of the budget that no finished step has used, and one hundredth of it at least."""
        return max(self.recipe.budget / 100, self.recipe.budget - sum(self.done.values()) / 60)

    def begin(self, stage: str) -> float:
        """The stage's minutes, settled when it first begins."""
        if stage not in self.minutes:
            self.minutes[stage] = self.left() * self.recipe.share(stage)
            self.save()
        return self.minutes[stage]

    def run(self, stage: str, step: str, work: Callable[[], Any]) -> None:
        """Do a step unless it is finished. Raises: KeyboardInterrupt if a signal stopped its training run."""
        if step in self.done:
            return
        stages = self.recipe.stages()
        place = f"stage {stages.index(stage) + 1} of {len(stages)}"
        print(f"{place}, {self.left():.1f} min left: {step}", flush=True)
        began = time.monotonic()
        work()
        # An interrupted run saves itself and returns.
        if stage in RUNS and not _used_up(self.out / RUNS[stage], self.minutes[stage]):
            raise KeyboardInterrupt
        self.done[step] = round(time.monotonic() - began, 1)
        self.save()


def _used_up(folder: Path, minutes: float) -> bool:
    """Whether the training run in `folder` has used its budget."""
    return storage.load(folder / "checkpoint.pt")["used"] >= 0.999 * 60 * minutes


class Rendering:
    """The language model's clips, rendered by another process while the `with` block trains the codec."""

    def __init__(self, recipe: Recipe, out: Path):
        self.command = [sys.executable, "-m", "mgkit", "train", "data", *recipe.rendering(out)]
        self.wanted = recipe.renders_meanwhile
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Rendering":
        if self.wanted:
            quiet = subprocess.DEVNULL
            self.process = subprocess.Popen(self.command, stdout=quiet, stderr=quiet)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.terminate()

    def wait(self) -> None:
        """Raises: RuntimeError if the clips could not be rendered."""
        if self.process and self.process.wait():
            raise RuntimeError(f"rendering failed; run it to see why: {shlex.join(self.command)}")


def follow(recipe: Recipe, out: str | Path, after: Callable[[str], None] = lambda stage: None) -> None:
    """Does every step that is not finished in `out`; the model is `out`/model. Calls `after` with the name of
    each stage of training when it is finished.

    Raises: ValueError if `out` holds another recipe; KeyboardInterrupt if a step was interrupted.
    """
    out = Path(out)
    progress, threads = Progress(out, recipe), torch.get_num_threads()
    rendering = Rendering(recipe, out)
    with contextlib.ExitStack() as stack:
        for stage in recipe.stages():
            if stage == "codec":
                stack.enter_context(rendering)
            if stage == "tokens":
                rendering.wait()
            for command, arguments in recipe.steps(stage, progress.begin(stage), out):
                # The language model's stages halve it.
                torch.set_num_threads(threads)
                step = shlex.join(["train", command, *arguments])
                progress.run(stage, step, partial(COMMANDS[command], arguments))
            if stage in RUNS:
                after(stage)
    if recipe.until == "export":
        folders = recipe.codec or out / "decoder", out / "reinforced", out / "model"
        step = f"train export --out={out / 'model'}"
        progress.run("export", step, partial(export.export, *folders, recipe.seconds))
    print(f"finished in {sum(progress.done.values()) / 60:.1f} min: {out}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train nano`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train nano",
        description="Train the small model from nothing: data, codec, language model, export.",
    )
    option = parser.add_argument
    option(
        "--out",
        default="runs/nano",
        help="folder of everything that is made; an interrupted recipe is resumed",
    )
    option("--budget", type=ranges.amount, default=600.0, help="minutes in all (default 600)")
    option("--device", choices=SIZES, default=None, help="default: the best there is")
    option("--seconds", type=ranges.amount, default=Recipe.seconds, help="length of a clip (default 10)")
    option("--until", choices=SHARES, default="export", help="last stage; those up to it share the budget")
    option("--codec", default=None, help="a trained codec, to leave out the stages that train one")
    option("--compile", action="store_true", help="train the codec with torch.compile")
    option("--parts", default=None, help="folder for the results in files of at most 15 MiB")
    option("--pack", default=None, help="write what another machine needs into this folder, and stop")
    args = parser.parse_args(argv)
    if args.pack:
        return pack.write(args.pack)
    if args.device == "cpu":
        # Every stage takes the best device that it finds.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device = best_device().type
    if args.device not in (None, device):
        raise ValueError(f"--device {args.device} is not available here; the best device is {device}")
    plan = (args.budget, device, os.cpu_count() or 1, args.seconds, args.until, args.compile, args.codec)
    recipe = Recipe(*plan)
    if not args.parts:
        return follow(recipe, args.out)
    out, parts = Path(args.out), Path(args.parts)
    follow(recipe, out, lambda stage: bring(out, parts))
    bring(out, parts)


def bring(out: Path, parts: Path) -> None:
    """Write what the recipe has made so far into files of up to 15 MiB in `parts`, and all curves.

    A finished model comes with the language model from before its reinforcement, in float16; before that, a
    snapshot of the codec's latest run takes the model's place.
    """
    kept = [path for path in (out / "model", out / "lm" / "tokenizer") if path.exists()]
    if (out / "lm" / "lm.pt").is_file():
        saved = storage.load(out / "lm" / "lm.pt")
        saved["weights"] = {name: weight.half() for name, weight in saved["weights"].items()}
        storage.save(out / "lm" / "half.pt", saved)
        kept.append(out / "lm" / "half.pt")
    runs = [out / name for name in ("decoder", "codec") if (out / name / "checkpoint.pt").is_file()]
    if runs and not (out / "model").exists():
        codec.snapshot(runs[0], runs[0] / "snapshot.pt")
        kept.append(runs[0] / "snapshot.pt")
    shutil.rmtree(parts, ignore_errors=True)
    print(*pack.split([*kept, *sorted(out.glob("*/log.csv"))], out, parts), sep="\n")


if __name__ == "__main__":
    main()

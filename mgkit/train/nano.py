"""The whole recipe of the small model in one command, from nothing to a folder that `get_pretrained` loads.

    python -m mgkit train nano --out runs/nano --budget 600                  ten hours on two CPU cores
    python -m mgkit train nano --out runs/nano --budget 9 --device cuda      nine minutes on a data-centre GPU

    stage       share   what it does
    data         8 %    compose and render clips, validation clips and stems, on all cores
    codec       38 %    encoder, codebooks and decoder together
    decoder     14 %    the decoder alone, against the discriminator; the tokens stay the same
    tokens       4 %    encode all clips
    lm          28 %    the language model and its text encoder
    reinforce    7 %    the language model on its own generations
    export       1 %    write the model in float16

Every stage is one of the other `train` commands, printed before it runs, so it can be repeated alone. The recipe can be
interrupted at any time; the same command continues it. A machine without a package registry:

    python -m mgkit train nano --pack runs/pack                    here: wheels, soundfont and run.sh
    sh runs/pack/run.sh --out runs/nano --budget 9 --parts parts   there, in the repository
    cat parts/nano.tar.* | tar x                                   here again: model, codec snapshots, curves
"""

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mgkit import audio
from mgkit.band import dataset
from mgkit.band.captions import FIRST_VALID_SEED
from mgkit.musicgen import best_device
from mgkit.train import codec, export, lm, pack, reinforce, sounds, tokens

SHARES = {
    "data": 0.08,
    "codec": 0.38,
    "decoder": 0.14,
    "tokens": 0.04,
    "lm": 0.28,
    "reinforce": 0.07,
    "export": 0.01,
}
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": dataset.main, "stems": sounds.main, "codec": codec.main, "tokens": tokens.main, "lm": lm.main,
    "reinforce": reinforce.main,
}  # fmt: skip
TRAINED = {
    "codec": "codec",
    "decoder": "decoder",
    "lm": "lm",
    "reinforce": "reinforced",
}  # stage: folder of its run
# Core-seconds per ten-second clip, measured on a CPU with AVX-512: rendering it with its stem, and encoding it.
RENDER, ENCODE = 0.07, 0.2
CLIPS = 24, 12_000  # fewest and most clips to train on
BATCHES = {"cpu": (8, 6), "cuda": (64, 48), "mps": (16, 12)}  # of the codec and of the language model
TEXT_STEPS = 40, 1000  # of the text encoder alone: per minute of the language model, and at most


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a model; the plan below follows from it."""

    budget: float  # minutes
    device: str  # cpu, cuda or mps
    cores: int
    seconds: float = 10.0  # length of a clip
    until: str = "export"  # last stage; those up to it share the whole budget

    def minutes(self) -> dict[str, float]:
        """Each stage's minutes."""
        stages = list(SHARES)[: list(SHARES).index(self.until) + 1]
        total = sum(SHARES[stage] for stage in stages)
        return {stage: self.budget * SHARES[stage] / total for stage in stages}

    def clips(self) -> int:
        """Clips to train on: as many as can be rendered, and encoded unless a GPU does it, in their stages' time."""
        minutes, power = self.minutes(), 60 * self.cores * 10 / self.seconds
        count = minutes["data"] * power / RENDER
        if self.device == "cpu" and "tokens" in minutes:
            count = min(count, minutes["tokens"] * power / ENCODE)
        return round(min(max(count, CLIPS[0]), CLIPS[1]))

    def commands(self, out: Path) -> Iterator[tuple[str, str, list[str]]]:
        """(stage, command, arguments) of every step but the export, in order."""
        minutes, clips = self.minutes(), self.clips()
        valid = min(256, max(4, clips // 20))
        codec_batch, lm_batch = BATCHES[self.device]
        band, held_out = f"--data={out / 'band'}", f"--valid={out / 'valid'}"
        both = [band, held_out, f"--tokens={out / 'tokens'}", f"--valid-tokens={out / 'valid_tokens'}"]
        seconds = f"--seconds={self.seconds:g}"

        def budget(stage: str) -> str:
            return f"--minutes={minutes[stage]:.6g}"

        yield "data", "data", [f"--out={out / 'band'}", f"--clips={clips}", seconds]
        yield (
            "data",
            "data",
            [f"--out={out / 'valid'}", f"--clips={valid}", f"--first-seed={FIRST_VALID_SEED}", seconds],
        )
        yield "data", "stems", [band]
        shared = [band, held_out, f"--batch={codec_batch}"]
        if "codec" in minutes:
            yield "codec", "codec", [*shared, f"--out={out / 'codec'}", budget("codec")]
        if "decoder" in minutes:
            alone = [f"--start={out / 'codec'}", "--decoder-only", "--adversary-from=0", "--lr=6e-4"]
            yield "decoder", "codec", [*shared, *alone, f"--out={out / 'decoder'}", budget("decoder")]
        if "tokens" in minutes:
            coder = f"--codec={out / 'decoder'}"
            yield "tokens", "tokens", [band, coder, f"--out={out / 'tokens'}"]
            yield "tokens", "tokens", [f"--data={out / 'valid'}", coder, f"--out={out / 'valid_tokens'}"]
        if "lm" in minutes:
            text_steps = max(1, min(TEXT_STEPS[1], round(TEXT_STEPS[0] * minutes["lm"])))
            begin = ["--align", f"--text-steps={text_steps}", f"--batch={lm_batch}"]
            yield "lm", "lm", [*both, *begin, f"--out={out / 'lm'}", budget("lm")]
        if "reinforce" in minutes:
            start = f"--start={out / 'lm'}"
            yield "reinforce", "reinforce", [*both, start, f"--out={out / 'reinforced'}", budget("reinforce")]


class Progress:
    """The finished steps of a recipe in `out`/nano.json, so that a run that was interrupted goes on after them."""

    def __init__(self, out: Path, recipe: Recipe):
        self.path, self.recipe = out / "nano.json", recipe
        self.done: dict[str, float] = {}  # seconds of each finished step
        if self.path.is_file():
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            if saved["recipe"] != asdict(recipe):
                raise ValueError(
                    f"{out} holds the recipe {saved['recipe']}; give the same options, or another folder"
                )
            self.done = saved["done"]
        out.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self) -> None:
        """Writes the file."""
        content = json.dumps({"recipe": asdict(self.recipe), "done": self.done}, indent=1) + "\n"
        audio.replace_file(self.path, lambda draft: draft.write_text(content, encoding="utf-8"))

    def run(self, step: str, stage: str, work: Callable[[], Any]) -> None:
        """Does a step unless it is finished; says before it how much time the recipe has left."""
        if step in self.done:
            return
        minutes = self.recipe.minutes()
        stages = list(minutes)
        left = sum(minutes[name] for name in stages[stages.index(stage) :])
        print(
            f"{step}\n  stage {stages.index(stage) + 1} of {len(stages)}, about {left:.1f} min left",
            flush=True,
        )
        began = time.monotonic()
        work()
        if stage in TRAINED and not _used_up(self.path.parent / TRAINED[stage], minutes[stage]):
            raise KeyboardInterrupt  # the run has saved itself and returned
        self.done[step] = round(time.monotonic() - began, 1)
        self.save()


def _used_up(folder: Path, minutes: float) -> bool:
    """Whether the run in `folder` has used its budget; one that was interrupted has not."""
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=False)
    return state["used"] >= 0.999 * 60 * minutes


def cook(recipe: Recipe, out: str | Path) -> Path:
    """Follows the recipe in `out` and returns the folder of the model, `out`/model.

    Raises: ValueError if `out` holds another recipe; KeyboardInterrupt when a stage was interrupted.
    """
    out = Path(out)
    progress, threads = Progress(out, recipe), torch.get_num_threads()
    for stage, command, arguments in recipe.commands(out):
        torch.set_num_threads(threads)  # the language model's stages halve it
        step = shlex.join(["train", command, *arguments])
        progress.run(step, stage, lambda run=COMMANDS[command], given=arguments: run(given))  # type: ignore[misc]
    model = out / "model"
    if recipe.until == "export":
        parts = (out / "decoder", out / "reinforced", model, recipe.seconds)
        progress.run(f"train export --out={model}", "export", lambda: export.export(*parts))
    print(f"done in {sum(progress.done.values()) / 60:.1f} min: {out}", flush=True)
    return model


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train nano`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train nano",
        description="Train the small model from nothing: data, codec, language model, export.",
    )
    add = parser.add_argument
    add("--out", default="runs/nano", help="folder of everything that is made; a run in it is resumed")
    add("--budget", type=float, default=600.0, help="minutes in all (default 600)")
    add("--device", choices=BATCHES, default=None, help="default: the best there is")
    add("--seconds", type=float, default=Recipe.seconds, help="length of a clip (default 10)")
    add(
        "--until", choices=list(SHARES), default="export", help="last stage; the budget is for those up to it"
    )
    add("--parts", default=None, help="folder for the results in files of at most 15 MiB")
    add("--pack", default=None, help="write what another machine needs to this folder, and end")
    args = parser.parse_args(argv)
    if args.pack:
        return pack.write(args.pack)
    if not args.budget > 0:
        raise ValueError(f"--budget is {args.budget}; give minutes above 0")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # every stage takes the best device there is
    device = best_device().type
    if args.device and args.device != device:
        raise ValueError(f"--device {args.device} is not available here; the best device is {device}")
    recipe = Recipe(args.budget, device, os.cpu_count() or 1, args.seconds, args.until)
    model = cook(recipe, args.out)
    if args.parts:
        snapshots = [Path(args.out) / TRAINED[stage] for stage in ("codec", "decoder")]
        for folder in [folder for folder in snapshots if folder.is_dir()]:
            codec.snapshot(folder, folder / "snapshot.pt")
        kept = [model, *Path(args.out).glob("*/snapshot.pt"), *Path(args.out).glob("*/log.csv")]
        print(*pack.split([path for path in kept if path.exists()], Path(args.out), args.parts), sep="\n")


if __name__ == "__main__":
    main()

"""Teaching a model that is there already one's own sounds: fine-tuning on a folder of audio with captions.

Letters: B batch, K codebooks, T frames, S delayed steps, F chroma frames.

    folder -> the model's own codec -> codes, pitch classes -> crops -> the same loss that the model learned by

Text models and melody models, mono and stereo, are taught alike. The codec and T5 stay as they are: a few sounds
would cost them more than they give. `layers` teaches only the last so many layers of the transformer, which saves
memory (gradients, optimizer) and time (no way back through the layers below) in one line; low-rank adapters would
save the same memory and none of the time.

    model/        the result, for MusicGen.get_pretrained and transformers, with the licence of what it came from
    index.html    before and after, to listen to
    tokens.pt     the sounds as tokens, made once
    run.json, checkpoint.pt, log.csv, log.png    see `run`
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit import hub
from mgkit.lab import figures
from mgkit.musicgen import MusicGen
from mgkit.train.folder import Heard, Sound, find, fingerprint, listen, strides
from mgkit.train.lm import losses
from mgkit.train.loop import Average, Row, Team, claim, precision, read_log, side_by_side, train
from mgkit.train.tokens import digest

EXAMPLES = 3  # captions that the page plays before and after
FEW = 10  # files, from which on whole files are held out
MEASURE_EVERY = 50  # steps; a checkpoint is written as often


@dataclass(frozen=True)
class TuneRun:
    """Everything that decides a run; `steps` or `minutes` is its budget."""

    folder: str
    model: str = "nano"  # any name or folder that MusicGen.get_pretrained takes
    steps: int | None = None
    minutes: float | None = 10.0
    batch: int = 4
    seconds: float | None = None  # of a crop; the model's window where it is None
    layers: int | None = None  # only the last so many of the transformer; all of them where it is None
    lr: float = 1e-4
    drop_all: float = 0.2  # how often neither caption nor melody is told
    drop_melody: float = 0.5
    average: float = 0.98
    bf16: bool = True
    seed: int = 0
    # fingerprints of the folder's sounds and of the weights to start from; `tune` fills them in
    sounds: str = ""
    weights: str = ""


def split(heard: list[Heard], seed: int) -> tuple[list[Heard], list[Heard]]:
    """What to learn from and what to measure on: one file in FEW; of fewer files than that, the last fifth of each."""
    if len(heard) < FEW:
        return [_part(one, 0, 4) for one in heard], [_part(one, 4, 5) for one in heard]
    order = np.random.default_rng(seed).permutation(len(heard))
    held = set(order[: len(heard) // FEW].tolist())
    return [one for i, one in enumerate(heard) if i not in held], [heard[i] for i in sorted(held)]


def _part(one: Heard, first: int, last: int) -> Heard:
    """From so many fifths of the sound to so many."""
    codes, pitch = (slice(n * first // 5, n * last // 5) for n in (one.codes.shape[-1], len(one.melody)))
    return Heard(one.caption, one.codes[:, codes], one.melody[pitch])


class TuneLearner:
    """The language model with the projections of its conditioner, and their optimizer."""

    def __init__(self, run: TuneRun, model: MusicGen, data: list[Heard], valid: list[Heard]):
        self.run, self.model, self.data, self.valid, self.team = run, model, data, valid, Team()
        seconds = min(run.seconds or model.max_duration, model.max_duration)
        self.frames = round(seconds * model.frame_rate)
        self.learned = learned(model, run.layers)
        self.parameters = nn.ParameterList(self.learned)
        self.optimizer = torch.optim.AdamW(self.learned, run.lr, betas=(0.9, 0.95), weight_decay=0.01)
        self.average = Average(self.parameters, run.average)
        lengths = np.array([one.codes.shape[-1] for one in data], float)
        self.shares = lengths / lengths.sum()  # a second is as likely as any other, of whatever file it is

    def step(self, step: int, lr: float) -> Row:
        """One batch; see `run.Learner`."""
        run, rng = self.run, np.random.default_rng((self.run.seed, step))
        chosen = [self.data[i] for i in rng.choice(len(self.data), run.batch, p=self.shares)]
        codes, melody = self.crops(chosen, rng)
        keep = torch.from_numpy(rng.random(run.batch) >= run.drop_all)
        hear = torch.from_numpy(rng.random(run.batch) >= run.drop_melody) & keep

        def loss(part: slice) -> Tensor:
            return self.loss(chosen[part], codes[part], melody[part], keep[part], hear[part])

        each = side_by_side(loss, self.team.parts(run.batch), self.learned, self.team)
        norm = nn.utils.clip_grad_norm_(self.learned, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.average.update(self.parameters, step)
        return {"loss": float(each.mean()), "norm": float(norm)}

    def crops(self, chosen: list[Heard], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T], the special token behind what has ended, and pitch classes [B, F] in a loop from there."""
        stride, chroma = strides(self.model.codec)
        codes, melody = [], []
        for one in chosen:
            start = int(rng.integers(1 + max(0, one.codes.shape[-1] - self.frames) // stride))
            row = one.codes[:, start * stride :][:, : self.frames].long()
            codes.append(F.pad(row, (0, self.frames - row.shape[-1]), value=self.model.lm.config.special))
            wanted = self.model.conditioner.melody_frames or 0
            looped = one.melody.long().roll(-start * chroma)
            melody.append(looped.repeat(-(-wanted // len(looped)))[:wanted])
        return torch.stack(codes), torch.stack(melody)

    def loss(self, told: list[Heard], codes: Tensor, melody: Tensor, keep: Tensor, hear: Tensor) -> Tensor:
        """`losses` [K], the caption told where `keep` [B], the melody where `hear` [B]."""
        conditioner = self.model.conditioner
        with precision(self.model.lm.device, self.run.bf16):
            texts = conditioner.describe([one.caption for one in told])
            texts = [text * bool(kept) for text, kept in zip(texts, keep, strict=True)]
            takes_melody = conditioner.melody_frames is not None
            condition = conditioner(texts, melody * hear[:, None] if takes_melody else None)
            return losses(self.model.lm, codes, condition)

    @torch.no_grad()
    def measure(self) -> Row:
        """Loss on what is held out, told its caption and told nothing."""
        rng, found = np.random.default_rng(1), []
        with self.average.used(self.parameters):
            for at in range(0, min(32, len(self.valid)), self.run.batch):
                part = self.valid[at : at + self.run.batch]
                codes, melody = self.crops(part, rng)
                silent = torch.zeros(len(part), dtype=torch.bool)
                found.append(
                    [float(self.loss(part, codes, melody, keep, silent).mean()) for keep in (~silent, silent)]
                )
        text, nothing = np.mean(found, axis=0)
        return {"valid_text": float(text), "valid_none": float(nothing)}

    def state_dict(self) -> dict[str, Any]:
        """See `run.Learner`."""
        return {
            "learned": self.parameters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `run.Learner`."""
        self.parameters.load_state_dict(state["learned"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.weights = state["average"]

    def save(self, out: Path) -> None:
        """`out`/model, with the averaged weights in float16 and a card that says where they come from."""
        with self.average.used(self.parameters):
            self.model.save_pretrained(str(out / "model"), torch.float16)
        (out / "model" / "README.md").write_text(card(self.model))


def learned(model: MusicGen, layers: int | None) -> list[nn.Parameter]:
    """The parameters to teach, made to take gradients: all but codec and T5, or the last `layers` and the heads.

    Errors: ValueError for more layers than there are, or none.
    """
    lm, conditioner = model.lm, model.conditioner
    if layers is not None and not 1 <= layers <= lm.config.layers:
        raise ValueError(
            f"layers is {layers}; this model has {lm.config.layers}, so give 1 to {lm.config.layers}"
        )
    if layers is None:
        modules: list[nn.Module] = [lm, conditioner.text_proj]
        modules += [conditioner.melody_proj] if conditioner.melody_frames is not None else []
    else:
        modules = [*lm.layers[-layers:], lm.norm, lm.heads]
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def card(model: MusicGen) -> str:
    """The README.md of the result."""
    named = {hub.MIT: "mit", hub.CC_BY_NC: "cc-by-nc-4.0"}.get(model.licence, "other")
    return (
        f"---\nlicense: {named}\npipeline_tag: text-to-audio\ntags: [music, MusicGen]\n---\n\n"
        f"{model.name}, taught the sounds of a folder by `python -m mgkit train tune`.\n\n"
        f"Licence of the weights it came from, which holds for these too: {model.licence}. The sounds have licences of "
        "their own: ask whoever taught it.\n"
    )


def examples(model: MusicGen, sounds: list[Sound]) -> list[tuple[str, Tensor]]:
    """(caption, wave [C, N]) for the first EXAMPLES captions, each in what the model makes of it now."""
    captions = list(dict.fromkeys(sound.caption for sound in sounds))[:EXAMPLES]
    model.set_generation_params(duration=min(6.0, model.max_duration))
    return list(zip(captions, model.generate(captions, seed=0), strict=True))


def tune(run: TuneRun, out: str | Path) -> tuple[MusicGen, Row, Row]:
    """The model that `run` asks for, taught the sounds of its folder; and its held-out losses before and after.

    Writes all into `out` and goes on from there where it was stopped. Errors: ValueError or FileNotFoundError, in one
    sentence, for a folder that cannot be learned from, and for an `out` of another run.
    """
    out, sounds, team = Path(out), find(run.folder), Team()
    model = MusicGen.get_pretrained(run.model, team.device, torch.float32)
    model.conditioner.text.tokens([sound.caption for sound in sounds])  # too long a caption is refused here
    run = replace(run, sounds=fingerprint(sounds), weights=digest(model.lm.heads))
    if team.rank == 0:
        claim(out, run)
        listen(model, sounds, out / "tokens.pt")
    team.wait()
    learner = TuneLearner(run, model, *split(listen(model, sounds, out / "tokens.pt"), run.seed))
    played = examples(model, sounds) if team.rank == 0 else []
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // len(team.parts(run.batch))))  # of each part of a batch
    try:
        end = train(run, out, learner, lr=run.lr, measure_every=MEASURE_EVERY)
    finally:
        torch.set_num_threads(threads)
    start = read_log(out / "log.csv")[0]
    tuned = MusicGen.get_pretrained(str(out / "model"), team.device)
    if team.rank == 0:
        write_page(out, tuned, sounds, played, start, end)
    return tuned, start, end


def write_page(
    out: Path, tuned: MusicGen, sounds: list[Sound], played: list[tuple[str, Tensor]], start: Row, end: Row
) -> None:
    """`out`/index.html: what the first captions sounded like before, and now."""
    items: list[Any] = [
        f"Loss on what was held out, in nats a token: {start['valid_text']:.3f} before, {end['valid_text']:.3f} after. "
        f"Licence of the weights: {tuned.licence}."
    ]
    for (caption, before), (_, after) in zip(played, examples(tuned, sounds), strict=True):
        items += [caption, figures.players([("before", before), ("after", after)], tuned.sample_rate)]
    figures.page(items, out / "index.html", "Before and after")


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train tune`."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train tune", formatter_class=form,
        description="Teaches a model the sounds of a folder: audio files, each with its caption in a .txt beside it, or all "
        "captions in captions.csv or metadata.jsonl (file, caption).",
    )  # fmt: skip
    parser.add_argument("folder", help="sounds with captions")
    parser.add_argument(
        "--model", default=TuneRun.model, help="what to start from: a name, a hub id or a folder"
    )
    parser.add_argument("--out", default="runs/mine", help="folder of the run; goes on where it stopped")
    parser.add_argument(
        "--minutes", type=float, default=TuneRun.minutes, help="budget in minutes of the clock"
    )
    parser.add_argument("--steps", type=int, help="budget in steps instead")
    parser.add_argument("--batch", type=int, default=TuneRun.batch, help="clips in a batch")
    parser.add_argument("--seconds", type=float, help="length of a clip; left out, the model's window")
    parser.add_argument(
        "--layers", type=int, help="teach only the last so many layers, to save memory and time"
    )
    parser.add_argument("--lr", type=float, default=TuneRun.lr, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=TuneRun.seed, help="draws the clips and what is held out")
    args = parser.parse_args(argv)
    run = TuneRun(args.folder, args.model, args.steps, None if args.steps else args.minutes, args.batch, args.seconds,
                  args.layers, args.lr, seed=args.seed)  # fmt: skip
    _, start, end = tune(run, args.out)
    if Team().rank > 0:
        return
    print(json.dumps({"before": {name: start[name] for name in end}, "after": end}))
    print(f"listen: {args.out}/index.html")
    print(f"load it with  MusicGen.get_pretrained({args.out + '/model'!r})")


if __name__ == "__main__":
    main()

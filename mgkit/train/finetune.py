"""Fine-tuning a trained model on a folder of captioned recordings.

Axes: B batch, C channels, K codebooks, T frames, F chroma frames, N samples.

    folder -> the model's codec -> codes, pitch classes -> random crops -> the language model's training loss

Works for text and melody models, mono and stereo. Codec and T5 stay frozen: a few recordings would harm them
more than help. `layers` trains only the last layers of the transformer, which saves memory (gradients,
optimizer state) and time (no backward pass through the layers below). `lora` trains an adapter of this rank
beside the layers, see `lora`, which saves memory too and takes little room on a disk.

    model/        the result, for MusicGen.get_pretrained and transformers, or
    adapter/      the result with `lora`, for MusicGen.load_adapter and PEFT
    index.html    samples before and after
    tokens.safetensors     the recordings as tokens
    run.json, checkpoint.pt, log.csv, log.png    see `loop`
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit import hub, ranges
from mgkit.lab import figures
from mgkit.musicgen import MusicGen
from mgkit.train import history, lora
from mgkit.train.ema import EMA
from mgkit.train.folder import Example, Recording, find, fingerprint, strides, tokenize
from mgkit.train.history import Metrics
from mgkit.train.loop import claim, parse_budget, train
from mgkit.train.loss import losses
from mgkit.train.parallel import Processes, autocast, backward
from mgkit.train.tokens import digest

PAGE_CAPTIONS = 3  # captions on the page of samples
FILES_TO_HOLD_OUT = 10  # with ten files or more, one in ten is held out as a whole
MEASURE_EVERY = 50  # steps between validations, and between checkpoints


@dataclass(frozen=True)
class TuneRun:
    """Settings of a run; its budget is `steps` or `minutes`."""

    folder: str
    model: str = "nano"  # any name or folder that MusicGen.get_pretrained takes
    steps: int | None = None
    minutes: float | None = 10.0
    batch: int = 4
    seconds: float | None = None  # length of a crop; None for the model's window
    layers: int | None = None  # number of trained layers, counted from the last; None for all
    lora: int | None = None  # rank of the adapter that is trained instead of the weights
    lr: float = 1e-4
    drop_all: float = 0.2  # probability of dropping both text and melody
    drop_melody: float = 0.5  # probability of dropping the melody
    average: float = 0.98  # decay of the averaged weights
    bf16: bool = True
    seed: int = 0
    # Fingerprints of the recordings and of the original weights; `tune` fills them in.
    recordings: str = ""
    weights: str = ""


def split(examples: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(training, validation) examples: one file in ten is held out.

    With fewer than FILES_TO_HOLD_OUT files, the last fifth of each is held out.
    """
    if len(examples) < FILES_TO_HOLD_OUT:
        return [_fifths(e, 0, 4) for e in examples], [_fifths(e, 4, 5) for e in examples]
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = set(order[: len(examples) // FILES_TO_HOLD_OUT].tolist())
    training = [example for i, example in enumerate(examples) if i not in held_out]
    return training, [examples[i] for i in sorted(held_out)]


def _fifths(example: Example, first: int, last: int) -> Example:
    """Part of an example, in fifths of its length."""
    codes, pitch_classes = (
        slice(n * first // 5, n * last // 5) for n in (example.codes.shape[-1], len(example.melody))
    )
    return Example(example.caption, example.codes[:, codes], example.melody[pitch_classes])


class TuneLearner:
    """Language model, conditioner projections and optimizer."""

    def __init__(self, run: TuneRun, model: MusicGen, data: list[Example], valid: list[Example]):
        self.run, self.model, self.data, self.valid = run, model, data, valid
        self.processes = Processes()
        self.frames = round(crop_seconds(run, model) * model.frame_rate)
        parameters = trainable_parameters(model, run.layers)
        if run.lora is not None:
            parameters = lora.attach(model.model, run.lora, run.layers, run.seed)
        self.parameters = nn.ParameterList(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, run.lr, betas=(0.9, 0.95), weight_decay=0.01)
        self.ema = EMA(self.parameters, run.average)
        # Files are drawn in proportion to their length, so that every second is equally likely.
        lengths = np.array([example.codes.shape[-1] for example in data], float)
        self.probabilities = lengths / lengths.sum()

    def step(self, step: int, lr: float) -> Metrics:
        """One batch; see `loop.Learner`."""
        run, rng = self.run, np.random.default_rng((self.run.seed, step))
        examples = [self.data[i] for i in rng.choice(len(self.data), run.batch, p=self.probabilities)]
        codes, pitch_classes = self.crops(examples, rng)
        keep_text = torch.from_numpy(rng.random(run.batch) >= run.drop_all)
        keep_melody = torch.from_numpy(rng.random(run.batch) >= run.drop_melody) & keep_text

        def loss(shard: slice) -> Tensor:
            return self.loss(
                examples[shard], codes[shard], pitch_classes[shard], keep_text[shard], keep_melody[shard]
            )

        parameters = list(self.parameters)
        by_codebook = backward(loss, self.processes.shards(run.batch), parameters, self.processes)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.ema.update(self.parameters, step)
        return {"loss": float(by_codebook.mean()), "norm": float(norm)}

    def crops(self, examples: Sequence[Example], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Random crops: codes [B, K, T], padded with the special token, and pitch classes [B, F].

        Pitch classes start at the same moment and wrap around at the end of the recording.
        """
        code_stride, chroma_stride = strides(self.model.codec)
        chroma_frames = self.model.conditioner.melody_frames or 0
        codes, pitch_classes = [], []
        for example in examples:
            start = int(rng.integers(1 + max(0, example.codes.shape[-1] - self.frames) // code_stride))
            crop = example.codes[:, start * code_stride :][:, : self.frames].long()
            padding = self.frames - crop.shape[-1]
            codes.append(F.pad(crop, (0, padding), value=self.model.lm.config.special))
            rolled = example.melody.long().roll(-start * chroma_stride)
            pitch_classes.append(rolled.repeat(-(-chroma_frames // len(rolled)))[:chroma_frames])
        return torch.stack(codes), torch.stack(pitch_classes)

    def loss(
        self,
        examples: Sequence[Example],
        codes: Tensor,
        pitch_classes: Tensor,
        keep_text: Tensor,
        keep_melody: Tensor,
    ) -> Tensor:
        """Cross-entropy [K] by codebook; `keep_…` [B] false drops a caption or melody."""
        conditioner = self.model.conditioner
        with autocast(self.model.lm.device, self.run.bf16):
            texts = conditioner.encode([example.caption for example in examples])
            texts = [text * bool(keep) for text, keep in zip(texts, keep_text, strict=True)]
            takes_melody = conditioner.melody_frames is not None
            condition = conditioner(texts, pitch_classes * keep_melody[:, None] if takes_melody else None)
            return losses(self.model.lm, codes, condition)

    @torch.no_grad()
    def measure(self) -> Metrics:
        """Validation loss with captions (`valid_text`) and unconditional (`valid_none`)."""
        rng, batches = np.random.default_rng(1), []
        with self.ema.swapped_into(self.parameters):
            for first in range(0, min(32, len(self.valid)), self.run.batch):
                examples = self.valid[first : first + self.run.batch]
                codes, pitch_classes = self.crops(examples, rng)
                drop = torch.zeros(len(examples), dtype=torch.bool)
                with_text = self.loss(examples, codes, pitch_classes, ~drop, drop)
                unconditional = self.loss(examples, codes, pitch_classes, drop, drop)
                batches.append([float(with_text.mean()), float(unconditional.mean())])
        text, none = np.mean(batches, axis=0)
        return {"valid_text": float(text), "valid_none": float(none)}

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return {
            "parameters": self.parameters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema.weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`."""
        self.parameters.load_state_dict(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.weights = state["average"]

    def save(self, out: Path) -> None:
        """Write `out`/model, the averaged weights in float16, or `out`/adapter; and a model card."""
        with self.ema.swapped_into(self.parameters):
            if self.run.lora is not None:
                lora.save(self.model.model, out / "adapter", model_card(self.model, "a LoRA adapter of "))
            else:
                self.model.save_pretrained(str(out / "model"), torch.float16)
                (out / "model" / "README.md").write_text(model_card(self.model), encoding="utf-8")


def crop_seconds(run: TuneRun, model: MusicGen) -> float:
    """Length of a crop.

    Raises: ValueError unless it is at least a frame and at most the model's window, or for an empty batch.
    """
    if not (isinstance(run.batch, int) and run.batch > 0):
        raise ValueError(f"batch is {run.batch!r}; it must be an integer of at least 1")
    seconds = model.max_duration if run.seconds is None else run.seconds
    if not 1 / model.frame_rate <= seconds <= model.max_duration:
        raise ValueError(
            f"seconds is {seconds:g}; a crop lasts from {1 / model.frame_rate:g} s, a frame, to "
            f"{model.max_duration:g} s, the model's window"
        )
    return seconds


def trainable_parameters(model: MusicGen, layers: int | None) -> list[nn.Parameter]:
    """Parameters to train, with gradients enabled: all but codec and T5, or the last `layers` and the heads.

    Raises: ValueError if `layers` is not between 1 and the model's number of layers.
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


def model_card(model: MusicGen, what: str = "") -> str:
    """README.md of the fine-tuned model, or of `what` belongs to it."""
    tag = {hub.MIT: "mit", hub.CC_BY_NC: "cc-by-nc-4.0"}.get(model.licence, "other")
    return (
        f"---\nlicense: {tag}\npipeline_tag: text-to-audio\ntags: [music, MusicGen]\n---\n\n"
        f"{what}{model.name}, fine-tuned on a folder of recordings with `python -m mgkit train tune`.\n\n"
        f"The licence of the original weights applies to these, too: {model.licence}. The recordings have "
        "licences of their own; ask the person who trained the model.\n"
    )


def sample(model: MusicGen, recordings: list[Recording]) -> list[tuple[str, Tensor]]:
    """(caption, generated wave [C, N]) for the first PAGE_CAPTIONS captions."""
    captions = list(dict.fromkeys(recording.caption for recording in recordings))[:PAGE_CAPTIONS]
    model.set_generation_params(duration=min(6.0, model.max_duration))
    return list(zip(captions, model.generate(captions, seed=0), strict=True))


def tune(run: TuneRun, out: str | Path) -> tuple[MusicGen, Metrics, Metrics]:
    """(fine-tuned model, metrics before, metrics after). Writes into `out` and resumes a stopped run there.

    Raises: ValueError or FileNotFoundError for an unusable folder, and if `out` holds a run with other
    settings.
    """
    parse_budget(run, run.lr)
    out, recordings, processes = Path(out), find(run.folder), Processes()
    model = MusicGen.get_pretrained(run.model, processes.device, torch.float32)
    crop_seconds(run, model)
    if run.lora is not None:
        lora.parse_rank(model.model, run.lora)
    # Captions that are too long for T5 are reported before the recordings are encoded.
    model.conditioner.text.tokens([recording.caption for recording in recordings])
    run = replace(run, recordings=fingerprint(recordings), weights=digest(model.lm.heads))
    if processes.rank == 0:
        claim(out, run)
        tokenize(model, recordings, out / "tokens.safetensors")
    # The other processes wait for the cache and read it.
    processes.barrier()
    examples = tokenize(model, recordings, out / "tokens.safetensors")
    learner = TuneLearner(run, model, *split(examples, run.seed))
    before = sample(model, recordings) if processes.rank == 0 else []
    threads = torch.get_num_threads()
    # Shards of a batch run side by side and share the cores.
    torch.set_num_threads(max(1, threads // len(processes.shards(run.batch))))
    try:
        end = train(run, out, learner, lr=run.lr, measure_every=MEASURE_EVERY)
    finally:
        torch.set_num_threads(threads)
    start = history.read(out / "log.csv")[0]
    tuned = MusicGen.get_pretrained(str(out / "model") if run.lora is None else run.model, processes.device)
    if run.lora is not None:
        tuned.load_adapter(out / "adapter")
    if processes.rank == 0:
        write_page(out, tuned, before, sample(tuned, recordings), start, end)
    return tuned, start, end


def write_page(
    out: Path,
    tuned: MusicGen,
    before: list[tuple[str, Tensor]],
    after: list[tuple[str, Tensor]],
    start: Metrics,
    end: Metrics,
) -> None:
    """Write `out`/index.html with samples of the first captions before and after."""
    items: list[str | figures.Player] = [
        f"Validation loss in nats per token: {start['valid_text']:.3f} before, {end['valid_text']:.3f} "
        f"after. Licence of the weights: {tuned.licence}."
    ]
    for (caption, old), (_, new) in zip(before, after, strict=True):
        items += [caption, figures.players([("before", old), ("after", new)], tuned.sample_rate)]
    figures.page(items, out / "index.html", "Before and after")


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train tune`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train tune",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Fine-tune a model on a folder of audio files, each with its caption in a .txt beside "
        "it, or all captions in captions.csv (file, caption), metadata.csv or metadata.jsonl.",
    )
    parser.add_argument("folder", help="captioned recordings")
    parser.add_argument(
        "--model", default=TuneRun.model, help="name, hub id or folder of the model to start from"
    )
    parser.add_argument(
        "--out", default="runs/mine", help="folder of the run; a stopped run in it is resumed"
    )
    parser.add_argument("--minutes", type=ranges.amount, default=TuneRun.minutes, help="budget in minutes")
    parser.add_argument("--steps", type=ranges.count, help="budget in steps, instead of --minutes")
    parser.add_argument("--batch", type=ranges.count, default=TuneRun.batch, help="crops per batch")
    parser.add_argument("--seconds", type=ranges.amount, help="length of a crop; default: the model's window")
    parser.add_argument(
        "--layers", type=ranges.count, help="train only this many last layers, to save memory and time"
    )
    parser.add_argument(
        "--lora", type=ranges.count, metavar="RANK", help="train a LoRA adapter of this rank, such as 8"
    )
    parser.add_argument(
        "--lr",
        type=ranges.amount,
        help=f"peak learning rate; default: {TuneRun.lr:g}, or {lora.LR:g} with --lora",
    )
    parser.add_argument(
        "--seed", type=ranges.index, default=TuneRun.seed, help="seed of crops and validation split"
    )
    args = parser.parse_args(argv)
    run = TuneRun(
        args.folder,
        args.model,
        steps=args.steps,
        minutes=None if args.steps else args.minutes,
        batch=args.batch,
        seconds=args.seconds,
        layers=args.layers,
        lora=args.lora,
        lr=args.lr or (TuneRun.lr if args.lora is None else lora.LR),
        seed=args.seed,
    )
    _, start, end = tune(run, args.out)
    if Processes().rank > 0:
        return
    print(json.dumps({"before": {name: start[name] for name in end}, "after": end}))
    print(f"listen: {args.out}/index.html")
    if args.lora is None:
        print(f"load it with  MusicGen.get_pretrained({args.out + '/model'!r})")
    else:
        name, adapter = args.model, args.out + "/adapter"
        print(f"load it with  MusicGen.get_pretrained({name!r})  and  model.load_adapter({adapter!r})")


if __name__ == "__main__":
    main()

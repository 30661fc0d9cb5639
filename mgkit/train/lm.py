"""Training of the language model and its text encoder: next-token prediction, given captions and melodies.

Axes: B batch, K codebooks, T frames, F chroma frames, Q auxiliary losses.

    caption, melody -> Condition (prefix) --.
    codes [B, K, T] -> delayed steps -------+-> language model -> cross-entropy per codebook    (loss.py)
                                            '-> middle layer -> labels of every frame           (auxiliary.py)

The run, in order: pretrain the text encoder on the attributes in the captions (attributes.py); initialize
heads that follow the melody (--align, align.py); then take gradient steps on batches of crops (batches.py),
with Muon (muon.py) for the matrices of the transformer and AdamW for everything else. The result is an
exponential moving average of the weights (ema.py). Conditions are dropped at random for classifier-free
guidance, exactly as in generation: zeros for the text, pitch class 0 for the melody.

Left out: gradient accumulation, sharded optimizers, and loss scaling, which bfloat16 does not need.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mgkit import ranges
from mgkit.band.labels import dataset_labels
from mgkit.lm import LMConfig
from mgkit.train.align import align
from mgkit.train.attributes import pretrain_text_encoder
from mgkit.train.auxiliary import AuxiliaryHead
from mgkit.train.batches import Augmentation, Batch, Batches, Planner
from mgkit.train.cuda_graphs import Readback
from mgkit.train.ema import EMA
from mgkit.train.history import Metrics
from mgkit.train.loop import train
from mgkit.train.loss import attend_for, codebook_losses, delayed, losses
from mgkit.train.model import TextConfig, load, new_model, save
from mgkit.train.muon import Muon
from mgkit.train.parallel import Processes, autocast, backward, supports_bf16
from mgkit.train.tokenizer import make_tokenizer
from mgkit.train.tokens import Tokens, add_options, new_caption, open_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Loss weights. The finer codebooks are close to noise for a small model and would dominate the gradient.
CODEBOOK_WEIGHTS = (2.0, 1.0, 0.6, 0.4)
# Clips for `align` and for `measure`
ALIGN_CLIPS, MEASURE_CLIPS = 48, 24


@dataclass(frozen=True)
class LMRun:
    """Every setting of a training run. Its budget is `steps` or `minutes`."""

    data: str
    valid: str
    tokens: str
    valid_tokens: str
    lm: LMConfig = field(
        default_factory=lambda: LMConfig(
            dim=256, layers=6, heads=4, feed_forward=1024, codebook_size=1024, cross_attention=False
        )
    )
    text: TextConfig = field(default_factory=TextConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    # Initial weights: the folder of a run, or the name or folder of a model. None: fresh weights.
    start: str | None = None
    # Initialize attention heads that follow the melody.
    align: bool = False
    # Weight of the auxiliary loss; 0 for clips without labels.
    auxiliary: float = 0.25
    # Steps of training the text encoder alone, before all others
    text_steps: int = 400
    steps: int | None = None
    minutes: float | None = 36.0
    # Clips per step: an even number on a CPU, where each half gets a thread; a multiple of the processes
    batch: int = 6
    lr: float = 2e-3
    # Learning rate of T5 relative to `lr`. At the full rate T5 collapses to one vector for all captions
    # before the language model attends to it.
    text_lr_ratio: float = 0.15
    # Decay of the moving average of the weights
    average: float = 0.995
    bf16: bool = True
    seed: int = 0


class LMLearner:
    """The model in training with its optimizers; a `loop.Learner`."""

    def __init__(
        self,
        run: LMRun,
        data: Tokens,
        valid: Tokens,
        tokenizer: "PreTrainedTokenizerBase",
        resumed: bool = False,
    ):
        torch.manual_seed(run.seed)
        self.processes = Processes()
        self.run, self.data, self.valid = run, data, valid
        frames, device = data.codes.shape[-1], self.processes.device
        on_gpu = device.type == "cuda"

        # 1. The model: initial weights, a pretrained text encoder, heads that follow the melody
        if run.start:
            self.model = load(run.start)
        else:
            self.model = new_model(run.lm, run.text, tokenizer, data.melody.shape[1])
        self.model.train().requires_grad_(True).to(device)
        if run.text_steps and not resumed:
            pretrain_text_encoder(self.model.conditioner.text, data.pieces, run.text_steps, seed=run.seed)
        if run.align and not resumed:
            rows = np.arange(min(ALIGN_CLIPS, len(data)))
            codes, melody = data.batch(rows, frames)
            texts = [new_caption(data.pieces[row], np.random.default_rng(row)) for row in rows]
            align(self.model, codes, texts, melody)

        # 2. The auxiliary head and its labels; they include the chords
        self.auxiliary: AuxiliaryHead | None = None
        self.labels: np.ndarray | None = None
        labels = None
        if run.auxiliary:
            labels = dataset_labels(data.pieces, data.seconds, frames, data.melody.shape[1])
            self.labels = labels[0]
            self.auxiliary = AuxiliaryHead(self.model.lm.config).to(device)
        planner = Planner(data.pieces, tokenizer, frames, run.batch, run.augmentation, run.seed)
        self.batches = Batches(data, planner, device, self.model.lm.config.special, labels)

        # 3. Optimizers: Muon needs fewer steps than AdamW, but only applies to matrices.
        matrices = [p for p in self.model.lm.layers.parameters() if p.dim() == 2]
        t5 = list(self.model.conditioner.text.t5.parameters())
        assigned = {id(p) for p in [*matrices, *t5]}
        others = [p for p in self.model.parameters() if id(p) not in assigned]
        if self.auxiliary:
            others += self.auxiliary.parameters()
        muon_dtype = torch.bfloat16 if supports_bf16(device) else torch.float32
        self.optimizers = [
            Muon(matrices, run.lr, 0.05, muon_dtype),
            torch.optim.AdamW(others, run.lr, betas=(0.9, 0.97), weight_decay=0.01, fused=on_gpu),
            torch.optim.AdamW(t5, run.lr, betas=(0.9, 0.97), weight_decay=0.01, fused=on_gpu),
        ]
        self.lr_ratios = (1.0, 1.0, run.text_lr_ratio)
        self.parameters: list[nn.Parameter] = [*matrices, *others, *t5]
        self.processes.broadcast(self.parameters)
        self.ema = EMA(self.model, run.average)
        self.readback = Readback()
        weights = torch.tensor(CODEBOOK_WEIGHTS[: run.lm.codebooks], device=device)
        # [K], 1 on average
        self.codebook_weights = weights / weights.mean()

    def step(self, step: int, lr: float) -> Metrics:
        """Train on one batch; see `loop.Learner`."""
        batch = self.batches[step]
        shards = self.processes.shards(len(batch))
        values = backward(lambda shard: self.loss(batch[shard]), shards, self.parameters, self.processes)
        norm = self.update(step, lr)

        weights = self.codebook_weights
        codebooks, auxiliary = values[: len(weights)] / weights, values[len(weights) :]
        row = {"loss": codebooks.mean(), "norm": norm}
        if self.auxiliary:
            row["auxiliary"] = auxiliary.sum() / self.run.auxiliary
        return self.readback(row | {f"book{k}": value for k, value in enumerate(codebooks)})

    def loss(self, batch: Batch) -> Tensor:
        """Weighted losses to average: [K] of the codebooks, and [Q] of the auxiliary head if there is one."""
        model, lm = self.model, self.model.lm
        with self.autocast():
            condition = model.condition_on_tokens(batch.ids, batch.mask, batch.melody, batch.keep_caption)
            if self.auxiliary is None or batch.labels is None:
                return losses(lm, batch.codes, condition, batch.history) * self.codebook_weights
            inputs, targets = delayed(lm, batch.history)[..., :-1], delayed(lm, batch.codes)[..., 1:]
            layers = (self.auxiliary.layer, lm.config.layers)
            streams = lm.residuals(inputs, condition, layers=layers, attend=attend_for(lm))
            middle, last = (stream[:, -inputs.shape[-1] :] for stream in streams)
            codebooks = codebook_losses(lm, lm.norm(last), targets) * self.codebook_weights
            return torch.cat([codebooks, self.auxiliary(middle, batch.labels) * self.run.auxiliary])

    def update(self, step: int, lr: float) -> Tensor:
        """Clip the gradients, step the optimizers, update the average; returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, ratio in zip(self.optimizers, self.lr_ratios, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * ratio
            optimizer.step()
        self.ema.update(self.model, step)
        return norm

    @torch.no_grad()
    def measure(self) -> Metrics:
        """Validation losses with the true conditions, with those of another clip, and with null ones."""
        count = min(MEASURE_CLIPS, len(self.valid))
        codes, melody = self.valid.batch(np.arange(count), self.valid.codes.shape[-1])
        texts = [captions[0] for captions in self.valid.captions[:count]]
        other_texts, other_melody, no_melody = texts[1:] + texts[:1], melody.roll(1, 0), melody * 0
        # name: texts, melody, whether the texts are kept
        cases = {
            "all": (texts, melody, True),
            "text": (texts, no_melody, True),
            "text_other": (other_texts, no_melody, True),
            "melody": (texts, melody, False),
            "melody_other": (texts, other_melody, False),
            "none": (texts, no_melody, False),
        }
        # On a CPU, the working set of a few clips fits its cache.
        size, row = count if self.processes.device.type == "cuda" else 8, {}
        with self.ema.swapped_into(self.model), self.autocast():
            for name, (case_texts, case_melody, keep_text) in cases.items():
                means = []
                for start in range(0, count, size):
                    part = slice(start, min(start + size, count))
                    keep = torch.full((part.stop - start,), keep_text)
                    condition = self.model.condition(case_texts[part], case_melody[part], keep)
                    means.append(losses(self.model.lm, codes[part], condition).mean())
                row[f"valid_{name}"] = float(torch.stack(means).mean())
        return row

    def autocast(self) -> torch.autocast:
        """The run's autocast context."""
        return autocast(self.processes.device, self.run.bf16)

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.ema.weights,
            "auxiliary": self.auxiliary.state_dict() if self.auxiliary else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema.weights = state["average"]
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])

    def save(self, out: Path) -> None:
        """Write `out`/lm.pt (configurations and averaged weights) and `out`/tokenizer."""
        save(self.model, self.ema.weights, out)


def validate_codebooks(run: LMRun, data: Tokens) -> None:
    """Check the tokens' codebooks against the language model's.

    Raises:
        ValueError: Their number or size differs.
    """
    actual = data.metadata["codebooks"], data.metadata["codebook_size"]
    expected = run.lm.codebooks, run.lm.codebook_size
    if actual != expected:
        raise ValueError(
            f"{run.tokens} has {actual[0]} codebooks of {actual[1]}, but the language model predicts "
            f"{expected[0]} of {expected[1]}: encode the clips with a codec of that shape "
            "(python -m mgkit train tokens)"
        )


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train lm`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train lm",
        description="Train the language model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser)
    option = parser.add_argument
    option("--out", default="runs/lm", help="folder of the run; an interrupted run is resumed")
    option("--minutes", type=ranges.amount, default=LMRun.minutes, help="budget in minutes")
    option("--steps", type=ranges.count, help="budget in steps, instead of minutes")
    option(
        "--batch",
        type=ranges.count,
        default=LMRun.batch,
        help="clips per batch; batches of shorter crops have more",
    )
    option("--start", help="initial weights: the folder of a run, or the name or folder of a model")
    option(
        "--text-steps",
        type=ranges.index,
        default=LMRun.text_steps,
        help="steps of training the text encoder first",
    )
    option("--align", action="store_true", help="initialize attention heads that follow the melody")
    option(
        "--auxiliary",
        type=ranges.weight,
        default=LMRun.auxiliary,
        help="weight of the auxiliary loss; 0: none",
    )
    option(
        "--corrupt-history",
        type=ranges.fraction,
        default=Augmentation.corrupt_history,
        help="fraction of examples with segments of another clip in their history",
    )
    option("--lr", type=ranges.amount, default=LMRun.lr, help="peak learning rate")
    option("--seed", type=ranges.index, default=LMRun.seed, help="seed of the weights and the batches")
    args = parser.parse_args(argv)
    data, valid = open_splits(args)
    run = LMRun(
        args.data,
        args.valid,
        args.tokens,
        args.valid_tokens,
        augmentation=Augmentation(corrupt_history=args.corrupt_history),
        start=args.start,
        align=args.align,
        auxiliary=args.auxiliary,
        text_steps=args.text_steps,
        steps=args.steps,
        minutes=None if args.steps else args.minutes,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
    )
    validate_codebooks(run, data)
    if Processes().size == 1:
        # Each half of a batch has a thread of its own.
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    if run.start:
        tokenizer = load(run.start).conditioner.text.tokenizer
    else:
        tokenizer = make_tokenizer(data.captions, run.text.pieces)
    resumed = (Path(args.out) / "checkpoint.pt").is_file()
    learner = LMLearner(run, data, valid, tokenizer, resumed)
    # about every five minutes on a CPU, and twice a minute on a GPU
    measure_every = 1500 if learner.processes.device.type == "cuda" else 200
    last = train(run, args.out, learner, lr=run.lr, measure_every=measure_every)
    if learner.processes.rank == 0:
        print(json.dumps(last))


if __name__ == "__main__":
    main()

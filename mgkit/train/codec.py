"""Training the codec (EnCodec, arXiv:2210.13438): all of it, or the decoder alone.

Axes: B batch, K codebooks, T frames, N samples, D latent width, V codebook size.

    wave -> encoder -> latents -> nearest codebook entries -> decoder -> wave'    loss: distance(wave, wave')
                          `------ straight-through gradient ------^

The loss compares mel spectra at several resolutions, onsets and the waveform; from a given step on the
decoder also trains against a discriminator. The codebooks follow the latents by moving averages
(`codebooks.py`).
"""

import argparse
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mgkit import audio, checkpoint, hub, ranges
from mgkit.codec import Codec, CodecConfig, Conv, Residual, UpConv
from mgkit.devices import best_device
from mgkit.train import storage
from mgkit.train.channels_last import ChannelsLast
from mgkit.train.clips import Clips, to_float
from mgkit.train.codebooks import Codebooks
from mgkit.train.cuda_graphs import Captured, Readback, Replayed
from mgkit.train.discriminator import Discriminator, LossBalancer
from mgkit.train.distances import (
    LONG,
    SHORT,
    WINDOWS,
    mel_distances,
    noise_between_partials,
    noise_level,
    onset_correlation,
    si_sdr,
    spectral_losses,
)
from mgkit.train.ema import EMA
from mgkit.train.history import Metrics
from mgkit.train.loop import learning_rate, train
from mgkit.train.muon import Muon
from mgkit.train.parallel import Processes, autocast, supports_bf16
from mgkit.train.sounds import Sounds, read_recordings

__all__ = ["CodecLearner", "CodecRun", "load", "main", "mel_distances", "si_sdr", "snapshot"]

VALID_CLIPS = 8  # whole clips that a run is measured on
MEASURE_EVERY = {"cpu": 100, "mps": 200, "cuda": 4000}  # steps; a checkpoint is written as often
WARMUP = 100  # steps, at most
COMMIT = 0.2  # weight of the commitment loss
# Steps of the decoder per step of the discriminator, which otherwise becomes too strong (EnCodec, §3.4) and
# takes more than half of the time
DISCRIMINATOR_EVERY = 2
# At EnCodec's 3e-4, its loss is still 1, no better than guessing, after the 300 steps of a short run
DISCRIMINATOR_LR = 1e-3


@dataclass(frozen=True)
class CodecRun:
    """Everything that decides a run; `steps` or `minutes` is its budget."""

    data: str
    valid: str
    # Also train on the recordings that ship with mgkit, so that the codec is not limited to one synthesizer.
    recordings: bool = True
    codec: CodecConfig = field(default_factory=lambda: CodecConfig(filters=16, dim=32, codebook_size=1024))
    steps: int | None = None
    minutes: float | None = 40.0
    batch: int = 8
    frames: int = 50  # length of a crop
    lr: float = 1e-3
    average: float = 0.999  # decay of the moving average of the weights
    muon: bool = True  # Muon instead of AdamW for the kernels of convolutions
    mel_db: float = 0.1  # weight of a dB of mel distance
    fine: float = 0.05  # weight of a dB of distance of single bins
    steady: float = 0.2  # weight of a dB of distance of single bins, averaged over a crop
    onset: float = 0.1  # weight of a dB of difference in the rise of mel bands
    linear: float = 0.3  # weight of the relative distance of mel magnitudes
    # Weight of a dB of the error's level, while the encoder learns. From tokens alone the decoder cannot know
    # the phase, and the smallest error is then that of a smaller wave: it would become too quiet.
    noise: float = 0.1
    books_from: int = 100  # steps without quantization, before k-means finds the first codebook entries
    fewer_books: float = 0.15  # share of steps that use only the first few codebooks
    start: str | None = None  # a run's folder, or a model's name or folder: its weights instead of fresh ones
    decoder_only: bool = False  # encoder and codebooks stay as they are, and so do the tokens of all sounds
    adversary_from: int | None = None  # the step from which the decoder trains against a discriminator
    compiled: bool = False  # fuse layers with `torch.compile`, which needs a C++ compiler
    bf16: bool = True
    seed: int = 0


def initialize(codec: Codec) -> None:
    """Weights that keep the variance of their input: with PyTorch's own the signal fades in twenty layers,
    and after four hundred steps the decoder's output still has nothing of the waveform."""
    for module in codec.modules():
        if isinstance(module, Conv | UpConv):
            taps = 2 if isinstance(module, UpConv) else module.kernel_size[0]  # that meet in one output
            nn.init.normal_(module.weight, std=(taps * module.in_channels) ** -0.5)
            nn.init.zeros_(module.bias)
        if isinstance(module, Residual):
            nn.init.normal_(module.block[3].weight, std=0.5 * module.block[3].in_channels ** -0.5)


class CodecLearner:
    """A codec, its codebooks and its optimizers. `data` and `valid` are `Clips`."""

    def __init__(self, run: CodecRun, data: Any, valid: Any):
        torch.manual_seed(run.seed)
        run = replace(run, noise=0.0) if run.decoder_only else run
        self.run, self.device, rate = run, best_device(), run.codec.sample_rate
        self.fused = self.device.type == "cuda" or None
        recordings = read_recordings(hub.shipped("recordings"), rate) if run.recordings else []
        self.sounds = Sounds(data, run.data, recordings, self.device)
        self.codec = Codec(run.codec)
        if run.start:
            self.codec.load_state_dict(load(run.start).state_dict())
        else:
            initialize(self.codec)
        self.codec.to(self.device)
        self.fast = ChannelsLast(self.codec, run.compiled)
        self.encode = Captured(self._encode, self.codec.encoder)
        self.decode = Captured(self._decode, self.codec.decoder)
        self.spectral = {window: Replayed(partial(self._spectral, window)) for window in WINDOWS}
        self.generator = torch.Generator(self.device)
        self.books = Codebooks(self.codec.quantizer, self.generator)
        learned = [self.codec.decoder] if run.decoder_only else [self.codec.encoder, self.codec.decoder]
        self.learned = [p for part in learned for p in part.parameters()]
        # Muon for the kernels of convolutions; for the LSTM's matrices it would take as long as a fifth of
        # the step
        layers = [layer for part in learned for layer in part.modules() if isinstance(layer, Conv | UpConv)]
        matrices = [layer.weight for layer in layers if min(layer.weight.flatten(1).shape) > 1 and run.muon]
        others = [p for p in self.learned if all(p is not m for m in matrices)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, run.lr, betas=(0.8, 0.99), weight_decay=1e-3, fused=self.fused)
        ]
        if matrices:
            dtype = torch.bfloat16 if supports_bf16(self.device) else torch.float32
            self.optimizers.append(Muon(matrices, run.lr, 1e-3, dtype, 0.9))
        self.discriminator = Discriminator().to(self.device)
        self.balancer = LossBalancer({"distance": 0.02, "adversarial": 0.01, "features": 0.02})
        self.discriminate = Captured(self._discriminate, self.discriminator)
        self.oppose = Replayed(self._oppose)
        self.against = torch.optim.AdamW(
            self.discriminator.parameters(), DISCRIMINATOR_LR, betas=(0.5, 0.9), fused=self.fused
        )
        self.readback = Readback()
        self.ema = EMA(self.codec, run.average)
        self.valid = to_float(valid.mix[:VALID_CLIPS])[:, None]
        self.valid_melody = to_float(valid.melody[: VALID_CLIPS // 2])[:, None]

    def step(self, step: int, lr: float) -> Metrics:
        """One batch; see `loop.Learner`. The values leave the device together, once."""
        run, rng = self.run, np.random.default_rng((self.run.seed, step))
        if run.steps:
            lr = learning_rate(run.lr, step / run.steps, min(0.02, WARMUP / run.steps))
        self.generator.manual_seed((run.seed << 32) + step)
        wave = self.sounds.crops(rng, run.batch, run.frames * run.codec.hop)
        latents, commit = self._latents(wave, step, rng)
        decoded = self.decode(latents)
        losses, gradients = self._distances(wave, decoded, rng)
        losses["commit"] = commit
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if run.adversary_from is None or step < run.adversary_from:
            gradient = gradients["distance"]
        else:
            if step % DISCRIMINATOR_EVERY == 0:
                self.against.zero_grad()
                losses["discriminator"] = self.discriminate(wave, decoded.detach())
                losses["discriminator"].backward()
                self.against.step()
            found, more = self.oppose(wave, decoded)
            losses |= found
            gradient = self.balancer(gradients | more)
        parts = [(decoded, gradient), (commit, torch.full_like(commit, COMMIT))]
        parts = [pair for pair in parts if pair[0].requires_grad]
        torch.autograd.backward(*zip(*parts, strict=True))
        losses["norm"] = nn.utils.clip_grad_norm_(self.learned, 3.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.ema.update(self.codec, step)
        books = {f"book{k}": value for k, value in enumerate(self.books.perplexity())}
        return {"lr": lr} | self.readback(losses | books)

    def _distances(
        self, wave: Tensor, decoded: Tensor, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss of `decoded` against `wave`, [B, 1, N] each, its parts, and its gradient for `decoded`."""
        run, noisy = self.run, decoded.detach().requires_grad_()
        noise = noise_level(wave, noisy).mean()
        (gradient,) = torch.autograd.grad(run.noise * noise, noisy)
        # a short and a long window each step: all five take as long as the codec itself
        windows = [int(rng.choice(group)) for group in (SHORT, LONG)]
        found = [self.spectral[window](wave, decoded) for window in windows]
        losses = {name: torch.stack([f[name] for f, _ in found if name in f]).sum() for name in found[-1][0]}
        losses["noise"] = noise.detach()
        loss = torch.stack([getattr(run, name) * value for name, value in losses.items()]).sum()
        return {"loss": loss} | losses, {"distance": gradient + found[0][1] + found[1][1]}

    def _spectral(self, window: int, wave: Tensor, decoded: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of one window, halved where the other window has them too, and their gradient."""
        decoded = decoded.detach().requires_grad_()
        found = spectral_losses(wave, decoded, self.run.codec.sample_rate, window)
        once = ("fine", "steady")
        losses = {name: value if name in once else value / 2 for name, value in found.items()}
        total = torch.stack([getattr(self.run, name) * value for name, value in losses.items()]).sum()
        (gradient,) = torch.autograd.grad(total, decoded)
        return {name: value.detach() for name, value in losses.items()}, gradient

    def _encode(self, wave: Tensor) -> Tensor:
        with autocast(self.device, self.run.bf16):
            return self.fast.encode(wave).float()

    def _decode(self, latents: Tensor) -> Tensor:
        with autocast(self.device, self.run.bf16):
            return self.fast.decode(latents).float()

    def _discriminate(self, wave: Tensor, decoded: Tensor) -> Tensor:
        """The discriminator's own loss."""
        with autocast(self.device, self.run.bf16):
            return self.discriminator.loss(wave, decoded).float()

    def _oppose(self, wave: Tensor, decoded: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The decoder's losses against the discriminator, and the gradient of each for `decoded`."""
        decoded = decoded.detach().requires_grad_()
        with autocast(self.device, self.run.bf16):
            found = self.discriminator.generator_losses(wave, decoded)
        losses = dict(zip(("adversarial", "features"), found, strict=True))
        gradients = {
            name: torch.autograd.grad(loss, decoded, retain_graph=True)[0] for name, loss in losses.items()
        }
        return {name: loss.detach().float() for name, loss in losses.items()}, gradients

    def _latents(self, wave: Tensor, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The decoder's input for `wave`, [B, D, T], and the commitment loss."""
        run, keep = self.run, self.run.codec.codebooks
        if rng.random() < run.fewer_books:
            keep = int(rng.integers(1, keep + 1))
        if run.decoder_only:
            with torch.no_grad():
                codes = self.codec.quantizer.encode(self.fast.encode(wave), keep)
                return self.codec.quantizer.decode(codes), wave.new_zeros(())
        if step == run.books_from and not run.start:
            many = self.sounds.crops(rng, 4 * run.codec.codebook_size // run.frames + 1, wave.shape[-1])
            with torch.no_grad(), autocast(self.device, self.run.bf16):
                found = torch.cat([self.codec.encoder(part).float() for part in many.split(8)])
            self.books.start(found.transpose(1, 2).flatten(0, 1))
        latents = self.encode(wave)
        if step < run.books_from and not run.start:
            return latents, latents.new_zeros(())
        return self.books(latents, keep)

    @torch.no_grad()
    def measure(self) -> Metrics:
        """Metrics of whole validation clips with the averaged weights, of the mix and of the melody alone."""
        rate = self.run.codec.sample_rate
        with self.ema.swapped_into(self.codec):
            mix, melody = self._decoded(self.valid), self._decoded(self.valid_melody)
        return {
            "valid_mel_db": float(mel_distances(self.valid, mix, rate)[0]),
            "valid_si_sdr": float(si_sdr(self.valid, mix).mean()),
            "valid_onset": onset_correlation(self.valid[:, 0], mix[:, 0], rate),
            "valid_gaps_db": noise_between_partials(self.valid_melody[:, 0], melody[:, 0], rate),
        }

    def _decoded(self, waves: Tensor) -> Tensor:
        """`waves` [B, 1, N] through the whole codec, a few at a time, on the CPU."""
        length = waves.shape[-1]
        parts = [self.codec.decode(self.codec.encode(part.to(self.device))).cpu() for part in waves.split(4)]
        return torch.cat(parts)[..., :length]

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return {"codec": self.codec.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                "average": self.ema.weights, "counts": self.books.counts, "sums": self.books.sums,
                "discriminator": self.discriminator.state_dict(), "against": self.against.state_dict(),
                "sizes": self.balancer.sizes}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`. From a `snapshot` the optimizers start anew, the weights from their average."""
        self.ema.weights = {name: w.float().to(self.device) for name, w in state["average"].items()}
        self.codec.load_state_dict(state.get("codec", self.ema.weights))
        self.books.counts = [counts.to(self.device) for counts in state["counts"]]
        self.books.sums = [sums.to(self.device) for sums in state["sums"]]
        for optimizer, saved in zip(self.optimizers, state.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(saved)
        if "discriminator" in state:
            self.discriminator.load_state_dict(state["discriminator"])
            self.against.load_state_dict(state["against"])
            self.balancer.sizes = state["sizes"]

    def save(self, out: Path) -> None:
        """`out`/codec.pt: the configuration and the averaged weights."""
        averaged = {name: weight.cpu() for name, weight in self.ema.weights.items()}
        result = {"config": asdict(self.run.codec), "weights": averaged}
        storage.save(out / "codec.pt", result)


def snapshot(out: str | Path, file: str | Path) -> None:
    """Write a small checkpoint of the run in `out` to `file`: averaged weights in float16, codebook
    statistics and history, without optimizers. `train codec --resume` continues from it."""
    state = storage.load(Path(out) / "checkpoint.pt")
    kept = {name: state["learner"][name] for name in ("average", "counts", "sums")}
    kept["average"] = {name: weight.half() for name, weight in kept["average"].items()}
    storage.save(file, state | {"learner": kept})


def load(path: str | Path) -> Codec:
    """The codec of a run's folder (or its file), or of a model's name or folder, in float32."""
    path = Path(path)
    if (path / "config.json").is_file() or str(path) in hub.NAMES:
        return checkpoint.load(str(path), torch.device("cpu"), torch.float32).codec.eval()
    path = path / "codec.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train a codec first (python -m mgkit train codec)")
    result = storage.load(path)
    try:
        shape: dict[str, Any] = result["config"] | {"ratios": tuple(result["config"]["ratios"])}
        codec = Codec(CodecConfig(**shape))
        codec.load_state_dict(result["weights"])
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{path} is not the codec of a training run: give the folder of one") from None
    return codec.eval()


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train codec`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit train codec", description="Train the codec.")
    add = parser.add_argument
    add("--data", default="runs/band", help="rendered clips to train on")
    add("--valid", default="runs/valid", help="rendered clips to measure on")
    add("--out", default="runs/codec", help="folder of the run; a run in it is resumed")
    add("--minutes", type=ranges.amount, default=40.0, help="budget in minutes of the clock")
    add("--steps", type=ranges.count, default=None, help="budget in steps instead")
    add("--filters", type=ranges.count, default=16, help="width of the codec")
    add("--batch", type=ranges.count, default=8, help="crops of one second in a batch")
    add("--lr", type=ranges.amount, default=CodecRun.lr, help="peak learning rate")
    add("--start", default=None, help="initial weights: a run's folder, or a model's name or folder")
    add("--resume", default=None, help="snapshot to continue from if --out has no checkpoint yet")
    add("--snapshot", default=None, help="write a snapshot of the run in --out to this file, and stop")
    add("--decoder-only", action="store_true", help="keep the tokens of all sounds (with --start)")
    add(
        "--adversary-from",
        type=ranges.index,
        default=None,
        help="first step with the discriminator (default: never)",
    )
    add("--compile", action="store_true", help="fuse layers with torch.compile; needs a C++ compiler")
    add("--seed", type=ranges.index, default=0)
    args = parser.parse_args(argv)
    if Processes().size > 1:
        raise ValueError(
            "the codec trains in one process, which updates its codebooks itself: start it without accelerate"
        )
    if args.decoder_only and not args.start:
        raise ValueError("--decoder-only keeps a codec's tokens: name that codec with --start")
    if args.snapshot:
        return snapshot(args.out, args.snapshot)
    shape = CodecConfig(filters=args.filters, dim=32, codebook_size=1024)
    run = CodecRun(
        args.data,
        args.valid,
        codec=load(args.start).config if args.start else shape,
        steps=args.steps,
        minutes=None if args.steps else args.minutes,
        batch=args.batch,
        lr=args.lr,
        start=args.start,
        decoder_only=args.decoder_only,
        adversary_from=args.adversary_from,
        compiled=args.compile,
        seed=args.seed,
    )
    resumed = Path(args.out) / "checkpoint.pt"
    if args.resume and not resumed.is_file():
        resumed.parent.mkdir(parents=True, exist_ok=True)
        audio.replace_file(resumed, lambda path: path.write_bytes(Path(args.resume).read_bytes()))
    learner = CodecLearner(run, *(Clips(folder, run.codec.sample_rate) for folder in (args.data, args.valid)))
    print(train(run, args.out, learner, lr=run.lr, measure_every=MEASURE_EVERY[learner.device.type]))


if __name__ == "__main__":
    main()

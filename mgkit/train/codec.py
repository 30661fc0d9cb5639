"""Teaching the codec (EnCodec, arXiv:2210.13438, without its discriminator): what goes in should come out.

Letters: B batch, K codebooks, T frames, N samples, D latent width, V codebook size.

    wave -> encoder -> latents -> nearest codewords -> decoder -> wave'     loss: distance(wave, wave')
                          `------- straight through -------^

Gradients pass the codewords as if they were not there. The codewords themselves follow the latents that chose
them: a moving average, started by k-means on a real batch; those that nobody chooses are put elsewhere.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit import audio, checkpoint, hub
from mgkit.codec import Codec, CodecConfig, Conv, Quantizer, Residual, UpConv
from mgkit.musicgen import best_device
from mgkit.train.clips import Clips, to_float
from mgkit.train.discriminator import Adversary, Balance
from mgkit.train.ema import EMA
from mgkit.train.history import Metrics
from mgkit.train.loop import train
from mgkit.train.parallel import Processes, autocast

WINDOWS = (256, 512, 1024, 2048, 4096)  # samples, of the spectra that are compared
FLOOR_DB = -80.0  # below this a band counts as silent; a full-scale sine is 0 dB


@dataclass(frozen=True)
class CodecRun:
    """Everything that decides a run; `steps` or `minutes` is its budget."""

    data: str
    valid: str
    recordings: str | None = "data/recordings"  # a few real sounds, so that foreign ones do not surprise it
    codec: CodecConfig = field(default_factory=lambda: CodecConfig(filters=16, dim=32, codebook_size=1024))
    steps: int | None = None
    minutes: float | None = 40.0
    batch: int = 8
    frames: int = 50  # length of a crop
    lr: float = 1e-3
    books_from: int = 100  # steps without quantization, before k-means finds the first codewords
    fewer_books: float = 0.15  # how often only the first few codebooks are used
    start: str | None = None  # a run's folder, or a model's name or folder: its weights instead of fresh ones
    decoder_only: bool = False  # encoder and codewords stay as they are, and so do the tokens of all sounds
    adversary_from: int | None = None  # the step from which an adversary listens to the decoder
    bf16: bool = True
    seed: int = 0


# -- distances -----------------------------------------------------------------------------------------------------


@lru_cache
def _mel_filters(rate: int, window: int) -> Tensor:
    from librosa.filters import mel

    filters = torch.from_numpy(mel(sr=rate, n_fft=window, n_mels=min(160, window // 16), norm=None)).float()
    return filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-8)


def mel_spectrum(wave: Tensor, rate: int, window: int) -> Tensor:
    """Magnitudes [..., mels, frames] of `wave` [..., N] in mel bands; about 1 for a full-scale sine."""
    hann = torch.hann_window(window, device=wave.device)
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(flat, window, window // 4, window=hann, return_complex=True).abs() * (
        2 / hann.sum()
    )
    return (_mel_filters(rate, window).to(wave.device) @ spectrum).view(
        *wave.shape[:-1], -1, spectrum.shape[-1]
    )


def mel_distances(a: Tensor, b: Tensor, rate: int, windows: Sequence[int] = WINDOWS) -> tuple[Tensor, Tensor]:
    """How far the waves [..., N] are apart: mean |difference| in dB, and mean |difference| of magnitudes over mean
    magnitude; both means over the mel spectra of all `windows`."""
    decibel, linear = [], []
    for window in windows:
        x, y = (mel_spectrum(wave, rate, window) for wave in (a, b))
        logs = [20 * m.clamp(min=10 ** (FLOOR_DB / 20)).log10() for m in (x, y)]
        decibel.append((logs[0] - logs[1]).abs().mean())
        linear.append((x - y).abs().mean() / x.mean().clamp(min=1e-6))
    return torch.stack(decibel).mean(), torch.stack(linear).mean()


def si_sdr(reference: Tensor, wave: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio [...] in dB of `wave` [..., N] (arXiv:1811.02508)."""
    scale = (wave * reference).sum(-1, keepdim=True) / reference.pow(2).sum(-1, keepdim=True).clamp(min=1e-8)
    target = scale * reference
    return (
        10 * (target.pow(2).sum(-1) / (wave - target).pow(2).sum(-1).clamp(min=1e-8)).clamp(min=1e-8).log10()
    )


# -- codebooks -----------------------------------------------------------------------------------------------------


class Books:
    """The codewords of a `Quantizer` while they learn: how often each is chosen, and the sum of what chose it."""

    DECAY = 0.99
    DEAD = 0.05  # of the mean use: a codeword chosen more rarely is moved

    def __init__(self, quantizer: Quantizer):
        self.books = [book.requires_grad_(False) for book in quantizer.codebooks]
        self.counts = [torch.ones(len(book), device=book.device) for book in self.books]
        self.sums = [book.clone() for book in self.books]

    @torch.no_grad()
    def start(self, latents: Tensor, rng: np.random.Generator) -> None:
        """K-means of `latents` [M, D] for the first codebook, of what it leaves over for the second, and so on."""
        left = latents.clone()
        for k, book in enumerate(self.books):
            pick = rng.choice(len(left), len(book), replace=len(left) < len(book))
            book.copy_(left[pick])
            for _ in range(10):
                codes = nearest(left, book)
                counts, sums = _gather(left, codes, len(book))
                book.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), book))
            self.counts[k], self.sums[k] = torch.ones_like(self.counts[k]), book.clone()
            left -= F.embedding(nearest(left, book), book)

    def __call__(self, latents: Tensor, keep: int, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Quantized latents [B, D, T] with straight-through gradients, and how far the latents are from their words.

        With `rng` the first `keep` codebooks learn from this batch.
        """
        flat = latents.transpose(1, 2).reshape(-1, latents.shape[1])
        left, commit = flat, flat.new_zeros(())
        for k, book in enumerate(self.books[:keep]):
            codes = nearest(left.detach(), book)
            word = F.embedding(codes, book).clone()
            if rng is not None:
                self._follow(k, left.detach(), codes, rng)
            commit = commit + F.mse_loss(left, word)
            left = left - word
        quantized = flat + (flat - left - flat).detach()
        return quantized.view(latents.shape[0], -1, latents.shape[1]).transpose(1, 2), commit

    @torch.no_grad()
    def _follow(self, k: int, latents: Tensor, codes: Tensor, rng: np.random.Generator) -> None:
        book, usual = self.books[k], len(latents) / len(self.books[k])
        counts, sums = _gather(latents, codes, len(book))
        self.counts[k].lerp_(counts, 1 - self.DECAY)
        self.sums[k].lerp_(sums, 1 - self.DECAY)
        dead = (self.counts[k] < self.DEAD * usual).nonzero()[:, 0]
        if len(dead):
            self.counts[k][dead] = usual
            self.sums[k][dead] = latents[rng.integers(0, len(latents), len(dead))] * usual
        book.copy_(self.sums[k] / self.counts[k][:, None].clamp(min=1e-8))

    def perplexity(self) -> list[float]:
        """How many codewords of each codebook are in even use, so to say; V at most."""
        shares = [counts / counts.sum().clamp(min=1e-8) for counts in self.counts]
        return [float(torch.exp(-(p * p.clamp(min=1e-10).log()).sum())) for p in shares]


def nearest(latents: Tensor, book: Tensor) -> Tensor:
    """Index [M] of the codeword of `book` [V, D] nearest to each of `latents` [M, D]."""
    return (2 * latents @ book.t() - book.pow(2).sum(dim=1)).argmax(dim=1)


def _gather(latents: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many latents chose each codeword [V], and their sums [V, D]."""
    sums = latents.new_zeros(size, latents.shape[1]).index_add_(0, codes, latents)
    return torch.bincount(codes, minlength=size).to(latents), sums


def read_recordings(folder: str | Path, rate: int) -> list[np.ndarray]:
    """The recordings of `folder` as int16 [1, N], mono and at `rate`; those under two seconds are left out."""
    found = []
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in audio.FORMATS):
        wave, own = audio.read(path)
        pcm = (audio.resample(wave.mean(dim=0, keepdim=True), own, rate).clamp(-1, 1) * 32767).short().numpy()
        found += [pcm] if pcm.shape[1] >= 2 * rate else []
    return found


def initialize(codec: Codec) -> None:
    """Weights that keep the size of what passes. With torch's own the sound fades on its way through twenty layers,
    and four hundred steps later nothing of the waveform has come out at the other end."""
    for module in codec.modules():
        if isinstance(module, Conv | UpConv):
            taps = 2 if isinstance(module, UpConv) else module.kernel_size[0]  # that meet in one output
            nn.init.normal_(module.weight, std=(taps * module.in_channels) ** -0.5)
            nn.init.zeros_(module.bias)
        if isinstance(module, Residual):
            nn.init.normal_(module.block[3].weight, std=0.5 * module.block[3].in_channels ** -0.5)


# -- the learner ---------------------------------------------------------------------------------------------------


class CodecLearner:
    """A codec, its codebooks and its optimizer. `mix` and `melody` are int16 [clips, N], on disk or in memory."""

    def __init__(self, run: CodecRun, data: Any, valid: Any):
        torch.manual_seed(run.seed)
        self.run, self.data, self.device = run, data, best_device()
        self.recordings = read_recordings(run.recordings, run.codec.sample_rate) if run.recordings else []
        self.codec = Codec(run.codec)
        if run.start:
            self.codec.load_state_dict(load(run.start).state_dict())
        else:
            initialize(self.codec)
        self.codec.to(self.device)
        self.books = Books(self.codec.quantizer)
        self.learned = list(self.codec.decoder.parameters())
        if not run.decoder_only:
            self.learned += self.codec.encoder.parameters()
        self.optimizer = torch.optim.AdamW(self.learned, run.lr, betas=(0.8, 0.99), weight_decay=1e-3)
        self.adversary = Adversary().to(self.device)
        self.balance = Balance({"distance": 0.02, "deceived": 0.01, "unlike": 0.02})
        self.against = torch.optim.AdamW(self.adversary.parameters(), 3e-4, betas=(0.5, 0.9))
        self.ema = EMA(self.codec, 0.99)
        self.valid = self.crops(np.random.default_rng(1), valid, 32)

    def crops(self, rng: np.random.Generator, clips: Any, count: int) -> Tensor:
        """Waves [count, 1, N]: cut anywhere, at levels from -14 to +2 dB.

        One in ten is a melody alone, and one in twenty a piece of a recording.
        """
        samples = self.run.frames * self.run.codec.hop
        rows = []
        for _ in range(count):
            kind, gain = rng.random(), 10 ** (rng.uniform(-14, 2) / 20) * rng.choice((-1, 1))
            source = clips.melody if kind < 0.1 else clips.mix
            if kind > 0.95 and clips is self.data and self.recordings:
                source = self.recordings[rng.integers(len(self.recordings))]
            clip, start = rng.integers(len(source)), rng.integers(source.shape[1] - samples + 1)
            rows.append((to_float(source[clip, start : start + samples]) * float(gain)).clamp(-1, 1))
        return torch.stack(rows)[:, None].to(self.device)

    def step(self, step: int, lr: float) -> Metrics:
        """One batch; see `loop.Learner`."""
        run, rng = self.run, np.random.default_rng((self.run.seed, step))
        wave = self.crops(rng, self.data, run.batch)
        words, commit = self._words(wave, step, rng)
        with self._precision():
            heard = self.codec.decoder(words)
        heard = heard.float()
        # two windows a step, for all of them take as long as the codec itself
        windows = rng.choice(WINDOWS, 2, replace=False).tolist()
        decibel, linear = mel_distances(wave, heard, run.codec.sample_rate, windows)
        error = wave - heard
        shape = error.abs().mean() / wave.abs().mean().clamp(min=1e-3)
        energy = error.pow(2).mean() / wave.pow(2).mean().clamp(min=1e-6)
        distance = 0.05 * decibel + 0.5 * linear + shape + 1.5 * energy
        losses = {"loss": distance + 0.2 * commit, "mel_db": decibel, "linear": linear, "shape": shape,
                  "energy": energy, "commit": commit}  # fmt: skip
        self.optimizer.zero_grad()
        if run.adversary_from is None or step < run.adversary_from:
            losses["loss"].backward()
        else:
            gradient, found = self._against(wave, heard, distance)
            losses |= found
            heard.backward(gradient, retain_graph=commit.requires_grad)
            if commit.requires_grad:
                (0.2 * commit).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses["norm"] = torch.nn.utils.clip_grad_norm_(self.learned, 3.0)
        self.optimizer.step()
        self.ema.update(self.codec, step)
        row = {name: float(value.detach()) for name, value in losses.items()}
        return row | {f"book{k}": p for k, p in enumerate(self.books.perplexity())}

    def _words(self, wave: Tensor, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """What the decoder is given for `wave`, [B, D, T], and how far the latents are from it, of their own size."""
        run = self.run
        keep = run.codec.codebooks
        if rng.random() < run.fewer_books:
            keep = int(rng.integers(1, keep + 1))
        if run.decoder_only:
            with torch.no_grad():
                return self.codec.quantizer.decode(self.codec.encode(wave, keep)), wave.new_zeros(())
        if step == run.books_from and not run.start:
            with torch.no_grad(), self._precision():
                found = self.codec.encoder(
                    self.crops(rng, self.data, 3 * run.codec.codebook_size // run.frames + 1)
                )
            self.books.start(found.float().transpose(1, 2).flatten(0, 1), rng)
        with self._precision():
            latents = self.codec.encoder(wave)
        latents = latents.float()
        if step < run.books_from and not run.start:
            return latents, latents.new_zeros(())
        words, commit = self.books(latents, keep, rng)
        # relative to the size of the latents, so that they cannot win by shrinking
        return words, commit / latents.detach().pow(2).mean().clamp(min=1e-6)

    def _against(self, wave: Tensor, heard: Tensor, distance: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient for `heard` that brings it nearer and deceives the adversary, which learns first; their losses."""
        self.against.zero_grad()
        with self._precision():
            found = self.adversary.learn(wave, heard)
        found.backward()
        self.against.step()
        with self._precision():
            deceived, unlike = self.adversary.deceived(wave, heard)
        losses = {"distance": distance, "deceived": deceived, "unlike": unlike}
        gradient = self.balance.gradient(losses, heard)
        return gradient, {"adversary": found, "deceived": deceived, "unlike": unlike}

    @torch.no_grad()
    def measure(self) -> Metrics:
        """Mel distance and SI-SDR of fixed crops of the valid clips, through all the codec and the averaged weights."""
        with self.ema.swapped_into(self.codec):
            heard = self.codec.decode(self.codec.encode(self.valid))
        decibel, _ = mel_distances(self.valid, heard, self.run.codec.sample_rate)
        return {"valid_mel_db": float(decibel), "valid_si_sdr": float(si_sdr(self.valid, heard).mean())}

    def _precision(self) -> torch.autocast:
        return autocast(self.device, self.run.bf16)

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return {"codec": self.codec.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.ema.weights,
                "counts": self.books.counts, "sums": self.books.sums, "adversary": self.adversary.state_dict(),
                "against": self.against.state_dict(), "sizes": self.balance.sizes}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`."""
        self.codec.load_state_dict(state["codec"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.weights = state["average"]
        self.books.counts, self.books.sums = state["counts"], state["sums"]
        self.adversary.load_state_dict(state["adversary"])
        self.against.load_state_dict(state["against"])
        self.balance.sizes = state["sizes"]

    def save(self, out: Path) -> None:
        """`out`/codec.pt: the configuration and the averaged weights."""
        result = {"config": asdict(self.run.codec), "weights": {name: weight.cpu() for name, weight in self.ema.weights.items()}}  # fmt: skip
        audio.replace_file(out / "codec.pt", lambda path: torch.save(result, path))


def load(path: str | Path) -> Codec:
    """The codec of a run's folder (or its file), or of a model's name or folder, in float32, ready for use."""
    path = Path(path)
    if (path / "config.json").is_file() or str(path) in hub.NAMES:
        return checkpoint.load(str(path), torch.device("cpu"), torch.float32).codec.eval()
    path = path / "codec.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train a codec first (python -m mgkit train codec)")
    result = torch.load(path, weights_only=True)
    shape: dict[str, Any] = result["config"] | {"ratios": tuple(result["config"]["ratios"])}
    codec = Codec(CodecConfig(**shape))
    codec.load_state_dict(result["weights"])
    return codec.eval()


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train codec`."""
    parser = argparse.ArgumentParser(prog="python -m mgkit train codec", description="Teaches the codec.")
    parser.add_argument("--data", default="runs/band", help="rendered clips to learn from")
    parser.add_argument("--valid", default="runs/valid", help="rendered clips to measure on")
    parser.add_argument("--out", default="runs/codec", help="folder of the run; goes on where it stopped")
    parser.add_argument("--minutes", type=float, default=40.0, help="budget in minutes of the clock")
    parser.add_argument("--steps", type=int, default=None, help="budget in steps instead")
    parser.add_argument("--filters", type=int, default=16, help="width of the codec")
    parser.add_argument("--batch", type=int, default=8, help="crops of one second in a batch")
    parser.add_argument("--lr", type=float, default=CodecRun.lr, help="peak learning rate")
    parser.add_argument(
        "--start", default=None, help="a run's folder, or a model's name or folder, to begin from"
    )
    parser.add_argument(
        "--decoder-only",
        action="store_true",
        help="leave the tokens of all sounds as they are (with --start)",
    )
    parser.add_argument(
        "--adversary-from",
        type=int,
        default=None,
        help="the step from which an adversary listens; left out, none",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if Processes().size > 1:
        raise ValueError(
            "the codec is taught by one process, which moves its codewords by all that it hears: start it without accelerate"
        )
    if args.decoder_only and not args.start:
        raise ValueError("--decoder-only needs a codec whose tokens are to stay: name it with --start")
    shape = CodecConfig(filters=args.filters, dim=32, codebook_size=1024)
    run = CodecRun(
        args.data, args.valid, codec=load(args.start).config if args.start else shape, steps=args.steps,
        minutes=None if args.steps else args.minutes, batch=args.batch, lr=args.lr, start=args.start,
        decoder_only=args.decoder_only, adversary_from=args.adversary_from, seed=args.seed,
    )  # fmt: skip
    learner = CodecLearner(run, *(Clips(folder, run.codec.sample_rate) for folder in (args.data, args.valid)))
    print(train(run, args.out, learner, lr=run.lr, measure_every=200))


if __name__ == "__main__":
    main()

"""EnCodec at 32 kHz: waveform to codes and back (arXiv:2210.13438, section 3; SEANet and RVQ).

Letters: B batch, C channels, K codebooks, T frames, N samples, D latent width, V codebook size.

    wave [B, 1, N] -> encoder -> latents [B, D, T] -> K nearest codewords, each of what the last left over
    codes [B, K, T] -> sum of codewords [B, D, T] -> decoder -> wave [B, 1, T * hop]

One frame is `hop` = 640 samples. A stereo wave is two mono ones whose codebooks alternate: 1L 1R 2L 2R ...
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec; the defaults are `facebook/encodec_32khz`, the codec of every published MusicGen."""

    sample_rate: int = 32000
    filters: int = 64
    ratios: tuple[int, ...] = (8, 5, 4, 4)  # upsampling order; the encoder uses them backwards
    dim: int = 128
    codebooks: int = 4
    codebook_size: int = 2048
    pad_mode: str = "reflect"

    @property
    def hop(self) -> int:
        """Samples in a frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames in a second."""
        return math.ceil(self.sample_rate / self.hop)


class Conv(nn.Conv1d):
    """Convolution whose output has ceil(N / stride) steps: padded by kernel - stride, more of it on the left."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, pad_mode: str = "reflect"):
        super().__init__(ins, outs, kernel, stride)
        self.pad_mode = pad_mode

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, length = self.kernel_size[0], self.stride[0], x.shape[-1]
        total = kernel - stride
        right = total // 2 + (-length % stride)  # up to whole strides, so that no sample is lost
        left = total - total // 2
        if self.pad_mode != "reflect":
            return super().forward(F.pad(x, (left, right), mode=self.pad_mode))
        extra = max(0, max(left, right) - length + 1)  # a reflection needs more samples than it mirrors
        x = F.pad(F.pad(x, (0, extra)), (left, right), mode="reflect")
        return super().forward(x[..., : x.shape[-1] - extra])


class UpConv(nn.ConvTranspose1d):
    """Transposed convolution of kernel 2 * ratio whose output has exactly N * ratio steps."""

    def __init__(self, ins: int, outs: int, ratio: int):
        super().__init__(ins, outs, 2 * ratio, ratio)

    def forward(self, x: Tensor) -> Tensor:
        ratio = self.stride[0]
        left = ratio - ratio // 2
        return super().forward(x)[..., left : left + x.shape[-1] * ratio]


class LSTM(nn.LSTM):
    """Two LSTM layers with a skip, [B, W, T] to [B, W, T]."""

    def __init__(self, width: int):
        super().__init__(width, width, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.resume(x, None)[0]

    def resume(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output for `x`, going on from `state`, and the state after it."""
        x = x.permute(2, 0, 1)
        y, state = super().forward(x, state)
        return (y + x).permute(1, 2, 0), state


class Residual(nn.Module):
    """x + block(x), the block being ELU, 3-tap, ELU, 1-tap at half the width."""

    def __init__(self, width: int, pad_mode: str):
        super().__init__()
        half = width // 2
        self.block = nn.Sequential(
            nn.ELU(),
            Conv(width, half, 3, pad_mode=pad_mode),
            nn.ELU(),
            Conv(half, width, 1, pad_mode=pad_mode),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def seanet_encoder(config: CodecConfig) -> nn.Sequential:
    """Wave [B, 1, N] to latents [B, D, T]; every stage doubles the width and divides the time by its ratio."""
    width, pad = config.filters, config.pad_mode
    layers: list[nn.Module] = [Conv(1, width, 7, pad_mode=pad)]
    for ratio in reversed(config.ratios):
        layers += [Residual(width, pad), nn.ELU(), Conv(width, 2 * width, 2 * ratio, ratio, pad)]
        width *= 2
    layers += [LSTM(width), nn.ELU(), Conv(width, config.dim, 7, pad_mode=pad)]
    return nn.Sequential(*layers)


def seanet_decoder(config: CodecConfig) -> nn.Sequential:
    """Latents [B, D, T] to wave [B, 1, T * hop]: the encoder's mirror image."""
    width, pad = config.filters * 2 ** len(config.ratios), config.pad_mode
    layers: list[nn.Module] = [Conv(config.dim, width, 7, pad_mode=pad), LSTM(width)]
    for ratio in config.ratios:
        layers += [nn.ELU(), UpConv(width, width // 2, ratio), Residual(width // 2, pad)]
        width //= 2
    layers += [nn.ELU(), Conv(width, 1, 7, pad_mode=pad)]
    return nn.Sequential(*layers)


class Quantizer(nn.Module):
    """Residual vector quantization: codebook k codes what codebooks 0..k-1 left over."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        size = (config.codebook_size, config.dim)
        self.codebooks = nn.ParameterList(nn.Parameter(torch.randn(size)) for _ in range(config.codebooks))

    def encode(self, latents: Tensor, keep: int) -> Tensor:
        """Codes [B, keep, T] of latents [B, D, T]: indices of the nearest codewords."""
        residual, codes = latents.transpose(1, 2), []
        for book in self.codebooks[:keep]:
            flat = residual.reshape(-1, residual.shape[-1])
            # ||x - e||^2 written out as the reference does: another order of sums breaks ties otherwise
            distance = (
                flat.pow(2).sum(1, keepdim=True) - 2 * flat @ book.t() + book.t().pow(2).sum(0, keepdim=True)
            )
            codes.append((-distance).argmax(-1).view(residual.shape[:-1]))
            residual = residual - F.embedding(codes[-1], book)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents [B, D, T] of codes [B, k, T], k of any number up to K."""
        words = [F.embedding(codes[:, k], self.codebooks[k]) for k in range(codes.shape[1])]
        return sum(words[1:], words[0]).transpose(1, 2)


class Codec(nn.Module):
    """EnCodec. `encode` and `decode` take one or two channels; the weights know only one."""

    LOOKAHEAD = 3  # frames that the decoder's first, 7-tap convolution sees ahead
    CONTEXT = 2  # frames on each side that reach a sample through all layers after the LSTM

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.encoder = seanet_encoder(config)
        self.quantizer = Quantizer(config)
        self.decoder = seanet_decoder(config)

    def encode(self, wave: Tensor, codebooks: int | None = None) -> Tensor:
        """Codes [B, K * C, T] of `wave` [B, C, N] at the codec's rate, with T = ceil(N / hop).

        `codebooks` keeps only the first so many of each channel. Errors: ValueError for another shape, no
        samples, or more codebooks than there are.
        """
        if wave.dim() != 3 or wave.shape[1] not in (1, 2) or wave.shape[-1] == 0:
            raise ValueError(
                f"encode takes a wave [batch, 1 or 2 channels, samples > 0], not {list(wave.shape)}"
            )
        keep = self._kept(self.config.codebooks if codebooks is None else codebooks)
        batch, channels, samples = wave.shape
        latents = self.encoder(wave.reshape(batch * channels, 1, samples))
        codes = self.quantizer.encode(latents, keep)
        return codes.view(batch, channels, keep, -1).transpose(1, 2).reshape(batch, channels * keep, -1)

    def decode(self, codes: Tensor, channels: int = 1) -> Tensor:
        """Wave [B, C, T * hop] of `codes` [B, K * C, T]; any number of codebooks from 1 to K a channel."""
        latents = self._latents(codes, channels)
        if codes.shape[-1] == 0:
            return latents.new_zeros(codes.shape[0], channels, 0)
        return self.decoder(latents).view(codes.shape[0], channels, -1)

    def decode_stream(self, chunks: Iterable[Tensor], channels: int = 1) -> Iterator[Tensor]:
        """Waves [B, C, n] for chunks of codes [B, K * C, t] as they come; joined, they equal `decode` of all.

        The LSTM runs forward in time and carries its state; the convolutions around it need a few frames of the
        future, so sound follows its codes by LOOKAHEAD + CONTEXT frames, 0.1 s. Nothing older is kept: the chunks may
        go on for ever.
        """
        first, lstm, tail = self.decoder[0], self.decoder[1], self.decoder[2:]
        assert isinstance(lstm, LSTM)
        hop, near, far = self.config.hop, self.LOOKAHEAD, self.CONTEXT
        latents = hidden = state = None
        ahead = sent = 0  # of the kept latents, those past the LSTM; of the kept hidden, those that sounded

        for chunk in chain(chunks, [None]):
            last = chunk is None
            if chunk is not None:
                new = self._latents(chunk, channels)
                latents = new if latents is None else torch.cat([latents, new], dim=-1)
            if latents is None:
                continue
            ready = latents.shape[-1] - (0 if last else near)
            if ready > ahead:
                left = max(0, ahead - near)
                y = first(latents[..., left : ready + near])[..., ahead - left : ready - left]
                y, state = lstm.resume(y, state)
                hidden = y if hidden is None else torch.cat([hidden, y], dim=-1)
                latents, ahead = latents[..., max(0, ready - near) :], min(ready, near)
            if hidden is None:
                continue
            ready = hidden.shape[-1] - (0 if last else far)
            if ready > sent:
                left = max(0, sent - far)
                wave = tail(hidden[..., left : ready + far])[..., (sent - left) * hop : (ready - left) * hop]
                hidden, sent = hidden[..., max(0, ready - far) :], min(ready, far)
                yield wave.view(-1, channels, wave.shape[-1])

    def _latents(self, codes: Tensor, channels: int) -> Tensor:
        """Latents [B * C, D, T] of codes [B, K * C, T]."""
        if codes.is_floating_point():
            raise ValueError(f"codes are whole numbers, as encode gives them, not {codes.dtype}")
        if codes.dim() != 3 or codes.shape[1] % channels:
            raise ValueError(
                f"codes are [batch, codebooks * {channels} channels, frames], not {list(codes.shape)}"
            )
        size = self.config.codebook_size
        if codes.numel() and not (codes.min() >= 0 and codes.max() < size):
            raise ValueError(f"codes run from {codes.min()} to {codes.max()}; this codec has 0 to {size - 1}")
        batch, rows, frames = codes.shape
        keep = self._kept(rows // channels)
        codes = (
            codes.view(batch, keep, channels, frames).transpose(1, 2).reshape(batch * channels, keep, frames)
        )
        return self.quantizer.decode(codes)

    def _kept(self, codebooks: int) -> int:
        if not 1 <= codebooks <= self.config.codebooks:
            raise ValueError(
                f"this codec has {self.config.codebooks} codebooks a channel; {codebooks} were asked for"
            )
        return codebooks

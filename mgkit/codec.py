"""EnCodec: waveform to codes and back (arXiv:2210.13438, section 3).

Axes: B batch, C channels, K codebooks per channel, T frames, N samples, W width, D latent width.

    wave [B, 1, N]  -> encoder -> latents [B, D, T] -> residual quantization -> codes [B, K, T]
    codes [B, K, T] -> sum of entries [B, D, T]     -> decoder               -> wave [B, 1, T * hop]

A frame is `hop` samples: 640, or 20 ms, at 32 kHz. Stereo is coded as two mono waves whose codebooks
alternate: 1L 1R 2L 2R …
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CodecConfig:
    """Shape of a codec; the defaults are `facebook/encodec_32khz`, which every published MusicGen uses."""

    sample_rate: int = 32000
    filters: int = 64
    ratios: tuple[int, ...] = (8, 5, 4, 4)  # strides of the decoder; the encoder reverses them
    dim: int = 128
    codebooks: int = 4
    codebook_size: int = 2048
    pad_mode: str = "reflect"

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames per second."""
        return math.ceil(self.sample_rate / self.hop)


class Conv(nn.Conv1d):
    """Convolution to ceil(N / stride) steps, padded by kernel - stride steps: the larger half on the left."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, pad_mode: str = "reflect"):
        super().__init__(ins, outs, kernel, stride)
        self.pad_mode = pad_mode

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, length = self.kernel_size[0], self.stride[0], x.shape[-1]
        total = kernel - stride
        # the remainder completes the last stride
        right = total // 2 + (-length % stride)
        left = total - total // 2
        if self.pad_mode != "reflect":
            return super().forward(F.pad(x, (left, right), mode=self.pad_mode))
        # reflection needs an input longer than the padding: a shorter one is extended with zeros
        extra = max(0, max(left, right) - length + 1)
        x = F.pad(F.pad(x, (0, extra)), (left, right), mode="reflect")
        return super().forward(x[..., : x.shape[-1] - extra])


class UpConv(nn.ConvTranspose1d):
    """Transposed convolution to exactly N * ratio steps, kernel 2 * ratio."""

    def __init__(self, ins: int, outs: int, ratio: int):
        super().__init__(ins, outs, 2 * ratio, ratio)

    def forward(self, x: Tensor) -> Tensor:
        ratio = self.stride[0]
        left = ratio - ratio // 2
        return super().forward(x)[..., left : left + x.shape[-1] * ratio]


class LSTM(nn.LSTM):
    """Two LSTM layers with a skip connection, [B, W, T] to [B, W, T]."""

    def __init__(self, width: int):
        super().__init__(width, width, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.resume(x, None)[0]

    def resume(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output for `x`, continuing from `state`, and the new state."""
        x = x.permute(2, 0, 1)
        y, state = super().forward(x, state)
        return (y + x).permute(1, 2, 0), state


class Residual(nn.Module):
    """x + block(x); the block is ELU, a 3-tap convolution to half the width, ELU, a 1-tap convolution."""

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
    """Wave [B, 1, N] to latents [B, D, T]. Each stage doubles the width and downsamples by its ratio."""
    width, pad = config.filters, config.pad_mode
    layers: list[nn.Module] = [Conv(1, width, 7, pad_mode=pad)]
    for ratio in reversed(config.ratios):
        layers += [Residual(width, pad), nn.ELU(), Conv(width, 2 * width, 2 * ratio, ratio, pad)]
        width *= 2
    layers += [LSTM(width), nn.ELU(), Conv(width, config.dim, 7, pad_mode=pad)]
    return nn.Sequential(*layers)


def seanet_decoder(config: CodecConfig) -> nn.Sequential:
    """Latents [B, D, T] to wave [B, 1, T * hop]: the encoder mirrored."""
    width, pad = config.filters * 2 ** len(config.ratios), config.pad_mode
    layers: list[nn.Module] = [Conv(config.dim, width, 7, pad_mode=pad), LSTM(width)]
    for ratio in config.ratios:
        layers += [nn.ELU(), UpConv(width, width // 2, ratio), Residual(width // 2, pad)]
        width //= 2
    layers += [nn.ELU(), Conv(width, 1, 7, pad_mode=pad)]
    return nn.Sequential(*layers)


class Quantizer(nn.Module):
    """Residual vector quantization: each codebook codes the error left by the codebooks before it.

    latents -> nearest entry of codebook 0 -> residual -> nearest entry of codebook 1 -> residual -> …
    """

    def __init__(self, config: CodecConfig):
        super().__init__()
        size = (config.codebook_size, config.dim)
        self.codebooks = nn.ParameterList(nn.Parameter(torch.randn(size)) for _ in range(config.codebooks))

    def encode(self, latents: Tensor, keep: int) -> Tensor:
        """Codes [B, keep, T] of latents [B, D, T] in the first `keep` codebooks."""
        residual, codes = latents.transpose(1, 2), []
        for book in self.codebooks[:keep]:
            flat = residual.reshape(-1, residual.shape[-1])
            # ||x - e||^2 expanded as in audiocraft: another order of sums would break ties differently
            distance = (
                flat.pow(2).sum(1, keepdim=True) - 2 * flat @ book.t() + book.t().pow(2).sum(0, keepdim=True)
            )
            nearest = (-distance).argmax(-1).view(residual.shape[:-1])
            residual = residual - F.embedding(nearest, book)
            codes.append(nearest)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents [B, D, T] of codes [B, k, T] in the first k codebooks, 1 <= k <= K."""
        codewords = [F.embedding(codes[:, k], self.codebooks[k]) for k in range(codes.shape[1])]
        return sum(codewords[1:], codewords[0]).transpose(1, 2)


class Span(NamedTuple):
    """Frames [..., t] with context on both sides; the slice `new` selects those that are new in this span."""

    frames: Tensor
    new: slice


class FrameBuffer:
    """Frames that arrive in chunks and leave in overlapping spans, when their context is complete.

        chunks       | 0 1 2 3 4 | 5 6 7 8 | …          context = 2
        first span   [ 0 1 2 ] 3 4                      [ new ]
        second span        1 2 [ 3 4 5 6 ] 7 8

    Between spans it keeps at most 2 * context frames.
    """

    def __init__(self, context: int):
        self.context = context
        self.frames: Tensor | None = None
        # leading frames already in the `new` of an earlier span
        self.done = 0

    def append(self, frames: Tensor) -> None:
        """Add frames [..., t] at the end."""
        self.frames = frames if self.frames is None else torch.cat([self.frames, frames], dim=-1)

    def take(self, last: bool) -> Span | None:
        """The next span, or None if no new frame is ready. The `last` one ends at the end of the stream."""
        if self.frames is None:
            return None
        ready = self.frames.shape[-1] - (0 if last else self.context)
        if ready <= self.done:
            return None
        span = Span(self.frames, slice(self.done, ready))
        start = max(0, ready - self.context)
        self.frames, self.done = self.frames[..., start:], ready - start
        return span


class Codec(nn.Module):
    """EnCodec for mono and stereo waves; the network itself is mono."""

    LOOKAHEAD = 3  # frames on each side in the decoder's first, 7-tap convolution
    CONTEXT = 2  # frames on each side in the receptive field of all layers after the LSTM

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.encoder = seanet_encoder(config)
        self.quantizer = Quantizer(config)
        self.decoder = seanet_decoder(config)

    def encode(self, wave: Tensor, codebooks: int | None = None) -> Tensor:
        """Codes [B, K * C, T] of `wave` [B, C, N] at the codec's sample rate, T = ceil(N / hop).

        `codebooks` limits K to the first, coarsest codebooks.

        Raises: ValueError for another shape, an empty wave, or more codebooks than the codec has.
        """
        if wave.dim() != 3 or wave.shape[1] not in (1, 2) or wave.shape[-1] == 0:
            raise ValueError(
                f"the wave has shape {list(wave.shape)}; encode expects [batch, 1 or 2 channels, samples > 0]"
            )
        keep = self._parse_codebooks(self.config.codebooks if codebooks is None else codebooks)
        batch, channels, samples = wave.shape
        latents = self.encoder(wave.reshape(batch * channels, 1, samples))
        codes = self.quantizer.encode(latents, keep)
        return codes.view(batch, channels, keep, -1).transpose(1, 2).reshape(batch, channels * keep, -1)

    def decode(self, codes: Tensor, channels: int = 1) -> Tensor:
        """Wave [B, C, T * hop] of `codes` [B, K * C, T], which may leave out the finest codebooks.

        Raises: ValueError for another shape or data type, or codes that this codec does not have.
        """
        latents = self._latents(codes, channels)
        if codes.shape[-1] == 0:
            return latents.new_zeros(codes.shape[0], channels, 0)
        return self.decoder(latents).view(codes.shape[0], channels, -1)

    def decode_stream(self, chunks: Iterable[Tensor], channels: int = 1) -> Iterator[Tensor]:
        """Waves [B, C, n] of chunks of codes [B, K * C, t] as they arrive; concatenated, they equal `decode`.

        The LSTM runs forward in time and carries its state. The convolutions before and after it need a few
        later frames, so audio lags behind its codes by LOOKAHEAD + CONTEXT frames: 0.1 s. Memory is constant.

            codes -> latents -> buffer -> first convolution, LSTM -> buffer -> other layers -> wave
                              LOOKAHEAD                            CONTEXT
        """
        first, lstm, rest = self.decoder[0], self.decoder[1], self.decoder[2:]
        assert isinstance(lstm, LSTM)
        latents, hidden, state = FrameBuffer(self.LOOKAHEAD), FrameBuffer(self.CONTEXT), None
        hop = self.config.hop

        for codes in chain(chunks, [None]):
            if codes is not None:
                latents.append(self._latents(codes, channels))
            if span := latents.take(last=codes is None):
                x, state = lstm.resume(first(span.frames)[..., span.new], state)
                hidden.append(x)
            if span := hidden.take(last=codes is None):
                wave = rest(span.frames)[..., span.new.start * hop : span.new.stop * hop]
                yield wave.view(-1, channels, wave.shape[-1])

    def _latents(self, codes: Tensor, channels: int) -> Tensor:
        """Latents [B * C, D, T] of codes [B, K * C, T]."""
        if codes.is_floating_point():
            raise ValueError(f"the codes are {codes.dtype}; they must be integers, as returned by encode")
        if codes.dim() != 3 or codes.shape[1] % channels:
            raise ValueError(
                f"the codes have shape {list(codes.shape)}; "
                f"expected [batch, codebooks * {channels} channels, frames]"
            )
        size = self.config.codebook_size
        if codes.numel() and not (codes.min() >= 0 and codes.max() < size):
            raise ValueError(
                f"the codes range from {codes.min()} to {codes.max()}; this codec has codes 0 to {size - 1}"
            )
        batch, rows, frames = codes.shape
        keep = self._parse_codebooks(rows // channels)
        codes = (
            codes.view(batch, keep, channels, frames).transpose(1, 2).reshape(batch * channels, keep, frames)
        )
        return self.quantizer.decode(codes)

    def _parse_codebooks(self, count: int) -> int:
        """`count`, within the range of this codec."""
        if not 1 <= count <= self.config.codebooks:
            raise ValueError(
                f"got {count} codebooks per channel; this codec has 1 to {self.config.codebooks}"
            )
        return count

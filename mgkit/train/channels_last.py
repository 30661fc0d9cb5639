"""The codec's encoder and decoder with channels as the innermost axis: the same results, trained faster.

Axes: B batch, C channels, N samples, D latent width, T frames.

A 1-D convolution in PyTorch reorders its input and output in memory. As 2-D convolutions over [B, C, 1, N] in
the channels-last format, all layers keep one layout from end to end, padding is a plain copy, and
`torch.compile` fuses it with the ELU before it.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.codec import LSTM, Codec, Conv, Residual, UpConv


class ChannelsLast:
    """Run a `Codec`'s own layers and weights; `compiled` fuses the convolutions with `torch.compile`."""

    def __init__(self, codec: Codec, compiled: bool = False):
        self.codec = codec
        self.stages = torch.compile(_run, dynamic=False) if compiled else _run

    def encode(self, wave: Tensor) -> Tensor:
        """Latents [B, D, T] of `wave` [B, 1, N]."""
        *stages, lstm, elu, last = self.codec.encoder
        return self._join(stages, lstm, [elu, last], wave)

    def decode(self, latents: Tensor) -> Tensor:
        """Wave [B, 1, T * hop] of `latents` [B, D, T]."""
        first, lstm, *stages = self.codec.decoder
        return self._join([first], lstm, stages, latents)

    def _join(self, before: list[nn.Module], lstm: LSTM, after: list[nn.Module], x: Tensor) -> Tensor:
        x = self.stages(before, x[:, :, None].contiguous(memory_format=torch.channels_last))
        x = lstm(x[:, :, 0])[:, :, None].contiguous(memory_format=torch.channels_last)
        return self.stages(after, x)[:, :, 0]


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, Residual):
            x = x + _run(layer.block, x)
        elif isinstance(layer, Conv):
            x = _conv(layer, x)
        elif isinstance(layer, UpConv):
            x = _up(layer, x)
        else:
            x = layer(x)
    return x


def _weight(layer: Conv | UpConv) -> Tensor:
    return layer.weight[:, :, None].contiguous(memory_format=torch.channels_last)


def _conv(layer: Conv, x: Tensor) -> Tensor:
    kernel, stride, length = layer.kernel_size[0], layer.stride[0], x.shape[-1]
    total = kernel - stride
    right, left = total // 2 + (-length % stride), total - total // 2
    if left or right:
        x = F.pad(x, (left, right, 0, 0), mode=layer.pad_mode)
    return F.conv2d(x, _weight(layer), layer.bias, stride=(1, stride))


def _up(layer: UpConv, x: Tensor) -> Tensor:
    ratio, length = layer.stride[0], x.shape[-1]
    left = ratio - ratio // 2
    y = F.conv_transpose2d(x, _weight(layer), layer.bias, stride=(1, ratio))
    return y[..., left : left + length * ratio]

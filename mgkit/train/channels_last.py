"""The codec's encoder and decoder with channels as the innermost axis: the same results, trained faster.

Axes: B batch, T time at any of the codec's rates, C channels, N samples, D latent width.

PyTorch's 1-D convolutions take [B, C, T] and reorder every input and output in memory for the kernels that
use matrix units. In [B, T, C] no reordering is left: a stage that changes the rate by r is a convolution of
two taps between tensors of one rate, because [B, T, r * C] and [B, r * T, C] are the same memory.

    down by r    [B, r * T, C]   = [B, T, r * C]  -> two taps -> [B, T, 2 * C]
    up by r      [B, T, 2 * C]   -> two taps -> [B, T, r * C] = [B, r * T, C]
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgkit.codec import LSTM, Codec, Conv, Residual, UpConv

MULTIPLE = 8  # Kernels for matrix units work on multiples of so many channels; zeros fill the rest.


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
        x = self.stages(before, x.transpose(1, 2).contiguous())
        x = lstm(x.transpose(1, 2)).transpose(1, 2).contiguous()
        channels = after[-1].out_channels
        return self.stages(after, x)[..., :channels].transpose(1, 2)


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """`layers` of `x` [B, T, C]; the channels of the result are a multiple of MULTIPLE."""
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


def _conv(layer: Conv, x: Tensor) -> Tensor:
    kernel, stride, length = layer.kernel_size[0], layer.stride[0], x.shape[1]
    total = kernel - stride
    right, left = total // 2 + (-length % stride), total - total // 2
    if left or right:
        x = reflect(x, left, right) if layer.pad_mode == "reflect" else F.pad(x, (0, 0, left, right))
    if stride == 1:
        return _taps(x, layer.weight, layer.bias)
    # [out, in, 2 * stride] -> [out, stride * in, 2]
    blocks = _filled(layer.weight, 1, x.shape[-1]).unflatten(2, (2, stride)).permute(0, 3, 1, 2).flatten(1, 2)
    return _taps(x.reshape(len(x), x.shape[1] // stride, -1), blocks, layer.bias)


def _up(layer: UpConv, x: Tensor) -> Tensor:
    ratio, length = layer.stride[0], x.shape[1]
    # [in, out, 2 * ratio] -> [ratio * out, in, 2]: the second half of a frame meets the first of the next
    halves = layer.weight.unflatten(2, (2, ratio)).flip(2).permute(3, 1, 0, 2).flatten(0, 1)
    y = _taps(F.pad(x, (0, 0, 1, 1)), halves, layer.bias.repeat(ratio))
    y = y[..., : ratio * layer.out_channels].reshape(len(y), -1, layer.out_channels)
    left = ratio - ratio // 2
    return _filled(y[:, left : left + length * ratio], 2)


def _taps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of `x` [B, T + k - 1, C] with `weight` [out, in, k] and `bias`: [B, T, out], in and out
    filled up with zeros to multiples of MULTIPLE."""
    x = _filled(x, 2)
    weight, bias = _filled(_filled(weight, 1, x.shape[2]), 0), _filled(bias, 0)
    if weight.shape[2] == 1:
        return F.linear(x, weight[..., 0], bias)
    kernel = weight[:, :, None].contiguous(memory_format=torch.channels_last)
    return F.conv2d(x.transpose(1, 2)[:, :, None], kernel, bias)[:, :, 0].transpose(1, 2)


def _filled(x: Tensor, dim: int, size: int | None = None) -> Tensor:
    """`x` with zeros at the end of `dim`, up to `size` or to a multiple of MULTIPLE."""
    missing = -x.shape[dim] % MULTIPLE if size is None else size - x.shape[dim]
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing)) if missing else x


class _Reflect(torch.autograd.Function):
    """Padding by reflection along T: one copy forward and one backward; PyTorch's own reorders memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: int, right: int) -> Tensor:
        ctx.left, ctx.right = left, right
        end = x.shape[1]
        return torch.cat([x[:, 1 : left + 1].flip(1), x, x[:, end - 1 - right : end - 1].flip(1)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        left, right, end = ctx.left, ctx.right, grad.shape[1] - ctx.left - ctx.right
        inner = grad[:, left : left + end].clone()
        inner[:, 1 : left + 1] += grad[:, :left].flip(1)
        inner[:, end - 1 - right : end - 1] += grad[:, left + end :].flip(1)
        return inner, None, None


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """`x` [B, T, C] with `left` and `right` frames reflected at its ends."""
    return _Reflect.apply(x, left, right)

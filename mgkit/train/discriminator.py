"""A multi-scale STFT discriminator for the codec's decoder (EnCodec, arXiv:2210.13438, section 3.4), small.

Axes: B batch, N samples, F frequencies, T frames.

    wave [B, 1, N] -> complex spectra at three resolutions [B, 2, T, F] -> convolutions -> logits [B, 1, t, f]

A distance between waves or spectra rewards the mean of all sounds that fit the codes, and the mean of all
cymbals is a hum. The discriminator rewards what could be one of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mgkit.spectra import stft

WINDOWS = (512, 1024, 2048)  # samples


class Resolution(nn.Module):
    """One resolution: logits [B, 1, t, f] of a wave [B, 1, N], positive for real; features of each layer."""

    def __init__(self, window: int, width: int):
        super().__init__()
        self.window = window
        shapes = [((3, 9), (1, 1), 1), *(((3, 9), (1, 2), 2**i) for i in range(3)), ((3, 3), (1, 1), 1)]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(
                    width if i else 2, width, size, stride, (dilation, size[1] // 2), dilation=(dilation, 1)
                )
            )
            for i, (size, stride, dilation) in enumerate(shapes)
        )
        self.last = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(wave.device.type, enabled=False):  # there is no FFT in bfloat16
            spectrum = stft(wave[:, 0].float(), self.window, self.window // 4) * (2 / self.window)
            # the root of the magnitude: otherwise only the loudest partials count
            spectrum = spectrum / spectrum.abs().clamp(min=1e-6).sqrt()
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x), features


class Discriminator(nn.Module):
    """The discriminators of all resolutions."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.resolutions = nn.ModuleList(Resolution(window, width) for window in WINDOWS)

    def loss(self, real: Tensor, decoded: Tensor) -> Tensor:
        """The discriminator's own loss: hinge loss of its logits for real and decoded waves [B, 1, N]."""
        both, count, losses = torch.cat([real, decoded.detach()]), len(real), []
        for resolution in self.resolutions:
            logits = resolution(both)[0]
            losses += [F.relu(1 - logits[:count]).mean(), F.relu(1 + logits[count:]).mean()]
        return torch.stack(losses).mean()

    def generator_losses(self, real: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's losses: hinge loss of its logits as if real, and relative L1 distance of features."""
        adversarial, features = [], []
        for resolution in self.resolutions:
            with torch.no_grad():
                _, expected = resolution(real)
            logits, found = resolution(decoded)
            adversarial.append(F.relu(1 - logits).mean())
            features += [
                (x - y).abs().mean() / y.abs().mean().clamp(min=1e-4)
                for x, y in zip(found, expected, strict=True)
            ]
        return torch.stack(adversarial).mean(), torch.stack(features).mean()


class LossBalancer:
    """Sum of gradients in fixed proportions, whatever the scales of their losses (arXiv:2210.13438, §3.4)."""

    DECAY = 0.99

    def __init__(self, weights: dict[str, float]):
        self.weights = weights
        self.sizes: dict[str, Tensor] = {}  # moving average of the norm of each loss's gradient

    def __call__(self, gradients: dict[str, Tensor]) -> Tensor:
        """Sum of each loss's gradient for the decoded waves [B, 1, N], scaled to `weights` as mean norms."""
        parts = []
        for name, part in gradients.items():
            size = part.norm()
            self.sizes[name] = self.DECAY * self.sizes.get(name, size) + (1 - self.DECAY) * size
            parts.append(self.weights[name] * part / self.sizes[name].clamp(min=1e-12))
        return torch.stack(parts).sum(dim=0)

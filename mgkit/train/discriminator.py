"""An adversary for the codec's decoder: it learns to tell decoded sound from real, and the decoder to deceive it.

Letters: B batch, N samples, F frequencies, T frames.

    wave [B, 1, N] -> complex spectra at three resolutions [B, 2, T, F] -> convolutions -> real or decoded, for each spot

A distance between waves or spectra rewards the mean of what could be; the mean of all cymbals is a hum. The adversary
rewards what sounds like one of them (multi-scale STFT discriminators, arXiv:2210.13438, section 3.4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WINDOWS = (512, 1024, 2048)  # samples


class Judge(nn.Module):
    """One resolution: scores [B, 1, t, f] of a wave [B, 1, N], over 0 for real, and what each layer saw."""

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
        hann = torch.hann_window(self.window, device=wave.device)
        with torch.autocast(wave.device.type, enabled=False):  # there is no FFT in bfloat16
            spectrum = torch.stft(
                wave[:, 0].float(), self.window, self.window // 4, window=hann, return_complex=True
            )
            # the root of the size: an adversary that hears only the loudest partials leaves the rest a hum
            spectrum = spectrum / (hann.sum() * spectrum.abs()).clamp(min=1e-6).sqrt()
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        seen = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            seen.append(x)
        return self.last(x), seen


class Adversary(nn.Module):
    """Judges of all resolutions."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.judges = nn.ModuleList(Judge(window, width) for window in WINDOWS)

    def learn(self, real: Tensor, decoded: Tensor) -> Tensor:
        """What the adversary minimizes: hinge loss of its scores of real waves and decoded ones, [B, 1, N] each."""
        losses = []
        for judge in self.judges:
            losses += [F.relu(1 - judge(real)[0]).mean(), F.relu(1 + judge(decoded.detach())[0]).mean()]
        return torch.stack(losses).mean()

    def deceived(self, real: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder minimizes: how little it deceives, and how much else the layers see in it than in `real`."""
        fooled, unlike = [], []
        for judge in self.judges:
            with torch.no_grad():
                _, expected = judge(real)
            score, seen = judge(decoded)
            fooled.append(F.relu(1 - score).mean())
            unlike += [
                (x - y).abs().mean() / y.abs().mean().clamp(min=1e-4)
                for x, y in zip(seen, expected, strict=True)
            ]
        return torch.stack(fooled).mean(), torch.stack(unlike).mean()


class Balance:
    """Sums gradients in fixed proportions, whatever their losses' sizes are (arXiv:2210.13438, section 3.4)."""

    def __init__(self, weights: dict[str, float]):
        self.weights = weights
        self.sizes: dict[str, float] = {}  # of each loss's gradient, a moving average

    def gradient(self, losses: dict[str, Tensor], heard: Tensor) -> Tensor:
        """Gradient for `heard`, [B, 1, N]; its parts have the norms `weights`."""
        total = torch.zeros_like(heard)
        for name, loss in losses.items():
            (part,) = torch.autograd.grad(loss, heard, retain_graph=True)
            size = float(part.norm())
            self.sizes[name] = size if name not in self.sizes else 0.99 * self.sizes[name] + 0.01 * size
            total += self.weights[name] * part / max(self.sizes[name], 1e-12)
        return total

"""Codebooks that follow the latents: k-means start, moving averages, restart of dead entries.

Axes: B batch, T frames, M = B * T latents, D latent width, V codebook size.

Codebooks get no gradients. Every entry is the moving average of the latents nearest to it (VQ-VAE,
arXiv:1711.00937, appendix A; SoundStream, arXiv:2107.03312, section 3.3). No step copies to the CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.codec import Quantizer


class Codebooks:
    """The codebooks of a `Quantizer` while they are trained, with each entry's count and sum of latents."""

    DECAY = 0.99
    DEAD = 0.05  # of the mean count: an entry that is chosen more rarely is restarted

    def __init__(self, quantizer: Quantizer, generator: torch.Generator):
        self.generator = generator
        self.books = [book.requires_grad_(False) for book in quantizer.codebooks]
        self.counts = [torch.ones(len(book), device=book.device) for book in self.books]
        self.sums = [book.clone() for book in self.books]

    @torch.no_grad()
    def start(self, latents: Tensor, rounds: int = 10) -> None:
        """K-means of `latents` [M, D] for the first codebook, of its residuals for the second, and so on."""
        left = latents.clone()
        for k, book in enumerate(self.books):
            book.copy_(self._some(left, len(book)))
            for _ in range(rounds):
                counts, sums = _gather(left, nearest(left, book), len(book))
                book.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), book))
            self.counts[k], self.sums[k] = torch.ones_like(self.counts[k]), book.clone()
            left -= F.embedding(nearest(left, book), book)

    def __call__(self, latents: Tensor, keep: int, *, update: bool = True) -> tuple[Tensor, Tensor]:
        """Quantized latents [B, D, T] with straight-through gradients, and the commitment loss, relative to
        the size of the latents; the first `keep` codebooks follow this batch if `update` is set."""
        flat = latents.transpose(1, 2).reshape(-1, latents.shape[1])
        left, commit = flat, flat.new_zeros(())
        for k, book in enumerate(self.books[:keep]):
            codes = nearest(left.detach(), book)
            entry = F.embedding(codes, book).clone()
            if update:
                self._follow(k, left.detach(), codes)
            commit = commit + F.mse_loss(left, entry)
            left = left - entry
        quantized = flat + (flat - left - flat).detach()
        # relative, so that the latents gain nothing by shrinking
        commit = commit / flat.detach().pow(2).mean().clamp(min=1e-6)
        return quantized.view(latents.shape[0], -1, latents.shape[1]).transpose(1, 2), commit

    @torch.no_grad()
    def _follow(self, k: int, latents: Tensor, codes: Tensor) -> None:
        book, usual = self.books[k], len(latents) / len(self.books[k])
        counts, sums = _gather(latents, codes, len(book))
        self.counts[k].lerp_(counts, 1 - self.DECAY)
        self.sums[k].lerp_(sums, 1 - self.DECAY)
        dead = self.counts[k] < self.DEAD * usual
        other = self._some(latents, len(book))
        self.counts[k] = torch.where(dead, usual, self.counts[k])
        self.sums[k] = torch.where(dead[:, None], other * usual, self.sums[k])
        book.copy_(self.sums[k] / self.counts[k][:, None].clamp(min=1e-8))

    def _some(self, latents: Tensor, count: int) -> Tensor:
        """`count` of the latents [M, D], drawn with replacement only if there are fewer."""
        kind = {"device": latents.device, "generator": self.generator}
        if len(latents) >= count:
            return latents[torch.randperm(len(latents), **kind)[:count]]
        return latents[torch.randint(len(latents), (count,), **kind)]

    def perplexity(self) -> Tensor:
        """Effective number of used entries of each codebook [K]; V at most."""
        shares = [counts / counts.sum().clamp(min=1e-8) for counts in self.counts]
        return torch.stack([torch.exp(-(p * p.clamp(min=1e-10).log()).sum()) for p in shares])


def nearest(latents: Tensor, book: Tensor) -> Tensor:
    """Index [M] of the entry of `book` [V, D] nearest to each of `latents` [M, D]."""
    return (2 * latents @ book.t() - book.pow(2).sum(dim=1)).argmax(dim=1)


def _gather(latents: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many latents chose each entry [V], and their sums [V, D]."""
    sums = latents.new_zeros(size, latents.shape[1]).index_add_(0, codes, latents)
    return latents.new_zeros(size).index_add_(0, codes, torch.ones_like(latents[:, 0])), sums

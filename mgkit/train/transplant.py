"""A trained language model transplanted onto the tokens of another codec.

Axes: K codebooks, V codebook size, D width, S delayed steps, M rows of a regression.

    tokens of the old codec -> old embeddings, summed -.
    tokens of the new codec -> new embeddings, summed -+-> ridge regression     (fit_embeddings)
                                      |
                                      '-> layers, unchanged -> new heads -> cross-entropy   (fit_heads)

A codec trained anew gives its tokens new meanings, but the layers of a language model know music, not
numbers of tokens: only embeddings and heads refer to those. On the same clips, encoded by both codecs, new
embeddings are fitted to sum to what the old ones summed to at the same step, and new heads to predict the
new tokens from the last hidden state. Training (`train lm --start`) begins there.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mgkit import ranges
from mgkit.lm import LM
from mgkit.train.loop import learning_rate
from mgkit.train.loss import attend_for, codebook_losses, delayed
from mgkit.train.model import ConditionalLM, load, save
from mgkit.train.tokens import Tokens, new_caption

# Ridge penalty of an embedding, in occurrences of its token
RIDGE = 5.0
# Clips per batch and passes over all clips in `fit_heads`
BATCH, PASSES = 8, 4
# The peak: half of it ends with a higher loss on other clips, twice of it with the same.
LEARNING_RATE = 8e-3


def fit_embeddings(lm: LM, old: Tensor, new: Tensor) -> float:
    """Replace the embeddings of `lm` for tokens `old` by embeddings for tokens `new`, both [clips, K, T].

    Returns the fraction of the variance of the summed embeddings that the new ones explain, on these clips.
    """
    inputs, targets = (delayed(lm, codes)[..., :-1].transpose(0, 1).flatten(1) for codes in (new, old))
    size = lm.embeddings[0].num_embeddings
    with torch.no_grad():
        summed = sum(e(steps) for e, steps in zip(lm.embeddings, targets, strict=True)).double()
        mean = summed.mean(dim=0)
        summed -= mean
        # One-hot rows [M, K * V] would not fit in memory; their products are counts and sums.
        places = inputs + size * torch.arange(len(inputs))[:, None]
        count = size * len(inputs)
        products = torch.zeros(count, count, dtype=torch.float64)
        sums = torch.zeros(count, summed.shape[1], dtype=torch.float64)
        ones = torch.ones(inputs.shape[1], dtype=torch.float64)
        for rows in places:
            sums.index_add_(0, rows, summed)
            for columns in places:
                products.view(-1).index_add_(0, rows * count + columns, ones)
        products.diagonal().add_(RIDGE)
        fitted = torch.linalg.solve(products, sums)
        explained = (fitted * sums).sum() / summed.square().sum()
        for k, embedding in enumerate(lm.embeddings):
            embedding.weight.copy_(fitted[k * size : (k + 1) * size] + mean / len(inputs))
    return float(explained)


def fit_heads(model: ConditionalLM, data: Tokens, clips: int) -> list[float]:
    """Fit the heads to the tokens of the first `clips` clips of `data`; everything else stays the same.

    Returns the mean loss of each codebook over the last pass, in nats [K].
    """
    lm = model.lm
    rng = np.random.default_rng(0)
    hidden, targets = [], []
    with torch.no_grad(), torch.autocast(lm.device.type, torch.bfloat16):
        for start in range(0, clips, BATCH):
            rows = np.arange(start, min(start + BATCH, clips))
            codes, melody = data.batch(rows, data.codes.shape[-1])
            texts = [new_caption(data.pieces[row], rng) for row in rows]
            keep = torch.from_numpy(rng.random(len(rows)) < 0.8)
            condition = model.condition(texts, melody * 0, keep)
            steps = delayed(lm, codes)
            hidden.append(lm.hidden(steps[..., :-1], condition, attend=attend_for(lm)).bfloat16())
            targets.append(steps[..., 1:])
    heads = list(lm.heads.parameters())
    for head in heads:
        nn.init.zeros_(head)
    optimizer = torch.optim.Adam(heads, LEARNING_RATE, betas=(0.9, 0.99))
    batches = [batch for _ in range(PASSES) for batch in rng.permutation(len(hidden))]
    each = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate(LEARNING_RATE, step / len(batches))
        with torch.autocast(lm.device.type, torch.bfloat16):
            loss = codebook_losses(lm, hidden[batch], targets[batch])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        each.append(loss.detach())
    return torch.stack(each[-len(hidden) :]).mean(dim=0).tolist()


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train transplant`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train transplant",
        description="Transplant a language model onto another codec's tokens of the same clips.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--start", default="nano", help="folder of a run, or name or folder of a model")
    option("--data", default="runs/band", help="rendered clips")
    option("--old-tokens", default="runs/old_tokens", help="tokens of --data by the codec of --start")
    option("--tokens", default="runs/tokens", help="tokens of --data by the new codec")
    option("--out", default="runs/transplant", help="folder to write, a --start for train lm")
    option("--clips", type=ranges.count, default=600, help="clips for the heads; embeddings take all")
    args = parser.parse_args(argv)
    model = load(args.start)
    model.requires_grad_(False)
    old, new = Tokens(args.old_tokens, args.data), Tokens(args.tokens, args.data)
    clips = min(len(old), len(new))
    codes = (torch.from_numpy(data.codes[:clips].astype(np.int64)) for data in (old, new))
    print(f"embeddings: {fit_embeddings(model.lm, *codes):.1%} of the variance explained", flush=True)
    model.lm.heads.requires_grad_(True)
    losses = fit_heads(model, new, min(args.clips, clips))
    print("heads: " + ", ".join(f"{loss:.2f}" for loss in losses) + " nats", flush=True)
    save(model, model.state_dict(), Path(args.out))


if __name__ == "__main__":
    main()

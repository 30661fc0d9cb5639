"""Words that no caption holds: what the text encoder should make of them, when all the rest of the model stays.

Letters: B batch, L text length in tokens, D width of the language model, K codebooks, T frames, S delayed steps.

    plain prompt of a piece ------> model as it was -----> chances of the next codes [B, K, S] --.
    the same in disguise, tokens -> text encoder, learns -> the same language model -> chances ---+-> divergence

A text encoder that has read captions only meets a new word as pieces that it has never seen side by side, and whatever
they add up to drowns the words beside it: one such word costs the key, which is named in plain words. Here it learns from
disguises. A word is cut into other pieces than usual, as parts of it will be when they stand in a new one; or stands
beside a word that means nothing; or is grown together with syllables (a violoncello is a cello); or gives way to
syllables altogether, and then the prompt to be equal to is the one that does not have it.

What a text should do is what the model itself does with the plain one: a distillation (arXiv:1503.02531). Cutting words
at random is subword regularization (arXiv:1804.10959). No held-out word is used.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit.condition import Condition
from mgkit.lm import LM

from .captions import KEYS, WORDS, synonyms
from .lm import LMLearner, LMRun, delayed, hidden, load, must_fit, plain_words, told_tokens
from .run import Row, side_by_side, train
from .tokens import Tokens, add_options, open_both

# What becomes of a word, and how often
DISGUISES = {"synonym": 0.4, "beside": 0.2, "grown": 0.15, "nonsense": 0.25}
CUT = 0.25  # how often a word is cut into other pieces than usual


@dataclass(frozen=True)
class WordsRun(LMRun):
    """Everything that decides a run: of an `LMRun` the data, the start, the budget, the batch and the rates."""

    frames: int = 64  # of each clip, from its beginning: there the text counts most


@lru_cache
def meaningless() -> list[str]:
    """Frequent English words that no caption holds, but for those that deny what they stand beside."""
    known = {
        part
        for values in WORDS.values()
        for words in values.values()
        for word in words
        for part in word.split()
    }
    return [word for word in plain_words() if word not in known | {"not", "none", "only", "never", "neither"}]


def syllables(rng: np.random.Generator, most: int = 4) -> str:
    """A word that does not exist, of 1 to `most` syllables."""
    parts = (list("bcdfghjklmnprstvwz") + ["br", "ch", "sh", "st", "tr"], list("aeiou"), ["", "", *"lnrs"])
    return "".join(str(rng.choice(part)) for _ in range(rng.integers(1, most + 1)) for part in parts)


def disguised(words: tuple[str, ...], rng: np.random.Generator) -> tuple[str, bool]:
    """Another way to say one of the synonyms `words`, and whether anybody could understand it."""
    way = str(rng.choice(list(DISGUISES), p=list(DISGUISES.values())))
    word = words[0] if rng.random() < 0.4 else str(rng.choice(words))
    if way == "beside":
        other = str(rng.choice(meaningless())) if rng.random() < 0.5 else syllables(rng)
        word = f"{word} {other}" if rng.random() < 0.5 else f"{other} {word}"
    elif way == "grown":
        word = word + syllables(rng, 2) if rng.random() < 0.5 else syllables(rng, 2) + word
    elif way == "nonsense":
        word = " ".join(
            str(rng.choice(meaningless())) if rng.random() < 0.3 else syllables(rng)
            for _ in range(rng.integers(1, 3))
        )
    return word, way != "nonsense"


def prompts(piece: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
    """A plain prompt of a piece, and one in disguise that says the same."""
    plain, other = [], []
    for name in ("style", "lead", "drums"):
        words = synonyms(name, piece[name])
        if rng.random() < 0.15:
            continue
        word, understood = disguised(words, rng)
        other.append(word)
        plain += [words[0]] * understood
    for sure in (f"{piece['tempo']} bpm", f"{rng.choice(KEYS[piece['key']])} {piece['mode']}"):
        if rng.random() < 0.85:
            plain.append(sure)
            other.append(sure)
    return ", ".join(plain), ", ".join(rng.permutation(other))


def cut(tokenizer: Any, text: str, share: float, rng: np.random.Generator) -> list[int]:
    """Token ids of `text`, a `share` of its words in pieces drawn at random; numbers stay whole."""
    ids: list[int] = []
    known = tokenizer.get_vocab()
    for word in text.lower().split():
        if rng.random() >= share or any(sign.isdigit() for sign in word):
            ids += tokenizer(word, add_special_tokens=False).input_ids
            continue
        rest = "▁" + word
        while rest:
            sizes = [n for n in range(1, len(rest) + 1) if rest[:n] in known]
            size = int(rng.choice(sizes)) if sizes else 1
            ids.append(known.get(rest[:size], tokenizer.unk_token_id))
            rest = rest[size:]
    return [*ids, tokenizer.eos_token_id]


class Wordsmith(LMLearner):
    """The text encoder and its projection, which learn; the language model and what was there before, which stay."""

    run: WordsRun

    def __init__(self, run: WordsRun, data: Tokens, valid: Tokens, tokenizer: Any):
        super().__init__(run, data, valid, tokenizer)
        conditioner = self.model["conditioner"]
        self.model.requires_grad_(False)
        self.learned = [*conditioner.text.t5.parameters(), *conditioner.text_proj.parameters()]
        for parameter in self.learned:
            parameter.requires_grad_(True)
        self.optimizers = [torch.optim.AdamW(self.learned, run.lr, betas=(0.9, 0.97), weight_decay=0.0)]
        self.former = load(run.start or "").to(self.team.device)["conditioner"].requires_grad_(False)

    def step(self, step: int, lr: float) -> Row:
        """One batch; see `run.Learner`."""
        rng = np.random.default_rng((self.run.seed, 6, step))
        clips, loss = self._compare(
            self.data, rng.choice(len(self.data), 2 * self.run.batch, replace=False), rng
        )
        found = side_by_side(loss, self.team.parts(clips), self.learned, self.team)
        norm = float(torch.nn.utils.clip_grad_norm_(self.learned, 1.0))
        for group in self.optimizers[0].param_groups:
            group["lr"] = lr
        self.optimizers[0].step()
        self.average.update(self.model, step)
        return {"loss": float(found), "norm": norm}

    def _compare(
        self, data: Tokens, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[int, Callable[[slice], Tensor]]:
        """How many clips, and what a part of them loses: mean divergence in nats of a code."""
        run, lm = self.run, self.model["lm"]
        said = [prompts(data.pieces[row], rng) for row in rows]
        whole = [cut(self.tokenizer, plain, 0.0, rng) for plain, _ in said]
        other = [cut(self.tokenizer, text, CUT if rng.random() < 0.6 else 0.0, rng) for _, text in said]
        codes, melody = data.music(rows, run.frames)
        # with another clip for a past it is the text alone that tells what should come
        foreign = torch.from_numpy(rng.random(len(rows)) < 0.5)
        codes = torch.where(foreign[:, None, None], codes.roll(1, 0), codes)
        silent = torch.zeros_like(melody)

        def loss(part: slice) -> Tensor:
            with self._precision():
                with torch.no_grad():
                    target = chances(lm, codes[part], read(self.former, whole[part], silent[part]))
                found = chances(lm, codes[part], read(self.model["conditioner"], other[part], silent[part]))
            apart = F.kl_div(found, target, log_target=True, reduction="none").sum(dim=-1).mean(dim=(0, 2))
            return (apart * self._weights()).mean()

        return len(rows), loss

    @torch.no_grad()
    def measure(self) -> Row:
        """Besides what `LMLearner.measure` says, the divergence of fixed disguises of valid clips."""
        count = min(32, len(self.valid))
        _, loss = self._compare(self.valid, np.arange(count), np.random.default_rng(1))
        with self.average.used(self.model):
            apart = torch.stack([loss(slice(at, at + 8)) for at in range(0, count, 8)]).mean()
        return {"valid_apart": float(apart)} | super().measure()


def read(conditioner: Any, ids: list[list[int]], melody: Tensor) -> Condition:
    """Condition of texts that are tokens already, and of a melody [B, F]; with gradients."""
    longest = max(len(row) for row in ids)
    padded = torch.tensor(
        [row + [conditioner.text.tokenizer.pad_token_id] * (longest - len(row)) for row in ids]
    )
    mask = torch.arange(longest) < torch.tensor([len(row) for row in ids])[:, None]
    return told_tokens(conditioner, padded, mask, melody, torch.ones(len(ids), dtype=torch.bool))


def chances(lm: LM, codes: Tensor, condition: Condition) -> Tensor:
    """Log probabilities [B, K, S, V] of the next code after each delayed step of `codes` [B, K, T]."""
    state = hidden(lm, delayed(lm, codes)[..., :-1], condition)
    return torch.stack([head(state).float() for head in lm.heads], dim=1).log_softmax(dim=-1)


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train words`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train words",
        description="Teaches the text encoder alone to bear words it never met.",
    )
    add_options(parser)
    parser.add_argument(
        "--start", default="runs/lm", help="a run's folder, or a model's name or folder, to begin from"
    )
    parser.add_argument("--out", default="runs/words", help="folder of the run; goes on where it stopped")
    parser.add_argument("--minutes", type=float, default=15.0, help="budget in minutes of the clock")
    parser.add_argument("--steps", type=int, default=None, help="budget in steps instead")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    data, valid = open_both(args)
    run = WordsRun(args.data, args.valid, args.tokens, args.valid_tokens, start=args.start, score=0.0, text_steps=0,
                   steps=args.steps, minutes=None if args.steps else args.minutes, lr=args.lr, seed=args.seed)  # fmt: skip
    must_fit(run, data)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # of each half of a batch
    learner = Wordsmith(run, data, valid, load(args.start)["conditioner"].text.tokenizer)
    print(json.dumps(train(run, args.out, learner, lr=run.lr, measure_every=100)))


if __name__ == "__main__":
    main()

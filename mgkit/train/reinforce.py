"""Rehearsing: the language model plays what it is asked for, hears itself, and learns from what came out.

Letters: B takes, K codebooks, T frames, S delayed steps, V codebook size.

    requests -> model, with guidance -> codes [B, K, T] -> critic -> [attributes, B, T]: is it what was asked for?
             -> gains [B, T]: how much better it becomes after a frame than in the other takes of its request
             -> codes with a gain become likelier, those with a loss less likely

True music teaches what comes next in true music. In its own a beat that came a little late, or a note of another key,
is what all that follows stands on, and nothing said that it matters. Here the model meets the consequences. The critic
is the model as it was at the beginning, told nothing of the request: what its middle layer says of the score (see
`score`) it must have heard. The judges of `measure` have no part in it. Every batch holds clips of true music too, as
`lm` learns from them, so that the sound stays what it was.

This is a policy gradient (REINFORCE) with the mean of a request's takes for a baseline. Reinforcement has also taught
a published model to please its listeners (MusicRL, arXiv:2402.04229).
"""

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mgkit.band.captions import KEYS, synonyms
from mgkit.delay import delays
from mgkit.generate import Settings, Told, frames, windows
from mgkit.sampling import guide
from mgkit.train.auxiliary import CHOICES, FRAME_RATE, Reader
from mgkit.train.history import Metrics
from mgkit.train.lm import LMLearner, LMRun, delayed, hidden, load, must_fit, told
from mgkit.train.loop import learning_rate, train
from mgkit.train.parallel import autocast, backward
from mgkit.train.tokens import Tokens, add_options, open_splits

ATTRIBUTES = ("pace", "key", "lead", "drums")
LAG = FRAME_RATE  # frames between the two moments that the pace is read from
LESSONS, PASSES = 1000, 8  # clips that a reader learns from, and how often, where a model comes without one
AHEAD = 75  # frames after a code that it answers for
SURE = 10.0  # log odds from which on the critic can be no surer


@dataclass(frozen=True)
class Rehearsal(LMRun):
    """Everything that decides a run, beside what an `LMRun` says of the true music in between."""

    requests: int = 12  # in a round
    takes: int = 4  # of each of them
    turns: int = 4  # batches that a round is learned in
    guidance: float = 3.0
    gain: float = 2.0  # how much the takes count beside true music


class Request(NamedTuple):
    """What is asked for: words, the piece that they describe, and how many of its frames are given to go on from."""

    text: str
    piece: dict[str, Any]
    row: int
    given: int


def ask(piece: dict[str, Any], rng: np.random.Generator, goes_on: bool) -> str:
    """A caption that names all that the critic listens for; of a piece that goes on, what a beginning does not tell."""
    words = [str(rng.choice(synonyms(name, piece[name]))) for name in ("style", "lead", "drums")]
    if not goes_on:
        words += [f"{piece['tempo']} bpm", f"{rng.choice(KEYS[piece['key']])} {piece['mode']}"]
    return ", ".join(rng.permutation(words))


class Critic:
    """What a model (`folder` as for `lm.load`) hears in codes when it is told nothing."""

    def __init__(self, folder: str | Path, device: torch.device):
        self.model = load(folder).to(device)
        self.reader = Reader(self.model["lm"]).to(device)
        checkpoint = Path(folder) / "checkpoint.pt"
        state = torch.load(checkpoint, map_location="cpu", weights_only=False) if checkpoint.is_file() else {}
        known = state.get("learner", {}).get("reader")
        if known:
            self.reader.load_state_dict(known)
        self.knows = bool(known)  # whether the reader is the one that the model learned with

    @torch.no_grad()
    def _states(self, codes: Tensor) -> Tensor:
        """What the reader's layer is given [B, T, D] while `codes` [B, K, T] sound and nothing is told."""
        count, conditioner = len(codes), self.model["conditioner"]
        silent = torch.zeros(count, conditioner.melody_frames or 0, dtype=torch.long)
        nothing = told(conditioner, [""] * count, silent, torch.zeros(count, dtype=torch.bool))
        hidden(self.model["lm"], delayed(self.model["lm"], codes)[..., :-1], nothing)
        return self.reader.heard(codes.shape[-1])

    def learn(self, codes: Tensor, scores: Tensor) -> None:
        """Fits the reader to true music, `codes` [clips, K, T] and `scores` [clips, Q, T], a batch of frames of any clips
        at a time; the model stays as it is."""
        with ThreadPoolExecutor(2) as pool:
            heard = pool.map(self._states, codes.split(8))
            states = torch.cat(list(tqdm(heard, total=-(-len(codes) // 8), desc="the critic listens")))
        states, scores = states.flatten(0, 1), scores.transpose(1, 2).flatten(0, 1)
        optimizer, generator = torch.optim.AdamW(self.reader.parameters()), torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(states), generator=generator) for _ in range(PASSES)]
        batches = [rows for order in orders for rows in order.split(4096)]
        for step, rows in enumerate(batches):
            optimizer.param_groups[0]["lr"] = learning_rate(3e-3, step / len(batches))
            optimizer.zero_grad()
            self.reader(states[rows.to(states.device)][None], scores[rows].T[None]).sum().backward()
            optimizer.step()

    @torch.no_grad()
    def hears(self, codes: Tensor, tempos: list[float], asked: Tensor) -> Tensor:
        """How well `codes` [B, K, T] are what was asked for, `tempos` [B] and scores `asked` [B, Q, T], so far, at each
        frame: [ATTRIBUTES, B, T].

        Of the pace: cosine of the angle by which the beat is off that of the asked tempo after LAG frames, times how sure
        it is of the beat. Of the rest: log odds of what was asked for.
        """
        answers = self.reader.said(self._states(codes))
        said = {name: logits.cpu() for name, logits in zip(CHOICES, answers, strict=False)}
        odds = [_odds(said[name], asked[:, list(CHOICES).index(name)]) for name in ATTRIBUTES[1:]]
        return torch.stack([pace(said["phase"].softmax(dim=-1), tempos), *odds])


def pace(phases: Tensor, tempos: list[float]) -> Tensor:
    """From chances of each part of the beat [B, T, n]: 1 where it is where `tempos` [B] say that it is LAG frames after
    it was where it was, -1 half a beat off, 0 where no beat is heard [B, T]."""
    circle = torch.polar(torch.ones(()), torch.arange(phases.shape[-1]) * 2 * math.pi / phases.shape[-1])
    hand = (phases * circle).sum(dim=-1)  # of a clock that goes round once a beat
    turn = torch.tensor(tempos) * 2 * math.pi / 60 * LAG / FRAME_RATE
    off = hand[:, LAG:] * hand[:, :-LAG].conj() * torch.polar(torch.ones(()), -turn)[:, None]
    return F.pad(off.real, (LAG, 0))


def _odds(logits: Tensor, values: Tensor) -> Tensor:
    """Log odds [B, T] of `values` [B, T] among `logits` [B, T, n]."""
    right = logits.log_softmax(dim=-1).gather(-1, values.long()[..., None])[..., 0]
    return (right - torch.log1p(-right.exp().clamp(max=1 - 1e-6))).clamp(-SURE, SURE)


def gains(heard: Tensor, takes: int) -> Tensor:
    """How much better the AHEAD frames after each one are than what was heard until then, beside the same of the other
    `takes` of its request and in units of their spread: [B, T] of what is heard [attributes, B, T], the takes of a
    request side by side.

    What was heard until then is not to a code's credit: it would drown what is.
    """
    frames = heard.shape[-1]
    total = F.pad(heard, (1, 0)).cumsum(dim=-1)
    first = torch.arange(1, frames + 1)
    last = (first + AHEAD).clamp(max=frames)
    later = (total[..., last] - total[..., first]) / AHEAD - heard * (last - first) / AHEAD
    groups = later.unflatten(1, (-1, takes))
    better = groups - groups.mean(dim=2, keepdim=True)
    return (better / (better.std(dim=(1, 2, 3), keepdim=True) + 1e-6)).mean(dim=0).flatten(0, 1)


class Rehearser(LMLearner):
    """A language model that learns from its own takes and from true music in turn."""

    run: Rehearsal

    def __init__(self, run: Rehearsal, data: Tokens, valid: Tokens, tokenizer: Any, resumed: bool = False):
        super().__init__(run, data, valid, tokenizer, resumed)
        self.critic = Critic(run.start or "", self.processes.device)
        if not (self.critic.knows or resumed):
            rows = np.arange(min(LESSONS, len(data)))
            codes, _ = data.batch(rows, data.codes.shape[-1])
            self.critic.learn(codes, torch.from_numpy(self.scores[rows]))
        assert self.reader is not None
        self.reader.load_state_dict(self.critic.reader.state_dict())

    def step(self, step: int, lr: float) -> Metrics:
        """A round: takes, what is heard in them, and a few batches; see `loop.Learner`."""
        run, rng = self.run, np.random.default_rng((self.run.seed, 5, step))
        requests = self._requests(rng, goes_on=step % 3 == 2)
        texts, codes = self._play(requests, step)
        tempos = [request.piece["tempo"] for request in requests]
        asked = torch.from_numpy(self.scores[[request.row for request in requests]])
        few = [slice(at, at + 8) for at in range(0, len(codes), 8)]
        heard = torch.cat([self.critic.hears(codes[part], tempos[part], asked[part]) for part in few], dim=1)
        better = gains(heard, run.takes)
        better[:, : requests[0].given] = 0
        rows: list[Tensor] = []
        for turn, chosen in enumerate(np.array_split(rng.permutation(len(codes)), run.turns)):
            clips, true = self.lesson(step * run.turns + turn)

            def loss(part: tuple[slice, np.ndarray], true: Callable = true) -> Tensor:
                clips, mine = part
                urge = self._urge(codes[mine], [texts[i] for i in mine], better[mine])
                return torch.stack([true(clips).mean(), urge * run.gain])

            parts = self.processes.shards(clips)
            halves = list(zip(parts, np.array_split(chosen, len(parts)), strict=True))
            rows.append(backward(loss, halves, self.learned, self.processes))
            norm = self.descend(step * run.turns + turn, lr)
        true, urge = torch.stack(rows).mean(dim=0).tolist()
        after = heard[..., requests[0].given :]
        after_seam = "_going_on" if requests[0].given else ""
        return {"loss": true, "urge": urge, "norm": norm} | {
            name + after_seam: float(x.mean()) for name, x in zip(ATTRIBUTES, after, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return super().state_dict() | {"critic": self.critic.reader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`."""
        super().load_state_dict(state)
        self.critic.reader.load_state_dict(state["critic"])

    def _requests(self, rng: np.random.Generator, goes_on: bool) -> list[Request]:
        length = self.data.codes.shape[-1]
        given = int(rng.integers(length // 5, length // 2)) if goes_on else 0
        asked = []
        for row in rng.choice(len(self.data), self.run.requests, replace=False):
            piece = self.data.pieces[row]
            asked += [Request(ask(piece, rng, goes_on), piece, int(row), given)] * self.run.takes
        return asked

    def _play(self, requests: list[Request], step: int) -> tuple[list[Tensor], Tensor]:
        """The described texts [L, D] and the takes [B, K, T] of requests, a part of them in a thread each."""
        run, lm, conditioner = self.run, self.model["lm"], self.model["conditioner"]
        length, given = self.data.codes.shape[-1], requests[0].given
        with torch.no_grad():
            texts = conditioner.describe([request.text for request in requests])
        settings = Settings(cfg_coef=run.guidance)
        begin, _ = self.data.batch(np.array([request.row for request in requests]), given)
        begin = begin.to(lm.device)

        @torch.no_grad()
        def work(part: slice) -> Tensor:
            streams = Told([conditioner(texts[part]), conditioner.null(texts[part])])
            generators = [torch.Generator().manual_seed((run.seed << 40) + (step << 10) + i) for i in range(part.start, part.stop)]  # fmt: skip
            plan = windows(length, given, length, length)
            new = list(frames(lm, lambda _: streams, begin[part], plan, settings, generators))
            return torch.cat([begin[part], torch.stack(new, dim=-1)], dim=-1)

        parts = self.processes.shards(len(requests))
        with ThreadPoolExecutor(len(parts)) as pool:
            made = list(pool.map(work, parts))
        return texts, torch.cat(made).cpu()

    def _urge(self, codes: Tensor, texts: list[Tensor], better: Tensor) -> Tensor:
        """Minus the mean of log probability times gain, over the steps of takes `codes` [B, K, T]: of what guidance makes of
        the model's logits, where those that are told nothing count as given."""
        lm, conditioner = self.model["lm"], self.model["conditioner"]
        steps = delayed(lm, codes)
        logits = []
        with autocast(self.processes.device, self.run.bf16):
            for condition, learns in ((conditioner(texts), True), (conditioner.null(texts), False)):
                with torch.set_grad_enabled(learns):
                    state = hidden(lm, steps[..., :-1], condition)
                    logits.append(torch.stack([head(state).float() for head in lm.heads], dim=1))
        said = guide(logits[0], logits[1], self.run.guidance).log_softmax(dim=-1)
        target = steps[..., 1:]
        holds = target != lm.config.special
        found = said.gather(-1, target.where(holds, 0)[..., None])[..., 0]
        shifts = delays(lm.config.codebooks, lm.config.channels)
        gain = torch.stack([F.pad(better, (shift, 0))[:, : target.shape[-1]] for shift in shifts], dim=1)
        gain = gain.to(found.device)
        return -(found * gain * holds * self._weights()[:, None]).sum() / holds.sum()


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train reinforce`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train reinforce", description="Teaches the language model on its own takes."
    )
    add_options(parser)
    parser.add_argument(
        "--start", default="runs/lm", help="a run's folder, or a model's name or folder, to begin from"
    )
    parser.add_argument("--out", default="runs/rehearsed", help="folder of the run; goes on where it stopped")
    parser.add_argument("--minutes", type=float, default=40.0, help="budget in minutes of the clock")
    parser.add_argument("--steps", type=int, default=None, help="budget in rounds instead")
    parser.add_argument(
        "--gain", type=float, default=Rehearsal.gain, help="how much the takes count beside true music"
    )
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    data, valid = open_splits(args)
    run = Rehearsal(args.data, args.valid, args.tokens, args.valid_tokens, start=args.start, text_steps=0, steps=args.steps,
                    minutes=None if args.steps else args.minutes, gain=args.gain, lr=args.lr, seed=args.seed)  # fmt: skip
    must_fit(run, data)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # of each half of a batch
    resumed = (Path(args.out) / "checkpoint.pt").is_file()
    learner = Rehearser(run, data, valid, load(args.start)["conditioner"].text.tokenizer, resumed)
    print(json.dumps(train(run, args.out, learner, lr=run.lr, measure_every=20)))


if __name__ == "__main__":
    main()

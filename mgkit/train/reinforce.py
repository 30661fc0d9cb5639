"""Reinforcement learning of the language model on its own samples (REINFORCE).

Axes: B samples, K codebooks, T frames, S delayed steps, L text length, D width, V codebook size.

    prompts -> policy, with guidance -> samples [B, K, T] -> rewards -> advantages [B, T]         (rewards.py)
            -> policy loss: minus the mean of advantage times log-probability

Trained on its data alone, a model never sees the consequences of its own errors: in a sample, one late beat
or one note in another key is part of the history of everything after it. Here the policy trains on such
histories. Each round draws samples for a few prompts and takes a few gradient steps; in every third round the
samples continue training clips. Every gradient step also includes a batch of clips with the loss of lm.py.
It keeps the policy near the data, in place of a KL penalty.

The mean over a prompt's samples is the baseline, as in GRPO (arXiv:2402.03300). MusicRL (arXiv:2402.04229)
trains a music model on listeners' preferences.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgkit import ranges
from mgkit.band.captions import KEYS, synonyms
from mgkit.band.dataset import ClipRow
from mgkit.delay import delays
from mgkit.generate import Guidance, frames, windows
from mgkit.sampling import guide
from mgkit.settings import Settings
from mgkit.train.batches import Batch
from mgkit.train.history import Metrics
from mgkit.train.lm import LMLearner, LMRun, validate_codebooks
from mgkit.train.loop import train
from mgkit.train.loss import attend_for, delayed
from mgkit.train.model import load
from mgkit.train.parallel import backward
from mgkit.train.rewards import FIT_CLIPS, REWARDS, RewardModel, advantages
from mgkit.train.tokens import Tokens, add_options, open_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Every third round, the samples continue training clips.
CONTINUE_EVERY = 3


@dataclass(frozen=True)
class ReinforceRun(LMRun):
    """Every setting of a run: those of `LMRun` for the batches of clips, and the policy gradient's."""

    # per round
    prompts: int = 12
    # per prompt
    samples: int = 4
    # gradient steps per round
    updates: int = 4
    guidance: float = 3.0
    # Weight of the policy loss, relative to the loss on training clips
    policy_weight: float = 2.0


class Prompt(NamedTuple):
    """A caption, the number and tempo of its clip, and how many of the clip's frames the samples continue."""

    text: str
    row: int
    tempo: float
    frames: int


class Shard(NamedTuple):
    """The part of a gradient step that one thread or process computes: training clips and samples."""

    batch: Batch
    # of each sample, encoded [L, D]
    texts: list[Tensor]
    # [B, K, T]
    codes: Tensor
    # [B, T]
    advantage: Tensor


def prompt_text(piece: ClipRow, rng: np.random.Generator, continuation: bool) -> str:
    """A caption with the rewarded attributes, in random order; without key and tempo for a continuation."""
    always: dict[str, str | bool] = {"style": piece["style"], "lead": piece["lead"], "drums": piece["drums"]}
    words = [str(rng.choice(synonyms(name, value))) for name, value in always.items()]
    if not continuation:
        words += [f"{piece['tempo']} bpm", f"{rng.choice(KEYS[piece['key']])} {piece['mode']}"]
    return ", ".join(rng.permutation(words))


class ReinforceLearner(LMLearner):
    """A language model trained on its own samples and on training clips."""

    run: ReinforceRun
    labels: np.ndarray

    def __init__(
        self,
        run: ReinforceRun,
        data: Tokens,
        valid: Tokens,
        tokenizer: "PreTrainedTokenizerBase",
        resumed: bool = False,
    ):
        super().__init__(run, data, valid, tokenizer, resumed)
        assert run.start is not None and self.auxiliary is not None
        self.reward_model = RewardModel(run.start, self.processes.device)
        if not (self.reward_model.pretrained or resumed):
            rows = np.arange(min(FIT_CLIPS, len(data)))
            codes, _ = data.batch(rows, data.codes.shape[-1])
            self.reward_model.fit(codes, torch.from_numpy(self.labels[rows]))
        self.auxiliary.load_state_dict(self.reward_model.head.state_dict())

    def step(self, step: int, lr: float) -> Metrics:
        """One round: samples, their advantages, and `updates` gradient steps; see `loop.Learner`."""
        run, rng = self.run, np.random.default_rng((self.run.seed, 5, step))
        prompts = self.prompts(rng, continuation=step % CONTINUE_EVERY == CONTINUE_EVERY - 1)
        texts, codes = self.sample(prompts, step)
        rewards = self.rewards(prompts, codes)
        # The policy did not choose the frames it continues.
        given = prompts[0].frames
        advantage = advantages(rewards, run.samples)
        advantage[:, :given] = 0

        losses, norm = [], 0.0
        for update, chosen in enumerate(np.array_split(rng.permutation(len(codes)), run.updates)):
            number = step * run.updates + update
            batch = self.batches[number]
            slices = self.processes.shards(len(batch))
            shards = [
                Shard(batch[clips], [texts[i] for i in rows], codes[rows], advantage[rows])
                for clips, rows in zip(slices, np.array_split(chosen, len(slices)), strict=True)
            ]
            losses.append(backward(self.joint_loss, shards, self.parameters, self.processes))
            norm = float(self.update(number, lr))
        clip_loss, policy_loss = torch.stack(losses).mean(dim=0).tolist()
        suffix = "_continued" if given else ""
        means = rewards[..., given:].mean(dim=(1, 2)).tolist()
        row = {"loss": clip_loss, "policy_loss": policy_loss, "norm": norm}
        return row | {f"reward_{name}{suffix}": x for name, x in zip(REWARDS, means, strict=True)}

    def joint_loss(self, shard: Shard) -> Tensor:
        """The loss on training clips and the weighted policy loss, [2]."""
        clips = self.loss(shard.batch).mean()
        policy = self.policy_loss(shard.codes, shard.texts, shard.advantage)
        return torch.stack([clips, policy * self.run.policy_weight])

    def prompts(self, rng: np.random.Generator, continuation: bool) -> list[Prompt]:
        """The prompts of a round, each repeated `samples` times; all continue the same number of frames."""
        length = self.data.codes.shape[-1]
        given = int(rng.integers(length // 5, length // 2)) if continuation else 0
        prompts = []
        for row in rng.choice(len(self.data), self.run.prompts, replace=False):
            piece = self.data.pieces[row]
            prompt = Prompt(prompt_text(piece, rng, continuation), int(row), piece["tempo"], given)
            prompts += [prompt] * self.run.samples
        return prompts

    def sample(self, prompts: list[Prompt], step: int) -> tuple[list[Tensor], Tensor]:
        """Encoded texts [L, D] of the prompts, and the policy's samples [B, K, T], audio prompts included."""
        run, lm, conditioner = self.run, self.model.lm, self.model.conditioner
        length, given = self.data.codes.shape[-1], prompts[0].frames
        with torch.no_grad():
            texts = conditioner.encode([prompt.text for prompt in prompts])
        settings = Settings(cfg_coef=run.guidance)
        plan = windows(length, given, length, length)
        beginnings, _ = self.data.batch(np.array([prompt.row for prompt in prompts]), given)
        beginnings = beginnings.to(lm.device)
        seeds = [(run.seed << 40) + (step << 10) + i for i in range(len(prompts))]

        @torch.no_grad()
        def rollout(part: slice) -> Tensor:
            streams = Guidance([conditioner(texts[part]), conditioner.null(texts[part])])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            new = frames(lm, lambda _: streams, beginnings[part], plan, settings, generators)
            return torch.cat([beginnings[part], torch.stack(list(new), dim=-1)], dim=-1)

        parts = self.processes.shards(len(prompts))
        with ThreadPoolExecutor(len(parts)) as pool:
            samples = list(pool.map(rollout, parts))
        return texts, torch.cat(samples).cpu()

    def rewards(self, prompts: list[Prompt], codes: Tensor) -> Tensor:
        """Rewards [R, B, T] of the samples `codes` [B, K, T]."""
        tempos = [prompt.tempo for prompt in prompts]
        labels = torch.from_numpy(self.labels[[prompt.row for prompt in prompts]])
        parts = [slice(start, start + 8) for start in range(0, len(codes), 8)]
        rewards = [self.reward_model.rewards(codes[part], tempos[part], labels[part]) for part in parts]
        return torch.cat(rewards, dim=1)

    def policy_loss(self, codes: Tensor, texts: list[Tensor], advantage: Tensor) -> Tensor:
        """Minus the mean of log-probability times `advantage` [B, T] over the tokens of `codes` [B, K, T].

        The probabilities are those after guidance. The gradient passes through the conditional logits only.
        """
        lm, conditioner = self.model.lm, self.model.conditioner
        steps = delayed(lm, codes)
        inputs, targets = steps[..., :-1], steps[..., 1:]
        with self.autocast():
            logits = lm(inputs, conditioner(texts), attend=attend_for(lm))
            with torch.no_grad():
                null_logits = lm(inputs, conditioner.null(texts), attend=attend_for(lm))
        logp = guide(logits, null_logits, self.run.guidance).log_softmax(dim=-1)
        is_code = targets != lm.config.special
        logp = logp.gather(-1, targets.where(is_code, 0)[..., None])[..., 0]
        # the advantage of a frame, at the delayed step [B, K, S] of each of its codes
        shifts = delays(lm.config.codebooks, lm.config.channels)
        delayed_advantage = [F.pad(advantage, (shift, 0))[:, : targets.shape[-1]] for shift in shifts]
        weight = torch.stack(delayed_advantage, dim=1).to(logp.device)
        return -(logp * weight * is_code * self.codebook_weights[:, None]).sum() / is_code.sum()

    def state_dict(self) -> dict[str, Any]:
        """See `loop.Learner`."""
        return super().state_dict() | {"reward_head": self.reward_model.head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `loop.Learner`."""
        super().load_state_dict(state)
        self.reward_model.head.load_state_dict(state["reward_head"])


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit train reinforce`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit train reinforce",
        description="Train the language model on its own samples.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser)
    option = parser.add_argument
    option("--start", default="runs/lm", help="initial weights: folder of a run, or a model's name or folder")
    option("--out", default="runs/reinforced", help="folder of the run; an interrupted run is resumed")
    option("--minutes", type=ranges.amount, default=40.0, help="budget in minutes")
    option("--steps", type=ranges.count, help="budget in rounds, instead of minutes")
    option("--batch", type=ranges.count, default=LMRun.batch, help="training clips per gradient step")
    option("--prompts", type=ranges.count, default=ReinforceRun.prompts, help="prompts per round")
    option(
        "--policy-weight",
        type=ranges.weight,
        default=ReinforceRun.policy_weight,
        help="weight of the policy loss",
    )
    option("--lr", type=ranges.amount, default=2e-4, help="peak learning rate")
    option(
        "--seed",
        type=ranges.index,
        default=ReinforceRun.seed,
        help="seed of the prompts, samples and batches",
    )
    args = parser.parse_args(argv)
    data, valid = open_splits(args)
    run = ReinforceRun(
        args.data,
        args.valid,
        args.tokens,
        args.valid_tokens,
        start=args.start,
        text_steps=0,
        steps=args.steps,
        minutes=None if args.steps else args.minutes,
        batch=args.batch,
        prompts=args.prompts,
        policy_weight=args.policy_weight,
        lr=args.lr,
        seed=args.seed,
    )
    validate_codebooks(run, data)
    # Each half of a batch has a thread of its own.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    resumed = (Path(args.out) / "checkpoint.pt").is_file()
    tokenizer = load(args.start).conditioner.text.tokenizer
    learner = ReinforceLearner(run, data, valid, tokenizer, resumed)
    print(json.dumps(train(run, args.out, learner, lr=run.lr, measure_every=20)))


if __name__ == "__main__":
    main()

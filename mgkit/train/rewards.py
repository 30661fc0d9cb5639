"""Rewards and advantages of samples.

Axes: B samples, K codebooks, T frames, D width, Q labels of a frame, R rewards.

    codes [B, K, T] -> language model with null conditions -> auxiliary head -> label probabilities
                    -> rewards [R, B, T]: agreement with the requested tempo, key, lead and drums per frame
                    -> advantages [B, T]: later improvement, compared with the prompt's other samples

The reward model is the initial language model, and it stays fixed. It reads the samples without their
prompts, so its auxiliary head can only predict labels from the music itself. The metrics of `python -m mgkit
measure` are not used in the reward and remain independent of it.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mgkit.band.labels import CLASSES, FRAME_RATE
from mgkit.train import storage
from mgkit.train.auxiliary import AuxiliaryHead
from mgkit.train.loop import learning_rate
from mgkit.train.loss import attend_for, delayed
from mgkit.train.model import load

REWARDS = ("tempo", "key", "lead", "drums")
# Frames between the two beat phases that the tempo reward compares
LAG = FRAME_RATE
# Frames of future reward credited to a frame
HORIZON = 75
# Bound of the log-odds rewards
MAX_LOG_ODDS = 10.0
# If no trained auxiliary head exists: clips and epochs to train one
FIT_CLIPS, FIT_EPOCHS = 1000, 8


class RewardModel:
    """A frozen language model and its auxiliary head, from a run's folder, or a model's name or folder.

    `pretrained` says if the folder holds the head of the model's own training; otherwise, call `fit`.
    """

    def __init__(self, folder: str | Path, device: torch.device):
        self.model = load(folder).to(device)
        self.head = AuxiliaryHead(self.model.lm.config).to(device)
        checkpoint = Path(folder) / "checkpoint.pt"
        state = None
        if checkpoint.is_file():
            state = storage.load(checkpoint)["learner"].get("auxiliary")
        if state:
            self.head.load_state_dict(state)
        self.pretrained = bool(state)

    @torch.no_grad()
    def residual(self, codes: Tensor) -> Tensor:
        """The input [B, T, D] of the head for `codes` [B, K, T], under null conditions."""
        count, lm = len(codes), self.model.lm
        no_melody = torch.zeros(count, self.model.conditioner.melody_frames or 0, dtype=torch.long)
        null = self.model.condition([""] * count, no_melody, torch.zeros(count, dtype=torch.bool))
        layers, inputs = (self.head.layer,), delayed(lm, codes)[..., :-1]
        [residual] = lm.residuals(inputs, null, layers=layers, attend=attend_for(lm))
        return residual[:, -codes.shape[-1] :]

    def fit(self, codes: Tensor, labels: Tensor) -> None:
        """Train the head alone on training clips: `codes` [clips, K, T] and `labels` [clips, Q, T]."""
        with ThreadPoolExecutor(2) as pool:
            chunks = pool.map(self.residual, codes.split(8))
            residual = torch.cat(list(tqdm(chunks, total=-(-len(codes) // 8), desc="reward model")))
        residual, labels = residual.flatten(0, 1), labels.transpose(1, 2).flatten(0, 1)
        optimizer, generator = torch.optim.AdamW(self.head.parameters()), torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(residual), generator=generator) for _ in range(FIT_EPOCHS)]
        # batches of single frames, from any clips
        batches = [rows for order in orders for rows in order.split(4096)]
        for step, rows in enumerate(batches):
            optimizer.param_groups[0]["lr"] = learning_rate(3e-3, step / len(batches))
            optimizer.zero_grad()
            self.head(residual[rows.to(residual.device)][None], labels[rows].T[None]).sum().backward()
            optimizer.step()

    @torch.no_grad()
    def rewards(self, codes: Tensor, tempos: list[float], labels: Tensor) -> Tensor:
        """Rewards [R, B, T] of `codes` [B, K, T], given requested `tempos` [B] in bpm and `labels` [B, Q, T].

        They are the `tempo_reward` and the log odds of the requested key, lead and drums.
        """
        predictions = self.head.logits(self.residual(codes))
        logits = {name: x.cpu() for name, x in zip(CLASSES, predictions, strict=False)}
        odds = [log_odds(logits[name], labels[:, list(CLASSES).index(name)]) for name in REWARDS[1:]]
        return torch.stack([tempo_reward(logits["phase"].softmax(dim=-1), tempos), *odds])


def tempo_reward(phases: Tensor, tempos: list[float]) -> Tensor:
    """Agreement [B, T] of the beat with `tempos` [B] in bpm, from probabilities of its phase [B, T, classes].

    It compares the current phase with the phase LAG frames ago, advanced at the requested tempo: 1 if they
    agree, -1 if they are half a beat apart, 0 for uniform probabilities and in the first LAG frames.
    """
    circle = torch.polar(torch.ones(()), torch.arange(phases.shape[-1]) * 2 * math.pi / phases.shape[-1])
    # the mean phase as a point in the unit disc, one turn per beat
    hand = (phases * circle).sum(dim=-1)
    turn = torch.tensor(tempos) * 2 * math.pi / 60 * LAG / FRAME_RATE
    agreement = hand[:, LAG:] * hand[:, :-LAG].conj() * torch.polar(torch.ones(()), -turn)[:, None]
    return F.pad(agreement.real, (LAG, 0))


def log_odds(logits: Tensor, values: Tensor) -> Tensor:
    """Log odds [B, T] of `values` [B, T] under `logits` [B, T, classes], within ±MAX_LOG_ODDS."""
    logp = logits.log_softmax(dim=-1).gather(-1, values.long()[..., None])[..., 0]
    return (logp - torch.log1p(-logp.exp().clamp(max=1 - 1e-6))).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def advantages(rewards: Tensor, samples: int) -> Tensor:
    """Advantages [B, T] from `rewards` [R, B, T], where each prompt's `samples` are adjacent in B.

    The return of a frame is the mean reward of the next HORIZON frames minus the reward at the frame itself:
    otherwise the contribution of earlier frames would dominate it. The baseline is the mean return of the
    prompt's samples. For each reward, the differences are divided by their standard deviation over all
    samples and frames; the advantage is the mean over the rewards.
    """
    frames = rewards.shape[-1]
    total = F.pad(rewards, (1, 0)).cumsum(dim=-1)
    first = torch.arange(1, frames + 1)
    last = (first + HORIZON).clamp(max=frames)
    returns = (total[..., last] - total[..., first]) / HORIZON - rewards * (last - first) / HORIZON
    groups = returns.unflatten(1, (-1, samples))
    centered = groups - groups.mean(dim=2, keepdim=True)
    return (centered / (centered.std(dim=(1, 2, 3), keepdim=True) + 1e-6)).mean(dim=0).flatten(0, 1)

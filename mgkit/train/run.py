"""What every training run stands on: its clips, its budget, its checkpoints, its curves.

    run.json         the run: one frozen dataclass
    checkpoint.pt    where it stands; written whole or not at all
    log.csv, .png    its curves

A learner is one model being taught. `train` drives it until the budget is used; it can be stopped at any moment
(Ctrl-C, SIGTERM) and goes on from there when it is started again with the same run.
"""

import csv
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mgkit import show

Row = dict[str, float]


class Clips:
    """A rendered folder: `mix` and `melody` int16 [clips, N] read from disk as they are needed, `pieces` a dict each.

    Errors: FileNotFoundError or ValueError, in one sentence, for a folder that is missing, not finished, of another
    rate, or whose files do not fit each other.
    """

    def __init__(self, folder: str | Path, rate: int):
        folder = Path(folder)
        about = folder / "dataset.json"
        if not about.is_file():
            raise FileNotFoundError(
                f"{folder} has no dataset.json: render it whole first (python -m mgkit train data)"
            )
        plan = json.loads(about.read_text())
        if plan["rate"] != rate:
            raise ValueError(f"{folder} was rendered at {plan['rate']} Hz, and the codec is for {rate} Hz")
        self.pieces = [json.loads(line) for line in (folder / "pieces.jsonl").read_text().splitlines()]
        if not self.pieces or len(self.pieces) != plan["clips"]:
            raise ValueError(
                f"{folder} holds {len(self.pieces)} descriptions and promises {plan['clips']} clips"
            )
        self.mix, self.melody = (self._wave(folder / name, plan) for name in ("mix.i16", "melody.i16"))
        self.samples = plan["samples"]

    @staticmethod
    def _wave(path: Path, plan: dict) -> np.ndarray:
        size = plan["clips"] * plan["samples"] * 2
        if path.stat().st_size != size:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes where {size} are promised: render it again"
            )
        return np.memmap(path, np.int16, "r", shape=(plan["clips"], plan["samples"]))

    def __len__(self) -> int:
        return len(self.pieces)


def waves(pcm: np.ndarray) -> Tensor:
    """Waves [..., N] float32 within ±1 of int16 samples [..., N]."""
    return torch.from_numpy(np.asarray(pcm, np.float32) / 32768)


class Learner(Protocol):
    """One model being taught."""

    def step(self, step: int, lr: float) -> Row:
        """Learns from one batch, the same for the same `step`; its losses."""

    def measure(self) -> Row:
        """Scores on what it does not learn from."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a former state."""

    def save(self, out: Path) -> None:
        """The result, for those who use it."""


def learning_rate(peak: float, progress: float, warmup: float = 0.02) -> float:
    """A linear rise over the first `warmup` of the budget, then half a cosine down to 1 % of the peak.

    >>> [round(learning_rate(1.0, p), 2) for p in (0.0, 0.01, 0.02, 0.51, 1.0)]
    [0.0, 0.5, 1.0, 0.51, 0.01]
    """
    if progress < warmup:
        return peak * progress / warmup
    along = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def train(run: Any, out: str | Path, learner: Learner, *, lr: float, measure_every: int) -> Row:
    """Drives `learner` until `run.steps` or `run.minutes` (whichever is set) are used up; its last measures.

    Goes on from `out`/checkpoint.pt where there is one. With `steps` a resumed run ends as an unbroken one; with
    `minutes` the schedule follows the clock. Errors: ValueError where `out` holds another run.
    """
    out = Path(out)
    claim(out, run)
    step, used, history, last = 0, 0.0, [], {}
    if (out / "checkpoint.pt").is_file():
        state = torch.load(
            out / "checkpoint.pt", weights_only=False
        )  # our own file: it holds numpy numbers too
        learner.load_state_dict(state["learner"])
        step, used, history, last = state["step"], state["used"], state["history"], state["last"]

    def save() -> None:
        state = {
            "learner": learner.state_dict(),
            "step": step,
            "used": used,
            "history": history,
            "last": last,
        }
        write_whole(out / "checkpoint.pt", lambda path: torch.save(state, path))
        write_log(out, history)
        learner.save(out)

    recent: list[Row] = []
    with (
        stopping() as stop,
        tqdm(
            total=100, bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
        ) as bar,
    ):
        bar.set_description(out.name)
        while (
            progress := step / run.steps if run.steps else used / (60 * run.minutes)
        ) < 1 and not stop.is_set():
            began = time.monotonic()
            recent.append(learner.step(step, learning_rate(lr, progress)))
            step += 1
            if not all(math.isfinite(value) for value in recent[-1].values()):
                raise FloatingPointError(
                    f"the loss of step {step} is not a number; the last checkpoint is {out}"
                )
            if step % 20 == 0:
                history.append(
                    {"step": step, "minutes": round(used / 60, 2), "lr": learning_rate(lr, progress)}
                    | mean(recent)
                )
                recent = []
                bar.set_postfix(
                    {"step": step}
                    | {
                        k: f"{v:.3f}"
                        for k, v in (history[-1] | last).items()
                        if k[0] != "b" and k not in ("step", "minutes")
                    }
                )
            if step % measure_every == 0:
                last = learner.measure()
                history.append({"step": step, "minutes": round(used / 60, 2)} | last)
                save()
            used += time.monotonic() - began
            bar.update(100 * min(1.0, progress) - bar.n)
        if not stop.is_set():
            last = learner.measure()
            history.append({"step": step, "minutes": round(used / 60, 2)} | last)
        save()
    return last


def claim(out: Path, run: Any) -> None:
    """Writes `run` to `out`/run.json, or checks that just this run is there already."""
    text = json.dumps(dataclasses.asdict(run), indent=1)
    path = out / "run.json"
    if path.is_file() and path.read_text() != text:
        old, new = json.loads(path.read_text()), json.loads(text)
        other = ", ".join(
            f"{k} {old.get(k)} (now {new.get(k)})" for k in sorted(old | new) if old.get(k) != new.get(k)
        )
        raise ValueError(
            f"{out} holds another run: {other}; start in another folder, or with the former settings"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_whole(path: Path, write: Any) -> None:
    """Calls `write` with a path beside `path` and moves the result there: a broken write leaves the former file."""
    partial = path.with_name(path.name + ".part")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def mean(rows: list[Row]) -> Row:
    """Each column's mean over the rows that have it."""
    return {k: float(np.mean([row[k] for row in rows if k in row])) for row in rows[:1] for k in row}


def write_log(out: Path, history: list[Row]) -> None:
    """The curves as log.csv and log.png."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in history for name in row))
    with open(out / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in history)
    shown = [name for name in names if name not in ("step", "minutes")]
    figure = Figure((12, 2.2 * -(-max(1, len(shown)) // 3)), layout="constrained")
    for i, name in enumerate(shown):
        axes = figure.add_subplot(-(-len(shown) // 3), 3, i + 1, title=name)
        points = [(row["step"], row[name]) for row in history if name in row]
        axes.plot(*zip(*points, strict=True))
    figure.savefig(out / "log.png", dpi=70)


def curves(log: str | Path) -> show.Picture:
    """Picture of a run's log.csv: the loss over the steps, beside that on what the model does not learn from (`valid_…`).

    Errors: FileNotFoundError; ValueError for a file without these columns.
    """
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else ()) if name == "loss" or name.startswith("valid_")]
    if not names or "step" not in rows[0]:
        raise ValueError(f"{log} is no log of a run: expected the columns step, loss and valid_…")
    figure = show.Picture(figsize=(9, 3.2), layout="constrained")
    figure.alt = f"curves of {', '.join(names)} over {rows[-1]['step']} steps"
    axes = figure.add_subplot(xlabel="steps", ylabel="nats a token")
    for name in names:
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        mark = {"linewidth": 1} if name == "loss" else {"marker": "o", "markersize": 3}
        axes.plot(*zip(*points, strict=True), label=name.replace("_", ", "), **mark)
    axes.legend(fontsize=8)
    return figure


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step in progress ends and is saved."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def side_by_side(
    loss: Callable[[Any], Tensor], parts: Sequence[Any], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Sets gradients as `loss(part)` [...] averaged over all would, each part in a thread of its own; the mean loss.

    Two threads that share every operation wait for each other after each; two that each have their own do not.
    """

    def work(part: Any) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        found = loss(part)
        return found.detach(), torch.autograd.grad(found.mean(), parameters, allow_unused=True)

    with ThreadPoolExecutor(len(parts)) as pool:
        done = list(pool.map(work, parts))
    for parameter, *grads in zip(parameters, *(grads for _, grads in done), strict=True):
        known = [grad for grad in grads if grad is not None]
        parameter.grad = torch.stack(known).sum(dim=0) / len(parts) if known else None
    return torch.stack([found for found, _ in done]).mean(dim=0)


class Average:
    """Moving average of a model's weights: what is used afterwards."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in model.parameters()], weight)

    @contextmanager
    def used(self, model: nn.Module) -> Iterator[None]:
        """`model` with the averaged weights while the block runs."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

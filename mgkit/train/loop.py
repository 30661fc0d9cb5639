"""What every training run stands on: its clips, its budget, its checkpoints, its curves.

    run.json         the run: one frozen dataclass
    checkpoint.pt    where it stands; written whole or not at all
    log.csv, .png    its curves

A learner is one model being taught. `train` drives it until the budget is used; it can be stopped at any moment
(Ctrl-C, SIGTERM) and goes on from there when it is started again with the same run.

Several processes may share every batch, a `Team`: `accelerate launch --multi_gpu --num_processes 2 -m mgkit train lm …`
starts two, on GPUs where there are some, else on the CPU. (With `--cpu` Accelerate starts one, whatever is asked for.)
"""

import csv
import dataclasses
import json
import math
import os
import signal
import sys
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
from tqdm.auto import tqdm

from mgkit import audio
from mgkit.lab import figures
from mgkit.musicgen import best_device

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


class Team:
    """The processes that learn together: this one alone, unless `accelerate launch` has started several.

    `size` of them, of which this is number `rank` and computes on `device`: the best there is.
    """

    def __init__(self) -> None:
        self.size, self.rank, self.device = 1, 0, best_device()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=self.device.type == "cpu")
            self.size, self.rank, self.device = state.num_processes, state.process_index, state.device

    def parts(self, batch: int) -> tuple[slice, ...]:
        """The parts of a batch: one for each process, or on one CPU two, which `side_by_side` gives a thread each.

        Errors: ValueError for a batch that cannot be shared evenly.
        """
        count = self.size
        if count == 1 and self.device.type == "cpu" and batch % 2 == 0:
            count = 2
        if batch % count:
            raise ValueError(f"{count} processes cannot share a batch of {batch}; give a multiple of {count}")
        each = batch // count
        return tuple(slice(each * i, each * (i + 1)) for i in range(count))

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over all processes of each of the tensors."""
        if self.size == 1:
            return list(tensors)
        from accelerate.utils import reduce

        flat = reduce(torch.cat([tensor.flatten().float() for tensor in tensors]), "sum")
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    @torch.no_grad()
    def agree(self, parameters: Sequence[Tensor]) -> None:
        """Gives every process the first one's parameters."""
        heard = self.total([p if self.rank == 0 else torch.zeros_like(p) for p in parameters])
        for parameter, value in zip(parameters, heard, strict=True):
            parameter.copy_(value)

    def wait(self) -> None:
        """Until every process is here."""
        self.total([torch.zeros(1, device=self.device)])


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices in bfloat16 itself; elsewhere it is imitated, slower than float32."""
    able = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_avx512_bf16_supported}.get(device.type)
    return able is not None and able()


def precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Context in which matrices multiply in bfloat16, where that is wanted and the hardware does it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bf16(device))


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
    out, team = Path(out), Team()
    if team.rank == 0:
        claim(out, run)
        if team.size > 1:
            print(f"{team.size} processes share every batch", file=sys.stderr)
    team.wait()
    step, used, history, last = 0, 0.0, [], {}
    if (out / "checkpoint.pt").is_file():
        state = torch.load(
            out / "checkpoint.pt", map_location=team.device, weights_only=False
        )  # our own file: it holds numpy numbers too
        learner.load_state_dict(state["learner"])
        step, used, history, last = state["step"], state["used"], state["history"], state["last"]

    def measure() -> None:
        nonlocal last
        last = learner.measure()
        history.append({"step": step, "minutes": round(used / 60, 2)} | last)

    def save() -> None:
        if team.rank > 0:
            return
        state = {
            "learner": learner.state_dict(),
            "step": step,
            "used": used,
            "history": history,
            "last": last,
        }
        audio.replace_file(out / "checkpoint.pt", lambda path: torch.save(state, path))
        write_log(out, history)
        learner.save(out)

    def stopped() -> bool:
        """Whether any process was told to stop; takes over the first one's clock, so that all stop at one step."""
        nonlocal used
        mine = torch.tensor([used if team.rank == 0 else 0.0, float(stop.is_set())], device=team.device)
        used, stops = team.total([mine])[0].tolist() if team.size > 1 else (used, float(stop.is_set()))
        return stops > 0

    if not history:
        measure()  # where it starts from
    recent: list[Row] = []
    with (
        stopping() as stop,
        tqdm(
            total=100,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            disable=team.rank > 0,
        ) as bar,
    ):
        bar.set_description(out.name)
        while not (ended := stopped()):
            progress = step / run.steps if run.steps else used / (60 * run.minutes)
            if progress >= 1:
                break
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
                        k: f"{v:.3g}" if k == "lr" else f"{v:.3f}"
                        for k, v in (history[-1] | last).items()
                        if k[0] != "b" and k not in ("step", "minutes")
                    }
                )
            if step % measure_every == 0:
                measure()
                save()
            used += time.monotonic() - began
            bar.update(100 * min(1.0, progress) - bar.n)
        if not ended:
            measure()
        save()
    team.wait()
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
    audio.replace_file(path, lambda draft: draft.write_text(text))


def mean(rows: list[Row]) -> Row:
    """Each column's mean over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def write_log(out: Path, history: list[Row]) -> None:
    """The curves as log.csv and log.png."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in history for name in row))

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in history)

    audio.replace_file(out / "log.csv", write)
    shown = [name for name in names if name not in ("step", "minutes")]
    figure = Figure((12, 2.2 * -(-max(1, len(shown)) // 3)), layout="constrained")
    for i, name in enumerate(shown):
        axes = figure.add_subplot(-(-len(shown) // 3), 3, i + 1, title=name)
        points = [(row["step"], row[name]) for row in history if name in row]
        axes.plot(*zip(*points, strict=True))
    audio.replace_file(out / "log.png", lambda path: figure.savefig(path, dpi=70, format="png"))


def read_log(log: str | Path) -> list[Row]:
    """The rows of a run's log.csv, each with what it has. Errors: FileNotFoundError; ValueError for another file."""
    with open(log, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "step" not in rows[0]:
        raise ValueError(f"{log} is no log of a run: expected the columns step, loss and valid_…")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def curves(log: str | Path) -> figures.Picture:
    """Picture of a run's log.csv: the loss over the steps, beside that on what the model does not learn from (`valid_…`).

    Errors: those of `read_log`.
    """
    rows = read_log(log)
    names = [
        name
        for name in dict.fromkeys(n for row in rows for n in row)
        if name == "loss" or name[:6] == "valid_"
    ]
    figure = figures.Picture(figsize=(9, 3.2), layout="constrained")
    figure.alt = f"curves of {', '.join(names)} over {rows[-1]['step']:.0f} steps"
    axes = figure.add_subplot(xlabel="steps", ylabel="nats a token")
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
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
    loss: Callable[[Any], Tensor], parts: Sequence[Any], parameters: Sequence[nn.Parameter], team: Team
) -> Tensor:
    """Sets gradients as `loss(part)` [...] averaged over all would, each part in a thread of its own; the mean loss.

    Two threads that share every operation wait for each other after each; two that each have their own do not. The
    processes of a team take a part each, and end with the same gradients.
    """

    def work(part: Any) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        found = loss(part)
        return found.detach(), torch.autograd.grad(found.mean(), parameters, allow_unused=True)

    mine = parts[team.rank :: team.size]
    with ThreadPoolExecutor(len(mine)) as pool:
        done = list(pool.map(work, mine))
    used, sums = [], [torch.stack([found for found, _ in done]).sum(dim=0)]
    for parameter, *grads in zip(parameters, *(grads for _, grads in done), strict=True):
        known = [grad for grad in grads if grad is not None]
        parameter.grad = None
        if known:  # the same ones in every process: their graphs are alike
            used.append(parameter)
            sums.append(torch.stack(known).sum(dim=0))
    found, *grads = team.total(sums)
    for parameter, grad in zip(used, grads, strict=True):
        parameter.grad = grad / len(parts)
    return found / len(parts)


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

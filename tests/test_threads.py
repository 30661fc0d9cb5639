"""The number of threads: near the best in every case, the same tokens in any, and no effect on others."""

import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest
import torch
from test_fast import TEXTS, conditions, join
from tiny import tiny

from mgkit import fast, perform, threads
from mgkit.fast import Step
from mgkit.threads import Threads, using

Costs = dict[int, tuple[float, float]]
"""Mean and spread of a step's time, by number of threads."""
IDLE: Costs = {1: (1.5, 0.05), 2: (1.0, 0.05)}
BUSY: Costs = {1: (1.5, 0.3), 2: (6.0, 1.0)}
# As measured for nano beside one busy process: one step in two threads may take as long as sixty in one.
STUCK: Costs = {1: (2.0, 0.05), 2: (50.0, 1.0)}


def over_best(costs: list[Costs], free: Callable[[Costs], float | None], seed: int) -> float:
    """Time of steps with the given costs, over that of the best number in each."""
    dice, took, best, cost = random.Random(seed), 0.0, 0.0, costs[0]
    chosen = Threads(2, free=lambda: free(cost))
    for cost in costs:
        mean, spread = cost[chosen.now]
        seconds = mean * (1 + spread * (dice.expovariate(1) - 1))
        took, best = took + seconds, best + min(mean for mean, _ in cost.values())
        chosen.after(seconds)
    return took / best


@pytest.mark.parametrize(
    "costs", [[IDLE] * 400, [BUSY] * 400, [IDLE] * 200 + [BUSY] * 200, [BUSY] * 400 + [IDLE] * 400]
)
@pytest.mark.parametrize("free", [lambda cost: 2.0 if cost is IDLE else 1.0, lambda _: math.inf])
def test_steps_take_at_most_a_quarter_longer_than_with_the_best_number(costs, free):
    runs = sorted(over_best(costs, free, seed) for seed in range(100))
    assert runs[75] < 1.25


def test_beside_a_busy_process_no_step_is_tried_in_more_threads_than_cores_are_free():
    counted, guessed = (
        [over_best([STUCK] * 200, lambda _, free=free: free, seed) for seed in range(20)]
        for free in (1.0, math.inf)
    )
    assert max(counted) < 1.05 and sorted(guessed)[10] > 1.1


def test_the_number_follows_the_free_cores():
    free = [None]
    chosen = Threads(8, free=lambda: free[0])
    took = {1: 8.0, 8: 1.0, 5: 2.0, 2: 4.0}

    def numbers(steps: int) -> set[int]:
        seen = set()
        for _ in range(steps):
            chosen.after(took[chosen.now])
            seen.add(chosen.now)
        return seen

    assert numbers(20) == {1}
    free[0] = 7.8
    assert numbers(50) == {8}
    free[0] = 5.1
    assert numbers(50) == {5}
    free[0] = 0.2
    assert numbers(50) == {1}
    free[0] = 2.2  # not at once: it may be gone again
    assert numbers(10) == {1}
    assert numbers(90) == {1, 2} and chosen.now == 2


@pytest.mark.parametrize("seed", range(20))
def test_whatever_becomes_free_the_number_is_at_most_that(seed: int):
    dice = random.Random(seed)
    free = [None]
    chosen = Threads(8, free=lambda: free[0])
    for _ in range(3000):
        if dice.random() < 0.05:
            free[0] = dice.choice([None, 0.3, 1.0, 2.0, 5.2, 8.0, math.inf])
        chosen.after(dice.expovariate(1) * dice.choice([1, 1, 1, 30]))
        assert 1 <= chosen.now <= threads.within(free[0], 8)


def test_free_cores_are_those_idle_and_those_of_this_process():
    at = [threads.Counts(0.0, 0.0, 0.0, 0.0)]
    free = threads.FreeCores(lambda: at[0])
    assert free(0.05) is None
    at[0] = threads.Counts(0.2, 0.2, 0.8, 0.3)  # of 4 cores one was idle, 1.5 were ours
    assert free(0.2) == pytest.approx(2.5)
    at[0] = threads.Counts(0.25, 0.4, 1.0, 0.3)
    assert free(0.25) == pytest.approx(2.5)  # too soon to tell
    at[0] = threads.Counts(9.0, 30.0, 36.0, 0.3)
    assert free(9.0) is None  # too long ago to tell
    at[0] = threads.Counts(10.0, 30.0, 36.0, 1.2)
    assert free(10.0) == math.inf  # nothing is counted


def test_a_container_that_hides_the_counts_has_all_cores_free(monkeypatch: pytest.MonkeyPatch):
    def hidden():
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", hidden)
    free = threads.FreeCores()
    time.sleep(1.1 * threads.WINDOW)
    assert free() == math.inf


def test_free_cores_may_be_asked_by_many_threads():
    free = threads.FreeCores()
    asked = [threading.Thread(target=lambda: [free() for _ in range(20000)]) for _ in range(4)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert free() is None or free() <= 1.2 * psutil.cpu_count()


def test_the_system_counts_a_busy_process():
    if psutil.cpu_count() < 2:
        pytest.skip("one core")
    before = threads.Counts.now()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.5)
        after = threads.Counts.now()
        busy.kill()
    elapsed = after.clock - before.clock
    assert after.all - before.all == pytest.approx(elapsed * psutil.cpu_count(), rel=0.3)
    assert after.idle - before.idle < elapsed * (psutil.cpu_count() - 0.5)
    assert after.own - before.own < 0.2


def test_one_core_needs_no_trials():
    chosen = Threads(1, free=lambda: math.inf)
    for _ in range(200):
        chosen.after(1.0)
        assert chosen.now == 1


def test_a_step_takes_its_time_with_the_chosen_number():
    before, seen = torch.get_num_threads(), []
    ticks = iter(range(100))
    chosen = Threads(4, clock=lambda: next(ticks), free=lambda: math.inf)
    torch.set_num_threads(4)
    for _ in range(7):
        with chosen.step():
            seen.append(torch.get_num_threads())
        assert torch.get_num_threads() == 4
    torch.set_num_threads(before)
    assert seen == [1, 1, 1, 4, 4, 4, 4]


def test_the_limit_is_the_calling_thread_s_alone():
    before, others = torch.get_num_threads(), []
    torch.set_num_threads(3)
    with using(1):
        assert torch.get_num_threads() == 1
        worker = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        worker.start()
        worker.join()
    assert others == [3] and torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_logits_have_the_same_bits_in_any_number_of_threads(kind: str):
    model = join(tiny(melody=kind == "melody", window=0.5))
    condition, steps = conditions(model), torch.randint(33, (4, 4, 24))
    before, seen = torch.get_num_threads(), []
    for count in (1, 2, 3, 8):
        run = Step(model.lm, condition, condition.prefix_length + steps.shape[-1])
        assert run.steady
        run(steps[..., :4])
        torch.set_num_threads(count)
        seen.append(torch.stack([run(steps[..., s : s + 1]) for s in range(4, steps.shape[-1])]))
        torch.set_num_threads(before)
    assert all(torch.equal(logits, seen[0]) for logits in seen)


def test_tokens_do_not_depend_on_the_numbers_that_were_chosen(monkeypatch: pytest.MonkeyPatch):
    model, before, runs = join(tiny()), torch.get_num_threads(), []
    model.set_generation_params(duration=0.6)
    torch.set_num_threads(2)
    for number in (1, 2):
        monkeypatch.setattr(
            Threads, "after", lambda self, seconds, number=number: vars(self).update(now=number)
        )
        runs.append(model.generate(TEXTS, seed=3, return_tokens=True)[1])
    torch.set_num_threads(before)
    assert torch.equal(*runs)


def test_a_large_batch_keeps_the_number_of_its_caller(monkeypatch: pytest.MonkeyPatch):
    """Its sums may depend on the number of threads, and so might its tokens."""
    monkeypatch.setattr(fast, "STEADY", 3)
    monkeypatch.setattr(threads.Threads, "step", lambda self: pytest.fail("chosen by time"))
    model = tiny()
    model.set_generation_params(duration=0.2)
    model.generate(TEXTS)


def test_sound_differs_in_its_last_bits_at_most():
    codes, waves = torch.randint(32, (1, 4, 60)), []
    codec = tiny().model.codec
    for count in (1, 2, 4):
        with using(count):
            waves.append(codec.decode(codes))
    assert all(torch.allclose(wave, waves[0], atol=1e-6 * waves[0].abs().max()) for wave in waves)


def test_decoding_a_stream_leaves_the_threads_of_generation_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perform, "usable", lambda: 1)
    seen, model, before = [], tiny(), torch.get_num_threads()
    torch.set_num_threads(3)
    model.set_generation_params(duration=0.4)
    for _ in model.stream(
        ["calm piano"], chunk_seconds=0.1, on_step=lambda *_: seen.append(torch.get_num_threads())
    ):
        seen.append(torch.get_num_threads())
    torch.set_num_threads(before)
    assert set(seen) == {3}

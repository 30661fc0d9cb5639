"""The number of threads: near the best in every case, the same tokens in any, and no effect on others."""

import random
import threading

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


def over_best(costs: list[Costs], seed: int) -> float:
    """Time of steps with the given costs, over that of the best number in each."""
    dice, chosen, took, best = random.Random(seed), Threads(2), 0.0, 0.0
    for cost in costs:
        mean, spread = cost[chosen.now]
        seconds = mean * (1 + spread * (dice.expovariate(1) - 1))
        took, best = took + seconds, best + min(mean for mean, _ in cost.values())
        chosen.after(seconds)
    return took / best


@pytest.mark.parametrize(
    "costs", [[IDLE] * 400, [BUSY] * 400, [IDLE] * 200 + [BUSY] * 200, [BUSY] * 400 + [IDLE] * 400]
)
def test_steps_take_at_most_a_quarter_longer_than_with_the_best_number(costs: list[Costs]):
    runs = sorted(over_best(costs, seed) for seed in range(100))
    assert runs[75] < 1.25


def test_one_core_needs_no_trials():
    chosen = Threads(1)
    for _ in range(200):
        chosen.after(1.0)
        assert chosen.now == 1


def test_a_step_takes_its_time_with_the_chosen_number():
    before, seen = torch.get_num_threads(), []
    time = iter(range(100))
    chosen = Threads(4, clock=lambda: next(time))
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
    monkeypatch.setattr(perform, "faster_now", lambda: 1)
    seen, model, before = [], tiny(), torch.get_num_threads()
    torch.set_num_threads(3)
    model.set_generation_params(duration=0.4)
    for _ in model.stream(
        ["calm piano"], chunk_seconds=0.1, on_step=lambda *_: seen.append(torch.get_num_threads())
    ):
        seen.append(torch.get_num_threads())
    torch.set_num_threads(before)
    assert set(seen) == {3}

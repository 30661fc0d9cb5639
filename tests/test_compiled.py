"""The compiled loops of a step, in float32 and int8: equal to the same operations in torch."""

import copy
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_fast import TEXTS, conditions
from test_packed import folder, load
from torch import Tensor

from mgkit import MusicGen, compiled, compiled_step, fast, model, rounded, row_cache
from mgkit.fast import Step
from mgkit.integers import FEW, Integers
from mgkit.lm import Condition
from mgkit.packed import packable
from mgkit.rounded import LEVELS
from mgkit.row_cache import RowCache

__all__ = ["folder"]  # a fixture


def by_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and sizes of the rows of x, by torch."""
    sizes = x.abs().amax(dim=1)
    return (x / sizes[:, None] * LEVELS.item()).round().to(torch.int8), sizes


def empty(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(shape, np.int8), np.empty(shape[0], np.float32)


def assert_rounded(integers: np.ndarray, sizes: np.ndarray, x: Tensor) -> None:
    """They are x, of which a number near the middle between two integers may fall on either side."""
    expected, largest = by_torch(x)
    assert np.allclose(sizes, largest, rtol=1e-5)
    off = (torch.from_numpy(integers).int() - expected.int()).abs()
    assert off.max() <= 1 and off.float().mean() < 0.001


# --- loops -------------------------------------------------------------------------------------------------


def test_numba_compiles_here():
    """Elsewhere torch does the same in twice the time; on this machine the loops have to work."""
    assert compiled.works()


@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_rows_are_rounded_as_in_torch(width: int):
    x = torch.randn(5, width) * torch.logspace(-20, 20, 5)[:, None]
    integers, sizes = empty(x.shape)
    rounded.round_rows(x.numpy(), integers, sizes)
    assert_rounded(integers, sizes, x)
    zeros = np.zeros((1, width), np.float32)
    rounded.round_rows(zeros, integers[:1], sizes[:1])
    assert not integers[0].any() and sizes[0] > 0


def test_norms_and_gelus_are_those_of_torch():
    x, gain, bias = 30 * torch.randn(3, 200) + 5, torch.randn(200), torch.randn(200)
    expected, out = F.layer_norm(x, (200,), gain, bias), np.empty((3, 200), np.float32)
    compiled.norm_rows(x.numpy(), gain.numpy(), bias.numpy(), out)
    assert np.allclose(out, expected, atol=1e-5)

    x = torch.linspace(-30, 30, 6000).view(2000, 3).t().contiguous()
    y = x.numpy().copy()
    compiled.gelu_rows(y)
    off = (torch.from_numpy(y) - F.gelu(x.double())).abs()
    assert (off / x.abs().clamp(min=1)).max() < 3e-7


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_lost(value: float):
    x, weight = torch.randn(2, 64), Integers.of(torch.randn(8, 64))
    x[1, 5] = value
    y = np.empty((2, 64), np.float32)
    compiled.norm_rows(x.numpy(), np.ones(64, np.float32), np.zeros(64, np.float32), y)
    z = x.numpy().copy()
    compiled.gelu_rows(z)
    for lost in (x.numpy(), y) if value == -torch.inf else (x.numpy(), y, z):  # whose GELU is 0
        integers, sizes = empty(x.shape)
        rounded.round_rows(lost, integers, sizes)
        out = np.empty((2, 8), np.float32)
        rounded.product(integers, sizes, weight.values.numpy(), weight.units.numpy(), out, False)
        assert np.isfinite(out[0]).all() and not np.isfinite(out[1]).any()


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 4096)])
def test_the_product_in_float32_is_that_of_torch(rows: int, shape: tuple[int, int]):
    x, weight = torch.randn(rows, shape[1]), torch.randn(shape)
    out, expected = np.ones((rows, shape[0]), np.float32), F.linear(x, weight)
    compiled.product(x.numpy(), weight.numpy(), out, True)
    assert np.allclose(out, expected + 1, rtol=1e-5, atol=1e-4)
    compiled.product(x.numpy(), weight.numpy(), out, False)
    assert np.allclose(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, FEW, FEW + 1, 16])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 4096)])
def test_both_products_give_the_same_bits(rows: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    matrix, x = Integers.of(torch.randn(shape)), torch.randn(rows, shape[1])
    integers, sizes = empty(x.shape)
    rounded.round_rows(x.numpy(), integers, sizes)
    exact = integers.astype(np.int64) @ matrix.values.numpy().astype(np.int64).T
    expected = exact * matrix.units.numpy() * sizes[:, None]
    for add in (False, True):
        loop = np.ones((rows, shape[0]), np.float32)
        rounded.product(integers, sizes, matrix.values.numpy(), matrix.units.numpy(), loop, add)
        onednn = np.ones_like(loop)
        with monkeypatch.context() as patch:
            patch.setattr("mgkit.integers.FEW", 0)
            rounded.scale_rows(matrix.multiply(torch.from_numpy(integers)).numpy(), sizes, onednn, add)
        assert np.array_equal(loop, onednn)
        assert np.allclose(loop, expected + add, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_attention_equals_that_of_torch(
    length: int, masked: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(row_cache, "BLOCK", 16 if dtype == torch.float32 else 32)
    batch, heads, width = 3, 2, 8
    ours, theirs = (RowCache((batch, heads, 48, width), dtype) for _ in range(2))
    past, qkv = torch.randn(2, batch, heads, length - 1, width), torch.randn(batch, 3, heads, width)
    mask, out = torch.zeros(batch, 48), np.empty((batch, heads, width), np.float32)
    if masked:
        mask[1, : length // 2] = -torch.inf
    for cache in (ours, theirs):
        cache.append(*past)
    compiled.attend(qkv.numpy(), *ours.arrays, length, mask.numpy(), out)
    keys, values = theirs.append(qkv[:, 1, :, None], qkv[:, 2, :, None])
    for ours_, theirs_ in zip(ours.arrays, theirs.arrays, strict=True):
        # In int8 a number in the middle between two integers may fall on either side.
        assert np.allclose(ours_.astype(np.float32), theirs_, atol=0 if dtype == torch.float32 else 1)
    expected = F.scaled_dot_product_attention(
        qkv[:, 0, :, None], keys, values, attn_mask=mask[:, None, None, :length]
    )
    assert np.allclose(out, expected[:, :, 0], atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_a_cache_in_int8_is_near_what_it_was_given():
    cache, new = RowCache((2, 3, 40, 16), torch.int8), torch.randn(4, 2, 3, 7, 16) * 100
    for keys, values in (new[:2], new[2:]):
        kept = cache.append(keys, values)
    for found, given in zip(kept, (new[::2], new[1::2]), strict=True):
        expected = torch.cat(list(given), dim=2)
        assert (found - expected).abs().max() < expected.abs().max() / 200
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_attention_to_a_text_equals_that_of_torch():
    batch, heads, length, width = 2, 3, 7, 8
    query, keys, values = (torch.randn(batch, heads, n, width) for n in (1, length, length))
    mask = torch.zeros(batch, 1, length)
    mask[1, :, 4:] = -torch.inf
    flat = keys.flatten(0, 1), values.flatten(0, 1)
    text = compiled_step.Text.of(*flat, mask.repeat_interleave(heads, dim=0))
    out = np.empty((batch * heads, width), np.float32)
    compiled.attend_text(query.reshape(-1, width).numpy(), *text, out)
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None])
    assert np.allclose(out.reshape(batch, heads, width), expected[:, :, 0], atol=1e-6)


# --- models ------------------------------------------------------------------------------------------------


def logits(step: Step, steps: Tensor) -> Tensor:
    return torch.stack([step(steps[..., s : s + 1]) for s in range(steps.shape[-1])])


@pytest.mark.parametrize("text", [True, False])
def test_a_step_equals_the_one_in_torch(folder: str, text: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_cache, "BLOCK", 32)  # 16 in float16
    exact, model, steps = load(folder, torch.float32), load(folder, torch.int8), torch.randint(32, (4, 4, 24))
    padded = torch.arange(3) >= torch.tensor([0, 1, 2, 3])[:, None]
    prefix = Condition(prefix=torch.randn(4, 3, 128), prefix_mask=padded)
    condition = conditions(model) if text else prefix
    expected = logits(Step(exact.lm, condition, 27), steps)
    quick = Step(model.lm, condition, 27)
    assert all(type(layer) is compiled_step.LayerStep for layer in quick.layers)
    monkeypatch.setattr(compiled, "works", lambda: False)
    plain = Step(model.lm, condition, 27)
    assert all(type(layer) is fast.LayerStep for layer in plain.layers)
    by_torch = logits(plain, steps)
    monkeypatch.undo()
    found = logits(quick, steps)
    # Compiled, keys and values are in int8 as well; in torch they and attention weights are in float16.
    assert (found - by_torch).norm() < 0.03 * expected.norm()
    assert (found - expected).norm() < 1.15 * (by_torch - expected).norm() < 0.06 * expected.norm()


def test_a_sample_is_the_same_alone_in_a_batch_and_in_any_number_of_threads(folder: str):
    model, together = load(folder, torch.int8), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            together.append(model.generate(TEXTS * 3, return_tokens=True)[1])
        finally:
            torch.set_num_threads(1)
    alone = torch.cat([model.generate([text], return_tokens=True)[1] for text in TEXTS])
    assert all(torch.equal(tokens, alone.repeat(3, 1, 1)) for tokens in together)


@pytest.mark.parametrize("text", [True, False])
def test_a_compiled_step_in_float32_equals_the_one_in_torch(
    folder: str, text: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(row_cache, "BLOCK", 16)
    made, steps = load(folder, torch.float32), torch.randint(32, (4, 4, 24))
    padded = torch.arange(3) >= torch.tensor([0, 1, 2, 3])[:, None]
    prefix = Condition(prefix=torch.randn(4, 3, 128), prefix_mask=padded)
    condition = conditions(made) if text else prefix
    expected = logits(Step(made.lm, condition, 27), steps)
    made.compile()
    step = Step(made.lm, condition, 27)
    assert all(type(layer) is compiled_step.LayerStep for layer in step.layers)
    assert torch.allclose(logits(step, steps), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_a_compiled_model_makes_the_same_music_alone_or_in_a_batch_and_hooks_work(folder: str):
    made = load(folder, torch.float32)
    before = made.generate(TEXTS * 2, return_tokens=True)[1]
    made.compile()
    assert torch.equal(made.generate(TEXTS * 2, return_tokens=True)[1], before)
    alone = [made.generate([text], return_tokens=True)[1] for text in TEXTS]
    assert torch.equal(torch.cat(alone), before[: len(TEXTS)])
    twin = copy.deepcopy(made)
    assert twin.lm.compiled and torch.equal(twin.generate(TEXTS, return_tokens=True)[1], before[: len(TEXTS)])
    twin.lm.layers[0].attention.v_proj.weight.zero_()
    assert not torch.equal(twin.generate(TEXTS[:1], return_tokens=True)[1], alone[0])
    calls: list[tuple] = []
    hook = made.lm.layers[1].register_forward_hook(lambda *given: calls.append(given))
    assert torch.equal(made.generate(TEXTS[:1], return_tokens=True)[1], alone[0]) and len(calls) == 20 + 3
    hook.remove()


@pytest.mark.skipif(not packable(torch.bfloat16), reason="needs a CPU with instructions for bfloat16")
def test_compile_refuses_other_types(folder: str):
    with pytest.raises(ValueError, match=r"bfloat16 on cpu; load it with dtype=torch\.int8"):
        load(folder, torch.bfloat16).compile()
    load(folder, torch.int8).compile()


def test_nano_compiled_makes_the_same_music():
    made = MusicGen.get_pretrained("nano", device="cpu")
    made.set_generation_params(duration=4)
    before = made.generate(["calm piano with strings"], seed=3, return_tokens=True)[1]
    made.compile()
    assert torch.equal(made.generate(["calm piano with strings"], seed=3, return_tokens=True)[1], before)


def test_compiling_ahead_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    model.warm_up.cache_clear()
    model.warm_up(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_numba_s_compiler_torch_takes_its_place(folder: str):
    """In a process of its own: Numba reads the variable when it is imported."""
    program = f"""
import torch
from mgkit import MusicGen, fast
for dtype in (torch.float32, torch.int8):
    model = MusicGen.get_pretrained({folder!r}, device="cpu", dtype=dtype)
    model.compile()
    model.set_generation_params(use_sampling=False, duration=0.4)
    calls, before = [], fast.LayerStep.__call__
    fast.LayerStep.__call__ = lambda *given: calls.append(given) or before(*given)
    print(model.generate(["calm piano"], return_tokens=True)[1].shape, len(calls))
    fast.LayerStep.__call__ = before
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torch.Size([1, 4, 20]) 44"] * 2


def test_two_models_generate_at_the_same_time(folder: str):
    models = [load(folder, torch.int8) for _ in range(2)]
    expected = models[0].generate(TEXTS, return_tokens=True)[1]
    found: list[Tensor] = []

    def generate(model) -> None:
        for _ in range(5):
            found.append(model.generate(TEXTS, return_tokens=True)[1])

    callers = [threading.Thread(target=generate, args=(model,)) for model in models]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 10 and all(torch.equal(tokens, expected) for tokens in found)


def test_a_float32_model_does_not_import_numba(folder: str):
    program = f"""
import sys
from mgkit import MusicGen
model = MusicGen.get_pretrained({folder!r}, device="cpu")
model.set_generation_params(duration=0.1)
model.generate(["calm piano"])
assert "mgkit.compiled" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numba_compiles_where_it_may_not_write():
    program = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
from mgkit import compiled
assert not compiled._keeps() and compiled.works()
"""
    subprocess.run([sys.executable, "-c", program], check=True)

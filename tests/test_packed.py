"""Weights in bfloat16 and int8 on a CPU: near the plain ones, and otherwise ordinary parameters."""

import copy
import io
import pickle
from pathlib import Path

import psutil
import pytest
import torch
from test_fast import TEXTS, conditions
from tiny import tiny
from torch import Tensor, nn

from mgkit import MusicGen, checkpoint, compiled_step, devices, fast, row_cache
from mgkit.devices import parse_dtype
from mgkit.fast import Step
from mgkit.linear import Linear, adjoin, joint, linear, linear_add
from mgkit.packed import Packed, packable
from mgkit.row_cache import RowCache

CPU = torch.device("cpu")
NARROW = [torch.bfloat16, torch.int8]
needs = pytest.mark.skipif(not packable(torch.bfloat16), reason="needs a CPU with instructions for bfloat16")
each = pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs), torch.int8], ids=str)


def layer(dtype: torch.dtype) -> tuple[Linear, Tensor]:
    """A packed layer and the weight that it was made from."""
    made = Linear(96, 64, bias=False).requires_grad_(False)
    weight = made.weight.clone()
    made.pack(dtype)
    return made, weight


def test_this_torch_has_the_int8_product():
    """It has no public name; torch's own quantization uses it. On the day it goes, look for its successor."""
    assert packable(torch.int8)


@each
@pytest.mark.parametrize("shape", [(2, 96), (3, 5, 96), (1, 1, 96)])
def test_the_product_is_near_that_of_the_plain_weight(dtype: torch.dtype, shape: tuple[int, ...]):
    made, weight = layer(dtype)
    x = torch.randn(shape)
    expected = nn.functional.linear(x, weight)
    assert made(x).shape == expected.shape and made(x).dtype == x.dtype
    assert (made(x) - expected).norm() < 0.02 * expected.norm()


def test_a_row_in_int8_does_not_depend_on_the_others():
    made, _ = layer(torch.int8)
    x = torch.randn(16, 96) * torch.logspace(-3, 3, 16)[:, None]
    assert torch.equal(made(x), torch.cat([made(row[None]) for row in x]))
    assert not made(torch.zeros(1, 96)).any()
    assert not made(torch.full((1, 96), torch.nan)).isfinite().any()


@each
def test_a_packed_weight_is_a_parameter_like_others(dtype: torch.dtype):
    made, weight = layer(dtype)
    plain = made.state_dict()["weight"]
    assert (
        isinstance(made.weight, nn.Parameter) and made.weight.dtype == dtype and made.weight.shape == (64, 96)
    )
    assert type(plain) is Tensor and torch.equal(made.weight @ torch.eye(96, dtype=plain.dtype), plain)
    if dtype == torch.bfloat16:
        assert torch.equal(plain, weight.bfloat16())
    assert (plain.float() - weight).abs().max() < weight.abs().max() / 100

    x, stream = torch.randn(2, 96), io.BytesIO()
    torch.save(made, stream)
    stream.seek(0)
    others = [copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.load(stream, weights_only=False)]
    other = layer(dtype)[0]
    other.load_state_dict(made.state_dict())
    for twin in [*others, other]:
        assert isinstance(twin.weight, Packed) and isinstance(twin.weight, nn.Parameter)
        assert torch.equal(twin.state_dict()["weight"], plain) and torch.equal(twin(x), made(x))
    others[0].weight.zero_()
    assert not others[0](x).any() and made(x).any()


@needs
def test_a_layer_in_bfloat16_trains():
    made, weight = layer(torch.bfloat16)
    made.requires_grad_(True)
    x = torch.randn(2, 96)
    made(x).sum().backward()
    assert made.weight.grad.shape == (64, 96)
    torch.optim.SGD(made.parameters(), lr=1.0).step()
    expected = weight.bfloat16() - made.weight.grad
    assert isinstance(made.weight, Packed) and torch.equal(made.state_dict()["weight"], expected)


@each
def test_gradients_pass_through_a_frozen_layer(dtype: torch.dtype):
    made, weight = layer(dtype)
    x = torch.randn(2, 96, requires_grad=True)
    made(x).sum().backward()
    assert torch.allclose(x.grad, weight.sum(dim=0).expand(2, -1), atol=0.1)


@each
def test_adjoined_weights_are_one_matrix_and_stay_parameters(dtype: torch.dtype):
    layers, x = [layer(dtype)[0] for _ in range(3)], torch.randn(2, 96)
    plain, before = [made.state_dict()["weight"] for made in layers], [made(x) for made in layers]
    weights = [made.weight for made in layers]
    assert joint(weights) is None
    adjoin(weights)
    one = joint(weights)
    assert one.shape == (192, 96) and torch.equal(linear(x, one), torch.cat(before, dim=1))
    assert joint(weights[::-1]) is None and joint(weights[:2]) is None
    for made, values, y in zip(layers, plain, before, strict=True):
        twins = [made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))]
        for twin in twins:
            assert torch.equal(twin.state_dict()["weight"], values) and torch.equal(twin(x), y)
    assert torch.allclose(linear_add(x, weights[1], torch.ones(2, 64)), linear(x, weights[1]) + 1, atol=1e-6)
    weights[1].zero_()
    assert not layers[1](x).any() and torch.equal(layers[2](x), before[2])
    assert joint(weights) is None


# --- models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("tiny"))
    tiny().save_pretrained(path)
    return path


def load(folder: str, dtype: torch.dtype) -> MusicGen:
    model = MusicGen.get_pretrained(folder, device="cpu", dtype=dtype)
    model.set_generation_params(use_sampling=False, duration=0.4)
    return model


@each
def test_logits_of_a_packed_model_are_near(folder: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_cache, "BLOCK", 16)
    plain, narrow = load(folder, torch.float32), load(folder, dtype)
    linears = [part for part in narrow.lm.modules() if isinstance(part, Linear)]
    assert all(isinstance(part.weight, Packed) for part in linears)
    condition, steps = conditions(plain), torch.randint(32, (4, 4, 24))
    ways = {name: [] for name in ("float32", "step", "modules")}
    cache = narrow.lm.cache(4, 24)
    runs = Step(plain.lm, condition, 24), Step(narrow.lm, condition, 24)
    assert isinstance(runs[1].cache[0], RowCache)
    kind = compiled_step.LayerStep if dtype == torch.int8 else fast.LayerStep
    assert all(type(part) is kind for part in runs[1].layers)
    for s in range(24):
        new = steps[..., s : s + 1]
        ways["float32"].append(runs[0](new))
        ways["step"].append(runs[1](new))
        ways["modules"].append(narrow.lm(new, condition, cache, last_only=True)[:, :, 0])
    expected, step, modules = (torch.stack(way) for way in ways.values())
    for logits in (step, modules):
        assert (logits - expected).norm() < 0.06 * expected.norm()


@each
def test_a_packed_model_generates_and_hooks_have_their_effect(folder: str, dtype: torch.dtype):
    model = load(folder, dtype)
    tokens = model.generate(TEXTS, return_tokens=True)[1]
    calls = []
    hook = model.lm.layers[1].attention.q_proj.register_forward_hook(lambda *given: calls.append(given))
    model.generate(TEXTS)
    hook.remove()
    assert len(calls) == 20 + 3
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(twin.generate(TEXTS, return_tokens=True)[1], tokens) for twin in copies)


def saved(model: MusicGen) -> MusicGen:
    """The model through `torch.save`."""
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs), torch.int8])
def test_a_copy_has_the_weights_and_the_joint_matrices_of_the_original(folder: str, dtype, copied):
    model = load(folder, dtype)
    state = {name: weight.clone() for name, weight in model.lm.state_dict().items()}
    twin = copied(model)
    for lm in (model.lm, twin.lm):
        step = Step(lm, conditions(model), 24)
        for own in (layer.attention for layer in lm.layers):
            assert joint([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]) is not None
        assert joint([head.weight for head in lm.heads]) is not None
        assert step.joint_embeddings is not None
        found = lm.state_dict()
        assert list(found) == list(state)
        for name, weight in found.items():
            assert type(weight) is Tensor and torch.equal(weight, state[name]), name
    assert torch.equal(
        twin.generate(TEXTS, return_tokens=True)[1], model.generate(TEXTS, return_tokens=True)[1]
    )
    # A change of the copy is not one of the original.
    with torch.no_grad():
        twin.lm.layers[0].attention.k_proj.weight.zero_()
        twin.lm.embeddings[1].weight.zero_()
    assert all(torch.equal(weight, state[name]) for name, weight in model.lm.state_dict().items())


def test_a_copy_keeps_an_exchanged_module(folder: str):
    model = load(folder, torch.float32)
    attention = model.lm.layers[0].attention
    attention.q_proj = nn.Sequential(attention.q_proj)
    twin = copy.deepcopy(model)
    assert torch.equal(
        twin.generate(TEXTS, return_tokens=True)[1], model.generate(TEXTS, return_tokens=True)[1]
    )


def test_a_sample_in_int8_is_the_same_alone_and_in_a_batch(folder: str):
    model = load(folder, torch.int8)
    together = model.generate(TEXTS, return_tokens=True)[1]
    alone = [model.generate([text], return_tokens=True)[1] for text in TEXTS]
    assert torch.equal(together, torch.cat(alone))


@needs
def test_bfloat16_is_saved_bit_for_bit(folder: str, tmp_path: Path):
    load(folder, torch.bfloat16).save_pretrained(str(tmp_path))
    again, first = load(str(tmp_path), torch.bfloat16), load(folder, torch.bfloat16)
    for (name, ours), theirs in zip(
        first.lm.state_dict().items(), again.lm.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_an_int8_model_replays_its_own_manifests_only(folder: str):
    narrow, plain = load(folder, torch.int8), load(folder, torch.float32)
    _, tokens, [manifest] = narrow.generate(["calm piano"], return_tokens=True, return_manifests=True)
    assert "int8" in manifest["machine"]
    assert torch.equal(narrow.replay(manifest)[1], tokens)
    with pytest.raises(ValueError):
        plain.replay(manifest)


def test_an_int8_model_is_not_saved_or_trained(folder: str, tmp_path: Path):
    model = load(folder, torch.int8)
    with pytest.raises(ValueError, match=r"rounded to int8.*torch\.float32"):
        model.save_pretrained(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"int8.*torch\.float32"):
        model.lm.requires_grad_(True)


@pytest.mark.parametrize(
    ("dtype", "device", "told"),
    [
        ("int8", "cpu", "dtype is 'int8'; it must be torch.float32"),
        (torch.int64, "cpu", "it must be torch.float32"),
        (torch.int8, "cuda", "torch.int8 is for a CPU; on cuda, leave dtype out"),
    ],
)
def test_other_types_are_refused(dtype: object, device: str, told: str):
    with pytest.raises(ValueError, match=told):
        parse_dtype(dtype, torch.device(device))


def test_machines_without_the_instructions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(devices, "packable", lambda dtype: False)
    assert parse_dtype(torch.bfloat16, CPU) == torch.bfloat16
    assert "float32 is faster" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot multiply in torch.int8"):
        parse_dtype(torch.int8, CPU)


@pytest.mark.parametrize(
    ("free", "told"),
    [(2e6, r"takes .* GB in torch.float32, .* dtype=torch\.bfloat16 takes"), (1e3, "take a smaller model")],
)
def test_a_model_too_large_for_the_memory_is_refused_before_it_is_loaded(
    folder: str, monkeypatch: pytest.MonkeyPatch, free: float, told: str
):
    monkeypatch.setattr(checkpoint, "_free_memory", lambda: free)
    with pytest.raises(ValueError, match=told):
        load(folder, torch.float32)


def test_the_free_memory_is_known_or_hidden_by_a_container(folder: str, monkeypatch: pytest.MonkeyPatch):
    def hidden():
        raise PermissionError("/proc/meminfo")

    assert 1e6 < checkpoint._free_memory() < 1e15
    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    load(folder, torch.float32)

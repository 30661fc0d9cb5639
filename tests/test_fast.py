"""The fast step on a CPU equals the plain one, and hooks and exchanged modules have their effect."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from tiny import tiny, tune
from torch import Tensor, nn

from mgkit import MusicGen, fast, linear, row_cache
from mgkit.condition import cat
from mgkit.fast import Step
from mgkit.linear import Linear, adjoin, joint
from mgkit.lm import LM, Condition, Layer
from mgkit.row_cache import RowCache

TEXTS = ["calm piano", "fast drums with loud bass and soft strings"]


def join(model: MusicGen) -> MusicGen:
    """The model with the joint matrices of a loaded one."""
    for layer in model.lm.layers:
        adjoin([layer.attention.q_proj.weight, layer.attention.k_proj.weight, layer.attention.v_proj.weight])
    adjoin([head.weight for head in model.lm.heads])
    adjoin([table.weight for table in model.lm.embeddings])
    return model


def conditions(model: MusicGen) -> Condition:
    """Two texts of different lengths and the null condition of both, as in generation."""
    encoded = model.conditioner.encode(TEXTS)
    return cat([model.conditioner(encoded), model.conditioner.null(encoded)])


def logits_of_all(model: MusicGen, steps: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """Logits [S, B, K, V] of the plain pass and of `Step`; the first `known` steps are one call."""
    condition = conditions(model)
    length = condition.prefix_length + steps.shape[-1]
    run, cache = Step(model.lm, condition, length), model.lm.cache(condition.batch, length)
    plain, quick, start = [], [], 0
    for end in range(known, steps.shape[-1] + 1):
        new = steps[..., start:end]
        plain.append(model.lm(new, condition, cache, last_only=True)[:, :, 0])
        quick.append(run(new))
        start = end
    assert isinstance(run.cache[0], RowCache)
    return torch.stack(plain), torch.stack(quick)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("known", [1, 5])
@pytest.mark.parametrize("kind", ["text", "melody", "stereo"])
def test_a_fast_step_equals_a_plain_one(kind: str, known: int, joined: bool, monkeypatch: pytest.MonkeyPatch):
    """Over several blocks of keys, with padded texts and a padded prefix."""
    monkeypatch.setattr(row_cache, "BLOCK", 16)
    model = tiny(melody=kind == "melody", channels=2 if kind == "stereo" else 1, window=0.4)
    if joined:
        join(model)
    steps = torch.randint(33, (4, model.lm.config.codebooks, 40))
    plain, quick = logits_of_all(model, steps, known)
    assert ((quick - plain).abs().max() / plain.abs().max()) < 2e-6


@pytest.mark.parametrize("many", [2, 1000])
def test_steps_of_many_rows_take_reordered_copies_and_equal_plain_ones(
    many: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(linear, "MANY", many)
    model = join(tiny(window=0.4))
    steps = torch.randint(33, (4, model.lm.config.codebooks, 20))
    plain, quick = logits_of_all(model, steps, 1)
    assert ((quick - plain).abs().max() / plain.abs().max()) < 2e-6
    weight = model.lm.layers[0].feed_forward.linear2.weight
    assert (linear.reordered(weight, 4) is weight) == (many == 1000)


def runs(kind: str) -> Callable[[MusicGen], Tensor]:
    """A call that generates greedy tokens in one of the ways of the class."""
    if kind == "melody":
        return lambda model: model.generate_with_chroma(TEXTS, tune(0.5), 32000, return_tokens=True)[1]
    if kind == "continuation":
        return lambda model: model.generate_continuation(tune(0.2), 32000, TEXTS[:1], return_tokens=True)[1]
    return lambda model: model.generate(TEXTS, return_tokens=True)[1]


@pytest.mark.parametrize("setting", [{}, {"two_step_cfg": True}, {"cfg_coef": 1.0}, {"duration": 1.2}])
@pytest.mark.parametrize("kind", ["text", "melody", "continuation"])
def test_greedy_tokens_are_those_of_the_plain_step(kind: str, setting: dict, monkeypatch: pytest.MonkeyPatch):
    model, run = join(tiny(melody=kind == "melody", window=0.8)), runs(kind)
    model.set_generation_params(**{"use_sampling": False, "duration": 0.6} | setting)
    quick = run(model)
    monkeypatch.setattr(fast, "as_published", lambda modules: False)
    assert torch.equal(run(model), quick)
    monkeypatch.setattr(linear, "ONEDNN", None)
    assert torch.equal(run(model), quick)


def test_tokens_are_equal_where_torch_lacks_the_operator(monkeypatch: pytest.MonkeyPatch):
    model = join(tiny())
    model.set_generation_params(use_sampling=False, duration=0.6)
    quick = model.generate(TEXTS, return_tokens=True)[1]
    monkeypatch.setattr(linear, "ONEDNN", None)
    assert torch.equal(model.generate(TEXTS, return_tokens=True)[1], quick)


def test_this_torch_has_the_operator():
    """It has no public name. On the day it goes, steps take twice the time: look for its successor."""
    assert linear.ONEDNN is not None


def test_nano_takes_the_fast_step_with_joint_matrices(monkeypatch: pytest.MonkeyPatch):
    model = MusicGen.get_pretrained("nano", device="cpu")
    calls, before = [], fast.LayerStep.__call__
    monkeypatch.setattr(fast.LayerStep, "__call__", lambda *given: calls.append(given) or before(*given))
    model.set_generation_params(duration=0.2)
    model.generate(["calm piano"], seed=1)
    config = model.lm.config
    assert len(calls) == config.layers * (10 + 3 - 1)  # but the first step
    assert all(step.joint_in_proj.shape == (3 * config.dim, config.dim) for step, *_ in calls)
    assert len(joint([head.weight for head in model.lm.heads])) == config.codebooks * config.codebook_size


# --- the product ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 96), (3, 5, 96), (1, 1, 96), (0, 96), (16, 96), (2, 11, 96)])
@pytest.mark.parametrize("outputs", [64, 160])
def test_products_equal_torch_s(shape: tuple[int, ...], outputs: int):
    x, weight, other = torch.randn(shape), torch.randn(outputs, 96), torch.randn(*shape[:-1], outputs)
    y = nn.functional.linear(x, weight)
    assert torch.allclose(linear.linear(x, weight), y, atol=1e-4)
    assert torch.allclose(linear.linear_gelu(x, weight), nn.functional.gelu(y), atol=1e-4)
    assert torch.allclose(linear.linear_add(x, weight, other), other + y, atol=1e-4)


def test_a_linear_layer_has_gradients_and_follows_autocast():
    layer, x = Linear(8, 4), torch.randn(2, 8)
    layer(x).sum().backward()
    assert torch.allclose(layer.weight.grad, x.sum(dim=0).expand(4, 8), atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


def test_joint_is_a_view_of_adjacent_weights_only():
    weights = [nn.Parameter(torch.randn(3, 4), requires_grad=False) for _ in range(3)]
    assert joint(weights) is None
    adjoin(weights)
    for weight in weights:
        nn.init.normal_(weight)
    assert torch.equal(joint(weights), torch.cat(list(weights)))
    weights[1].mul_(2)
    assert torch.equal(joint(weights), torch.cat(list(weights)))
    assert joint(weights[::-1]) is None and joint(copy.deepcopy(weights)) is None


# --- ordinary PyTorch on a loaded model ---------------------------------------------------------------------


@pytest.fixture
def loaded() -> MusicGen:
    model = join(tiny())
    model.set_generation_params(use_sampling=False, duration=0.5)
    return model


def tokens(model: MusicGen) -> Tensor:
    return model.generate(["calm piano"], return_tokens=True)[1]


def zeros(module: nn.Module, given: tuple, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def test_copies_of_a_loaded_model_are_equal_bit_for_bit(loaded: MusicGen, tmp_path):
    before = tokens(loaded)
    loaded.save_pretrained(tmp_path)
    copies = [copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), MusicGen.get_pretrained(tmp_path)]
    for other in copies:
        other.set_generation_params(use_sampling=False, duration=0.5)
        for (name, ours), theirs in zip(
            loaded.lm.state_dict().items(), other.lm.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), name
        assert torch.equal(tokens(other), before)


def test_changed_weights_change_the_tokens(loaded: MusicGen):
    before = tokens(loaded)
    state = {name: tensor.clone() for name, tensor in loaded.lm.state_dict().items()}
    for name in ("attention.v_proj", "cross_attention.out_proj", "feed_forward.linear1", "norm1"):
        with torch.no_grad():
            loaded.lm.layers[1].get_submodule(name).weight.zero_()
        assert not torch.equal(tokens(loaded), before), name
        loaded.lm.load_state_dict(state)
        assert torch.equal(tokens(loaded), before), name


def test_a_step_of_training_changes_what_is_generated(loaded: MusicGen):
    before = tokens(loaded)
    loaded.lm.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(loaded.lm.parameters(), lr=0.05)
    steps = torch.randint(32, (2, 4, 6))
    loss = loaded.lm(steps).logsumexp(dim=-1).mean()
    loss.backward()
    assert all(p.grad is not None for name, p in loaded.lm.named_parameters() if "cross" not in name)
    optimizer.step()
    assert not torch.equal(tokens(loaded), before)


@pytest.mark.parametrize("name", ["layers.1.attention.k_proj", "heads.2", "embeddings.0", "layers.0.norm2"])
def test_a_hook_registered_while_the_music_plays_works_from_the_next_step(loaded: MusicGen, name: str):
    before, frames = tokens(loaded), []

    def on_step(done: int, total: int) -> None:
        if done == 12:
            frames.append(loaded.lm.get_submodule(name).register_forward_hook(zeros))

    changed = loaded.generate(["calm piano"], return_tokens=True, on_step=on_step)[1]
    frames[0].remove()
    assert torch.equal(changed[..., :8], before[..., :8]) and not torch.equal(changed, before)
    assert torch.equal(tokens(loaded), before)


def test_a_hook_on_all_modules_works(loaded: MusicGen):
    before, calls = tokens(loaded), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    assert torch.equal(tokens(loaded), before)
    hook.remove()
    assert calls.count(Layer) == 2 * (25 + 3)


class Silent(nn.Module):
    """A layer's attention replaced by nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_exchanged_modules_and_methods_have_their_effect(loaded: MusicGen, monkeypatch: pytest.MonkeyPatch):
    before = tokens(loaded)
    feed_forward = loaded.lm.layers[0].feed_forward
    loaded.lm.layers[0].feed_forward = Silent()
    exchanged = tokens(loaded)
    loaded.lm.layers[0].feed_forward = feed_forward
    assert not torch.equal(exchanged, before) and torch.equal(tokens(loaded), before)

    feed_forward.forward = torch.zeros_like
    assert torch.equal(tokens(loaded), exchanged)
    del feed_forward.forward

    logits = LM.logits
    monkeypatch.setattr(LM, "logits", lambda self, hidden: -logits(self, hidden))
    assert not torch.equal(tokens(loaded), before)

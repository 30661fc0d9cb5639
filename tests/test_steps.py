"""Static steps give the tokens of ordinary ones: the code of the CUDA graph, run here without capture."""

import threading

import pytest
import torch
from tiny import RATE, noise, ordinary, tiny, tune
from torch import Tensor, nn

from mgkit import MusicGen, steps
from mgkit.edits import Add

SECONDS = 0.8


@pytest.fixture(params=["text", "melody", "stereo"])
def model(request, models) -> MusicGen:
    """A tiny model of each kind, whose windows are shorter than the piece."""
    made = models[request.param]
    made.max_duration = 0.6
    yield made
    made.max_duration = 10.0


@pytest.fixture
def static(monkeypatch) -> list[int]:
    """Static steps are used on the CPU; the list receives the columns that they fill."""
    filled: list[int] = []
    fill = steps.StaticStep.fill

    def note(self: steps.StaticStep, column: int, noise: Tensor | None) -> None:
        filled.append(column)
        fill(self, column, noise)

    monkeypatch.setattr(steps, "STATIC_ON", {"cpu"})
    monkeypatch.setattr(steps.StaticStep, "fill", note)
    return filled


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_sampling": False},
        {"top_p": 0.9},
        {"top_k": 0, "temperature": 1.3},
        {"two_step_cfg": True},
        {"cfg_coef": 1.0},
    ],
    ids=str,
)
def test_static_steps_give_the_tokens_of_ordinary_ones(model, static, monkeypatch, settings):
    model.set_generation_params(duration=SECONDS, extend_stride=0.3, **settings)
    texts = ["calm piano", "fast", ""]

    def generate() -> Tensor:
        return model.generate(texts, seed=3, negative=[None, "loud drums", None], return_tokens=True)[1]

    expected = ordinary(monkeypatch, generate)
    assert not static
    assert torch.equal(generate(), expected)
    assert len(static) > 20


def test_static_steps_know_audio_prompts_melodies_mixes_and_timelines(model, static, monkeypatch):
    model.set_generation_params(duration=1.2, extend_stride=0.3)
    prompt = noise(2, model.audio_channels, RATE // 4)
    timeline = [[(0, "calm piano"), (0.5, {"loud drums": 0.5, "sad": 0.7})], "fast"]

    def generate() -> Tensor:
        melody = (
            {} if model.lm.config.cross_attention else {"melody_wavs": tune(1), "melody_sample_rate": RATE}
        )
        stream = model.stream(timeline, seed=5, prompt=prompt, prompt_sample_rate=RATE, **melody)
        list(stream)
        return stream.tokens

    expected = ordinary(monkeypatch, generate)
    assert torch.equal(generate(), expected)
    assert static


def test_double_guidance_is_the_same_in_static_steps(models, static, monkeypatch):
    model = models["melody"]
    model.set_generation_params(duration=SECONDS, cfg_coef_beta=2.0)

    def generate() -> Tensor:
        return model.generate_with_chroma(["calm"], tune(1), RATE, seed=2, return_tokens=True)[1]

    assert torch.equal(ordinary(monkeypatch, generate), generate())
    assert static


def test_the_logits_of_a_static_step_are_those_of_the_model(model, static):
    condition = model.conditioner(model.conditioner.encode(["calm piano", "fast"]))
    codebooks, size = model.lm.config.codebooks, model.lm.config.codebook_size
    tokens = torch.randint(size, (2, codebooks, 40), generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def choose(column: int, logits: Tensor, noise: Tensor | None) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    run = steps.Steps(model.lm, [condition], tokens.clone(), choose)
    for column in range(3, 40):
        run.fill(column, None)
    assert len(static) == 36
    with torch.no_grad():
        expected = model.lm(tokens[..., :39], condition)
    torch.testing.assert_close(torch.stack(seen, dim=2), expected[:, :, 2:], rtol=1e-4, atol=1e-5)


WAYS = {
    "an edit": ({}, {"edits": [Add(1, torch.linspace(-2, 2, 128), 1.5)]}),
    "a hook on logits": ({}, {"logits": lambda logits, step: logits / (1 + step / 9)}),
    "a schedule": ({"cfg_coef": [(0, 1.0), (0.5, 5.0)]}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_changes_from_step_to_step_switches_static_steps_off(models, static, monkeypatch, way):
    model, (settings, arguments) = models["text"], WAYS[way]
    model.set_generation_params(duration=SECONDS, **settings)

    def generate() -> Tensor:
        return model.generate(["calm piano", "fast"], seed=3, return_tokens=True, **arguments)[1]

    changed = generate()
    assert torch.equal(ordinary(monkeypatch, generate), changed) and not static
    model.set_generation_params(duration=SECONDS)
    plain = model.generate(["calm piano", "fast"], seed=3, return_tokens=True)[1]
    assert not torch.equal(plain, changed) and static


@pytest.mark.parametrize("name", ["", "layers.0", "layers.1.attention.q_proj", "heads.1"])
def test_hooks_switch_static_steps_off(models, static, name):
    model = models["text"]
    model.set_generation_params(duration=SECONDS)
    calls: list[str] = []
    hook = model.lm.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    model.generate(["calm piano"], seed=1)
    hook.remove()
    assert not static and len(calls) == round(SECONDS * model.frame_rate) + 3
    model.generate(["calm piano"], seed=1)
    assert static


def test_a_hook_added_between_two_steps_has_its_effect_at_once(models, static, monkeypatch):
    model = models["text"]
    model.set_generation_params(duration=SECONDS, use_sampling=False)

    def generate() -> Tensor:
        hooks = []

        def on_step(done: int, total: int) -> None:
            if done == 25:
                zero = lambda module, given, output: torch.zeros_like(output)  # noqa: E731
                hooks.append(model.lm.layers[1].register_forward_hook(zero))

        codes = model.generate(["calm piano"], on_step=on_step, return_tokens=True)[1]
        hooks[0].remove()
        return codes

    expected = ordinary(monkeypatch, generate)
    assert torch.equal(generate(), expected)
    assert static == list(range(2, 26))
    assert not torch.equal(model.generate(["calm piano"], return_tokens=True)[1], expected)


@pytest.mark.parametrize("change", ["layer", "forward", "global"])
def test_a_model_with_foreign_parts_takes_ordinary_steps(static, change):
    class Own(nn.Linear):
        """A layer that may do anything."""

    model = tiny()
    model.set_generation_params(duration=SECONDS)
    handle = None
    if change == "layer":
        model.lm.heads[0].__class__ = Own
    elif change == "forward":
        model.lm.norm.forward = torch.nn.LayerNorm.forward.__get__(model.lm.norm)
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        model.generate(["calm piano"])
    finally:
        if handle:
            handle.remove()
    assert not static


def test_a_stop_within_static_steps_keeps_the_music_so_far(models, static):
    model = models["text"]
    model.set_generation_params(duration=SECONDS)
    stop = threading.Event()
    _, tokens = model.generate(
        ["calm"], seed=1, stop=stop, return_tokens=True, on_step=lambda done, _: done == 30 and stop.set()
    )
    whole = model.generate(["calm"], seed=1, return_tokens=True)[1]
    assert static and tokens.shape[-1] == 27
    assert torch.equal(tokens, whole[..., :27])


def test_a_sample_of_static_steps_does_not_depend_on_its_batch(models, static):
    model = models["text"]
    model.set_generation_params(duration=SECONDS)
    texts = ["calm piano", "fast drums and loud bass", "sad"]
    batch = model.generate(texts, seed=[4, 5, 6], return_tokens=True)[1]
    alone = [model.generate([text], seed=4 + i, return_tokens=True)[1] for i, text in enumerate(texts)]
    assert static and torch.equal(batch, torch.cat(alone))

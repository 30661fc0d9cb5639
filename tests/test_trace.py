"""A trace has the logits of generation, and attention that adds up."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from refusals import refusal
from safetensors.torch import save_file
from test_properties import close
from tiny import CODEC, RATE, tiny, tune
from torch import Tensor

from mgkit import MusicGen, generate, trace
from mgkit.edits import Add, Patch
from mgkit.generate import choose
from mgkit.sampling import draw, noise

LAYOUTS = ("text", "melody", "stereo", "stereo melody")
RETURNED = {"return_tokens": True, "return_manifests": True, "seed": 3}
TEXT = "fast loud drums with a dark choir"


@cache
def model_of(layout: str) -> MusicGen:
    """A cached tiny model."""
    return tiny(melody="melody" in layout, channels=2 if "stereo" in layout else 1)


def make(
    layout: str, text: str | None = TEXT, melody: bool = False, **how: object
) -> tuple[MusicGen, Tensor, dict]:
    """The model, and the codes [K, T] and the manifest of a piece."""
    model = model_of(layout)
    model.set_generation_params(**{"duration": 0.5, "top_k": 5, **how})
    if melody:
        _, codes, [manifest] = model.generate_with_chroma([text], tune(2), RATE, **RETURNED)
    else:
        _, codes, [manifest] = model.generate([text], **RETURNED)
    return model, codes[0], manifest


@cache
def traced(layout: str) -> trace.Trace:
    """The trace of a guided piece, with a melody in melody models."""
    model, codes, manifest = make(layout, melody="melody" in layout)
    return trace.retrace(model, codes, manifest)


# --- logits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"cfg_coef": 1},
        {"two_step_cfg": True},
        {"use_sampling": False},
        {"text": None},
        {"temperature": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_traced_logits_equal_those_of_generation(layout: str, how: dict) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def listen(streams, *rest):
        seen.append(tuple(stream[0] for stream in streams))  # [K, V] each
        return choose(streams, *rest)

    with patch.object(generate, "choose", listen):
        model, codes, manifest = make(layout, **how)
    again = trace.retrace(model, codes, manifest)
    channels, frames = model.audio_channels, codes.shape[1]
    steps = torch.stack([streams[0] for streams in seen], dim=1)  # [K, S, V]
    then = torch.stack([row[k // channels :][:frames] for k, row in enumerate(steps)])
    assert close(again.conditional, then)
    if len(seen[0]) == 2:
        steps = torch.stack([streams[1] for streams in seen], dim=1)
        assert close(again.null, torch.stack([row[k // channels :][:frames] for k, row in enumerate(steps)]))
        assert not close(again.null, again.conditional, 1e-2)
    assert len(seen[0]) == (1 if how.get("cfg_coef") == 1 or "text" in how else 2)


@pytest.mark.parametrize("how", [{}, {"melody": True, "cfg_coef_beta": 2.0}], ids=str)
def test_the_same_noise_draws_the_same_tokens_from_the_traced_probabilities(how: dict) -> None:
    model, codes, manifest = make("melody", **how)
    seen = trace.retrace(model, codes, manifest)
    generator, again = torch.Generator().manual_seed(3), torch.full_like(codes, -1)
    for s in range(codes.shape[1] + 3):
        exponential = noise([generator], (4, CODEC.codebook_size))[0]
        for k in range(4):
            if 0 <= s - k < codes.shape[1]:
                again[k, s - k] = draw(seen.probs[k, s - k], exponential[k])
    assert torch.equal(again, codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_sampling_the_tokens_are_argmax(layout: str) -> None:
    model, codes, manifest = make(layout, use_sampling=False)
    seen = trace.retrace(model, codes, manifest)
    assert torch.equal(seen.logits.argmax(dim=-1), codes)
    assert torch.equal(seen.probs.argmax(dim=-1), codes)
    assert (seen.entropy == 0).all()


def test_a_negative_prompt_replaces_the_null_condition() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.3, use_sampling=False)
    _, codes, [against] = model.generate([TEXT], negative="sad rain", **RETURNED)
    seen = trace.retrace(model, codes[0], against)
    assert torch.equal(seen.logits.argmax(dim=-1), codes[0])
    assert not close(seen.null, trace.retrace(model, codes[0], against | {"negative": ""}).null, 1e-2)


def test_a_changed_text_affects_every_step_and_a_changed_token_only_later_ones() -> None:
    model, codes, manifest = make("text")
    seen, other = (
        trace.retrace(model, codes, manifest),
        trace.retrace(model, codes, manifest | {"text": "sad"}),
    )
    assert (trace.divergence(seen.conditional.softmax(-1), other.conditional.softmax(-1)) > 0).all()
    assert close(seen.null, other.null)
    changed = codes.clone()
    changed[0, 10] = (changed[0, 10] + 1) % CODEC.codebook_size
    other = trace.retrace(model, changed, manifest)
    for k in range(4):  # codebook k of a frame is predicted k steps after codebook 0
        first = 11 - k
        assert close(seen.conditional[k, :first], other.conditional[k, :first], 1e-6)
        assert not close(seen.conditional[k, first], other.conditional[k, first], 1e-3)


# --- attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_attention_sum_to_one(layout: str) -> None:
    seen = traced(layout)
    parts = [part.sum(dim=-1) for part in (seen.to_melody, seen.to_words, seen.to_steps)]
    one = torch.ones_like(parts[0])
    if "melody" in layout:
        torch.testing.assert_close(sum(parts), one)
        assert all((part > 0).all() for part in parts)
    else:
        assert seen.to_melody.shape[-1] == 0
        torch.testing.assert_close(parts[1], one)
        torch.testing.assert_close(parts[2], one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_causal(layout: str) -> None:
    seen = traced(layout)
    assert (seen.to_steps >= 0).all()
    assert (seen.to_steps.triu(1) == 0).all()
    assert (seen.to_steps.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes(layout: str) -> None:
    seen, lm = traced(layout), model_of(layout).lm.config
    steps = 25 + 3
    assert seen.codes.shape == (lm.codebooks, 25)
    assert (
        seen.conditional.shape == seen.null.shape == seen.logits.shape == (lm.codebooks, 25, lm.codebook_size)
    )
    assert seen.to_steps.shape == (lm.layers, lm.heads, steps, steps)
    assert seen.to_words.shape == (lm.layers, lm.heads, steps, len(TEXT.split()) + 1)
    heard = model_of(layout).conditioner.melody_frames or 0
    assert seen.to_melody.shape == (lm.layers, lm.heads, steps, heard)


# --- activations ------------------------------------------------------------------------------------------


def hooked_activations(model: MusicGen, work: Callable[[], object]) -> dict[str, list[Tensor]]:
    """What forward hooks see during `work`, by `lm.Tap`'s name of the site, one tensor for each call."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for layer in model.lm.layers:
        outputs = {"residual": layer, "mlp": layer.feed_forward}
        inputs = {"attention": layer.attention.out_proj}
        if model.lm.config.cross_attention:
            inputs["cross_attention"] = layer.cross_attention.out_proj
        for name, module in outputs.items():
            keep = lambda module, given, output, name=name: seen.setdefault(name, []).append(output[0])  # noqa: E731
            hooks.append(module.register_forward_hook(keep))
        for name, module in inputs.items():
            keep = lambda module, given, name=name: seen.setdefault(name, []).append(given[0][0])  # noqa: E731
            hooks.append(module.register_forward_pre_hook(keep))
    work()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kept_activations_are_those_that_forward_hooks_see(layout: str) -> None:
    model, codes, manifest = make(layout, melody="melody" in layout)
    config, steps = model.lm.config, codes.shape[1] + 3
    keep = [site for site in trace.SITES if site != "cross_attention" or config.cross_attention]
    traces = []
    hooked = hooked_activations(model, lambda: traces.append(trace.retrace(model, codes, manifest, keep)))
    [seen] = traces
    width = config.dim // config.heads
    assert seen.residual.shape == (config.layers + 1, steps, config.dim)
    assert seen.attention.shape == (config.layers, config.heads, steps, width)
    assert seen.mlp.shape == (config.layers, steps, config.dim)
    assert (seen.cross_attention is None) == ("melody" in layout)
    for site in keep:
        # the prompt's pass comes first
        theirs = torch.stack(hooked[site][: config.layers])[:, -steps:]
        ours = getattr(seen, site)
        ours = ours.transpose(1, 2).flatten(2) if ours.ndim == 4 else ours
        assert torch.equal(ours[1:] if site == "residual" else ours, theirs)
    assert torch.equal(seen.conditional, trace.retrace(model, codes, manifest).conditional)


@pytest.mark.parametrize("layout", ["text", "melody"])
def test_a_patch_with_its_own_trace_changes_nothing(layout: str) -> None:
    model, codes, manifest = make(layout, melody="melody" in layout)
    seen = trace.retrace(model, codes, manifest, ["residual"])
    for layer in range(model.lm.config.layers + 1):
        own = Patch(layer, seen.residual[layer])
        again = trace.retrace(model, codes, manifest, ["residual"], edits=[own])
        assert torch.equal(again.logits, seen.logits) and torch.equal(again.residual, seen.residual)
        if layout == "melody":
            tokens = model.generate_with_chroma([TEXT], tune(2), RATE, edits=[own], **RETURNED)[1]
        else:
            tokens = model.generate([TEXT], edits=[own], **RETURNED)[1]
        assert torch.equal(tokens[0], codes)


def test_a_layer_patched_from_another_piece_gives_its_predictions() -> None:
    model, codes, manifest = make("text")
    other = trace.retrace(model, codes.flip(-1), manifest, ["residual"])
    patched = trace.retrace(model, codes, manifest, edits=[Patch(2, other.residual[2])])
    assert torch.equal(patched.conditional, other.conditional)
    assert torch.equal(patched.null, trace.retrace(model, codes, manifest).null)


@pytest.mark.parametrize("layout", ["text", "stereo melody"])
def test_a_trace_with_the_edits_of_the_piece_has_its_logits(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.5, use_sampling=False)
    direction = 3 * torch.randn(128, generator=torch.Generator().manual_seed(0))
    edits = [Add(1, direction, [(0, 0.0), (0.3, 2.0)], "prompt")]
    _, codes, [manifest] = model.generate([TEXT], edits=edits, **RETURNED)
    with_edits = trace.retrace(model, codes[0], manifest, edits=edits)
    assert torch.equal(with_edits.logits.argmax(dim=-1), codes[0])
    without = trace.retrace(model, codes[0], manifest, edits=[])
    assert not torch.equal(without.logits.argmax(dim=-1), codes[0])
    refusal(lambda: trace.retrace(model, codes[0], manifest), "edits=[…]")


@pytest.mark.parametrize("how", [{}, {"cfg_coef_beta": 2.0}], ids=str)
def test_a_trace_follows_a_schedule_of_guidance(how: dict) -> None:
    schedule = [(0, 0.0), (0.2, 6.0), (0.2, -2.0), (0.5, 1.0)]
    model, codes, manifest = make("melody", melody=True, use_sampling=False, cfg_coef=schedule, **how)
    assert torch.equal(trace.retrace(model, codes, manifest).logits.argmax(dim=-1), codes)


@pytest.mark.parametrize("keep", [(), trace.SITES])
def test_a_saved_trace_loads_as_it_was(keep: tuple[str, ...], tmp_path: Path) -> None:
    model, codes, manifest = make("text")
    seen = trace.retrace(model, codes, manifest, keep)
    seen.save(tmp_path / "a.safetensors")
    loaded = trace.Trace.load(tmp_path / "a.safetensors")
    for field in fields(trace.Trace):
        ours, theirs = getattr(seen, field.name), getattr(loaded, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_file_is_not_a_trace(tmp_path: Path) -> None:
    for name, content in {"text": b"calm piano", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        refusal(lambda name=name: trace.Trace.load(tmp_path / name), name, "Trace.save")
    save_file({"codes": torch.zeros(4, 5)}, tmp_path / "other")
    refusal(lambda: trace.Trace.load(tmp_path / "other"), "other", "Trace.save")
    with pytest.raises(FileNotFoundError):
        trace.Trace.load(tmp_path / "none")


@pytest.mark.parametrize("keep", ["residual", ["residuals"], ["cross_attention"], [3]])
def test_unknown_activations_are_refused_by_name(keep: object) -> None:
    model, codes, manifest = make("melody")
    refusal(lambda: trace.retrace(model, codes, manifest, keep), "keep", "residual, attention, mlp")


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["happy folk with violin, no drums", "Zwölf  accordions,", "120 bpm", "", "</s>"]
)
@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_words_align_with_the_tokenizer(name: str, text: str) -> None:
    encoder = (nano() if name == "nano" else model_of("text")).conditioner.text
    names, owner = trace.words(encoder, text)
    assert len(owner) == encoder.tokens([text])[0].shape[1]
    assert owner == sorted(owner)
    assert set(owner) == set(range(len(names)))
    assert names[-1] == "</s>"
    if text != "</s>":
        assert "".join(names[:-1]) == "".join(text.split())


def test_a_words_attention_sums_over_its_tokens() -> None:
    model = nano()
    text = "an accordion with vibraphonists"
    names, owner = trace.words(model.conditioner.text, text)
    assert names == ["an", "accordion", "with", "vibraphonists", "</s>"]
    assert owner.count(3) > 1
    codes = torch.randint(1024, (4, 5), generator=torch.Generator().manual_seed(0))
    manifest = {
        "text": text,
        "negative": "",
        "seed": 0,
        "settings": {},
        "melody": {},
        "prompt": "eJwDAAAAAAE=",
    }
    seen = trace.retrace(model, codes, manifest | {"frames": 5})
    assert seen.to_words.shape[-1] == 5
    total = seen.to_melody.sum(-1) + seen.to_words.sum(-1) + seen.to_steps.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


@cache
def nano() -> MusicGen:
    return MusicGen.get_pretrained("nano")


# --- entropy and divergence -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entropy_is_between_zero_and_that_of_the_uniform_distribution(layout: str) -> None:
    seen = traced(layout)
    assert seen.entropy.shape == seen.codes.shape
    assert (seen.entropy > 0).any()
    assert (seen.entropy >= 0).all()
    assert (seen.entropy <= math.log2(5) + 1e-5).all()  # top_k=5
    assert (trace.entropy(seen.logits.softmax(dim=-1)) <= math.log2(CODEC.codebook_size) + 1e-5).all()
    assert trace.entropy(torch.full((32,), 1 / 32)) == pytest.approx(5)


def test_divergence_is_symmetric_and_between_zero_and_one() -> None:
    some = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)).mul(4).softmax(dim=-1)
    apart = trace.divergence(some[:50], some[50:])
    assert ((apart > 0.1) & (apart < 1)).all()
    torch.testing.assert_close(apart, trace.divergence(some[50:], some[:50]))
    assert (trace.divergence(some, some) < 1e-6).all()


def test_a_piece_of_several_prompts_needs_one_chosen() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.5)
    _, codes, [manifest] = model.generate([{"sad rain": 0.5, "fast drums": 0.5}], **RETURNED)
    with pytest.raises(ValueError, match="one prompt"):
        trace.retrace(model, codes[0], manifest)
    assert trace.retrace(model, codes[0], manifest | {"text": "sad rain"}).words[:2] == [
        "sad",
        "rain",
    ]


@pytest.mark.parametrize(
    "codes", [torch.zeros(1, 4, 10), torch.zeros(3, 10), torch.zeros(4, 0), torch.zeros(4, 501)]
)
def test_retrace_refuses_other_shapes_and_more_than_a_window(codes: Tensor) -> None:
    model, _, manifest = make("text")
    with pytest.raises(ValueError, match=r"codes\[0\]"):
        trace.retrace(model, codes.long(), manifest)

"""Ordinary PyTorch works on the model while it generates: forward hooks fire on every submodule and step."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny
from torch import Tensor, nn

from mgkit import MusicGen
from mgkit.trace import retrace


def count_calls(lm: nn.Module) -> Counter[str]:
    """A counter that forward hooks on every submodule of `lm` increase under its name."""
    calls: Counter[str] = Counter()
    for name, module in lm.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def test_a_hook_on_every_submodule_of_nano_fires_at_every_step():
    model = MusicGen.get_pretrained("nano", device="cpu")
    model.set_generation_params(duration=0.5)
    calls = count_calls(model.lm)
    model.generate(["calm piano"], seed=1)
    steps = 25 + max(range(model.lm.config.codebooks))
    # Containers of modules are not called themselves.
    containers = {name for name, module in model.lm.named_modules() if isinstance(module, nn.ModuleList)}
    names = {name for name, _ in model.lm.named_modules()} - containers
    assert {"", "layers.0", "layers.0.attention", "layers.0.feed_forward", "heads.3"} <= names
    assert calls == dict.fromkeys(names, steps)


def test_cross_attention_projects_the_text_once_a_window_and_attends_at_every_step():
    model = tiny(window=0.5)
    model.set_generation_params(duration=0.8)
    calls = count_calls(model.lm)
    model.generate(["calm piano"], seed=1)
    steps = 40 + 2 * 3
    assert calls["layers.1.cross_attention"] == calls["layers.1.cross_attention.q_proj"] == steps
    assert calls["layers.1.cross_attention.k_proj"] == calls["layers.1.cross_attention.v_proj"] == 2
    assert calls["layers.1"] == calls["layers.1.feed_forward"] == calls["layers.1.attention"] == steps


@pytest.mark.parametrize("name", ["layers.0", "layers.0.attention", "layers.1.feed_forward", "norm"])
def test_a_hook_that_changes_an_output_changes_the_tokens(name: str):
    model = tiny()
    model.set_generation_params(use_sampling=False, duration=0.5)
    before = model.generate(["calm piano"], return_tokens=True)[1]
    module = model.lm.get_submodule(name)
    hook = module.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    changed = model.generate(["calm piano"], return_tokens=True)[1]
    hook.remove()
    assert not torch.equal(changed, before)
    assert torch.equal(model.generate(["calm piano"], return_tokens=True)[1], before)


def test_residuals_are_the_inputs_of_the_layers_and_lead_to_the_logits():
    model = tiny(layers=3)
    steps = torch.randint(33, (2, 4, 9))
    condition = model.conditioner(model.conditioner.encode(["calm piano", "sad"]))
    seen: list[Tensor] = []
    for layer in model.lm.layers:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found = model.lm.residuals(steps, condition, layers=(0, 1, 2, 3))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, seen, strict=False))
    assert torch.equal(model.lm.logits(model.lm.norm(found[-1])), model.lm(steps, condition))
    seen.clear()
    [middle] = model.lm.residuals(steps, condition, layers=(1,))
    assert torch.equal(middle, found[1]) and len(seen) == 1  # nothing is computed beyond it


def test_a_recording_hook_sees_every_step_of_a_run_that_an_adapter_of_peft_changes():
    """Plain hooks and PEFT's modules, as research code uses them, and both at once."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    model = tiny()
    model.set_generation_params(duration=0.5, use_sampling=False)
    before = model.generate(["calm piano"], return_tokens=True)[1]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj", "linear2"]), model.lm)
    assert torch.equal(model.generate(["calm piano"], return_tokens=True)[1], before)  # B is 0 at first
    with torch.no_grad():
        for name, parameter in model.lm.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    seen: list[Tensor] = []
    hook = model.lm.layers[1].register_forward_hook(lambda module, given, output: seen.append(output))
    changed, [manifest] = model.generate(["calm piano"], return_tokens=True, return_manifests=True)[1:]
    hook.remove()
    assert not torch.equal(changed, before)
    assert [len(x) for x in seen] == [2] * (25 + 3)  # the prompt's stream and the null stream
    # What the hook saw is what a trace keeps, adapter included.
    kept = retrace(model, changed[0], manifest, ["residual"]).residual[2]
    torch.testing.assert_close(torch.cat([x[0] for x in seen]), kept, rtol=1e-3, atol=1e-3)


def test_each_of_several_runs_at_once_gets_its_own_manifest():
    model = tiny()
    model.set_generation_params(duration=0.3)
    texts = [f"{word} piano" for word in ("calm", "fast", "loud", "sad", "soft", "slow", "dark", "bright")]

    def generate(i: int) -> tuple[Tensor, dict]:
        _, tokens, [manifest] = model.generate([texts[i]], seed=i, return_tokens=True, return_manifests=True)
        return tokens, manifest

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(generate, range(len(texts))))
    for i, (tokens, manifest) in enumerate(results):
        assert (manifest["text"], manifest["seed"]) == (texts[i], i)
        assert torch.equal(model.replay(manifest)[1], tokens)


def test_an_unfinished_stream_does_not_change_another_runs_manifest():
    model = tiny()
    model.set_generation_params(duration=0.6)
    stream = model.stream(["fast drums"], seed=1, chunk_seconds=0.2)
    next(stream)
    _, [manifest] = model.generate(["calm piano"], seed=2, return_manifests=True)
    next(stream)
    stream.close()
    assert manifest["text"] == "calm piano" and stream.manifests[0]["text"] == "fast drums"
    assert stream.manifests[0]["frames"] == stream.tokens.shape[-1]

"""The Triton kernels compute what the modules do. `test_kernels.py` runs this under Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny
from torch import Tensor, nn
from triton.runtime import interpreter

from mgkit import kernels, steps


@pytest.fixture(autouse=True)
def loop_bounds(monkeypatch) -> None:
    """The interpreter uses arrays of one element as bounds of loops, which NumPy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (96, 40), (1024, 12), (8192, 3)])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_linear_layer_with_its_surroundings(rows, inputs, outputs):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs).half(), (torch.randn(outputs, inputs) / inputs**0.5).half()
    norm = nn.LayerNorm(inputs).half().requires_grad_(False)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    close = {"rtol": 2e-3, "atol": 4e-3}
    torch.testing.assert_close(kernels.linear(x, weight), F.linear(x, weight), **close)
    torch.testing.assert_close(
        kernels.linear(x, weight, norm=norm, gelu=True), F.gelu(F.linear(norm(x), weight)), **close
    )
    total = torch.randn(rows, outputs).half()
    expected = total + F.linear(x, weight)
    assert kernels.linear(x, weight, total) is total
    torch.testing.assert_close(total, expected, **close)


@pytest.mark.parametrize("melody", [False, True], ids=["text", "melody"])
@pytest.mark.parametrize("texts", [["calm piano", "fast drums and loud bass"], ["calm"]], ids=len)
@pytest.mark.parametrize("programs", [1, 64], ids=["whole", "split"])
def test_a_window_of_kernel_steps_has_the_logits_of_the_model(monkeypatch, melody, texts, programs):
    monkeypatch.setattr(steps, "STATIC_ON", {"cpu"})
    monkeypatch.setattr(steps, "KERNELS_ON", {"cpu"})
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    monkeypatch.setattr(kernels, "KEYS", 16)
    monkeypatch.setattr(steps, "WORTHWHILE", 1)
    model = tiny(melody=melody, window=1.0)
    model.lm.half()
    condition = model.conditioner(model.conditioner.encode(texts))
    assert kernels.usable(model.lm, condition)
    assert (condition.padding is not None) == (melody and len(texts) == 2)
    codes = torch.randint(32, (len(texts), 4, 40), generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def choose(column: int, logits: Tensor, noise: Tensor | None) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    run = steps.Steps(model.lm, [condition], codes.clone(), choose)
    for column in range(35, 40):
        run.fill(column, None)
    assert run._static is not None and run._static.decoders[0] is not None
    with torch.no_grad():
        expected = model.lm(codes[..., :39], condition)[:, :, 34:]
        exact = model.lm.float()(codes[..., :39], condition)[:, :, 34:]
    found = torch.stack(seen, dim=2)
    # No further from single precision than the modules in half precision are.
    assert (found - exact).norm() < 1.5 * (expected - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize(
    "change", [{"dtype": torch.float32}, {"rows": 9}, {"broken": True}], ids=["single", "rows", "compiler"]
)
def test_a_step_that_the_kernels_cannot_compute_is_left_to_the_modules(monkeypatch, change):
    monkeypatch.setattr(kernels, "compiles", lambda device: not change.get("broken"))
    model = tiny()
    model.lm.to(change.get("dtype", torch.float16))
    condition = model.conditioner(model.conditioner.encode(["calm"] * change.get("rows", 1)))
    assert not kernels.usable(model.lm, condition)

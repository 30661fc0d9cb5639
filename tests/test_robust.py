"""Results ignore torch's global settings, long pieces fit the memory, and broken weights are reported."""

import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from golden import filling
from safetensors.torch import load_file
from test_properties import run, run_with_manifests
from tiny import RATE, tiny, tune
from torch import Tensor, nn

from mgkit import MusicGen
from mgkit.__main__ import main
from mgkit.manifest import fingerprint
from mgkit.settings import Settings


class DefaultDtype:
    """Another default dtype of torch, while the block runs."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


STATES: dict[str, Callable[[], AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": DefaultDtype,
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("layout", ["text", "melody"])
def test_results_do_not_depend_on_torchs_global_settings(layout: str, state: str) -> None:
    model = tiny(melody=layout == "melody", window=0.5)
    model.set_generation_params(duration=0.7, temperature=1.1)
    more = {"melody": tune(1)} if layout == "melody" else {"prompt": tune(0.1)}
    tokens = run(model, ["calm piano", "sad"], 3, **more)
    wave = model.generate_audio(tokens)
    streamed = torch.cat(list(model.stream(["calm piano"], seed=3)), dim=-1)
    with STATES[state]():
        again = run(model, ["calm piano", "sad"], 3, **more)
        wave_again = model.generate_audio(again)
        streamed_again = torch.cat(list(model.stream(["calm piano"], seed=3)), dim=-1)
    assert torch.equal(again, tokens)
    assert wave_again.dtype == torch.float32 and torch.equal(wave_again, wave)
    assert torch.equal(streamed_again, streamed)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("layout", ["text", "melody", "audiocraft"])
def test_loading_does_not_depend_on_torchs_global_settings(
    layout: str, state: str, saved: Path, tmp_path: Path
) -> None:
    folder = filling.audiocraft_folder(tmp_path, "small") if layout == "audiocraft" else saved / layout
    expected = MusicGen.get_pretrained(str(folder), "cpu")
    with STATES[state]():
        loaded = MusicGen.get_pretrained(str(folder), "cpu")
        loaded.save_pretrained(str(tmp_path / "again"))
    again = MusicGen.get_pretrained(str(tmp_path / "again"), "cpu")
    assert fingerprint(loaded.model) == fingerprint(expected.model) == fingerprint(again.model)
    for model in (loaded, again):
        parameters = dict(model.model.named_parameters())
        for name, parameter in expected.model.named_parameters():
            assert parameters[name].dtype == parameter.dtype and not parameters[name].requires_grad
    for model in (expected, loaded):
        model.set_generation_params(duration=0.5)
    [ours], [theirs] = (model.generate(["calm piano"], seed=3) for model in (loaded, expected))
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_a_stream_leaves_the_callers_settings_alone() -> None:
    model = tiny()
    model.set_generation_params(duration=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in model.stream(["calm piano"], chunk_seconds=0.1):
            assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


def test_nan_weights_are_reported_at_the_first_step() -> None:
    model, steps = tiny(), []
    model.lm.layers[0].norm1.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="weights hold NaN or infinity"):
        model.generate(["calm piano"], on_step=lambda done, total: steps.append(done))
    assert steps == []


def test_overflow_in_half_precision_is_reported_with_its_remedy() -> None:
    model = tiny()
    model.lm.to(torch.float16)
    for layer in model.lm.layers:
        layer.feed_forward.linear2.weight.data *= 2000
        layer.norm1.weight.data *= 100
        layer.attention.out_proj.weight.data *= 500
    with pytest.raises(ValueError, match=r"overflows in torch.float16; load it with dtype=torch.float32"):
        model.generate(["calm piano"])


@pytest.mark.parametrize("temperature", [1e-38, 1e-7, 1e-6, 1e300])
def test_extreme_temperatures_give_tokens(temperature: float) -> None:
    model = tiny()
    model.set_generation_params(duration=0.3, temperature=temperature)
    tokens = run(model, ["calm piano"], 1)
    model.set_generation_params(duration=0.3, use_sampling=False)
    assert torch.equal(tokens, run(model, ["calm piano"], 1)) == (temperature < 1)


@pytest.mark.parametrize("name", ["cfg_coef", "cfg_coef_beta"])
def test_guidance_that_would_overflow_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 1e\+300; it must be a number from -1e(\+0)?6 to"):
        Settings(**{name: 1e300})


def test_a_long_piece_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    codes = torch.randint(32, (1, 4, 130))
    whole = model.generate_audio(codes)
    monkeypatch.setattr("mgkit.perform.DECODED_AT_ONCE", 50)
    lengths: list[int] = []
    model.codec.decoder[0].register_forward_hook(lambda *call: lengths.append(call[2].shape[-1]))
    parts = model.generate_audio(codes)
    assert len(lengths) > 2 and max(lengths) < 60
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_a_melody_that_cancels_out_between_its_channels_is_refused() -> None:
    model = tiny(melody=True)
    left = tune(1)
    with pytest.raises(ValueError, match="silent once its channels are averaged"):
        model.generate_with_chroma(["calm piano"], torch.cat([left, -left]), RATE)


# --- fingerprint ------------------------------------------------------------------------------------------


def test_a_saved_and_loaded_model_replays_its_pieces(tmp_path: Path) -> None:
    model = tiny(melody=True)
    model.set_generation_params(duration=0.3)
    tokens, [manifest] = run_with_manifests(model, ["calm piano"], 1, melody=tune(1))
    model.save_pretrained(str(tmp_path))
    loaded = MusicGen.get_pretrained(str(tmp_path), device="cpu")
    assert torch.equal(loaded.replay(manifest)[1], tokens)


@pytest.mark.parametrize("part", ["codec.decoder", "codec.quantizer", "lm.layers.1", "conditioner.text_proj"])
def test_the_fingerprint_covers_every_part(part: str) -> None:
    model, other = tiny().model, tiny().model
    assert fingerprint(model) == fingerprint(other)
    root, _, rest = part.partition(".")
    parameters: list[Tensor] = list(getattr(other, root).get_submodule(rest).parameters())
    parameters[-1].mul_(0.5)
    assert fingerprint(model) != fingerprint(other)


def test_runs_in_several_threads_equal_runs_in_turn() -> None:
    model = tiny()
    model.set_generation_params(duration=0.4)
    texts = ["calm piano", "fast drums", "sad choir", "loud bass"]
    in_turn = [run(model, [text], 7) for text in texts]
    at_once: dict[str, Tensor] = {}

    def work(text: str) -> None:
        at_once[text] = run(model, [text], 7)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(at_once[text], tokens) for text, tokens in zip(texts, in_turn, strict=True))


# --- work that is not lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("shapes\nof x")]
)
def test_tokens_are_kept_if_decoding_them_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    model.set_generation_params(duration=0.5)
    wave, tokens = model.generate(["calm piano"], return_tokens=True, seed=3)
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise error

        broken.setattr(model.codec, "decode", fail)
        with pytest.raises(RuntimeError, match=r"decoding the tokens failed .* they are kept in") as caught:
            model.generate(["calm piano"], seed=3)
    assert len(str(caught.value).splitlines()) == 1 and type(error).__name__ in str(caught.value)
    [path] = re.findall(r"kept in (\S+):", str(caught.value))
    kept = load_file(path)["tokens"]
    Path(path).unlink(), Path(path).parent.rmdir()
    assert torch.equal(kept, tokens) and torch.equal(model.generate_audio(kept), wave)


def test_the_command_line_names_the_file_of_kept_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("mgkit.codec.Codec.decode", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = ["generate", "calm", "--model", str(saved / "text"), "--duration", "0.2"]
    assert main([*command, "-o", str(tmp_path / "a.wav")]) == 2
    [path] = tmp_path.glob("mgkit-*/tokens.safetensors")
    assert str(path) in capsys.readouterr().err.splitlines()[-1]


def test_a_full_disk_leaves_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    model.set_generation_params(duration=0.2)

    def fail(*_: object) -> None:
        raise MemoryError

    def full(**_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(model.codec, "decode", fail)
    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(MemoryError):
        model.generate(["calm piano"])


# --- PyTorch's own tools ------------------------------------------------------------------------------------


def test_a_dynamically_quantized_language_model_generates() -> None:
    """Its layers have weights that are methods, not tensors."""
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    model = tiny()
    model.set_generation_params(duration=0.5, use_sampling=False)
    expected = model.generate(["calm piano"], return_tokens=True)[1]
    # PyTorch quantizes modules whose type is nn.Linear itself.
    for module in list(model.lm.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False)
                plain.load_state_dict(child.state_dict())
                setattr(module, name, plain)
    assert torch.equal(model.generate(["calm piano"], return_tokens=True)[1], expected)
    model.lm = model.model.lm = quantize(model.lm, {nn.Linear}, dtype=torch.qint8)
    kind = type(model.lm.layers[0].attention.q_proj)
    assert kind.__module__.startswith("torch.ao.nn.quantized.dynamic")
    _, tokens, [manifest] = model.generate(["calm piano"], return_tokens=True, return_manifests=True)
    assert tokens.shape == expected.shape and not torch.equal(tokens, expected)
    assert torch.equal(model.replay(manifest)[1], tokens)

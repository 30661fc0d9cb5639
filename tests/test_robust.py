"""Results ignore torch's global settings, long pieces fit the memory, and broken weights are reported."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from test_properties import run, run_with_manifests
from tiny import RATE, tiny, tune
from torch import Tensor

from mgkit import MusicGen
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
    with pytest.raises(ValueError, match=rf"{name} is 1e\+300; it must be a number from -1e6 to 1e6"):
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

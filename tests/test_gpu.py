"""On a CUDA GPU: logits near those of the CPU, and captured steps that give the tokens of ordinary ones.

Tiny models and a model of small's shape, all with random weights. About a minute on a data-centre GPU.
"""

import threading
import time

import pytest
import torch
from tiny import RATE, noise, ordinary, tiny, tune
from torch import Tensor

from mgkit import MusicGen, steps
from mgkit.bench import shapes
from mgkit.checkpoint import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

KINDS = {"text": {}, "melody": {"melody": True}, "stereo": {"channels": 2}}
WAYS = ("generate", "unconditional", "continuation", "chroma")
TEXTS = ["calm piano with soft strings", "fast drums", ""]


def on(device: str, kind: str = "text", dtype: torch.dtype = torch.float32, layers: int = 2) -> MusicGen:
    """A tiny model on a device."""
    parts = tiny(**KINDS[kind], layers=layers).model
    codec, conditioner = parts.codec.to(device), parts.conditioner.to(device)
    lm = parts.lm.to(device, dtype)
    model = MusicGen(Model(codec, lm, conditioner, parts.name, parts.window, parts.licence))
    model.set_generation_params(duration=1.5)
    return model


def tokens(model: MusicGen, way: str, **settings: object) -> Tensor:
    """The tokens of one of the four ways to generate, on the CPU."""
    settings = {"seed": 7, "return_tokens": True, **settings}
    if way == "unconditional":
        codes = model.generate_unconditional(2, **settings)[1]
    elif way == "continuation":
        codes = model.generate_continuation(noise(1, 1, RATE // 2), RATE, ["calm piano"], **settings)[1]
    elif way == "chroma":
        codes = model.generate_with_chroma(["calm piano", "fast"], tune(1), RATE, **settings)[1]
    else:
        codes = model.generate(TEXTS, **settings)[1]
    return codes.cpu()


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """The columns at which a graph was captured."""
    seen: list[int] = []
    capture = steps.StaticStep._capture

    def note(self: steps.StaticStep) -> None:
        capture(self)
        seen.append(int(self.column))

    monkeypatch.setattr(steps.StaticStep, "_capture", note)
    return seen


@pytest.fixture(autouse=True, scope="module")
def exact():
    """Matrix products of float32 in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


# --- against the CPU --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=str
)
def test_the_first_logits_are_those_of_the_cpu(kind, dtype, error):
    here, there = on("cpu", kind), on("cuda", kind, dtype)
    logits = []
    for model in (here, there):
        device, config = model.lm.device, model.lm.config
        with torch.no_grad():
            condition = model.conditioner(model.conditioner.encode(TEXTS))
            start = torch.full((3, config.codebooks, 1), config.special, device=device)
            logits.append(model.lm(start, condition).cpu())
    difference = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert difference < error


@pytest.mark.parametrize("kind", KINDS)
def test_the_codec_decodes_as_on_the_cpu(kind):
    here, there = on("cpu", kind), on("cuda", kind)
    codes = torch.randint(32, (2, here.lm.config.codebooks, 60))
    mine, theirs = here.generate_audio(codes), there.generate_audio(codes).cpu()
    assert (mine - theirs).norm() / mine.norm() < 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_greedy_tokens_in_single_precision_are_those_of_the_cpu(way, captured):
    kind = "melody" if way == "chroma" else "text"
    here, there = on("cpu", kind), on("cuda", kind)
    for model in (here, there):
        model.set_generation_params(duration=1.0, use_sampling=False)
    mine, theirs = tokens(here, way), tokens(there, way)
    assert captured
    # A tie may break otherwise, and everything after it differs: the beginning must not.
    assert torch.equal(mine[..., :20], theirs[..., :20])


# --- captured against ordinary steps ----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_captured_steps_give_the_tokens_of_ordinary_ones(way, dtype, captured, monkeypatch):
    model = on("cuda", "melody" if way == "chroma" else "text", dtype)
    expected = ordinary(monkeypatch, lambda: tokens(model, way))
    assert not captured
    found = tokens(model, way)
    assert captured and found.shape == expected.shape
    same = (found == expected).float().mean()
    assert same == 1 if dtype == torch.float32 else same > 0.1
    assert torch.equal(tokens(model, way), found), "the same seed gives the same tokens"


@pytest.mark.parametrize(
    "settings",
    [{"use_sampling": False}, {"top_p": 0.9}, {"top_k": 0}, {"two_step_cfg": True}, {"cfg_coef": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_know_all_settings(kind, settings, captured, monkeypatch):
    model = on("cuda", kind)
    model.max_duration = 1.0
    model.set_generation_params(duration=1.5, extend_stride=0.5, **settings)
    expected = ordinary(monkeypatch, lambda: tokens(model, "generate"))
    assert torch.equal(tokens(model, "generate"), expected)
    assert len(captured) == 2  # windows


def test_hooks_and_edits_switch_capture_off(captured):
    model = on("cuda")
    calls: list[int] = []
    hook = model.lm.layers[0].register_forward_hook(lambda *_: calls.append(1))
    tokens(model, "generate")
    hook.remove()
    assert not captured and len(calls) == 75 + 3
    tokens(model, "generate")
    assert captured


def test_a_hook_added_between_two_steps_has_its_effect_at_once(captured, monkeypatch):
    model = on("cuda")

    def run() -> Tensor:
        hooks = []

        def on_step(done: int, total: int) -> None:
            if done == 30:
                zero = lambda module, given, output: torch.zeros_like(output)  # noqa: E731
                hooks.append(model.lm.layers[1].register_forward_hook(zero))

        codes = tokens(model, "generate", on_step=on_step)
        hooks[0].remove()
        return codes

    expected = ordinary(monkeypatch, run)
    assert torch.equal(run(), expected) and captured


def test_a_sample_does_not_depend_on_its_batch(captured):
    model = on("cuda")
    batch = model.generate(TEXTS, seed=[4, 5, 6], return_tokens=True)[1]
    alone = [model.generate([text], seed=4 + i, return_tokens=True)[1] for i, text in enumerate(TEXTS)]
    assert captured and torch.equal(batch, torch.cat(alone))


# --- the door ---------------------------------------------------------------------------------------------


def test_a_stop_keeps_the_music_so_far(captured):
    model = on("cuda")
    stop = threading.Event()
    wave, codes = model.generate(
        ["calm"], seed=1, stop=stop, return_tokens=True, on_step=lambda done, _: done == 40 and stop.set()
    )
    whole = model.generate(["calm"], seed=1, return_tokens=True)[1]
    assert captured and codes.shape[-1] == 37 and wave.shape[-1] == 37 * 640
    assert torch.equal(codes, whole[..., :37])


def test_a_stream_gives_the_tokens_of_generate(captured):
    model = on("cuda")
    stream = model.stream(["calm"], seed=1, chunk_seconds=0.3)
    waves = list(stream)
    wave, codes = model.generate(["calm"], seed=1, return_tokens=True)
    assert captured and torch.equal(stream.tokens, codes)
    # cuDNN multiplies in TF32, and other lengths in another order.
    assert (torch.cat(waves, dim=-1) - wave).norm() < 0.01 * wave.norm()


def test_a_manifest_replays(captured):
    model = on("cuda")
    _, codes, [manifest] = model.generate(["calm"], seed=1, return_tokens=True, return_manifests=True)
    assert torch.equal(model.replay(manifest)[1], codes) and len(captured) == 2


def test_threads_capture_and_play_at_once(captured):
    model = on("cuda")
    expected = [model.generate([text], seed=3, return_tokens=True)[1] for text in TEXTS]
    found: dict[int, Tensor] = {}

    def run(i: int) -> None:
        found[i] = model.generate([TEXTS[i]], seed=3, return_tokens=True)[1]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], codes) for i, codes in enumerate(expected))


# --- a published shape ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> MusicGen:
    """A model of small's shape in half precision."""
    return MusicGen(shapes.random("small", torch.device("cuda"), torch.float16))


def test_small_generates_without_nan_faster_than_real_time(small, captured):
    small.set_generation_params(duration=5)
    small.generate(["calm"], seed=0)
    start = time.perf_counter()
    wave, codes = small.generate(["calm piano"], seed=1, return_tokens=True)
    torch.cuda.synchronize()
    assert time.perf_counter() - start < 5
    assert captured and wave.isfinite().all() and codes.unique().numel() > 50


def test_captured_logits_of_small_are_those_of_ordinary_steps(small, monkeypatch):
    condition = small.conditioner(small.conditioner.encode(["calm piano", "fast"]))
    codes = torch.randint(2048, (2, 4, 80), device="cuda")

    def logits() -> Tensor:
        kept = torch.zeros(80, 2, 4, 2048, device="cuda")
        column = torch.zeros(1, dtype=torch.long, device="cuda")

        def choose(_: int, logits: Tensor, noise: Tensor | None) -> Tensor:
            kept.index_copy_(0, column, logits[None])
            column.add_(1)
            return logits.argmax(dim=-1)

        run = steps.Steps(small.lm, [condition], codes.clone(), choose)
        for i in range(3, 80):
            run.fill(i, None)
        return kept

    expected, found = ordinary(monkeypatch, logits), logits()
    # The capture itself records the choice without making it.
    assert found.isfinite().all()
    assert (found[:70] - expected[:70]).norm() / expected.norm() < 0.03


def test_memory_returns_after_a_piece(small):
    small.set_generation_params(duration=3)
    small.generate(["calm"], seed=0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for seed in range(3):
        small.generate(["calm"], seed=seed)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.parametrize("batch", [8, 64])
def test_batches(small, batch, captured):
    small.set_generation_params(duration=1)
    wave = small.generate(["calm"] * batch, seed=0)
    assert captured and wave.shape == (batch, 1, RATE) and wave.isfinite().all()

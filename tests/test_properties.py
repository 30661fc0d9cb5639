"""Properties of generation for any weights, on tiny random models of both layouts."""

import inspect
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny import CODEC, RATE, noise, tiny, tune
from torch import Tensor

from mgkit import MusicGen, audio, melody, sampling
from mgkit.delay import delay, delays, undelay
from mgkit.generate import Guidance, Window, choose, frames, windows
from mgkit.lm import Condition
from mgkit.manifest import unpack, unpack_chroma
from mgkit.melody import classes, one_hot
from mgkit.sampling import draw, guide, guide_double, probabilities
from mgkit.settings import Settings

LAYOUTS = ("text", "melody")
TEXTS = ["calm piano", "", "fast loud drums with a dark choir"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch for every test."""
    torch.manual_seed(0)


@cache
def model_of(layout: str) -> MusicGen:
    """A cached tiny model; a test sets its settings before it generates."""
    return tiny(melody=layout == "melody", channels=2 if layout == "stereo" else 1)


def run_with_manifests(
    model: MusicGen, texts: list[str | None], seed: object = 0, **more: object
) -> tuple[Tensor, list[dict]]:
    """Tokens and manifests of a run, with a `melody`, an audio `prompt`, or text alone."""
    more |= {"return_tokens": True, "return_manifests": True, "seed": seed}
    if "melody" in more:
        _, tokens, manifests = model.generate_with_chroma(texts, more.pop("melody"), RATE, **more)
    elif "prompt" in more:
        _, tokens, manifests = model.generate_continuation(more.pop("prompt"), RATE, texts, **more)
    else:
        _, tokens, manifests = model.generate(texts, **more)
    return tokens, manifests


def run(model: MusicGen, texts: list[str | None], seed: object = 0, **more: object) -> Tensor:
    """The tokens of `run_with_manifests`."""
    return run_with_manifests(model, texts, seed, **more)[0]


def close(ours: Tensor, theirs: Tensor, most: float = 1e-5) -> bool:
    """Whether two tensors of one shape differ by at most `most` of the largest value."""
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= most * theirs.abs().max())


# --- delay pattern ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("codebooks", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 50])
def test_undelay_inverts_delay(length: int, codebooks: int, channels: int) -> None:
    shifts = delays(codebooks * channels, channels)
    codes = torch.randint(32, (2, codebooks * channels, length))
    assert torch.equal(undelay(delay(codes, shifts, 32), shifts), codes)


@pytest.mark.parametrize("length", [1, 3, 50])
def test_delayed_steps_hold_each_frame_one_step_later_in_each_codebook(length: int) -> None:
    codes = torch.randint(32, (1, 4, length))
    steps = delay(codes, delays(4), 32)
    assert steps.shape == (1, 4, length + 4)
    for s, q in itertools.product(range(length + 4), range(4)):
        frame = s - 1 - q
        assert steps[0, q, s] == (codes[0, q, frame] if 0 <= frame < length else 32)


# --- language model -----------------------------------------------------------------------------------


def conditioned(model: MusicGen, texts: list[str]) -> Condition:
    """The condition of a batch of texts."""
    with torch.no_grad():
        return model.conditioner(model.conditioner.encode(texts))


@pytest.mark.parametrize("parts", [(1,) * 30, (5, 1, 1, 8, 15), (30,)])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_cached_steps_equal_one_pass(layout: str, parts: tuple[int, ...]) -> None:
    model = model_of(layout)
    steps, condition = torch.randint(33, (3, 4, 30)), conditioned(model, TEXTS)
    cache = model.lm.cache(3, condition.prefix_length + 30)
    logits = [model.lm(part, condition, cache) for part in steps.split(parts, dim=-1)]
    assert close(torch.cat(logits, dim=2), model.lm(steps, condition))


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_future_tokens_do_not_change_the_past(layout: str) -> None:
    model = model_of(layout)
    steps, condition = torch.randint(33, (3, 4, 20)), conditioned(model, TEXTS)
    changed = steps.clone()
    changed[..., 12:] = (changed[..., 12:] + 1) % 33
    logits, others = model.lm(steps, condition), model.lm(changed, condition)
    assert close(logits[:, :, :12], others[:, :, :12], 1e-6)
    assert not close(logits[:, :, 12:], others[:, :, 12:], 1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_padding_does_not_change_logits(layout: str) -> None:
    model = model_of(layout)
    steps = torch.randint(33, (3, 4, 20))
    together = model.lm(steps, conditioned(model, TEXTS))
    for i, text in enumerate(TEXTS):
        assert close(together[i : i + 1], model.lm(steps[i : i + 1], conditioned(model, [text])))


# --- independence of samples -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_in_a_batch_equals_the_sample_alone(layout: str, sampling: bool) -> None:
    model = model_of(layout)
    model.set_generation_params(use_sampling=sampling, duration=0.6)
    seeds = [5, 17, 4]
    together = run(model, TEXTS, seeds)
    assert len({tuple(row.flatten().tolist()) for row in together}) == 3
    for i, text in enumerate(TEXTS):
        assert torch.equal(together[i : i + 1], run(model, [text], seeds[i]))


def test_a_sample_with_or_without_a_melody_in_a_batch_equals_the_sample_alone() -> None:
    model, waves = model_of("melody"), [tune(2), None, tune(5, notes=(61, 66, 70))]
    model.set_generation_params(duration=0.6)
    together = run(model, TEXTS, 3, melody=waves)
    for i, text in enumerate(TEXTS):
        alone = (
            run(model, [text], 3 + i) if waves[i] is None else run(model, [text], 3 + i, melody=[waves[i]])
        )
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_continuation_in_a_batch_equals_the_continuation_alone(layout: str) -> None:
    model, prompts = model_of(layout), noise(3, 1, 10_000)
    model.set_generation_params(duration=0.8)
    together = run(model, TEXTS, 3, prompt=prompts)
    for i, text in enumerate(TEXTS):
        assert torch.equal(together[i : i + 1], run(model, [text], 3 + i, prompt=prompts[i]))


def test_a_negative_prompt_affects_only_its_own_sample() -> None:
    model, negative = model_of("text"), ["sad", None, "loud fast guitar"]
    model.set_generation_params(duration=0.6)
    together = run(model, TEXTS, 3, negative=negative)
    for i, text in enumerate(TEXTS):
        assert torch.equal(together[i : i + 1], run(model, [text], 3 + i, negative=[negative[i]]))


def test_a_single_seed_counts_up_over_the_batch() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.4)
    assert torch.equal(run(model, TEXTS, 7), run(model, TEXTS, [7, 8, 9]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_seeds_give_equal_tokens_and_others_do_not(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.4)
    assert torch.equal(run(model, TEXTS, 7), run(model, TEXTS, 7))
    assert not torch.equal(run(model, TEXTS, 7), run(model, TEXTS, 70))


def test_without_a_seed_torchs_global_generator_is_used() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.4)
    with torch.random.fork_rng():
        made = []
        for _ in range(2):
            torch.manual_seed(11)
            made += [run(model, ["calm piano"], None), run(model, ["calm piano"], None)]
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
    assert not torch.equal(made[0], made[1])


def test_with_a_seed_torchs_global_generator_is_unchanged() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.2)
    before = torch.get_rng_state()
    run(model, ["calm piano"], 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_changes_the_music_and_none_equals_an_empty_text(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.4)
    assert not torch.equal(run(model, ["calm piano"]), run(model, ["fast drums"]))
    assert torch.equal(run(model, [None]), run(model, [""]))
    assert torch.equal(model.generate_unconditional(1, return_tokens=True, seed=0)[1], run(model, [None]))


def test_a_melody_changes_the_music() -> None:
    model = model_of("melody")
    model.set_generation_params(duration=0.4)
    tokens = [run(model, ["calm piano"], melody=tune(3, notes=notes)) for notes in ((60, 64), (61, 66))]
    assert not torch.equal(*tokens)
    assert not torch.equal(tokens[0], run(model, ["calm piano"]))


# --- guidance and sampling --------------------------------------------------------------------------------


def test_guidance_extrapolates_from_null_through_the_condition() -> None:
    conditional, null = noise(2, 4, 32, seed=1), noise(2, 4, 32, seed=2)
    assert close(guide(conditional, null, 1.0), conditional)
    assert close(guide(conditional, null, 0.0), null)
    assert close(guide(conditional, null, 3.0), 3 * conditional - 2 * null)


def test_double_guidance_matches_the_papers_formula() -> None:
    both, melody, null = (noise(2, 4, 32, seed=seed) for seed in range(3))
    for coef, beta in ((3.0, 5.0), (2.0, 0.0), (0.5, 1.0)):
        expected = null + coef * (melody + beta * (both - melody) - null)
        assert close(guide_double(both, melody, null, coef, beta), expected)
    assert close(guide_double(both, melody, null, 3.0, 1.0), guide(both, null, 3.0))
    assert close(guide_double(both, melody, null, 3.0, 0.0), guide(melody, null, 3.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_schedule_of_guidance_holds_by_seconds(layout: str) -> None:
    model = model_of(layout)
    made = {}
    for name, coef in {
        "low": 1.0,
        "constant": [(0, 1.0), (4, 1.0)],
        "later": [(0.4, 1.0), (0.4, 9.0)],
        "rising": [(0, 1.0), (1, 9.0)],
    }.items():
        model.set_generation_params(duration=0.8, cfg_coef=coef)
        made[name], [manifest, *_] = run_with_manifests(model, TEXTS, 4)
        json.dumps(manifest)
        assert torch.equal(model.replay(manifest)[1], made[name][:1])
        alone = [run(model, [text], 4 + i) for i, text in enumerate(TEXTS)]
        assert torch.equal(torch.cat(alone), made[name])
    assert torch.equal(made["constant"], made["low"])
    # Step 20 predicts frame 20 of codebook 0 and frame 17 of codebook 3.
    assert torch.equal(made["later"][:, 0, :20], made["low"][:, 0, :20])
    assert torch.equal(made["later"][:, 3, :17], made["low"][:, 3, :17])
    assert not torch.equal(made["later"], made["low"]) and not torch.equal(made["rising"], made["low"])


def test_a_schedule_counts_seconds_across_windows() -> None:
    model = tiny(window=0.6)
    for coef in (1.0, [(0.8, 1.0), (0.8, 9.0)]):
        model.set_generation_params(duration=1.3, cfg_coef=coef)
        tokens = run(model, ["calm piano"], 4)
        if coef == 1.0:
            before = tokens
    assert torch.equal(tokens[..., :37], before[..., :37])
    assert not torch.equal(tokens[..., 40:], before[..., 40:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guidance_in_two_steps_equals_guidance_in_one(layout: str) -> None:
    model, made = model_of(layout), []
    for two in (False, True):
        model.set_generation_params(duration=0.6, two_step_cfg=two)
        made.append(run(model, TEXTS))
    assert torch.equal(*made)


def test_double_guidance_with_beta_one_is_plain_guidance() -> None:
    model, made = model_of("melody"), []
    for beta in (None, 1.0, 4.0):
        model.set_generation_params(use_sampling=False, duration=0.6, cfg_coef_beta=beta)
        made.append(run(model, ["calm piano"], melody=tune(2)))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_temperature_zero_is_argmax_for_any_seed(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(use_sampling=False, duration=0.4)
    likeliest = run(model, TEXTS, 1)
    model.set_generation_params(temperature=0.0, duration=0.4)
    assert torch.equal(run(model, TEXTS, 2), likeliest)


def test_noise_drawn_side_by_side_is_that_of_each_generator_alone() -> None:
    def made() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(9)]

    one, side, alone = made(), made(), made()
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            row_by_row = sampling.noise(one, (4, 32))
            assert torch.equal(row_by_row, sampling.noise(side, (4, 32), threads))
            each = [torch.empty(4, 32).exponential_(generator=generator) for generator in alone]
            assert torch.equal(row_by_row, torch.stack(each))


def test_choosing_without_sampling_is_argmax() -> None:
    logits = noise(3, 4, 32)
    assert torch.equal(choose([logits], Settings(use_sampling=False), None), logits.argmax(-1))


@pytest.mark.parametrize("k", [1, 2, 7, 32, 250])
def test_top_k_keeps_the_k_most_likely_in_proportion(k: int) -> None:
    logits = noise(5, 32)
    whole, kept = logits.softmax(-1), probabilities(logits, top_k=k)
    assert ((kept > 0).sum(-1) == min(k, 32)).all()
    for before, after in zip(whole, kept, strict=True):
        likeliest = before.topk(min(k, 32)).indices
        assert torch.allclose(after[likeliest], before[likeliest] / before[likeliest].sum())


def test_top_k_keeps_ties_with_the_kth() -> None:
    assert torch.equal(
        probabilities(torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), top_k=2) > 0, torch.tensor([0, 1, 1, 1, 0]) > 0
    )


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9, 1.0])
def test_top_p_keeps_the_smallest_set_with_probability_p(p: float) -> None:
    logits = 6 * noise(20, 32)
    whole, kept = logits.softmax(-1), probabilities(logits, top_p=p)
    for before, after in zip(whole, kept, strict=True):
        chosen = before[after > 0]
        assert (
            len(chosen) >= 1 and chosen.min() >= before[after == 0].amax() if (after == 0).any() else p > 0.3
        )
        assert chosen.sum() >= p - 1e-6
        assert chosen.sum() - chosen.min() <= p + 1e-6
        assert torch.allclose(after[after > 0], chosen / chosen.sum())


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("top", [{}, {"top_k": 7}, {"top_p": 0.8}], ids=str)
def test_min_p_keeps_the_tokens_close_to_the_most_likely_one(p: float, top: dict) -> None:
    logits = torch.randn(50, 32) * 2
    whole, kept = probabilities(logits, **top), probabilities(logits, min_p=p, **top)
    close_enough = whole >= p * whole.amax(dim=-1, keepdim=True)
    expected = whole * close_enough
    assert torch.allclose(kept, expected / expected.sum(dim=-1, keepdim=True))
    assert (kept > 0).any(dim=-1).all()


def test_min_p_of_a_model_changes_its_tokens_and_1_is_argmax() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.4, top_k=0)
    tokens = run(model, TEXTS, 4)
    model.set_generation_params(duration=0.4, top_k=0, min_p=0.3)
    made, [manifest, *_] = run_with_manifests(model, TEXTS, 4)
    assert not torch.equal(made, tokens)
    assert manifest["settings"]["min_p"] == 0.3 and torch.equal(model.replay(manifest)[1], made[:1])
    model.set_generation_params(duration=0.4, top_k=0, min_p=1.0)
    most_likely = run(model, TEXTS, 4)
    model.set_generation_params(duration=0.4, use_sampling=False)
    assert torch.equal(most_likely, run(model, TEXTS))


def test_top_p_wins_over_top_k() -> None:
    logits = noise(5, 32)
    assert torch.equal(probabilities(logits, top_k=1, top_p=0.9), probabilities(logits, top_p=0.9))


def test_temperature_divides_the_logits() -> None:
    logits = noise(5, 32)
    assert torch.allclose(probabilities(logits, temperature=0.5), (2 * logits).softmax(-1))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.6}])
def test_tokens_are_drawn_with_their_probability(settings: dict) -> None:
    probs = probabilities(torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5]), **settings).expand(40_000, 5)
    exponential = torch.empty(40_000, 5).exponential_(generator=torch.Generator().manual_seed(0))
    often = torch.bincount(draw(probs, exponential), minlength=5) / 40_000
    assert (often - probs[0]).abs().max() < 0.01
    assert (often[probs[0] == 0] == 0).all()


@pytest.mark.parametrize("top", [{"top_k": 1, "temperature": 3.0}, {"top_p": 1e-6, "temperature": 3.0}])
def test_keeping_one_token_is_argmax(top: dict) -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.4, **top)
    made = run(model, TEXTS)
    model.set_generation_params(use_sampling=False, duration=0.4)
    assert torch.equal(made, run(model, TEXTS))


def test_set_generation_params_and_settings_have_equal_defaults() -> None:
    parameters = inspect.signature(MusicGen.set_generation_params).parameters
    given = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert given == {field.name: field.default for field in fields(Settings)}
    model = tiny()
    model.set_generation_params()
    assert model.settings == Settings()


# --- no unnecessary work ------------------------------------------------------------------


def rows_seen(model: MusicGen, make: Callable[[], object]) -> list[int]:
    """Batch sizes of the language model's forward passes during `make`."""
    rows: list[int] = []
    with hooked(model, lambda steps: rows.append(steps.shape[0])):
        make()
    return rows


@contextmanager
def hooked(model: MusicGen, before: Callable[[Tensor], object]) -> Iterator[None]:
    """Call `before(steps)` at each forward pass of the language model."""
    hook = model.lm.register_forward_pre_hook(lambda module, given: (before(given[0]), None)[1])
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("layout", "settings", "texts", "more", "rows"),
    [
        ("text", {}, ["calm piano", "sad"], {}, 4),
        ("text", {"cfg_coef": 1.0}, ["calm piano", "sad"], {}, 2),
        ("text", {}, ["", None], {}, 2),
        ("text", {}, ["", "sad"], {}, 4),
        ("text", {}, ["", None], {"negative": "sad"}, 4),
        ("text", {"two_step_cfg": True}, ["calm piano", "sad"], {}, 2),
        ("melody", {}, ["calm piano"], {}, 2),
        ("melody", {}, [""], {}, 1),
        ("melody", {}, [""], {"melody": tune(1)}, 2),
        ("melody", {"cfg_coef": 1.0}, [""], {"melody": tune(1)}, 1),
        ("melody", {"cfg_coef_beta": 4.0}, ["sad"], {"melody": tune(1)}, 3),
    ],
)
def test_streams_without_effect_are_not_computed(
    layout: str, settings: dict, texts: list, more: dict, rows: int
) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.1, **settings)
    seen = rows_seen(model, lambda: run(model, texts, **more))
    assert set(seen) == {rows}
    assert len(seen) == (5 + 3) * (2 if settings.get("two_step_cfg") else 1)  # 5 frames and the delay


@pytest.mark.parametrize(("negative", "times"), [(None, 1), ("sad", 2)])
def test_text_is_encoded_once_for_all_windows(negative: str | None, times: int) -> None:
    model = tiny(window=0.5)
    model.set_generation_params(duration=1.3)
    with patch.object(model.conditioner.text, "forward", wraps=model.conditioner.text.forward) as encode:
        run(model, ["calm piano"], negative=negative)
    assert encode.call_count == times


def test_text_keys_are_projected_once_a_window() -> None:
    model = tiny(window=0.5)
    model.set_generation_params(duration=0.8)  # two windows
    across = model.lm.layers[0].cross_attention
    with patch.object(across, "keys_values", wraps=across.keys_values) as project:
        run(model, ["calm piano"])
    assert project.call_count == 2


def test_each_step_is_fed_once() -> None:
    model, fed = model_of("text"), []
    model.set_generation_params(duration=0.4)
    with hooked(model, lambda steps: fed.append(steps.shape[-1])):
        run(model, ["calm piano"], prompt=noise(1, 6400))
    assert fed == [11] + [1] * 12  # the start and 10 frames of prompt at once; 10 new frames and the delay


# --- streaming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", range(1, 8))
@torch.no_grad()
def test_decoding_in_chunks_equals_decoding_at_once(size: int, channels: int) -> None:
    made = model_of("text").codec
    for total in (1, 2, 3, 4, 5, 6, 7, 8, 30):
        codes = torch.randint(CODEC.codebook_size, (2, 4 * channels, total))
        chunks = list(made.decode_stream(codes.split(size, dim=-1), channels))
        assert all(chunk.shape[-1] > 0 for chunk in chunks)
        assert close(torch.cat(chunks, dim=-1), made.decode(codes, channels))


@torch.no_grad()
def test_decoding_in_uneven_chunks_equals_decoding_at_once() -> None:
    made, codes = model_of("text").codec, torch.randint(CODEC.codebook_size, (1, 4, 40))
    chunks = made.decode_stream(codes.split([1, 9, 2, 1, 1, 20, 6], dim=-1))
    assert close(torch.cat(list(chunks), dim=-1), made.decode(codes))


@torch.no_grad()
def test_the_decoder_lags_its_codes_by_a_tenth_of_a_second() -> None:
    made, given = model_of("text").codec, []

    def one_by_one() -> Iterator[Tensor]:
        for _ in range(20):
            given.append(torch.randint(CODEC.codebook_size, (1, 4, 1)))
            yield given[-1]

    for sounded, _ in enumerate(itertools.islice(made.decode_stream(one_by_one()), 10), start=1):
        assert (
            len(given) - sounded <= made.LOOKAHEAD + made.CONTEXT + 1
        )  # and one to know whether it is the last
    assert (made.LOOKAHEAD + made.CONTEXT) / CODEC.frame_rate == 0.1


WAYS = {
    "text": ("text", {}),
    "melody": ("melody", {"melody_wavs": tune(2), "melody_sample_rate": RATE}),
    "continuation": ("text", {"prompt": noise(1, 12_000), "prompt_sample_rate": RATE}),
    "stereo": ("stereo", {}),
    "both": (
        "melody",
        {
            "melody_wavs": tune(2),
            "melody_sample_rate": RATE,
            "prompt": noise(1, 12_000),
            "prompt_sample_rate": RATE,
        },
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
def test_streamed_equals_whole(seconds: float, way: str) -> None:
    layout, told = WAYS[way]
    model = model_of(layout)
    model.set_generation_params(duration=1.16)
    stream = model.stream(["calm piano"], seed=4, chunk_seconds=seconds, **told)
    chunks, [manifest] = list(stream), stream.manifests
    streamed = torch.cat(chunks, dim=-1)
    assert streamed.shape == (1, model.audio_channels, 58 * 640)
    wave, tokens = model.replay(manifest)
    assert close(streamed, wave)
    if way in ("text", "stereo"):
        assert torch.equal(tokens, run(model, ["calm piano"], 4))
    elif way == "melody":
        assert torch.equal(tokens, run(model, ["calm piano"], 4, melody=told["melody_wavs"]))
    elif way == "continuation":
        assert torch.equal(tokens, run(model, ["calm piano"], 4, prompt=told["prompt"]))


def test_a_stream_of_a_long_piece_equals_the_whole() -> None:
    model = tiny(window=0.6)
    model.set_generation_params(duration=1.3)
    streamed = torch.cat(list(model.stream(TEXTS, seed=4, chunk_seconds=0.2)), dim=-1)
    assert close(streamed, model.generate(TEXTS, seed=4))


def test_a_stream_yields_audio_before_generation_ends() -> None:
    model, done = model_of("text"), []
    model.set_generation_params(duration=1.0)
    stream = model.stream(
        ["calm piano"], seed=4, chunk_seconds=0.1, on_step=lambda step, total: done.append(step)
    )
    first = next(stream)
    assert first.shape[-1] > 0
    assert len(done) < 20


def test_a_stopped_stream_yields_everything_generated() -> None:
    model, stop = model_of("text"), threading.Event()
    model.set_generation_params(duration=1.0)
    whole = run(model, ["calm piano"], 4)
    on_step = lambda done, total: stop.set() if done == 23 else None  # noqa: E731
    chunks = list(model.stream(["calm piano"], seed=4, chunk_seconds=0.1, on_step=on_step, stop=stop))
    assert close(torch.cat(chunks, dim=-1), model.generate_audio(whole[..., :20]))


def test_an_abandoned_stream_describes_its_music() -> None:
    model = model_of("text")
    model.set_generation_params(duration=1.0)
    whole = run(model, ["calm piano"], 4)
    stream = model.stream(["calm piano"], seed=4, chunk_seconds=0.2)
    next(stream)
    stream.close()
    made = stream.manifests[0]["frames"]
    assert 10 <= made < 50
    assert torch.equal(model.replay(stream.manifests[0])[1], whole[..., :made])


# --- stopping and progress --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stopping_at_any_step_leaves_a_prefix(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.2)
    whole = run(model, TEXTS)
    for last in range(1, 14):
        stop = threading.Event()
        on_step = lambda done, total: stop.set() if done == last else None  # noqa: B023, E731
        wave, tokens = model.generate(TEXTS, return_tokens=True, seed=0, on_step=on_step, stop=stop)
        assert torch.equal(tokens, whole[..., : max(0, last - 3)])
        assert wave.shape == (3, 1, tokens.shape[-1] * 640)


@pytest.mark.parametrize("way", ["text", "continuation", "long"])
@pytest.mark.parametrize("last", [1, 3, 4, 5, 20, 34])
def test_ctrl_c_at_any_step_returns_the_music_so_far(
    last: int, way: str, capsys: pytest.CaptureFixture
) -> None:
    model = tiny(window=0.4) if way == "long" else model_of("text")
    model.set_generation_params(duration=0.9)
    more = {"prompt": noise(1, 6400)} if way == "continuation" else {}
    whole = run(model, TEXTS[:1], **more)

    def interrupt(done: int, total: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    tokens, [manifest] = run_with_manifests(model, TEXTS[:1], on_step=interrupt, **more)
    made = tokens.shape[-1] - (10 if more else 0)
    assert torch.equal(tokens, whole[..., : tokens.shape[-1]])
    lost = 3 * (2 if way == "long" and last > 23 else 1) + 1  # the delay of each window, and the step itself
    assert made == max(0, last - lost)
    assert "the music so far is kept" in capsys.readouterr().err
    assert manifest["frames"] == tokens.shape[-1]


def test_an_event_set_in_advance_prevents_generation() -> None:
    model, stop = model_of("text"), threading.Event()
    model.set_generation_params(duration=0.4)
    stop.set()
    wave, tokens = model.generate(TEXTS, return_tokens=True, stop=stop)
    assert tokens.shape == (3, 4, 0) and wave.shape == (3, 1, 0)


@pytest.mark.parametrize(
    ("window", "duration", "prompt"), [(10.0, 0.5, 0), (10.0, 0.5, 10), (0.4, 1.1, 0), (0.4, 1.1, 25)]
)
def test_progress_counts_every_step_up_to_the_total(window: float, duration: float, prompt: int) -> None:
    model, seen = tiny(window=window), []
    model.set_generation_params(duration=duration)
    model.set_custom_progress_callback(lambda done, total: seen.append((done, total)))
    more = {"prompt": noise(1, 640 * prompt)} if prompt else {}
    tokens = run(model, ["calm piano"], **more)
    assert tokens.shape[-1] == round(duration * 50)
    total = len(seen)
    assert seen == [(step, total) for step in range(1, total + 1)]


def test_a_runs_own_callback_replaces_the_models() -> None:
    model, own, other = tiny(), [], []
    model.set_generation_params(duration=0.1)
    model.set_custom_progress_callback(lambda *step: other.append(step))
    run(model, ["calm piano"], on_step=lambda *step: own.append(step))
    assert own and not other
    model.set_custom_progress_callback(None)
    run(model, ["calm piano"])
    assert not other


def test_a_progress_bar_ends_at_the_total(capsys: pytest.CaptureFixture) -> None:
    model, seen = model_of("text"), []
    model.set_generation_params(duration=0.3)
    model.generate(["calm piano"], progress=True, on_step=lambda *step: seen.append(step))
    assert "18/18" in capsys.readouterr().err
    assert seen[-1] == (18, 18)


# --- prompts and long pieces ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["text", "melody", "stereo"])
@pytest.mark.parametrize("samples", [640, 6401, 25_600])
def test_a_continuation_keeps_its_prompt(samples: int, layout: str) -> None:
    model = model_of(layout)
    prompt = noise(2, model.audio_channels, samples)
    model.set_generation_params(duration=1.0)
    tokens = run(model, ["calm piano", "sad"], prompt=prompt)
    known = model.codec.encode(prompt)
    assert tokens.shape[-1] == 50
    assert torch.equal(tokens[..., : known.shape[-1]], known)


def test_different_prompts_are_continued_differently() -> None:
    model = model_of("text")
    model.set_generation_params(use_sampling=False, duration=1.0)
    made = [run(model, ["calm piano"], prompt=noise(1, 12_800, seed=seed)) for seed in (1, 2)]
    assert not torch.equal(made[0][..., 20:], made[1][..., 20:])


@pytest.mark.parametrize("total", range(1, 60))
def test_windows_cover_the_piece_once_and_never_run_past_its_end(total: int) -> None:
    for prompt, window, stride in itertools.product((0, 3, 25), (10, 20), (1, 6, 9)):
        plan = windows(total, prompt, window, stride)
        assert (plan == []) == (prompt >= total)
        done = prompt
        for start, known, end in plan:
            assert start + known == done < end <= min(total, start + window)
            assert known <= max(prompt, window - stride)
            done = end
        assert not plan or done == total


def test_a_window_continues_the_tokens_shared_with_the_previous_one() -> None:
    model = tiny(window=2.0)
    model.set_generation_params(use_sampling=False, duration=4.1)
    tokens = run(model, ["calm piano"])
    assert tokens.shape[-1] == 205
    model.set_generation_params(use_sampling=False, duration=2.0)
    assert torch.equal(tokens[..., :100], run(model, ["calm piano"]))
    with torch.no_grad():
        texts = model.conditioner.encode(["calm piano"])
        told = Guidance([model.conditioner(texts), model.conditioner.null(texts)])
        for start, end in ((60, 160), (120, 205)):
            window = Window(0, 40, end - start)
            known = tokens[..., start : start + 40]
            made = list(frames(model.lm, lambda window: told, known, [window], model.settings, []))
            assert torch.equal(torch.stack(made, dim=-1), tokens[..., start + 40 : end])


def test_the_melody_is_rotated_to_each_window() -> None:
    """Each window takes the melody from its own start; a short melody repeats."""
    model, notes = tiny(melody=True, window=2.048), (60, 64, 67, 69, 72, 71)
    model.set_generation_params(duration=4.0, extend_stride=1.024)
    _, [manifest] = run_with_manifests(model, ["calm piano"], melody=tune(2.4, notes=notes))
    chroma = {int(start): grid for start, grid in manifest["melody"].items()}
    assert sorted(chroma) == [0, 51, 102]
    assert len(set(chroma.values())) == 3


def test_pitch_classes_of_a_melody_give_the_same_music_as_its_wave() -> None:
    """Alone, in a batch, and in a list with a wave and None."""
    model, waves = model_of("melody"), [tune(3), tune(5, notes=(61, 66, 70))]
    model.set_generation_params(duration=2.0)
    grids = [classes(wave, RATE, 79) for wave in waves]
    heard = run(model, TEXTS[:2], melody=waves)
    assert not torch.equal(heard[0], heard[1])
    assert torch.equal(run(model, TEXTS[:2], melody=torch.stack(grids)), heard)
    assert torch.equal(run(model, TEXTS[:2], melody=[grids[0], waves[1]]), heard)
    told, [manifest] = run_with_manifests(model, TEXTS[:1], melody=grids[0])
    assert torch.equal(told, heard[:1])
    assert torch.equal(model.replay(manifest)[1], told)
    mixed = run(model, TEXTS, melody=[grids[0], None, grids[1]])
    assert torch.equal(mixed, run(model, TEXTS, melody=[waves[0], None, waves[1]]))
    chunks = list(model.stream(TEXTS[:1], melody_wavs=grids[0], seed=0))
    assert close(torch.cat(chunks, dim=-1), model.generate_audio(told), 1e-4)


def test_pitch_classes_are_rotated_to_each_window_and_repeat() -> None:
    model = tiny(melody=True, window=2.048)
    model.set_generation_params(duration=4.0, extend_stride=1.024)
    told = torch.arange(20) % 12
    _, [manifest] = run_with_manifests(model, ["calm piano"], melody=told)
    grids = {int(start): unpack(grid).tolist() for start, grid in manifest["melody"].items()}
    assert {start: grid[0] for start, grid in grids.items()} == {0: 0, 51: 8, 102: 4}
    assert grids[102] == [(16 + i) % 20 % 12 for i in range(17)]


def test_chords_give_the_same_music_alone_and_in_a_batch_and_replay() -> None:
    """As chroma [F, 12], beside a wave, pitch classes and None; one pitch class per frame is a melody."""
    model, told = model_of("melody"), melody.chords("C G A:min F", bpm=120, beats=1)
    model.set_generation_params(duration=2.0)
    heard, [manifest] = run_with_manifests(model, TEXTS[:1], melody=told)
    assert not torch.equal(heard, run(model, TEXTS[:1], melody=told.argmax(dim=1)))
    assert torch.equal(model.replay(json.loads(json.dumps(manifest)))[1], heard)
    stream = model.stream(TEXTS[:1], melody_wavs=told, seed=0)
    assert close(torch.cat(list(stream), dim=-1), model.generate_audio(heard), 1e-4)
    live = model.live(TEXTS[0], melody_wav=told, seed=0)
    next(live)
    live.close()
    assert torch.equal(live.tokens, heard[..., : live.tokens.shape[-1]]) and live.manifests[0]["chords"]
    assert torch.equal(run(model, TEXTS[:2], melody=told)[:1], heard)
    assert torch.equal(run(model, TEXTS[:2], melody=torch.stack([told, told]))[:1], heard)
    wave = tune(3)
    mixed = run(model, TEXTS, melody=[told, None, wave])
    assert torch.equal(mixed[:1], heard)
    assert torch.equal(mixed[1:], run(model, TEXTS, melody=[wave, None, wave])[1:])
    single = one_hot(classes(wave, RATE, 79))
    assert torch.equal(run(model, TEXTS[:1], melody=single), run(model, TEXTS[:1], melody=wave))


def test_chords_are_rotated_to_each_window_and_repeat() -> None:
    model = tiny(melody=True, window=2.048)
    model.set_generation_params(duration=4.0, extend_stride=1.024)
    told = melody.chords("C G A:min F E", bpm=120, beats=1.024)
    _, [manifest] = run_with_manifests(model, ["calm piano"], melody=told)
    windows = unpack_chroma(manifest)
    assert {start: chroma.shape for start, chroma in windows.items()} == dict.fromkeys(
        (0, 51, 102), (1, 17, 12)
    )
    assert torch.equal(windows[102][0], told[(torch.arange(17) + 16) % 20])


def test_a_duration_of_61_s_gives_61_s() -> None:
    model = tiny(window=30.0, layers=1)
    model.set_generation_params(duration=61, cfg_coef=1.0)
    wave, tokens = model.generate(["calm piano"], return_tokens=True, seed=1)
    assert tokens.shape == (1, 4, 3050)
    assert wave.shape == (1, 1, 61 * RATE)
    model.set_generation_params(duration=30, cfg_coef=1.0)
    assert torch.equal(run(model, ["calm piano"], 1), tokens[..., :1500])


@pytest.mark.parametrize("seconds", [0.02, 0.03, 0.5, 1.0, 1.23])
def test_the_duration_is_exact_to_the_nearest_frame(seconds: float) -> None:
    model = tiny(window=0.6)
    model.set_generation_params(duration=seconds)
    assert model.generate(["calm piano"]).shape[-1] == 640 * max(1, round(seconds * 50))


# --- manifests --------------------------------------------------------------------------------------------

REPLAYED = {
    "text": ("text", lambda model, **more: model.generate(["calm piano"], **more)),
    "negative": ("text", lambda model, **more: model.generate(["calm piano"], negative="sad", **more)),
    "unconditional": ("text", lambda model, **more: model.generate_unconditional(1, **more)),
    "melody": ("melody", lambda model, **more: model.generate_with_chroma(["sad"], tune(2), RATE, **more)),
    "continuation": (
        "text",
        lambda model, **more: model.generate_continuation(noise(1, 9_000), RATE, ["calm piano"], **more),
    ),
    "stereo": ("stereo", lambda model, **more: model.generate(["calm piano"], **more)),
}


@pytest.mark.parametrize("way", REPLAYED)
@pytest.mark.parametrize("ending", audio.FORMATS)
def test_a_file_replays(ending: str, way: str, tmp_path: Path) -> None:
    layout, make = REPLAYED[way]
    model = model_of(layout)
    model.set_generation_params(duration=0.5, temperature=1.2, top_k=20)
    wave, tokens, [manifest] = make(model, return_tokens=True, return_manifests=True, seed=9)
    path = audio.write(tmp_path / f"made{ending}", wave[0], model.sample_rate, manifest=manifest)
    model.set_generation_params(duration=3.0)  # another setting of the model does not matter
    replayed, again = model.replay(audio.read_manifest(path))
    assert torch.equal(again, tokens)
    assert close(replayed, wave)


@pytest.mark.parametrize("ending", audio.FORMATS)
def test_a_file_with_a_long_prompt_and_melody_replays(ending: str, tmp_path: Path) -> None:
    """Five seconds of stereo prompt and three windows of melody: a manifest of some 10 kB."""
    model = tiny(melody=True, channels=2, window=6.0)
    model.set_generation_params(duration=5.2)
    told = {
        "melody_wavs": tune(6),
        "melody_sample_rate": RATE,
        "prompt": noise(2, 5 * RATE),
        "prompt_sample_rate": RATE,
    }
    stream = model.stream(["calm piano " * 100], seed=9, **told)
    wave, [manifest] = torch.cat(list(stream), dim=-1), stream.manifests
    path = audio.write(tmp_path / f"made{ending}", wave[0], model.sample_rate, manifest=manifest)
    assert audio.read_manifest(path) == {**manifest, "strategy": "loudness"}
    assert close(model.replay(audio.read_manifest(path))[0], wave)


@pytest.mark.parametrize("ending", audio.FORMATS)
def test_every_format_carries_a_manifest_of_any_size_and_script(ending: str, tmp_path: Path) -> None:
    manifest = {"mgkit": "0", "licence": "MIT", "text": 'Ünïcødé 音楽 🎹 "quoted"\n', "prompt": "x" * 60_000}
    path = audio.write(tmp_path / f"made{ending}", noise(1, RATE), RATE, "peak", manifest)
    assert audio.read_manifest(path) == {**manifest, "strategy": "peak"}
    assert audio.read(path)[0].shape[-1] >= RATE


def test_a_stopped_run_replays() -> None:
    model, stop = model_of("text"), threading.Event()
    model.set_generation_params(duration=0.6)
    on_step = lambda done, total: stop.set() if done == 17 else None  # noqa: E731
    tokens, [manifest] = run_with_manifests(model, ["calm piano"], 9, on_step=on_step, stop=stop)
    assert tokens.shape[-1] == 14
    seen = rows_seen(model, lambda: model.replay(manifest))
    assert len(seen) == 17  # and not a step more
    assert torch.equal(model.replay(manifest)[1], tokens)


def test_each_sample_of_a_batch_replays_alone() -> None:
    model = model_of("melody")
    model.set_generation_params(duration=0.4)
    tokens, manifests = run_with_manifests(model, TEXTS, 9, melody=[tune(1), None, tune(2)])
    for i, manifest in enumerate(manifests):
        assert torch.equal(model.replay(manifest)[1], tokens[i : i + 1])


def test_a_long_piece_replays() -> None:
    model = tiny(melody=True, window=1.0)
    model.set_generation_params(duration=2.1, two_step_cfg=True, cfg_coef_beta=2.0)
    tokens, [manifest] = run_with_manifests(model, ["calm piano"], 9, melody=tune(1.7))
    assert torch.equal(model.replay(manifest)[1], tokens)


def test_other_weights_do_not_replay() -> None:
    model, other = model_of("text"), tiny(layers=1)
    model.set_generation_params(duration=0.2)
    _, [manifest] = run_with_manifests(model, ["calm piano"])
    with pytest.raises(ValueError, match="other weights"):
        other.replay(manifest)


def test_a_manifest_with_a_changed_prompt_does_not_replay() -> None:
    model = model_of("text")
    model.set_generation_params(use_sampling=False, duration=0.4)
    _, [manifest] = run_with_manifests(model, ["calm piano"])
    with pytest.raises(ValueError, match="came out different"):
        model.replay(manifest | {"text": "fast drums"})

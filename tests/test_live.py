"""Mixes and timelines of prompts, and live sessions."""

import gc
import itertools
import math
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from test_properties import LAYOUTS, close, hooked, model_of, noise, rows_seen, run, run_with_manifests
from tiny import CODEC, RATE, tiny, tune
from torch import Tensor

from mgkit import MusicGen, audio
from mgkit.generate import Window, count_steps, lengths, windows
from mgkit.manifest import unpack
from mgkit.perform import request_frames
from mgkit.prompts import parse_descriptions, plain, prompt_at
from mgkit.request import parse_request
from mgkit.sampling import guide, guide_double, mix

CALM, LOUD, SAD = "calm piano", "fast loud drums", "sad"


# --- mixes ----------------------------------------------------------------------------------------------


def test_a_mix_guides_from_null_to_each_prompt_by_its_weight() -> None:
    one, two, null = (noise(2, 4, 32, seed=seed) for seed in range(3))
    weights = torch.tensor([[0.7, 0.2], [0.3, 1.5]])  # [prompts, samples]
    guided = guide(mix([one, two], weights, null), null, 3.0)
    for i in range(2):
        w, v = weights[:, i]
        expected = null[i] + w * 3 * (one[i] - null[i]) + v * 3 * (two[i] - null[i])
        assert close(guided[i], expected)


def test_a_mix_in_double_guidance_guides_from_the_melody_to_each_prompt() -> None:
    one, two, melody, null = (noise(1, 4, 32, seed=seed) for seed in range(4))
    weights = torch.tensor([[0.7], [0.6]])
    text = 0.7 * (one - melody) + 0.6 * (two - melody)
    expected = null + 3 * (melody + 4 * text - null)
    assert close(guide_double(mix([one, two], weights, melody), melody, null, 3.0, 4.0), expected)


def test_a_single_prompt_of_weight_one_is_bit_identical() -> None:
    one, two, null = (noise(2, 4, 32, seed=seed) for seed in range(3))
    assert torch.equal(mix([one], torch.ones(1, 2), null), one)
    assert torch.equal(mix([one, two], torch.tensor([[1.0, 1.0], [0.0, 0.0]]), null), one)


@pytest.mark.parametrize("beta", [None, 2.0])
@pytest.mark.parametrize("coef", [1.0, 3.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_one_and_zero_are_the_first_prompt_alone(
    layout: str, coef: float, beta: float | None
) -> None:
    if beta and layout == "text":
        beta = None  # takes no melody
    model, more = model_of(layout), {"melody": tune(1)} if beta else {}
    model.set_generation_params(duration=0.6, cfg_coef=coef, cfg_coef_beta=beta)
    alone = run(model, [CALM], **more)
    for asked in ({CALM: 1}, {CALM: 1.0, LOUD: 0}, {LOUD: 0.0, CALM: 1}):
        assert torch.equal(run(model, [asked], **more), alone)
    assert not torch.equal(run(model, [{CALM: 0.5, LOUD: 0.5}], **more), alone)


def test_a_mix_lies_between_its_prompts() -> None:
    """Greedy first tokens move with the weight from one prompt to the other."""
    model = model_of("text")
    model.set_generation_params(use_sampling=False, duration=0.5)
    ends = [run(model, [text])[0] for text in (CALM, LOUD)]
    ways = [run(model, [{CALM: 1 - w, LOUD: w}])[0] for w in (0.001, 0.5, 0.999)]
    assert torch.equal(ways[0][:, :5], ends[0][:, :5]) and torch.equal(ways[2][:, :5], ends[1][:, :5])
    assert not torch.equal(ways[1], ends[0]) and not torch.equal(ways[1], ends[1])


def test_without_positive_weights_generation_is_unconditional() -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.4)
    assert torch.equal(run(model, [{CALM: 0, LOUD: 0.0}]), run(model, [None]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mix_in_a_batch_equals_the_mix_alone(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.6)
    asked = [{CALM: 0.4, LOUD: 0.6}, SAD, {LOUD: 0.2, SAD: 0.5, CALM: 0.3}, None]
    together = run(model, asked, 3)
    for i, description in enumerate(asked):
        assert torch.equal(together[i : i + 1], run(model, [description], 3 + i))


@pytest.mark.parametrize(("weights", "rows"), [((0.5, 0.5), 3), ((1, 0), 2), ((0, 0), 1)])
def test_each_prompt_with_a_positive_weight_has_a_stream(weights: tuple[float, float], rows: int) -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.1)
    asked = dict(zip((CALM, LOUD), weights, strict=True))
    assert set(rows_seen(model, lambda: run(model, [asked]))) == {rows}


# --- timelines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", range(1, 60, 7))
def test_windows_with_changes_cover_each_frame_once(total: int) -> None:
    for prompt, window, stride, changes in itertools.product(
        (0, 3, 25), (10, 20), (1, 6, 9), ((), (1,), (5, 6, 30), (3, 25, 26, 58))
    ):
        plan = windows(total, prompt, window, stride, changes)
        done, before = prompt, None
        for (start, known, end), length in zip(plan, lengths(plan), strict=True):
            assert start + known == done and 0 < length <= end - done
            assert end <= min(total, start + window)
            if before is not None:  # it knows the end of the previous window
                assert start >= before.start
                assert known == min(window - stride, done - before.start)
            done, before = done + length, Window(start, known, end)
        assert done == max(prompt, total)
        firsts = {window.start + window.known for window in plan}
        assert {frame for frame in changes if prompt < frame < total} <= firsts
        if not changes:
            assert len({*firsts}) == len(plan) and lengths(plan) == [w.end - w.start - w.known for w in plan]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_timeline_that_changes_nothing_is_the_plain_prompt(layout: str) -> None:
    model = model_of(layout)
    model.set_generation_params(duration=0.6)
    alone, said = run_with_manifests(model, [CALM])
    for timeline in (
        [(0, CALM)],
        ((0, CALM),),
        [(0, CALM), (0.2, CALM)],
        [(0, CALM), (0.3, {CALM: 1, SAD: 0})],
    ):
        tokens, manifests = run_with_manifests(model, [timeline])
        assert torch.equal(tokens, alone)
        assert manifests == said


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_change_affects_only_the_music_after_it(layout: str) -> None:
    model = tiny(melody=layout == "melody", window=0.5)
    model.set_generation_params(duration=0.8)
    alone = run(model, [CALM])
    for frame in (1, 3, 20, 25, 38):
        made = [run(model, [[(0, CALM), (frame / 50, text)]]) for text in (LOUD, SAD)]
        for tokens in made:
            assert tokens.shape == alone.shape
            assert torch.equal(tokens[..., :frame], alone[..., :frame])
        assert not torch.equal(made[0], made[1])


def test_after_a_change_the_music_so_far_is_continued() -> None:
    """The tokens after it continue the last `window - stride` frames under the new prompt."""
    model = tiny(window=2.0)
    model.set_generation_params(use_sampling=False, duration=2.0)
    tokens = run(model, [[(0, CALM), (1.4, LOUD)]])  # frame 70; a window knows 40 frames of the last
    known, asked = tokens[..., 30:70], parse_descriptions([LOUD])
    model.set_generation_params(use_sampling=False, duration=1.4)
    request = parse_request(model.model, model.settings, [LOUD], seed=0)
    request = replace(request, texts=asked, audio_prompt=known, plans=[windows(70, 40, 100, 60)])
    after = torch.stack(list(request_frames(model.model, request)), dim=-1)
    assert torch.equal(after, tokens[..., 70:])


def test_each_sample_of_a_batch_has_its_own_times() -> None:
    for layout in LAYOUTS:
        model = tiny(melody=layout == "melody", window=0.6)
        model.set_generation_params(duration=1.1)
        asked = [
            [(0, CALM), (0.3, LOUD)],
            SAD,
            [(0, LOUD), (0.3, CALM)],
            [(0, None), (0.1, SAD), (0.9, {CALM: 2})],
        ]
        together, manifests = run_with_manifests(model, asked, 3)
        for i, (description, manifest) in enumerate(zip(asked, manifests, strict=True)):
            assert torch.equal(together[i : i + 1], run(model, [description], 3 + i))
            assert torch.equal(model.replay(manifest)[1], together[i : i + 1])


@pytest.mark.parametrize("ending", audio.FORMATS)
def test_a_timeline_replays_from_its_file(ending: str, tmp_path: Path) -> None:
    model = tiny(melody=True, window=1.0)
    model.set_generation_params(duration=1.6, temperature=1.1)
    asked = [[(0, CALM), (0.5, {CALM: 0.25, LOUD: 0.75}), (1.3, None)]]
    told = {
        "melody_wavs": tune(1.3),
        "melody_sample_rate": RATE,
        "prompt": noise(1, 9000),
        "prompt_sample_rate": RATE,
    }
    stream = model.stream(asked, seed=9, negative=SAD, **told)
    wave = torch.cat(list(stream), dim=-1)
    path = audio.write(tmp_path / f"made{ending}", wave[0], RATE, manifest=stream.manifests[0])
    manifest = audio.read_manifest(path)
    assert manifest["text"] == [[0.0, CALM], [0.5, {CALM: 0.25, LOUD: 0.75}], [1.3, ""]]
    assert close(model.replay(manifest)[0], wave)


def test_a_manifest_holds_the_description() -> None:
    for given in (CALM, {CALM: 0.5}, {CALM: 0.2, SAD: 3.0}, [[0.0, CALM], [2.5, {SAD: 0.5}], [3.0, ""]]):
        [timeline] = parse_descriptions([given])
        assert plain(timeline) == given
        assert parse_descriptions([plain(timeline)]) == [timeline]


def test_a_change_within_an_audio_prompt_affects_only_the_continuation() -> None:
    model = model_of("text")
    model.set_generation_params(duration=1.0)
    alone = run(model, [LOUD], prompt=noise(1, 12_800))  # 20 frames
    for seconds in (0.1, 0.4):
        assert torch.equal(run(model, [[(0, CALM), (seconds, LOUD)]], prompt=noise(1, 12_800)), alone)


def test_a_melody_continues_across_a_change() -> None:
    model = tiny(melody=True, window=2.048)
    model.set_generation_params(duration=2.0, extend_stride=2.0)  # a window knows 2 frames of the last
    told = torch.arange(17) % 12
    _, [manifest] = run_with_manifests(model, [[(0, CALM), (1.064, LOUD)]], melody=told)
    grids = {int(start): unpack(grid).tolist() for start, grid in manifest["melody"].items()}
    assert list(grids) == [0, 51]
    assert grids[0] == told.tolist() and grids[51][:3] == [8, 9, 10]  # 51 frames of codes last 7.97 of chroma


def test_a_recurring_text_is_encoded_once() -> None:
    model = tiny(window=0.5)
    model.set_generation_params(duration=1.3)
    with patch.object(model.conditioner.text, "forward", wraps=model.conditioner.text.forward) as encode:
        run(model, [[(0, CALM), (0.3, LOUD), (0.4, CALM), (1.1, {LOUD: 0.5, CALM: 0.5})]])
    assert [call.args[0] for call in encode.call_args_list] == [[CALM], [LOUD]]


def test_progress_counts_the_steps_of_samples_with_different_windows() -> None:
    model, seen = tiny(window=0.5), []
    model.set_generation_params(duration=0.8)
    run(model, [CALM, [(0, CALM), (0.2, SAD)]], on_step=lambda *step: seen.append(step))
    total = count_steps(model.lm, windows(40, 0, 25, 15)) + count_steps(
        model.lm, windows(40, 0, 25, 15, [10])
    )
    assert seen == [(step, total) for step in range(1, total + 1)]


@pytest.mark.parametrize("last", [1, 5, 12, 30, 50])
def test_stopping_samples_with_different_windows_leaves_a_prefix_of_each(last: int) -> None:
    model, stop = tiny(window=0.5), threading.Event()
    model.set_generation_params(duration=0.8)
    asked = [CALM, [(0, CALM), (0.2, SAD)]]
    whole = run(model, asked)
    made = run(model, asked, on_step=lambda done, total: done == last and stop.set(), stop=stop)
    assert made.shape[-1] < 40 and (last < 10 or made.shape[-1])
    assert torch.equal(made, whole[..., : made.shape[-1]])


# --- live -------------------------------------------------------------------------------------------------


def play(model: MusicGen, prompts: object, chunks: int, **more: object) -> tuple[Tensor, Tensor, dict]:
    """Wave, tokens and manifest of a live session stopped after `chunks` chunks."""
    stop = threading.Event()
    music = model.live(prompts, seed=3, stop=stop, **{"chunk_seconds": 0.2, **more})
    made = list(itertools.islice(music, chunks))
    stop.set()
    made += list(music)
    [manifest] = music.manifests
    return torch.cat(made, dim=-1), model.replay(manifest)[1], manifest


@pytest.mark.parametrize("layout", [*LAYOUTS, "stereo"])
def test_a_live_session_has_no_seams_and_equals_its_timeline(layout: str) -> None:
    """Its joined chunks are its tokens decoded at once; `generate` makes the same from its timeline."""
    model = tiny(melody=layout == "melody", channels=2 if layout == "stereo" else 1, window=1.0)
    model.set_generation_params(temperature=1.1)
    asked = [{CALM: 1}] * 3 + [{CALM: 0.5, LOUD: 0.5}] + [LOUD] * 9 + [None] * 99
    wave, tokens, manifest = play(model, iter([CALM, *asked]).__next__, 16)
    assert 150 <= tokens.shape[-1] <= 170  # three windows and more
    assert close(wave, model.generate_audio(tokens))
    said = manifest["text"]
    assert said == [[0.0, CALM], [0.8, {CALM: 0.5, LOUD: 0.5}], [1.0, LOUD], [2.8, ""]]
    model.set_generation_params(temperature=1.1, duration=4.0)
    assert torch.equal(run(model, [said], 3)[..., : tokens.shape[-1]], tokens)


def test_a_live_session_follows_changed_weights() -> None:
    model, faders = tiny(window=1.0), {CALM: 1.0, LOUD: 0.0}
    made = []
    music = model.live(faders, chunk_seconds=0.2, seed=3)
    for chunk in music:
        made.append(chunk)
        if len(made) == 3:
            faders.update({CALM: 0.2, LOUD: 0.8})
        if len(made) == 6:
            break
    [manifest] = music.manifests
    assert manifest["text"] == [[0.0, CALM], [0.6, {CALM: 0.2, LOUD: 0.8}]]
    tokens, calm = model.replay(manifest)[1], play(model, CALM, 6)[1]
    assert torch.equal(tokens[..., :30], calm[..., :30])
    assert not torch.equal(tokens[..., 30:60], calm[..., 30:60])


def test_a_live_session_repeats_its_melody() -> None:
    model = tiny(melody=True, window=1.0)
    told = {"melody_wav": tune(1.7), "melody_sample_rate": RATE}
    wave, tokens, _ = play(model, CALM, 14, **told)
    assert close(wave, model.generate_audio(tokens))
    model.set_generation_params(duration=4.0)
    again = run(model, [CALM], 3, melody=tune(1.7))
    assert torch.equal(again[..., : tokens.shape[-1]], tokens)
    assert not torch.equal(run(model, [CALM], 3)[..., : tokens.shape[-1]], tokens)


def test_a_stopped_live_session_keeps_every_frame() -> None:
    model, stop = tiny(window=1.0), threading.Event()
    made: list[Tensor] = []

    def count(steps: Tensor) -> None:
        made.append(steps)
        if len(made) == 37:
            stop.set()

    music = model.live(CALM, chunk_seconds=0.2, seed=3, stop=stop)
    with hooked(model, count):
        wave = torch.cat(list(music), dim=-1)
    assert len(made) == 37
    [manifest] = music.manifests
    assert manifest["frames"] == 34
    assert close(wave, model.replay(manifest)[0])


@pytest.mark.parametrize("last", [1, 20, 37])
def test_ctrl_c_keeps_the_music_of_a_live_session(last: int, capsys: pytest.CaptureFixture) -> None:
    model = tiny(window=1.0)
    made: list[Tensor] = []

    def interrupt(steps: Tensor) -> None:
        made.append(steps)
        if len(made) == last:
            raise KeyboardInterrupt

    music = model.live(CALM, chunk_seconds=0.2, seed=3)
    with hooked(model, interrupt):
        chunks = list(music)
    assert "the music so far is kept" in capsys.readouterr().err
    [manifest] = music.manifests
    assert manifest["frames"] == max(0, last - 4)
    if last > 4:
        assert close(torch.cat(chunks, dim=-1), model.replay(manifest)[0])


def test_a_live_session_stopped_in_advance_is_empty() -> None:
    model, stop = tiny(), threading.Event()
    stop.set()
    music = model.live(CALM, stop=stop)
    assert list(music) == [] and music.manifests == []


def test_recurring_texts_of_a_live_session_are_encoded_once() -> None:
    model, turns = tiny(window=0.5), itertools.cycle([CALM, LOUD, {CALM: 0.5, LOUD: 0.5}])
    with patch.object(model.conditioner.text, "forward", wraps=model.conditioner.text.forward) as encode:
        list(itertools.islice(model.live(lambda: next(turns), chunk_seconds=0.1, seed=1), 12))
    assert sorted(text for call in encode.call_args_list for text in call.args[0]) == [CALM, LOUD]


def test_the_memory_of_a_live_session_is_bounded() -> None:
    """Only the record for the manifest grows, until `DAY`: here, 1 s."""
    model, names = (
        tiny(melody=True, window=0.5),
        (f"{CALM} {word}" for word in itertools.product(range(9), repeat=5)),
    )
    model.set_generation_params(cfg_coef=1.0)

    def held() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    with patch("mgkit.sessions.DAY", 1):
        told = {"melody_wav": tune(1), "melody_sample_rate": RATE}
        music = model.live(lambda: str(next(names)), chunk_seconds=0.02, seed=1, **told)
        counts = []
        for i, _ in enumerate(itertools.islice(music, 140)):
            if i in (100, 120, 139):
                counts.append(held())
        assert len(music.timeline) <= 2 and music.tokens.shape[-1] == 0 and len(music.chroma) <= 3
        assert counts[-1] <= counts[-2] + 5
        music.close()
    assert music.manifests == []


@torch.no_grad()
def test_streaming_decode_keeps_bounded_buffers() -> None:
    made = model_of("text").codec
    chunks = (torch.randint(CODEC.codebook_size, (1, 4, 10)) for _ in range(50))
    stream = made.decode_stream(chunks)
    for _ in itertools.islice(stream, 40):
        local = stream.gi_frame.f_locals
        assert local["latents"].frames.shape[-1] <= 10 + 2 * made.LOOKAHEAD
        assert local["hidden"].frames.shape[-1] <= 10 + 2 * made.LOOKAHEAD + 2 * made.CONTEXT


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([(0, CALM), (6, LOUD), (3, SAD)], "[0, 6, 3]"),
        ([(0, CALM), (0, LOUD)], "rising"),
        ([(1, CALM), (2, LOUD)], "the first of them 0"),
        ([(-1, CALM), (2, LOUD)], "-1"),
        ([(0, CALM), (math.nan, LOUD)], "nan"),
        ([(0, CALM), ("2", LOUD)], "'2'"),
        ([(False, CALM), (True, LOUD)], "True"),
        ([(0, CALM), (0.4, LOUD)], "longer duration"),
        ([(0, CALM), (9, LOUD)], "longer duration"),
        ([(0, CALM), (0.1, 5)], "holds 5"),
        ([(0, CALM), 6], "timeline|times"),
        ((0, CALM), "times such as"),
        ([], "times such as"),
        ({}, "weights such as"),
        ({CALM: -0.5}, "the weight of 'calm piano' is -0.5"),
        ({CALM: math.inf}, "inf"),
        ({CALM: "1"}, "'1'"),
        ({CALM: True}, "True"),
        ({CALM: None}, "None"),
        ({5: 1}, "holds 5"),
        ({"\ud800": 1}, "Unicode"),
    ],
)
def test_wrong_times_and_weights_are_refused_in_one_sentence(given: object, words: str) -> None:
    model = model_of("text")
    model.set_generation_params(duration=0.4)
    with pytest.raises(ValueError, match=words.replace("[", r"\[")) as caught:
        run(model, [CALM, given])
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompts": 5}, "holds 5"),
        ({"prompts": [(0, CALM), (6, LOUD)]}, "holds"),
        ({"prompts": lambda: {CALM: -1}}, "the weight"),
        ({"prompts": CALM, "seed": -1}, "seed"),
        ({"prompts": CALM, "chunk_seconds": 0}, "chunk_seconds"),
        ({"prompts": CALM, "negative": 5}, "negative"),
        ({"prompts": CALM, "melody_wav": tune(1), "melody_sample_rate": RATE}, "takes no melody"),
    ],
)
def test_wrong_arguments_of_live_are_refused_at_once(more: dict, words: str) -> None:
    model = model_of("text")
    model.set_generation_params()
    with pytest.raises(ValueError, match=words):
        model.live(**more)


def test_a_wrong_prompt_during_a_session_raises_and_its_music_replays() -> None:
    model, faders, made = tiny(window=1.0), {CALM: 1.0}, []
    music = model.live(faders, chunk_seconds=0.2, seed=3)
    with pytest.raises(ValueError, match="the weight of 'calm piano' is -1"):
        for chunk in music:
            made.append(chunk)
            faders[CALM] = -1
    tokens = model.replay(music.manifests[0])[1]
    assert made and tokens.shape[-1] >= 10


def test_a_prompt_applies_from_its_frame_on() -> None:
    [timeline] = parse_descriptions([[(0, CALM), (0.5, LOUD), (1.02, SAD)]])
    assert [next(iter(prompt_at(timeline, frame, 50))) for frame in (0, 24, 25, 50, 51, 999)] == [
        CALM, CALM, LOUD, LOUD, SAD, SAD,
    ]  # fmt: skip

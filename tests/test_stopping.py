"""A run stopped at any moment returns a playable beginning and an accurate manifest."""

import os
import signal
from contextlib import suppress
from threading import Event, Thread

import pytest
import torch
from refusals import FRAMES, STEPS, refusal
from tiny import RATE, tune

import mgkit.musicgen
from mgkit import audio
from mgkit.interrupt import CtrlC


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, whatever started this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c_at(step):
    def on_step(done, total):
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return on_step


def interrupt_call(monkeypatch, module, name, n):
    """Press Ctrl-C during the nth call of the module's method."""
    real, calls = getattr(module, name), []

    def method(*args, **kwargs):
        calls.append(name)
        if len(calls) == n:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, method)


@pytest.fixture
def whole(text):
    return text.generate(["calm", "sad"], return_tokens=True, seed=5)[1]


RETURNED = {"return_tokens": True, "return_manifests": True, "seed": 5}


def assert_begins(whole, wave, tokens, manifests):
    """The wave and the tokens are a playable beginning of the whole, and the manifests agree."""
    frames = tokens.shape[-1]
    assert tokens.shape[:2] == whole.shape[:2] and torch.equal(tokens, whole[..., :frames])
    assert wave.shape == (len(whole), 1, frames * 640)
    assert [manifest["frames"] for manifest in manifests] == [frames] * len(whole)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_ctrl_c_at_any_step_returns_the_music_so_far(text, whole, interruptible, capsys, step):
    wave, tokens, manifests = text.generate(["calm", "sad"], **RETURNED, on_step=ctrl_c_at(step))
    assert_begins(whole, wave, tokens, manifests)
    assert step - 4 <= tokens.shape[-1] <= max(0, step - 3)
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize("call", [1, 2, 5, STEPS])
def test_ctrl_c_inside_the_language_model_returns_the_music_so_far(
    text, whole, interruptible, monkeypatch, call
):
    interrupt_call(monkeypatch, text.lm, "hidden", call)
    wave, tokens, manifests = text.generate(["calm", "sad"], progress=True, **RETURNED)
    assert_begins(whole, wave, tokens, manifests)
    # the step is finished
    assert tokens.shape[-1] == max(0, call - 3)


def test_ctrl_c_while_decoding_does_not_lose_the_music(text, whole, interruptible, monkeypatch):
    interrupt_call(monkeypatch, text.codec, "decode", 1)
    wave, tokens, manifests = text.generate(["calm", "sad"], **RETURNED)
    assert_begins(whole, wave, tokens, manifests)
    assert tokens.shape == whole.shape


@pytest.mark.parametrize("place", ["manifests", "decode_whole", "say_stopped"])
def test_ctrl_c_after_the_last_step_does_not_lose_the_music(text, whole, interruptible, monkeypatch, place):
    real = getattr(mgkit.musicgen, place)

    def interrupted(*args):
        if place != "say_stopped":
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(mgkit.musicgen, place, interrupted)
    wave, tokens, manifests = text.generate(
        ["calm", "sad"], **RETURNED, on_step=ctrl_c_at(STEPS) if place == "say_stopped" else None
    )
    assert_begins(whole, wave, tokens, manifests)
    assert tokens.shape == whole.shape


def test_a_second_ctrl_c_gives_the_music_up(text, interruptible):
    def on_step(done, total):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was ignored")

    with CtrlC() as outer, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert outer.is_set()
        signal.raise_signal(signal.SIGINT)
    tokens = text.generate(["calm"], return_tokens=True, on_step=on_step)[1]
    # KeyboardInterrupt while tokens are made keeps them, too
    assert tokens.shape[-1] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_leaves_other_handlers_and_threads_alone(text):
    before, seen = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        text.generate(["calm"], on_step=ctrl_c_at(3))
        assert seen == [1]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        worker = Thread(target=lambda: seen.append(text.generate(["calm"]).shape[-1]))
        worker.start(), worker.join()
        assert seen[1] == FRAMES * 640
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("place", ["decoder", "language model"])
def test_ctrl_c_yields_the_last_part_of_a_live_session(text, interruptible, monkeypatch, capsys, place, call):
    if place == "decoder":
        interrupt_call(monkeypatch, text.codec.decoder[1], "resume", call)
    else:
        interrupt_call(monkeypatch, text.lm, "hidden", 3 * call)
    session = text.live("calm", chunk_seconds=0.06, seed=5)
    wave = torch.cat([torch.zeros(1, 1, 0), *session], dim=-1)
    assert wave.shape[-1] == 640 * session.tokens.shape[-1] and session.tokens.shape[-1] >= 3 * (call - 1)
    torch.testing.assert_close(wave, text.replay(session.manifests[0])[0], atol=1e-5, rtol=0)
    assert capsys.readouterr().err.count("stopped") == 1


@pytest.mark.parametrize("step", [1, 3, 4, 5, 9, STEPS])
def test_ctrl_c_at_any_step_of_a_stream_yields_the_music_so_far(text, whole, interruptible, step):
    stream = text.stream(["calm", "sad"], seed=5, chunk_seconds=0.06, on_step=ctrl_c_at(step))
    assert_plays(text, whole, stream)
    assert step - 4 <= stream.manifests[0]["frames"] <= max(0, step - 3)


@pytest.mark.parametrize("call", [1, 2])
def test_ctrl_c_inside_the_decoder_of_a_stream_yields_the_music_so_far(
    text, whole, interruptible, monkeypatch, call
):
    interrupt_call(monkeypatch, text.codec.decoder[1], "resume", call)
    stream = text.stream(["calm", "sad"], seed=5, chunk_seconds=0.06)
    assert_plays(text, whole, stream)
    assert stream.manifests[0]["frames"] > 0


def assert_plays(model, whole, stream):
    """The chunks of a stream, joined, are the sound of as many frames as its manifest says."""
    wave = torch.cat([torch.zeros(len(whole), 1, 0), *stream], dim=-1)
    frames = stream.manifests[0]["frames"]
    torch.testing.assert_close(wave, model.generate_audio(whole[..., :frames]), atol=1e-5, rtol=0)


def test_leaving_a_stream_early_keeps_its_manifest(text, whole):
    stream = text.stream(["calm", "sad"], seed=5, chunk_seconds=0.06)
    for chunk in stream:
        assert chunk.shape[:2] == (2, 1)
        break
    else:
        pytest.fail("nothing was yielded")
    assert 0 < stream.manifests[0]["frames"] <= FRAMES


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_a_stop_event_after_any_step_returns_the_music_so_far(text, whole, steps):
    stop = Event()

    def on_step(done, total):
        if done >= steps:
            stop.set()

    if steps == 0:
        stop.set()
    wave, tokens, manifests = text.generate(["calm", "sad"], **RETURNED, on_step=on_step, stop=stop)
    assert_begins(whole, wave, tokens, manifests)
    assert tokens.shape[-1] == max(0, steps - 3)


def test_a_run_stopped_before_its_start_makes_no_step_and_an_empty_wave(text, tmp_path):
    stop, steps = Event(), []
    stop.set()
    wave, tokens, [manifest] = text.generate(
        ["calm"], **RETURNED, stop=stop, on_step=lambda *n: steps.append(n)
    )
    assert wave.shape == (1, 1, 0) and tokens.shape == (1, 4, 0) and steps == []
    assert torch.cat([torch.zeros(1, 1, 0), *text.stream(["calm"], stop=stop)], dim=-1).shape == (1, 1, 0)
    refusal(lambda: audio.write(tmp_path / "a.wav", wave[0], RATE, manifest=manifest), "no samples")
    assert not os.listdir(tmp_path)


def test_a_continuation_stopped_before_its_start_is_the_prompt(text):
    stop = Event()
    stop.set()
    wave, [manifest] = text.generate_continuation(tune(0.1), RATE, ["calm"], stop=stop, return_manifests=True)
    assert wave.shape == (1, 1, round(0.1 * RATE)) and manifest["frames"] == 5


def test_a_stopped_run_can_be_replayed(text):
    _, manifests = text.generate(["calm", "sad"], seed=5, stop=StopAfter(7), return_manifests=True)
    _, tokens = text.replay(manifests[1])
    assert 0 < tokens.shape[-1] < FRAMES


class StopAfter:
    """A stop event that is set from its nth query on."""

    def __init__(self, n):
        self.left = n

    def is_set(self):
        self.left -= 1
        return self.left < 0


def test_an_error_in_a_callback_reaches_the_caller_and_breaks_nothing(text, whole):
    class Mine(Exception):
        pass

    error = Mine("my\nown")

    def on_step(done, total):
        if done == 5:
            raise error

    for run in (
        lambda: text.generate(["calm"], on_step=on_step),
        lambda: text.generate(["calm"], progress=True, on_step=on_step),
        lambda: list(text.stream(["calm"], on_step=on_step)),
    ):
        with pytest.raises(Mine) as caught:
            run()
        assert caught.value is error
    assert torch.equal(text.generate(["calm", "sad"], return_tokens=True, seed=5)[1], whole)


def test_the_progress_bar_is_closed_however_a_run_ends(text, interruptible, capsys):
    import tqdm.auto

    for end in (
        {"on_step": ctrl_c_at(4)},
        {"stop": StopAfter(3)},
        {"on_step": lambda done, total: 1 // (done - 5)},
    ):
        with suppress(ZeroDivisionError):
            text.generate(["calm"], progress=True, **end)
        assert not [bar for bar in tqdm.auto.tqdm._instances if not bar.disable]

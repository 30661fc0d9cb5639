"""The studio in code: controls reach the take, Stop keeps the music so far, errors are shown."""

import base64
import html
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields

import pytest
import soundfile
import torch
from tiny import RATE, tiny, tune

from mgkit import MusicGen, audio, hub
from mgkit.lab import controls, sources, studio, takes
from mgkit.lab.controls import AUDIO, MELODY, OTHER, TEXT
from mgkit.lab.interrupts import InterruptHandler
from mgkit.lab.sources import Source
from mgkit.lab.studio import Studio
from mgkit.lab.takes import Sound
from mgkit.settings import SETTINGS_HELP, Settings

SHORT = {"duration": 0.5, "seed": 3, "top_k": 5}


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return tiny(melody=True)


@pytest.fixture
def panel(model) -> Studio:
    return Studio(model)


def texts(widget) -> str:
    """All text of a widget and its children."""
    own = [getattr(widget, name, "") for name in ("value", "description", "placeholder")]
    inside = [texts(child) for child in getattr(widget, "children", ())]
    return html.unescape(" ".join([*(text for text in own if isinstance(text, str)), *inside]))


# --- controls reach the take ------------------------------------------------------------------------------


def test_a_take_equals_the_models_output_for_the_same_request(panel, model):
    take = panel.generate(prompt="calm piano", **SHORT)
    model.set_generation_params(duration=0.5, top_k=5)
    wave, [manifest] = model.generate(["calm piano"], seed=3, return_manifests=True)
    assert take.manifest == manifest
    assert torch.allclose(take.wave, wave[0], atol=1e-4)


def test_every_setting_has_a_control_with_its_default_and_help_text(panel):
    text = texts(panel)
    for field in fields(Settings):
        control = panel.controls[field.name]
        # the panel has a shorter default than the 30 s of the API
        if field.name != "duration":
            assert controls.read_value(control) == field.default
            assert SETTINGS_HELP[field.name] in text


def test_every_control_reaches_the_take(panel):
    asked = {
        "use_sampling": True,
        "top_k": 7,
        "top_p": 0.5,
        "temperature": 0.8,
        "duration": 0.7,
        "cfg_coef": 2.0,
        "cfg_coef_beta": 1.5,
        "two_step_cfg": True,
        "extend_stride": 6.0,
    }
    assert set(asked) == {field.name for field in fields(Settings)}
    others = {"prompt": "happy flute", "negative": "drums", "seed": 11, "melody": (tune(1.0), RATE)}
    take = panel.generate(**asked, **others)
    assert take.manifest["settings"] == asked
    assert [take.manifest[name] for name in ("text", "negative", "seed")] == ["happy flute", "drums", 11]
    assert set(take.manifest["melody"]) == {"0"}

    continued = panel.generate(
        audio_prompt=(tune(2.0), RATE), audio_prompt_seconds=0.3, duration=0.7, cfg_coef_beta=None
    )
    assert continued.seam == pytest.approx(0.3, abs=0.02)
    assert continued.manifest["melody"] == {}
    reached = {*asked, *others, "audio_prompt", "audio_prompt_seconds"}
    # each of these has a test of its own
    assert set(panel.controls.named) - reached == {"model", "separate"}


def test_separate_removes_stems_from_the_melody(panel, monkeypatch):
    separated = []
    monkeypatch.setattr(
        takes, "demucs", lambda: lambda wave, rate: separated.append(wave) or tune(1.0, (69, 71))
    )
    plain = panel.generate(melody=(tune(1.0), RATE), **SHORT)
    taken = panel.generate(separate=True)
    assert len(separated) == 1
    assert plain.manifest["melody"] != taken.manifest["melody"]


def test_a_kept_seed_repeats_the_take_and_a_free_seed_changes_it(panel):
    first, again = panel.generate(**SHORT), panel.generate()
    assert first.manifest == again.manifest
    free = {panel.generate(seed=None).manifest["seed"] for _ in range(4)}
    assert len(free) > 1
    assert panel.controls["seed"].value in free


def test_the_settings_of_a_shared_model_do_not_change(panel, model):
    model.set_generation_params(duration=9, top_k=99)
    panel.generate(**SHORT)
    assert (model.settings.duration, model.settings.top_k) == (9, 99)


def test_another_model_loads_in_the_worker(monkeypatch):
    threads, other = [], tiny()

    def load(name):
        threads.append((name, threading.current_thread()))
        return other

    monkeypatch.setattr(MusicGen, "get_pretrained", staticmethod(load))
    panel = Studio()
    assert threads == []
    panel.generate(**SHORT)
    panel.generate()
    panel.generate(model="somewhere/else")
    assert panel.controls["model"].value == OTHER
    assert [name for name, _ in threads] == ["nano", "somewhere/else"]
    assert threading.main_thread() not in [thread for _, thread in threads]


# --- the gallery ------------------------------------------------------------------------------------------


def test_no_take_replaces_another(panel):
    takes = [panel.generate(prompt=text, **SHORT) for text in ("calm", "calm", "<b>loud</b>")]
    assert panel.takes == takes
    cards = [card.value for card in panel.gallery.children]
    assert len(cards) == 3 and len(set(cards)) == 3
    assert len({take.file_name for take in takes}) == 3
    assert "&lt;b&gt;loud" in cards[0] and "<b>loud" not in cards[0]


def test_the_downloaded_file_equals_the_take_and_replays(panel, model, tmp_path):
    take = panel.generate(prompt="calm piano", **SHORT)
    [card] = [card.value for card in panel.gallery.children]
    [name, data] = re.search(r'download="([^"]+)" href="data:audio/wav;base64,([^"]+)"', card).groups()
    path = tmp_path / name
    path.write_bytes(base64.b64decode(data))
    wave, rate = audio.read(path)
    assert (wave.shape, rate) == (take.wave.shape, take.rate)
    again, _ = model.replay(audio.read_manifest(path))
    assert torch.allclose(again[0], take.wave, atol=1e-4)


def test_two_takes_are_compared_on_one_scale(panel):
    panel.generate(**SHORT)
    assert panel.comparison.layout.display == "none"
    panel.generate(seed=4)
    assert panel.comparison.layout.display != "none"
    # drawn only when opened
    assert panel.comparison.players.value == ""
    panel.comparison.selected_index = 0
    assert panel.comparison.players.value.count("<audio") == 2
    before = panel.comparison.players.value
    panel.generate(seed=5)
    assert [menu.value for menu in panel.comparison.menus] == [1, 3]
    assert panel.comparison.players.value != before


# --- stopping ---------------------------------------------------------------------------------------------


def started(panel: Studio) -> None:
    """Start a long run and return after its first steps."""
    # long enough not to end by itself, however late it is stopped
    panel.set(duration=600, seed=1)
    assert panel.start()
    deadline = time.monotonic() + 60
    while (
        panel.progress.bar.value < 0.0005 and time.monotonic() < deadline
    ):  # 15 of some 30000 steps; a frame takes four
        time.sleep(0.01)
    assert panel.progress.bar.value >= 0.0005


def test_stop_ends_within_a_step_and_keeps_the_music_so_far(panel, model):
    steps = []
    stop = threading.Event()

    def on_step(done, total):
        steps.append(done)
        if done == 20:
            stop.set()

    panel.set(duration=5, seed=1)
    take = takes.generate_take(model, panel.controls.request(), on_step=on_step, stop=stop)
    assert steps[-1] == 20
    delay = model.lm.config.codebooks - 1
    assert take.manifest["frames"] == 20 - delay
    assert take.wave.shape[-1] == take.manifest["frames"] * RATE // model.frame_rate
    assert take.stopped


def test_after_stop_the_take_plays_and_the_next_run_is_complete(panel):
    started(panel)
    assert panel.generate_button.disabled and not panel.stop_button.disabled
    panel.stop()
    panel.wait()
    [take] = panel.takes
    assert take.stopped and take.wave.shape[-1] > 0 and "<audio" in take._repr_html_()
    assert "kept" in panel.progress.status.value
    assert not panel.generate_button.disabled and panel.stop_button.disabled
    assert not panel.generate(**SHORT).stopped


def test_ctrl_c_while_waiting_stops_the_run_and_keeps_the_take(panel):
    # SIGINT is ignored in tests started by a shell in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started(panel)
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        panel.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert panel.takes[0].stopped


class Loop:
    """The event loop of a kernel: callbacks run when the test says that the kernel is idle."""

    def __init__(self):
        self.callbacks = []

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def call_later(self, _delay, callback):
        self.callbacks.append(callback)

    def run(self):
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


@pytest.fixture
def sigint():
    """SIGINT ignored, as by an idle kernel; restored afterwards."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield lambda: signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_the_idle_kernel_stops_the_run_and_leaves_no_handler(panel, sigint):
    loop = Loop()
    panel._interrupts = InterruptHandler(panel.stop, loop)
    started(panel)
    assert sigint() is signal.SIG_IGN
    # during a cell, the kernel's own handler stays
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loop.run()
    assert sigint() is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.run()
    os.kill(os.getpid(), signal.SIGINT)
    panel.wait()
    assert panel.takes[0].stopped
    loop.run()
    assert sigint() is signal.SIG_IGN


def test_an_interrupt_stops_all_active_runs_and_the_last_release_restores_the_handler(sigint):
    loop, calls = Loop(), []
    first, second = (InterruptHandler(lambda name=name: calls.append(name), loop) for name in "ab")
    for handler in (first, second, first):
        handler.activate()
        loop.run()
    os.kill(os.getpid(), signal.SIGINT)
    assert calls == ["b", "a"]
    first.release()
    loop.run()
    os.kill(os.getpid(), signal.SIGINT)
    assert calls == ["b", "a", "b"]
    second.release()
    loop.run()
    assert sigint() is signal.SIG_IGN
    # and it works again
    first.activate()
    loop.run()
    os.kill(os.getpid(), signal.SIGINT)
    assert calls[-1] == "a"
    first.release()
    loop.run()
    assert sigint() is signal.SIG_IGN


def test_a_run_that_ends_before_the_kernel_is_idle_installs_no_handler(sigint):
    loop = Loop()
    handler = InterruptHandler(lambda: None, loop)
    handler.activate()
    handler.release()
    loop.run()
    assert sigint() is signal.SIG_IGN and not loop.callbacks


def test_twenty_clicks_start_one_run(panel):
    panel.set(duration=3, seed=1)
    clicks = [panel.generate_button.click() or panel.busy for _ in range(20)]
    panel.wait()
    assert all(clicks)
    assert len(panel.takes) == 1


# --- errors -----------------------------------------------------------------------------------------------


def test_a_mistake_is_shown_in_one_line_and_the_next_run_succeeds(panel):
    mistakes = [
        ({"top_k": -1}, "top_k is -1"),
        ({"duration": -2.0}, "duration is -2"),
        ({"cfg_coef_beta": "much"}, "cfg_coef_beta is 'much'"),
        ({"duration": 0.5, "cfg_coef_beta": "2"}, "cfg_coef_beta weighs the text against a melody"),
    ]
    for values, sentence in mistakes:
        panel.set(**SHORT, cfg_coef_beta=None)
        for name, value in values.items():
            # as in the browser, without the validation of `set`
            panel.controls[name].value = value
        panel.generate_button.click()
        panel.wait()
        assert sentence in html.unescape(panel.message.value)
        assert panel.message.value.count("\n") == 0
        assert not panel.generate_button.disabled
    assert panel.takes == []
    panel.generate(**SHORT, cfg_coef_beta=None)
    assert panel.message.value == ""


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"tempo": 120}, "there is no control 'tempo'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"seed": 1.5}, "the seed is 1.5"),
        ({"melody": "no/such/file.wav"}, "there is no file 'no/such/file.wav'"),
        ({"audio_prompt": __file__}, "is not audio"),
        (
            {"audio_prompt": (tune(1.0), RATE), "audio_prompt_seconds": 0.0, "duration": 2},
            "audio_prompt_seconds is 0",
        ),
        (
            {"audio_prompt": (tune(3.0), RATE), "audio_prompt_seconds": 3.0, "duration": 2},
            "set a longer duration",
        ),
        ({"melody": (tune(1.0), RATE), "audio_prompt": (tune(1.0), RATE)}, "give one of them"),
        ({"model": "smal"}, "did you mean 'small'"),
        ({"model": ""}, "give the folder of a model"),
    ],
)
def test_a_call_raises_the_error_the_panel_would_show(panel, values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        panel.generate(**values)
    assert not panel.busy


def test_unexpected_errors_are_shown_too(panel, monkeypatch):
    def broken(*_args, **_kwargs):
        raise KeyError("<x>")

    monkeypatch.setattr(studio, "generate_take", broken)
    with pytest.raises(KeyError):
        panel.generate(**SHORT)
    assert "KeyError: &#x27;&lt;x&gt;&#x27;" in panel.message.value
    assert not panel.busy


# --- sounds -----------------------------------------------------------------------------------------------


def encoded(form: str) -> bytes:
    """One second of a tune, encoded in this format."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tune(1.0)[0].numpy(), RATE, format=form)
    return buffer.getvalue()


def uploads(name: str, content: bytes) -> dict:
    """Value of an upload widget in ipywidgets 7 and 8."""
    new = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    return {7: {name: {"metadata": {"name": name}, "content": content}}, 8: (new,)}


class Uploaded:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("version", [7, 8])
@pytest.mark.parametrize("form", ["WAV", "MP3", "OGG", "FLAC"])
def test_an_upload_becomes_the_sound(form, version):
    source = Source("melodies")
    source.choice.value = sources.UPLOAD
    source.uploader = Uploaded(uploads(f"a.{form.lower()}", encoded(form))[version])
    source._on_upload()
    assert source.sound.rate == RATE
    # the tolerance is for the padding of MP3
    assert source.sound.wave.shape[-1] == pytest.approx(RATE, abs=2500)
    assert "<audio" in source.view.value


def test_a_text_file_is_rejected_with_a_message(panel):
    source = panel.controls["melody"]
    panel.set(melody="scarborough fair")
    source.upload("notes.txt", b"do re mi")
    assert source.sound is None
    assert "'notes.txt' is not audio" in source.problem
    assert not panel.start()
    assert "notes.txt" in html.unescape(panel.message.value)


def test_the_clips_that_ship_can_be_chosen_and_played():
    source = Source("melodies", "recordings")
    assert len(source.clips) == 10
    for title in source.clips:
        source.choose(title)
        assert source.sound.name == title
        assert "<audio" in source.view.value


def test_a_recording_becomes_the_sound():
    source = Source("melodies")
    source.choice.value = sources.RECORD
    assert source.sound is None
    assert source.recorder in source._row.children
    source.recorder.wave = tune(0.5)
    assert isinstance(source.sound, Sound)
    assert source.sound.rate == source.recorder.rate


def test_removing_one_condition_keeps_the_other(panel):
    panel.set(audio_prompt=(tune(1.0), RATE), melody=None)
    assert panel.controls.start_from.value == AUDIO
    panel.set(audio_prompt=None)
    assert panel.controls.start_from.value == TEXT


def test_the_panel_shows_the_chosen_conditions(panel):
    assert panel.controls._conditions.children == ()
    panel.controls.start_from.value = MELODY
    assert panel.controls["melody"] in panel.controls._conditions.children
    panel.controls.start_from.value = AUDIO
    assert panel.controls["audio_prompt"] in panel.controls._conditions.children
    panel.controls.examples.value = controls.example_prompts()[2]
    assert panel.controls["prompt"].value == controls.example_prompts()[2]


# --- time, memory, licence --------------------------------------------------------------------------------


def test_time_is_unknown_before_the_first_run_and_estimated_after(panel):
    assert "time: unknown until the first run" in panel.facts.value
    panel.generate(duration=2, seed=1)
    assert re.search(r"time: about \d+ s", panel.facts.value)


def test_memory_estimates_agree_before_and_after_loading():
    loaded = MusicGen.get_pretrained("nano", device="cpu")
    before, after = hub.memory("nano", 0), loaded.model.memory(0)
    assert before == pytest.approx(after, rel=0.02)
    assert loaded.model.memory(10) > after


def test_memory_of_a_published_model_follows_from_its_shape():
    from mgkit.lm import LM, LMConfig

    with torch.device("meta"):
        small = sum(parameter.numel() for parameter in LM(LMConfig()).parameters())
    assert hub.memory("small", 0) == 4 * (small + hub.T5_AND_CODEC)
    assert hub.memory("facebook/musicgen-small", 0) == hub.memory("small", 0)
    estimates = [hub.memory(name, 8) for name in hub.NAMES]
    assert all(estimates)
    assert hub.memory("somebody/else", 8) is None
    assert hub.memory("", 8) is None


def test_the_licence_is_shown_before_a_run():
    panel = Studio()
    assert hub.MIT in panel.facts.value
    panel.set(model="small")
    assert hub.CC_BY_NC in html.unescape(panel.facts.value)


def test_the_card_lists_only_settings_that_differ_from_the_defaults(panel):
    panel.generate(**SHORT)
    [card] = [card.value for card in panel.gallery.children]
    assert "top_k 5" in card
    assert not any(f"{name} " in card for name in set(asdict(Settings())) - {"top_k", "duration"})


def test_the_app_names_the_missing_package():
    code = "import sys; sys.modules['voila.app'] = None; from mgkit.__main__ import main; "
    code += "sys.exit(main(['app']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["mgkit: the app needs the package voila.app: pip install voila"]

"""What the panel promises, by plain calls: what it asks for is what is made, Stop keeps, nothing overwrites or raises."""

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
from mgkit.generate import Settings
from mgkit.lab import studio
from mgkit.lab.studio import MELODY, OTHER, START, Sound, Source, Studio

SHORT = {"duration": 0.5, "seed": 3, "top_k": 5}


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return tiny(melody=True)


@pytest.fixture
def panel(model) -> Studio:
    return Studio(model)


def texts(widget) -> str:
    """All that a widget and what is in it says."""
    own = [getattr(widget, name, "") for name in ("value", "description", "placeholder")]
    inside = [texts(child) for child in getattr(widget, "children", ())]
    return html.unescape(" ".join([*(text for text in own if isinstance(text, str)), *inside]))


# --- what is asked is what is made --------------------------------------------------------------------------------


def test_a_take_is_what_the_model_makes_of_the_same_request(panel, model):
    take = panel.generate(prompt="calm piano", **SHORT)
    model.set_generation_params(duration=0.5, top_k=5)
    wave = model.generate(["calm piano"], seed=3)
    assert take.manifest == model.manifests[0]
    assert torch.allclose(take.wave, wave[0], atol=1e-4)


def test_every_setting_of_the_command_line_has_a_control_with_its_words_and_its_default(panel):
    said = texts(panel)
    for field in fields(Settings):
        control = panel.controls[field.name]
        if field.name != "duration":  # 30 s by name, and shorter in a panel
            assert studio._value(field, control) == field.default
            assert field.metadata["help"] in said


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

    start = panel.generate(start=(tune(2.0), RATE), start_seconds=0.3, duration=0.7, cfg_coef_beta=None)
    assert start.seam == pytest.approx(0.3, abs=0.02)
    assert start.manifest["melody"] == {}
    reached = {*asked, *others, "start", "start_seconds"}
    assert set(panel.controls) - reached == {"model", "separate"}  # each has a test of its own


def test_separate_takes_stems_out_of_the_melody(panel, monkeypatch):
    heard = []
    monkeypatch.setattr(
        studio, "demucs", lambda: lambda wave, rate: heard.append(wave) or tune(1.0, (69, 71))
    )
    plain = panel.generate(melody=(tune(1.0), RATE), **SHORT)
    taken = panel.generate(separate=True)
    assert len(heard) == 1
    assert plain.manifest["melody"] != taken.manifest["melody"]


def test_a_kept_seed_makes_the_same_take_and_a_free_one_another(panel):
    first, again = panel.generate(**SHORT), panel.generate()
    assert first.manifest == again.manifest
    free = {panel.generate(seed=None).manifest["seed"] for _ in range(4)}
    assert len(free) > 1
    assert panel.controls["seed"].value in free  # and it can be read, and kept


def test_the_settings_of_a_shared_model_stay_its_own(panel, model):
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
    assert threads == []  # nothing before it is needed
    panel.generate(**SHORT)
    panel.generate()  # loaded already
    panel.generate(model="somewhere/else")
    assert panel.controls["model"].value == OTHER
    assert [name for name, _ in threads] == ["nano", "somewhere/else"]
    assert threading.main_thread() not in [thread for _, thread in threads]


# --- the gallery --------------------------------------------------------------------------------------------------


def test_no_take_replaces_another(panel):
    takes = [panel.generate(prompt=text, **SHORT) for text in ("calm", "calm", "<b>loud</b>")]
    assert panel.takes == takes
    cards = [card.value for card in panel.gallery.children]
    assert len(cards) == 3 and len(set(cards)) == 3
    assert len({take.file_name for take in takes}) == 3
    assert "&lt;b&gt;loud" in cards[0] and "<b>loud" not in cards[0]


def test_the_download_is_the_take_and_replays(panel, model, tmp_path):
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
    assert panel.compare.layout.display == "none"
    panel.generate(seed=4)
    assert panel.compare.layout.display != "none"
    assert panel.both.value == ""  # nothing is drawn that nobody opened
    panel.compare.selected_index = 0
    assert panel.both.value.count("<audio") == 2
    before = panel.both.value
    panel.generate(seed=5)
    assert [menu.value for menu in panel.pair] == [1, 3]
    assert panel.both.value != before


# --- stopping -----------------------------------------------------------------------------------------------------


def started(panel: Studio) -> None:
    """Starts a long run and returns once it has made something."""
    panel.set(duration=600, seed=1)  # so long that it does not end by itself, however late it is stopped
    assert panel.start()
    deadline = time.monotonic() + 60
    while (
        panel.bar.value < 0.0005 and time.monotonic() < deadline
    ):  # 15 of some 30000 steps; a frame takes four
        time.sleep(0.01)
    assert panel.bar.value >= 0.0005


def test_stop_ends_within_a_step_and_keeps_what_was_made(panel, model):
    steps = []
    stop = threading.Event()

    def on_step(done, total):
        steps.append(done)
        if done == 20:
            stop.set()

    panel.set(duration=5, seed=1)
    take = studio.make(model, panel._request(), on_step=on_step, stop=stop)
    assert steps[-1] == 20
    delay = model.lm.config.codebooks - 1
    assert take.manifest["frames"] == 20 - delay
    assert take.wave.shape[-1] == take.manifest["frames"] * RATE // model.frame_rate
    assert take.stopped


def test_after_stop_the_take_plays_and_the_next_run_is_whole(panel):
    started(panel)
    assert panel.go.disabled and not panel.halt.disabled
    panel.stop()
    panel.wait()
    [take] = panel.takes
    assert take.stopped and take.wave.shape[-1] > 0 and "<audio" in take._repr_html_()
    assert "kept" in panel.status.value
    assert not panel.go.disabled and panel.halt.disabled
    assert not panel.generate(**SHORT).stopped


def test_ctrl_c_while_waiting_stops_the_run_and_keeps_it(panel):
    # a shell that starts the tests in the background has them ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started(panel)
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        panel.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert panel.takes[0].stopped


def test_twenty_clicks_make_one_run(panel):
    panel.set(duration=3, seed=1)
    clicks = [panel.go.click() or panel.busy for _ in range(20)]
    panel.wait()
    assert all(clicks)
    assert len(panel.takes) == 1


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_mistake_is_one_sentence_and_the_next_run_is_fine(panel):
    mistakes = [
        ({"top_k": -1}, "top_k is -1"),
        ({"duration": -2.0}, "duration is -2"),
        ({"cfg_coef_beta": "much"}, "cfg_coef_beta is 'much'"),
        ({"duration": 0.5, "cfg_coef_beta": "2"}, "cfg_coef_beta weighs the text against a melody"),
    ]
    for values, sentence in mistakes:
        panel.set(**SHORT, cfg_coef_beta=None)
        for name, value in values.items():
            panel.controls[name].value = value  # as a hand does, without the checks of a call
        panel.go.click()
        panel.wait()
        assert sentence in html.unescape(panel.message.value)
        assert panel.message.value.count("\n") == 0
        assert not panel.go.disabled
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
        ({"start": __file__}, "is not audio"),
        ({"start": (tune(1.0), RATE), "start_seconds": 0.0, "duration": 2}, "seconds of it is 0"),
        ({"start": (tune(3.0), RATE), "start_seconds": 3.0, "duration": 2}, "ask for a longer duration"),
        ({"melody": (tune(1.0), RATE), "start": (tune(1.0), RATE)}, "give one of them"),
        ({"model": "smal"}, "did you mean 'small'"),
        ({"model": ""}, "give the folder of a model"),
    ],
)
def test_a_call_raises_what_the_panel_would_say(panel, values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        panel.generate(**values)
    assert not panel.busy


def test_what_nobody_foresaw_is_said_as_well(panel, monkeypatch):
    def broken(*_args, **_kwargs):
        raise KeyError("<x>")

    monkeypatch.setattr(studio, "make", broken)
    with pytest.raises(KeyError):
        panel.generate(**SHORT)
    assert "KeyError: &#x27;&lt;x&gt;&#x27;" in panel.message.value
    assert not panel.busy


# --- sounds -------------------------------------------------------------------------------------------------------


def encoded(form: str) -> bytes:
    """A tune of a second as a file of that format."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tune(1.0)[0].numpy(), RATE, format=form)
    return buffer.getvalue()


def uploads(name: str, content: bytes) -> dict:
    """The values of an upload in ipywidgets 7 and 8."""
    new = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    return {7: {name: {"metadata": {"name": name}, "content": content}}, 8: (new,)}


class Uploaded:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("version", [7, 8])
@pytest.mark.parametrize("form", ["WAV", "MP3", "OGG", "FLAC"])
def test_an_upload_becomes_the_sound(form, version):
    source = Source("melodies")
    source.choice.value = studio.UPLOAD
    source.uploader = Uploaded(uploads(f"a.{form.lower()}", encoded(form))[version])
    source._uploaded()
    assert source.sound.rate == RATE
    assert source.sound.wave.shape[-1] == pytest.approx(RATE, abs=2500)  # an MP3 has padding
    assert "<audio" in source.view.value


def test_a_text_file_is_refused_with_words_and_leaves_no_sound(panel):
    source = panel.controls["melody"]
    panel.set(melody="scarborough fair")
    source.upload("notes.txt", b"do re mi")
    assert source.sound is None
    assert "'notes.txt' is not audio" in source.problem
    assert not panel.start()
    assert "notes.txt" in html.unescape(panel.message.value)


def test_the_sounds_that_ship_can_be_chosen_and_heard():
    source = Source("melodies", "recordings")
    assert len(source.clips) == 10
    for title in source.clips:
        source.choose(title)
        assert source.sound.name == title
        assert "<audio" in source.view.value


def test_a_recording_becomes_the_sound():
    source = Source("melodies")
    source.choice.value = studio.RECORD
    assert source.sound is None
    assert source.recorder in source._row.children
    source.recorder.wave = tune(0.5)
    assert isinstance(source.sound, Sound)
    assert source.sound.rate == source.recorder.rate


def test_leaving_one_sound_out_leaves_the_other(panel):
    panel.set(start=(tune(1.0), RATE), melody=None)
    assert panel.way.value == START
    panel.set(start=None)
    assert panel.way.value == studio.ALONE


def test_what_is_chosen_is_what_is_shown(panel):
    assert panel._given.children == ()
    panel.way.value = MELODY
    assert panel.controls["melody"] in panel._given.children
    panel.way.value = START
    assert panel.controls["start"] in panel._given.children
    panel.examples.value = studio.examples()[2]
    assert panel.controls["prompt"].value == studio.examples()[2]


# --- what is known before -----------------------------------------------------------------------------------------


def test_time_is_unknown_before_the_first_run_and_a_number_after(panel):
    assert "time: unknown until the first run" in panel.facts.value
    panel.generate(duration=2, seed=1)
    assert re.search(r"time: about \d+ s", panel.facts.value)


def test_memory_is_told_the_same_before_and_after_loading():
    loaded = MusicGen.get_pretrained("nano", device="cpu")
    before, after = studio.memory("nano", 0), studio.memory("nano", 0, loaded)
    assert before == pytest.approx(after, rel=0.02)
    assert studio.memory("nano", 10, loaded) > after


def test_memory_of_a_published_model_is_that_of_its_shape():
    from mgkit.lm import LM, LMConfig

    with torch.device("meta"):
        small = sum(parameter.numel() for parameter in LM(LMConfig()).parameters())
    assert studio.memory("small", 0) == 4 * (small + studio.T5_AND_CODEC)
    assert studio.memory("facebook/musicgen-small", 0) == studio.memory("small", 0)
    known = [studio.memory(name, 8) for name in hub.NAMES]
    assert all(known)
    assert studio.memory("somebody/else", 8) is None
    assert studio.memory("", 8) is None


def test_the_licence_is_said_before_a_run():
    panel = Studio()
    assert hub.MIT in panel.facts.value
    panel.set(model="small")
    assert hub.CC_BY_NC in html.unescape(panel.facts.value)


def test_defaults_of_the_card_are_not_repeated(panel):
    panel.generate(**SHORT)
    [card] = [card.value for card in panel.gallery.children]
    assert "top_k 5" in card
    assert not any(f"{name} " in card for name in set(asdict(Settings())) - {"top_k", "duration"})


def test_the_app_says_what_it_lacks():
    code = "import sys; sys.modules['voila.app'] = None; from mgkit.__main__ import main; sys.exit(main(['app']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["mgkit: the app needs the package voila.app: pip install voila"]

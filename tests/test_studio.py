"""The studio in code: controls reach the take, Stop keeps the music so far, errors are shown."""

import html
import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict, fields, replace

import pytest
import soundfile
import torch
from tiny import RATE, tiny, tune

from mgkit import MusicGen, audio, hub
from mgkit.lab import example_chips, run_panel, shelf, studio, takes
from mgkit.lab.controls import AUDIO, MELODY, OTHER, TEXT
from mgkit.lab.interrupts import InterruptHandler
from mgkit.lab.sources import OWN, Source, clips
from mgkit.lab.studio import Studio
from mgkit.lab.takes import Sound
from mgkit.settings import SETTINGS_HELP, Settings

SHORT = {"duration": 0.5, "seed": 3, "top_k": 5}


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return tiny(melody=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Takes are written to the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
            assert control.value == field.default
            assert SETTINGS_HELP[field.name] in text


def test_every_control_reaches_the_take(panel):
    asked = {
        "use_sampling": True,
        "top_k": 7,
        "top_p": 0.5,
        "min_p": 0.1,
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
    earlier = panel.generate(audio_prompt_end=1.0)
    assert earlier.manifest["prompt"] != continued.manifest["prompt"]
    reached = {*asked, *others, "audio_prompt", "audio_prompt_seconds", "audio_prompt_end"}
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


def test_a_typed_seed_is_kept_and_the_dice_draw_new_ones(panel):
    panel.set(duration=0.3)
    # as the browser does
    panel.controls["seed"].value = 42
    assert [panel.generate().manifest["seed"] for _ in range(2)] == [42, 42]
    panel.controls.seed.dice.click()
    drawn = panel.controls["seed"].value
    # the number shown is the one used, and each take after it has its own
    seeds = [panel.generate().manifest["seed"] for _ in range(3)]
    assert seeds[0] == drawn != 42
    assert len(set(seeds)) == 3


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


# --- takes ------------------------------------------------------------------------------------------------


def test_no_take_replaces_another(panel):
    takes = [panel.generate(prompt=text, **SHORT) for text in ("calm", "calm", "loud")]
    assert panel.takes == takes
    assert [item["number"] for item in panel.cards.items] == [1, 2, 3]
    assert len({take.file_name for take in takes}) == len({take.path for take in takes}) == 3


def test_a_download_equals_the_take_and_replays(panel, model, tmp_path):
    take = panel.generate(prompt="calm piano", **SHORT)
    for extension in (".wav", ".flac", ".mp3"):
        path = tmp_path / f"download{extension}"
        path.write_bytes(shelf.encode(take, extension))
        wave, rate = audio.read(path)
        assert rate == take.rate
        assert wave.shape[-1] == pytest.approx(take.wave.shape[-1], abs=0 if extension != ".mp3" else 3000)
        again, _ = model.replay(audio.read_manifest(path))
        assert torch.allclose(again[0], take.wave, atol=1e-4)


def test_one_zip_file_has_all_takes(panel, tmp_path):
    with pytest.raises(ValueError, match="no takes"):
        shelf.archive(panel.takes, ".wav")
    takes = [panel.generate(**{**SHORT, "seed": seed}) for seed in (1, 2)]
    sent = []
    panel.cards.send = lambda content, buffers=None: sent.append((content, buffers))
    panel.cards._on_browser(None, {"kind": "download_all", "value": ".flac"}, [])
    [(content, [data])] = sent
    assert content["name"] == "takes-flac.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.namelist() == [f"{take.file_name}.flac" for take in takes]
        assert audio.decode(file.read(file.namelist()[0]), "a")[0].shape == takes[0].wave.shape


def test_the_page_weight_of_a_take_is_its_flac(panel):
    """Two kilobytes of facts and waveform; the sound comes once, in binary, when it is asked for."""
    take = panel.generate(duration=4, seed=1, prompt="calm piano", top_k=5)
    assert len(str(panel.cards.items)) < 2500
    sent = []
    panel.cards.send = lambda content, buffers=None: sent.append((content, buffers))
    panel.cards._on_browser(None, {"kind": "sound", "number": take.number}, [])
    [(_, [flac])] = sent
    assert flac == audio.encode(take.wave, take.rate, ".flac")


def test_another_studio_finds_the_takes_again(panel, model):
    made = [panel.generate(prompt=text, **SHORT) for text in ("calm", "<b>loud</b>")]
    panel.star(made[0])
    panel.rename(made[1], "  My tune ")
    found = Studio(model)
    for old, new in zip(made, found.takes, strict=True):
        names = ("number", "manifest", "seam", "source", "elapsed", "name", "starred", "path", "code")
        stored = {**old.manifest, "strategy": "clip"}
        assert [getattr(new, name) for name in names] == [
            stored if name == "manifest" else getattr(old, name) for name in names
        ]
        assert torch.allclose(new.wave, old.wave.clamp(-1, 1), atol=1e-4)
    assert found.takes[1].title == "2 · My tune"
    # the next one replaces none
    assert found.generate(**SHORT).number == 3
    assert panel.generate(**SHORT).number == 4


def test_a_deleted_take_comes_back(panel, model):
    takes = [panel.generate(**{**SHORT, "seed": seed}) for seed in (1, 2, 3)]
    panel.delete(takes[1])
    assert [item["number"] for item in panel.cards.items] == [1, 3]
    assert "Take 2" in panel.cards.undo
    assert [take.number for take in Studio(model).takes] == [1, 3]
    panel.undo()
    assert panel.takes == takes and panel.cards.undo == ""
    assert [take.number for take in Studio(model).takes] == [1, 2, 3]
    # nothing is left to undo
    panel.undo()


def test_starting_over_sets_takes_aside_and_inputs_to_their_start(panel, model):
    takes = [panel.generate(**{**SHORT, "seed": seed}) for seed in (1, 2)]
    panel.set(melody=Sound("my voice", tune(1), RATE), negative="drums")
    panel.start_over()
    assert panel.takes == Studio(model).takes == [] and "2 takes" in panel.cards.undo
    fresh = Studio(model).controls
    for name in set(panel.controls.named) - {"seed", "melody", "audio_prompt"}:
        assert panel.controls[name].value == fresh[name].value, name
    assert panel.controls.start_from.value == TEXT and "my voice" not in texts(panel)
    assert panel.controls["melody"].sound is None or panel.controls["melody"].sound.name != "my voice"
    # a new take replaces none of those that come back
    third = panel.generate(**SHORT)
    panel.undo()
    assert panel.takes == [*takes, third]
    assert [take.number for take in Studio(model).takes] == [1, 2, 3]
    # twice is once
    panel.start_over()
    panel.start_over()
    panel.undo()
    assert panel.takes == [*takes, third] and panel.cards.undo == ""


def test_a_take_that_cannot_be_written_stays_in_the_panel(model, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    panel = Studio(model, folder=tmp_path / "file" / "takes")
    take = panel.generate(**SHORT)
    assert panel.takes == [take] and take.path is None
    assert "not on disk" in panel.message.value
    panel.star(take)
    panel.delete(take)
    panel.undo()
    assert panel.takes == [take]


def test_damaged_and_foreign_files_among_the_takes_are_left_out(panel, model):
    take = panel.generate(**SHORT)
    take.path.with_name("take-002-seed-1.flac").write_bytes(b"fLaC and no more")
    soundfile.write(take.path.with_name("take-003-seed-1.flac"), tune(0.5)[0].numpy(), RATE)
    assert [take.number for take in Studio(model).takes] == [1]


def test_a_take_is_continued_from_its_end(panel):
    take = panel.generate(prompt="calm piano", duration=1, seed=1)
    panel.continue_from(take)
    panel.wait()
    longer = panel.takes[-1]
    assert longer.seconds == pytest.approx(take.seconds + studio.ADDED, abs=0.05)
    assert longer.seam == pytest.approx(take.seconds, abs=0.05)
    assert longer.prompt == "calm piano" and longer.source == "continues take 1"


def test_a_take_becomes_the_melody(panel):
    take = panel.generate(duration=1, seed=1)
    panel.use_as_melody(take)
    assert panel.controls.start_from.value == MELODY
    assert panel.controls["melody"].sound.name == "take 1"
    assert panel.generate().source == "follows take 1"


@pytest.mark.parametrize("condition", ["text", "melody", "audio_prompt"])
def test_more_like_this_has_the_same_request_and_the_next_seeds(panel, model, condition):
    given = {} if condition == "text" else {condition: (tune(1.0), RATE)}
    take = panel.generate(prompt="calm", negative="drums", **given, **{**SHORT, "audio_prompt_seconds": 0.2})
    for make in (lambda: panel, lambda: Studio(model)):
        each = make()
        count = len(each.takes)
        each.more_like(each.takes[0], 2)
        each.wait()
        assert each.error is None
        for more in each.takes[count:]:
            for name in ("text", "negative", "settings", "melody", "model"):
                assert more.manifest[name] == take.manifest[name]
            assert more.source == take.source or each is not panel
            assert (more.seam is None) == (take.seam is None)
    seeds = [take.manifest["seed"] for take in each.takes]
    assert seeds == list(range(take.manifest["seed"], take.manifest["seed"] + 5))


def test_chords_in_the_editor_reach_the_take_and_its_variations(panel, model):
    panel.set(melody=(tune(1.0), RATE), **SHORT)
    panel.controls.editor.set_chords("C A:min")
    take = panel.generate()
    assert take.manifest["chords"] and take.source == "follows chords"
    for make in (lambda: panel, lambda: Studio(model)):
        each = make()
        each.more_like(each.takes[0], 1)
        each.wait()
        assert each.takes[-1].manifest["chords"] == take.manifest["chords"]
        assert each.takes[-1].source == "follows chords"


def test_stop_ends_all_runs_of_more_like_this(panel):
    take = panel.generate(duration=0.3, seed=1)
    take.request = replace(take.request, settings=replace(take.request.settings, duration=600))
    assert panel.more_like(take)
    until_running(panel)
    panel.stop()
    panel.wait()
    assert len(panel.takes) == 2


def test_the_code_of_a_take_generates_it(panel, model, tmp_path, monkeypatch):
    takes = [
        panel.generate(prompt="it's calm", negative="drums", **SHORT),
        panel.generate(melody=(tune(1.0), RATE), negative="", **SHORT),
    ]
    monkeypatch.setattr(MusicGen, "get_pretrained", staticmethod(lambda name: MusicGen(model.model)))
    for take in takes:
        names = {}
        exec(take.code, names)
        wave = names["wave"]
        assert torch.allclose(wave.view(take.wave.shape), take.wave, atol=1e-4)


def test_the_music_reaches_the_live_player_as_it_is_made(panel):
    take = panel.generate(duration=2, seed=1)
    assert panel.live.pushed == pytest.approx(take.seconds)
    assert len(panel.live._chunks) >= 3
    # a click on this panel's button, and no other, lets it play
    assert panel.live.starter in panel.generate_button._dom_classes
    assert Studio(MusicGen(panel.run.load("nano").model)).live.starter != panel.live.starter


def test_two_takes_are_compared_on_one_scale(panel):
    panel.generate(**SHORT)
    assert panel.comparison.layout.display == "none"
    panel.generate(seed=4)
    assert panel.comparison.layout.display != "none"
    # drawn only when opened
    assert panel.comparison.players.html == ""
    panel.comparison.selected_index = 0
    assert panel.comparison.players.html.count("<audio") == 2
    before = panel.comparison.players.html
    panel.generate(seed=5)
    assert [menu.value for menu in panel.comparison.menus] == [1, 3]
    assert panel.comparison.players.html != before
    panel.delete(panel.takes[0])
    assert [menu.value for menu in panel.comparison.menus] == [2, 3]


# --- stopping ---------------------------------------------------------------------------------------------


def started(panel: Studio) -> None:
    """Start a long run and return after its first steps."""
    # long enough not to end by itself, however late it is stopped
    panel.set(duration=600, seed=1)
    assert panel.start()
    until_running(panel)


def until_running(panel: Studio) -> None:
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
    panel.run._interrupts = InterruptHandler(panel.stop, loop)
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
        ({"top_k": -1}, "Top-k is -1"),
        ({"duration": -2.0}, "Seconds is -2"),
        ({"cfg_coef_beta": "much"}, "Double guidance β is 'much'"),
        ({"duration": 0.5, "cfg_coef_beta": "2"}, "Double guidance β weighs the text against a melody"),
    ]
    for values, sentence in mistakes:
        panel.set(**SHORT, cfg_coef_beta=None)
        for name, value in values.items():
            # as in the browser, without the validation of `set`
            panel.controls[name].min = -9
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
        ({"cfg_coef": [(0, 1.0), (4, 3.0)]}, "the panel takes a number"),
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

    monkeypatch.setattr(run_panel, "generate_take", broken)
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
    source.uploader = Uploaded(uploads(f"a.{form.lower()}", encoded(form))[version])
    source._on_plain_upload()
    assert source.sound.rate == RATE
    # the tolerance is for the padding of MP3
    assert source.sound.wave.shape[-1] == pytest.approx(RATE, abs=2500)
    assert "<audio" in source.view.html


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
        assert "<audio" in source.view.html


def test_the_recording_offered_first_has_not_faded_where_the_music_continues(panel):
    panel.controls.start_from.value = AUDIO
    name, wave, rate = panel.controls["audio_prompt"].sound
    given = panel.controls.request().audio_prompt.wave
    assert name in clips("recordings") and given.shape[-1] == 2 * rate
    decibels = [
        20 * math.log10(part.square().mean().sqrt()) for part in (given, given[:, -rate // 2 :], wave)
    ]
    assert min(decibels) > -20 and decibels[0] > decibels[2] - 1


def test_a_recording_becomes_the_sound():
    source = Source("melodies")
    source.recorder.wave = tune(0.5)
    assert isinstance(source.sound, Sound)
    assert source.sound.rate == source.recorder.rate
    assert source.choice.value == OWN


def test_removing_one_condition_keeps_the_other(panel):
    panel.set(audio_prompt=(tune(1.0), RATE), melody=None)
    assert panel.controls.start_from.value == AUDIO
    panel.set(audio_prompt=None)
    assert panel.controls.start_from.value == TEXT


def test_the_panel_shows_the_chosen_conditions(panel):
    shown = panel.controls.conditions
    assert shown.children == ()
    panel.controls.start_from.value = MELODY
    assert panel.controls["melody"] in shown.children
    panel.controls.start_from.value = AUDIO
    assert panel.controls["audio_prompt"] in shown.children


def test_a_chip_fills_the_prompt_and_more_shows_others(panel):
    first = [chip.description for chip in panel.controls.chips.children]
    panel.controls.chips.children[2].click()
    assert panel.controls["prompt"].value == first[2] == example_chips.example_prompts()[2]
    panel.controls.chips.more.click()
    assert not {chip.description for chip in panel.controls.chips.children[:-1]} & set(first)


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
    card = " ".join(panel.takes[0].facts)
    assert "top_k 5" in card
    assert not any(f"{name} " in card for name in set(asdict(Settings())) - {"top_k", "duration"})


def test_the_app_names_the_missing_package():
    code = "import sys; sys.modules['voila.app'] = None; from mgkit.__main__ import main; "
    code += "sys.exit(main(['app']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["mgkit: the app needs the package voila.app: pip install voila"]

"""Players and recorder in a real JupyterLab: exact playback, no network requests, readable errors."""

import io
import json

import nbformat
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from playwright.sync_api import expect

from mgkit import audio
from mgkit.lab import figures, player

RATE = 32000
SINE = 0.3 * torch.sin(torch.arange(5 * RATE) * 440 * 2 * torch.pi / RATE)[None]
SETUP = """import torch, ipywidgets
from types import SimpleNamespace
from mgkit.lab import player, figures
sine = 0.3 * torch.sin(torch.arange(5 * 32000) * 440 * 2 * torch.pi / 32000)[None]"""

# Records the page's audio output without loss, in the audio thread, from before its own scripts run.
TAP = """
window.recorded = [];
const code = `registerProcessor('tap', class extends AudioWorkletProcessor {
    process([input]) {
        this.port.postMessage(input.length ? input[0].slice() : new Float32Array(128));
        return true;
    }
})`;
const {resume} = AudioContext.prototype, {connect} = AudioNode.prototype;
AudioContext.prototype.resume = async function () {
    if (!this.tap) {
        await this.audioWorklet.addModule(URL.createObjectURL(new Blob([code], {type: 'text/javascript'})));
        this.tap = new AudioWorkletNode(this, 'tap');
        this.tap.port.onmessage = event => window.recorded.push(...event.data);
        connect.call(this.tap, this.destination);
    }
    await resume.call(this);
};
AudioNode.prototype.connect = function (to, ...rest) {
    return connect.call(this, to === this.context.destination ? this.context.tap : to, ...rest);
};
"""


def show_in_lab(lab, page, *cells: str, dark: bool = False) -> None:
    """Run a notebook of SETUP and `cells` in JupyterLab; cell i has output i + 1."""
    lab.open(page, lab.write("player.ipynb", [SETUP, *cells]), dark)
    lab.run_all(page)


def duration(page, sound) -> float:
    page.wait_for_function("a => a.duration > 0", arg=sound.element_handle())
    return sound.evaluate("a => a.duration")


def assert_plays(page, sound) -> None:
    before = sound.evaluate("a => a.currentTime")
    sound.evaluate("a => a.play()")
    page.wait_for_function("([a, t]) => a.currentTime > t + 0.5", arg=[sound.element_handle(), before])
    sound.evaluate("a => a.pause()")


def facts(lab, page, expression: str):
    """Value of a Python expression in the kernel, by way of JSON."""
    return json.loads(lab.run(page, f"import json; print(json.dumps({expression}))"))


# --- a finished wave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["figures.player", "player.Player"])
def test_a_player_has_the_length_of_its_wave_and_plays_with_the_network_blocked(lab, page, refused, kind):
    show_in_lab(lab, page, f"{kind}(sine, 32000, 'a sine', seam=2)")
    sound = lab.output(page, 1).locator("audio")
    assert abs(duration(page, sound) - 5) < 0.02
    assert_plays(page, sound)
    assert refused == []


def test_players_play_in_an_untrusted_notebook(lab, page):
    outputs = [
        {"text/html": figures.player(SINE, RATE, "plain").html},
        player.Player(SINE, RATE, "rich")._repr_mimebundle_(),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "run elsewhere", outputs=[nbformat.v4.new_output("display_data", data=data)]
            )
            for data in outputs
        ]
    )
    lab.open(page, lab.write("untrusted.ipynb", notebook))
    assert page.evaluate("jupyterapp.shell.currentWidget.content.widgets.every(cell => !cell.model.trusted)")
    for index in range(2):
        sound = lab.output(page, index).locator("audio")
        assert abs(duration(page, sound) - 5) < 0.02
        assert_plays(page, sound)
    assert page.locator("canvas").count() == 0, "a script ran in an untrusted notebook"


def test_pictures_and_thumbnails_take_the_colour_of_the_page_light_and_dark(page, tmp_path):
    silence = torch.zeros(1, RATE)
    items = [
        figures.mel([("a sine", SINE)], RATE),
        figures.player_table([[silence]], RATE, ["row"], ["column"]),
    ]
    figures.page(items, tmp_path / "page.html", "pictures")
    page.goto((tmp_path / "page.html").as_uri())
    pictures = page.locator(".mgkit-picture")
    expect(pictures).to_have_count(2)
    expect(pictures.last).to_have_attribute("role", "slider")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
        paper = shot.getpixel((2, 2))
        assert (paper < 60) == (scheme == "dark")
        box = pictures.first.bounding_box()
        # the margin of a figure
        assert abs(shot.getpixel((round(box["x"] + 3), round(box["y"] + 3))) - paper) < 3
        box = pictures.last.bounding_box()
        # silence is pale in light, dark in dark
        middle = shot.getpixel((round(box["x"] + 100), round(box["y"] + 30)))
        assert abs(middle - paper) < 60, (scheme, middle)


def test_the_player_seeks_and_loops_without_a_kernel(page, tmp_path):
    path = tmp_path / "page.html"
    bundle = player.Player(SINE, RATE, "a sine", seam=2)._repr_mimebundle_()
    path.write_text(f"<!doctype html><meta charset='utf-8'>{bundle['text/html']}", encoding="utf-8")
    page.goto(path.as_uri())
    sound, canvas = page.locator("audio"), page.locator("canvas")
    duration(page, sound)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.6, "y": 10})
    assert abs(sound.evaluate("a => a.currentTime") - 3) < 0.05
    canvas.press("ArrowLeft")
    assert abs(sound.evaluate("a => a.currentTime") - 2) < 0.05
    page.get_by_role("button", name="Loop").click()
    assert sound.evaluate("a => a.loop")
    assert_plays(page, sound)


def test_the_download_has_every_sample_and_the_manifest(lab, page, tmp_path):
    manifest = {"mgkit": "0", "model": "nano", "text": "a sine", "licence": "MIT"}
    show_in_lab(
        lab,
        page,
        "wave = sine[:, :123457]\n"
        f"ipywidgets.VBox([player.Player(wave, 32000, 'A sine!', loop=True, manifest={manifest})])",
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "a-sine.flac"
    path = tmp_path / "a.flac"
    download.value.save_as(path)
    samples, rate = soundfile.read(path)
    assert (len(samples), rate) == (123457, RATE)
    assert audio.read_manifest(path) == {**manifest, "strategy": "clip"}


# --- a wave that grows ------------------------------------------------------------------------------------


def test_a_live_sine_plays_exact_to_the_sample(lab, page, refused):
    page.add_init_script(TAP)
    show_in_lab(
        lab,
        page,
        """def source(stop):
    for part in sine.split(4567, dim=1):
        yield part
        live.pace(3)
live = player.LivePlayer(32000, seconds=5, source=source)
live""",
    )
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".mgkit .status")).to_contain_text("Finished after 5.0 s")
    # the browser reports four times per second
    page.wait_for_timeout(500)
    assert facts(lab, page, "[live.underruns, live.discontinuities, live.context_rate, live.played]") == [
        0,
        0,
        RATE,
        5,
    ]
    output = np.array(page.evaluate("window.recorded"), dtype=np.float32)
    # a sine starts with a 0
    start = int(np.flatnonzero(output)[0]) - 1
    error = output[start : start + SINE.shape[1]] - SINE[0].numpy()
    assert np.abs(error).max() < 1e-4
    assert refused == []


def test_a_slow_machine_buffers_before_playback_and_reports_it(lab, page):
    show_in_lab(
        lab,
        page,
        """clock = SimpleNamespace(now=0.0)
player.time = SimpleNamespace(perf_counter=lambda: clock.now)
live = player.LivePlayer(32000, seconds=5)
def generate(count):
    for part in sine.split(16000, dim=1)[int(live.pushed * 2):][:count]:
        # half a second of music per second
        clock.now += 1
        live.push(part)
generate(4)
live""",
    )
    status = page.locator(".mgkit .status")
    expect(status).to_contain_text("2.0 s ready")
    page.get_by_role("button", name="Play").click()
    expect(status).to_contain_text("Generating at 0.5 × real time: buffering 2.0 of 2.7 s")
    lab.run(page, "generate(2)")
    expect(status).to_contain_text("played")
    lab.run(page, "generate(4); live.finish()")
    expect(status).to_have_text("Finished after 5.0 s.")


def test_stop_ends_the_source_and_play_starts_a_new_piece(lab, page):
    show_in_lab(
        lab,
        page,
        """ended = []
def source(stop):
    while not stop.is_set():
        yield sine[:, :16000]
        live.pace(2)
    ended.append(live.pushed)
live = player.LivePlayer(32000, source=source)
live""",
    )
    for times in (1, 2):
        page.get_by_role("button", name="Play").click()
        expect(page.locator(".mgkit .status")).to_contain_text("played")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".mgkit .status")).to_contain_text("Stopped after")
        page.wait_for_timeout(500)
        assert facts(lab, page, "[len(ended), live.stop.is_set(), live.started]") == [times, True, False]


# --- the microphone ---------------------------------------------------------------------------------------


def test_the_recorder_records_at_the_requested_rate(lab, page):
    show_in_lab(lab, page, "recorder = player.Recorder(32000)\nrecorder")
    page.get_by_role("button", name="Record").click()
    page.wait_for_function("document.querySelector('.mgkit .status').textContent.match(/Recording: [3-9]/)")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".mgkit .status")).to_contain_text("s recorded.")
    shape, peak = facts(lab, page, "[list(recorder.wave.shape), float(recorder.wave.abs().max())]")
    assert shape[0] == 1
    assert peak > 0.05, "Chromium's fake microphone beeps once a second"
    sound = page.locator(".mgkit audio")
    expect(sound).to_be_visible()
    page.wait_for_function("a => isFinite(a.duration) && a.duration > 0", arg=sound.element_handle())
    assert abs(shape[1] / RATE - sound.evaluate("a => a.duration")) < 0.1


@pytest.mark.parametrize("microphone", ["refused"])
def test_denied_microphone_access_is_reported_in_the_widget(lab, page, microphone):
    show_in_lab(lab, page, "recorder = player.Recorder()\nrecorder")
    page.get_by_role("button", name="Record").click()
    expect(page.locator(".mgkit .status")).to_contain_text("Microphone access was denied")
    page.wait_for_timeout(300)
    assert "denied" in facts(lab, page, "recorder.message")
    assert facts(lab, page, "recorder.wave is None")


def test_a_page_that_cannot_record_is_reported_in_the_widget(lab, page):
    page.add_init_script("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    show_in_lab(lab, page, "recorder = player.Recorder()\nrecorder")
    expect(page.locator(".mgkit .status")).to_contain_text("https and localhost only")
    expect(page.get_by_role("button", name="Record")).to_be_disabled()

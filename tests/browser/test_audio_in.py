"""Hum and see, continue from a handle, and uploads, under real clicks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

from browser.conftest import SECONDS, wait_until
from browser.panel import Panel

TONE = (0.5 * np.sin(np.arange(32000) / 20)).astype(np.float32)


def upload(panel: Panel, path: Path) -> None:
    with panel.page.expect_file_chooser() as chooser:
        panel.button("Upload").click()
    chooser.value.set_files(path)


def drawn(lab, page) -> list[int]:
    return json.loads(lab.run(page, "print(panel.controls.editor.drawn.tolist())"))


def test_from_humming_to_a_longer_take_on_disk_in_six_clicks(lab, panel, page):
    page.evaluate(
        "window.clicks = []; window.addEventListener('click', event => event.isTrusted && "
        "window.clicks.push(event.target.textContent.trim()), true)"
    )
    panel.start_from("text + melody")
    panel.button("Record").click()
    page.wait_for_function("document.querySelector('.mgkit-source').textContent.match(/Recording: [2-9]/)")
    panel.root.locator(".mgkit-source").get_by_role("button", name="Stop").click()
    expect(panel.root.locator(".mgkit-source")).to_contain_text("s recorded.")
    wait_until(
        lambda: lab.run(page, "print(panel.controls['melody'].sound.name)") == "a recording\n", "the kernel"
    )
    # what the model hears is there to see, and the seconds follow it
    expect(page.locator("canvas[role=application]")).to_be_visible()
    seconds = lab.run(page, "s = panel.controls['melody'].sound\nprint(round(s.wave.shape[-1] / s.rate, 1))")
    expect(panel.field("Seconds")).to_have_value(re.compile(rf"{float(seconds):g}(\.0)?"))
    panel.go.click()
    expect(panel.cards).to_have_count(1, timeout=SECONDS * 1000)
    panel.idle()
    panel.cards.first.get_by_role("button", name="Continue").click()
    expect(panel.cards).to_have_count(2, timeout=SECONDS * 1000)
    with page.expect_download() as download:
        panel.cards.first.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.startswith("take-002")
    assert lab.run(page, "print(panel.takes[0].source)") == "follows a recording\n"
    clicks = page.evaluate("window.clicks")
    assert len(clicks) == 6, clicks


def test_a_drawn_melody_is_heard_undone_and_generated(lab, panel, page):
    panel.start_from("text + melody")
    canvas = page.locator("canvas[role=application]")
    expect(canvas).to_be_visible()
    detected = drawn(lab, page)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    column = (box["width"] - 40) / len(detected)
    page.mouse.move(box["x"] + 40 + 5.5 * column, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 40 + 15.5 * column, box["y"] + 8)
    page.mouse.up()
    wait_until(lambda: drawn(lab, page)[5:16] == [11] * 11, "the stroke")
    assert drawn(lab, page)[:5] == detected[:5]
    page.locator(".jupyter-button", has_text="Play").click()
    page.wait_for_function("[...document.querySelectorAll('audio')].some(a => a.currentTime > 0.1)")
    panel.enter("Seconds", "2")
    panel.generate(1)
    expect(panel.cards.first).to_contain_text("edited")
    page.locator(".jupyter-button", has_text="Undo").click()
    wait_until(lambda: drawn(lab, page) == detected, "undone")


def test_chords_take_the_place_of_the_melody_and_an_invalid_one_is_told(lab, panel, page):
    panel.start_from("text + melody")
    panel.enter("Chords", "C H:min")
    expect(panel.problem).to_contain_text("H:min")
    panel.enter("Chords", "C A:min")
    expect(panel.problem).to_have_count(0)
    panel.enter("Seconds", "2")
    panel.generate(1)
    assert "chords" in lab.run(page, "print(panel.takes[0].manifest.keys())")


def test_the_handle_says_where_the_music_continues_and_the_total_is_told(lab, panel, page):
    panel.start_from("text + audio")
    lab.run(page, "import torch\npanel.set(audio_prompt=(torch.rand(1, 320000) - 0.5, 32000), duration=8)")
    expect(panel.root.get_by_text("2 s given + 6 s new = 8 s")).to_be_visible()
    handle, track = page.get_by_label("continue from"), page.locator(".mgkit .track")
    expect(handle).to_have_attribute("aria-valuenow", "10.0")
    box = track.bounding_box()
    handle.hover()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10, steps=5)
    page.mouse.up()
    end = "print(panel.controls['audio_prompt_end'].value)"
    wait_until(lambda: float(lab.run(page, end)) == pytest.approx(5, abs=0.1), "the end")
    start = page.get_by_label("start of the given part")
    start.focus()
    start.press("PageDown")
    expect(panel.root.get_by_text("3 s given + 5 s new = 8 s")).to_be_visible()
    panel.generate(1)
    seam = float(lab.run(page, "print(panel.takes[0].seam)"))
    assert seam == pytest.approx(3, abs=0.05)


def test_audio_uploads_are_accepted_and_a_text_file_is_one_red_sentence(lab, panel, page, tmp_path):
    panel.start_from("text + melody")
    sound = "panel.controls['melody'].sound"
    for form in ("wav", "mp3", "ogg", "flac"):
        path = tmp_path / f"tone.{form}"
        soundfile.write(path, TONE, 32000, format=form.upper())
        upload(panel, path)
        expect(panel.root.locator("figcaption", has_text=path.name)).to_be_visible()
        assert lab.run(page, f"print({sound}.name)").strip() == path.name
    text = tmp_path / "notes.txt"
    text.write_text("do re mi", encoding="utf-8")
    upload(panel, text)
    expect(panel.problem).to_contain_text("'notes.txt' is not audio")
    assert lab.run(page, f"print({sound})").strip() == "None"
    panel.go.click()
    expect(panel.problem).to_contain_text("'notes.txt' is not audio")
    panel.root.get_by_label("clip").select_option("scarborough fair")
    expect(panel.problem).to_have_count(0)


def test_a_large_upload_arrives_in_jupyterlab_and_one_beyond_the_limit_is_told(lab, panel, page, tmp_path):
    panel.start_from("text + audio")
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(TONE, 340), 32000)
    assert path.stat().st_size > 21e6
    upload(panel, path)
    sound = "panel.controls['audio_prompt'].sound"
    wait_until(lambda: lab.run(page, f"print({sound} and {sound}.name)") == "long.wav\n", "the upload")
    lab.run(page, "panel.controls['audio_prompt'].uploader.limit = 10 * 2**20")
    lab.run(page, "panel.set(audio_prompt=None)")
    panel.start_from("text + audio")
    expect(panel.root.get_by_text("up to 10 MB")).to_be_visible()
    upload(panel, path)
    expect(panel.problem).to_contain_text("long.wav has 21 MB; an upload may have up to 10 MB")
    assert lab.run(page, f"print({sound})") == "None\n"


def test_a_phones_recording_is_decoded_by_the_browser_where_the_kernel_cannot(lab, panel, page, tmp_path):
    av = pytest.importorskip("av", reason="needs PyAV: pip install av")
    path = tmp_path / "memo.m4a"
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=44100, layout="mono")
        tone = (0.3 * np.sin(np.arange(3 * 44100) / 20)).astype(np.float32)
        for part in np.split(tone[: len(tone) // 1024 * 1024], len(tone) // 1024):
            frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
            frame.rate = 44100
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    lab.run(page, "import sys\nsys.modules['av'] = None")
    panel.start_from("text + melody")
    upload(panel, path)
    sound = "panel.controls['melody'].sound"
    wait_until(lambda: lab.run(page, f"print({sound} and {sound}.name)") == "memo.m4a\n", "the upload")
    seconds = float(lab.run(page, f"print({sound}.wave.shape[-1] / {sound}.rate)"))
    assert seconds == pytest.approx(3, abs=0.1)
    expect(panel.problem).to_have_count(0)

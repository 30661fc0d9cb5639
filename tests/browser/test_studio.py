"""The studio under real clicks: in JupyterLab, and as the app."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect

from browser.conftest import SECONDS, wait_until
from mgkit import audio

CELLS = ["from mgkit.lab import studio\n\npanel = studio.Studio()\npanel"]

# Seconds. Stop takes less than one on an idle machine with two cores, but JupyterLab, its kernel, the browser
# and the test share them. It must not depend on the remaining work: a minute of music takes much longer.
ALLOWED = 10


class Panel:
    """The studio in a page, and its parts."""

    def __init__(self, page: Page):
        self.page, self.root = page, page.locator(".mgkit-studio")
        self.go = self.root.get_by_role("button", name="Generate")
        self.stop = self.root.get_by_role("button", name="Stop")
        self.bar = self.root.locator(".progress-bar")
        self.cards = self.root.locator(".mgkit-take")

    def field(self, label: str) -> Locator:
        return self.root.get_by_label(label, exact=True)

    def enter(self, label: str, value: str) -> None:
        self.field(label).fill(value)
        self.field(label).blur()

    def start_a_minute(self) -> None:
        """Start a minute of music and return after its first steps."""
        self.enter("seconds", "60")
        self.go.click()
        self.page.wait_for_function(
            "parseFloat(document.querySelector('.mgkit-studio .progress-bar').style.width) > 1",
            timeout=SECONDS * 1000,
        )

    def duration(self, card: int = 0) -> float:
        """Duration in seconds of a take's player, newest first, once the browser has read it."""
        player = self.cards.nth(card).locator("audio")
        return player.evaluate(
            "player => new Promise(done => { const tell = () => done(player.duration); "
            "player.readyState ? tell() : player.addEventListener('loadedmetadata', tell) })"
        )

    def idle(self) -> None:
        expect(self.go).to_be_enabled(timeout=SECONDS * 1000)
        expect(self.stop).to_be_disabled()


@pytest.fixture
def panel(lab, page) -> Iterator[Panel]:
    lab.open(page, lab.write("studio.ipynb", CELLS))
    lab.run_all(page)
    panel = Panel(page)
    expect(panel.go).to_be_visible()
    panel.page.set_viewport_size({"width": 1280, "height": 2000})
    yield panel


def lengths(lab, page: Page) -> list[int]:
    """Samples of each take in the kernel."""
    return [int(n) for n in lab.run(page, "print(*[take.wave.shape[-1] for take in panel.takes])").split()]


def test_generate_moves_the_bar_and_shows_a_player_with_a_complete_download(
    lab, panel, page, tmp_path, refused
):
    panel.field("prompt").fill("calm piano")
    panel.enter("seconds", "3")
    page.evaluate(
        """() => { window.widths = new Set();
        const bar = document.querySelector('.mgkit-studio .progress-bar');
        new MutationObserver(() => widths.add(bar.style.width)).observe(bar, {attributes: true}) }"""
    )
    panel.go.click()
    expect(panel.cards).to_have_count(1, timeout=SECONDS * 1000)
    panel.idle()
    assert page.evaluate("widths.size") > 3
    assert panel.duration() == pytest.approx(3, abs=0.02)
    panel.cards.locator("audio").evaluate("player => player.play()")
    page.wait_for_function("document.querySelector('.mgkit-take audio').currentTime > 0.1")

    with page.expect_download() as download:
        panel.cards.get_by_text("Download").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    wave, _ = audio.read(path)
    assert [wave.shape[-1]] == lengths(lab, page)
    assert audio.read_manifest(path)["text"] == "calm piano"
    assert refused == []


def test_stop_is_quick_and_keeps_a_playable_take_and_the_next_run_is_complete(lab, panel, page):
    panel.start_a_minute()
    began = time.monotonic()
    panel.stop.click()
    expect(panel.cards).to_have_count(1, timeout=ALLOWED * 1000)
    panel.idle()
    assert time.monotonic() - began < ALLOWED
    assert 0 < panel.duration() < 55
    expect(panel.cards.first).to_contain_text("stopped")
    panel.cards.locator("audio").first.evaluate("player => player.play()")
    page.wait_for_function("document.querySelector('.mgkit-take audio').currentTime > 0.05")

    panel.enter("seconds", "2")
    panel.go.click()
    expect(panel.cards).to_have_count(2, timeout=SECONDS * 1000)
    panel.idle()
    assert panel.duration() == pytest.approx(2, abs=0.02)
    # the older take is still there
    assert panel.duration(1) < 55
    assert len(lengths(lab, page)) == 2


def test_interrupting_the_idle_kernel_stops_the_run_and_restores_its_handler(lab, panel, page):
    panel.start_a_minute()
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")
    expect(panel.cards).to_have_count(1, timeout=ALLOWED * 1000)
    panel.idle()
    assert 0 < panel.duration() < 55
    # during a cell, the kernel keeps the handler of its idle time: SIG_IGN, which is 1
    ignored = "print(get_ipython().kernel.saved_sigint_handler == 1)"
    wait_until(lambda: lab.run(page, ignored) == "True\n", "the handler is restored")


def test_twenty_clicks_on_a_busy_kernel_start_one_run(lab, panel, page):
    panel.enter("seconds", "2")
    page.evaluate(
        "jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        ".requestExecute({code: 'import time; time.sleep(3)', store_history: false}) && null"
    )
    for _ in range(20):
        panel.go.click(delay=0, no_wait_after=True)
    expect(panel.cards).to_have_count(1, timeout=SECONDS * 1000)
    panel.idle()
    lab.wait_idle(page)
    lab.run(page, "panel.wait()")
    assert lengths(lab, page) == [64000]
    expect(panel.cards).to_have_count(1)
    assert panel.duration() == pytest.approx(2, abs=0.02)
    picture = panel.cards.locator("img").evaluate("image => [image.complete, image.naturalWidth]")
    assert picture == [True, 800]


def test_audio_uploads_are_accepted_and_a_text_file_is_rejected_with_a_message(lab, panel, page, tmp_path):
    panel.root.get_by_role("button", name="text + melody").click()
    panel.root.locator("select:has(option:text('upload'))").first.select_option("upload a file …")
    button = panel.root.get_by_role("button", name="Upload")
    sound = "panel.controls['melody'].sound"

    def upload(path: Path) -> None:
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files(path)

    tone = (0.5 * np.sin(np.arange(32000) / 20)).astype(np.float32)
    for form in ("wav", "mp3", "ogg", "flac"):
        path = tmp_path / f"tone.{form}"
        soundfile.write(path, tone, 32000, format=form.upper())
        upload(path)
        expect(panel.root.locator("figcaption", has_text=path.name)).to_be_visible()
        assert lab.run(page, f"print({sound}.name)").strip() == path.name
    text = tmp_path / "notes.txt"
    text.write_text("do re mi", encoding="utf-8")
    upload(text)
    expect(panel.root.get_by_text("'notes.txt' is not audio")).to_be_visible()
    assert lab.run(page, f"print({sound})").strip() == "None"
    panel.go.click()
    expect(panel.root.get_by_role("alert")).to_contain_text("'notes.txt' is not audio")
    panel.idle()


def test_two_takes_switch_at_the_same_position(lab, panel, page):
    lab.run(page, "[panel.generate(duration=3, seed=seed) for seed in (1, 2)]")
    panel.root.get_by_text("compare two takes").click()
    both = panel.root.locator("figure:has(+ figure), figure + figure").locator("audio")
    expect(both).to_have_count(2)
    both.first.evaluate("player => { player.currentTime = 1; return player.play() }")
    page.wait_for_timeout(300)
    panel.root.get_by_role("button", name="Switch").click()
    wait_until(lambda: not both.last.evaluate("player => player.paused"), "the other one plays")
    assert both.first.evaluate("player => player.paused")
    assert both.last.evaluate("player => player.currentTime") >= 1


def test_the_app_shows_the_studio_and_generates_a_take_offline(app, page, refused):
    page.goto(f"http://127.0.0.1:{app.port}/?token=secret", timeout=SECONDS * 1000)
    panel = Panel(page)
    expect(panel.go).to_be_visible(timeout=SECONDS * 1000)
    panel.field("prompt").fill("calm piano")
    panel.enter("seconds", "2")
    panel.go.click()
    expect(panel.cards).to_have_count(1, timeout=SECONDS * 1000)
    panel.idle()
    assert panel.duration() == pytest.approx(2, abs=0.02)
    assert refused == []

"""The app under real clicks: title, layout on every screen, dark mode, takes kept, visitors kept apart."""

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

from browser.conftest import SECONDS, assert_follows_theme, wait_until
from browser.panel import Panel


def visit(page: Page, app) -> Panel:
    page.goto(f"http://127.0.0.1:{app.port}/?token=secret", timeout=SECONDS * 1000)
    panel = Panel(page)
    expect(panel.go).to_be_visible(timeout=SECONDS * 1000)
    return panel


def test_the_app_generates_a_take_offline_and_finds_it_after_a_reload(app, page, refused):
    panel = visit(page, app)
    assert page.title() == "mgkit studio"
    expect(page.get_by_role("heading", name="mgkit studio")).to_be_visible()
    panel.field("Prompt").fill("calm piano")
    panel.enter("Seconds", "2")
    panel.generate(1)
    assert panel.duration() == pytest.approx(2, abs=0.02)
    panel = visit(page, app)
    expect(panel.cards).to_have_count(1)
    panel.cards.first.locator("button.play").click()
    assert panel.duration() == pytest.approx(2, abs=0.02)
    assert refused == []

    # another browser, and no take but its own
    other = page.context.browser.new_context().new_page()
    stranger = visit(other, app)
    stranger.enter("Seconds", "1")
    stranger.generate(1)
    other.context.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_a_hummed_file_becomes_music_is_continued_and_downloaded_in_six_clicks(app, page, tmp_path, width):
    """Counted by the page itself, the buttons of file dialogs apart."""
    page.add_init_script(
        "window.clicks = []; window.addEventListener('click', event => event.isTrusted && "
        "window.clicks.push(event.target.textContent.trim()), true)"
    )
    page.set_viewport_size({"width": width, "height": 800})
    panel = visit(page, app)
    hum = tmp_path / "hum.wav"
    notes = np.repeat(261.63 * 2 ** (np.array([0, 2, 4, 5, 7]) / 12), 16000) / 32000
    soundfile.write(hum, 0.3 * np.sin(2 * np.pi * np.cumsum(notes)), 32000)

    panel.start_from("text + melody")
    with page.expect_file_chooser() as chooser:
        panel.button("Upload").click()
    chooser.value.set_files(hum)
    expect(panel.root.locator("figcaption", has_text="hum.wav")).to_be_visible()
    # the melody is there to see, and the seconds follow it
    expect(page.locator("canvas[role=application]")).to_be_visible()
    expect(panel.field("Seconds")).to_have_value("2.5")
    panel.generate(1)
    expect(panel.cards.first).to_contain_text("follows hum.wav")
    panel.cards.first.get_by_role("button", name="Continue").click()
    expect(panel.cards).to_have_count(2, timeout=SECONDS * 1000)
    panel.idle()
    assert panel.duration() == pytest.approx(10.5, abs=0.05)
    with page.expect_download() as download:
        panel.cards.first.get_by_role("button", name="Download").click()
    info = soundfile.info(download.value.path())
    assert info.frames / info.samplerate == pytest.approx(10.5, abs=0.05)
    clicks = page.evaluate("window.clicks")
    assert 5 <= len(clicks) <= 6, clicks


def test_a_large_upload_arrives_in_the_app_and_one_beyond_the_limit_is_refused_in_words(app, page, tmp_path):
    panel = visit(page, app)
    panel.start_from("text + audio")
    large, larger = tmp_path / "large.wav", tmp_path / "larger.wav"
    soundfile.write(large, np.zeros(11_000_000, np.float32) + 0.1, 32000)
    assert large.stat().st_size > 21e6
    with open(larger, "wb") as file:
        file.truncate(101 * 2**20)
    for path in (large, larger):
        with page.expect_file_chooser() as chooser:
            panel.button("Upload").click()
        chooser.value.set_files(path)
        if path == large:
            # while it is sent, no other can be
            expect(panel.button("Upload")).to_be_enabled()
            expect(panel.root.get_by_text("large.wav", exact=True)).to_be_visible()
            expect(panel.problem).to_have_count(0)
    expect(panel.problem).to_contain_text("an upload may have up to 100 MB")


def test_takes_are_material_on_a_phone_too(app, page):
    page.set_viewport_size({"width": 400, "height": 800})
    panel = visit(page, app)
    panel.root.get_by_role("button", name="calm piano in C major").click()
    panel.enter("Seconds", "1")
    panel.enter("Seed", "42")
    panel.generate(1)
    card = panel.cards.first
    card.locator("button.play").click()
    wait_until(lambda: card.locator("audio").evaluate("a => a.currentTime > 0.05"), "it plays")
    card.get_by_role("button", name="star").click()
    expect(card.get_by_role("button", name="star")).to_have_attribute("aria-pressed", "true")
    card.locator("input").fill("mine")
    card.locator("input").press("Enter")
    card.get_by_role("button", name="Use as melody").click()
    expect(page.locator("canvas[role=application]")).to_be_visible()
    panel.button("text").click()
    card.get_by_role("button", name="More like this").click()
    expect(panel.cards).to_have_count(4, timeout=SECONDS * 1000)
    panel.idle()
    panel.cards.first.get_by_role("button", name="Delete").click()
    expect(panel.cards).to_have_count(3)
    panel.button("Undo").click()
    expect(panel.cards).to_have_count(4)
    panel.root.get_by_text("Advanced").click()
    expect(panel.root.get_by_text("Guidance (CFG)")).to_be_visible()
    panel.enter("Seconds", "-1")
    panel.go.click()
    expect(panel.problem).to_contain_text("Seconds is -1")
    # nothing is cut off, the settings and the error included
    assert page.evaluate(
        "[...document.querySelectorAll('.mgkit-studio *')].every(part => !part.checkVisibility() || "
        "part.getBoundingClientRect().right <= innerWidth + 1)"
    )


def test_the_page_fits_every_screen_and_follows_the_theme(app, page):
    panel = visit(page, app)
    for start in ("text", "text + melody", "text + audio"):
        panel.start_from(start) if start != "text" else None
        for width in (1280, 800, 400):
            page.set_viewport_size({"width": width, "height": 1200})
            page.wait_for_timeout(300)
            # nothing is cut off: no part of the panel ends beyond the page
            beyond = page.evaluate(
                """() => [...document.querySelectorAll('.mgkit-studio *')].filter(
                    part => part.checkVisibility() && part.getBoundingClientRect().right > innerWidth + 1
                ).map(part => part.outerHTML.slice(0, 80))"""
            )
            assert beyond == [], (start, width)
            takes, prompt = (
                part.bounding_box() for part in (panel.root.locator("h3"), panel.field("Prompt"))
            )
            assert (takes["x"] > prompt["x"] + prompt["width"]) == (width == 1280)
    assert_follows_theme(page, ".mgkit-studio h1")


def test_a_visitor_is_offered_no_files_of_the_server(app, page):
    panel = visit(page, app)
    panel.start_from("text + melody")
    options = panel.root.locator("option").all_inner_texts()
    assert not [option for option in options if "kernel" in option or "folder" in option]

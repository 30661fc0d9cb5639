"""The app under real clicks: title, layout on every screen, dark mode, takes kept, visitors kept apart."""

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import SECONDS
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

    # another browser, and no take
    other = page.context.browser.new_context().new_page()
    assert visit(other, app).cards.count() == 0
    other.context.close()


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
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        back, ink = page.evaluate(
            "[document.body, document.querySelector('.mgkit-studio h1')].map((part, i) => "
            "getComputedStyle(part)[i ? 'color' : 'backgroundColor'].match(/\\d+/g).slice(0, 3).map(Number))"
        )
        assert (sum(back) < sum(ink)) == (scheme == "dark")


def test_a_visitor_is_offered_no_files_of_the_server(app, page):
    panel = visit(page, app)
    panel.start_from("text + melody")
    options = panel.root.locator("option").all_inner_texts()
    assert not [option for option in options if "kernel" in option or "folder" in option]

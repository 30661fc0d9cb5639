"""The blind test's panel in a real browser: clips are heard, clicks are saved, the result comes last."""

import pytest
from playwright.sync_api import expect

CELL = """
from pathlib import Path

import torch
from mgkit.lab import blind_panel, blind_test, preferences

second = torch.sin(torch.arange(32000) * 0.05)[None]
quiet = 0.1 * second.flip(-1)
pairs = [
    blind_test.Pair("Which one is cleaner?", f"tone {i}", {"loud": second, "quiet": 0.9**i * quiet})
    for i in range(2)
]
blind_panel.DEBOUNCE = 0.0
Path("answers.csv").unlink(missing_ok=True)
test = blind_test.BlindTest(pairs, 32000, "answers.csv")
blind_panel.BlindPanel(test)
"""


@pytest.fixture
def panel(lab, page):
    lab.open(page, lab.write("blind.ipynb", [CELL]))
    lab.run_all(page)
    panel = lab.output(page, 0)
    panel.get_by_placeholder("your name").fill("Ada")
    panel.get_by_placeholder("your name").press("Enter")
    expect(panel).to_contain_text("1 of 2")
    return panel


def button(panel, name):
    return panel.get_by_role("button", name=name, exact=True)


def clip(panel, pair, letter):
    """The player of one clip. The panel's parts arrive one by one, so the last pair's may still be there."""
    return panel.locator(f"figure[data-plays='{pair} {letter}']")


def listen(panel, pair) -> None:
    """Play both clips of a pair to their ends; the second stops the first."""
    for letter in "AB":
        clip(panel, pair, letter).get_by_role("button", name="Play").click()
        clip(panel, pair, letter).locator("audio").evaluate(
            "sound => new Promise(done => sound.ended ? done() : sound.addEventListener('ended', done))"
        )


def answers(lab, page):
    columns = "('answer', 'comment', 'plays_a', 'plays_b')"
    rows = (
        f"[tuple(row[c] for c in {columns}) for row in preferences.standing(preferences.read('answers.csv'))]"
    )
    return lab.run(page, f"print({rows})")


def test_an_answer_waits_until_both_clips_were_heard(lab, page, panel):
    expect(panel).to_contain_text("Listen to A and B first.")
    expect(button(panel, "A is better")).to_be_disabled()
    clip(panel, "1 of 2", "A").get_by_role("button", name="Play").click()
    expect(panel).to_contain_text("Listen to B first.")
    expect(button(panel, "no difference")).to_be_disabled()
    clip(panel, "1 of 2", "B").get_by_role("button", name="Play").click()
    expect(button(panel, "A is better")).to_be_enabled()
    panel.get_by_placeholder("why?").fill("warmer")
    button(panel, "A is better").click()
    expect(panel).to_contain_text("2 of 2")
    expect(button(panel, "A is better")).to_be_disabled()
    assert answers(lab, page) == "[('A', 'warmer', '1', '1')]\n"


def test_the_players_show_nothing_of_the_clips_and_offer_no_file(panel):
    expect(panel.locator("canvas")).to_have_count(2)
    expect(panel.get_by_role("button", name="Download")).to_have_count(0)
    assert "quiet" not in panel.inner_html() and "loud" not in panel.inner_html()


def test_an_answer_can_be_undone_until_the_result_is_shown(lab, page, panel):
    for pair, name in (("1 of 2", "A is better"), ("2 of 2", "B is better")):
        listen(panel, pair)
        button(panel, name).click()
    expect(panel).to_contain_text("Thank you, Ada")
    button(panel, "undo").click()
    expect(panel).to_contain_text("2 of 2")
    listen(panel, "2 of 2")
    button(panel, "no difference").click()
    expect(panel).to_contain_text("Thank you, Ada")
    assert "quiet" not in panel.inner_html()
    button(panel, "show my result").click()
    expect(panel.locator("table")).to_contain_text("quiet")
    expect(panel).to_contain_text("no difference: 1; p = 1")
    expect(button(panel, "undo")).to_be_disabled()
    page.set_viewport_size({"width": 400, "height": 900})
    texts = panel.locator(".widget-html")
    assert texts.evaluate_all("texts => texts.every(text => text.scrollWidth <= text.clientWidth)")
    assert [line[1:4] for line in eval(answers(lab, page))] == [("", "1", "1")] * 2


def test_the_panel_fits_a_phone(page, panel):
    page.set_viewport_size({"width": 400, "height": 900})
    for name in ("A is better", "no difference", "undo", "show my result"):
        box = button(panel, name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400, name

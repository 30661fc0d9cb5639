"""Takes as material, under real clicks: star, rename, delete, continue, melody, more, code, downloads."""

import io
import json
import zipfile

import pytest
from playwright.sync_api import expect

from browser.conftest import SECONDS, wait_until
from browser.panel import CELLS, Panel
from mgkit import audio


@pytest.fixture
def two(lab, panel, page) -> Panel:
    """The panel with two takes of two seconds."""
    lab.run(page, "[panel.generate(prompt='calm piano', duration=2, seed=seed) for seed in (1, 2)]")
    expect(panel.cards).to_have_count(2)
    return panel


def titles(panel: Panel) -> list[str]:
    """Name or prompt on each card, newest first."""
    read = "cards => cards.map(c => { const i = c.querySelector('input'); return i.value || i.placeholder })"
    return panel.cards.evaluate_all(read)


def saved(page, click) -> tuple[str, bytes]:
    """Name and content of the file that a click downloads."""
    with page.expect_download() as download:
        click()
    with open(download.value.path(), "rb") as file:
        return download.value.suggested_filename, file.read()


def test_starting_a_sound_stops_the_other_unless_shift_is_held(two, page):
    play = [two.cards.nth(i).locator("button.play") for i in range(2)]
    for card in range(2):
        two.cards.nth(card).get_by_role("button", name="Loop").click()
    play[0].click()
    wait_until(lambda: two.playing(0), "the first plays")
    play[1].click()
    wait_until(lambda: two.playing(1) and not two.playing(0), "the second alone")
    play[0].click(modifiers=["Shift"])
    wait_until(lambda: two.playing(0) and two.playing(1), "both")


def test_a_take_is_starred_renamed_deleted_and_brought_back(two, lab, page):
    card = two.cards.first
    card.get_by_role("button", name="star").click()
    card.locator("input").fill("My <tune>")
    card.locator("input").press("Enter")
    wait_until(lambda: lab.run(page, "print(panel.takes[1].name)") == "My <tune>\n", "the name")
    two.button("★ only").click()
    expect(two.cards.nth(1)).to_be_hidden()
    two.button("★ only").click()
    card.get_by_role("button", name="Delete").click()
    expect(two.cards).to_have_count(1)
    two.button("Undo").click()
    expect(two.cards).to_have_count(2)
    assert titles(two) == ["My <tune>", "calm piano"]
    expect(two.cards.first.get_by_role("button", name="star")).to_have_attribute("aria-pressed", "true")


def test_start_over_asks_and_can_be_undone(two, page):
    two.field("Prompt").fill("fast jazz")
    two.button("Start over").click()
    two.button("No").click()
    expect(two.cards).to_have_count(2)
    two.button("Start over").click()
    two.button("Yes").click()
    expect(two.cards).to_have_count(0)
    expect(two.field("Prompt")).to_have_value("")
    expect(two.go).to_be_enabled()
    two.button("Undo").click()
    expect(two.cards).to_have_count(2)
    two.enter("Seconds", "1")
    two.generate(3)
    assert two.duration() == pytest.approx(1, abs=0.02)


def test_takes_survive_a_reload_of_the_page_and_a_new_kernel(two, lab, page):
    lab.end_kernels()
    lab.open(page, lab.write("studio.ipynb", CELLS))
    lab.run_all(page)
    again = Panel(page)
    expect(again.cards).to_have_count(2)
    # the sound comes when it is played
    again.cards.first.locator("button.play").click()
    assert again.duration() == pytest.approx(2, abs=0.02)


def test_a_take_is_continued_varied_and_used_as_a_melody(two, lab, page):
    two.cards.first.get_by_role("button", name="Continue").click()
    expect(two.cards).to_have_count(3, timeout=SECONDS * 1000)
    two.idle()
    assert two.duration() == pytest.approx(10, abs=0.05)
    expect(two.cards.first).to_contain_text("continues take 2")
    two.cards.nth(2).get_by_role("button", name="More like this").click()
    expect(two.cards).to_have_count(6, timeout=SECONDS * 1000)
    two.idle()
    seeds = json.loads(lab.run(page, "print([take.manifest['seed'] for take in panel.takes[3:]])"))
    assert sorted(seeds) == seeds and len(set(seeds)) == 3
    two.cards.nth(5).get_by_role("button", name="Use as melody").click()
    expect(page.locator("canvas[role=application]")).to_be_visible()
    assert lab.run(page, "print(panel.controls['melody'].sound.name)") == "take 1\n"


def test_downloads_have_the_chosen_format_and_every_take(two, page):
    for name in ("WAV", "FLAC", "MP3"):
        two.root.get_by_label("format").select_option(name)
        file, content = saved(page, two.cards.first.get_by_role("button", name="Download").click)
        assert file == f"take-002-seed-2.{name.lower()}"
        assert audio.decode(content, file)[0].shape[-1] == pytest.approx(64000, abs=3000)
    file, content = saved(page, two.button("Download all").click)
    with zipfile.ZipFile(io.BytesIO(content)) as takes:
        assert takes.namelist() == ["take-001-seed-1.mp3", "take-002-seed-2.mp3"]


def test_a_take_is_copied_as_code(two, page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    two.cards.first.get_by_role("button", name="Copy as code").click()
    expect(two.cards.first.get_by_role("button", name="Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    assert "model.generate(['calm piano'], seed=2)" in code

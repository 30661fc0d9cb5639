"""The studio under real clicks, in JupyterLab: order of the panel, runs, seeds, sound, and Stop."""

import time

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import SECONDS, wait_until
from mgkit import audio

# Seconds. Stop takes less than one on an idle machine with two cores, but JupyterLab, its kernel, the browser
# and the test share them. It must not depend on the remaining work: a minute of music takes much longer.
ALLOWED = 10


def lengths(lab, page: Page) -> list[int]:
    """Samples of each take in the kernel."""
    return [int(n) for n in lab.run(page, "print(*[take.wave.shape[-1] for take in panel.takes])").split()]


def test_generate_moves_the_bar_and_shows_a_player_with_a_complete_download(
    lab, panel, page, tmp_path, refused
):
    panel.field("Prompt").fill("calm piano")
    panel.enter("Seconds", "3")
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
    panel.cards.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.mgkit-take audio').currentTime > 0.1")

    with page.expect_download() as download:
        panel.cards.get_by_role("button", name="Download").click()
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
    panel.cards.first.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.mgkit-take audio').currentTime > 0.05")

    panel.enter("Seconds", "2")
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
    panel.enter("Seconds", "2")
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


def test_two_takes_switch_at_the_same_position(lab, panel, page):
    lab.run(page, "[panel.generate(duration=3, seed=seed) for seed in (1, 2)]")
    panel.root.get_by_text("Compare two takes").click()
    both = panel.root.locator("figure:has(+ figure), figure + figure").locator("audio")
    expect(both).to_have_count(2)
    both.first.evaluate("player => { player.currentTime = 1; return player.play() }")
    page.wait_for_timeout(300)
    panel.root.get_by_role("button", name="Switch").click()
    wait_until(lambda: not both.last.evaluate("player => player.paused"), "the other one plays")
    assert both.first.evaluate("player => player.paused")
    assert both.last.evaluate("player => player.currentTime") >= 1


def test_the_panel_begins_with_the_prompt_and_every_input_says_what_it_does(panel, page):
    top = [
        panel.field("Prompt"),
        panel.button("text"),
        panel.go,
        panel.field("Seconds"),
        panel.field("Model"),
    ]
    heights = [part.bounding_box()["y"] for part in top]
    assert heights == sorted(heights)
    chip = panel.root.get_by_role("button", name="happy folk with violin")
    chip.click()
    expect(panel.field("Prompt")).to_have_value("happy folk with violin, with drums, 120 bpm")
    panel.root.get_by_text("Advanced").click()
    expect(panel.root.get_by_text("Guidance (CFG)")).to_be_visible()
    assert page.locator(".mgkit-studio [title=null]:visible").count() == 0
    named = page.locator(".mgkit-setting label[title], .mgkit-setting .widget-label[title]")
    assert named.count() >= 8


def test_a_typed_seed_stays_and_the_dice_draw_another(lab, panel, page):
    panel.enter("Seconds", "1")
    panel.enter("Seed", "42")
    panel.generate(1)
    panel.generate(2)
    expect(panel.field("Seed")).to_have_value("42")
    panel.root.locator(".mgkit-dice").click()
    expect(panel.field("Seed")).not_to_have_value("42")
    panel.generate(3)
    panel.generate(4)
    seeds = lab.run(page, "print(*[take.manifest['seed'] for take in panel.takes])").split()
    assert seeds[:2] == ["42", "42"] and len(set(seeds)) == 3


def test_a_click_on_generate_is_heard_while_the_music_is_made_and_a_call_is_not(lab, panel, page):
    lab.run(page, "panel.generate(duration=2, seed=1)")
    page.wait_for_timeout(1500)
    assert lab.run(page, "print(panel.live.started, panel.live.played)") == "False 0.0\n"
    panel.start_a_minute()
    page.wait_for_function("document.querySelector('.mgkit-studio').textContent.includes('s played')")
    assert lab.run(page, "print(panel.busy)") == "True\n"
    # one Stop, for the run and for its sound
    assert panel.stop.count() == 1
    panel.stop.click()
    expect(panel.cards).to_have_count(2, timeout=ALLOWED * 1000)
    wait_until(lambda: lab.run(page, "print(panel.live.started)") == "False\n", "it is silent")
    panel.idle()


def test_an_error_is_red_in_one_place_and_gone_after_the_next_choice(panel):
    panel.enter("Seconds", "-1")
    panel.go.click()
    expect(panel.problem).to_have_count(1)
    expect(panel.problem).to_contain_text("Seconds is -1")
    panel.enter("Seconds", "2")
    expect(panel.problem).to_have_count(0)

"""The blind test's panel in a real browser: both clips play, and each click is saved."""

from playwright.sync_api import expect

CELL = """
import torch
from mgkit.lab import blind_test, preferences

second = torch.sin(torch.arange(32000) * 0.05)[None]
quiet = 0.1 * second.flip(-1)
pairs = [
    blind_test.Pair("Which one is cleaner?", f"tone {i}", {"loud": second, f"quiet {i}": quiet})
    for i in range(2)
]
blind_test.DEBOUNCE = 0.0
test = blind_test.BlindTest(pairs, 32000, "answers.csv", "{listener}")
test.widget()
"""


def test_the_panel_plays_both_clips_and_saves_each_click(lab, page):
    lab.open(page, lab.write("blind.ipynb", [CELL.replace("{listener}", "")]))
    lab.run_all(page)
    panel = lab.output(page, 0)
    press = {name: panel.get_by_role("button", name=name) for name in ("A is better", "no difference")}
    expect(press["A is better"]).to_be_disabled()
    panel.get_by_placeholder("your name").fill("Ada")
    panel.get_by_placeholder("your name").press("Enter")
    expect(panel).to_contain_text("1 of 2")
    sounds = panel.locator("audio")
    expect(sounds).to_have_count(2)
    for sound in sounds.all():
        sound.evaluate("sound => sound.load()")
        seconds = sound.evaluate(
            "sound => new Promise(done => sound.duration ? done(sound.duration)"
            " : sound.addEventListener('loadedmetadata', () => done(sound.duration)))"
        )
        assert abs(seconds - 1) < 0.02
    assert "quiet" not in panel.inner_html() and "loud" not in panel.inner_html()

    panel.get_by_placeholder("why?").fill("warmer")
    press["A is better"].click()
    expect(panel).to_contain_text("2 of 2")
    press["no difference"].click()
    expect(panel).to_contain_text("Thank you, Ada")
    rows = "[(row['answer'], row['comment']) for row in preferences.read('answers.csv')]"
    assert lab.run(page, f"print({rows})") == "[('A', 'warmer'), ('same', '')]\n"

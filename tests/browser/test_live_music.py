"""The live notebook's sliders in a real JupyterLab: music continues while they are moved."""

import json
from pathlib import Path

import nbformat

from browser.conftest import wait_until

ROOT = Path(__file__).parent.parent.parent


def desk_cells() -> list[str]:
    """The notebook's cells for the live player and its sliders, with a tiny and fast model."""
    cells = nbformat.read(ROOT / "notebooks/08_live.ipynb", as_version=4).cells
    wanted = (
        "from mgkit.lab.player import",
        "calm, wild =",
        "sliders = [",
        "def weights",
        "desk = LivePlayer",
    )
    parts = [
        [cell.source for cell in cells if cell.cell_type == "code" and what in cell.source] for what in wanted
    ]
    assert all(len(found) == 1 for found in parts)
    imports, prompts, *desk = (found[0] for found in parts)
    path = str(ROOT / "tests")
    tiny = f"import sys\nsys.path.insert(0, {path!r})\nfrom tiny import tiny\nmodel = tiny()\n"
    tiny += "rate = model.sample_rate"
    return [imports, tiny, prompts.splitlines()[0], *desk]


def test_the_music_continues_while_sliders_are_moved_and_replays(lab, page, refused):
    cells = desk_cells()
    lab.open(page, lab.write("live.ipynb", cells))
    lab.run_all(page)

    def fact(expression: str):
        return json.loads(lab.run(page, f"import json; print(json.dumps({expression}))"))

    desk = lab.output(page, len(cells) - 1)
    desk.get_by_role("button", name="Play").click()
    wait_until(lambda: fact("desk.played") > 1, "something was played")
    slider = desk.get_by_role("slider").nth(1)
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    wait_until(lambda: fact("sliders[1].value") > 0, "the slider reached the kernel")
    pushed = fact("desk.pushed")
    wait_until(lambda: fact("desk.pushed") > pushed + 2, "the music continued")
    desk.get_by_role("button", name="Stop").click()
    wait_until(lambda: fact("desk._finished"), "Stop ended it")
    assert fact("desk.message") == "" and fact("desk.discontinuities") == 0
    assert fact("desk.context_rate") == 32000
    # of the work alone, without waiting
    assert 0 < fact("desk.speed") < 100
    timeline = fact("sessions[-1].manifests[0]['text']")
    assert timeline[0][1] == fact("calm") and fact("wild") in timeline[-1][1]
    assert fact(
        "model.replay(sessions[-1].manifests[0])[1].shape[-1] == sessions[-1].manifests[0]['frames'] > 0"
    )
    assert refused == []

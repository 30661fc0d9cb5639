"""The gallery in a browser, from files: panels are shown, players play, links work, light and dark."""

import subprocess
import sys

import nbformat
import pytest
from playwright.sync_api import expect

from browser.conftest import ROOT, assert_fits, assert_follows_theme, isolated

CELLS = {
    "01_panels": [
        "from mgkit.lab import studio\nstudio.Studio(folder='takes')",
        "import ipywidgets\nipywidgets.interact(lambda x: print('x is', x), x=(0, 5));",
        "import torch\nfrom mgkit.lab import player\nwave = 0.5 * torch.sin(torch.arange(64000) / 20)[None]\n"
        "ipywidgets.VBox([player.Player(wave, 32000, 'sine'), player.LivePlayer(32000, seconds=10)])",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    ],
    "02_other": ["print('other')"],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a gallery of two notebooks."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "notebooks").mkdir()
    (folder / "mgkit").mkdir()
    (folder / "mgkit" / "lm.py").write_text("# the model\n", encoding="utf-8")
    for name, sources in CELLS.items():
        links = "[the other](02_other.ipynb), [code](../mgkit/lm.py), [nowhere](03_none.ipynb)"
        cells = [nbformat.v4.new_markdown_cell(f"# About {name}\n\n{links}")]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")
    environment = isolated(folder) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mgkit", "gallery"]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=600)
    return folder / "outputs" / "gallery"


def test_from_the_index_to_a_panel_a_player_and_back_offline(site, page, refused):
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((site / "index.html").as_uri())
    page.get_by_role("link", name="About 01_panels").click()
    panels = page.locator(".mgkit-frozen")
    expect(panels).to_have_count(3)
    # the panel as it was: its fields and its list of takes are there, and do nothing
    expect(panels.nth(0).get_by_role("button", name="Generate", exact=True)).to_be_disabled()
    expect(panels.nth(0).get_by_text("What you generate appears here")).to_be_visible()
    panels.nth(0).get_by_text("Advanced").click()
    expect(panels.nth(0).get_by_text("Temperature", exact=True)).to_be_visible()
    expect(panels.nth(1).get_by_text("x is 2")).to_be_visible()
    sound = panels.nth(2).locator("audio")
    panels.nth(2).get_by_role("button", name="Play").first.click()
    page.wait_for_function("sound => sound.currentTime > 0.2", arg=sound.element_handle())

    expect(page.get_by_text("nowhere")).not_to_have_attribute("href", "")
    page.get_by_role("link", name="code").click()
    expect(page.locator("body")).to_contain_text("# the model")
    page.go_back()
    page.get_by_role("link", name="the other").click()
    expect(page.get_by_role("heading", name="About 02_other")).to_be_visible()
    page.get_by_role("link", name="all notebooks").click()
    expect(page.get_by_role("link", name="About")).to_have_count(2)
    assert refused == [] and problems == []


@pytest.mark.parametrize("name", ["index", "01_panels"])
def test_pages_fit_every_screen_and_follow_the_theme(site, page, name):
    page.goto((site / f"{name}.html").as_uri())
    assert_fits(page)
    assert_follows_theme(page, "h1")

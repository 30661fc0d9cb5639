"""The gallery: one self-contained page per notebook, and failures are reported by name."""

import asyncio
import base64
import json
import re
import time
from pathlib import Path
from queue import Empty
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mgkit.__main__ import main
from mgkit.lab.gallery import command, frozen, notebook_page, runner

DOT = base64.b64encode(b"\x89PNG not looked into").decode()
OTHER = base64.b64encode(b"\x89PNG another").decode()
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.example/x)"
)


def executed():
    """An executed notebook with a badge, a link, two pictures, two players and a widget."""
    outputs = [
        new_output("display_data", {"image/png": DOT + "\n"}),
        new_output("display_data", {"text/html": "<audio src='data:,'></audio><audio src='data:,'></audio>"}),
        new_output(
            "display_data", {notebook_page.WIDGET: {"model_id": "1"}, "text/plain": "VBox(children=())"}
        ),
    ]
    cells = [
        new_markdown_cell(f"# What <is> it?\n\n{BADGE}"),
        new_code_cell("1", outputs=outputs),
        new_markdown_cell("Go on with [the codec](05_codec.ipynb)."),
        new_code_cell("2", outputs=[new_output("display_data", {"image/png": OTHER})]),
    ]
    return new_notebook(cells=cells)


def fetched(page):
    """URLs that a browser would fetch for a page: sources, style sheets, images in styles."""
    found = re.findall(r"""<(?:script|img|audio|iframe|source)\b[^>]*?\bsrc=["']([^"']*)""", page)
    found += re.findall(r"""<link\b[^>]*\bhref=["']([^"']*)""", page)
    found += re.findall(r"""(?:url\(|@import )["']?([^"')]+)""", page)
    return [address for address in found if not address.startswith(("data:", "#", "%23"))]


def test_pages_fetch_nothing():
    assert fetched('<img src="https://x/y.png"><link href="a.css"><script src=""></script>') == [
        "https://x/y.png",
        "",
        "a.css",
    ]
    page = notebook_page.page(executed(), "01_demo")
    assert "the codec" in page and page.count('src="data:image/png') == 2
    assert fetched(page) == []
    assert fetched(command.index([command.card(executed(), "01_demo", 1.0, "")])) == []


def test_a_page_keeps_the_badge_as_a_link_and_links_to_the_other_pages():
    page = notebook_page.page(executed(), "01_demo", names={"05_codec"})
    assert 'href="https://colab.example/x"' in page
    assert 'href="05_codec.html"' in page and "05_codec.ipynb" not in page
    assert 'href="index.html"' in page


def test_a_solution_stays_folded():
    """With embedded image files, nbconvert closes a fold at its first blank line."""
    notebook = new_notebook(
        cells=[
            new_markdown_cell("<details><summary>Solution</summary>\n\nIt is `42`.\n\n</details>\n\nGo on.")
        ]
    )
    page = notebook_page.page(notebook, "01_demo")
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "<code>42</code>" in folded and "Go on" not in folded


def test_a_widget_without_state_becomes_a_note():
    page = notebook_page.page(executed(), "01_demo")
    assert notebook_page.NOTE in page and "VBox(children" not in page


def widgets(**models):
    """Saved state of widgets, by name: kind and state."""
    return {name: {"model_name": f"{kind}Model", "state": kept} for name, (kind, kept) in models.items()}


def saved(state):
    """A notebook that shows the widget `root`, with this state."""
    output = new_output("display_data", {notebook_page.WIDGET: {"model_id": "root"}})
    notebook = new_notebook(cells=[new_code_cell("panel", outputs=[output])])
    notebook.metadata["widgets"] = {notebook_page.STATE: {"state": state}}
    return notebook


def test_a_panel_is_shown_as_it_was_with_disabled_controls():
    wide = {"width": "50%", "flex_flow": "row wrap", "_view_name": "LayoutView", "height": None}
    children = [f"IPY_MODEL_{name}" for name in ("text", "slider", "menu", "go", "zero", "fold", "odd")]
    state = widgets(
        root=("VBox", {"children": children, "layout": "IPY_MODEL_wide", "_dom_classes": ["mgkit-studio"]}),
        wide=("Layout", wide),
        text=("Textarea", {"description": "Prompt", "value": "calm <piano>"}),
        slider=("FloatSlider", {"description": "Guidance", "min": 0, "max": 10, "step": 0.1, "value": 3.5}),
        menu=("Dropdown", {"description": "Model", "_options_labels": ["nano", "small"], "index": 1}),
        go=("Button", {"description": "Generate", "button_style": "primary"}),
        zero=("FloatText", {"description": "Seed", "value": 0}),
        fold=(
            "Accordion",
            {"titles": ["Advanced"], "children": ["IPY_MODEL_inside"], "selected_index": None},
        ),
        inside=("Output", {"outputs": [new_output("stream", text="a & b")]}),
        odd=("Video", {}),
    )
    body = frozen.Frozen(state).html("root")
    assert 'class="jupyter-widgets widget-container widget-box widget-vbox mgkit-studio"' in body
    assert 'style="width: 50%; flex-flow: row wrap"' in body
    assert "<textarea disabled>calm &lt;piano&gt;</textarea>" in body
    assert 'type="range" min="0" max="10" step="0.1" value="3.5" disabled' in body and ">3.5<" in body
    assert "<option selected>small</option>" in body
    assert "mod-primary" in body and "disabled>Generate</button>" in body
    assert 'value="0"' in body and "<pre>a &amp; b</pre>" in body
    assert "<details><summary>Advanced</summary>" in body
    assert "Video: in the running notebook" in body
    assert "<div" in notebook_page.page(saved(state), "01_demo").partition('class="mgkit-frozen"')[2]


def test_a_widget_with_a_view_of_its_own_runs_it_on_the_saved_state():
    script = "export default { render({ model, el }) { el.textContent = model.get('text') } } // </script>"
    state = widgets(
        root=("HBox", {"children": ["IPY_MODEL_one", "IPY_MODEL_two"]}),
        one=("Any", {"_esm": script, "text": "</script><b>one</b>"}),
        two=("Any", {"_esm": script, "text": "two"}),
    )
    page = notebook_page.page(saved(state), "01_demo")
    data = re.search(r'<script type="application/json" id="mgkit-frozen">(.*?)</script>', page)[1]
    shown = json.loads(data)
    assert list(shown["scripts"].values()) == [script]
    assert {name: model["state"]["text"] for name, model in shown["models"].items()} == {
        "one": "</script><b>one</b>",
        "two": "two",
    }
    assert page.count("data-frozen=") == 2


def test_the_setup_is_folded():
    cell = new_code_cell("import sys", metadata={"tags": ["setup"]})
    page = notebook_page.page(new_notebook(cells=[cell]), "01_demo")
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "Setup" in folded and "sys" in folded and "jp-CodeCell" not in page[page.index("<body") :]


# --- links ------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """A folder of notebooks beside files that their pages may link to, and one outside."""
    for name, content in {
        "house/notebooks/solutions/01.md": "[back](../01_demo.ipynb) [code](../../mgkit/lm.py) [no](x.md)",
        "house/notebooks/images/dot.png": "a picture",
        "house/notebooks/02_new.ipynb": "{}",
        "house/mgkit/lm.py": "# <a href=none>",
        "house/outputs/a b.wav": "sound",
        "secret.txt": "secret",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path / "house" / "notebooks"


def hrefs(page):
    """Targets of the links that leave a page, but for nbconvert's anchors of headings."""
    body = page[page.index("<body") :]
    return [
        href for href in re.findall(r"""<a\b[^>]*\bhref=["']([^"']*)""", body) if not href.startswith("#")
    ]


def test_no_link_of_a_gallery_is_dead(repository, tmp_path):
    out = tmp_path / "out"
    text = (
        "# Links\n\n[one](01_demo.ipynb#What-can-it-do?) [two](02_new.ipynb) [solutions](solutions/01.md) "
        "[code](../mgkit/lm.py#L3) [folder](../mgkit) [sound](../outputs/a%20b.wav) [gone](nothing.txt) "
        "[outside](../../secret.txt) [web](https://example.org/x) [here](#links) `[0](x)`\n\n"
        '<a href="../mgkit/lm.py">raw</a>\n\n![dot](images/dot.png)'
    )
    notebook = new_notebook(cells=[new_markdown_cell(text)])
    page = notebook_page.page(notebook, "03_x", repository, out, {"01_demo", "03_x"})
    for name in ("01_demo", "index"):
        (out / f"{name}.html").write_text("", encoding="utf-8")
    assert hrefs(page) == [
        "index.html",
        "01_demo.html#What-can-it-do?",
        "files/notebooks/solutions/01.html",
        "files/mgkit/lm.py.txt#L3",
        "files/outputs/a%20b.wav",
        "https://example.org/x",
        "files/mgkit/lm.py.txt",
    ]
    for absent in ("two", "folder", "gone", "outside"):
        assert re.search(rf'<span class="mgkit-absent" title="[^"]+">{absent}</span>', page)
    assert "secret" not in "".join(path.name for path in out.rglob("*"))
    assert fetched(page) == []
    # documents are pages with links of their own
    answers = out / "files/notebooks/solutions/01.html"
    found = hrefs(answers.read_text(encoding="utf-8"))
    assert found == ["../../../index.html", "../../../01_demo.html", "../../../files/mgkit/lm.py.txt"]
    for target in found:
        assert (answers.parent / target).resolve().is_file()
    assert (out / "files/mgkit/lm.py.txt").read_text(encoding="utf-8") == "# <a href=none>"


def test_no_link_in_the_texts_of_our_notebooks_is_dead(tmp_path):
    folder = Path(__file__).parent.parent / "notebooks"
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    names = {path.stem for path in paths}
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        page = notebook_page.page(notebook, path.stem, folder, tmp_path, names)
        (tmp_path / f"{path.stem}.html").write_text(page, encoding="utf-8")
        # nothing that we link to is missing from the repository
        assert "mgkit-absent" not in page[page.index("<body") :], path.name
    (tmp_path / "index.html").write_text("", encoding="utf-8")
    for page in tmp_path.rglob("*.html"):
        for target in hrefs(f"<body{page.read_text(encoding='utf-8').partition('<body')[2]}"):
            if not target.startswith(("https://", "http://", "data:")):
                file = page.parent / unquote(target.partition("#")[0])
                assert file.is_file(), f"{page.name} links to {target}"


def test_the_pages_follow_the_theme():
    page = notebook_page.page(executed(), "01_demo")
    assert "data-jp-theme" not in page[page.index("<body") : page.index("<body") + 200]
    dark = page[page.index("@media (prefers-color-scheme: dark) { /*") :]
    assert "--jp-layout-color0: #111" in dark and "--jp-mirror-editor-keyword-color" in dark
    index = command.index([command.card(executed(), "01_demo", 1.0, "")])
    assert "prefers-color-scheme: dark" in index and "#fff;" not in index.partition(".card")[2]


def test_the_index_keeps_earlier_pages_that_are_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "execute", lambda notebook, folder: "")
    paths = [tmp_path / f"0{i}_x.ipynb" for i in (1, 2, 3)]
    for path in paths:
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# Title of {path.stem}")]), path)
    out = tmp_path / "out"
    command.gallery(paths[1:], out)
    (out / "03_x.html").unlink()
    [card] = command.gallery(paths[:1], out)
    assert card.name == "01_x"
    index = (out / "index.html").read_text(encoding="utf-8")
    assert hrefs(index) == ["01_x.html", "02_x.html"]
    (out / command.CARDS).write_text("damaged", encoding="utf-8")
    command.gallery(paths[:1], out)
    assert hrefs((out / "index.html").read_text(encoding="utf-8")) == ["01_x.html"]


# --- the screen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "platform, screen, opens",
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "a b"}, False),
    ],
)
def test_a_page_opens_only_where_there_is_a_screen(platform, screen, opens, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in screen.items():
        monkeypatch.setenv(name, value)
    opened = []
    monkeypatch.setattr(command.sys, "platform", platform)
    monkeypatch.setattr(command.webbrowser, "open", lambda address: opened.append(address) or True)
    assert command.open_page(tmp_path / "a b.html") == opens
    assert opened == ([(tmp_path / "a b.html").as_uri()] if opens else [])

    def fail(address):
        raise command.webbrowser.Error("no browser")

    monkeypatch.setattr(command.webbrowser, "open", fail)
    assert command.open_page(tmp_path / "a b.html") is False


@pytest.mark.parametrize("count, page", [(1, "01_x.html"), (2, "index.html")])
def test_the_command_opens_the_page_that_it_made(count, page, tmp_path, monkeypatch):
    paths = [str(tmp_path / f"0{i}_x.ipynb") for i in range(1, count + 1)]
    for path in paths:
        nbformat.write(new_notebook(), path)
    opened = []
    monkeypatch.setattr(command, "execute", lambda notebook, folder: "")
    monkeypatch.setattr(command, "open_page", opened.append)
    assert main(["gallery", *paths, f"--out={tmp_path / 'out'}"]) == 0 and opened == []
    assert main(["gallery", *paths, f"--out={tmp_path / 'out'}", "--open"]) == 0
    assert opened == [tmp_path / "out" / page] and opened[0].is_file()


def test_the_card_has_the_tagged_picture_or_the_first():
    notebook = executed()
    plain = command.card(notebook, "05_codec", 12.3, "")
    assert (plain.picture, plain.sounds, plain.question) == (DOT, 2, "What is a token?")
    notebook.cells[3].metadata["tags"] = ["picture"]
    assert command.card(notebook, "05_codec", 12.3, "").picture == OTHER
    assert command.card(new_notebook(), "99_none", 0.0, "").picture == ""


def test_the_index_links_to_every_page_and_escapes_texts():
    cards = [command.card(executed(), name, 12.3, "") for name in command.SERIES]
    bad = command.Card("99_x", "<b>", "", "", 0, 1.0, "stopped in cell 3: ValueError: <script>")
    page = command.index([*cards, bad])
    for name, question in command.SERIES.items():
        assert f'href="{name}.html"' in page and question in page
    assert "<script>" not in page and "stopped in cell 3" in page


@pytest.mark.parametrize("argv", [["none.ipynb"], []])
def test_missing_notebooks_are_reported_in_one_line(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["gallery", *argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("mgkit: there is no ") and message.count("\n") == 1


@pytest.mark.slow
def test_a_failing_notebook_is_reported_and_the_others_are_written(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    sources = {
        "01_good": ["assert __import__('os').getcwd().endswith('notebooks')\nprint('came ' + 'through')"],
        "02_bad": ["print('up to ' + 'here')", "1 / 0", "print('not ' + 'this')"],
        "04_controls": [
            "import ipywidgets\n@ipywidgets.interact(x=(0, 3))\ndef show(x=1):\n    print('dra' + 'wn')",
            "show(x=2)",
        ],
        "05_last": ["print('came ' + 'through')"],
    }
    for name, cells in sources.items():
        nbformat.write(new_notebook(cells=list(map(new_code_cell, cells))), folder / f"{name}.ipynb")
    (folder / "03_broken.ipynb").write_text("no JSON", encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)

    assert main(["gallery"]) == 1
    output = capsys.readouterr()
    assert output.err.splitlines()[0] == "02_bad.ipynb stopped in cell 2: ZeroDivisionError: division by zero"
    assert output.err.splitlines()[1].startswith("03_broken.ipynb could not be read")
    assert len(output.err.splitlines()) == 2 and "5 notebooks, 2 failed" in output.out
    site = {
        path.stem: path.read_text(encoding="utf-8")
        for path in (tmp_path / "outputs" / "gallery").glob("*.html")
    }
    assert set(site) == {"index", "03_broken", *sources}
    assert "came through" in site["01_good"] and "came through" in site["05_last"]
    assert "up to here" in site["02_bad"] and "not this" not in site["02_bad"]
    # the panel as it stood: a slider at 1, and what it drew
    panel = site["04_controls"].partition('class="mgkit-frozen"')[2]
    assert 'value="1"' in panel and "<pre>drawn" in panel
    assert "ZeroDivisionError" in site["index"] and 'href="05_last.html"' in site["index"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert all(fetched(page) == [] for page in site.values())


def test_parameters_are_replaced_below_the_cell_that_holds_them(tmp_path, monkeypatch, capsys):
    defaults = new_code_cell("seeds = 2", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[defaults, new_code_cell("print('seeds:', 2 * seeds)")])
    nbformat.write(notebook, tmp_path / "01_x.ipynb")
    before = (tmp_path / "01_x.ipynb").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["gallery", "01_x.ipynb", "--out", "site", "--parameters", "seeds=8"]) == 0
    assert "seeds: 16" in (tmp_path / "site" / "01_x.html").read_text(encoding="utf-8")
    assert (tmp_path / "01_x.ipynb").read_bytes() == before
    assert main(["gallery", "01_x.ipynb", "--out", "site", "--parameters", "seed=8"]) == 1
    assert "no parameter 'seed' (it has: seeds)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["seeds", "seeds=", "=8", "seeds=many", "two words=2"])
def test_a_parameter_of_another_form_is_refused_before_anything_runs(text, capsys):
    assert main(["gallery", "--parameters", text]) == 2
    assert "write NAME=VALUE" in capsys.readouterr().err


def test_a_reply_that_nobody_announced_is_found(monkeypatch):
    monkeypatch.setattr(runner, "LOOK", 0.05)
    asked = []

    async def deaf(timeout):
        asked.append(timeout)
        await asyncio.sleep(timeout)
        if len(asked) < 3:
            raise Empty
        return {"content": "done"}

    began = time.monotonic()
    assert asyncio.run(runner._looking(deaf)(timeout=60)) == {"content": "done"}
    assert asyncio.run(runner._looking(deaf)(timeout=None)) == {"content": "done"}
    assert time.monotonic() - began < 30 and max(asked) <= 0.05


def test_a_reply_that_does_not_come_is_given_up_at_the_time_limit(monkeypatch):
    monkeypatch.setattr(runner, "LOOK", 0.05)

    async def silent(timeout):
        await asyncio.sleep(timeout)
        raise Empty

    began = time.monotonic()
    with pytest.raises(Empty):
        asyncio.run(runner._looking(silent)(timeout=0.2))
    assert time.monotonic() - began >= 0.2

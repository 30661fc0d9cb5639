"""The gallery: one self-contained page per notebook, and failures are reported by name."""

import base64
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mgkit.__main__ import main
from mgkit.lab import gallery

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
        new_output("display_data", {gallery.WIDGET: {"model_id": "1"}, "text/plain": "VBox(children=())"}),
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
    page = gallery.page(executed(), "01_demo")
    assert "the codec" in page and page.count('src="data:image/png') == 2
    assert fetched(page) == []
    assert fetched(gallery.index([gallery.card(executed(), "01_demo", 1.0, "")])) == []


def test_a_page_keeps_the_badge_as_a_link_and_links_to_the_other_pages():
    page = gallery.page(executed(), "01_demo")
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
    page = gallery.page(notebook, "01_demo")
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "<code>42</code>" in folded and "Go on" not in folded


def test_widgets_become_a_note():
    page = gallery.page(executed(), "01_demo")
    assert gallery.NOTE in page and "VBox(children" not in page


def test_the_card_has_the_tagged_picture_or_the_first():
    notebook = executed()
    plain = gallery.card(notebook, "05_codec", 12.3, "")
    assert (plain.picture, plain.sounds, plain.question) == (DOT, 2, "What is a token?")
    notebook.cells[3].metadata["tags"] = ["picture"]
    assert gallery.card(notebook, "05_codec", 12.3, "").picture == OTHER
    assert gallery.card(new_notebook(), "99_none", 0.0, "").picture == ""


def test_the_index_links_to_every_page_and_escapes_texts():
    cards = [gallery.card(executed(), name, 12.3, "") for name in gallery.SERIES]
    bad = gallery.Card("99_x", "<b>", "", "", 0, 1.0, "stopped in cell 3: ValueError: <script>")
    page = gallery.index([*cards, bad])
    for name, question in gallery.SERIES.items():
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
        path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "outputs" / "gallery").iterdir()
    }
    assert set(site) == {"index", "03_broken", *sources}
    assert "came through" in site["01_good"] and "came through" in site["05_last"]
    assert "up to here" in site["02_bad"] and "not this" not in site["02_bad"]
    assert gallery.NOTE in site["04_controls"] and "drawn" in site["04_controls"]
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

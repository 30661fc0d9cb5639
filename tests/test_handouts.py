"""The pages of `make teach`: self-contained, current, and the handout on one page."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from mgkit.lab import handouts

ROOT = Path(__file__).parent.parent
TEACH = ROOT / "notebooks" / "teach"
SOURCES = sorted(TEACH.glob("*.md"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_page_fetches_nothing_and_has_no_dead_links(source):
    text = handouts.page(source)
    assert re.findall(r'src="(?!data:image/)[^"]*"', text) == []
    assert not re.search(r"<link|@import|url\(", text)
    for address in re.findall(r'href="([^"]+)"', text):
        known = address.startswith("https://") or (TEACH / address.replace(".html", ".md")).exists()
        assert known, address
    assert "What we found" not in text or source.stem != "instructor"
    assert "<title>" in text and "<h1>" in text


def test_findings_come_from_the_notebook_under_their_headings(tmp_path):
    fold = "<details><summary>What we found</summary>\n\nTwo of three, 66 %.\n\n</details>"
    cells = [
        ("markdown", "# Title\n\n**Time** a minute · **Level** any\n\n## First?"),
        ("code", "## no heading"),
        ("markdown", f"{fold}\n\n## Second?"),
    ]
    cells += [("markdown", fold.replace("66", "67"))]
    notebook = {"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}
    (tmp_path / "02.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    folder = tmp_path / "teach"
    folder.mkdir()
    (folder / "notes.md").write_text("# Notes\n\n[What we found](../02.ipynb)\n", encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", handouts.page(folder / "notes.md").split("<main>")[1])
    assert (
        " ".join(text.split())
        == "Notes Time: a minute. First? Two of three, 66 %. Second? Two of three, 67 %."
    )


def test_a_picture_that_is_missing_is_named(tmp_path):
    (tmp_path / "notes.md").write_text("![a picture](no.png)", encoding="utf-8")
    with pytest.raises(ValueError, match="no.png"):
        handouts.page(tmp_path / "notes.md")
    with pytest.raises(ValueError, match="no Markdown files"):
        handouts.build(tmp_path / "empty", tmp_path)


def test_every_notebook_has_its_section_in_the_instructor_s_notes():
    text = (TEACH / "instructor.md").read_text(encoding="utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"### {notebook.stem}:" in text, notebook.name
        assert f"[What we found](../{notebook.name})" in text, notebook.name


def tables(card: str) -> dict[tuple[str, str], str]:
    """Percentages of the model card by row and column."""
    cells: dict[tuple[str, str], str] = {}
    for block in re.split(r"\n\n", card):
        rows = [
            [cell.strip() for cell in line.strip("| ").split("|")]
            for line in block.splitlines()
            if "|" in line
        ]
        for row in rows[2:]:
            for column, cell in zip(rows[0][1:], row[1:], strict=False):
                if found := re.match(r"(\d+)%", cell):
                    cells[row[0], column] = found[1]
    return cells


def test_figures_of_the_model_card_are_up_to_date():
    """Written as `[78 %](../../data/nano/README.md "row / column")`."""
    cells = tables((ROOT / "data" / "nano" / "README.md").read_text(encoding="utf-8"))
    count = 0
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        for value, row, column in re.findall(r'\[(\d+) %\]\([^" )]*README\.md "([^"/]+) / ([^"]+)"\)', text):
            assert cells[row, column] == value, (source.name, row, column)
            count += 1
    assert count


def test_the_words_in_the_handout_are_those_of_the_captions():
    from mgkit.band import styles

    handout = (TEACH / "handout.md").read_text(encoding="utf-8")
    for title, names in (("Styles", styles.STYLES), ("Leads", styles.LEADS)):
        assert f"*{title}*: {', '.join(names)}." in handout


def test_without_mistune_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mistune", None)
    with pytest.raises(RuntimeError, match="pip install mistune"):
        handouts.page(SOURCES[0])


@pytest.mark.browser
def test_the_handout_is_one_page_and_a_slide_is_one_page(tmp_path):
    folder = tmp_path / "notebooks" / "teach"
    shutil.copytree(TEACH, folder)
    shutil.copytree(ROOT / "notebooks" / "images", folder.parent / "images")
    for path in folder.glob("*.md"):
        if path.stem not in ("handout", "slides"):
            path.unlink()
    handouts.build(folder, tmp_path / "out")
    slides = (folder / "slides.md").read_text(encoding="utf-8").split("\n---\n")
    for name, expected in (("handout", 1), ("slides", len(slides))):
        content = (tmp_path / "out" / f"{name}.pdf").read_bytes()
        assert len(re.findall(rb"/Type\s*/Page\b(?!s)", content)) == expected, name

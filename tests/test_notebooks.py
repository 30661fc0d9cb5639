"""Every notebook runs from top to bottom as it is committed, and is committed clean."""

import re
from pathlib import Path
from statistics import median

import nbformat
import pytest
from nbclient import NotebookClient

from mgkit.lab.gallery import SERIES

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLACK = 10  # times as long as it says may a notebook's cell take: a guard against hanging, not a measurement
NUMBERS = ("a", "two", "three", "four", "five", "six")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def minutes(notebook: nbformat.NotebookNode) -> int:
    """The minutes that a notebook says it takes, in its first cell."""
    [said] = re.findall(rf"about (\d+|{'|'.join(NUMBERS)}) minutes?", notebook.cells[0].source)
    return int(said) if said.isdigit() else 1 + NUMBERS.index(said)


def test_the_series_is_whole():
    assert [path.stem for path in NOTEBOOKS] == list(SERIES)


@each
def test_notebook_holds_no_outputs_and_no_widget_metadata(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@each
def test_notebook_has_a_badge_and_one_setup_cell_that_leaves_torch_alone(path):
    cells = read(path).cells
    assert f"colab.research.google.com/github/mgkit/mgkit/blob/main/notebooks/{path.name}" in cells[0].source
    setup = [cell for cell in cells if "setup" in cell.metadata.get("tags", [])]
    installing = [cell for cell in cells if re.search(r"^\s*[!%]\s*(uv )?(pip|conda)\b", cell.source, re.M)]
    assert len(setup) == 1
    assert installing in ([], setup)
    for line in re.findall(r"^\s*[!%].*\binstall\b.*$", setup[0].source, re.M):
        assert "--no-deps" in line, f"would let pip change torch: {line}"
        assert not re.search(r"\btorch", line), line


@each
def test_notebook_is_short_and_so_are_its_cells(path):
    cells = read(path).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert len(cells) < 40
    assert median(len(source.splitlines()) for source in code) <= 5
    assert any("assert " in source for source in code)


@each
def test_notebook_says_what_it_is_for_and_how_long_it_takes(path):
    notebook = read(path)
    assert re.match(r"# .+\n", notebook.cells[0].source)
    assert re.search(r"\b[Yy]ou (will|learn)\b", notebook.cells[0].source)
    assert 1 <= minutes(notebook) <= 6


@each
def test_notebook_has_exercises_with_a_checker_and_a_folded_solution_and_an_end(path):
    cells = read(path).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    checked = [source for source in code if re.search(r"(?<![\w.])(exercises\.)?check\(", source)]
    assert 2 <= sum(len(re.findall(r"(?<![\w.])(?:exercises\.)?check\(", source)) for source in checked) <= 4
    assert all(re.search(r"= \.\.\.", source) for source in checked), "an exercise starts from three dots"
    folded = [source for source in prose if "<details>" in source]
    assert folded and all("<summary>Solution" in source and "</details>" in source for source in folded)
    assert any(re.search(r"^## What to try next", source, re.M) for source in prose[-3:])


@each
def test_notebook_shows_no_picture_from_a_file(path):
    """A page of it could not carry the picture along: draw it in a cell."""
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert not any(re.search(r"!\[[^]]*\]\((?!https?:)|<img", source) for source in prose)


@pytest.mark.slow
@each
def test_notebook_runs(path, tmp_path):
    folder = (
        tmp_path / "notebooks"
    )  # a copy of the layout, so that `../outputs` lands in the temporary folder
    folder.mkdir()
    (tmp_path / "data").symlink_to(ROOT / "data")
    notebook = read(path)
    limit = SLACK * 60 * minutes(notebook)
    NotebookClient(
        notebook, timeout=limit, startup_timeout=limit, resources={"metadata": {"path": str(folder)}}
    ).execute()
    errors = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert not errors


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, soundfont):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))
    assert "duration=8" in code
    assert "band_pieces(model, 240)" in code
    code = code.replace("band_pieces(model, 240)", "band_pieces(model, 80, seconds=2)")
    exec(code.replace("duration=8", "duration=3"), {})
    assert (tmp_path / "mine.wav").stat().st_size > 10_000

"""Every notebook runs from top to bottom as it is committed, and is committed clean."""

import re
from pathlib import Path
from statistics import median

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 300  # for a whole notebook; they are written for two minutes on two cores

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_notebooks_and_they_are_numbered():
    assert NOTEBOOKS
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))


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


@pytest.mark.slow
@each
def test_notebook_runs(path, tmp_path):
    folder = (
        tmp_path / "notebooks"
    )  # a copy of the layout, so that `../outputs` lands in the temporary folder
    folder.mkdir()
    (tmp_path / "data").symlink_to(ROOT / "data")
    notebook = read(path)
    NotebookClient(
        notebook, timeout=SECONDS, startup_timeout=SECONDS, resources={"metadata": {"path": str(folder)}}
    ).execute()
    errors = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert not errors


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert "duration=8" in code
    exec(code.replace("duration=8", "duration=3"), {})
    assert (tmp_path / "mine.wav").stat().st_size > 10_000

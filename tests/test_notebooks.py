"""Every notebook runs from top to bottom, is committed clean, and has the forms that the series shares."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import nbformat
import pytest

from mgkit.lab.answers import ANSWERS, letters
from mgkit.lab.gallery import parameters
from mgkit.lab.gallery.command import SERIES
from mgkit.lab.gallery.runner import Runner

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = ROOT / "notebooks" / "solutions"
SLACK = 10  # times as long as it says may a notebook's cell take: a guard against hanging, not a measurement
NUMBERS = ("a", "two", "three", "four", "five", "six")
# The notebook that introduces a term, in bold, at its first use.
TERMS = {
    "autoregressive": "01_demo",
    "chroma": "01_demo",
    "codebook interleaving": "01_demo",
    "spectrogram": "01_demo",
    "logits": "02_sampling",
    "softmax": "02_sampling",
    "temperature": "02_sampling",
    "classifier-free guidance": "02_sampling",
    "conditional": "02_sampling",
    "residual vector quantization": "05_codec",
}
OPENING = re.compile(
    r"# [^\n]+\n\n"
    r"\[Open in Colab\]\(https://colab\.research\.google\.com/github/mgkit/mgkit/blob/main/notebooks/(\w+)\.ipynb\)\n\n"
    r"[^\n]+\n\n"
    r"\*\*Goals\*\*\n\n(?:- [^\n]+\n){2,5}\n"
    r"\*\*Time\*\* about \S+ minutes? · \*\*Level\*\* (?:beginner|intermediate|advanced)"
    r" · \*\*Paper\*\* \[[^]]+\]\(https://arxiv\.org/abs/\d{4}\.\d{5}\)[^\n]*"
)
FOUND = re.compile(r"<details><summary>What we found</summary>\n\n.+\n\n</details>", re.S)
EXERCISE = re.compile(r'^answer = \.\.\.\nexercises\.check\("([^"]+)", answer((?:, [\w.]+)*)\)$', re.M)
SOLUTION = re.compile(r"^## ([^\n]+)\n\n```python\n(.*?)```\n\n(.+?)(?=\n\n## |\n*\Z)", re.M | re.S)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Solution:
    """Code that binds `answer`, and why."""

    code: str
    why: str

    @property
    def expression(self) -> str:
        """Right-hand side of the code's last statement, or all of it if that defines a function."""
        last = ast.parse(self.code).body[-1]
        return ast.unparse(last.value) if isinstance(last, ast.Assign) else self.code.strip()


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def solutions(path: Path) -> dict[str, Solution]:
    """Solutions of a notebook's exercises by name, in order."""
    text = (SOLUTIONS / f"{path.stem}.md").read_text(encoding="utf-8")
    return {name: Solution(code, why) for name, code, why in SOLUTION.findall(text)}


def exercise_names(notebook: nbformat.NotebookNode) -> list[str]:
    return [match[1] for cell in notebook.cells for match in EXERCISE.finditer(cell.source)]


def listening(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Cells that play clips under letters."""
    return [cell for cell in notebook.cells if "exercises.shuffled(" in cell.source]


def solve(notebook: nbformat.NotebookNode, by_name: dict[str, Solution]) -> None:
    """Put the solutions in place of the three dots."""
    for cell in notebook.cells:
        if match := EXERCISE.search(cell.source):
            cell.source = cell.source.replace("answer = ...\n", by_name[match[1]].code)


def minutes(notebook: nbformat.NotebookNode) -> int:
    """The minutes that a notebook says it takes, in its first cell."""
    [said] = re.findall(rf"about (\d+|{'|'.join(NUMBERS)}) minutes?", notebook.cells[0].source)
    return int(said) if said.isdigit() else 1 + NUMBERS.index(said)


def shown(cell: nbformat.NotebookNode) -> str:
    """Text and HTML that an executed cell put out."""
    outputs = cell.get("outputs", [])
    return "".join(output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs)


def test_the_series_is_whole():
    assert [path.stem for path in NOTEBOOKS] == list(SERIES)


@each
def test_notebook_holds_no_outputs_and_no_widget_metadata(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "jupyter", "cellView"}
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
    assert len(cells) < 50
    assert median(len(source.splitlines()) for source in code) <= 5
    assert any("assert " in source for source in code)


@each
def test_notebook_says_what_it_is_for_and_how_long_it_takes(path):
    notebook = read(path)
    assert re.match(r"# .+\n", notebook.cells[0].source)
    assert 1 <= minutes(notebook) <= 6


@each
def test_notebook_ends_with_what_to_try_next(path):
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert any(re.search(r"^## What to try next", source, re.M) for source in prose[-3:])


@each
def test_notebook_opens_with_a_title_a_text_link_to_colab_goals_time_level_and_paper(path):
    match = OPENING.fullmatch(read(path).cells[0].source)
    assert match, "see OPENING"
    assert match[1] == path.stem


@each
def test_setup_is_folded_in_jupyter_and_on_colab(path):
    [setup] = [cell for cell in read(path).cells if "setup" in cell.metadata.get("tags", [])]
    assert setup.metadata["jupyter"] == {"source_hidden": True}
    assert setup.metadata["cellView"] == "form"


@each
def test_one_cell_holds_the_number_of_seeds_as_a_parameter(path):
    notebook = read(path)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert "seeds" in parameters.names(notebook)
    parameters.inject(notebook, {"seeds": 8})
    nbformat.validate(notebook)


@each
def test_answers_to_the_questions_are_folded_and_have_numbers(path):
    cells = read(path).cells
    folded = [i for i, cell in enumerate(cells) if "<details" in cell.source]
    assert len(folded) >= 2
    for i in folded:
        assert FOUND.fullmatch(cells[i].source), "a cell of its own, in the form of FOUND"
        assert re.search(r"\d", cells[i].source)
        assert cells[i - 1].cell_type == "code"


@each
def test_an_assert_that_passes_says_what_it_showed(path):
    for cell in read(path).cells:
        if cell.cell_type == "code" and re.search(r"^assert ", cell.source, re.M):
            assert "print(" in cell.source, cell.source


@each
def test_exercises_have_one_form_and_a_solution_each(path):
    notebook = read(path)
    cells = notebook.cells
    number = 0
    for i, cell in enumerate(cells):
        if "check(" in cell.source:
            assert EXERCISE.search(cell.source), cell.source
            assert cell.source.count("check(") == 1
            number += 1
            question = cells[i - 2 if cells[i - 1] in listening(notebook) else i - 1]
            assert f"**Exercise {number}.** " in question.source
    names = exercise_names(notebook)
    assert 2 <= len(names) <= 4
    assert list(solutions(path)) == names
    assert set(names) <= set(ANSWERS)
    played = [cell.source for cell in listening(notebook)]
    assert any(f'shuffled("{name}"' in source for name in names for source in played), "one needs ears"


@each
def test_neither_notebook_nor_hint_shows_an_answer(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "olution</summary>" not in text
    for name, solution in solutions(path).items():
        assert len(solution.why.split()) >= 8, "say why"
        try:
            values = {solution.expression, str(eval(solution.expression, {}))}
        except Exception:
            values = {solution.expression}
        for value in values:
            assert not re.search(rf"(?<![\w.]){re.escape(value)}(?![\w.])", ANSWERS[name].hint), name
            assert len(value) < 8 or value not in text, name


def test_exercises_and_solutions_belong_to_notebooks():
    assert sorted(path.stem for path in SOLUTIONS.glob("*.md")) == [path.stem for path in NOTEBOOKS]
    assert sorted(ANSWERS) == sorted(name for path in NOTEBOOKS for name in exercise_names(read(path)))


def test_terms_are_introduced_once_in_their_notebooks():
    for path in NOTEBOOKS:
        prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        bold = [term.lower() for term in re.findall(r"\*\*([^*\n]+)\*\*", prose)]
        assert {term: bold.count(term) for term in TERMS} == {
            term: int(notebook == path.stem) for term, notebook in TERMS.items()
        }, path.stem


def test_letters_hide_the_order_of_clips():
    orders = {tuple(letters(name, 3)) for name in map(str, range(20))}
    assert len(orders) == 6
    assert all(sorted(order) == ["A", "B", "C"] for order in orders)


@each
def test_notebook_shows_no_picture_from_a_file(path):
    """A page of it could not carry the picture along: draw it in a cell."""
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert not any(re.search(r"!\[[^]]*\]\((?!https?:)|<img", source) for source in prose)


@pytest.mark.slow
@each
def test_notebook_runs(path, tmp_path):
    """With the solutions in place of the three dots, every checker prints `Correct.`"""
    # a copy of the layout, so that `../outputs` lands in the temporary folder
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "data").symlink_to(ROOT / "data")
    notebook = read(path)
    limit = SLACK * 60 * minutes(notebook)
    solve(notebook, solutions(path))
    Runner(
        notebook, timeout=limit, startup_timeout=limit, resources={"metadata": {"path": str(folder)}}
    ).execute()
    errors = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert not errors
    assert_solved_and_audible(notebook)


def assert_solved_and_audible(notebook: nbformat.NotebookNode) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        if "exercises.check(" in cell.source:
            assert "Correct.\n" in shown(cell), cell.source
    # after setup and imports
    assert any("<audio" in shown(cell) for cell in code[2:4]), "music within two cells"


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

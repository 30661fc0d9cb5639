"""The module's files know only what stands above them (DESIGN: data flows down the list), and importing costs nothing."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

PACKAGE = Path(__file__).parent.parent / "mgkit"

# Rows from the first to the last; a file may import files of earlier rows only, so the first row knows none.
ROWS = [
    {"audio", "delay", "sampling", "codec", "lm", "text", "melody"},
    {"condition"},
    {"generate", "layouts"},
    {"job", "layouts"},
    {"weights"},
    {"musicgen"},
    {"trace"},
    {"show"},
    {"lesson", "listen"},
    {"player"},
    {"grid"},
    {"studio"},
    {"app", "bench", "gallery"},
    {"__main__"},
]
ORDER = {name: row for row, names in enumerate(ROWS) for name in names}
CORE = sorted(PACKAGE.glob("*.py"))
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST, path: Path) -> set[str]:
    """Full names of all that a syntax tree imports, at any depth, relative ones resolved."""
    package = list(path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def at_import(path: Path) -> ast.Module:
    """The statements of a file that run when it is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if guarded else self.generic_visit(node)

    return Strip().visit(ast.parse(path.read_text()))


def siblings(names: set[str]) -> set[str]:
    """The files of the core among imported names."""
    return {
        part[1] for part in (name.split(".") for name in names) if part[0] == "mgkit" and len(part) > 1
    } & ({path.stem for path in CORE} | {"train"})


def test_the_core_is_found_and_every_file_has_its_place():
    names = {path.stem for path in CORE} - {"__init__"}
    assert len(names) >= 10
    assert names <= set(ORDER), f"give {names - set(ORDER)} a row in this test, and in the map of the README"


@pytest.mark.parametrize(
    "path", [path for path in CORE if path.stem != "__init__"], ids=lambda path: path.stem
)
def test_a_file_imports_only_files_of_earlier_rows(path):
    known = siblings(imports(ast.parse(path.read_text()), path))
    if path.stem == "__main__":
        known -= {"train"}  # the command line hands `train` on; only when that command runs, see below
    upward = {name for name in known if ORDER.get(name, len(ROWS)) >= ORDER[path.stem]}
    assert not upward, f"{path.name} imports {upward}, which stand beside or below it"


def test_the_core_does_not_load_train():
    for path in CORE:
        assert "train" not in siblings(imports(at_import(path), path)), path.name


def test_torchaudio_is_imported_only_inside_the_function_that_needs_it():
    for path in FILES:
        loaded = {name.split(".")[0] for name in imports(at_import(path), path)}
        assert "torchaudio" not in loaded, path.name


def test_importing_mgkit_loads_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "librosa", "matplotlib", "soundfile", "IPython")
    code = f"import mgkit, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_map_in_the_readme_names_every_file():
    readme = (PACKAGE.parent / "README.md").read_text()
    for path in CORE:
        assert path.stem == "__init__" or f"(mgkit/{path.name})" in readme, path.name


@pytest.mark.slow
def test_the_wheel_carries_the_small_model_and_finds_it(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PACKAGE.parent, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    code = "import mgkit; print(mgkit.MusicGen.get_pretrained('nano').name, mgkit.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nano", str(tmp_path / "installed" / "mgkit" / "__init__.py")]
    assert (tmp_path / "installed" / "mgkit" / "data" / "nano" / "model.safetensors").exists()

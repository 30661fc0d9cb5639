"""The house stands: a file imports only what stands above it (five floors, and an order within the model)."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

PACKAGE = Path(__file__).parent.parent / "mgkit"

# The model, row by row: a file imports files of earlier rows only.
MODEL = [
    {"brief", "compiled", "threads"},
    {"rounded"},
    {"integers"},
    {"packed"},
    {
        "formats.encoding",
        "linear",
        "files",
        "formats.mp3",
        "formats.ogg",
        "formats.wav",
        "spectra",
        "delay",
        "sampling",
        "codec",
        "text",
        "positions",
        "formats.readers",
        "prompts",
        "chords",
        "ranges",
        "devices",
        "schedule",
    },
    {"formats.decoding", "lm", "settings"},
    {"row_cache"},
    {"compiled_step"},
    {"audio", "kernels", "melody", "fast", "edits", "formats.tensor_files", "formats.variants"},
    {"condition", "hub", "midi", "steps", "interventions", "formats.layouts", "formats.audiocraft_files"},
    {"generate", "model", "formats.adapter_files"},
    {"formats.huggingface_loader"},
    {"formats.audiocraft_loader"},
    {"checkpoint"},
    {"adapters", "export", "interrupt", "request"},
    {"table"},
    {"manifest", "perform", "score"},
    {"jobs", "sessions", "progress"},
    {"candidates"},
    {"between", "loops"},
    {"musicgen"},
    {"trace", "audiocraft", "bench.shapes"},
    {"bench.stopwatch", "bench.timings"},
    {"bench.reference"},
    {"bench.command", "command"},
]
# The floors above it: a floor imports the model, itself and the floors before it.
FLOORS = ["model", "lab", "band", "train", "evals"]
ROW = {name: row for row, names in enumerate(MODEL) for name in names}
ENTRY = {"__init__", "__main__"}  # they hand over to any floor, and only when asked
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))


def name_of(path: Path) -> str:
    """Name of a file within the package: `lm`, `train.lm`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def floor(name: str) -> str:
    """Floor of a file or package within mgkit."""
    return name.split(".")[0] if name.split(".")[0] in FLOORS else "model"


def imports(tree: ast.AST, path: Path) -> set[str]:
    """Files and packages of mgkit that a syntax tree imports at any depth, named as by `name_of`."""
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


def within(names: set[str]) -> set[str]:
    """The files of mgkit among imported names."""
    known = {name_of(path) for path in FILES if path.stem != "__init__"}
    return {name.removeprefix("mgkit.") for name in names if name.startswith("mgkit.")} & known


def at_import(path: Path) -> ast.Module:
    """The statements of a file that run when it is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if guarded else self.generic_visit(node)

    return Strip().visit(ast.parse(path.read_text(encoding="utf-8")))


def test_every_file_of_the_model_has_a_row():
    files = (
        {name_of(path) for path in FILES if floor(name_of(path)) == "model"}
        - ENTRY
        - {"formats", "bench", ""}
    )
    assert files == set(ROW), "give each file of the model a row in this test"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in ENTRY], ids=name_of)
def test_a_file_imports_only_what_stands_before_it(path):
    name = name_of(path)
    for other in within(imports(ast.parse(path.read_text(encoding="utf-8")), path)) - {name}:
        if floor(name) == floor(other) == "model":
            assert ROW[other] < ROW[name], f"{name} imports {other}, which does not stand before it"
        else:
            assert FLOORS.index(floor(other)) <= FLOORS.index(floor(name)), (
                f"{name} imports {other}, a floor up"
            )


def test_no_two_files_import_each_other():
    arrows = {
        name_of(path): within(imports(ast.parse(path.read_text(encoding="utf-8")), path)) - {name_of(path)}
        for path in FILES
        if path.stem not in ENTRY
    }
    for name, others in arrows.items():
        for other in others:
            assert name not in arrows.get(other, ()), f"{name} and {other} import each other"


def test_the_entry_points_load_floors_only_when_asked():
    for path in FILES:
        if path.stem in ENTRY and path.parent == PACKAGE:
            loaded = within(imports(at_import(path), path))
            assert {floor(name) for name in loaded} <= {"model"}, path.name


def test_torchaudio_is_imported_only_inside_the_function_that_needs_it():
    for path in FILES:
        loaded = {name.split(".")[0] for name in imports(at_import(path), path)}
        assert "torchaudio" not in loaded, path.name


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_text_files_are_read_and_written_as_utf8(path):
    """Whatever the system's encoding is. ruff (PLW1514) sees `open` alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
            assert "encoding" in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_code_in_a_model_s_folder_is_never_run(path):
    """Without `trust_remote_code=False`, transformers asks on the console or runs the code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
        given = {keyword.arg: keyword.value for keyword in node.keywords} if name else {}
        if name == "from_pretrained":
            value = given.get("trust_remote_code")
            assert isinstance(value, ast.Constant) and value.value is False, f"line {node.lineno}"
        if name == "load" and getattr(node.func.value, "id", "") == "torch":
            value = given.get("weights_only")
            assert isinstance(value, ast.Constant) and value.value is True, f"line {node.lineno}"


def test_importing_mgkit_loads_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "librosa", "matplotlib", "soundfile", "IPython")
    code = f"import mgkit, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_types_and_lazy_names_are_visible_to_tools():
    import mgkit

    assert (PACKAGE / "py.typed").exists()
    assert {"MusicGen", "audio"} <= set(dir(mgkit))
    typed = {
        alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(mgkit.__all__) <= typed


def test_the_map_in_the_readme_names_every_file_of_the_model():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    for path in PACKAGE.glob("*.py"):
        assert path.stem == "__init__" or f"(mgkit/{path.name})" in readme, path.name
    for name in FLOORS[1:]:
        assert f"(mgkit/{name})" in readme, name
    for path in re.findall(r"\((mgkit/[^)#]*)\)", readme):
        assert (PACKAGE.parent / path).exists(), path


@pytest.mark.slow
def test_the_wheel_carries_the_small_model_and_finds_it(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PACKAGE.parent, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    # scripts of widgets and the marker of types too
    for suffix in ("*.py", "*.js", "py.typed"):
        for path in PACKAGE.rglob(suffix):
            assert (tmp_path / "installed" / path.relative_to(PACKAGE.parent)).exists(), path
    code = "import mgkit; print(mgkit.MusicGen.get_pretrained('nano').name, mgkit.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nano", str(tmp_path / "installed" / "mgkit" / "__init__.py")]
    assert (tmp_path / "installed" / "mgkit" / "data" / "nano" / "model.safetensors").exists()

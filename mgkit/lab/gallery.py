"""The notebooks as a website: one page per executed notebook with figures and audio, and an index.

    notebooks/NN_name.ipynb -> execute -> outputs/gallery/NN_name.html   page with embedded pictures and audio
                                   `----> outputs/gallery/index.html     card with question and key picture

Pages are self-contained: they open from any folder, without a network or a kernel.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mgkit import audio
from mgkit.lab import parameters

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Notebook → the question it answers.
SERIES = {
    "01_demo": "What can it do?",
    "02_sampling": "What do temperature, top-k, top-p and guidance do?",
    "03_melody": "What does the model receive of a melody?",
    "04_continuation": "How does it continue?",
    "05_codec": "What is a token?",
    "06_delay": "Why the delay pattern?",
    "07_inside": "What does it attend to?",
    "08_live": "Can it play while it generates?",
    "09_train": "How is it trained, and how do I fine-tune it on my sounds?",
    "10_listen": "Is it good?",
    "11_probe": "What does it know?",
    "12_steer": "Can I turn a knob inside?",
    "13_chords": "Can it follow chords?",
}
# Seconds per cell.
TIMEOUT = 1800
WIDGET = "application/vnd.jupyter.widget-view+json"
NOTE = "<p><em>Interactive controls appear here in the running notebook.</em></p>"


@dataclass(frozen=True)
class Card:
    """A notebook in the index; `picture` is a PNG in base64 or empty, `failure` a message or empty."""

    name: str
    title: str
    question: str
    picture: str
    sounds: int
    seconds: float
    failure: str


def execute(notebook: "NotebookNode", folder: Path) -> str:
    """Execute the notebook in `folder`, in place; return a description of the failure, empty on success."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        startup_timeout=300,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        first_line = f"{error.ename}: {error.evalue}".splitlines()[0]
        return f"stopped in {_failed_cell(notebook)}: {first_line}"
    except CellTimeoutError:
        return f"stopped: a cell took more than {TIMEOUT // 60} minutes"
    except DeadKernelError:
        return "stopped: its kernel died, perhaps out of memory"
    except NoSuchKernel:
        return "did not start: Jupyter found no Python kernel (pip install ipykernel)"
    # Errors of the client itself must not affect the other notebooks.
    except Exception as error:
        return f"stopped: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _execute_with(values: dict[str, object], notebook: "NotebookNode", folder: Path) -> str:
    try:
        parameters.inject(notebook, values)
    except ValueError as error:
        return f"did not start: {error}"
    return execute(notebook, folder)


def _failed_cell(notebook: "NotebookNode") -> str:
    for number, cell in enumerate(notebook.cells, 1):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            return f"cell {number}"
    return "a cell"


def page(notebook: "NotebookNode", name: str) -> str:
    """Self-contained HTML of an executed notebook.

    The Colab badge, an external image, becomes a text link; links to other notebooks point to their pages;
    widgets, which need a kernel, become a note.
    """
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_markdown_cell

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[!\[([^]]*)\]\(https?://[^)]*\)\]", r"[\1]", cell.source)
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data = {"text/html": NOTE}
    notebook.cells.insert(0, new_markdown_cell("[← all notebooks](index.html)"))
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = name
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    text, _ = exporter.from_notebook_node(notebook)
    return re.sub(r'<script src="">\s*</script>', "", text)


def card(notebook: "NotebookNode", name: str, seconds: float, failure: str) -> Card:
    """Card of an executed notebook, with the picture of the cell tagged "picture", or its first one."""
    outputs = [
        (cell, output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    pictures = [(cell, data["image/png"]) for cell, data in outputs if "image/png" in data]
    chosen = [picture for cell, picture in pictures if "picture" in cell.metadata.get("tags", [])]
    heading = re.search(r"^# +(.+)$", notebook.cells[0].source if notebook.cells else "", re.M)
    title = heading[1] if heading else name
    return Card(
        name,
        title,
        SERIES.get(name, title),
        "".join((chosen or [picture for _, picture in pictures] or [""])[0].split()),
        sum("".join(data.get("text/html", "")).count("<audio") for _, data in outputs),
        seconds,
        failure,
    )


STYLE = """
:root { color-scheme: light dark;
  --back: #f6f7f9; --card: #fff; --text: #1d2430; --soft: #5b6675; --line: #e2e6eb }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181d; --card: #1e242b; --text: #e7ebf0; --soft: #9aa6b4; --line: #303943 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: var(--back); color: var(--text) }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem }
h1 { margin: 0; font-size: 2rem } header p { color: var(--soft); max-width: 44em; margin: .5rem 0 2rem }
.cards { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)) }
.card { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; overflow: hidden; color: inherit; text-decoration: none; transition: box-shadow .15s }
.card:hover, .card:focus-visible { box-shadow: 0 6px 24px #0003 }
.card img, .card .none { width: 100%; height: 190px; object-fit: contain; background: #fff; padding: 10px;
  border-bottom: 1px solid var(--line) }
.card div { padding: 1rem 1.1rem 1.1rem } .card h2 { font-size: 1.12rem; margin: .1rem 0 .3rem }
.card small { color: var(--soft) } .card .number { color: #2a7fbf; font-weight: 600 }
.card p { margin: 0 0 .5rem } .failed { color: #c2410c }
"""


def index(cards: list[Card]) -> str:
    """HTML of the index: one card per notebook, with its question, title and key picture."""
    body = []
    for one in cards:
        picture = '<span class="none"></span>'
        if one.picture:
            picture = f'<img alt="" src="data:image/png;base64,{one.picture}">'
        facts = [f"{one.sounds} audio examples"] if one.sounds else []
        facts.append(f"runs in {one.seconds:.0f} s")
        state = f'<p class="failed">{escape(one.failure)}</p>' if one.failure else ""
        body.append(
            f'<a class="card" href="{escape(one.name)}.html">{picture}<div>'
            f'<span class="number">{escape(one.name[:2])}</span><h2>{escape(one.question)}</h2>'
            f"<p>{escape(one.title) if one.title != one.question else ''}</p>{state}"
            f"<small>{' · '.join(facts)}</small></div></a>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>mgkit: the notebooks</title>'
        f"<style>{STYLE}</style></head><body><main><header><h1>mgkit: the notebooks</h1>"
        "<p>MusicGen, plain enough to teach from. Each notebook answers one question; all audio and pictures "
        "on its page are its output. The pages work without a network or a kernel.</p></header>"
        f'<div class="cards">\n{chr(10).join(body)}\n</div></main></body></html>\n'
    )


def gallery(paths: list[Path], out: Path, values: dict[str, object] | None = None) -> list[Card]:
    """Execute the notebooks in order and write the website to `out`; the index grows with every page.

    `values` replace the notebooks' parameters of these names.
    A notebook that fails gets a page up to the failure and does not affect the others.
    Raises: RuntimeError if nbconvert is not installed; OSError if a page cannot be written.
    """
    try:
        import nbclient  # noqa: F401
        import nbconvert  # noqa: F401
        import nbformat
    except ImportError as error:
        raise RuntimeError(f"the gallery needs nbconvert (pip install nbconvert): {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    cards: list[Card] = []
    for path in paths:
        start = time.monotonic()
        try:
            notebook = nbformat.read(path, as_version=4)
        # nbformat raises errors of many types.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            notebook, failure = nbformat.v4.new_notebook(), f"could not be read: {reason}"
        else:
            failure = _execute_with(values or {}, notebook, path.parent)
        seconds = time.monotonic() - start
        cards.append(card(notebook, path.stem, seconds, failure))
        for name, text in ((path.stem, page(notebook, path.stem)), ("index", index(cards))):
            audio.replace_file(out / f"{name}.html", partial(Path.write_text, data=text, encoding="utf-8"))
        if failure:
            print(f"{path.name} {failure}", file=sys.stderr, flush=True)
        else:
            print(f"{path.name}: {seconds:.0f} s", flush=True)
    return cards


def main(argv: list[str] | None = None) -> int:
    """`python -m mgkit gallery`; returns 1 if a notebook failed."""
    parser = argparse.ArgumentParser(prog="python -m mgkit gallery", description=__doc__.split("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in the folder notebooks")
    parser.add_argument("--out", type=Path, default=Path("outputs/gallery"), help="folder of the website")
    parser.add_argument(
        "--parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace a value of the notebooks' cell tagged parameters, such as seeds=8; may be repeated",
    )
    arguments = parser.parse_args(argv)
    values = parameters.parse(arguments.parameters)
    paths = arguments.notebooks or sorted(Path("notebooks").glob("[0-9]*.ipynb"))
    if not paths:
        raise ValueError(
            "there is no folder notebooks here: run this in mgkit's repository, or name the notebooks"
        )
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"there is no notebook {missing[0]!r}")
    cards = gallery(paths, arguments.out, values)
    failed = [one.name for one in cards if one.failure]
    print(f"{arguments.out / 'index.html'}: {len(cards)} notebooks, {len(failed)} failed")
    return 1 if failed else 0

"""The notebooks as a website: one page per executed notebook with figures and audio, and an index.

    notebooks/NN_name.ipynb -> execute -> outputs/gallery/NN_name.html   page with embedded pictures and audio
                                   `----> outputs/gallery/index.html     card with question and key picture

Pages are self-contained: they open from any folder, without a network or a kernel.
"""

import argparse
import json
import os
import re
import sys
import time
import webbrowser
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mgkit import __version__, audio
from mgkit.lab.gallery import parameters
from mgkit.lab.gallery.notebook_page import page

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
# Of the earlier pages in a gallery's folder, their cards.
CARDS = ".cards.json"


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
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from mgkit.lab.gallery.runner import Runner

    client = Runner(
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


STYLE = Path(__file__).with_name("index.css").read_text(encoding="utf-8")


def index(cards: list[Card]) -> str:
    """HTML of the index: one card per notebook, with its question, title and key picture."""
    body = []
    for one in cards:
        picture = f'<img alt="" src="data:image/png;base64,{one.picture}">' if one.picture else ""
        facts = [f"{one.sounds} audio examples"] if one.sounds else []
        facts.append(f"runs in {one.seconds:.0f} s")
        state = f'<p class="failed">{escape(one.failure)}</p>' if one.failure else ""
        body.append(
            f'<a class="card" href="{escape(one.name)}.html"><span class="picture">{picture}</span><div>'
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
        f'<div class="cards">\n{chr(10).join(body)}\n</div>'
        f"<footer><p>Made on {date.today():%d %B %Y} with mgkit {__version__}, by running the notebooks. "
        "<code>make lab</code> in mgkit's repository opens them.</p></footer>"
        "</main></body></html>\n"
    )


def gallery(paths: list[Path], out: Path, values: dict[str, object] | None = None) -> list[Card]:
    """Execute the notebooks in order and write the website to `out`; the index grows with every page.

    Pages that an earlier call wrote to `out` stay in the index. Returns the cards of these notebooks.
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
    earlier, cards = _earlier_cards(out), []
    names = {path.stem for path in paths} | set(earlier)
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
        known = earlier | {one.name: one for one in cards}
        text = page(notebook, path.stem, path.parent, out, names)
        _write(out / f"{path.stem}.html", text)
        _write(out / "index.html", index([known[name] for name in sorted(known)]))
        _write(out / CARDS, json.dumps([asdict(one) for one in known.values()]))
        if failure:
            print(f"{path.name} {failure}", file=sys.stderr, flush=True)
        else:
            print(f"{path.name}: {seconds:.0f} s", flush=True)
    return cards


def _earlier_cards(out: Path) -> dict[str, Card]:
    """Cards of the pages that are in `out`, by name; none if their list is missing or damaged."""
    try:
        cards = [Card(**one) for one in json.loads((out / CARDS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {one.name: one for one in cards if (out / f"{one.name}.html").is_file()}


def _write(path: Path, text: str) -> None:
    audio.replace_file(path, partial(Path.write_text, data=text, encoding="utf-8"))


def open_page(path: Path) -> bool:
    """Open a file in the browser, if there is a screen; whether a browser was started. Never fails."""
    if sys.platform.startswith("linux"):
        screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    else:
        screen = not os.environ.get("SSH_CONNECTION")
    try:
        return screen and webbrowser.open(path.resolve().as_uri())
    except (OSError, ValueError, webbrowser.Error):
        return False


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
    parser.add_argument(
        "--open", action="store_true", help="open the page, or the index of several, where there is a screen"
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
    if arguments.open:
        open_page(arguments.out / (f"{cards[0].name}.html" if len(cards) == 1 else "index.html"))
    return 1 if failed else 0

"""A page of the gallery: an executed notebook as one HTML file, light and dark, whose links lead somewhere.

    executed notebook -> setup folded, panels frozen -> nbconvert -> links -> page
    other files that it links to -> files/…: documents as pages, programs as text, sounds as they are

A link to what is not there becomes plain text, so a page can be copied with its folder and read anywhere.
"""

import re
import shutil
from collections.abc import Set
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from mgkit import audio
from mgkit.lab.drawing import data_uri
from mgkit.lab.gallery.frozen import Frozen

if TYPE_CHECKING:
    from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
NOTE = "<p><em>Interactive controls appear here in the running notebook.</em></p>"
# Bytes of the largest file that a page takes along.
LARGEST = 4 * 2**20
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".gif": "image/gif"}
# Files that browsers show or play as they are; other texts get a name that ends in .txt.
SHOWN = {*PICTURES, ".wav", ".flac", ".mp3", ".ogg", ".pdf", ".html", ".txt", ".csv", ".mid"}
# Scripts and styles, which are left alone; links; pictures.
PARTS = re.compile(
    r"(?P<raw><(?P<tag>script|style)\b.*?</(?P=tag)>)"
    r"|<a\b(?P<before>[^>]*?)\bhref=\"(?P<href>[^\"]*)\"(?P<after>[^>]*)>(?P<text>.*?)</a>"
    r"|<img\b(?P<first>[^>]*?)\bsrc=\"(?P<src>[^\"]*)\"",
    re.DOTALL,
)
# Beyond nbconvert's style, and that of documents.
STYLE, BARE = (
    Path(__file__).with_name(f"{name}.css").read_text(encoding="utf-8") for name in ("page", "document")
)


def page(
    notebook: "NotebookNode",
    name: str,
    folder: Path = Path("notebooks"),
    out: Path | None = None,
    names: Set[str] = frozenset(),
) -> str:
    """HTML of an executed notebook from `folder`, for a gallery in `out` with pages of these `names`.

    Widgets are shown as they were at the end; the setup cell is folded; badges, which are external images,
    become text. Files that the page links to are copied to `out`. Without `out`, links to files become text.
    """
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_markdown_cell

    state = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    frozen = Frozen(state)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[!\[([^]]*)\]\(https?://[^)]*\)\]", r"[\1]", cell.source)
        elif "setup" in cell.metadata.get("tags", []) and not cell.outputs:
            cell = new_markdown_cell(
                f"<details><summary>Setup</summary>\n\n```python\n{cell.source}\n```\n</details>"
            )
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                model = output.data[WIDGET].get("model_id", "")
                output.data = {"text/html": frozen.html(model) or NOTE}
        cells.append(cell)
    notebook.cells = [new_markdown_cell("[← all notebooks](index.html)"), *cells]
    notebook.metadata["title"] = name
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    text, _ = exporter.from_notebook_node(notebook)
    text = re.sub(r'<script src="">\s*</script>', "", text)
    # The page follows the reader's theme, so it must not claim to have one of its own.
    text = re.sub(r'<body class="jp-Notebook"[^>]*>', '<body class="jp-Notebook">', text)
    loader = exporter.environment.loader
    dark = loader.get_source(exporter.environment, "static/theme-dark.css")[0] if loader else ""
    style = f"<style>{STYLE}@media (prefers-color-scheme: dark) {{ {dark} }}</style>"
    text = text.replace("</head>", f"{style}</head>", 1)
    head, _, tail = text.rpartition("</body>")
    text = f"{head}{frozen.script()}</body>{tail}"
    return Links(folder, out, names | {"index"}).mend(text, folder)


class Links:
    """The links of a gallery's pages: to its other pages, and to copies of the repository's files.

    Nothing outside the folder that holds `folder` is copied.
    """

    def __init__(self, folder: Path, out: Path | None, names: Set[str]):
        self.root, self.out, self.names = folder.resolve().parent, out, names
        self._copied: set[Path] = set()

    def mend(self, text: str, folder: Path, up: str = "") -> str:
        """The HTML with mended links. Relative ones start in `folder`; `up` leads from the page to `out`."""

        def part(match: re.Match) -> str:
            if match["raw"]:
                return match[0]
            if match["src"] is not None:
                return f'<img{match["first"]}src="{self._picture(unescape(match["src"]), folder)}"'
            target = self._target(unescape(match["href"]), folder, up)
            if target is None:
                where = escape(unescape(match["href"]))
                return f'<span class="mgkit-absent" title="in the repository: {where}">{match["text"]}</span>'
            return f'<a{match["before"]}href="{escape(target)}"{match["after"]}>{match["text"]}</a>'

        return PARTS.sub(part, text)

    def _target(self, target: str, folder: Path, up: str) -> str | None:
        """What a link leads to from the page; None if that is nowhere."""
        parts = urlsplit(target)
        if parts.scheme or parts.netloc or not parts.path:
            return target
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        path = Path(unquote(parts.path))
        if path.suffix in (".ipynb", ".html") and path.stem in self.names:
            return f"{up}{quote(path.stem)}.html{fragment}"
        file = self._file(folder, path)
        if file is None or self.out is None or file.suffix == ".ipynb":
            return None
        copy = Path("files", file.relative_to(self.root))
        if file.suffix == ".md":
            copy = copy.with_suffix(".html")
        elif file.suffix.lower() not in SHOWN:
            copy = copy.with_name(copy.name + ".txt")
        if file not in self._copied:
            self._copied.add(file)
            self._copy(file, self.out / copy)
        return up + quote(copy.as_posix()) + fragment

    def _file(self, folder: Path, path: Path) -> Path | None:
        file = (folder / path).resolve()
        inside = file.is_relative_to(self.root) and file.is_file() and file.stat().st_size <= LARGEST
        return file if inside else None

    def _copy(self, file: Path, copy: Path) -> None:
        assert self.out is not None
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".md":
            shutil.copyfile(file, copy)
            return
        from nbconvert.filters import markdown2html

        up = "../" * (len(copy.relative_to(self.out).parts) - 1)
        body = self.mend(markdown2html(file.read_text(encoding="utf-8")), file.parent, up)
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><title>{escape(file.stem)}</title>'
            f'<style>{BARE}</style></head><body><p><a href="{up}index.html">← all notebooks</a></p>{body}'
            "</body></html>\n"
        )
        audio.replace_file(copy, partial(Path.write_text, data=text, encoding="utf-8"))

    def _picture(self, source: str, folder: Path) -> str:
        """The picture's own data in place of its file's name."""
        file = None if urlsplit(source).scheme else self._file(folder, Path(unquote(source)))
        kind = PICTURES.get(file.suffix.lower()) if file else None
        return data_uri(file.read_bytes(), kind) if file and kind else escape(source)

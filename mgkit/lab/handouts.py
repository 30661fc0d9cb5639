"""`make teach`: the Markdown of a folder as pages and PDFs for a class.

    notebooks/teach/handout.md -> mistune -> outputs/teach/handout.html -> a browser, headless -> handout.pdf

The pages hold their pictures and styles, and fetch nothing. A line `[What we found](../02_sampling.ipynb)`
stands for the findings in that notebook, so that figures are written once. In slides.md, a line of `---`
begins a slide: arrow keys move, the PDF has one slide a page. Without Chromium or Chrome there are no PDFs.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from html import escape, unescape
from pathlib import Path

from mgkit.files import replace_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
# Arrow keys, space and page keys move by a slide.
KEYS = """<script>
const slides = [...document.querySelectorAll("section")];
const place = () => slides.findIndex((slide) => slide.getBoundingClientRect().bottom > innerHeight / 2);
addEventListener("keydown", (event) => {
  const forward = ["ArrowRight", "ArrowDown", "PageDown", " "].includes(event.key);
  if (!forward && !["ArrowLeft", "ArrowUp", "PageUp"].includes(event.key)) return;
  event.preventDefault();
  slides[Math.min(Math.max(place() + (forward ? 1 : -1), 0), slides.length - 1)].scrollIntoView();
});
</script>"""
SECONDS = 120
FOUND = re.compile(r"^\[What we found\]\((\S+\.ipynb)\)$", re.MULTILINE)
FOLD = re.compile(r"<details><summary>What we found</summary>(.*?)</details>", re.DOTALL)


def findings(notebook: Path) -> str:
    """Markdown of a notebook's time and its folds "What we found", each under the heading that it answers."""
    if not notebook.exists():
        raise ValueError(f"the findings are those of {notebook}, which does not exist")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    time = re.search(r"\*\*Time\*\* ([^·\n]+)", "".join(cells[0]["source"]))
    heading, parts = "", [f"**Time**: {time[1].strip()}."] if time else []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for fold in FOLD.finditer(source):
                above = re.findall(r"^#+ (.*)$", source[: fold.start()], re.MULTILINE)
                heading = above[-1] if above else heading
                parts.append(f"**{heading}**\n\n{fold[1].strip()}")
            heading = next(reversed(re.findall(r"^#+ (.*)$", source, re.MULTILINE)), heading)
    return "\n\n".join(parts)


def page(source: Path) -> str:
    """Self-contained HTML of a Markdown file.

    Raises: ValueError for a picture or notebook that is not there; RuntimeError without mistune.
    """
    try:
        import mistune
    except ImportError:
        raise RuntimeError("the pages need the package mistune: pip install mistune") from None

    text = FOUND.sub(lambda found: findings(source.parent / found[1]), source.read_text(encoding="utf-8"))
    kind = source.stem
    body = str(mistune.create_markdown(escape=False, plugins=["table"])(text))
    if kind == "slides":
        body = "".join(f"<section>{part}</section>" for part in re.split(r"<hr\s*/?>", body))
    # Notebooks and the model card are not beside the pages; the other pages are.
    body = re.sub(r'<a href="(?:[^":]+\.ipynb|\.\./[^"]+)"[^>]*>(.*?)</a>', r"\1", body)
    body = re.sub(r'href="(\w+)\.md"', r'href="\1.html"', body)
    body = re.sub(r'src="([^"]+)"', lambda found: f'src="{_embedded(source, found[1])}"', body)
    heading = re.search(r"<h1>(.*?)</h1>", body)
    title = escape(unescape(re.sub(r"<[^>]+>", "", heading[1]))) if heading else kind
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f'<style>{STYLE}</style></head><body class="{kind}">'
    script = KEYS if kind == "slides" else ""
    return f'<!doctype html><html lang="en"><head>{head}{style}<main>{body}</main>{script}</body></html>\n'


def _embedded(source: Path, address: str) -> str:
    """The picture at a path relative to `source`, as a data URI."""
    path = source.parent / address
    if not path.is_file():
        raise ValueError(f"{source.name} shows {address}, and there is no file {path}")
    data = base64.b64encode(path.read_bytes()).decode()
    return f"data:image/{path.suffix[1:]};base64,{data}"


def find_browser() -> str | None:
    """Path of a browser that prints, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_pdf(path: Path, browser: str) -> Path:
    """PDF of a page, beside it. Raises: RuntimeError if the browser fails."""
    target = path.with_suffix(".pdf")
    with tempfile.TemporaryDirectory() as profile:
        draft = Path(profile) / "page.pdf"
        options = ["--headless", "--disable-gpu", f"--user-data-dir={profile}", "--no-pdf-header-footer"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            # Chromium's sandbox refuses root, and the page is our own.
            options.append("--no-sandbox")
        command = [browser, *options, f"--print-to-pdf={draft}", path.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if not draft.exists():
            raise RuntimeError(f"{browser} printed no PDF of {path}: {done.stderr.strip()[-300:]}")
        return replace_file(target, lambda file: file.write_bytes(draft.read_bytes()))


def build(folder: Path, out: Path) -> list[Path]:
    """Write a page, and with a browser a PDF, for each Markdown file in `folder`; return their paths.

    Raises: ValueError if there are none; OSError if a file cannot be written.
    """
    sources = sorted(folder.glob("*.md"))
    if not sources:
        raise ValueError(f"there are no Markdown files in {folder}")
    out.mkdir(parents=True, exist_ok=True)
    browser, made = find_browser(), []
    for source in sources:
        made.append(_write(out / f"{source.stem}.html", page(source)))
        if browser:
            made.append(print_pdf(made[-1], browser))
    return made


def _write(path: Path, text: str) -> Path:
    return replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit.lab.handouts`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit.lab.handouts", description="Pages and PDFs of a folder of Markdown files."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("notebooks/teach"))
    parser.add_argument("--out", type=Path, default=Path("outputs/teach"))
    arguments = parser.parse_args(argv)
    print(*build(arguments.folder, arguments.out), sep="\n")
    if not find_browser():
        print(
            "No PDFs: for these, install Chromium (on Debian: apt-get install chromium), or print the pages."
        )


if __name__ == "__main__":
    main()

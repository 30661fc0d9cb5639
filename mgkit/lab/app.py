"""`python -m mgkit app`: the panel of `studio.py` as a page of its own, served by Voilà.

a notebook of one cell, studio.Studio() -> Voilà -> a page; each visit has a kernel of its own
"""

import argparse
import os
import tempfile
from pathlib import Path

# The page may load nothing from elsewhere: Voilà's template asks a network that a classroom lacks for icons.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: ws: wss:"
UPLOAD = (
    100 * 2**20
)  # bytes of the largest file; over the usual 10 MB the connection would end without a word


def serve(model: str = "nano", port: int = 8866, browser: bool = True) -> None:
    """Serves the panel at `port` of this machine until Ctrl-C; `browser` opens it.

    Errors: RuntimeError where Voilà is not installed.
    """
    try:
        import nbformat
        from traitlets.config import Config
        from voila.app import Voila
    except ImportError as error:
        raise RuntimeError(f"the app needs the package {error.name}: pip install voila") from None

    code = f"import os\nfrom mgkit.lab import studio\n\nos.chdir({os.getcwd()!r})\nstudio.Studio({model!r})"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": kernel})
    settings = {"websocket_max_message_size": UPLOAD, "headers": {"Content-Security-Policy": POLICY}}
    config = Config({"Voila": {"port": port, "open_browser": browser, "tornado_settings": settings}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mgkit.ipynb"
        nbformat.write(page, path)
        Voila.launch_instance([str(path)], config=config)


def main(argv: list[str] | None = None) -> None:
    """The command line of `app`."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m mgkit app", description="The panel as a page of its own.", formatter_class=form
    )
    parser.add_argument("--model", default="nano", help="what it starts with: a name, a hub id or a folder")
    parser.add_argument("--port", type=int, default=8866, help="where it is served")
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser"
    )
    arguments = parser.parse_args(argv)
    serve(arguments.model, arguments.port, arguments.browser)

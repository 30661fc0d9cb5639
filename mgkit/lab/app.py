"""`python -m mgkit app`: the studio as a web page, served by Voilà.

notebook with one cell, studio.Studio() -> Voilà -> page; every visit has its own kernel
"""

import argparse
import os
import tempfile
from pathlib import Path

# Nothing from other hosts: Voilà's template requests icons, and classrooms may be offline.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: ws: wss:"
# Bytes of the largest upload. Beyond the limit, 10 MB by default, the connection is closed without a message.
UPLOAD = 100 * 2**20


def serve(model: str = "nano", port: int = 8866, browser: bool = True) -> None:
    """Serve the studio on localhost at `port` until Ctrl-C, and open it if `browser`.

    Raises: RuntimeError if Voilà is not installed.
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
    """`python -m mgkit app`."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m mgkit app", description="The studio as a web page.", formatter_class=form
    )
    parser.add_argument("--model", default="nano", help="initial model: a name, a hub id or a folder")
    parser.add_argument("--port", type=int, default=8866, help="port on localhost")
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser"
    )
    arguments = parser.parse_args(argv)
    serve(arguments.model, arguments.port, arguments.browser)

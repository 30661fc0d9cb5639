"""A real JupyterLab and a real Chromium for the tests in this folder; all are marked `browser`.

    lab         the server, one for the whole run; its root is laid out like the repository, and each test has
                kernels of its own
    app         the panel as `make app` serves it, one for the whole run
    page        a fresh browser page, 1280 pixels wide; requests that would leave this machine are refused
    refused     the addresses of those requests
    microphone  what the page may do with its (fake, beeping) microphone: "granted" unless a test says otherwise

A test writes a notebook, opens it and looks:

    def test_one_and_one(lab, page):
        lab.open(page, lab.write("sum.ipynb", ["1 + 1"]))
        lab.run_all(page)
        expect(lab.output(page, 0)).to_have_text("2")

Playwright keeps an asyncio loop in the main thread, so a test here uses neither asyncio nor nbclient itself.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote, urlsplit

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

ROOT = Path(__file__).parent.parent.parent
SECONDS = 240  # until something that takes two on an idle machine has failed
expect.set_options(timeout=SECONDS * 1000)
ARGUMENTS = [
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",  # a microphone that beeps once a second
    "--deny-permission-prompts",  # nobody is there to answer them
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def wait_until(done, what: str, seconds: float = SECONDS) -> None:
    """Returns once `done()` is true; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def isolated(folder: Path) -> dict[str, str]:
    """An environment for a server whose settings, trust and history live in `folder` and which stays offline."""
    return os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def layout(folder: Path) -> Path:
    """The repository's layout in `folder`: a copy of the notebooks and a link to the data. Returns `folder`."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / "data").symlink_to(ROOT / "data")
    return folder


def quiet(folder: Path) -> None:
    """Settings for the JupyterLab of `isolated(folder)`: it asks for no news and no updates."""
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    settings = settings / "notification.jupyterlab-settings"
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))


class Server:
    """A process that serves HTTP on 127.0.0.1:`port`, with its output in a file."""

    def __init__(
        self, command: Sequence[str], port: int, folder: Path, alive: str, environment: dict[str, str]
    ):
        """Starts `command` in `folder` and waits until the path `alive` answers."""
        self.root, self.port = folder, port
        self.log = folder.parent / f"{folder.name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(lambda: self._answers(alive), f"{command[2]} answers")

    def _answers(self, path: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5).status == 200
        except OSError:
            return False

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Lab(Server):
    """JupyterLab; notebooks are opened one at a time, without its side bars."""

    def __init__(self, folder: Path):
        root = folder / "root"
        root.mkdir()
        quiet(folder)
        port, self.token = free_port(), secrets.token_hex(16)
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": root,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "ServerApp.terminals_enabled": False,
            "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,  # `jupyterapp` in the page: these tests steer by it
            "LabApp.extension_manager": "readonly",
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        super().__init__(command, port, layout(root), f"/api?token={self.token}", isolated(folder))

    def write(self, name: str, cells: Sequence[str] | nbformat.NotebookNode) -> str:
        """Writes a notebook (or one of these code cells) into notebooks/; returns its path from the root."""
        if not isinstance(cells, nbformat.NotebookNode):
            cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cells.metadata.setdefault("kernelspec", kernel)  # or JupyterLab asks which
        nbformat.write(cells, self.root / "notebooks" / name)
        return f"notebooks/{name}"

    def open(self, page: Page, path: str, dark: bool = False) -> None:
        """Opens the notebook at `path` and waits until it is drawn and its kernel is idle."""
        page.goto(f"http://127.0.0.1:{self.port}/doc/tree/{quote(path)}?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=SECONDS * 1000)
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_selector(f"body[data-jp-theme-name='{theme}']", state="attached")
        self.wait_idle(page)

    def run_all(self, page: Page, seconds: float = SECONDS) -> None:
        """Runs all cells; returns when the kernel is idle. Fails where a cell shows an error."""
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        count = page.evaluate(
            "jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type == 'code' && "
            "c.model.sharedModel.getSource()).length"
        )
        page.wait_for_function(
            "count => jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type == 'code' && "
            "c.model.executionCount && c.model.executionState != 'running').length >= count",
            arg=count,
            timeout=seconds * 1000,
        )
        self.wait_idle(page, seconds)
        errors = page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] >> text=Traceback"
        )
        assert errors.count() == 0, errors.first.inner_text()

    def run(self, page: Page, code: str, seconds: float = SECONDS) -> str:
        """What `code`, run in the kernel of the open notebook, prints; no cell is made. Fails on an exception."""
        text, error = page.evaluate(
            """async code => {
                const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({code, store_history: false});
                let text = '', error = null;
                future.onIOPub = message => {
                    if (message.header.msg_type == 'stream') text += message.content.text;
                    if (message.header.msg_type == 'error') error = message.content.traceback.join('\\n');
                };
                await future.done;
                return [text, error];
            }""",
            code,
        )
        assert error is None, error
        return text

    def wait_idle(self, page: Page, seconds: float = SECONDS) -> None:
        page.wait_for_function(
            "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'",
            timeout=seconds * 1000,
        )

    def end_kernels(self) -> None:
        """Shuts all kernels down: the next notebook, of the same path too, starts with a fresh one."""
        for kernel in json.load(self._ask("/api/kernels")):
            self._ask(f"/api/kernels/{kernel['id']}", "DELETE")

    def _ask(self, path: str, method: str = "GET") -> HTTPResponse:
        headers = {"Authorization": f"token {self.token}"}
        address = f"http://127.0.0.1:{self.port}{path}"
        return urllib.request.urlopen(
            urllib.request.Request(address, headers=headers, method=method), timeout=SECONDS
        )

    def output(self, page: Page, index: int) -> Locator:
        """What code cell `index` shows: a locator."""
        return page.locator(".jp-CodeCell").nth(index).locator(".jp-OutputArea-output")


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture
def lab(jupyterlab: Lab) -> Iterator[Lab]:
    yield jupyterlab
    jupyterlab.end_kernels()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "root").mkdir()
    port = free_port()
    command = [sys.executable, "-m", "mgkit", "app", "--no-browser", f"--port={port}"]
    server = Server(command, port, folder / "root", "/voila/static/voila-style.js", isolated(folder))
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def microphone() -> str:
    return "granted"


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, refused: list[str], microphone: str) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        permissions=["microphone"] if microphone == "granted" else [],
        accept_downloads=True,
    )

    def gate(route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme == "file" or address.hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            refused.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    yield page
    context.close()

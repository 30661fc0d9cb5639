"""JupyterLab and Chromium for the tests in this folder, all marked `browser`.

    lab         the server, one per session, with a copy of the repository's layout; each test has new kernels
    panel       the studio in JupyterLab, with takes of its own
    app         the studio as served by `make app`, one per session
    page        a new browser page, 1280 pixels wide; requests to other machines are blocked
    refused     the URLs of the blocked requests
    microphone  permission for the page's (fake, beeping) microphone: "granted" by default

A test writes a notebook, opens it and inspects it:

    def test_one_and_one(lab, page):
        lab.open(page, lab.write("sum.ipynb", ["1 + 1"]))
        lab.run_all(page)
        expect(lab.output(page, 0)).to_have_text("2")

Playwright runs an asyncio loop in the main thread, so these tests use neither asyncio nor nbclient.
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

from browser.panel import CELLS, SECONDS, Panel

ROOT = Path(__file__).parent.parent.parent
expect.set_options(timeout=SECONDS * 1000)
ARGUMENTS = [
    # CI runs as root
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # a microphone that beeps once a second
    "--use-fake-device-for-media-stream",
    # nobody is there to answer them
    "--deny-permission-prompts",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def wait_until(done, what: str, seconds: float = SECONDS) -> None:
    """Return once `done()` is true, or fail with the description `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def assert_fits(page: Page) -> None:
    """The page does not scroll sideways on a screen, a tablet and a phone."""
    for width in (1280, 800, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def assert_follows_theme(page: Page, ink: str) -> None:
    """The page is darker than its text, at the selector `ink`, in the dark theme only."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        back, text = page.evaluate(
            "ink => [[document.body, 'backgroundColor'], [document.querySelector(ink), 'color']].map("
            "([part, name]) => getComputedStyle(part)[name].match(/\\d+/g).slice(0, 3).map(Number))",
            ink,
        )
        assert (sum(back) < sum(text)) == (scheme == "dark")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def isolated(folder: Path) -> dict[str, str]:
    """Environment for an offline server with its settings, trust and history in `folder`."""
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
    """Copy the notebooks to `folder`, link the data beside them, and return `folder`."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / "data").symlink_to(ROOT / "data")
    return folder


def quiet(folder: Path) -> None:
    """Configure the JupyterLab of `isolated(folder)` not to check for news and updates."""
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    settings = settings / "notification.jupyterlab-settings"
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8")


class Server:
    """A process serving HTTP on 127.0.0.1:`port`, with its output in a file."""

    def __init__(
        self, command: Sequence[str], port: int, folder: Path, alive: str, environment: dict[str, str]
    ):
        """Start `command` in `folder` and wait until the path `alive` responds."""
        self.root, self.port = folder, port
        self.log = folder.parent / f"{folder.name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(lambda: self._answers(alive), f"{command[2]} responds")

    def _answers(self, path: str) -> bool:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
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
    """JupyterLab in single-document mode."""

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
            # the tests control the page through `jupyterapp`
            "LabApp.expose_app_in_browser": True,
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
        """Write a notebook, or one made of these code cells, to notebooks/; return its path from the root."""
        if not isinstance(cells, nbformat.NotebookNode):
            cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        # otherwise JupyterLab asks for a kernel
        cells.metadata.setdefault("kernelspec", kernel)
        nbformat.write(cells, self.root / "notebooks" / name)
        return f"notebooks/{name}"

    def open(self, page: Page, path: str, dark: bool = False) -> None:
        """Open the notebook at `path`; return when it is rendered and its kernel idle."""
        page.goto(f"http://127.0.0.1:{self.port}/doc/tree/{quote(path)}?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=SECONDS * 1000)
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_selector(f"body[data-jp-theme-name='{theme}']", state="attached")
        self.wait_idle(page)

    def run_all(self, page: Page, seconds: float = SECONDS) -> None:
        """Run all cells and return when the kernel is idle; fail if a cell shows a traceback."""
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
        """Output of `code`, run in the open notebook's kernel without a cell; fail on an exception."""
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
        """Shut all kernels down, so that the next notebook starts a new one even at the same path."""
        for kernel in json.load(self._ask("/api/kernels")):
            self._ask(f"/api/kernels/{kernel['id']}", "DELETE")

    def _ask(self, path: str, method: str = "GET") -> HTTPResponse:
        headers = {"Authorization": f"token {self.token}"}
        address = f"http://127.0.0.1:{self.port}{path}"
        return urllib.request.urlopen(
            urllib.request.Request(address, headers=headers, method=method), timeout=SECONDS
        )

    def clear_takes(self) -> None:
        """Forget the takes of earlier tests."""
        shutil.rmtree(self.root / "outputs", ignore_errors=True)

    def output(self, page: Page, index: int) -> Locator:
        """Locator of the output of code cell `index`."""
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
    command = [sys.executable, "-m", "mgkit", "app", "--no-browser", "--token=secret", f"--port={port}"]
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


@pytest.fixture
def panel(lab: Lab, page: Page) -> Panel:
    """A studio in JupyterLab, with the name `panel` in the kernel."""
    lab.clear_takes()
    lab.open(page, lab.write("studio.ipynb", CELLS))
    lab.run_all(page)
    panel = Panel(page)
    expect(panel.go).to_be_visible()
    page.set_viewport_size({"width": 1280, "height": 2000})
    return panel

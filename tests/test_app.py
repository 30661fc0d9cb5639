"""The app's server: token, Host, one kernel a visit, how many at a time, and when they end.

Visits are made by HTTP and websocket, as by a browser's page. `running` serves a cell without a model, so
that kernels start fast; `studio` is the real one, with its random token.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgkit.lab import app, sources
from mgkit.lab import controls as controls_module
from mgkit.lab import studio as studio_module

pytest.importorskip("voila", reason="needs Voilà: pip install voila")
requests = pytest.importorskip("requests", reason="needs requests: pip install requests")
websocket = pytest.importorskip("websocket", reason="needs websocket-client: pip install websocket-client")
connection = pytest.importorskip("jupyter_server.services.kernels.connection.base")
visits = pytest.importorskip("mgkit.lab.visits")

ROOT = Path(__file__).parent.parent
SECONDS = 120
# Status line of a run in progress.
GENERATED = re.compile(r"\d s generated")
VISITS, KEEP, MESSAGE = 2, 3, 2**21
CODE = f"import os\nprint('process', os.getpid(), 'visitor {visits.VISITOR}')"
LIMITS = f"visits={VISITS}, keep={KEEP}, message={MESSAGE}"
SERVE = f"""from mgkit.lab import visits
visits.serve({CODE!r}, {{port}}, browser=False, token={{token!r}}, {LIMITS})"""


def wait_until(done: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


class Server:
    """A server on a free port of localhost, and the visits to it."""

    def __init__(self, folder: Path, *command: str):
        """Start `python command`, with {port} filled in, and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.log = f"http://localhost:{self.port}", folder / "log.txt"
        environment = os.environ | {
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "IPYTHONDIR": str(folder / "ipython"),
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("JUPYTER_TOKEN", None)
        arguments = [sys.executable, *(part.replace("{port}", str(self.port)) for part in command)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, "the server answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        return "is running at" in self.log.read_text(encoding="utf-8")

    @property
    def token(self) -> str:
        """The token of the address that the server printed."""
        found = re.search(r"\?token=(\w+)", self.log.read_text(encoding="utf-8"))
        assert found, self.log.read_text(encoding="utf-8")
        return found[1]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Visit:
    """A page with its kernel, as a browser holds it."""

    def __init__(self, server: Server, token: str):
        self.server, self.http = server, requests.Session()
        reply = self.http.get(f"{server.address}/", params={"token": token}, timeout=SECONDS)
        self.status, self.html = reply.status_code, reply.text
        found = re.search(r'"kernelId": "([\w-]+)"', self.html)
        self.kernel = found[1] if found else ""
        self.socket = None

    def alive(self) -> bool:
        """Whether the kernel exists."""
        status = self.http.get(
            f"{self.server.address}/api/kernels/{self.kernel}", timeout=SECONDS
        ).status_code
        assert status in (200, 404)
        return status == 200

    def open(self, **headers: str) -> None:
        """Open the page's websocket; raises websocket.WebSocketBadStatusException if it is refused."""
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.http.cookies)
        self.socket = websocket.create_connection(
            f"ws://localhost:{self.server.port}/api/kernels/{self.kernel}/channels?session_id=test",
            cookie=cookies,
            timeout=SECONDS,
            **headers,
        )

    def send(self, kind: str, content: dict, padding: int = 0) -> None:
        header = {"msg_id": os.urandom(8).hex(), "msg_type": kind, "username": "", "session": "test"}
        message = {
            "header": header | {"version": "5.3", "date": ""},
            "parent_header": {},
            # ipywidgets answers only if told its protocol's version.
            "metadata": {"version": "1.0.0", "padding": "x" * padding},
            "content": content,
            "channel": "shell",
            "buffers": [],
        }
        self.socket.send(json.dumps(message))

    def receive(self, wanted: Callable[[dict], object]) -> dict:
        """The next message for which `wanted` is true."""
        end = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < end, "no such message"
            data = self.socket.recv()
            if not data:
                raise ConnectionError("the server closed the websocket")
            message = (
                connection.deserialize_binary_message(data) if isinstance(data, bytes) else json.loads(data)
            )
            if wanted(message):
                return message

    def leave(self) -> None:
        """Close the page as a browser does: a message to the server, then the websocket."""
        address = f"{self.server.address}/voila/api/shutdown/{self.kernel}"
        reply = self.http.post(address, data={"_xsrf": self.http.cookies.get("_xsrf", "")}, timeout=SECONDS)
        assert reply.status_code == 204
        self.vanish()

    def vanish(self) -> None:
        """Close the page without a message, as a crash does."""
        if self.socket:
            self.socket.close()
            self.socket = None

    # --- the panel -----------------------------------------------------------------------------------------

    def states(self) -> dict[str, dict]:
        """State of each widget by its id."""
        comm = os.urandom(16).hex()
        self.send("comm_open", {"comm_id": comm, "target_name": "jupyter.widget.control", "data": {}})
        self.send("comm_msg", {"comm_id": comm, "data": {"method": "request_states"}})
        reply = self.receive(lambda m: m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == comm)
        return {key: widget["state"] for key, widget in reply["content"]["data"]["states"].items()}

    def widget(self, description: str) -> str:
        """Id of the widget described so."""
        return next(key for key, state in self.states().items() if state.get("description") == description)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("app"), "-c", SERVE.replace("{token!r}", "'secret'"))
    yield server
    server.close()


@pytest.fixture
def visit(running) -> Iterator[Callable[[], Visit]]:
    """Makes a visit with the right token. All end with the test."""
    visits: list[Visit] = []

    def make() -> Visit:
        visits.append(Visit(running, "secret"))
        return visits[-1]

    yield make
    for one in visits:
        one.vanish()
        one.http.delete(f"{running.address}/api/kernels/{one.kernel}", params={"token": "secret"})


def test_without_its_token_the_app_shows_a_login_and_starts_no_kernel(running):
    for query in ({}, {"token": "wrong"}):
        reply = requests.get(running.address, params=query, allow_redirects=False, timeout=SECONDS)
        assert reply.status_code == 302 and "/login" in reply.headers["Location"]
    reply = requests.get(running.address, timeout=SECONDS)
    assert "password" in reply.text and "kernelId" not in reply.text
    assert requests.post(f"{running.address}/voila/api/shutdown/x", timeout=SECONDS).status_code == 403


def test_the_websocket_needs_the_login_and_the_origin_of_the_page(running, visit):
    page = visit()
    stranger = Visit(running, "wrong")
    stranger.kernel = page.kernel
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        stranger.open()
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        page.open(origin="http://elsewhere.example")
    page.open(origin=running.address)
    page.vanish()


def test_a_foreign_host_name_is_refused_by_page_and_websocket(running, visit):
    page = visit()
    for path in ("/?token=secret", "/login", f"/api/kernels/{page.kernel}"):
        headers = {"Host": f"rebound.example:{running.port}"}
        assert page.http.get(running.address + path, headers=headers, timeout=SECONDS).status_code == 403
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        page.open(host=f"rebound.example:{running.port}", origin=f"http://rebound.example:{running.port}")


def test_an_image_or_frame_of_another_page_starts_no_kernel(running):
    for kind in ("image", "iframe", "script", "empty"):
        reply = requests.get(
            running.address, params={"token": "secret"}, headers={"Sec-Fetch-Dest": kind}, timeout=SECONDS
        )
        assert reply.status_code == 403 and "kernelId" not in reply.text
    reply = requests.get(running.address, params={"token": "secret"}, headers={"Sec-Fetch-Dest": "document"})
    assert "kernelId" in reply.text
    assert "SameSite=Strict" in reply.headers["Set-Cookie"]
    assert "frame-ancestors 'self'" in reply.headers["Content-Security-Policy"]
    kernel = re.search(r'"kernelId": "([\w-]+)"', reply.text)[1]
    requests.delete(f"{running.address}/api/kernels/{kernel}", params={"token": "secret"})


def test_two_visits_have_two_kernels_and_the_next_one_gets_a_page_that_says_so(running, visit):
    # All at once: the limit must hold while kernels are starting.
    with ThreadPoolExecutor(VISITS + 2) as pool:
        pages = list(pool.map(lambda _: visit(), range(VISITS + 2)))
    served = [page for page in pages if page.status == 200]
    assert len(served) == VISITS == len({page.kernel for page in served})
    assert len({re.search(r"process (\d+)", page.html)[1] for page in served}) == VISITS
    for page in pages:
        if page not in served:
            assert page.status == 503 and not page.kernel
            assert f"The studio is full: {VISITS} pages are open" in page.html


@pytest.mark.slow
def test_a_page_can_be_reloaded_as_often_as_one_likes(running, visit):
    other, page = visit(), visit()
    other.open()
    page.open()
    for _ in range(3):
        page.leave()
        page = visit()
        assert page.status == 200
        page.open()
    assert other.alive()
    # Both places are taken again, by pages that are open.
    assert visit().status == 503


@pytest.mark.slow
def test_a_vanished_page_makes_room_long_before_its_time(tmp_path):
    patient = SERVE.replace("{token!r}", "''").replace(f"keep={KEEP}", "keep=600")
    server = Server(tmp_path, "-c", patient)
    try:
        kept, vanished = Visit(server, ""), Visit(server, "")
        kept.open()
        vanished.open()
        vanished.vanish()
        # It may come back: a lost connection is not a closed page.
        assert Visit(server, "").status == 503
        assert vanished.alive()
        time.sleep(visits.GONE.total_seconds() + 1)
        new = Visit(server, "")
        assert new.status == 200
        assert kept.alive() and not vanished.alive()
        kept.vanish()
        new.vanish()
    finally:
        server.close()


@pytest.mark.slow
def test_a_vanished_page_frees_its_kernel_and_an_open_one_keeps_it(visit):
    closed, kept = visit(), visit()
    closed.open()
    kept.open()
    closed.vanish()
    wait_until(lambda: not closed.alive(), "the kernel of the vanished page ends", 10 * KEEP)
    assert kept.alive()
    # Its place is free again.
    assert visit().status == 200
    time.sleep(2 * KEEP)
    assert kept.alive()


def test_a_message_beyond_the_limit_closes_the_connection(visit):
    page = visit()
    page.open()
    page.send("kernel_info_request", {}, padding=MESSAGE // 2)
    page.receive(lambda message: message["msg_type"] == "kernel_info_reply")
    closed = (websocket.WebSocketConnectionClosedException, ConnectionError)
    with pytest.raises(closed):
        page.send("kernel_info_request", {}, padding=2 * MESSAGE)
        page.receive(lambda message: message["msg_type"] == "nothing")


def test_a_part_of_an_upload_fits_into_a_message():
    script = (Path(app.__file__).parent / "pickers.js").read_text(encoding="utf-8")
    part = eval(re.search(r"const PART = ([\d *]+);", script)[1])
    # base64 and the message around it
    assert 2 * part < app.MESSAGE and 2 * part < 10 * 2**20


def test_visitors_get_names_of_their_own_and_keep_them(running, visit):
    first, second = visit(), visit()
    names = [re.search(r"visitor ([\w-]{22})\b", page.html)[1] for page in (first, second)]
    assert len(set(names)) == 2
    assert first.http.cookies["mgkit-visitor"] == names[0]
    second.http.delete(f"{running.address}/api/kernels/{second.kernel}", params={"token": "secret"})
    again = first.http.get(f"{running.address}/", params={"token": "secret"}, timeout=SECONDS)
    assert names[0] in again.text
    kernel = re.search(r'"kernelId": "([\w-]+)"', again.text)[1]
    first.http.delete(f"{running.address}/api/kernels/{kernel}", params={"token": "secret"})


@pytest.mark.parametrize("cookie", ["../../etc", "x" * 23, "'); import os", ""])
def test_a_forged_visitors_name_is_replaced(running, cookie):
    reply = requests.get(
        running.address,
        params={"token": "secret"},
        headers={"Cookie": f"mgkit-visitor={cookie}"},
        timeout=SECONDS,
    )
    assert re.search(r"visitor [\w-]{22}\b", reply.text)
    kernel = re.search(r'"kernelId": "([\w-]+)"', reply.text)[1]
    requests.delete(f"{running.address}/api/kernels/{kernel}", params={"token": "secret"}, timeout=SECONDS)


def test_the_page_of_a_visitor_offers_no_files_of_the_server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studio_module.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    code = app.CODE.format(folder=str(tmp_path), model="nano", visitor="someone")
    names = {}
    exec(f"{code.rpartition(chr(10))[0]}\npanel = {code.rpartition(chr(10))[2]}", names)
    controls = names["panel"].controls
    for name in ("melody", "audio_prompt"):
        assert sources.PATH not in controls[name].choice.options
    assert controls_module.OTHER not in controls["model"].options
    assert names["panel"].collection.shelf.folder == Path("outputs/visitors/someone")


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="visits is 0"):
        app.serve(visits=0)
    with pytest.raises(ValueError, match="keep is -1"):
        app.serve(keep=-1)


@pytest.mark.slow
def test_an_empty_token_switches_the_login_off(tmp_path):
    server = Server(tmp_path, "-c", SERVE.replace("{token!r}", "''"))
    try:
        assert Visit(server, "").status == 200
        foreign = {"Host": "rebound.example"}
        assert requests.get(server.address, headers=foreign, timeout=SECONDS).status_code == 403
    finally:
        server.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Server]:
    command = ["-m", "mgkit", "app", "--no-browser", "--port={port}", f"--keep={KEEP}"]
    server = Server(tmp_path_factory.mktemp("studio"), *command)
    yield server
    server.close()


@pytest.mark.slow
def test_a_run_survives_its_page_and_other_visitors_see_nothing_of_it(studio):
    assert len(studio.token) >= 32
    # Each opens its websocket at once, since an unused kernel is kept for a few seconds only.
    first = Visit(studio, studio.token)
    first.open()
    second = Visit(studio, studio.token)
    second.open()
    seconds = first.widget("Seconds")
    first.send("comm_msg", {"comm_id": seconds, "data": {"method": "update", "state": {"value": 60}}})
    button = first.widget("Generate")
    first.send("comm_msg", {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}})
    first.receive(lambda m: GENERATED.search(json.dumps(m["content"])))

    assert not set(first.states()) & set(second.states())
    assert not any(GENERATED.search(json.dumps(state)) for state in second.states().values())
    assert not any('class="mgkit-take"' in str(state) for state in second.states().values())

    first.leave()
    # The run takes about nine seconds on a fast machine; an idle kernel is kept for KEEP.
    for _ in range(KEEP + 2):
        time.sleep(1)
        assert first.alive(), "a run in progress ended with its page"
    wait_until(lambda: not first.alive(), "the kernel ends after its run")

    # An idle page that says that it closes.
    time.sleep(6)
    assert second.alive()
    second.leave()
    wait_until(lambda: not second.alive(), "the kernel of the closed page ends", 5)

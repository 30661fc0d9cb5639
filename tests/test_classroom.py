"""A listening test for a class: forty listeners at once lose nothing, and nothing but the test gets in."""

import csv
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
import torch
from tiny import noise, tune

from mgkit.__main__ import main
from mgkit.lab import pooled, preferences
from mgkit.lab.blind_test import Pair
from mgkit.lab.classroom import command
from mgkit.lab.classroom.folder import COLUMNS, LINES, Classroom, Refused, write_pairs

RATE = 8000
ROOT = Path(__file__).parent.parent
NAMES = ("smooth", "rough")


def make_pairs(count=6):
    return [
        Pair(
            "Which <b>one</b>?",
            f"clip {i}",
            {"smooth": tune(0.5, (60 + i,)), "rough": noise(1, RATE, seed=i)},
        )
        for i in range(count)
    ]


def folder_of(path, count=6):
    write_pairs(path, make_pairs(count), RATE)
    return path


class Server:
    """`python -m mgkit class` in a process of its own."""

    def __init__(self, folder, *options, port=0):
        arguments = [sys.executable, "-m", "mgkit", "class", f"--dir={folder}", f"--port={port}", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        self.output = ""
        while "Ctrl-C" not in self.output:
            line = self.process.stdout.readline()
            assert line, f"the server ended: {self.output}"
            self.output += line
        self.listeners, self.teacher = re.findall(r"(?:open|teacher) +(http://\S+)", self.output)
        self.port = int(self.listeners.split(":")[2].partition("/")[0])

    def close(self, how=signal.SIGINT):
        self.process.send_signal(how)
        return self.process.communicate(timeout=60)[0]


class Browser:
    """A browser with cookies of its own, on a page of the server."""

    def __init__(self, address):
        self.address, self.cookies = address, CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def get(self, path="", headers=()):
        return self._open(urllib.request.Request(self.address + path, headers=dict(headers)))

    def post(self, action, body=None, kind="application/json", **fields):
        data = json.dumps(fields).encode() if body is None else body
        request = urllib.request.Request(self.address + action, data, {"Content-Type": kind}, method="POST")
        return self._open(request)

    def _open(self, request):
        """Status, and the content: an object if it is JSON."""
        try:
            response = self._opener.open(request, timeout=60)
        except urllib.error.HTTPError as error:
            response = error
        content = response.read()
        kind = response.headers.get("Content-Type") or ""
        self.headers = response.headers
        return response.status, json.loads(content) if kind.startswith("application/json") else content

    def join(self, name):
        return self.post("join", name=name)

    def answer(self, state, choice="A", plays=(1, 1), comment=""):
        return self.post("answer", pair=state["pair"], choice=choice, plays=plays, comment=comment)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(folder_of(tmp_path_factory.mktemp("class") / "results"), "--listeners=200")
    yield server
    server.close()


@pytest.fixture
def browser(server):
    return Browser(server.listeners)


@pytest.fixture
def room(tmp_path):
    return Classroom(folder_of(tmp_path / "results", 3), most=4)


def take(room, participant, choice="A", comment=""):
    """Answer a listener's current pair."""
    room.answer(participant, room.state(participant)["pair"], choice, comment, (1, 1))


# --- forty at once ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forty_browsers_at_once_lose_nothing_though_the_server_is_killed(tmp_path, request):
    """Half of them give the same name; all reload and tap twice, some undo, and the server is killed."""
    folder = folder_of(tmp_path / "results")
    server = Server(folder)
    # in whatever way the test ends
    request.addfinalizer(lambda: server.process.kill())
    answered, enough, everybody = [], threading.Event(), threading.Barrier(40)

    def persist(ask):
        """Repeat a request until the server answers it."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                return ask()
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
        raise AssertionError("the server did not come back")

    def listen(number):
        browser = Browser(server.listeners)
        state = persist(lambda: browser.join("Ada" if number % 2 else f"Bob {number}"))[1]
        name, kept, undone = state["name"], {}, False
        everybody.wait(120)
        while "pair" in state:
            for clip in state["clips"]:
                status, content = persist(lambda clip=clip: browser.get(f"clips/{clip}"))
                assert status == 200 and content.startswith(b"fLaC")
            choice, before = ("A", "B", "same")[(number + state["done"]) % 3], state
            kept[before["pair"]] = choice
            _, state = persist(lambda b=before, c=choice: browser.answer(b, c, comment=name))
            # a second tap, and a reload
            status, again = persist(lambda b=before: browser.answer(b, "same"))
            assert status == 409 and again["error"] == "This pair is answered already."
            reloaded = persist(lambda: browser.get("state"))[1]
            assert reloaded["done"] == again["done"] == state["done"] == before["done"] + 1
            assert reloaded.get("pair") == state.get("pair") != before["pair"]
            if state["done"] == 5 and number % 4 == 0 and not undone and reloaded["undo"]:
                status, state = persist(lambda: browser.post("undo"))
                undone = status == 200
                assert state["pair"] == before["pair"] or not undone
            answered.append(number)
            if len(answered) == 60:
                enough.set()
        _, state = persist(lambda: browser.post("result"))
        assert len(state["rows"]) == 6
        return name, kept

    with ThreadPoolExecutor(40) as pool:
        listeners = [pool.submit(listen, number) for number in range(40)]
        assert enough.wait(120)
        server.close(signal.SIGKILL)
        server = Server(folder, port=server.port)
        found = dict(listener.result() for listener in listeners)

    assert len(found) == 40
    assert set(found) == {f"Bob {i}" for i in range(0, 40, 2)} | {"Ada"} | {
        f"Ada ({i})" for i in range(2, 21)
    }
    rows = preferences.standing(preferences.read(folder / "answers.csv"))
    assert len(rows) == 40 * 6
    by_name = {
        name: {row["pair"]: row["answer"] for row in rows if row["listener"] == name} for name in found
    }
    assert by_name == found
    assert len({row["participant"] for row in rows}) == 40
    assert all(row["comment"] == row["listener"] for row in rows)

    overview = Browser(server.teacher).get("state")[1]
    assert overview["finished"] == 40 and all(done == 6 for _, done in overview["listeners"])
    [pooled_one] = overview["pooled"]
    assert "40 listeners, 6 pairs" in pooled_one["text"]
    # each line of the file is whole
    with open(folder / "answers.csv", newline="", encoding="utf-8") as file:
        assert {len(line) for line in csv.reader(file)} == {len(preferences.COLUMNS)}
    assert "40 listeners" in server.close()
    assert "40 listeners" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_listener_s_page_names_no_system_before_the_result(browser):
    _, state = browser.join("Ada")
    while "pair" in state:
        assert not any(name in json.dumps(state) for name in NAMES)
        assert not any(
            name in str(browser.get(f"clips/{clip}")[1]) for clip in state["clips"] for name in NAMES
        )
        assert browser.post("result")[0] == 409
        state = browser.answer(state, "B")[1]
    assert not any(name in json.dumps(state) for name in NAMES)
    _, state = browser.post("result")
    assert {state["rows"][0]["a"], state["rows"][0]["b"]} == set(NAMES)
    [counts] = state["result"]
    assert sum(number for _, number in counts["counts"]) == 6
    # and it is still there after a reload, where nothing can be undone
    assert browser.get("state")[1]["rows"] == state["rows"]
    assert browser.post("undo")[0] == 409


def test_two_tabs_of_a_browser_are_one_listener(browser):
    _, first = browser.join("Tab")
    assert browser.join("Tab")[1]["name"] == first["name"] == "Tab"
    assert browser.post("leave")[1]["name"] is None
    assert browser.join("Tab")[1]["name"] == "Tab (2)"


# --- security ---------------------------------------------------------------------------------------------


def raw(server, request):
    """What the server answers to these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass
    return received


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "clips/../access.json",
        "clips/%2e%2e%2faccess.json",
        "clips/..%2f..%2fpairs.csv",
        "clips//etc/passwd",
        "clips/" + "a" * 20 + ".flac",
        "clips/",
        "page.css%00.html",
        "answers.csv",
        "access.json",
        "../answers.csv",
        "server.py",
        "report",
    ],
)
def test_no_path_leads_to_another_file(server, path):
    token = server.listeners.rsplit("/", 2)[1]
    answer = raw(server, f"GET /{token}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.1 (403|404|400) ", answer), answer[:200]
    assert b"root:" not in answer and b"cookie" not in answer.partition(b"\r\n\r\n")[2]


def test_without_the_right_token_there_is_nothing(server):
    token = server.listeners.rsplit("/", 2)[1]
    teacher = server.teacher.rsplit("/", 2)[1]
    assert len(token) == 8 and len(teacher) >= 22
    for path in (
        "",
        token[:-1] + "/",
        token.upper() + "/",
        "x/state",
        f"{token}x/state",
        f"{token[:-1]}/state",
    ):
        status, content = Browser(f"http://127.0.0.1:{server.port}/").get(path)
        assert status == 404 and b"whole address" in content
    # a listener's token opens nothing of the teacher's, and the page tells neither
    for path in ("teacher", "report", "answers.csv"):
        assert Browser(server.listeners).get(path)[0] == 404
    page = Browser(server.listeners).get()[1] + Browser(server.listeners).get("page.js")[1]
    assert teacher.encode() not in page
    assert Browser(server.teacher).post("join", name="Ada")[0] == 404


def test_a_forged_cookie_is_nobody(server, browser):
    browser.join("Real")
    [cookie] = browser.cookies
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite") == "Strict"
    assert cookie.path == "/" + server.listeners.rsplit("/", 2)[1] + "/"
    for forged in (cookie.value[:-1] + "0", "deadbeef", cookie.value.replace("2|", "1|", 1)):
        headers = {"Cookie": f"{cookie.name}={forged}"}
        assert Browser(server.listeners).get("state", headers)[1]["name"] is None


@pytest.mark.parametrize("size", [5_000, 50_000_000])
def test_an_oversized_body_is_dropped(server, browser, size):
    token = server.listeners.rsplit("/", 2)[1]
    head = f"POST /{token}/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = raw(server, f"{head}Content-Length: {size}\r\n\r\n".encode() + b"x" * min(size, 10_000))
    assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert raw(server, b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")[:20] in (
        b"",
        *[answer[:20]],
    )
    assert browser.get("state")[0] == 200


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"[" * 4000, 400),
        (b'{"name": 5}', 400),
        (b'{"name": null}', 400),
        (b'{"other": "x"}', 400),
        (b'{"name": ""}', 409),
        (b'{"name": "\\u202e\\u0000 \\n"}', 409),
        (json.dumps({"name": "x" * 41}).encode(), 409),
    ],
)
def test_malformed_requests_are_refused_in_a_sentence(browser, body, status):
    got, content = browser.post("join", body)
    assert got == status and b"Traceback" not in str(content).encode()
    assert browser.get("state")[1]["name"] is None


@pytest.mark.parametrize(
    "fields, status",
    [
        ({"choice": "C"}, 409),
        ({"choice": "undo"}, 409),
        ({"choice": ["A"]}, 400),
        ({"plays": [0, 1]}, 409),
        ({"plays": [1]}, 400),
        ({"plays": "11"}, 400),
        ({"plays": [True, True]}, 400),
        ({"plays": [1e999, 1]}, 400),
        ({"plays": [-5, 1]}, 409),
        ({"plays": [10**30, 1]}, 409),
        ({"comment": "x" * 201}, 409),
        ({"pair": "0" * 12}, 409),
    ],
)
def test_an_answer_out_of_bounds_changes_nothing(browser, fields, status):
    _, state = browser.join("Bounds")
    sent = {"pair": state["pair"], "choice": "A", "plays": [1, 1], "comment": ""} | fields
    assert browser.post("answer", **sent)[0] == status
    assert browser.get("state")[1]["done"] == 0


def test_a_form_of_another_site_is_refused(browser):
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        assert browser.post("join", b'{"name": "Eve"}', kind)[0] in (400, 415)
    assert browser.get("state")[1]["name"] is None
    policy = browser.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_html_in_names_and_comments_is_text(server, browser):
    evil = "<img src=x onerror=alert(1)>"
    _, state = browser.join(evil)
    assert state["name"] == evil and browser.headers["Content-Type"].startswith("application/json")
    browser.answer(state, comment="=HYPERLINK(1)")
    teacher = Browser(server.teacher)
    status, report = teacher.get("report")
    assert status == 200 and evil.encode() not in report and b"Which &lt;b&gt;one" in report
    status, answers = teacher.get("answers.csv")
    assert status == 200 and b",'=HYPERLINK" in answers
    assert teacher.headers["Content-Disposition"].startswith("attachment")
    # the scripts of both pages write text, never HTML
    for script in ("listener.js", "teacher.js"):
        text = (ROOT / "mgkit/lab/classroom" / script).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_votes_for_others_and_before_joining_are_refused(browser):
    for action in ("answer", "undo", "result"):
        fields = {"pair": "0" * 12, "choice": "A", "plays": [1, 1], "comment": ""}
        status, state = browser.post(action, **fields)
        assert status == 409 and state["error"] == "Enter your name first."


def test_phones_can_ask_for_a_part_of_a_sound(browser):
    _, state = browser.join("Part")
    whole = browser.get(f"clips/{state['clips'][0]}")[1]
    status, part = browser.get(f"clips/{state['clips'][0]}", {"Range": "bytes=0-1"})
    assert status == 206 and part == whole[:2] == b"fL"


# --- the class without HTTP -------------------------------------------------------------------------------


def test_equal_names_are_told_apart_whatever_their_case(room):
    joined = [room.state(room.join(name))["name"] for name in ("Ada", " ADA ", "Ada (2)", "Ada")]
    assert joined == ["Ada", "ADA (2)", "Ada (2) (2)", "Ada (3)"]
    with pytest.raises(Refused, match="full: 4"):
        room.join("Eve")
    assert room.state(None)["full"]


def test_a_class_is_continued_from_its_files_alone(room):
    ada, bob = room.join("Ada"), room.join("Bob")
    take(room, ada, "B"), take(room, ada), take(room, ada), take(room, bob)
    room.end(ada)
    # a line that a killed server left incomplete
    for name in ("answers.csv", "participants.jsonl"):
        with open(room.folder / name, "ab") as file:
            file.write(b'{"par')
    again = Classroom(room.folder)
    assert again.secrets == room.secrets
    assert again.state(ada) == room.state(ada) and "rows" in again.state(ada)
    assert again.state(bob)["done"] == 1
    take(again, bob)
    assert again.state(again.join("Ada"))["name"] == "Ada (2)"
    assert [done for _, done in Classroom(room.folder).overview()["listeners"]] == [3, 2, 0]


def test_the_number_of_a_listener_s_lines_is_bounded(room):
    ada = room.join("Ada")
    with pytest.raises(Refused, match="enough"):
        for _ in range(100):
            take(room, ada)
            room.undo(ada)
    assert len(preferences.read(room.answers)) == 3 * LINES
    with pytest.raises(Refused, match="enough"):
        for _ in range(100):
            take(Classroom(room.folder), ada)


def test_an_answer_that_cannot_be_saved_does_not_count(room, monkeypatch):
    ada = room.join("Ada")

    def fail(path, row):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(preferences, "append", fail)
        with pytest.raises(OSError):
            take(room, ada)
    assert room.state(ada)["done"] == 0
    take(room, ada)
    assert room.state(ada)["done"] == 1


def test_clips_are_as_long_and_as_loud_within_a_pair_and_named_blindly(room):
    from mgkit import audio

    clips = {path.name: path.read_bytes() for path in room.clips().iterdir()}
    assert len(clips) == 6 and all(re.fullmatch(r"[0-9a-f]{20}\.flac", name) for name in clips)
    ada = room.join("Ada")
    first, second = (audio.decode(clips[name], name)[0] for name in room.state(ada)["clips"])
    assert first.shape == second.shape and not torch.equal(first, second)
    # other folders, other names
    other = Classroom(folder_of(room.folder.parent / "other", 3))
    assert not {path.name for path in other.clips().iterdir()} & set(clips)
    # a later server plays the same files
    assert {path.name: path.read_bytes() for path in Classroom(room.folder).clips().iterdir()} == clips


def test_the_secrets_are_readable_by_their_owner_alone(room):
    assert (room.folder / "access.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("pairs.csv", "a,b\n", "another first line"),
        ("pairs.csv", ",".join(COLUMNS) + "\n", "0 pairs"),
        ("pairs.csv", ",".join(COLUMNS) + "\nq,i,a,x.wav,b,y.wav\n", "line 2: there is no file"),
        (
            "pairs.csv",
            ",".join(COLUMNS) + "\nq,i,a,x.wav,a,y.wav\n",
            "line 2: expected six cells",
        ),
        ("access.json", "{}", "damaged; remove it"),
        ("access.json", '{"class": "(.*)", "teacher": "x", "cookie": "y"}', "damaged; remove it"),
        ("answers.csv", "a,b\n", "not a file of blind-test answers"),
    ],
)
def test_a_damaged_folder_is_reported_in_one_line(room, name, content, message, capsys):
    (room.folder / name).write_text(content, encoding="utf-8")
    assert main(["class", f"--dir={room.folder}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_our_own_clips_make_a_class(tmp_path):
    """Clips of different rates, lengths and channels, in a spreadsheet's CSV."""
    from mgkit import audio

    audio.write(tmp_path / "a.wav", tune(1.0, (60,)), RATE)
    audio.write(tmp_path / "b.flac", noise(2, 16000), 16000)
    lines = [",".join(COLUMNS), 'Which one?,"a, or b",mine,a.wav,yours,b.flac']
    (tmp_path / "pairs.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    room = Classroom(tmp_path)
    ada = room.join("Ada")
    assert room.state(ada)["item"] == "a, or b"
    take(room, ada)
    room.end(ada)
    assert {room.state(ada)["rows"][0][letter] for letter in "ab"} == {"mine", "yours"}


# --- the command ------------------------------------------------------------------------------------------


def test_the_server_is_local_unless_asked(server):
    assert server.listeners.startswith("http://127.0.0.1:") and "--host 0.0.0.0" in server.output
    assert command._address("0.0.0.0") != "0.0.0.0" and command._address("::1") == "[::1]"


def test_a_taken_port_is_reported_in_one_line(server, room, capsys):
    assert main(["class", f"--dir={room.folder}", f"--port={server.port}"]) == 2
    error = capsys.readouterr().err
    assert str(server.port) in error and "--port" in error and error.count("\n") == 1


def test_read_merges_files_and_reports(room, tmp_path, capsys):
    files = []
    for number in range(2):
        other = Classroom(folder_of(tmp_path / f"class {number}", 3))
        # the same names and pairs in both classes
        for name in ("Ada", "Bob"):
            participant = other.join(name)
            while "pair" in other.state(participant):
                take(other, participant, "A")
        files.append(str(other.answers))
    out = tmp_path / "together"
    assert main(["class", "read", *files, files[0], f"--out={out}"]) == 0
    assert "4 listeners, 3 pairs" in capsys.readouterr().out
    assert len(preferences.read(out / "answers.csv")) == 12
    assert "4 listeners gave 12 answers" in (out / "report.html").read_text(encoding="utf-8")
    assert pooled.merge(files) == preferences.read(out / "answers.csv")
    assert main(["class", "read", "none.csv"]) == 2
    assert "no file 'none.csv'" in capsys.readouterr().err

"""The web server of a class: a page for listeners and one for the teacher, each with a secret in its address.

    /TOKEN/           page        GET  state    what the page shows, as JSON
    /TOKEN/clips/…    sounds      POST join, answer, undo, result, leave: JSON, answered with the new state
    /TEACHER/         page        GET  state, report, answers.csv

A signed cookie recognises a listener, so a reloaded page goes on where it was. There is no kernel, nothing
that is sent is run, and no file is served but those named here; any other address is not found. Requests of
more than a few kilobytes, and those that do not arrive in time, are dropped.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.netutil
import tornado.web

from mgkit.lab import pages, pooled, preferences
from mgkit.lab.classroom.folder import Classroom, Refused

HERE = Path(__file__).parent
# Bytes of a request's body and of its headers, seconds in which it must arrive.
BODY, HEADERS, PATIENCE = 4096, 16384, 20
COOKIE, DAYS = "mgkit-listener", 30
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# The report is a file that also opens without a server: its styles are its own, and it needs no script.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Handler(tornado.web.RequestHandler):
    """What all answers share: the class, headers, and errors in one sentence."""

    def initialize(self, room: Classroom) -> None:
        """Take the class that the handler serves."""
        self.room = room

    def set_default_headers(self) -> None:
        self.set_header("Server", "mgkit")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        """Log faults of the server. Refused requests are the sender's, and their addresses hold secrets."""
        if not isinstance(error, tornado.web.HTTPError):
            super().log_exception(kind, error, trace)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(
            "There is no page at this address. Ask for the whole address, up to its last sign.\n"
            if status_code == 404
            else f"{status_code}: {self._reason}\n"
        )

    def send(self, text: str, kind: str) -> None:
        """Answer with a text of type `kind`."""
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.finish(text)


class NotFound(Handler):
    """Every address without a secret."""

    def prepare(self) -> None:
        raise tornado.web.HTTPError(404)


class Asset(Handler):
    """A page and its script and style, which are files of this package."""

    def initialize(  # type: ignore[override]
        self, room: Classroom, names: dict[str, tuple[str, ...]]
    ) -> None:
        """Serve under each name the files that belong together, joined."""
        super().initialize(room)
        self.names = names

    def get(self, name: str) -> None:
        """Answer with the file; the empty name is the page."""
        files = self.names.get(name)
        if files is None:
            raise tornado.web.HTTPError(404)
        text = "\n".join((HERE / file).read_text(encoding="utf-8") for file in files)
        self.send(text, TYPES[Path(files[0]).suffix])


class Listener(Handler):
    """The state of a listener, and the requests that change it."""

    @property
    def participant(self) -> str | None:
        """The participant that the cookie names, None without a valid one."""
        value = self.get_signed_cookie(COOKIE, max_age_days=DAYS)
        return value.decode() if value else None

    def get(self, action: str) -> None:
        """Answer with the state."""
        if action != "state":
            raise tornado.web.HTTPError(405)
        self._state(self.participant)

    def post(self, action: str) -> None:
        """Carry out an action, and answer with the new state, and with the reason if it was refused."""
        if action == "state":
            raise tornado.web.HTTPError(405)
        participant, error = self.participant, ""
        try:
            participant = self._act(action, self._fields(), participant)
        except Refused as refusal:
            error = str(refusal)
            self.set_status(409)
        except OSError as problem:
            error = f"Not saved: {problem.strerror or problem}. Tell the teacher, and try again."
            self.set_status(500)
        self._state(participant, error)

    def _act(self, action: str, fields: dict[str, Any], participant: str | None) -> str | None:
        path = self.request.path.rsplit("/", 1)[0] + "/"
        if action == "join":
            # A name that is sent twice, by a double tap, joins once.
            if participant not in self.room.names:
                participant = self.room.join(_text(fields, "name"))
                self.set_signed_cookie(COOKIE, participant, DAYS, path=path, httponly=True, samesite="Strict")
        elif action == "leave":
            self.clear_cookie(COOKIE, path=path)
            participant = None
        elif action == "answer":
            pair, choice, comment = (_text(fields, name) for name in ("pair", "choice", "comment"))
            plays = fields.get("plays")
            if not (isinstance(plays, list) and len(plays) == 2 and all(type(n) is int for n in plays)):
                raise tornado.web.HTTPError(400, reason="plays must be two whole numbers")
            self.room.answer(participant or "", pair, choice, comment, (plays[0], plays[1]))
        else:
            change: Callable[[str], None] = {"undo": self.room.undo, "result": self.room.end}[action]
            change(participant or "")
        return participant

    def _fields(self) -> dict[str, Any]:
        """The object in the body. Raises: HTTPError for another type or anything but a JSON object."""
        # Forms of other sites cannot send this type.
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise tornado.web.HTTPError(415, reason="expected application/json")
        try:
            fields = json.loads(self.request.body)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise tornado.web.HTTPError(400, reason="expected a JSON object")
        return fields

    def _state(self, participant: str | None, error: str = "") -> None:
        self.send(json.dumps(self.room.state(participant) | {"error": error}), "application/json")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise tornado.web.HTTPError(400, reason=f"{name} must be a string")
    return value


class Clip(Handler, tornado.web.StaticFileHandler):
    """A sound, also in the parts that browsers of phones ask for."""

    def initialize(self, room: Classroom, path: str) -> None:  # type: ignore[override]
        Handler.initialize(self, room)
        tornado.web.StaticFileHandler.initialize(self, path)

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "private, max-age=86400")


class Teacher(Handler):
    """The teacher's view: how far the class is, the report with plots, and the file of answers."""

    async def get(self, what: str) -> None:
        """Answer with `state`, `report` or `answers.csv`."""
        if what == "state":
            overview = self.room.overview() | {"address": self.application.settings["address"]}
            self.send(json.dumps(overview), "application/json")
        elif what == "report":
            rows = preferences.read(self.room.answers)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "report.html"
                # Drawing takes a second or two, in which listeners must not wait.
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, pooled.report, rows, path)
                self.set_header("Content-Security-Policy", REPORT_POLICY)
                # It has no players.
                self.send(path.read_text(encoding="utf-8").replace(pages.PAGE_SCRIPT, ""), "text/html")
        else:
            self.set_header("Content-Disposition", 'attachment; filename="answers.csv"')
            path = self.room.answers
            self.send(path.read_text(encoding="utf-8") if path.exists() else "", "text/csv")


def application(room: Classroom, clips: Path, address: str) -> tornado.web.Application:
    """The site of a class; `clips` is the folder `room.clips()`.

    `address` is the URL of the listeners' page; the teacher's page displays it.
    """
    listeners, teacher = room.secrets["class"], room.secrets["teacher"]
    files = {
        "": ("listener.html",),
        "page.css": ("page.css",),
        "page.js": ("../player.js", "listener.js"),
    }
    teacher_files = {
        "": ("teacher.html",),
        "page.css": ("page.css",),
        "page.js": ("teacher.js",),
    }
    own = {"room": room}
    return tornado.web.Application(
        [
            (rf"/{listeners}/(|page\.css|page\.js)", Asset, own | {"names": files}),
            (rf"/{listeners}/(state|join|answer|undo|result|leave)", Listener, own),
            (rf"/{listeners}/clips/([0-9a-f]{{20}}\.flac)", Clip, own | {"path": str(clips)}),
            (rf"/{teacher}/(|page\.css|page\.js)", Asset, own | {"names": teacher_files}),
            (rf"/{teacher}/(state|report|answers\.csv)", Teacher, own),
        ],
        default_handler_class=NotFound,
        default_handler_args=own,
        cookie_secret=room.secrets["cookie"],
        address=address,
        # Addresses hold secrets, and are not logged.
        log_function=lambda _: None,
    )


def run(room: Classroom, host: str, port: int, tell: Callable[[int], str]) -> None:
    """Serve the class at `host` and `port` until it is interrupted; a port of 0 is any free one.

    `tell(port)` is called once requests are accepted and returns the address of the listeners' page.
    Raises: OSError if the port is taken or the host is not one of this machine's.
    """

    async def serve() -> None:
        sockets = tornado.netutil.bind_sockets(port, host)
        clips = room.clips()
        address = tell(sockets[0].getsockname()[1])
        server = tornado.httpserver.HTTPServer(
            application(room, clips, address),
            max_header_size=HEADERS,
            max_body_size=BODY,
            body_timeout=PATIENCE,
            idle_connection_timeout=6 * PATIENCE,
        )
        server.add_sockets(sockets)
        try:
            await asyncio.Event().wait()
        finally:
            server.stop()
            await server.close_all_connections()

    asyncio.run(serve())

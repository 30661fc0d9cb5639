"""The server behind `mgkit app`: who may visit, how many at once, and for how long a kernel is kept.

Settings of Voilà and jupyter_server do most of it; the classes here add the rest:

    request -> Host and token, by settings -> `admit`: the visitor's cookie
            -> `Kernels.start_kernel`: at most `visits` -> page
    page closed -> `PageClosed`: its kernel ends as soon as no run is in progress
    page vanished -> its kernel ends once it has been idle for some time, or when a new visit needs its place
"""

import asyncio
import re
import secrets
import tempfile
import threading
import webbrowser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import tornado.web
import traitlets
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from traitlets.config import Config
from voila.app import Voila
from voila.shutdown_kernel_handler import VoilaShutdownKernelHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

# Nothing from other hosts: Voilà's template requests icons, and classrooms may be offline. No foreign frames.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: ws: wss:; "
    "frame-ancestors 'self'; form-action 'self'"
)
# In the code of the page: the visitor's name, which no other browser knows.
VISITOR = "%visitor%"
COOKIE, YEAR = "mgkit-visitor", 365 * 86400
# Of the messages between pages and kernels.
PROTOCOL = "v1.kernel.websocket.jupyter.org"
# A run moves its progress bar at least this often, once it has started.
QUIET = timedelta(seconds=5)
# A page without a connection for this long may lose its place to a new visit; a slow one connects sooner.
GONE = timedelta(seconds=15)


def admit(handler: tornado.web.RequestHandler, notebook: nbformat.NotebookNode, cwd: str) -> None:
    """Prepare a visit: only a page opened as such may start a kernel, not an image or frame of another page.

    The visitor's name, kept in a cookie, is written into the page's code. Raises: HTTPError 403.
    """
    if handler.request.headers.get("Sec-Fetch-Dest", "document") != "document":
        raise tornado.web.HTTPError(403, reason="The studio is a page of its own, not part of another")
    # Reading the token sets its cookie, which the page sends back when it is closed.
    _ = handler.xsrf_token
    visitor = handler.get_cookie(COOKIE) or ""
    if not re.fullmatch(r"[\w-]{22}", visitor, re.ASCII):
        visitor = secrets.token_urlsafe(16)
    handler.set_cookie(COOKIE, visitor, httponly=True, samesite="Strict", max_age=YEAR)
    for cell in notebook.cells:
        cell.source = cell.source.replace(VISITOR, visitor)


class Kernels(AsyncMappingKernelManager):
    """The visits' kernels, at most `visits` of them."""

    visits = traitlets.Integer(8, config=True, help="Largest number of kernels at a time.")

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._starting = asyncio.Lock()
        # Kernels of closed pages, each with the task that ends it.
        self._closed: dict[str, asyncio.Task] = {}

    # The superclass declares the synchronous version and assigns this one.
    async def start_kernel(self, **arguments: Any) -> str:  # type: ignore[override]
        """Start the kernel of a visit and return its id.

        If all `visits` kernels are in use, one whose page is gone makes room.

        Raises: HTTPError 503 if none is; its reason is the page's text.
        """
        # One at a time: a kernel is counted only once it has started, and requests may come all at once.
        async with self._starting:
            if len(self) >= self.visits:
                await self._make_room()
            if len(self) >= self.visits:
                raise tornado.web.HTTPError(
                    503,
                    reason=f"The studio is full: {len(self)} pages are open, as many as this server allows. "
                    "Close one, or try again in a minute",
                )
            return await super().start_kernel(**arguments)

    def quiet(self, kernel_id: str, since: timedelta = QUIET) -> bool:
        """Whether the kernel is idle and sent nothing lately; a run in a thread sends its progress."""
        # A `ServerKernelManager`, whose activity this manager tracks.
        kernel: Any = self.get_kernel(kernel_id)
        return kernel.execution_state != "busy" and datetime.now(UTC) - kernel.last_activity > since

    def page_closed(self, kernel_id: str) -> None:
        """End the kernel once it is quiet, without making the closing page wait."""
        if kernel_id in self and kernel_id not in self._closed:
            task = self._closed[kernel_id] = asyncio.ensure_future(self._end(kernel_id))
            task.add_done_callback(lambda _: self._closed.pop(kernel_id))

    async def _end(self, kernel_id: str) -> None:
        while kernel_id in self and not self.quiet(kernel_id):
            await asyncio.sleep(0.5)
        if kernel_id in self:
            await self.shutdown_kernel(kernel_id)

    async def _make_room(self) -> None:
        """End the kernel of a vanished page, or wait for one of a closed page; a reload closes one first."""
        gone = [
            each
            for each in self.list_kernel_ids()
            if not self.kernel_model(each)["connections"] and self.quiet(each, GONE)
        ]
        if gone:
            await self.shutdown_kernel(min(gone, key=lambda each: self.kernel_model(each)["last_activity"]))
        elif self._closed:
            # A closed page's run may take minutes more; a page that was only looked at is quiet by then.
            await asyncio.wait(
                self._closed.values(), timeout=2 * QUIET.total_seconds(), return_when="FIRST_COMPLETED"
            )


class PageClosed(VoilaShutdownKernelHandler):
    """The message of a page being closed. Its kernel ends too, after the run in progress."""

    @tornado.web.authenticated
    async def post(self, kernel_id: str) -> None:
        self.kernel_manager.page_closed(kernel_id)
        self.set_status(204)


class KernelSocket(VoilaKernelWebsocketHandler):
    """The connection of a page to its kernel.

    Voilà reads every binary message by the protocol that its own pages use. In one of the older protocol, for
    a client that asked for none, it finds billions of parts, and the server would stand still.
    """

    def write_message(self, message: bytes | dict[str, Any], binary: bool = False) -> Any:
        if isinstance(message, bytes) and self.selected_subprotocol != PROTOCOL:
            # Past Voilà's own method.
            return super(VoilaKernelWebsocketHandler, self).write_message(message, binary)
        return super().write_message(message, binary)


class Server(Voila):
    """Voilà with `PageClosed` and `KernelSocket`, opening the browser at the address with the token."""

    def init_handlers(self) -> list:
        """Voilà's handlers, after those that replace some of them."""
        handlers = super().init_handlers()
        sockets = [(each[0], KernelSocket) for each in handlers if each[1] is VoilaKernelWebsocketHandler]
        assert sockets, "Voilà has another handler for its kernels"
        return [(rf"{self.server_url}voila/api/shutdown/(.*)", PageClosed), *sockets, *handlers]

    def launch_browser(self) -> None:
        token = self.identity_provider.token
        address = f"{self.connection_url}?token={token}" if token else self.connection_url
        # A file in a private folder, since other users of the machine can see a browser's arguments.
        page = Path(self.connection_dir) / "open.html"
        page.write_text(f'<meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
        threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()


def serve(
    code: str, port: int, *, browser: bool, token: str | None, visits: int, keep: int, message: int
) -> None:
    """Serve the output of `code` on localhost until Ctrl-C, with a kernel for each visit.

    Without a `token` a random one is made; an empty one lets every program on this machine in. Messages of a
    page are limited to `message` bytes.
    """
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    page = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": kernel, "title": "mgkit studio"}
    )
    tornado_settings = {
        "headers": {"Content-Security-Policy": POLICY},
        # Only the names of this machine: a foreign name that resolves to 127.0.0.1 is another site's.
        "allow_remote_access": False,
        "websocket_max_message_size": message,
    }
    config = Config(
        {
            "Voila": {
                "port": port,
                "open_browser": browser,
                "token": token,
                "auto_token": token is None,
                "tornado_settings": tornado_settings,
            },
            "VoilaConfiguration": {
                "multi_kernel_manager_class": Kernels,
                "prelaunch_hook": admit,
                # The page needs no files, and Voilà would serve the images of the folder without a token.
                "file_allowlist": [],
            },
            "Kernels": {
                "visits": visits,
                "cull_idle_timeout": keep,
                "cull_interval": max(1, keep // 6),
                "cull_connected": False,
                "cull_busy": False,
            },
            "IdentityProvider": {"cookie_options": {"samesite": "Strict"}},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mgkit.ipynb"
        nbformat.write(page, path)
        Server.launch_instance([str(path)], config=config)

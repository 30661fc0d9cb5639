"""`python -m mgkit app`: the studio as a web page, served by Voilà.

notebook with one cell, studio.Studio() -> Voilà -> page; every visit has its own kernel
"""

import argparse
import os

# Bytes of the largest message of a page; uploads come in smaller parts.
MESSAGE = 16 * 2**20
# Run in the kernel of each visit. Visitors have folders of their own, by a cookie.
CODE = """import os
from mgkit.lab import studio

os.chdir({folder!r})
studio.Studio({model!r}, folder="outputs/visitors/{visitor}", page=True)"""


def serve(
    model: str = "nano",
    port: int = 8866,
    browser: bool = True,
    token: str | None = None,
    visits: int = 8,
    keep: int = 60,
) -> None:
    """Serve the studio on localhost at `port` until Ctrl-C, and open it if `browser`.

    A visit needs the `token`, by default a random one, which is printed; with "" none is needed. At most
    `visits` pages are open at a time. The kernel of a closed page ends after the run in progress; if the
    page vanished without a message, its kernel ends after `keep` idle seconds, or sooner if a new visit needs
    its place. A visitor's takes are kept in `outputs/visitors`, and only the same browser finds them again.

    Raises: RuntimeError if Voilà is not installed, ValueError if `visits` or `keep` is not positive.
    """
    if visits < 1 or keep < 1:
        raise ValueError(f"visits is {visits} and keep is {keep} seconds: both must be at least 1")
    try:
        from mgkit.lab import visits as server
    except ImportError as error:
        raise RuntimeError(f"the app needs the package {error.name}: pip install voila") from None

    code = CODE.format(folder=os.getcwd(), model=model, visitor=server.VISITOR)
    server.serve(code, port, browser=browser, token=token, visits=visits, keep=keep, message=MESSAGE)


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
    parser.add_argument("--token", help="password in the address; a random one if not given, '' for none")
    parser.add_argument("--visits", type=int, default=8, help="largest number of pages open at a time")
    parser.add_argument(
        "--keep", type=int, default=60, help="seconds for which the kernel of a vanished page is kept"
    )
    arguments = parser.parse_args(argv)
    serve(
        arguments.model,
        arguments.port,
        arguments.browser,
        arguments.token,
        arguments.visits,
        arguments.keep,
    )

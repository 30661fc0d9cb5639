"""`python -m mgkit class`: a blind listening test as a page on the local network; `read` merges answers.

class --dir results --host 0.0.0.0   pairs -> page on every phone -> results/answers.csv, results/report.html
class read A.csv B.csv               files of several classes -> result with intervals -> report.html
"""

import argparse
import signal
import socket
from pathlib import Path

from mgkit.files import printable
from mgkit.lab import pooled, preferences


def serve(folder: Path, host: str = "127.0.0.1", port: int = 8900, most: int = 60) -> None:
    """Serve the test in `folder` until Ctrl-C, then write its report; the first call makes pairs with nano.

    Raises: RuntimeError if tornado is not installed; OSError if the port is taken; as `Classroom`.
    """
    try:
        from mgkit.lab.classroom.folder import Classroom, our_pairs, write_pairs
        from mgkit.lab.classroom.server import run
    except ImportError as error:
        raise RuntimeError(f"the class needs the package {error.name}: pip install tornado") from None
    if not 0 <= port <= 65535:
        raise ValueError(f"the port is {port}; it must be from 0 to 65535")
    if not (folder / "pairs.csv").exists():
        print("making twelve pairs of clips with nano, which takes a minute", flush=True)
        write_pairs(folder, *our_pairs())
    room = Classroom(folder, most)

    def tell(bound: int) -> str:
        origin = f"http://{_address(host)}:{bound}"
        listeners = f"{origin}/{room.secrets['class']}/"
        print(f"{len(room.pairs)} pairs in {folder / 'pairs.csv'}, answers in {room.answers}")
        print(f"listeners open  {listeners}")
        print(f"the teacher     {origin}/{room.secrets['teacher']}/")
        if host in ("127.0.0.1", "localhost", "::1"):
            print("Only this machine can open these; --host 0.0.0.0 lets the local network in, unencrypted.")
        print("Ctrl-C ends it; the same command continues it.", flush=True)
        return listeners

    # A terminated server cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(room, host, port, tell)
    except OSError as error:
        raise OSError(
            f"cannot serve at {host}, port {port} ({error.strerror or error}): choose another --port, or a "
            "--host of this machine"
        ) from error
    except KeyboardInterrupt:
        _report(preferences.read(room.answers), folder / "report.html")


def read(paths: list[Path], out: Path) -> None:
    """Print the pooled answers of several files, and write them to `out`: `answers.csv` and `report.html`.

    Raises: FileNotFoundError for a missing file; ValueError for a file of another kind.
    """
    rows = pooled.merge(paths)
    pooled.write(out / "answers.csv", rows)
    _report(rows, out / "report.html")


def _report(rows: list[dict[str, str]], path: Path) -> None:
    for one in pooled.pool(rows):
        print(printable(one))
    if rows:
        print(pooled.report(rows, path))
    else:
        print("there are no answers yet")


def _address(host: str) -> str:
    """The part of an address that names this machine: `host`, or how the network knows it if that is any."""
    if host not in ("0.0.0.0", "::", ""):
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Chooses the network's interface; a datagram socket that connects sends nothing.
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


def main(argv: list[str] | None = None) -> None:
    """`python -m mgkit class`, and `class read`."""
    if argv and argv[0] == "read":
        parser = argparse.ArgumentParser(
            prog="python -m mgkit class read", description="Merge files of answers, and report what they say."
        )
        parser.add_argument("files", nargs="+", type=Path, help="answers.csv of a class, or of a notebook")
        parser.add_argument(
            "--out", type=Path, default=Path("outputs/listening"), help="folder of the report and merged file"
        )
        arguments = parser.parse_args(argv[1:])
        read(arguments.files, arguments.out)
        return
    parser = argparse.ArgumentParser(
        prog="python -m mgkit class",
        description="A blind listening test as a page for a class; `class read FILES` merges their answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=Path("outputs/class"), help="folder of pairs and answers")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for the local network")
    parser.add_argument("--port", type=int, default=8900, help="port; 0 for any free one")
    parser.add_argument("--listeners", type=int, default=60, help="largest number of participants")
    arguments = parser.parse_args(argv)
    serve(arguments.dir, arguments.host, arguments.port, arguments.listeners)

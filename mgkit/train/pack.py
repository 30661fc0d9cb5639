"""What the recipe needs on a machine without a package registry, and its results in small files.

pack/wheels/*.whl   packages missing beside PyTorch, transformers, SciPy, scikit-learn, Numba, Matplotlib
pack/*.sf3          the soundfont
pack/run.sh         installs the wheels beside itself and runs `python -m mgkit train nano`
"""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from mgkit.band.synth import find_soundfont

# What `import mgkit`, librosa and the synthesizer import and a machine for deep learning often lacks.
WHEELS = ("tinysoundfont", "librosa", "soundfile", "soxr", "pyloudnorm", "cffi", "pycparser", "audioread",
          "pooch", "platformdirs", "decorator", "psutil")  # fmt: skip
PYTHON = "3.12"  # of the other machine, an x86-64 Linux
GLIBC = ("2_34", "2_28", "2_27", "2_24", "2_17")
PLATFORMS = tuple(f"manylinux_{one}_x86_64" for one in GLIBC) + ("manylinux2014_x86_64", "manylinux1_x86_64")
PART = 15 * 2**20  # bytes
RUN_SH = """#!/bin/sh
# Runs the recipe, in the repository's root, with the packages and the soundfont beside this script.
pack=$(cd "$(dirname "$0")" && pwd)
python3 -m pip install -q --no-index --no-deps --upgrade --target "$pack/site" "$pack"/wheels/*.whl || exit
export PYTHONPATH="$pack/site:$PWD" MGKIT_SOUNDFONTS="$pack"
exec python3 -m mgkit train nano "$@"
"""


def write(folder: str | Path) -> None:
    """Writes `folder` with pip; the wheels have the versions that are installed here.

    Raises: FileNotFoundError without the soundfont; RuntimeError if pip does not find a wheel.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(find_soundfont(), folder)
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    wheels = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    done = subprocess.run([*command, "-d", str(folder / "wheels"), *wheels], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip found no wheel for Python {PYTHON}: {done.stderr.strip().splitlines()[-1]}")
    (folder / "run.sh").write_text(RUN_SH, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    print(f"{folder}: {size / 2**20:.1f} MiB")


def split(paths: Iterable[Path], root: Path, out: str | Path, size: int = PART) -> list[Path]:
    """Files `out`/nano.tar.00, .01 … of at most `size` bytes: an archive of `paths`, relative to `root`."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "nano.tar"
    with tarfile.open(whole, "w") as archive:
        for path in paths:
            archive.add(path, path.relative_to(root))
    parts: list[Path] = []
    with open(whole, "rb") as file:
        while chunk := file.read(size):
            parts.append(out / f"nano.tar.{len(parts):02d}")
            parts[-1].write_bytes(chunk)
    whole.unlink()
    return parts

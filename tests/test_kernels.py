"""The Triton kernels compute what the modules do: `kernel_cases.py` under Triton's interpreter, on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_kernels_compute_what_the_modules_do():
    pytest.importorskip("triton", reason="needs triton, which comes with torch's CUDA wheels for Linux")
    # Triton reads the variable when it is imported, and torch may have imported it already.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            Path(__file__).with_name("kernel_cases.py"),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

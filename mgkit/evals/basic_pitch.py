"""basic-pitch, a small network for polyphonic transcription (Bittner et al., arXiv:2203.09893).

Axes: N samples, W windows of two seconds, T frames of 11.6 ms, P = 88 pitches from A0 upwards, M notes.

    wave [N] -> windows [W, 43844, 1] -> onset and note posteriors [T, P] -> notes [M, 4]

The package `basic-pitch` (PyPI, Apache-2.0) contains the network as an ONNX file. Only this file is used.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

RATE, HOP = 22050, 256
WINDOW = 2 * RATE - HOP  # samples
OVERLAP = 30  # frames shared by consecutive windows
LOWEST_PITCH = 21  # MIDI number of A0
# Settings of the package.
ONSET_THRESHOLD, FRAME_THRESHOLD = 0.5, 0.3
MIN_FRAMES = 11  # shorter notes are dropped
MAX_GAP = 11  # frames below the threshold after which a note has ended


def transcribe(wave: np.ndarray, rate: int) -> np.ndarray:
    """Notes of a wave [N] by onset, float32 [M, 4]: onset and offset in s, MIDI pitch, amplitude 0..1.

    Raises: RuntimeError if a package is missing (see `network`).
    """
    import librosa

    wave = librosa.resample(wave, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    hop = WINDOW - OVERLAP * HOP
    padded = np.pad(wave, (OVERLAP * HOP // 2, WINDOW)).astype(np.float32)
    starts = range(0, len(wave) + OVERLAP * HOP // 2, hop)
    windows = np.stack([padded[start : start + WINDOW] for start in starts])
    outputs = ["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"]
    frames, onsets = network().run(outputs, {"serving_default_input_2:0": windows[..., None]})
    length = len(wave) * (RATE // HOP) // RATE
    # Half of the overlap is cut from both ends of each window.
    frames, onsets = (
        posterior[:, OVERLAP // 2 : -OVERLAP // 2].reshape(-1, posterior.shape[-1])[:length]
        for posterior in (frames, onsets)
    )
    notes = decode_notes(frames, onsets)
    notes[:, :2] = _frame_times(notes[:, :2])
    return notes


def _frame_times(frame: np.ndarray) -> np.ndarray:
    """Time of frames in seconds: 172 frames are slightly longer than the window they come from."""
    per_window = 2 * (RATE // HOP)
    excess = HOP / RATE * (per_window - WINDOW / HOP) + 0.0018
    return frame * HOP / RATE - excess * (frame // per_window)


def decode_notes(frames: np.ndarray, onsets: np.ndarray) -> np.ndarray:
    """Notes (first frame, last frame, MIDI pitch, amplitude) [M, 4] from posteriors [T, P].

    The package's algorithm without its "melodia trick", which adds notes without an onset. Onsets are
    processed from the last to the first; each note claims the energy of its pitch and both neighbours, so
    nothing counts twice.
    """
    rise = np.zeros_like(frames)
    rise[2:] = np.maximum(np.minimum(frames[2:] - frames[1:-1], frames[2:] - frames[:-2]), 0)
    onsets = np.maximum(onsets, rise * onsets.max() / max(rise.max(), 1e-9))
    inner = onsets[1:-1]
    peaks = (inner > onsets[:-2]) & (inner > onsets[2:]) & (inner >= ONSET_THRESHOLD)
    remaining, notes = frames.copy(), []
    for before, pitch in np.argwhere(peaks)[::-1]:
        start, end, gap = before + 1, before + 2, 0
        while end < len(frames) - 1 and gap < MAX_GAP:
            gap = gap + 1 if remaining[end, pitch] < FRAME_THRESHOLD else 0
            end += 1
        end -= gap
        if end - start > MIN_FRAMES:
            remaining[start:end, max(0, pitch - 1) : pitch + 2] = 0
            notes.append((start, end, pitch + LOWEST_PITCH, frames[start:end, pitch].mean()))
    return np.array(sorted(notes), np.float32).reshape(-1, 4)


@lru_cache(maxsize=1)
def network() -> "InferenceSession":
    """The network of the installed package, on one thread.

    Raises: RuntimeError with the command to run, if `basic-pitch` or `onnxruntime` is not installed.
    """
    # Located, not imported: the package's own code requires TensorFlow.
    spec = find_spec("basic_pitch")
    if spec is None or spec.origin is None or find_spec("onnxruntime") is None:
        raise RuntimeError(
            "transcription needs basic-pitch and onnxruntime: "
            "pip install onnxruntime && pip install --no-deps basic-pitch==0.4.0"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    path = Path(spec.origin).parent / "saved_models/icassp_2022/nmp.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

"""basic-pitch (Bittner et al., arXiv:2203.09893): a small network that writes down the notes of any sound, as a judge.

Letters: N samples, W windows of two seconds, T frames of 11.6 ms, P = 88 pitches from A0 on.

    wave [N] -> windows [W, 43844, 1] -> onsets, frames [T, P] -> notes

The package `basic-pitch` (PyPI, Apache-2.0) holds the network as ONNX; of it only that file is used.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

RATE, HOP = 22050, 256
WINDOW = 2 * RATE - HOP  # samples
OVERLAP = 30  # frames that two windows share
LOWEST = 21  # MIDI pitch of A0
ONSET, FRAME = 0.5, 0.3  # from where on an onset, a frame counts: the package's own settings
SHORTEST = 11  # frames
PATIENCE = 11  # frames that a note may be too quiet for before it has ended


def notes(wave: np.ndarray, rate: int) -> np.ndarray:
    """Notes heard in a wave [N], by onset: (start in s, end in s, MIDI pitch, strength 0..1), float32 [M, 4].

    Errors: those of `network`.
    """
    import librosa

    heard = librosa.resample(wave, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    step = WINDOW - OVERLAP * HOP
    padded = np.pad(heard, (OVERLAP * HOP // 2, WINDOW)).astype(np.float32)
    windows = np.stack([padded[at : at + WINDOW] for at in range(0, len(heard) + OVERLAP * HOP // 2, step)])
    outputs = ["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"]
    frames, onsets = network().run(outputs, {"serving_default_input_2:0": windows[..., None]})
    length = len(heard) * (RATE // HOP) // RATE
    frames, onsets = (
        grid[:, OVERLAP // 2 : -OVERLAP // 2].reshape(-1, grid.shape[-1])[:length]
        for grid in (frames, onsets)
    )
    found = read(frames, onsets)
    found[:, :2] = _seconds(found[:, :2])
    return found


def _seconds(frame: np.ndarray) -> np.ndarray:
    """When a frame sounds: a window holds 172 of them and is a little shorter than they are."""
    whole = 2 * (RATE // HOP)
    late = HOP / RATE * (whole - WINDOW / HOP) + 0.0018
    return frame * HOP / RATE - late * (frame // whole)


def read(frames: np.ndarray, onsets: np.ndarray) -> np.ndarray:
    """Notes (first frame, last frame, MIDI pitch, strength) [M, 4] in what the network says, [T, P] each.

    As the package does it without its "melodia trick", which adds notes that have no onset: the latest onset first,
    each note takes what sounds on its pitch, and on the two beside it, so that nothing counts twice.
    """
    rise = np.zeros_like(frames)
    rise[2:] = np.maximum(np.minimum(frames[2:] - frames[1:-1], frames[2:] - frames[:-2]), 0)
    onsets = np.maximum(onsets, rise * onsets.max() / max(rise.max(), 1e-9))
    inner = onsets[1:-1]
    peaks = (inner > onsets[:-2]) & (inner > onsets[2:]) & (inner >= ONSET)
    left, found = frames.copy(), []
    for at, pitch in np.argwhere(peaks)[::-1]:
        start, end, quiet = at + 1, at + 2, 0
        while end < len(frames) - 1 and quiet < PATIENCE:
            quiet = quiet + 1 if left[end, pitch] < FRAME else 0
            end += 1
        end -= quiet
        if end - start > SHORTEST:
            left[start:end, max(0, pitch - 1) : pitch + 2] = 0
            found.append((start, end, pitch + LOWEST, frames[start:end, pitch].mean()))
    return np.array(sorted(found), np.float32).reshape(-1, 4)


@lru_cache(maxsize=1)
def network() -> Any:
    """The network of the installed package, on one core; RuntimeError, with what to install, where it is absent."""
    spec = find_spec("basic_pitch")  # finds, and does not import: its code wants TensorFlow and more
    if spec is None or spec.origin is None or find_spec("onnxruntime") is None:
        raise RuntimeError(
            "the judge of notes needs: pip install onnxruntime && pip install --no-deps basic-pitch==0.4.0"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    path = Path(spec.origin).parent / "saved_models/icassp_2022/nmp.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

"""Run the reference (audiocraft 1.3.0) as programs use it and write programs.npz and programs.json.

Only needed to make the files anew. In the environment of `make_golden.py`, with FFmpeg and PyAV:

    pip install --no-deps imageio-ffmpeg av==12.3.0
    python tests/golden/make_programs.py
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import filling
import make_golden
import numpy as np
import soundfile
import torch

sys.modules.pop("av")
import av  # noqa: E402
import imageio_ffmpeg  # noqa: E402
from audiocraft.data import audio  # noqa: E402
from audiocraft.data.audio_utils import convert_audio, convert_audio_channels  # noqa: E402
from audiocraft.models.audiogen import AudioGen  # noqa: E402
from audiocraft.models.musicgen import MusicGen  # noqa: E402
from make_golden import FACTS, TENSORS, keep  # noqa: E402

audio.av = av
PAIR = [filling.CHOIR, filling.FLUTE]


def attributes(model: Any) -> dict[str, Any]:
    """Attributes of a model, as programs read them."""
    codec = model.compression_model
    return {
        "duration": model.duration,
        "extend_stride": model.extend_stride,
        "max_duration": model.max_duration,
        "generation_params": dict(model.generation_params),
        "sample_rate": model.sample_rate,
        "frame_rate": model.frame_rate,
        "audio_channels": model.audio_channels,
        "device": str(model.device),
        "lm": {
            name: getattr(model.lm, name) for name in ("n_q", "num_codebooks", "card", "special_token_id")
        },
        "segment_duration": model.lm.cfg.dataset.segment_duration,
        "compression_model": {
            name: getattr(codec, name)
            for name in (
                *("sample_rate", "channels", "frame_rate"),
                *("cardinality", "num_codebooks", "total_codebooks"),
            )
        },
    }


def models(folder: Path) -> None:
    """Attributes and defaults of each kind, steps of the progress callback, and windows of AudioGen."""
    for kind in filling.KINDS:
        path = str(filling.audiocraft_folder(folder / f"model {kind}", kind))
        model = (AudioGen if kind == "audiogen" else MusicGen).get_pretrained(path, device="cpu")
        facts = FACTS.setdefault("attributes", {})[kind] = {"loaded": attributes(model)}
        model.set_generation_params()
        facts["set_generation_params()"] = attributes(model)
        if kind == "small":
            model.duration = 0.304
            model.generation_params["use_sampling"] = False
            model.generation_params = {**model.generation_params, "cfg_coef": 2.0, "temp": 0.7}
            keep("attributes set", model.generate(PAIR, return_tokens=True)[1])
        model.set_generation_params(use_sampling=False, duration=0.504)
        steps: list[list[int]] = []
        model.set_custom_progress_callback(lambda done, total, steps=steps: steps.append([done, total]))
        model.generate(PAIR[:1])
        assert not steps
        model.generate(PAIR[:1], progress=True)
        prompt = torch.from_numpy(filling.prompts(model.audio_channels, model.sample_rate))
        wave, tokens = model.generate_continuation(
            prompt, model.sample_rate, progress=True, return_tokens=True
        )
        assert torch.equal(wave, model.compression_model.decode(tokens))
        facts["steps"] = steps
        if kind == "audiogen":
            model.max_duration = 3.0
            model.set_generation_params(use_sampling=False, duration=5.104)
            keep("audiogen/windows", model.generate(PAIR[:1], return_tokens=True)[1])


LEVELS: list[dict[str, Any]] = [
    {},
    {"strategy": "peak", "peak_clip_headroom_db": 6},
    {"strategy": "peak", "normalize": False},
    {"strategy": "clip"},
    {"strategy": "clip", "peak_clip_headroom_db": 6},
    {"strategy": "rms"},
    {"strategy": "rms", "rms_headroom_db": 24},
    {"strategy": "rms", "normalize": False},
    {"strategy": "loudness"},
    {"strategy": "loudness", "loudness_headroom_db": 20},
    {"strategy": "loudness", "loudness_headroom_db": 10, "loudness_compressor": True},
]


def writing(folder: Path) -> None:
    """16-bit samples of written files, paths, and bit rates."""
    cases = FACTS["audio_write"] = []
    for channels in (1, 2):
        rows = []
        for level in (0.5, 0.05, 0.001):
            for options in LEVELS:
                sound = torch.from_numpy(filling.burst(32000, channels, level))
                path = audio.audio_write(folder / "wave", sound, 32000, **options)
                samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
                assert rate == 32000 and len(samples) == 32000
                cases.append({"channels": channels, "row": len(rows), "level": level, "options": options})
                rows.append(samples[::3999].T)
        TENSORS[f"audio_write/{channels}"] = np.stack(rows)
    sound = torch.from_numpy(filling.burst(32000, 1, 0.5))
    paths = FACTS["paths"] = []
    for stem, options in [
        ("a", {}),
        ("b.c", {"format": "flac"}),
        ("d.wav", {"add_suffix": False}),
        ("new/deep/e", {"format": "ogg"}),
        ("f.wav", {}),
    ]:
        path = audio.audio_write(folder / stem, sound, 32000, **options)
        paths.append([stem, options, path.relative_to(folder).as_posix(), soundfile.info(path).format])
    rates = FACTS["bit rates"] = []
    for rate in (16000, 32000, 44100):
        for options in (
            {"format": "mp3"},
            {"format": "mp3", "mp3_rate": 128},
            {"format": "mp3", "mp3_rate": 64},
            {"format": "ogg", "ogg_rate": 64},
        ):
            long = torch.from_numpy(filling.tune(10.0, rate=rate))
            path = audio.audio_write(folder / "rate", long, rate, **options)
            rates.append([rate, options, round(path.stat().st_size * 8 / 10 / 1000, 1)])


def reading(folder: Path) -> None:
    """Samples of parts of files, as `audio_read` returns them."""
    cases = FACTS["audio_read"] = []
    for ending in ("wav", "flac"):
        path = folder / f"read.{ending}"
        soundfile.write(path, filling.hum(16001, channels=2).T, 16000, subtype="PCM_16")
        for arguments in (
            {},
            {"seek_time": 0.25},
            {"seek_time": 0.3, "duration": 0.2},
            {"duration": 0.33337},
            {"seek_time": 0.9, "duration": 0.5},
            {"seek_time": 0.9, "duration": 0.5, "pad": True},
        ):
            sound, rate = audio.audio_read(path, **arguments)
            assert rate == 16000 and sound.dtype == torch.float32
            name = f"audio_read/{len(cases)}"
            keep(name, sound[:, ::797].contiguous())
            cases.append(
                {"tensor": name, "ending": ending, "arguments": arguments, "shape": list(sound.shape)}
            )


def converting() -> None:
    """Batches at other rates and with other channels."""
    cases = FACTS["convert_audio"] = []
    for rate, to, before, after in (
        (44100, 32000, 2, 1),
        (48000, 32000, 1, 2),
        (16000, 32000, 2, 2),
        (32000, 16000, 1, 1),
        (32000, 32000, 2, 1),
        (22050, 32000, 1, 1),
    ):
        batch = torch.stack(
            [
                torch.from_numpy(filling.tune(0.4001, before, rate)),
                torch.from_numpy(filling.hum(int(0.4001 * rate + 0.5), before, rate)),
            ]
        )
        made = convert_audio(batch, rate, to, after)
        name = f"convert_audio/{len(cases)}"
        keep(name, made[:, :, 4000:6000:23].contiguous())
        cases.append(
            {"tensor": name, "rate": rate, "to": to, "channels": [before, after], "shape": list(made.shape)}
        )
    numbers = torch.arange(24.0).view(2, 3, 4)
    keep("channels/3 to 2", convert_audio_channels(numbers, 2))
    keep("channels/3 to 1", convert_audio_channels(numbers, 1))
    keep("channels/1 to 2", convert_audio_channels(numbers[:, :1], 2))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    TENSORS.clear(), FACTS.clear()
    FACTS["made with"] = {
        "audiocraft": "1.3.0",
        "torch": torch.__version__.split("+")[0],
        "av": av.__version__,
    }
    converting()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        writing(folder)
        reading(folder)
        models(folder)
    np.savez_compressed(filling.HERE / "programs.npz", **TENSORS)
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), default=int)}"
        for key, value in FACTS.items()
    ]
    (filling.HERE / "programs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    assert make_golden.stub_packages
    main()

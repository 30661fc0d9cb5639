"""Audio files are decoded to their end, whatever their headers state, and within bounds of memory."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from refusals import refusal
from tiny import RATE, noise

from mgkit import audio
from mgkit.formats import decoding, mp3, ogg, wav

SECONDS = 20


def encode(wave, format, subtype, rate=RATE, **options):
    """Bytes of a file with the samples of `wave` [C, N]."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, len(wave), subtype, format=format, **options) as file:
        file.write(wave.numpy().T)
    return buffer.getvalue()


def crescendo(rate=RATE, channels=1):
    """A wave [C, N] that needs a higher bit rate after a quarter of its length."""
    wave = noise(channels, SECONDS * rate) / 10
    wave[:, : SECONDS * rate // 4] = (
        torch.arange(SECONDS * rate // 4) * 440 * 2 * torch.pi / rate
    ).sin() / 10
    return wave


def variable(rate=RATE, channels=1, mode="VARIABLE"):
    """An MP3 file with a variable bit rate."""
    return encode(crescendo(rate, channels), "MP3", "MPEG_LAYER_III", rate, bitrate_mode=mode)


def without_header(content):
    """The MP3 file without its first frame, the one with the Xing header."""
    return content[mp3.frames(content)[1] :]


def stated(content):
    """Number of samples that libsndfile expects."""
    return soundfile.info(io.BytesIO(content)).frames


# --- MP3 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 22050, 32000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_file_with_a_variable_bit_rate_and_without_a_header_is_whole(rate, channels):
    whole = variable(rate, channels)
    content = without_header(whole)
    assert stated(content) < 0.8 * SECONDS * rate, "libsndfile finds the length: the test is void"
    wave, seen = audio.decode(content, "a.mp3")
    expected, _ = audio.decode(whole, "a.mp3")
    assert seen == rate and wave.shape[0] == channels
    # without the header, the delay of encoder and decoder is not cut off: up to three frames
    delay = wave.shape[1] - expected.shape[1]
    assert 0 <= delay <= 3 * 1152
    shift = min(
        range(delay + 1), key=lambda i: float((wave[:, i : i + 4000] - expected[:, :4000]).abs().sum())
    )
    end = expected.shape[1] - 4 * 1152
    torch.testing.assert_close(wave[:, shift : shift + end], expected[:, :end], atol=1e-3, rtol=0)


def test_an_mp3_file_with_a_header_keeps_its_length():
    for mode in ("CONSTANT", "AVERAGE", "VARIABLE"):
        content = variable(mode=mode)
        assert mp3.with_true_length(content) == content
        assert audio.decode(content, "a.mp3")[0].shape == (1, SECONDS * RATE)


def test_joined_mp3_files_are_read_to_the_end_of_the_last():
    content = variable()
    wave, _ = audio.decode(content + content, "a.mp3")
    assert stated(content + content) == SECONDS * RATE
    assert 2 * SECONDS * RATE <= wave.shape[1] < 2 * SECONDS * RATE + 4 * 1152


def test_tags_around_the_frames_of_an_mp3_file_do_not_matter():
    content = without_header(variable())
    # a picture, which contains headers of frames, and the old tag at the end
    tag = b"ID3\4\0\0\0\0\x0f\x68" + b"\xff\xfb\x90\xc4" * 506 + b"TAG" + bytes(125)
    tagged = tag[:2034] + content + tag[-128:]
    assert torch.equal(audio.decode(tagged, "a.mp3")[0], audio.decode(content, "a.mp3")[0])


@pytest.mark.parametrize("count", [1, 10, 2**32 - 1])
def test_the_number_of_frames_in_an_mp3_header_is_not_believed(count):
    content = bytearray(variable())
    tag = content.index(b"Xing")
    content[tag + 8 : tag + 12] = count.to_bytes(4, "big")
    wave, _ = audio.decode(bytes(content), "a.mp3")
    assert SECONDS * RATE <= wave.shape[1] < SECONDS * RATE + 4 * 1152


def test_frames_are_counted_over_any_content_in_little_time():
    pattern = b"\xff\xfb\x90\xc4"
    for content in (b"", b"\xff", pattern, b"\xff" * 2**22, pattern * 2**18, b"ID3" + b"\xff" * 99):
        assert len(mp3.frames(content)) <= len(content) / 400 + 1


# --- other formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 1000, 10**9, 2**36 - 1])
def test_the_length_in_a_flac_header_is_not_believed(total):
    wave = noise(2, RATE) / 10
    content = bytearray(encode(wave, "FLAC", "PCM_16"))
    bits = int.from_bytes(content[18:26], "big")
    content[18:26] = (bits >> 36 << 36 | total).to_bytes(8, "big")
    back, rate = audio.decode(bytes(content), "a.flac")
    assert rate == RATE and back.shape == wave.shape
    torch.testing.assert_close(back, wave, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_the_length_in_a_wav_header_is_not_believed(size):
    wave = noise(1, RATE) / 10
    content = bytearray(encode(wave, "WAV", "PCM_16"))
    content[40:44] = size.to_bytes(4, "little")
    assert audio.decode(bytes(content), "a.wav")[0].shape == wave.shape


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_joined_ogg_files_are_read_to_the_end_of_the_last(subtype, capsys):
    first, second = (encode(noise(2, 48000 * s, seed=s) / 10, "OGG", subtype, 48000) for s in (1, 2))
    parts = [audio.decode(content, "a.ogg")[0] for content in (first, second, first)]
    assert torch.equal(audio.decode(first + second + first, "a.ogg")[0], torch.cat(parts, dim=1))
    assert parts[1].shape == (2, 96000) and capsys.readouterr().err == ""
    other = encode(noise(1, 48000) / 10, "OGG", subtype, 24000)
    refusal(lambda: audio.decode(first + other, "a.ogg"), "'a.ogg'", "different sample rates", "ffmpeg")


CUT = ["WAV", "WAVEX", "AIFF", "AU", "W64", "RF64", "SVX", "VOC", "OGG", "MP3"]


@pytest.mark.parametrize("format", CUT)
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes_and_one_line_says_so(format, share, capsys):
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(format, "PCM_16")
    wave = noise(1, SECONDS * RATE) / 10
    content = encode(wave, format, subtype)
    whole, _ = audio.decode(content, "a.wav")
    assert capsys.readouterr().err == ""
    part, _ = audio.decode(content[: int(share * len(content))], "a.wav")
    # within a page of Ogg, or a few frames of MP3
    assert part.shape[1] == pytest.approx(share * whole.shape[1], abs=1.5 * RATE)
    steady = part.shape[1] - 4096
    torch.testing.assert_close(part[:, :steady], whole[:, :steady], atol=2e-4, rtol=0)
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("'a.wav' is cut off") and f"the {part.shape[1] / RATE:.3g} s that are there" in line
    )


def test_missing_pages_of_an_ogg_file_are_noted(capsys):
    content = encode(noise(1, SECONDS * RATE) / 10, "OGG", "VORBIS")
    (_, end), (start, _) = ogg.pages(content)[6], ogg.pages(content)[8]
    wave, _ = audio.decode(content[:end] + content[start:], "a.ogg")
    assert wave.shape[1] > 0.5 * SECONDS * RATE
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("stated", [0, 2, 1000])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_file_is_read_past_the_end_that_its_header_states(stated, subtype, capsys):
    wave = noise(2, RATE) / 10
    content = bytearray(encode(wave, "WAV", subtype))
    data = content.index(b"data") + 4
    content[data : data + 4] = stated.to_bytes(4, "little")
    back, _ = audio.decode(bytes(content), "a.wav")
    torch.testing.assert_close(back, wave, atol=1e-4, rtol=0)
    [line] = capsys.readouterr().err.splitlines()
    assert line == "'a.wav' goes on after the end that its header states; the 1 s that are there were read"


@pytest.mark.parametrize("after", [b"LIST\x04\0\0\0INFO", b"id3 \x03\0\0\0abc\0", b"\0", b""])
@pytest.mark.parametrize("samples", [1000, 1001])
def test_chunks_after_the_samples_of_a_wav_file_are_not_read_as_samples(after, samples, capsys):
    content = encode(noise(1, samples) / 10, "WAV", "PCM_U8")
    content += b"\0" * (len(content) % 2) + after
    assert audio.decode(content, "a.wav")[0].shape == (1, samples)
    assert capsys.readouterr().err == ""


def test_a_wav_file_written_to_a_pipe_has_an_unknown_length_and_is_not_cut_off(capsys):
    content = bytearray(encode(noise(1, RATE) / 10, "WAV", "PCM_16"))
    content[4:8] = content[40:44] = b"\xff" * 4
    assert audio.decode(bytes(content), "a.wav")[0].shape == (1, RATE)
    assert capsys.readouterr().err == ""


def test_walkers_take_any_content_in_little_time():
    for content in (b"", b"OggS", b"OggS" * 2**18, b"RIFF" + b"\0" * 99, b"RIFF____WAVE" + b"\xff" * 2**20):
        ogg.recordings(content), wav.true_length(io.BytesIO(content))


def test_a_file_longer_than_the_limit_is_refused_with_the_limit_in_minutes(monkeypatch):
    monkeypatch.setattr(decoding, "LIMIT", 2 * 60 * RATE)
    wave = torch.zeros(2, 61 * RATE)
    content = encode(wave, "FLAC", "PCM_16")
    assert len(content) < 50_000, "small on the disk"
    refusal(lambda: audio.decode(content, "a.flac"), "'a.flac'", "1 minutes", "2 channels", "shorter files")
    assert audio.decode(encode(wave[:, : 60 * RATE], "FLAC", "PCM_16"), "a.flac")[0].shape == (2, 60 * RATE)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the memory of a process is Linux's")
def test_a_small_file_does_not_fill_the_memory():
    program = (
        "import sys; from mgkit import audio\n"
        "import resource; now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, -1))\n"
        "try:\n    audio.decode(sys.stdin.buffer.read(), 'a.flac')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    content = encode(torch.zeros(8, 10**7), "FLAC", "PCM_16")
    assert len(content) < 2**20
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "'a.flac' does not fit into the memory: cut it into shorter files\n"


# --- m4a, AAC, WebM -----------------------------------------------------------------------------------------

MAGIC = {
    "m4a": b"\0\0\0\x1cftypM4A \0\0\0\0",
    "WebM": b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81",
    "AAC": b"\xff\xf1\x50\x80\x02\x1f\xfc\x21",
    "WMA": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9",
}


@pytest.mark.parametrize("kind", MAGIC)
def test_without_pyav_the_command_that_converts_other_formats_is_named(monkeypatch, kind, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "my tune.x"
    path.write_bytes(MAGIC[kind] + bytes(99))
    words = (kind, "pip install av", f"ffmpeg -i '{path}' 'my tune.wav'")
    refusal(lambda: audio.read(path), *words)
    refusal(lambda: audio.decode(path.read_bytes(), str(path)), *words)


@pytest.mark.parametrize("kind", MAGIC)
def test_with_pyav_a_damaged_file_of_another_format_is_refused(kind):
    pytest.importorskip("av", reason="PyAV is optional: pip install av")
    refusal(lambda: audio.decode(MAGIC[kind] + bytes(99), "a.x"), "'a.x'", kind)


def encode_by_pyav(wave, container, codec, rate):
    """Bytes of a file with the samples of `wave` [C, N]."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        layout = "mono" if len(wave) == 1 else "stereo"
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(wave.numpy().astype(np.float32), "fltp", layout)
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
        while part := fifo.read(960, partial=True):
            for packet in stream.encode(resampler.resample(part)[0]):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("ipod", "aac", 44100), ("adts", "aac", 32000), ("webm", "libopus", 48000)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_with_pyav_other_formats_are_read(monkeypatch, container, codec, rate, channels):
    pytest.importorskip("av", reason="PyAV is optional: pip install av")
    time = torch.arange(2 * rate) / rate
    wave = torch.stack([(2 * torch.pi * hertz * time).sin() / 3 for hertz in (440, 660)[:channels]])
    content = encode_by_pyav(wave, container, codec, rate)
    back, seen = audio.decode(content, "a.x")
    assert seen == rate and back.shape[0] == channels and abs(back.shape[1] - 2 * rate) < 4096
    middle = slice(rate // 2, rate)
    torch.testing.assert_close(back[:, middle].std(dim=1), wave[:, middle].std(dim=1), atol=0.02, rtol=0)
    for row, hertz in zip(back, (440, 660)):
        assert int(torch.fft.rfft(row[:rate]).abs().argmax()) == hertz
    monkeypatch.setattr(decoding, "LIMIT", rate)
    refusal(lambda: audio.decode(content, "a.x"), "minutes")


def test_with_pyav_a_webm_file_that_is_cut_off_is_read_as_far_as_it_goes(capsys):
    pytest.importorskip("av", reason="PyAV is optional: pip install av")
    content = encode_by_pyav(noise(1, SECONDS * 48000) / 10, "webm", "libopus", 48000)
    assert audio.decode(content, "a.webm")[0].shape[1] == pytest.approx(SECONDS * 48000, abs=4096)
    assert capsys.readouterr().err == ""
    wave, _ = audio.decode(content[: len(content) // 2], "a.webm")
    assert wave.shape[1] == pytest.approx(SECONDS * 24000, abs=24000)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("'a.webm' is cut off")


# --- damaged files ------------------------------------------------------------------------------------------


def damaged(content, rng):
    """The content cut, with bytes changed, removed, inserted or repeated, at random."""
    content = bytearray(content)
    if rng.random() < 0.5:
        del content[rng.integers(1, len(content)) :]
    for _ in range(rng.integers(0, 9)):
        # mostly in the header
        at = int(rng.integers(0, min(len(content), 300 if rng.random() < 0.7 else len(content))))
        match rng.integers(0, 4):
            case 0 | 1:
                content[at] = rng.integers(0, 256)
            case 2:
                content[at : at + 4] = bytes(rng.choice([0, 255, 127], 4).tolist())
            case 3:
                del content[at : at + int(rng.integers(1, 40))]
        if not content:
            break
    return bytes(content)


FUZZED = """
import sys, time
from pathlib import Path
import numpy as np
from mgkit import audio
from test_decoding import damaged
if sys.platform == "linux":
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, -1))
names, count = sys.argv[1:-1], int(sys.argv[-1])
for name in names:
    path, content, slowest = Path(name), Path(name).read_bytes(), 0
    for seed in range(count):
        path.write_bytes(damaged(content, np.random.default_rng(seed)))
        start = time.perf_counter()
        for read in (audio.read, audio.read_manifest, lambda path: audio.decode(path.read_bytes(), "b")):
            try:
                read(path)
            except ValueError as error:
                assert len(str(error).splitlines()) == 1, (name, seed, str(error))
            except BaseException as error:
                raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
        assert time.perf_counter() - start < 5, (name, seed)
"""


def test_damaged_files_are_read_or_refused(tmp_path):
    """In a process of its own, in which a crash of a decoder is seen."""
    others = {".aiff": ("AIFF", "PCM_16"), ".opus": ("OGG", "OPUS"), ".w64": ("W64", "FLOAT")}
    wave = noise(2, 8000) / 10
    paths = [
        audio.write(tmp_path / f"a{ending}", wave, 16000, manifest={"mgkit": "0", "text": "calm"})
        for ending in audio.FORMATS
    ]
    for ending, form in others.items():
        paths.append(tmp_path / f"a{ending}")
        paths[-1].write_bytes(encode(wave, *form, 16000))
    for kind, magic in MAGIC.items():
        paths.append(tmp_path / kind)
        paths[-1].write_bytes(magic + bytes(99))
    program = [sys.executable, "-c", FUZZED, *map(str, paths), "60"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:] or f"died of signal {-done.returncode}"

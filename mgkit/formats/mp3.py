"""The length of an MP3 file, counted instead of believed (ISO 11172-3, 2.4.2; Xing's header).

    (ID3 tag) | frame with a Xing header: the number of frames | frame | frame | ...

Decoders stop at the length stated in the header. Without one, libsndfile extrapolates from the first frames,
and stops after 4 of 20 seconds at a variable bit rate. Of joined files the header states the length of the
first. A walk over the frames finds the true length.
"""

import re
import struct

RATES = (44100, 48000, 32000)  # Hz, of MPEG-1; MPEG-2 has half of them, MPEG-2.5 a quarter
BITRATES = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # kbit/s, of MPEG-2 and 2.5
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # of MPEG-1
)
# The first three bytes of a frame of layer III, with a valid bit rate.
HEADER = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")


def with_true_length(content: bytes) -> bytes:
    """The MP3 file with its number of frames in a Xing header; other content is unchanged."""
    starts = frames(content)
    if len(starts) < 2:
        return content
    first, second = starts[:2]
    count = len(starts)
    if (stated := _stated_count(content, first)) is not None:
        count -= 1
        if stated >= count:
            return content
        audio = second
    # Fraunhofer's header
    elif content[first + 36 : first + 40] == b"VBRI":
        count, audio = count - 1, second
    else:
        audio = first
    return _xing_frame(content[first : first + 4], count) + content[audio:]


def is_cut(content: bytes) -> bool:
    """Whether a Xing header states more frames than there are."""
    starts = frames(content)
    return bool(starts) and (_stated_count(content, starts[0]) or 0) > len(starts) - 1


def _stated_count(content: bytes, first: int) -> int | None:
    """The number of frames in the Xing header of the first frame, 0 if it is left out; None without one."""
    tag = first + 4 + _side_info(content[first : first + 4])
    if content[tag : tag + 4] not in (b"Xing", b"Info"):
        return None
    return int.from_bytes(content[tag + 8 : tag + 12], "big") if content[tag + 7] & 1 else 0


def frames(content: bytes) -> list[int]:
    """Offsets of the MP3 frames of `content`, tags and garbage between them left out."""
    offsets: list[int] = []
    at, following, kind = _after_id3(content), -1, b""
    while at + 4 <= len(content):
        size = _size(content[at : at + 4])
        if size and (not kind or _kind(content[at : at + 4]) == kind):
            # Sound may look like a header: a first frame, or one after garbage, precedes another.
            follows = content[at + size : at + size + 4]
            synchronized = at == following
            if synchronized or (_size(follows) and _kind(follows) == _kind(content[at : at + 4])):
                kind = kind or _kind(content[at : at + 4])
                if at + size <= len(content):
                    offsets.append(at)
                at = following = at + size
                continue
        found = HEADER.search(content, at + 1)
        if not found:
            break
        at = found.start()
    return offsets


def _size(header: bytes) -> int:
    """Bytes of the frame with this header; 0 if it is not one of layer III."""
    if len(header) < 4 or not HEADER.match(header) or header[2] >> 2 & 3 == 3:
        return 0
    version = header[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    rate = RATES[header[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    kbits = BITRATES[version == 3][(header[2] >> 4) - 1]
    return (144000 if version == 3 else 72000) * kbits // rate + (header[2] >> 1 & 1)


def _kind(header: bytes) -> bytes:
    """MPEG version and sample rate, which are the same in all frames of a file."""
    return bytes((header[1] & 0x18, header[2] & 0x0C))


def _side_info(header: bytes) -> int:
    """Bytes of side information, after which a Xing header stands."""
    mono, mpeg1 = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    return (17 if mono else 32) if mpeg1 else (9 if mono else 17)


def _xing_frame(header: bytes, count: int) -> bytes:
    """A frame without sound whose Xing header states `count` frames, in the format of this header."""
    # Without a checksum and padding, at a sufficient bit rate: 128 kbit/s, or 64.
    start = bytes((header[0], header[1] | 1, header[2] & 0x0C | (0x90 if header[1] & 8 else 0x80), header[3]))
    content = start + bytes(_side_info(start)) + b"Xing" + struct.pack(">II", 1, count)
    return content.ljust(_size(start), b"\0")


def _after_id3(content: bytes) -> int:
    """Offset after the ID3v2 tags, which may contain anything, pictures included."""
    at = 0
    while content[at : at + 3] == b"ID3" and len(content) >= at + 10:
        size = sum((byte & 127) << shift for byte, shift in zip(content[at + 6 : at + 10], (21, 14, 7, 0)))
        at += 10 + size + (10 if content[at + 5] & 16 else 0)
    return at

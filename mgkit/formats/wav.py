"""The length of a WAV file, counted instead of believed (Microsoft, IBM: Multimedia Programming Interface).

    RIFF size WAVE | fmt_ size … | data size samples | LIST size …

Programs that write to a pipe, or that are killed, leave a size of 0 or a wrong one. Decoders stop there.
"""

import io
import os
from typing import BinaryIO


def true_length(source: BinaryIO) -> tuple[int, int, int] | None:
    """Offset of the samples, their stated size and their true size in bytes; None without a data chunk.

    The samples go on to the end of the file unless other chunks follow them, up to its end.
    """
    total = source.seek(0, os.SEEK_END)
    at = 12
    while (chunk := _chunk(source, at)) is not None:
        name, size = chunk
        if name == b"data":
            start = at + 8
            stated = size
            if start + stated > total or not _chunks_follow(source, start + stated + stated % 2, total):
                return start, stated, total - start
            return start, stated, stated
        at += 8 + size + size % 2
    return None


def _chunk(source: BinaryIO, at: int) -> tuple[bytes, int] | None:
    source.seek(at)
    header = source.read(8)
    return (header[:4], int.from_bytes(header[4:], "little")) if len(header) == 8 else None


def _chunks_follow(source: BinaryIO, at: int, total: int) -> bool:
    """Whether nothing but whole chunks, with names of printable characters, follows up to the end."""
    while at < total:
        chunk = _chunk(source, at)
        # A chunk of odd size may lack its padding at the end; so may the samples.
        if chunk is None or not chunk[0].isascii() or not chunk[0].decode().isprintable():
            return total - at < 8
        at += 8 + chunk[1] + chunk[1] % 2
        if at > total + 1:
            return False
    return True


def with_length(source: BinaryIO, start: int, size: int) -> BinaryIO:
    """The file with this size of its samples stated."""
    source.seek(0)
    content = bytearray(source.read(start + size))
    content[start - 4 : start] = size.to_bytes(4, "little")
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    return io.BytesIO(content)

"""The pages of an Ogg file (RFC 3533): joined recordings, and what is missing.

    OggS | flags: 2 first page, 4 last page | … | serial | page number | … | sizes of segments | content

Decoders stop at the end of the first of several joined recordings, and say nothing of missing pages.
"""

FIRST, LAST = 2, 4  # flags in a page's header


def pages(content: bytes) -> list[tuple[int, int]]:
    """Start and end of every complete page, garbage between them left out."""
    found, at = [], content.find(b"OggS")
    while at >= 0 and len(content) >= at + 27:
        segments = content[at + 26]
        end = at + 27 + segments + sum(content[at + 27 : at + 27 + segments])
        if len(content) < at + 27 + segments or end > len(content):
            break
        found.append((at, end))
        at = end if content[end : end + 4] == b"OggS" else content.find(b"OggS", end)
    return found


def recordings(content: bytes) -> list[bytes]:
    """The joined recordings of a file, each a file of its own; another one begins with a first page."""
    starts: list[int] = []
    begun = False
    for at, _ in pages(content):
        first = bool(content[at + 5] & FIRST)
        # The streams of one recording begin together.
        if first and (begun or not starts):
            starts.append(at)
        begun = not first
    return [content[a:b] for a, b in zip(starts, [*starts, len(content)][1:], strict=True)]


def is_complete(recording: bytes) -> bool:
    """Whether a recording has its last page, and all pages before it, by their numbers."""
    ended: dict[bytes, bool] = {}
    numbers: dict[bytes, int] = {}
    for at, _ in pages(recording):
        serial, number = recording[at + 14 : at + 18], int.from_bytes(recording[at + 18 : at + 22], "little")
        if number != numbers.get(serial, -1) + 1:
            return False
        numbers[serial], ended[serial] = number, bool(recording[at + 5] & LAST)
    return bool(ended) and all(ended.values())

"""From a request to tokens and sound: the conditions of each window, the frames of a piece, decoding.

Axes: B batch, C channels, K codebooks, T frames, N samples, D width, F chroma frames.

    Request -> window_conditions -> frames [B, K] -> tokens [B, K, T]
                                                  -> chunks of tokens -> codec -> waves [B, C, n]
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
from torch import Tensor

from mgkit.checkpoint import Model
from mgkit.condition import Conditioner
from mgkit.generate import Guidance, Stop, Window, count_steps, frames
from mgkit.lm import Condition
from mgkit.prompts import Mix, prompt_at
from mgkit.request import Request
from mgkit.settings import Settings
from mgkit.threads import usable, using

OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps of the whole piece."""

DECODED_AT_ONCE = 3000  # frames
TEXTS_KEPT = 64  # encoded texts that a live session keeps beside those in use


# --- conditions of a window -------------------------------------------------------------------------------


@torch.no_grad()
def encode_request(model: Model, request: Request) -> dict[str, Tensor]:
    """The vectors [L, D] of all texts of a request."""
    vectors: dict[str, Tensor] = {}
    texts = [text for timeline in request.texts for _, mix in timeline for text in mix]
    encode_texts(model.conditioner, [*texts, *filter(None, request.negative)], vectors)
    return vectors


@torch.no_grad()
@using(1)  # short work, which must not differ in its last bits from one run to the next
def window_conditions(model: Model, request: Request, window: Window, vectors: dict[str, Tensor]) -> Guidance:
    """The conditions of one window: its prompts and, unless it changes nothing, the null condition.

    `vectors` holds encoded texts from one window to the next.
    """
    now = window.start + window.known
    texts, weights = mix_columns([prompt_at(timeline, now, model.frame_rate) for timeline in request.texts])
    negatives = request.negative if any(request.negative) else []
    encode_texts(model.conditioner, [*chain(*texts), *negatives], vectors)
    columns = [[vectors[text] for text in column] for column in texts]
    chroma = request.chroma.get(window.start)
    alike = not request.interventions.one_sided
    if alike and chroma is None and not negatives and not any(chain(*texts)):
        return Guidance([model.conditioner(columns[0])])  # the null condition would be the same
    negative = model.conditioner([vectors[text] for text in negatives]) if negatives else None
    return guidance(model.conditioner, columns, weights, chroma, negative, request.settings)


def mix_columns(mixes: Sequence[Mix]) -> tuple[list[list[str]], list[list[float]]]:
    """The mixes of B samples as n texts [n, B] and weights [n, B]; a shorter mix is padded with weight 0.

    >>> mix_columns([{"calm": 1.0}, {"calm": 0.5, "fast": 0.5}])
    ([['calm', 'calm'], ['calm', 'fast']], [[1.0, 0.5], [0.0, 0.5]])
    """
    rows = [list(mix.items()) for mix in mixes]
    longest = max(len(row) for row in rows)
    padded = [row + [(row[0][0], 0.0)] * (longest - len(row)) for row in rows]
    columns = list(zip(*padded, strict=True))
    return [[text for text, _ in column] for column in columns], [
        [w for _, w in column] for column in columns
    ]


def encode_texts(conditioner: Conditioner, texts: Sequence[str], vectors: dict[str, Tensor]) -> None:
    """Add the vectors [L, D] of new texts to `vectors`; each is encoded alone, independent of the others.

    Of the texts no longer in use, only the most recent are kept.
    """
    for text in list(vectors)[:-TEXTS_KEPT]:
        if text not in texts:
            del vectors[text]
    for text in texts:
        if text not in vectors:
            with using(1), torch.autocast(conditioner.text_proj.weight.device.type, enabled=False):
                [vectors[text]] = conditioner.encode([text])


def guidance(
    conditioner: Conditioner,
    columns: Sequence[list[Tensor]],
    weights: Sequence[Sequence[float]],
    chroma: Tensor | None,
    negative: Condition | None,
    settings: Settings,
) -> Guidance:
    """The streams of `Guidance`: a condition for each column of texts, the melody alone, the null condition.

    A column holds one text of each sample's mix, encoded.
    """
    prompts = [conditioner(column, chroma) for column in columns]
    single = len(columns) == 1 and all(weight == 1 for weight in weights[0])
    if single and settings.cfg_coef == 1 and settings.cfg_coef_beta is None:
        return Guidance(prompts)
    mixed = None if single else torch.tensor(weights, dtype=torch.float32, device=columns[0][0].device)
    null = conditioner.null(columns[0]) if negative is None else negative
    if settings.cfg_coef_beta is None:
        return Guidance([*prompts, null], mixed)
    melody_alone = conditioner([torch.zeros_like(text) for text in columns[0]], chroma)
    return Guidance([*prompts, melody_alone, null], mixed)


# --- whole pieces -----------------------------------------------------------------------------------------


def request_frames(
    model: Model, request: Request, on_step: OnStep | None = None, stop: Stop | None = None
) -> Iterator[Tensor]:
    """Yield the new frames [B, K] of the request; samples with different windows run independently."""
    # The samples of each plan: a group shares its forward passes, and the groups take turns, frame by frame.
    groups: dict[tuple[Window, ...], list[int]] = {}
    for i, own in enumerate(request.plans):
        groups.setdefault(tuple(own), []).append(i)
    vectors = encode_request(model, request)  # now, so that a text too long is refused before the first step
    total, done = sum(count_steps(model.lm, plan) for plan in groups), count(1)
    step = on_step and (lambda *_: on_step(next(done), total))
    parts = []
    for plan, rows in groups.items():
        part = request.rows(rows)
        conditions = partial(window_conditions, model, part, vectors=vectors)
        generators = [torch.Generator().manual_seed(seed) for seed in part.seeds]
        how = (part.settings, generators, step, stop, part.interventions)
        parts.append(frames(model.lm, conditions, part.audio_prompt, plan, *how))
    order = torch.tensor(list(chain(*groups.values()))).argsort()
    # After a stop, some groups are one frame ahead of others: zip ends with the shortest.
    return (torch.cat(group)[order] for group in zip(*parts, strict=False))


def decode(model: Model, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the sound [B, C, n] of chunks of tokens as they arrive."""
    waves = model.codec.decode_stream(_generated(chunks, torch.get_num_threads()), model.channels)
    while True:
        # Not around the yield: they would reach into the caller's code.
        with using(usable()), torch.no_grad(), torch.autocast(model.lm.device.type, enabled=False):
            wave = next(waves, None)
        if wave is None:
            return
        yield wave


def _generated(chunks: Iterator[Tensor], threads: int) -> Iterator[Tensor]:
    """The chunks, generated with this number of threads; decoding, between them, keeps its own."""
    while True:
        with using(threads):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@torch.no_grad()
def decode_whole(model: Model, tokens: Tensor) -> Tensor:
    """The sound [B, C, N] of tokens [B, K, T]; a long piece is decoded in parts, in bounded memory."""
    if tokens.shape[-1] > DECODED_AT_ONCE:
        return torch.cat(list(decode(model, iter(tokens.split(DECODED_AT_ONCE, dim=-1)))), dim=-1)
    with using(usable()), torch.autocast(model.lm.device.type, enabled=False):
        return model.codec.decode(tokens, model.channels)


def decode_or_keep(model: Model, tokens: Tensor) -> Tensor:
    """`decode_whole` of tokens just generated; if it fails, they are kept in a file, which the error names.

    Raises: RuntimeError with the path of the tokens.
    """
    try:
        return decode_whole(model, tokens)
    except Exception as error:
        try:
            path = Path(tempfile.mkdtemp(prefix="mgkit-"), "tokens.safetensors")
            from safetensors.torch import save_file

            save_file({"tokens": tokens.cpu().contiguous()}, path)
        except Exception:
            raise error from None
        # The name of the error alone: messages about memory are long.
        raise RuntimeError(
            f"decoding the tokens failed ({type(error).__name__}); they are kept in {path}: "
            "model.generate_audio(safetensors.torch.load_file(path)['tokens']) gives their sound"
        ) from error


def say_stopped(model: Model, request: Request, tokens: Tensor) -> None:
    """Report the progress of an interrupted run."""
    seconds, total = tokens.shape[-1] / model.frame_rate, request.plans[0][-1].end / model.frame_rate
    print(f"stopped after {seconds:g} of {total:g} s; the music so far is kept", file=sys.stderr)

"""The manifest of a sample: everything it was generated from, in plain values, to be stored and replayed.

Axes: B batch, K codebooks, T frames, F chroma frames.
"""

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgkit import __version__
from mgkit.brief import brief
from mgkit.checkpoint import Model
from mgkit.edits import Change, ScaleHead, name_of
from mgkit.interventions import LogitsHook, parse_interventions
from mgkit.melody import one_hot
from mgkit.model import Adapter
from mgkit.prompts import parse_descriptions, parse_texts, plain
from mgkit.request import Request, parse_seeds, plan_windows
from mgkit.settings import Settings

SAMPLE = 4096  # values of each tensor that enter the fingerprint, approximately
WINDOW = 4096  # most chroma frames of a window: nine minutes


def manifests(model: Model, request: Request, tokens: Tensor) -> list[dict]:
    """A manifest for each sample of `tokens` [B, K, T], enough to generate it again, alone.

    "adapters" is None if adapters were loaded, changed or merged while the music was made.
    """
    origin: dict[str, Any] = {
        "mgkit": __version__,
        "model": model.name,
        "weights": fingerprint(model),
        "licence": model.licence,
        "machine": machine(model),
    }
    if request.adapters or model.adapters:
        same = request.adapters == model.adapters
        origin["adapters"] = [asdict(adapter) for adapter in model.adapters] if same else None
    return [origin | _sample(request, i, codes) for i, codes in enumerate(tokens)]


def _sample(request: Request, i: int, codes: Tensor) -> dict:
    """The entries of sample `i` of the request, with tokens `codes` [K, T]."""
    starts = {window.start for window in request.plans[i]}
    return {
        "text": plain(request.texts[i]),
        "negative": request.negative[i],
        "seed": request.seeds[i],
        "settings": asdict(request.settings),
        **pack_chroma({start: chroma[i] for start, chroma in request.chroma.items() if start in starts}),
        "prompt": pack(request.audio_prompt[i]),
        **request.interventions.record(),
        "frames": codes.shape[-1],
        "tokens": digest(codes),
    }


def replay_request(
    model: Model, manifest: dict, edits: Sequence[Change] | None, logits: LogitsHook | None
) -> Request:
    """The request of a manifest, complete; edits and hook as `recorded_edits` and `recorded_hook`.

    Raises:
        ValueError: an entry is missing or was changed, or other edits or another hook.
    """
    request = from_manifest(manifest, model.lm.config.codebooks)
    changes = recorded_edits(manifest, edits), recorded_hook(manifest, logits)
    interventions = parse_interventions(*changes, model.lm.config, model.frame_rate, request.settings)
    prompt = request.audio_prompt.to(model.lm.device)
    plan = plan_windows(model, request.settings, prompt.shape[-1], request.texts[0])
    return replace(request, audio_prompt=prompt, plans=[plan], interventions=interventions)


def recorded_edits(manifest: dict, given: Sequence[Change] | None) -> Sequence[Change]:
    """The edits of a manifest: those `given`, compared with the record; scaled heads from the record alone.

    Raises:
        ValueError: none given where the record is not enough, or other ones.
    """
    records = manifest.get("edits", [])
    if given is None:
        try:
            return [ScaleHead(**entry) for entry in map(_without_kind, records)]
        except (TypeError, ValueError, LookupError, AttributeError):
            raise ValueError(
                f"the manifest has edits whose tensors or functions it cannot hold, {brief(records, 150)}: "
                "give the same edits again, edits=[…]"
            ) from None
    if not isinstance(given, list | tuple) or [edit.record() for edit in given] != records:
        raise ValueError(
            f"the edits given, {brief(given, 150)}, are not those of the manifest, {brief(records, 150)}: "
            "give the same layers, numbers and tensors"
        )
    return given


def recorded_hook(manifest: dict, given: LogitsHook | None) -> LogitsHook | None:
    """The hook on logits, whose name a manifest records.

    Raises:
        ValueError: none given where there was one, or one of another name.
    """
    name = None if given is None else name_of(given)
    if name != manifest.get("logits"):
        raise ValueError(
            f"the manifest was made with logits={brief(manifest.get('logits'))}, and not {brief(name)}: give "
            "the same function, which a manifest cannot hold"
        )
    return given


def _without_kind(record: dict) -> dict:
    """The fields of a recorded `ScaleHead`."""
    if record["edit"] != "ScaleHead":
        raise LookupError("the record of another edit")
    return {name: value for name, value in record.items() if name != "edit"}


def from_manifest(manifest: dict, codebooks: int) -> Request:
    """The request described by a manifest: one sample, not yet divided into windows.

    Raises:
        ValueError: an entry is missing or was changed.
    """
    try:
        int(manifest["frames"])
        return Request(
            texts=parse_descriptions([manifest["text"]]),
            negative=parse_texts([manifest["negative"]]),
            chroma=unpack_chroma(manifest),
            audio_prompt=unpack(manifest["prompt"]).view(1, codebooks, -1),
            seeds=parse_seeds([manifest["seed"]], 1),
            settings=Settings(**manifest["settings"]),
            plans=[],
        )
    except (
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ValueError,
        ArithmeticError,
        zlib.error,
    ) as error:
        fault = f"lacks {error}" if isinstance(error, KeyError) else f"was changed ({str(error)[:200]})"
        raise ValueError(f"the manifest {fault}: it cannot be replayed") from None


def pack_chroma(windows: dict[int, Tensor]) -> dict[str, dict[str, str]]:
    """The entries of a manifest for the chroma [F, 12] of each window.

    "melody" has pitch classes. "chords", absent if each frame has one pitch class, has sums of 2 ** class.
    """
    melody, chords = {}, {}
    for start, chroma in windows.items():
        if (chroma.sum(dim=1) == 1).all():
            melody[str(start)] = pack(chroma.argmax(dim=1))
        else:
            chords[str(start)] = pack((chroma.long() << torch.arange(12)).sum(dim=1))
    return {"melody": melody} | ({"chords": chords} if chords else {})


def unpack_chroma(manifest: dict) -> dict[int, Tensor]:
    """The chroma [1, F, 12] of each window, from the entries of a manifest."""
    melody = {start: one_hot(unpack(row, WINDOW)) for start, row in manifest["melody"].items()}
    chords = {
        start: (unpack(row, WINDOW)[:, None] >> torch.arange(12) & 1).float()
        for start, row in manifest.get("chords", {}).items()
    }
    return {int(start): chroma[None] for start, chroma in (melody | chords).items()}


def require_model(manifest: dict, model: Model) -> None:
    """Raises: ValueError unless this is a manifest made with these weights and adapters."""
    if not isinstance(manifest, dict):
        raise ValueError(
            f"the manifest is a {type(manifest).__name__}; it must be a dict, as from audio.read_manifest"
        )
    try:
        stored = tuple(Adapter(**entry) for entry in manifest.get("adapters", ()))
        needed = ", ".join(
            f"{brief(one.name)} at {one.strength:g}{' (merged)' if one.merged else ''}" for one in stored
        )
    except (TypeError, ValueError):
        raise ValueError(
            "the manifest cannot be replayed: adapters were changed while the music was made, or their entry "
            "since"
        ) from None
    if manifest.get("weights") != fingerprint(model):
        merged = f", and load and merge its adapters: {needed}" if needed else ""
        raise ValueError(
            f"the manifest was made with other weights than those of {model.name!r} here: "
            f"load the model that made it{merged}"
        )
    used, here = ([(a.digest, a.strength) for a in all if not a.merged] for all in (stored, model.adapters))
    if used != here:
        raise ValueError(
            f"the manifest was made with {f'the adapters {needed}' if used else 'no adapters'}, and this "
            f"model has {len(here) or 'none'}: load the same ones with load_adapter, in the same order"
        )


def require_tokens(manifest: dict, model: Model, codes: Tensor) -> None:
    """Raises: ValueError unless the codes [K, T] are those of the manifest."""
    if digest(codes) != manifest.get("tokens"):
        raise ValueError(
            "the tokens came out different: the manifest was made with "
            f"{brief(manifest.get('machine'), 200)}, this is {machine(model)}; another processor or version "
            "rounds differently"
        )


def fingerprint(model: Model) -> str:
    """A digest of a model: of the norm, to three digits, of some values of each of its tensors.

    Saving and loading a model changes the last bits of its weights, but not the digest.
    """
    norms = []
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLE)].double()
        norms.append(f"{name} {float(sample.norm()):.2e}")
    return hashlib.sha256("\n".join(norms).encode()).hexdigest()[:16]


def machine(model: Model) -> str:
    """Versions and hardware; others may round differently."""
    device = model.lm.device.type
    kind = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, transformers {version('transformers')}"
    dtype = next(model.lm.heads.parameters(), model.lm.norm.weight).dtype
    return f"{versions}, {device} {kind}, {dtype}"


def pack(values: Tensor) -> str:
    """Integers below 32768 as text.

    >>> unpack(pack(torch.tensor([1, 2047])))
    tensor([   1, 2047])
    """
    return base64.b64encode(zlib.compress(_bytes(values))).decode()


def unpack(text: str, limit: int = 2**24) -> Tensor:
    """The integers of `pack`, flat.

    Raises:
        ValueError: a text that was cut, or one that would fill the memory with more than `limit` integers.
    """
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(text), 2 * limit)
    if stream.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {limit} integers")
    if not stream.eof:
        raise ValueError("it ends too early")
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int64))


def digest(values: Tensor) -> str:
    """A digest of integers below 32768, equal for equal values."""
    return hashlib.sha256(_bytes(values)).hexdigest()[:32]


def _bytes(values: Tensor) -> bytes:
    return values.cpu().numpy().astype("<i2").tobytes()

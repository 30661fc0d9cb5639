"""What `bench` compares: models of the published shapes in mgkit and transformers, and the bytes of a step.

    nano            the weights that ship with mgkit
    random-small    facebook/musicgen-small's shape, random weights, nano's tokenizer; also -medium, -large

Random weights take as long as trained ones. Both libraries get the same.
"""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mgkit import export, hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.lm import LM, Layer, LMConfig
from mgkit.model import Model
from mgkit.musicgen import MusicGen
from mgkit.text import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM = "random-"
NAMES = ("nano", *(RANDOM + size for size in ("small", "medium", "large")))


def load(name: str, device: torch.device, dtype: torch.dtype) -> MusicGen:
    """The model `name`, its language model in `dtype`: one of NAMES, or what `get_pretrained` takes.

    Raises:
        ValueError: an unknown name.
    """
    if not name.startswith(RANDOM):
        return MusicGen.get_pretrained(name, device, dtype)
    if name not in NAMES:
        raise ValueError(f"there is no model {name!r}; give {', '.join(NAMES)}, or a name or folder to load")
    return MusicGen(random(name.removeprefix(RANDOM), device, dtype))


def random(size: str, device: torch.device, dtype: torch.dtype) -> Model:
    """A model of the published size `size` with random weights."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    layers, dim = hub.SHAPES[size]
    tokenizer = AutoTokenizer.from_pretrained(hub.embedded(), trust_remote_code=False)
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t5 = T5EncoderModel(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
        lm = LM(LMConfig(dim=dim, layers=layers, heads=dim // 64, feed_forward=4 * dim)).to(dtype)
        codec, conditioner = Codec(CodecConfig()), Conditioner(TextEncoder(tokenizer, t5), dim)
    for module in (codec, lm, conditioner):
        module.eval().requires_grad_(False)
    return Model(codec, lm, conditioner, RANDOM + size, 30.0, hub.MIT)


def in_transformers(model: Model) -> "PreTrainedModel":
    """The same weights in transformers, all in the language model's type, as its users load them."""
    import transformers

    config, lm = export.config(model), model.lm
    with torch.device(lm.device):
        theirs = getattr(transformers, config.architectures[0])(config).eval().to(lm.dtype)
    missing, unexpected = theirs.load_state_dict(export.tensors(model, device=lm.device), strict=False)
    assert not unexpected and all("embed_positions" in name or "embed_tokens" in name for name in missing)
    return theirs


def bytes_of_a_step(lm: LM, batch: int, position: int) -> int:
    """Bytes that a step of `batch` rows must read: weights once, keys and values of earlier positions.

    Embeddings are looked up and the text's keys and values computed once: neither counts.
    """
    read: list[nn.Module] = [lm.norm, *lm.heads]
    for layer in lm.layers:
        assert isinstance(layer, Layer)
        read += [layer.norm1, layer.attention, layer.norm2, layer.feed_forward]
        if lm.config.cross_attention:
            read += [layer.norm_cross, layer.cross_attention.q_proj, layer.cross_attention.out_proj]
    weights = sum(p.numel() * p.element_size() for module in read for p in module.parameters())
    cache = 2 * lm.config.layers * batch * position * lm.config.dim * lm.norm.weight.element_size()
    return weights + cache


def bandwidth(device: torch.device) -> float:
    """Memory bandwidth in bytes per second, measured: the best of ten runs over 256 MB (on a GPU 2 GB).

    On a CPU a matrix times a vector, which only reads; on a GPU a copy, counting bytes read and written.
    """
    if device.type == "cpu":
        matrix, vector = torch.ones(8192, 8192), torch.ones(8192)
        return 4 * matrix.numel() / min(seconds(lambda: matrix @ vector, device) for _ in range(10))
    source = torch.rand(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / min(seconds(lambda: target.copy_(source), device) for _ in range(10))


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of `run`, its work on the GPU included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stamps:
    """Times at which the steps of a run ended: an `on_step` of mgkit, a logits processor of transformers."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, done: int, total: int) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Note the time and return the logits."""
        self.times.append(time.perf_counter())
        return logits

    def milliseconds(self, skip: int) -> list[float]:
        """The times between the steps after the first `skip`, in ms."""
        times = self.times[skip:]
        return [1000 * (after - before) for before, after in zip(times, times[1:], strict=False)]


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, and the quarter and three-quarter points."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high

"""What `bench` compares: models of the published shapes in mgkit and transformers, and the bytes of a step.

    nano            the weights that ship with mgkit
    random-small    facebook/musicgen-small's shape, random weights, nano's tokenizer; also -medium, -large

Random weights take as long as trained ones. Both libraries get the same.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from mgkit import export, hub
from mgkit.codec import Codec, CodecConfig
from mgkit.condition import Conditioner
from mgkit.lm import LM, Layer, LMConfig
from mgkit.model import Model, arrange
from mgkit.musicgen import MusicGen
from mgkit.text import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM = "random-"
NAMES = ("nano", *(RANDOM + size for size in ("small", "medium", "large")))


def load(name: str, device: torch.device, dtype: torch.dtype) -> MusicGen:
    """The model `name`, its language model in `dtype`: one of NAMES, or what `get_pretrained` takes."""
    if not name.startswith(RANDOM):
        return MusicGen.get_pretrained(name, device, dtype)
    return MusicGen(random(name.removeprefix(RANDOM), device, dtype))


def random(size: str, device: torch.device, dtype: torch.dtype) -> Model:
    """A model of the published size `size` with random weights."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    layers, dim = hub.SHAPES[size]
    tokenizer = AutoTokenizer.from_pretrained(hub.embedded(), trust_remote_code=False)
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t5 = T5EncoderModel(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
        lm = LM(LMConfig(dim=dim, layers=layers, heads=dim // 64, feed_forward=4 * dim))
        codec, conditioner = Codec(CodecConfig()), Conditioner(TextEncoder(tokenizer, t5), dim)
    for module in (codec, lm, conditioner):
        module.eval().requires_grad_(False)
    arrange(lm, dtype)
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
    # Keys and values are in the type of the weights.
    size = lm.heads[0].weight.element_size()
    return weights + 2 * lm.config.layers * batch * position * lm.config.dim * size

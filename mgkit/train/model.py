"""The trained model, fresh or loaded: a language model and its conditioner.

Axes: B batch, F chroma frames, L text length in tokens.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mgkit import checkpoint, hub
from mgkit.condition import Conditioner
from mgkit.lm import LM, Condition, LMConfig
from mgkit.melody import one_hot
from mgkit.text import TextEncoder
from mgkit.train import storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextConfig:
    """Shape of the T5 encoder and size of its vocabulary."""

    dim: int = 192
    layers: int = 3
    heads: int = 4
    head_dim: int = 48
    feed_forward: int = 512
    pieces: int = 1600


class ConditionalLM(nn.Module):
    """A language model and its conditioner, trained together."""

    def __init__(self, lm: LM, conditioner: Conditioner):
        super().__init__()
        self.lm, self.conditioner = lm, conditioner

    def condition(self, texts: list[str], melody: Tensor, keep_text: Tensor) -> Condition:
        """Condition on `texts` and the pitch classes `melody` [B, F], differentiable.

        If `keep_text` [B] is False, the text vectors are zero, as in the null condition of guidance.
        """
        return self.condition_on_tokens(*self.conditioner.text.tokens(texts), one_hot(melody), keep_text)

    def condition_on_tokens(self, ids: Tensor, mask: Tensor, melody: Tensor, keep_text: Tensor) -> Condition:
        """The same for texts as tokens [B, L] and their mask [B, L], both on the CPU, and for any chroma
        `melody` [B, F, 12].

        `Conditioner` assembles the condition row by row; here a fixed number of operations serves all rows,
        which a GPU needs, and no result is read back from it.
        """
        conditioner, device = self.conditioner, self.lm.device
        lengths = mask.sum(dim=1).clamp(min=1)
        longest = int(lengths.max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        encoded = conditioner.text.t5(input_ids=ids.to(device), attention_mask=mask.to(device).long())
        kept = (mask & keep_text[:, None]).to(device)
        text = conditioner.text_proj(encoded.last_hidden_state) * kept[..., None]
        position = torch.arange(longest, device=device)
        if conditioner.melody_frames is None:
            return Condition(cross=text, cross_mask=position < lengths.to(device)[:, None])
        chroma = conditioner.melody_proj(melody.to(device))
        rows = torch.cat([chroma, text], dim=1)
        # Padding moves from the end of each row to its beginning.
        source = torch.arange(rows.shape[1], device=device) - (longest - lengths).to(device)[:, None]
        present = source >= 0
        prefix = rows.gather(1, source.clamp(min=0)[..., None].expand_as(rows)) * present[..., None]
        return Condition(prefix=prefix, prefix_mask=present)


def new_model(
    lm_config: LMConfig,
    text_config: TextConfig,
    tokenizer: "PreTrainedTokenizerBase",
    melody_frames: int | None,
) -> ConditionalLM:
    """A model with fresh weights."""
    from transformers import T5Config, T5EncoderModel

    lm = LM(lm_config)
    t5_config = T5Config(
        vocab_size=len(tokenizer),
        d_model=text_config.dim,
        d_kv=text_config.head_dim,
        d_ff=text_config.feed_forward,
        num_layers=text_config.layers,
        num_heads=text_config.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=0,
    )
    for embedding in lm.embeddings:
        nn.init.normal_(embedding.weight, std=0.3)
    for head in lm.heads:
        nn.init.normal_(head.weight, std=0.02)
    # Every layer adds two outputs to the residual stream; with this scale its variance is independent of
    # depth (GPT-2).
    for layer in lm.layers:
        for output in (layer.attention.out_proj, layer.feed_forward.linear2):
            nn.init.normal_(output.weight, std=(2 * lm_config.layers * output.in_features) ** -0.5)
    text = TextEncoder(tokenizer, T5EncoderModel(t5_config))
    return ConditionalLM(lm, Conditioner(text, lm_config.dim, melody_frames))


def load(folder: str | Path) -> ConditionalLM:
    """The model of a run's folder, or of a released model's name or folder, in float32 and eval mode.

    Raises:
        FileNotFoundError: The folder holds neither.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if (folder / "config.json").is_file() or str(folder) in hub.NAMES:
        released = checkpoint.load(str(folder), torch.device("cpu"), torch.float32)
        return ConditionalLM(released.lm, released.conditioner).eval()
    if not (folder / "lm.pt").is_file():
        raise FileNotFoundError(
            f"{folder / 'lm.pt'} is missing: train a language model first (python -m mgkit train lm)"
        )
    saved = storage.load(folder / "lm.pt")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    model = new_model(LMConfig(**saved["lm"]), TextConfig(**saved["text"]), tokenizer, saved["melody_frames"])
    # Not strict: T5's tied embedding has two names and is saved under one of them.
    model.load_state_dict(saved["weights"], strict=False)
    return model.eval()


def save(model: ConditionalLM, weights: dict[str, Tensor], out: Path) -> None:
    """Write `out`/lm.pt (configurations of `model` and `weights`) and `out`/tokenizer; `load` reads them."""
    t5 = model.conditioner.text.t5.config
    text = TextConfig(t5.d_model, t5.num_layers, t5.num_heads, t5.d_kv, t5.d_ff, t5.vocab_size)
    content = {
        "lm": asdict(model.lm.config),
        "text": asdict(text),
        "melody_frames": model.conditioner.melody_frames,
        "weights": {name: weight.cpu() for name, weight in weights.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    storage.save(out / "lm.pt", content)
    model.conditioner.text.tokenizer.save_pretrained(out / "tokenizer")

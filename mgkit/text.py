"""T5: strings to vectors (arXiv:1910.10683). The encoder and its tokenizer are transformers'.

Letters: B batch, L text length in tokens, W width of T5.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

MAX_TOKENS = 512  # T5 was trained on at most so many; attention to ten thousand words would fill the memory


class TextEncoder(nn.Module):
    """A T5 encoder with its tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", t5: "T5EncoderModel"):
        super().__init__()
        self.tokenizer = tokenizer
        self.t5 = t5

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.t5.config.d_model

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and mask [B, L] (False at padding, on the right). Empty texts are all padding.

        Errors: ValueError for a text of more than MAX_TOKENS tokens.
        """
        rows = [self.tokenizer(text).input_ids for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > MAX_TOKENS:
                raise ValueError(
                    f"the prompt {text[:40]!r}… has {len(row)} tokens; the text encoder takes at most {MAX_TOKENS}: "
                    "say it in fewer words"
                )
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = bool(texts[i])
        return ids, mask

    @torch.no_grad()
    def forward(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Vectors [B, L, W] and mask [B, L] of the texts."""
        device = self.t5.device
        ids, mask = (x.to(device) for x in self.tokens(texts))
        vectors = self.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return vectors, mask

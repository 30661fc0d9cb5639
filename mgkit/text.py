"""T5: texts to vectors (arXiv:1910.10683), with the encoder and tokenizer of transformers.

Axes: B batch, L text length in tokens, W width of T5.

    "calm piano" -> tokens [B, L] -> T5 encoder -> vectors [B, L, W], mask [B, L]
"""

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

MAX_TOKENS = 512  # the limit in T5's training; attention over much longer texts would exhaust memory


class Normalizer:
    """Prompts rewritten for a model trained with audiocraft's `normalize_text`.

    Numbers become words, words their base form; stop words and punctuation go: "Two calm pianos, 90 bpm"
    becomes "calm piano ninety bpm".

    Raises: ImportError without spaCy, num2words or the language model, with the command that installs them.
    Source: audiocraft, `WhiteSpaceTokenizer`.
    """

    LANGUAGE = "en_core_web_sm"
    PUNCTUATION = "?:!.,;"

    def __init__(self) -> None:
        try:
            import num2words
            import spacy

            self.words, self.pipeline = num2words.num2words, spacy.load(self.LANGUAGE)
        except (ImportError, OSError):
            raise ImportError(
                "the model was trained on prompts rewritten by spaCy (normalize_text is True), which takes: "
                f"pip install spacy num2words; python -m spacy download {self.LANGUAGE}"
            ) from None

    def __call__(self, text: str) -> str:
        """The text rewritten."""
        text = re.sub(r"\d+", lambda number: self.words(int(number[0])), text)
        words = [word for word in self.pipeline(text) if not word.is_stop]
        return " ".join(word.lemma_ for word in words if word.text not in self.PUNCTUATION)


class TextEncoder(nn.Module):
    """T5 encoder with its tokenizer. It computes gradients unless the caller disables them."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        t5: "T5EncoderModel",
        normalizer: Normalizer | None = None,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.t5 = t5
        self.normalizer = normalizer

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.t5.config.d_model

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L], padded on the right, and mask [B, L], False at padding.

        The mask of an empty text is False everywhere.

        Raises: ValueError for a text of more than MAX_TOKENS tokens.
        """
        if self.normalizer is not None:
            texts = [self.normalizer(text) for text in texts]
        return tokenize(self.tokenizer, texts)

    def forward(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Vectors [B, L, W] and mask [B, L] of the texts."""
        ids, mask = (x.to(self.t5.device) for x in self.tokens(texts))
        return self.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> tuple[Tensor, Tensor]:
    """`TextEncoder.tokens` without the encoder."""
    rows = [tokenizer(text).input_ids for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > MAX_TOKENS:
            raise ValueError(
                f"the prompt {text[:40]!r}… has {len(row)} tokens; "
                f"shorten it to at most {MAX_TOKENS}, the limit of the text encoder"
            )
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = bool(texts[i])
    return ids, mask

"""The tokenizer of a fresh text encoder, trained on captions and some plain English."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_TEXTS = 20000


@lru_cache
def frequent_words() -> list[str]:
    """The 1,000 most frequent words of Python's help pages, an English text on every machine with Python."""
    from pydoc_data.topics import topics

    counts = Counter(re.findall(r"\b[a-z]{3,10}\b", " ".join(topics.values()).lower()))
    return sorted(word for word, _ in counts.most_common(1000))


def make_tokenizer(captions: Iterable[list[str]], pieces: int) -> "PreTrainedTokenizerFast":
    """Train a T5-like unigram tokenizer with a vocabulary of at most `pieces`.

    It ignores case and accents. Every printable ASCII character is a piece, so almost no text has unknown
    tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=[chr(c) for c in range(33, 127) if not chr(c).isupper()],
    )
    texts = [text for alternatives in captions for text in alternatives]
    tokenizer.train_from_iterator(texts[:MAX_TEXTS] + frequent_words() * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )

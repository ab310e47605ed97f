"""Small real tokenizers of the kinds that stream differently."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tersor.models.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then it rests.",
    "def add(first, second):\n    return first + second\n",
    "naïve café, Übergröße, žluťoučký kůň, добрый день, 東京タワー",
] * 3
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    """GPT-2 style: every token is a run of bytes; unseen characters spread over several tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _with_bos(backend)


def metaspace() -> Tokenizer:
    """SentencePiece style, as in T5: a token carries its leading space as a visible mark."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    )
    return _with_bos(backend)


def byte_fallback() -> Tokenizer:
    """SentencePiece style, as in Llama 2: what the vocabulary lacks is spelled in byte tokens."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzT.,"]
    vocabulary = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("f", "o"), ("fo", "x"), ("▁", "fox")]
    vocabulary += [left + right for left, right in merges]
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Backend(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.add_special_tokens(SPECIALS)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_bos(backend)


def _with_bos(backend: Backend) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return Tokenizer.from_bytes(backend.to_str().encode())

"""The tokenizer shared by both tiny models: pieces of the encoder's vocabulary, the most frequent of the corpus.

Text is lower-cased and loses its accents, as the encoder wants it. A word begins with its blank ("▁world"), also the
first one of a line: a label then has the same tokens whether it stands in a list of options or alone as an answer.
Digits, punctuation and line ends stand alone. What no piece covers is written in bytes, so there is no unknown token.
A word is cut into the pieces of the largest probability (Kudo 2018, "Subword Regularization": a unigram model), which
is estimated from how often the encoder's own tokenizer uses them.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


PAD, EOS, BOS = "<pad>", "</s>", "<s>"
"""Special tokens."""

PAD_ID, EOS_ID, BOS_ID = 0, 1, 2
"""Their ids."""

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(32))
"""Span markers of T5, ids 3 to 34."""

FIRST_SENTINEL = 3
"""Id of `<extra_id_0>`; the others follow upwards."""

VOCABULARY = 14_592
"""Number of tokens, special ones included."""

BLANK = "▁"
"""How a blank is written in a piece."""

BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
BYTE_SCORE = -30.0
"""Log-probability of a byte: under that of any word in pieces."""

SIGNS = tuple(chr(code) for code in range(33, 127) if not chr(code).isupper())
"""Characters that are pieces whatever the corpus holds."""

NORMALIZER = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True)


def count_pieces(texts: Iterable[str], encoder: Tokenizer) -> Counter[str]:
    """Count how often the encoder's tokenizer uses each of its pieces.

    Args:
        texts: Documents.
        encoder: Its tokenizer, with pieces as "world" and "##ing".

    Returns:
        Counts by piece, in this module's writing: "▁world" and "ing".
    """
    words = Counter(word for text in texts for word in re.findall(r"\w+", NORMALIZER.normalize_str(text)))
    counts: Counter[str] = Counter()
    for word, encoding in zip(words, encoder.encode_batch(list(words), add_special_tokens=False), strict=True):
        for piece in encoding.tokens:
            counts[piece[2:] if piece.startswith("##") else BLANK + piece] += words[word]
    return counts


def train_tokenizer(texts: Iterable[str], encoder: Tokenizer, vocabulary: int = VOCABULARY) -> Tokenizer:
    """Choose the pieces.

    Args:
        texts: Documents.
        encoder: Tokenizer of the encoder.
        vocabulary: Number of tokens, at most; fewer where the corpus has not so many pieces. At least 450: bytes,
            special tokens and single characters.

    Returns:
        A tokenizer without post-processor: it adds no special token.

    Raises:
        ValueError: The vocabulary is too small.
    """
    single = [BLANK, BLANK + "\n", *SIGNS, *(BLANK + sign for sign in SIGNS if not sign.isdigit())]
    fixed = [PAD, EOS, BOS, *SENTINELS, *BYTES, *single]
    if vocabulary < len(fixed):
        raise ValueError(f"A vocabulary of {vocabulary} tokens cannot hold {len(fixed)} bytes, characters and others.")
    counts = count_pieces(texts, encoder)
    latin = re.compile(rf"{BLANK}?[a-z]+")
    often = [piece for piece, _ in counts.most_common() if latin.fullmatch(piece) and piece not in fixed]
    total = sum(counts.values()) + 1
    scores = [(piece, 0.0) for piece in (PAD, EOS, BOS, *SENTINELS)] + [(piece, BYTE_SCORE) for piece in BYTES]
    chosen = [*single, *often[: vocabulary - len(fixed)]]
    scores += [(piece, math.log((counts[piece] + 1) / total)) for piece in chosen]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=len(SENTINELS) + FIRST_SENTINEL, byte_fallback=True))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(rf"{BLANK}?[^\w\s{BLANK}]|{BLANK}?_|\d"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([PAD, EOS, BOS, *SENTINELS])
    return tokenizer


def in_encoder(piece: str) -> str:
    """Write a piece as the encoder's tokenizer does; special ones and bytes as what is nearest to them there."""
    if piece in (EOS, BOS):
        return "[SEP]" if piece == EOS else "[CLS]"
    if piece in SENTINELS or piece in BYTES:
        return "[MASK]" if piece in SENTINELS else "[UNK]"
    if piece == BLANK + "\n":
        return ";"
    if piece.startswith(BLANK):
        return piece[1:]
    return "##" + piece if piece.isalpha() else piece


def for_model(tokenizer: Tokenizer, architecture: str, max_length: int) -> PreTrainedTokenizerFast:
    """Wrap the tokenizer for one of the two architectures.

    Args:
        tokenizer: What `train_tokenizer` returned.
        architecture: "t5" ends every input with `</s>`; "llama" begins it with `<s>`.
        max_length: Longest input the model was made for.

    Returns:
        A tokenizer for `save_pretrained`, read back by `AutoTokenizer`.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    template = f"$A {EOS}" if architecture == "t5" else f"{BOS} $A"
    pair = f"$A {EOS} $B {EOS}" if architecture == "t5" else f"{BOS} $A $B"
    ids = [(EOS, EOS_ID)] if architecture == "t5" else [(BOS, BOS_ID)]
    copy.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=ids)
    special = {"eos_token": EOS, "pad_token": PAD} | ({} if architecture == "t5" else {"bos_token": BOS})
    return PreTrainedTokenizerFast(
        tokenizer_object=copy,
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=list(SENTINELS) if architecture == "t5" else [],
        **special,
    )


def load(path: Path) -> Tokenizer:
    """Read the plain tokenizer written by the `pack` command.

    Args:
        path: The folder with `tokenizer.json`.

    Returns:
        The tokenizer.
    """
    return Tokenizer.from_file(str(path / "tokenizer.json"))

"""The byte-level tokenizer shared by both tiny models.

Byte-level BPE: text is first turned into its UTF-8 bytes, so every string can be written and there is no unknown
token. Digits stand alone, as in "1", "9", "8", "4", and a word begins with its blank (" World"), also the first one
of a text: a label then has the same tokens whether it stands in a list of options or alone as an answer.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


PAD, EOS, BOS = "<pad>", "</s>", "<s>"
"""Special tokens."""

PAD_ID, EOS_ID, BOS_ID = 0, 1, 2
"""Their ids."""

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(32))
"""Span markers of T5, ids 3 to 34."""

FIRST_SENTINEL = 3
"""Id of `<extra_id_0>`; the others follow upwards."""

VOCABULARY = 8192
"""Number of tokens, special ones included."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Learn the merges from a sample of documents.

    Args:
        texts: Documents.
        vocabulary: Number of tokens, at least 256 bytes + 3 + 32 special tokens.

    Returns:
        A tokenizer without post-processor: it adds no special token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS, BOS, *SENTINELS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


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

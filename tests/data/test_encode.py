"""The same tokens in training, generation and ranking; answers are never truncated."""

import string

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gorp.data import Collator, Encoding, Form, encode, encode_prompts, pad_left
from gorp.data.encode import places
from gorp.data.form import with_forms
from gorp.data.tokens import added_tokens, text_ids
from gorp.errors import ConfigError, DataError, ModelError
from tests.one_row import encode_completion, encode_prompt
from tests.tokenizers_small import SENTENCES, llama_tokenizer, t5_tokenizer


T5, LLAMA = t5_tokenizer(), llama_tokenizer()
PROMPT = "What is the topic?\nAnswer:"
BUDGET = Encoding()


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds a space before every text and no special tokens, like SentencePiece without bos."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    alphabet = sorted({*"".join(SENTENCES), *string.printable, "▁"})
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="always", split=True
    )  # so that training learns words, not phrases
    backend.train_from_iterator(SENTENCES, trainer)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def rows(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in pairs], "completion": [text for _, text in pairs]})


def test_decoder_rows_are_the_hand_built_ones():
    encoded = encode(rows((PROMPT, " True")), LLAMA, encoder_decoder=False, encoding=BUDGET)
    prompt = [LLAMA.bos_token_id, *LLAMA(PROMPT, add_special_tokens=False).input_ids]
    answer = [*LLAMA(" True", add_special_tokens=False).input_ids, LLAMA.eos_token_id]
    assert encoded.column_names == ["input_ids", "labels"]
    assert encoded[0] == {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def test_encoder_decoder_rows_are_the_hand_built_ones():
    encoded = encode(rows((PROMPT, "True")), T5, encoder_decoder=True, encoding=BUDGET)
    body, answer = (T5(text, add_special_tokens=False).input_ids for text in (PROMPT, "True"))
    assert encoded[0] == {"input_ids": [*body, T5.eos_token_id], "labels": [*answer, T5.eos_token_id]}


def test_a_decoder_prompt_never_ends_in_eos_and_labels_always_do():
    # A T5-like tokenizer with a decoder: the eos that it adds must not be between prompt and answer.
    (row,) = encode(rows((PROMPT, "True")), T5, encoder_decoder=False, encoding=BUDGET)
    assert row["input_ids"].count(T5.eos_token_id) == 1
    assert row["labels"][-1] == T5.eos_token_id
    # A tokenizer that adds no eos with an encoder-decoder: the labels get one, the input none.
    (row,) = encode(rows((PROMPT, "True")), LLAMA, encoder_decoder=True, encoding=BUDGET)
    assert LLAMA.eos_token_id not in row["input_ids"]
    assert row["labels"].count(LLAMA.eos_token_id) == 1
    assert row["labels"][-1] == LLAMA.eos_token_id


def test_names_of_special_tokens_in_a_text_are_encoded_as_text():
    prompt, completion = "<s>Strike this out.</s>", "use <s>old</s> tags"
    for tokenizer, seq2seq in ((LLAMA, False), (T5, True)):
        (row,) = encode(rows((prompt, completion)), tokenizer, encoder_decoder=seq2seq, encoding=BUDGET)
        answer = [token for token in row["labels"] if token != -100]
        assert answer.index(tokenizer.eos_token_id) == len(answer) - 1
        assert tokenizer.decode(answer, skip_special_tokens=True) == completion
        read = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        assert read == (prompt if seq2seq else prompt + completion)


def test_overlapping_names_of_special_tokens_are_encoded_as_text():
    names = ["</s>", "<s>", "<x>", "<s><x>"]
    vocabulary = [("<unk>", -20.0), *((name, -1.0) for name in names), *((letter, -5.0) for letter in "<>/sx ")]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))  # its vocabulary has the names as ordinary pieces
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": names[1:]})
    texts = ["<s> <s><x>", "<s><x><s>", "x</s><s><s><x>", "<<s><x>>"]
    for text, ids in zip(texts, text_ids(texts, tokenizer), strict=True):
        assert tokenizer.convert_ids_to_tokens(ids) == list(text)


def test_a_tokenizer_whose_added_tokens_cannot_be_identified_is_refused():
    class Odd:
        def __call__(self, texts, **_):
            return {"input_ids": [7, 8]} if isinstance(texts, str) else {"input_ids": [[9]] * len(texts)}

    with pytest.raises(ModelError, match=r"Use the model's fast tokenizer"):
        added_tokens(Odd())


JOINED = [
    (PROMPT, " True or false"),
    (PROMPT, "True or false"),
    ("Say:\n", "True or false"),
    ('{"answer": "', 'yes"}'),
    ("area = 3.14 * r", "**2"),
    ("def f(x):", "\n    return x\n"),
    ("Say: ", "yes"),
    ("Say:\n\n", "\n\nyes"),
]


@pytest.mark.parametrize("tokenizer", [T5, LLAMA, metaspace_tokenizer()], ids=["t5", "llama", "metaspace"])
@pytest.mark.parametrize(("prompt", "completion"), JOINED)
def test_decoded_ids_of_a_decoder_are_prompt_and_completion_exactly(tokenizer, prompt, completion):
    (row,) = encode(rows((prompt, completion)), tokenizer, encoder_decoder=False, encoding=BUDGET)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == prompt + completion
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_the_same_holds_for_text_without_spaces():
    (row,) = encode(rows(("今天天气", "很好 😀")), LLAMA, encoder_decoder=False, encoding=BUDGET)
    assert LLAMA.decode(row["input_ids"], skip_special_tokens=True) == "今天天气很好 😀"


@pytest.mark.parametrize("tokenizer", [T5, LLAMA, metaspace_tokenizer()], ids=["t5", "llama", "metaspace"])
@pytest.mark.parametrize(("prompt", "completion"), [(PROMPT, " True or false"), ("Say:\n", "True or false")])
def test_the_tokens_are_those_of_prompt_and_completion_joined(tokenizer, prompt, completion):
    (row,) = encode(rows((prompt, completion)), tokenizer, encoder_decoder=False, encoding=BUDGET)
    joined = tokenizer(prompt + completion, add_special_tokens=False).input_ids
    assert [token for token in row["input_ids"] if token not in tokenizer.all_special_ids] == joined


def test_only_a_decoder_writes_the_lead_of_a_label():
    labelled = with_forms([PROMPT], ["True"], [Form(lead=" ")])
    spaced = rows((PROMPT, " True"))
    for tokenizer, seq2seq, same in ((LLAMA, False, spaced), (T5, True, rows((PROMPT, "True")))):
        encoded = [encode(d, tokenizer, encoder_decoder=seq2seq, encoding=BUDGET)[0] for d in (labelled, same)]
        assert encoded[0] == encoded[1]


def test_places_is_empty_after_ordinary_text():
    chat = Form(chat=True, end="</s>")
    prompts = ["<s>[INST] " + "word " * 20 + f"{i} [/INST]" for i in range(2)] + ["user: hi\nassistant:", "<s>\n"]
    assert places(prompts, LLAMA, [chat] * 4) == ["", "", "", "<s>\n"]
    assert places(["<s>\n"], LLAMA, [Form()]) == [""]


TEXT = st.text("abc \n.", min_size=1, max_size=80)


@settings(max_examples=40)
@given(prompts=st.lists(TEXT, min_size=1, max_size=5), budget=st.integers(2, 30), seq2seq=st.booleans())
@pytest.mark.parametrize("truncation", ["middle", "end"])
@pytest.mark.parametrize("tokenizer", [T5, LLAMA], ids=["t5", "llama"])
def test_prompts_keep_their_limit_and_training_uses_the_inference_prompt(
    tokenizer, truncation, prompts, budget, seq2seq
):
    encoding = Encoding(max_prompt_tokens=budget, truncation=truncation)
    kind = {"encoder_decoder": seq2seq}
    encoded = encode(rows(*((prompt, "True") for prompt in prompts)), tokenizer, **kind, encoding=encoding)
    for prompt, row in zip(prompts, encoded, strict=True):
        alone = encode_prompt(prompt, tokenizer, **kind, encoding=encoding)
        answer = encode_completion("True", tokenizer, prompt=prompt, **kind)
        assert len(alone) <= budget  # the prompt keeps its limit
        if seq2seq:
            assert (row["input_ids"], row["labels"]) == (alone, answer)
        else:  # the prompt of generation, then the whole answer; labels only on the answer
            assert row["input_ids"] == alone + answer
            assert row["labels"] == [-100] * len(alone) + answer


def test_truncation_gives_the_hand_built_ids():
    prompt = "a film, a team, a game"
    ids = LLAMA(prompt, add_special_tokens=False).input_ids
    bos, room = LLAMA.bos_token_id, len(ids) - 3
    middle = encode_prompt(prompt, LLAMA, encoder_decoder=False, encoding=Encoding(max_prompt_tokens=room + 1))
    head = room // 2
    assert middle == [bos, *ids[:head], *ids[head + 3 :]]
    end = Encoding(max_prompt_tokens=room + 1, truncation="end")
    assert encode_prompt(prompt, LLAMA, encoder_decoder=False, encoding=end) == [bos, *ids[:room]]
    assert encode_prompt(prompt, T5, encoder_decoder=True, encoding=end)[-1] == T5.eos_token_id


def test_middle_truncation_keeps_the_question_and_answer_colon():
    prompt = "What is the topic?\n" + "x " * 500 + "\nAnswer:"
    kept = {
        truncation: LLAMA.decode(
            encode_prompt(
                prompt,
                LLAMA,
                encoder_decoder=False,
                encoding=Encoding(max_prompt_tokens=60, truncation=truncation),
            ),
            skip_special_tokens=True,
        )
        for truncation in ("middle", "end")
    }
    assert kept["middle"].startswith("What is the topic?\n")
    assert kept["middle"].endswith("\nAnswer:")
    assert not kept["end"].endswith("Answer:")


def test_long_prompts_raise_no_warning(caplog):
    short = llama_tokenizer()
    short.model_max_length = 8
    encode_prompts(["a long prompt " * 20] * 2, short, encoder_decoder=False, encoding=BUDGET)
    assert not caplog.records


@pytest.mark.parametrize(("tokenizer", "seq2seq"), [(T5, True), (LLAMA, False)], ids=["t5", "llama"])
def test_an_answer_that_is_too_long_is_refused_and_never_truncated(tokenizer, seq2seq):
    data = rows((PROMPT, "True"), (PROMPT, "word " * 60))
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\) of the training rows: .* tokens including eos"):
        encode(data, tokenizer, encoder_decoder=seq2seq, encoding=BUDGET)
    length = len(encode_completion("True", tokenizer, prompt=PROMPT, encoder_decoder=seq2seq))
    exact = Encoding(max_completion_tokens=length)
    assert len(encode(data.select([0]), tokenizer, encoder_decoder=seq2seq, encoding=exact)) == 1
    with pytest.raises(DataError, match="row 0"):
        tight = Encoding(max_completion_tokens=length - 1)
        encode(data.select([0]), tokenizer, encoder_decoder=seq2seq, encoding=tight)


def test_no_room_for_a_prompt_and_no_eos_are_refused():
    with pytest.raises(ConfigError, match="max_prompt_tokens is 0"):
        Encoding(max_prompt_tokens=0)
    with pytest.raises(ConfigError, match="none is left for the prompt"):
        encode_prompt("x", LLAMA, encoder_decoder=False, encoding=Encoding(max_prompt_tokens=1))
    endless = llama_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no eos token"):
        encode_completion("x", endless, prompt="", encoder_decoder=False)


def test_batches_are_the_hand_built_ones():
    batch = Collator(9)([{"input_ids": [1, 2, 3], "labels": [4]}, {"input_ids": [5], "labels": [6, 7]}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3], [5, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[4, -100], [6, 7]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    ids, mask = pad_left([[1, 2, 3], [5]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [9, 9, 5]], [[1, 1, 1], [0, 0, 1]])


def test_the_collator_takes_rows_of_a_data_set():
    encoded = encode(rows((PROMPT, "True"), ("Hi", "no")), LLAMA, encoder_decoder=False, encoding=BUDGET)
    batch = Collator(LLAMA.pad_token_id)([encoded[0], encoded[1]])
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["attention_mask"].sum().item() == len(encoded[0]["input_ids"]) + len(encoded[1]["input_ids"])
    assert batch["labels"][1, batch["attention_mask"][1] == 0].eq(-100).all()

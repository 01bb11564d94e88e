"""What is said and refused before any training, of every part of a task that a score or a loss rests on."""

import pytest
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gorp.data import Encoding, Form, Task, encode, forms_of
from gorp.data.form import with_forms
from gorp.errors import DataError
from gorp.evaluation import EvalConfig, inspect_task
from tests.tokenizers_small import SENTENCES, llama_tokenizer


LLAMA = llama_tokenizer()


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like T5's: Unigram without bytes, with the special tokens among its pieces."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=list("</s>")
    )
    backend.train_from_iterator([*SENTENCES * 3, "</>"], trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


UNIGRAM = unigram_tokenizer()


def task(rows, *, evaluation=None, labels=None, metric="exact_match", forms=None) -> Task:
    def table(pairs):
        return with_forms([p for p, _ in pairs], [c for _, c in pairs], forms or [Form()] * len(pairs))

    train, held_out = table(rows), table(evaluation or rows)
    return Task(name="t", train=train, dev=None, eval=held_out, labels=labels, metric=metric, source="here")


def notes(of: Task, tokenizer=LLAMA, *, encoder_decoder=False, **settings) -> str:
    config = EvalConfig(max_new_tokens=settings.pop("max_new_tokens", None))
    encoding = Encoding(**settings)
    return "\n".join(inspect_task(of, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, config=config))


def test_valid_rows_give_no_notes():
    rows = [("Is the light red?", " True"), ("今天天气", "很好"), ("Say:", "\nyes\n")]
    assert notes(task(rows)) == ""


def test_truncated_prompts_are_counted_in_train_and_eval():
    rows = [("word " * 40, "a"), ("short", "b")]
    assert notes(task(rows), max_prompt_tokens=30).splitlines() == [
        "1 of 2 prompts of train exceed 30 tokens and lose their middle",
        "1 of 2 prompts of eval exceed 30 tokens and lose their middle",
    ]


@pytest.mark.parametrize("metric", ["exact_match", "label_ranking"])
def test_labels_that_the_tokenizer_cannot_encode_are_refused(metric):
    rows = [("Is it so?", "支持"), ("Is it?", "反对")]
    with pytest.raises(DataError, match=r"label `支持`: the tokenizer has no tokens for it \(it writes <unk>\)"):
        notes(task(rows, labels=("支持", "反对"), metric=metric), UNIGRAM, encoder_decoder=True)
    assert notes(task(rows, labels=("支持", "反对"), metric=metric)) == ""


def test_a_tokenizer_whose_unk_equals_eos_can_encode_all_text():
    tokenizer = llama_tokenizer()
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    assert notes(task([("a", "支持"), ("b", "反对")], labels=("支持", "反对")), tokenizer) == ""


def test_labels_with_the_same_tokens_are_refused():
    rows = [("a", "True"), ("b", "False")]
    with pytest.raises(DataError, match="labels `True` and ` True` have the same tokens"):
        notes(task(rows, labels=("True", " True", "False")), UNIGRAM, encoder_decoder=True)


def test_completions_that_the_tokenizer_changes_are_counted():
    rows = [("a", "支持"), ("b", "True"), ("c", "the market")]
    said = notes(task(rows), UNIGRAM, encoder_decoder=True)
    assert "1 of 3 completions of train are changed by the tokenizer: '支持' becomes ''" in said
    prompts = notes(task([("今天", "True"), ("b", "True")]), UNIGRAM, encoder_decoder=True)
    assert "1 of 2 prompts of train have text that the tokenizer reads as <unk>" in prompts


def test_names_of_special_tokens_are_counted_and_encoded_as_text():
    rows = [("plain", "True"), ("strike <s>it</s> out", "use <s>old</s>")]
    for tokenizer, seq2seq in ((LLAMA, False), (UNIGRAM, True)):
        of = task(rows)
        said = notes(of, tokenizer, encoder_decoder=seq2seq)
        first = "'</s>'" if tokenizer is UNIGRAM else "'<s>'"
        assert f"1 of 2 rows of train contain the name of a special token, the first {first} in row 1" in said
        row = encode(of.train, tokenizer, encoder_decoder=seq2seq, encoding=Encoding())[1]
        answer = [token for token in row["labels"] if token != -100]
        assert answer.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(answer, skip_special_tokens=True) == "use <s>old</s>"


def test_answers_over_the_generation_limit_are_counted():
    rows = [("a", "word " * 9), ("b", "True")]
    length = len(LLAMA("word " * 9, add_special_tokens=False).input_ids)
    said = notes(task(rows), max_new_tokens=length - 1)
    assert f"1 of 2 expected answers are longer than eval.max_new_tokens = {length - 1} tokens" in said
    assert notes(task(rows), max_new_tokens=length) == ""
    assert notes(task(rows, labels=("word " * 9, "True"), metric="label_ranking"), max_new_tokens=1) == ""
    held_out = task([("b", "True")], evaluation=rows)
    said = notes(held_out, max_completion_tokens=length - 1)
    assert f"longer than encoding.max_completion_tokens = {length - 1} tokens" in said


def test_a_train_answer_over_its_limit_is_refused():
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\) of the training rows: its completion has"):
        notes(task([("a", "b"), ("a", "word " * 60)]))


def test_a_chat_label_with_a_special_token_is_refused():
    of = {"labels": ("True", "False </s> x")}
    with pytest.raises(DataError, match=r"label `False </s> x` contains '</s>', which is a special token"):
        notes(task([("<s>Hi", "True")], forms=[Form(chat=True, end="</s>")], **of))
    assert "special token" not in notes(task([("Hi", "True")], **of))


def test_notes_report_what_a_chat_template_adds():
    form = Form(chat=True, lead="<think>\n\n</think>\n\n", end="</s>")
    said = notes(task([("<s>Hi", "True")], forms=[form]))
    assert (
        r"the chat template writes '<think>\n\n</think>\n\n' before an answer, but not at the end of a prompt" in said
    )
    assert "the chat template writes no end token after an answer; </s> is added" in said
    dated = llama_tokenizer()
    dated.chat_template = "{{ strftime_now('%Y') }}{{ eos_token }}"
    said = notes(task([("<s>Hi", "True")], forms=[Form(chat=True, end="</s>")]), dated)
    assert said == "the chat template writes the date; it gets 2025-01-01 (encoding.date)"


def test_a_task_without_train_rows_is_inspected_by_its_eval_rows():
    whole = task([("a", "word " * 9)])
    learned = Task(name="t", train=None, dev=None, eval=whole.eval, labels=None, metric="exact_match", source="here")
    assert "1 of 1 expected answers" in notes(learned, max_new_tokens=2)


def test_rows_with_and_without_a_form_can_be_concatenated():
    plain, chat = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}), with_forms(["a"], ["b"], [Form(chat=True)])
    assert forms_of(concatenate_datasets([plain, chat])) == [Form(), Form(chat=True)]

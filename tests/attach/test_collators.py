"""Batches of Hugging Face's own collators, which are no plain dicts, and rows that are no data loader."""

import pytest
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from gorp import Protection
from gorp.errors import ConfigError, TrainingError
from tests.runs import rows, tiny, tokenizer


def tokens(family: str, task: int, *, labels: bool) -> Dataset:
    """Rows as a user's `map` makes them: token ids, and labels unless the collator makes them."""
    tok, data = tokenizer(family), rows(task, 12)
    if family == "t5":
        return data.map(
            lambda row: {**tok(row["prompt"]), "labels": tok(row["completion"])["input_ids"]},
            remove_columns=data.column_names,
        )

    def encoded(row):
        found = tok(row["prompt"] + " " + row["completion"])
        return {**found, "labels": found["input_ids"]} if labels else {**found}

    return data.map(encoded, remove_columns=data.column_names)


@pytest.mark.parametrize("kind", ["seq2seq", "causal", "language modeling"])
def test_two_tasks_with_a_stock_collator(kind, tmp_path):
    family = "t5" if kind == "seq2seq" else "llama"
    tok = tokenizer(family)
    cls, arguments = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if family == "t5" else (Trainer, TrainingArguments)
    for task in (1, 2):
        collator = (
            DataCollatorForLanguageModeling(tok, mlm=False)
            if kind == "language modeling"
            else DataCollatorForSeq2Seq(tok, model=tiny(family))
        )
        protection = Protection(tmp_path / "protected")
        args = arguments(
            output_dir=str(tmp_path / f"out{task}"), max_steps=3, per_device_train_batch_size=4, learning_rate=5e-3,
            use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        data = tokens(family, task, labels=kind == "causal")
        cls(tiny(family), args, train_dataset=data, data_collator=collator, callbacks=[protection]).train()
        version = protection.save()
    assert version.name == "v2" and 0.0 < version.record["leak"] <= 1e-5


def test_rows_that_are_no_data_loader_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"rows is a list; wanted a torch\.utils\.data\.DataLoader"):
        Protection(tmp_path / "p").begin(tiny("llama"), rows=[{}], num_steps=1)  # pyright: ignore
    assert not (tmp_path / "p").exists()


def test_a_protection_that_is_added_later_says_where_it_belongs(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1)
    trainer = Trainer(tiny("llama"), args, train_dataset=tokens("llama", 1, labels=True))
    trainer.add_callback(Protection(tmp_path / "p"))
    with pytest.raises(TrainingError, match=r"after the Trainer was made \(`add_callback`\).*callbacks=\[protection\]"):
        trainer.train()


def test_a_task_that_was_not_trained_cannot_be_saved(tmp_path):
    with pytest.raises(TrainingError, match=r"it has not begun\. Call trainer\.train\(\) first"):
        Protection(tmp_path / "p").save()


def test_save_says_what_was_saved_and_what_to_serve(tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    protection = Protection(tmp_path / "p", task="october")
    args = TrainingArguments(output_dir=str(tmp_path / "o"), use_cpu=True, report_to="none", max_steps=1)
    data, collator = tokens("llama", 1, labels=False), DataCollatorForLanguageModeling(tokenizer("llama"), mlm=False)
    Trainer(model, args, train_dataset=data, data_collator=collator, callbacks=[protection]).train()
    assert repr(protection.save()).count("\n") == 0 and len(repr(protection.folder.current)) < 400
    printed = capsys.readouterr().out
    assert f"gorp: task `october` is saved as v1 in {tmp_path / 'p'}" in printed
    assert f"`gorp export {tmp_path / 'p'}`" in printed


def test_rows_without_a_label_are_refused_before_the_first_step(tmp_path):
    data = tokens("llama", 1, labels=True).map(lambda row: {"labels": [-100] * len(row["input_ids"])})
    args = TrainingArguments(output_dir=str(tmp_path / "o"), use_cpu=True, report_to="none", max_steps=1)
    protection = Protection(tmp_path / "p")
    collator = DataCollatorForSeq2Seq(tokenizer("llama"))
    trainer = Trainer(tiny("llama"), args, train_dataset=data, data_collator=collator, callbacks=[protection])
    with pytest.raises(ConfigError, match="no row of the training data has a label"):
        trainer.train()
    assert not (tmp_path / "p").exists()


def test_clipping_is_back_after_an_error_within_a_step(tmp_path):
    data, collator = tokens("llama", 1, labels=False), DataCollatorForLanguageModeling(tokenizer("llama"), mlm=False)
    args = TrainingArguments(
        output_dir=str(tmp_path / "o"), use_cpu=True, report_to="none", max_steps=2, max_grad_norm=0.25,
        save_strategy="no",
    )  # fmt: skip
    model = tiny("llama")
    trainer = Trainer(model, args, train_dataset=data, data_collator=collator, callbacks=[Protection(tmp_path / "p")])

    def fails(*_):
        raise KeyboardInterrupt

    handle = model.get_output_embeddings().register_forward_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    again = Protection(tmp_path / "p")
    Trainer(tiny("llama"), args, train_dataset=data, data_collator=collator, callbacks=[again]).train()
    assert again._limit == 0.25 and args.max_grad_norm == 0.25

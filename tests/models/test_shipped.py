"""The shipped model: its size, plain loading, answers that end, and a task learned in seconds."""

import json

import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gorp.data import Encoding, TaskSpec, load_task
from gorp.methods import METHODS
from gorp.models.load import SHIPPED, SHIPPED_FOLDER, ModelConfig, load_model
from gorp.training import train_task
from tests.one_row import encode_completion


FOLDER = SHIPPED_FOLDER / SHIPPED

QUESTION = "Which word comes nearest to the text? Choose one from the option.\nOption: {} \n{}\nAnswer:"

ASKED = [
    (("music", "sea"), "The ship lay in the harbour, and the sailors looked at the waves.", "sea"),
    (("music", "sea"), "She played the violin, and the orchestra followed.", "music"),
    (("kitchen", "war"), "The army marched through the night to meet the enemy's soldiers.", "war"),
    (("kitchen", "war"), "Bake the bread in the oven and let the soup boil.", "kitchen"),
]


@torch.no_grad()
def loss(model, tokenizer, prompt, answer) -> float:
    """Of an answer after a prompt."""
    ids = torch.tensor([encode_completion(answer, tokenizer, prompt=":", encoder_decoder=True)])
    return model(input_ids=prompt, labels=ids).loss.item()


def test_it_stays_under_32_mb():
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) < 32e6
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {file.name for file in files}


def test_plain_transformers_reads_it_and_answers_end():
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert 8e6 < model.num_parameters() < 16e6 and model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"  # two thirds of a step's time, bfloat16 on a CPU
    right = 0
    for options, text, answer in ASKED:
        prompt = tokenizer(QUESTION.format(", ".join(options), text), return_tensors="pt")
        out = model.float().generate(**prompt, max_new_tokens=20, do_sample=False)[0]
        assert out[-1] == tokenizer.eos_token_id
        right += min(options, key=lambda option, ids=prompt["input_ids"]: loss(model, tokenizer, ids, option)) == answer
    assert right >= 3


def test_text_comes_back_but_for_its_capitals():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = "a café, 12 % of it: naïve & <odd> 北京?\nnext line"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("é", "e").replace("ï", "i")


def test_gorp_teaches_it_a_task(tmp_path):
    model, tokenizer = load_model(ModelConfig(path=SHIPPED), "cpu")
    places, sounds = ("the sea", "a river", "an island", "the beach"), ("a song", "the violin", "an opera", "a choir")
    kinds = [(thing, kind) for kind, things in (("place", places), ("sound", sounds)) for thing in things]
    rows = [{"prompt": f"What is {thing}?\nAnswer:", "completion": kind} for thing, kind in kinds] * 4
    method = METHODS["gorp"](METHODS["gorp"].Config(full_modules="all-linear"))
    method.setup(model)
    result = train_task(
        model, tokenizer, method, Dataset.from_list(rows), name="kinds", index=1, seed=0,
        training={"learning_rate": 1e-3, "num_train_epochs": 6, "per_device_train_batch_size": 8},
        encoding=Encoding(), folder=tmp_path,
    )  # fmt: skip
    assert result.steps == 24
    with method.serving(model) as serving:
        for thing, kind in (("the lake", "place"), ("a melody", "sound")):
            prompt = tokenizer(f"What is {thing}?\nAnswer:", return_tensors="pt")
            out = serving.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
            assert tokenizer.decode(out, skip_special_tokens=True).strip() == kind


def test_conversations_can_be_tried_with_it(tmp_path):
    turns = [("system", "Be short."), ("user", "Is tea hot?"), ("assistant", "Yes."), ("user", "Is ice?")]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "No.")]]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    path = str(tmp_path / "chat.jsonl")
    task = load_task(TaskSpec(name="chat", train=path, eval=path, dev_rows=0), tokenizer=tokenizer)
    assert task.train["prompt"] == ["System: Be short.\nUser: Is tea hot?\nAssistant: Yes.\nUser: Is ice?\nAssistant:"]
    assert task.train["completion"] == ["No."]
    assert task.train["form"] == [{"chat": True, "lead": " ", "end": tokenizer.eos_token}]

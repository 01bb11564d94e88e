"""What holds on the tiny models holds on a real one: SmolLM2-135M-Instruct, as `make model` writes it.

    make model && .venv/bin/pytest -m slow tests/test_smollm2.py         seven minutes on two cores

GORP_SMOLLM2 names another folder of the model.
"""

import os
from pathlib import Path

import pytest
import torch

from gorp.data import Encoding, Form, encode, encode_prompts
from gorp.evaluation import EvalConfig, generate_answers, rank_labels
from gorp.layers.lora import LoraSettings
from gorp.models.load import ModelConfig, load_model
from gorp.training import train_task
from tests.runs import ANSWERS, Kill, Killed, assert_equal, fresh, rows, through_a_file


ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("GORP_SMOLLM2", ROOT / "models" / "SmolLM2-135M-Instruct"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"there is no folder {FOLDER}; `make model` writes it"),
]
ENCODING = Encoding(max_prompt_tokens=64)
CONFIG = EvalConfig(max_new_tokens=8)
TRAINING = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 4,
    "learning_rate": 1e-3,
    "save_strategy": "no",
}


def loaded():
    return load_model(ModelConfig(path=str(FOLDER)), "cpu")


def gorp(model):
    return fresh("gorp", model, lora=LoraSettings(target_modules="all-linear", r=4))


def train(model, tokenizer, method, task, folder, *, callbacks=(), **training):
    return train_task(
        model,
        tokenizer,
        method,
        rows(task),
        name=f"task{task}",
        index=task,
        seed=7,
        training=TRAINING | training,
        encoding=ENCODING,
        folder=folder,
        callbacks=callbacks,
    )


def right(method, model, tokenizer, task):
    """Percent of the task's rows that are answered right."""
    data = rows(task)
    with method.serving(model) as served:
        answers = generate_answers(served, tokenizer, list(data["prompt"]), encoding=ENCODING, config=CONFIG)
    return 100 * sum(a == b for a, b in zip(answers, data["completion"], strict=True)) / len(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two tasks in a row: what the method was between them, the model, and the scores."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = loaded()
    method = gorp(model)
    train(model, tokenizer, method, 1, folder / "one")
    between = {name: x.clone() for name, x in method.state_dict().items()}
    first = right(method, model, tokenizer, 1)
    result = train(model, tokenizer, method, 2, folder / "two")
    scores = {"first": first, "second": right(method, model, tokenizer, 2), "kept": right(method, model, tokenizer, 1)}
    with method.serving(model) as served:
        weights = {name: x.clone() for name, x in served.state_dict().items()}
    return {
        "model": model,
        "tokenizer": tokenizer,
        "method": method,
        "between": between,
        "result": result,
        "scores": scores,
        "weights": weights,
        "state": {name: x.clone() for name, x in method.state_dict().items()},
    }


def test_two_tasks_are_learned_and_the_first_is_kept(run):
    assert run["result"].facts["leak"] < 1e-5
    assert run["scores"]["first"] >= 80 and run["scores"]["second"] >= 80
    assert run["scores"]["kept"] - run["scores"]["first"] >= -10  # BWT of two tasks


def test_a_run_that_was_cut_off_ends_with_the_same_bits(run, tmp_path):
    between = through_a_file(run["between"], tmp_path / "method.safetensors")
    training = {"save_strategy": "steps", "save_steps": 3}

    def begun():
        model, tokenizer = loaded()
        method = gorp(model)
        method.load_state_dict(between)
        return model, tokenizer, method

    with pytest.raises(Killed):
        train(*begun(), 2, tmp_path / "two", callbacks=(Kill(4, unsaved=True),), **training)
    model, tokenizer, method = begun()
    result = train(model, tokenizer, method, 2, tmp_path / "two", **training)
    assert result.resumed_at == 3
    with method.serving(model) as served:
        assert_equal(served.state_dict(), run["weights"])
    assert_equal(method.state_dict(), run["state"])


def test_the_served_model_is_saved_and_loaded_to_the_same_bits(run, tmp_path):
    with run["method"].serving(run["model"]) as served:
        served.save_pretrained(tmp_path)
    run["tokenizer"].save_pretrained(tmp_path)
    again, tokenizer = load_model(ModelConfig(path=str(tmp_path)), "cpu")
    assert_equal(again.state_dict(), run["weights"])
    prompts = list(rows(2)["prompt"])[:6]
    asked = {"encoding": ENCODING, "config": CONFIG}
    with run["method"].serving(run["model"]) as served:
        expected = generate_answers(served, run["tokenizer"], prompts, **asked)
    assert generate_answers(again, tokenizer, prompts, **asked) == expected


def test_the_score_of_a_label_is_minus_its_loss(run):
    data = rows(1, 6)
    with run["method"].serving(run["model"]) as model, torch.no_grad():
        ranked = rank_labels(model, run["tokenizer"], list(data["prompt"]), ANSWERS, encoding=ENCODING, config=CONFIG)
        encoded = encode(data, run["tokenizer"], encoder_decoder=False, encoding=ENCODING)
        for row, label, scores in zip(encoded, data["completion"], ranked, strict=True):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            loss = model(input_ids=ids, labels=labels).loss * int((labels != -100).sum())
            assert scores[label] == pytest.approx(-float(loss), rel=1e-3, abs=1e-3)


def test_a_chat_answer_ends_by_itself_and_a_batch_has_the_tokens_of_generate():
    model, tokenizer = loaded()
    asked = ["What is the capital of France?", "Say hello.", "Name a colour, in one word."]
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in asked
    ]
    how = {"encoding": Encoding(max_prompt_tokens=128), "forms": [Form(chat=True, end="<|im_end|>")] * len(chats)}
    ids = encode_prompts(chats, tokenizer, encoder_decoder=False, **how)
    answers = generate_answers(model, tokenizer, chats, config=EvalConfig(max_new_tokens=60), **how)
    for row, answer in zip(ids, answers, strict=True):
        new = model.generate(torch.tensor([row]), max_new_tokens=60, do_sample=False)[0, len(row) :]
        assert answer == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert len(new) < 60 and int(new[-1]) == tokenizer.eos_token_id

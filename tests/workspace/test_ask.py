"""`gorp ask`: a question is rendered as its task was trained, and answered as its rows were scored."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gorp.errors import CheckpointError, ConfigError, DataError
from gorp.workspace import Workspace, load_config, run_sequence
from gorp.workspace.ask import Answerer
from tests.command import gorp
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import CHAT_TEMPLATE, llama_tokenizer, t5_tokenizer
from tests.workspace.project import make_project, tree_hash, write_config


SYSTEM = "Answer with one word."


def rows_of(form, part):
    """Rows of each format; the eval rows differ from the training rows."""
    count, start = (12, 0) if part == "train" else (5, 100)
    for i in range(start, start + count):
        text, answer = f"Is the light {i} {('green', 'red')[i % 2]}?", ("true", "false")[i % 2]
        if form == "plain":
            yield {"prompt": f"{text} Answer:", "completion": f" {answer}", "id": i}
        elif form == "chat":
            before = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "good"}] * (i % 3 == 0)
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            yield {"messages": [{"role": "system", "content": SYSTEM}, *before, *turns]}
        elif form == "sharegpt":
            yield {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]}
        elif form == "alpaca":
            yield {"instruction": text, "input": "The lamp is old." if i % 2 else "", "output": answer}
        elif form == "own":  # a template of two columns, one of them renamed
            yield {"where": f"Street {i}", "question": text, "label": answer}
        else:
            yield {"text": text, "label": answer}


TASKS = {
    "plain": {},
    "chat": {},
    "sharegpt": {},
    "alpaca": {},
    "own": {"template": "{place}: {question}\nSay:", "columns": {"where": "place"}},
    "labelled": {},
    "ranked": {"metric": "label_ranking", "labels": ["true", "false"]},
}


@pytest.fixture(scope="module", params=["t5", "llama"])
def asked(request, tmp_path_factory):
    """A project whose tasks have one row format each, all learned together as v1; its workspace is `run`."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = t5_tokenizer() if request.param == "t5" else llama_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    make_project(folder)
    (tiny_t5 if request.param == "t5" else tiny_llama)(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tasks = []
    for form, options in TASKS.items():
        for part in ("train", "eval"):
            lines = "".join(json.dumps(row) + "\n" for row in rows_of(form, part))
            (folder / f"{form}_{part}.jsonl").write_text(lines)
        tasks.append({"name": form, "train": f"{form}_train.jsonl", "eval": f"{form}_eval.jsonl"} | options)
    path = write_config(folder, tasks=tasks, method={"name": "multi_task"}, encoding={"max_prompt_tokens": 96})
    run_sequence(load_config(path), folder / "run")
    for form in TASKS:  # the form comes from the workspace alone
        for part in ("train", "eval"):
            (folder / f"{form}_{part}.jsonl").unlink()
    return folder


def recorded(folder, task, version="v1"):
    lines = (folder / f"run/eval/samples/{version}-{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("form", TASKS)
def test_an_eval_row_gets_the_recorded_answer(asked, form):
    answerer = Answerer.load(asked / "run", task=form)
    assert (answerer.version, answerer.task, answerer.layout.notes) == ("v1", form, ())
    for row, sample in zip(rows_of(form, "eval"), recorded(asked, form), strict=True):
        answer = answerer(row)
        assert (answer.prompt, answer.text, answer.is_cut) == (sample["prompt"], sample["answer"], False)
        assert answerer.layout.read(json.dumps(row)) == row


def test_one_text_is_the_question_of_a_row(asked):
    """The text takes the place of the row's only required column; in a chat it follows the system text."""
    column = {"plain": "prompt", "alpaca": "instruction", "labelled": "text", "ranked": "text"}
    for form, name in column.items():
        answerer = Answerer.load(asked / "run", task=form)
        row = next(rows_of(form, "eval"))
        assert answerer(row[name]).text == recorded(asked, form)[0]["answer"]
    chat, row = Answerer.load(asked / "run", task="chat"), next(rows_of("chat", "eval"))
    assert len(row["messages"]) == 3 and chat.layout.system == SYSTEM
    assert chat(row["messages"][1]["content"]).prompt == recorded(asked, "chat")[0]["prompt"]
    assert Answerer.load(asked / "run", task="sharegpt").layout.system is None


def test_a_conversation_keeps_its_turns(asked):
    chat = Answerer.load(asked / "run", task="chat")
    turns = chat.layout.turns("Hello.")
    turns = chat.layout.turns("Is it red?", [*turns, {"role": "assistant", "content": "good"}])
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    prompt = chat(turns).prompt
    assert prompt.endswith("<|user|>\nHello.\n<|assistant|>\ngood\n<|user|>\nIs it red?\n<|assistant|>\n")


def test_a_prompt_over_the_budget_is_answered_as_in_scoring_and_said(asked):
    answerer = Answerer.load(asked / "run", task="plain")
    long = "The light is green. " * 60
    answer = answerer(long)
    assert answer.is_cut and answer.prompt_tokens > answer.max_prompt_tokens == 96
    done = gorp("ask", asked / "run", long, "--task", "plain")
    assert done.exit_code == 0 and f"the prompt has {answer.prompt_tokens} tokens" in done.stderr
    assert "did not read its middle" in done.stderr


def test_the_newest_task_is_the_default_and_the_base_model_can_be_asked(asked):
    assert Answerer.load(asked / "run").task == "ranked"
    base = Answerer.load(asked / "run", version="v0")
    assert (base.version, base.task) == ("v0", "ranked")
    plain = Answerer.load(asked / "run", version="v0", task="plain")
    for row, sample in zip(rows_of("plain", "eval"), recorded(asked, "plain", "v0"), strict=True):
        assert plain(row).text == sample["answer"]


@pytest.fixture
def project(asked, tmp_path):
    """A copy of the project, to change."""
    shutil.copytree(asked, tmp_path / "p")
    return tmp_path / "p"


def test_impossible_questions_say_what_is_wanted(asked):
    own = Answerer.load(asked / "run", task="own")
    with pytest.raises(DataError, match=r"columns place, question.*\{\"place\": \"...\", \"question\": \"...\"\}"):
        own("Is the light red?")
    with pytest.raises(DataError, match="no column `place`"):
        own({"question": "Is it?"})
    with pytest.raises(DataError, match="was not trained on chats"):
        own([{"role": "user", "content": "Hello."}])
    with pytest.raises(DataError, match="blank"):
        own(" \n")
    with pytest.raises(ConfigError, match=r"no learned task `chta`.*Did you mean `chat`"):
        Answerer.load(asked / "run", task="chta")
    with pytest.raises(ConfigError, match="no version `v99`"):
        Answerer.load(asked / "run", version="v99")
    with pytest.raises(DataError, match="special token"):
        Answerer.load(asked / "run", task="chat")("What is </s>?")
    ranked = Answerer.load(asked / "run", task="ranked")
    with pytest.raises(ConfigError, match="most likely of its labels"):
        ranked("Is the light red?", max_new_tokens=3)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        own({"place": "Here", "question": "Is it?"}, max_new_tokens=0)


def test_without_kept_rows_the_form_is_not_known(project):
    path = project / "run/eval/rows/chat.json"
    path.write_text(path.read_text().replace("Answer with", "Reply with", 1))
    with pytest.raises(CheckpointError, match=r"chat\.json: damaged or changed"):
        Answerer.load(project / "run", task="chat")
    path.unlink()
    with pytest.raises(ConfigError, match="no rows of chat are kept"):
        Answerer.load(project / "run", task="chat")


def test_a_moved_base_model_is_given_with_base(project):
    (project / "model").rename(project / "elsewhere")
    assert gorp("ask", project / "run", "Is it red?").exit_code != 0
    done = gorp("ask", project / "run", "Is it red?", "--base", project / "elsewhere")
    assert done.exit_code == 0 and done.stdout.strip() in ("true", "false")


def test_the_command_prints_the_answer_alone_and_writes_nothing(asked):
    before = tree_hash(asked)
    row = next(rows_of("plain", "eval"))
    sample = recorded(asked, "plain")[0]
    done = gorp("ask", asked / "run", row["prompt"], "--task", "plain", "--json")
    found = json.loads(done.stdout)
    assert found["answer"] == sample["answer"] and found["prompt"] == sample["prompt"] and not found["cut"]
    assert (found["version"], found["task"]) == ("v1", "plain")
    piped = gorp("ask", asked / "run", "--task", "plain", input=row["prompt"] + "\n")
    assert piped.exit_code == 0 and piped.stdout == sample["answer"] + "\n"
    short = gorp("ask", asked / "run", row["prompt"], "--task", "plain", "--max-new-tokens", "1")
    assert short.exit_code == 0 and len(short.stdout) <= len(piped.stdout)
    assert gorp("ask", asked / "run", input="").exit_code == 2
    assert tree_hash(asked) == before


def test_answers_cannot_control_the_terminal(asked, monkeypatch):
    monkeypatch.setattr("gorp.workspace.ask.generate_answers", lambda *_, **__: ["\x1b[2Jred"])
    assert gorp("ask", asked / "run", "Hello.", "--task", "plain").stdout == "�[2Jred\n"


LINES = "Is it red?\n\nWhat is </s>?\nAnd green?\n"
"""What is typed: the blank line is no turn, and the third one is refused, for it names a special token."""


def check_conversation(out, err):
    first, second = [json.loads(line) for line in out.splitlines()]
    assert "the turns so far are kept" in err and "special token" in err
    assert first["prompt"] == f"<|system|>\n{SYSTEM}\n<|user|>\nIs it red?\n<|assistant|>\n"
    assert second["prompt"].startswith(first["prompt"] + first["answer"])
    assert second["prompt"].endswith("<|user|>\nAnd green?\n<|assistant|>\n")


def test_each_line_is_answered_until_ctrl_d_and_a_refused_one_does_not_end_it(asked, monkeypatch):
    monkeypatch.setattr("gorp.cli.ask._is_terminal", lambda: True)
    done = gorp("ask", asked / "run", "--task", "chat", "--json", input=LINES)
    assert done.exit_code == 0
    check_conversation(done.stdout, done.stderr)
    plain = gorp("ask", asked / "run", "--task", "plain", "--json", input="One. Answer:\nTwo. Answer:\n")
    assert [json.loads(line)["prompt"] for line in plain.stdout.splitlines()] == ["One. Answer:", "Two. Answer:"]
    assert "each line is a prompt of its own" in plain.stderr


@pytest.mark.slow
def test_on_a_real_terminal(asked):
    terminal, inside = pty.openpty()
    command = [sys.executable, "-m", "gorp", "ask", str(asked / "run"), "--task", "chat", "--json"]
    process = subprocess.Popen(command, stdin=inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(inside)
    os.write(terminal, (LINES + "\x04").encode())
    out, err = process.communicate(timeout=120)
    os.close(terminal)
    assert process.returncode == 0, err
    check_conversation(out, err)


def test_a_protection_folder_says_why_it_cannot_be_asked(asked, tmp_path):
    store = Workspace(tmp_path / "protected")
    with store.writing():
        record = dict(Workspace(asked / "run").version("v0").record) | {"made_by": "protection"}
        store.publish("v0", {key: value for key, value in record.items() if key not in ("sha256", "version")})
    with pytest.raises(ConfigError, match=r"protection folder.*not known how their prompts were made"):
        Answerer.load(Path(store.root))

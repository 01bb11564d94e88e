"""The YAML that `gorp init` writes is read without change, and trains."""

import json
from pathlib import Path

import pytest
import yaml

from gorp.errors import ConfigError, DataError
from gorp.workspace import add_task, init_config, load_config, plan, run_sequence, validate
from tests.workspace.project import save_model, write_rows


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder with a model and files of rows, which is the current one."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    for number, name in enumerate(("one", "two_train"), 1):
        write_rows(tmp_path / f"{name}.jsonl", number, 24)
    write_rows(tmp_path / "two_test.jsonl", 2, 6)
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    Path("chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    return tmp_path


def test_what_is_written_is_read(rows):
    found = init_config("model", ["one.jsonl", "two_test.jsonl", "two_train.jsonl"], Path("bot.yaml"))
    assert [(each["name"], each["eval"], each["format"]) for each in found["tasks"]] == [
        ("one", None, "text_label"),
        ("two", "two_test.jsonl", "text_label"),
    ]
    text = Path("bot.yaml").read_text()
    assert text == found["text"] and "{name: two, train: two_train.jsonl, eval: two_test.jsonl}" in text
    config = load_config(Path("bot.yaml"))
    assert config.model.path == str(rows / "model") and config.training["num_train_epochs"] == 4
    assert [spec.train for spec in config.tasks] == [str(rows / "one.jsonl"), str(rows / "two_train.jsonl")]
    assert plan(config, Path("bot"))[0] == ["one", "two"]


@pytest.mark.slow
def test_what_is_written_trains(rows):
    init_config("model", ["one.jsonl", "two_test.jsonl", "two_train.jsonl"], Path("bot.yaml"))
    assert validate(Path("bot.yaml"))["problems"] == []
    matrix = run_sequence(load_config(Path("bot.yaml")), Path("bot")).matrix
    assert list(matrix.tasks) == ["one", "two"] and len(matrix.R) == 3


def test_without_files_the_first_task_is_added(rows):
    init_config("gorp-tiny-t5", [], Path("bot.yaml"))
    with pytest.raises(ConfigError, match="at least one task"):
        load_config(Path("bot.yaml"))
    assert add_task(Path("bot.yaml"), "one", "one.jsonl")["written"]
    assert Path("bot.yaml").read_text().endswith("appends one\n  - {name: one, train: one.jsonl}\n")
    assert plan(load_config(Path("bot.yaml")), Path("bot"))[0] == ["one"]


def test_a_hub_id_is_written_as_it_is_and_conversations_may_have_long_answers(rows):
    found = init_config("Qwen/Qwen3-0.6B", ["chat.jsonl"], rows / "bot.yaml")
    config = load_config(rows / "bot.yaml")
    assert (config.model.path, config.model.dtype) == ("Qwen/Qwen3-0.6B", "auto")
    assert config.encoding.max_completion_tokens == 256 and found["tasks"][0]["format"] == "messages"


def test_paths_are_relative_to_the_yaml(rows):
    (rows / "sub").mkdir()
    init_config("model", ["one.jsonl"], Path("sub/bot.yaml"))
    block = yaml.safe_load(Path("sub/bot.yaml").read_text())
    assert block["model"]["path"] == str(rows / "model") and block["tasks"][0]["train"] == str(rows / "one.jsonl")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (["two_test.jsonl"], ConfigError, "no file with the training rows of `two`"),
        (["one.jsonl", "one.jsonl"], ConfigError, "both are rows of the task `one`"),
        (["gone.jsonl"], DataError, "no such file"),
        (["empty.jsonl"], DataError, "empty"),
        (["odd.jsonl"], DataError, "fit no format"),
        (["chat.jsonl", "chat_test.jsonl"], ConfigError, "format text_label, but those of chat.jsonl are messages"),
    ],
)
def test_files_that_make_no_tasks_are_refused_and_nothing_is_written(rows, files, error, message):
    Path("empty.jsonl").touch()
    Path("odd.jsonl").write_text('{"question": "x"}\n')
    write_rows(rows / "chat_test.jsonl", 1, 3)
    with pytest.raises(error, match=message):
        init_config("model", files, Path("bot.yaml"))
    assert not Path("bot.yaml").exists()


def test_a_misspelt_name_of_the_shipped_model_is_no_hub_id(rows):
    with pytest.raises(ConfigError, match=r"not the shipped model\. Did you mean `gorp-tiny-t5`\?"):
        init_config("gorp-tiny-t6", [], Path("bot.yaml"))
    assert not Path("bot.yaml").exists()


def test_a_yaml_is_not_overwritten_and_a_dry_run_writes_nothing(rows):
    assert "one.jsonl" in init_config("model", ["one.jsonl"], Path("bot.yaml"), dry_run=True)["text"]
    assert not Path("bot.yaml").exists()
    Path("bot.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="not overwritten"):
        init_config("model", ["one.jsonl"], Path("bot.yaml"))
    assert Path("bot.yaml").read_text() == "mine"


def test_a_file_name_becomes_a_name_that_a_task_may_have(rows):
    write_rows(rows / "März & Co.jsonl", 1, 24)
    init_config("model", ["März & Co.jsonl"], Path("bot.yaml"))
    [spec] = load_config(Path("bot.yaml")).tasks
    assert (spec.name, Path(spec.train).name) == ("M-rz-Co", "März & Co.jsonl")

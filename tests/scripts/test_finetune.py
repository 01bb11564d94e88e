"""Fine-tuning for measurement: rates are chosen on development rows, test rows are seen with the chosen one only."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, LlamaForCausalLM

from scripts.pretrain.__main__ import parser
from scripts.pretrain.card import with_learned
from scripts.pretrain.finetune import RATES, Question
from scripts.pretrain.models import llama_config
from scripts.pretrain.tokenizer import for_model, train_tokenizer


@pytest.fixture(scope="module")
def folders(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A task of two labels, and a model of a few thousand weights."""
    root = tmp_path_factory.mktemp("finetune")
    task = root / "data" / "weather"
    task.mkdir(parents=True)
    (task / "labels.json").write_text('["good", "bad"]')
    (task / "task.json").write_text('{"category": "SC", "dataset": "weather"}')
    rows = [{"sentence": f"{('sun', 'rain')[number % 2]} {number}", "label": ("good", "bad")[number % 2]}
            for number in range(40)]  # fmt: skip
    for split, chosen in (("train", rows[:30]), ("test", rows[30:])):
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    pieces = AutoTokenizer.from_pretrained(encoder).backend_tokenizer
    tokenizer = train_tokenizer([row["sentence"] for row in rows], pieces, 500)
    config = BertConfig(hidden_size=16, num_hidden_layers=0, num_attention_heads=4, intermediate_size=16)
    model = LlamaForCausalLM(llama_config(config, tokenizer.get_vocab_size()))
    model.save_pretrained(root / "model")
    for_model(tokenizer, "llama", 256).save_pretrained(root / "model")
    return root / "data", root / "model"


def test_the_rate_is_chosen_on_development_rows(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = folders
    command = ["finetune", str(model), "--data", str(data), "--out", str(tmp_path), "--tasks", "weather"]
    command += ["--rates", "0.001", "0.002"]
    arguments = parser().parse_args([*command, "--seeds", "0", "--dev-rows", "6", "--threads", "1"])
    arguments.command(arguments)
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("incremental_lora-*.json")]
    for random_weights in (False, True):
        mine = [run for run in runs if run["cell"]["random_weights"] == random_weights]
        trials = [run for run in mine if run["cell"]["split"] == "dev"]
        assert sorted(run["cell"]["training"]["learning_rate"] for run in trials) == [0.001, 0.002]
        best = max(run["ap"] for run in trials)
        chosen = {run["cell"]["training"]["learning_rate"] for run in trials if run["ap"] == best}
        reported = [run["cell"] for run in mine if run["cell"]["split"] == "eval"]
        assert sorted(cell["seed"] for cell in reported) == [0]
        rates = {cell["training"]["learning_rate"] for cell in reported}
        assert len(rates) == 1 and rates <= chosen
    table = json.loads((tmp_path / "table.json").read_text())
    assert [(row["task"], row["weights"], row["seeds"]) for row in table] == [
        ("weather", "pretrained", 1),
        ("weather", "random", 1),
    ]
    # What is there is not run again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("incremental_lora-*.json")}
    arguments.command(arguments)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("incremental_lora-*.json")}
    assert "| weather | pretrained |" in capsys.readouterr().out


def test_the_table_stands_once_at_the_end_of_the_card() -> None:
    rows = [
        {"task": "agnews", "weights": "pretrained", "rate": 1e-3, "mean": 85.13, "deviation": 0.25, "seeds": 3},
        {"task": "agnews", "weights": "random", "rate": 5e-4, "mean": 26.0, "deviation": 0.0, "seeds": 1},
        {"task": "yelp", "weights": "pretrained", "rate": 2e-3, "mean": 46.0, "deviation": 1.0, "seeds": 3},
    ]
    cell = Question(model="a model", task="agnews", random_weights=False, tokens=192, dev_rows=50).cell(1e-3, 0, "eval")
    once = with_learned("# a model\n\ntext\n", rows, RATES, cell)
    assert once.startswith("# a model\n\ntext\n\n## What it learns\n")
    assert "| agnews | 85.1 ± 0.2 (3) | 0.001 | 26.0 (1) | 0.0005 |\n" in once
    assert once.endswith("| yelp | 46.0 ± 1.0 (3) | 0.002 | – | – |\n")
    text = " ".join(once.split())
    assert "at most 192 tokens" in text and "on 50 rows cut" in text and "up to 1000 test rows" in text
    assert "dbpedia" not in once
    assert with_learned(once, rows, RATES, cell) == once


def test_a_missing_card_is_said_before_the_runs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, model = folders
    command = ["finetune", str(model), "--data", str(data), "--out", str(tmp_path / "out"), "--card"]
    arguments = parser().parse_args([*command, "--tasks", "weather"])
    with pytest.raises(FileNotFoundError, match="--card writes the table into it"):
        arguments.command(arguments)
    assert not (tmp_path / "out").exists()


def test_a_task_is_filled_up_to_so_many_rows_of_a_label(tmp_path: Path) -> None:
    task = tmp_path / "cl15" / "weather"
    task.mkdir(parents=True)
    for name in ("labels.json", "task.json", "test.jsonl"):
        (task / name).write_text(name)

    def write(name: str, rows: list[tuple[str, str]]) -> None:
        text = "".join(json.dumps({"sentence": one, "label": label}) + "\n" for one, label in rows)
        (task / name).write_text(text)

    write("train.jsonl", [("a", "good"), ("b", "good"), ("c", "good"), ("d", "bad")])
    write("train_extra_one.jsonl", [("e", "good"), ("f", "bad"), ("g", "bad")])
    arguments = parser().parse_args(
        ["fill", str(task.parent), str(tmp_path / "out"), "--tasks", "weather", "--per-label", "2"]
    )
    arguments.command(arguments)
    written = [json.loads(line)["sentence"] for line in (tmp_path / "out/weather/train.jsonl").read_text().splitlines()]
    assert written == ["a", "b", "c", "d", "f"]
    assert (tmp_path / "out/weather/test.jsonl").read_text() == "test.jsonl"
    with pytest.raises(FileExistsError):
        arguments.command(arguments)

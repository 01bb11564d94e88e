"""The README's code runs as it stands, with a user's files beside it and, for the hub model, a small local one."""

import json
import re
from pathlib import Path

import pytest
import yaml

from gorp.cli import app
from gorp.workspace import load_config, run_sequence
from tests.models_small import tiny_llama
from tests.tokenizers_small import llama_tokenizer


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first code block in `language` that is a file or a program, not the two make commands."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)
    return next(text for text in blocks if "make demo" not in text)


@pytest.fixture
def months(tmp_path, monkeypatch):
    for name in ("october", "november"):
        rows = [{"prompt": f"Case {i} of {name}. Answer:", "completion": ("yes", "no")[i % 2]} for i in range(40)]
        for part in (name, f"{name}_test"):
            lines = "\n".join(json.dumps(row | {"prompt": f"{part}: {row['prompt']}"}) for row in rows)
            (tmp_path / f"{part}.jsonl").write_text(lines + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_yaml_trains_both_months(months):
    tokenizer = llama_tokenizer()
    tiny_llama(tokenizer).save_pretrained("small")
    tokenizer.save_pretrained("small")
    config = yaml.safe_load(block("yaml"))
    config["model"]["path"] = "small"  # no hub here
    Path("bot.yaml").write_text(yaml.safe_dump(config))
    matrix = run_sequence(load_config(Path("bot.yaml")), Path("bot")).matrix
    assert matrix.tasks == ["october", "november"]
    assert (months / "bot/versions/v2/version.json").exists()


def test_the_python_runs_and_prints_leaks_below_the_promise(months, capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    first, second = capsys.readouterr().out.split()
    assert first == "None"
    assert 0.0 < float(second) <= 1e-5


def test_every_file_of_the_source_tree_is_named():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"```\nsrc/gorp/\n(.*?)```\n\n(Beside them.*?)\n\n", text, flags=re.S)
    assert tree is not None
    named = re.findall(r"── ([\w./]+?)/?\s", tree[1]) + [f"{name}.py" for name in re.findall(r"`(\w+)`", tree[2])]
    assert len(named) == len(set(named))
    there = {p.name for p in (ROOT / "src/gorp").iterdir() if not p.name.startswith("_") and p.name != "py.typed"}
    assert there == set(named), "CONTRIBUTING.md, The source"


def test_its_links_and_commands_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    commands = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert set(re.findall(r"^gorp (\w+) +\w+\.yaml", README, flags=re.M)) <= commands
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in make for target in re.findall(r"^make (\w+)", README, flags=re.M))


def test_its_picture_can_be_read_on_a_dark_page():
    [picture] = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    svg = (ROOT / picture).read_text(encoding="utf-8")
    assert "currentColor" not in svg and '<rect width="100%" height="100%"' in svg

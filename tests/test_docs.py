"""The docs agree with the code: every key with its type and default; names and links that exist; code that runs."""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
import types
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TrainingArguments
from typer.testing import CliRunner

from gorp.cli import app
from gorp.cli.look import ABOUT
from gorp.data import ORDERS, Encoding, TaskSpec
from gorp.data.spec import FORMATS
from gorp.data.task import METRICS
from gorp.data.templates import ALPACA, LABELLED
from gorp.demo.run import DATA
from gorp.evaluation import EvalConfig
from gorp.export.lowrank import RANKS
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from gorp.methods.base import Method
from gorp.methods.gorp import MODE_DEFAULTS, GorpConfig
from gorp.models.load import SHIPPED_FOLDER, ModelConfig
from gorp.ranges import may_change, ranges
from gorp.storage import read_tensors
from gorp.training.settings import DEFAULTS, SET_BY_GORP
from gorp.weights.delta import unpack_deltas
from gorp.workspace import load_config, run_sequence
from gorp.workspace.config import BLOCKS, NOT_SHARED, parse_config
from gorp.workspace.gate_config import GateConfig
from tests.runs import KNOWN
from tests.workspace.project import make_project


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("benchmarks/*/README.md")),
]
PAGE = (DOCS / "configuration.md").read_text(encoding="utf-8")
METHODS_PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")
START = (DOCS / "getting-started.md").read_text(encoding="utf-8")

SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    **{name: method.Config for name, method in METHODS.items() if fields(method.Config) and name != "gorp"},
    "lora": LoraSettings,
    "encoding": Encoding,
    "eval": EvalConfig,
    "gate": GateConfig,
    "tasks": TaskSpec,
}
"""Heading -> the dataclass that its table describes; the tables of gorp and training have other columns."""

KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", tuple: "list"}


class Line(NamedTuple):
    """Type, defaults (one per mode) and description in one row of a table."""

    type: str
    defaults: list[str]
    text: str


def section(heading: str) -> str:
    """Return the text between a heading and the next one of any level; "" is the top of the page."""
    parts = re.split(r"^#+ (.*)\n", PAGE, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading or "Configuration"]


def table(heading: str) -> dict[str, Line]:
    """Return the rows of a section's table by their key."""
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", section(heading), flags=re.M)
    cells = [(key, rest.split(" | ")) for key, rest in lines]
    assert len({key for key, _ in cells}) == len(cells)
    return {key: Line(type=kind, defaults=defaults, text=text) for key, (kind, *defaults, text) in cells}


def words(heading: str, beginning: str) -> set[str]:
    """Return all that is in backticks after `beginning` in its paragraph."""
    [paragraph] = [part for part in section(heading).split("\n\n") if beginning in part]
    return set(re.findall(r"`([^`]+)`", paragraph[paragraph.index(beginning) :]))


def wording(hint: Any) -> str:
    """Return a type as the page writes it."""
    if get_origin(hint) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        kinds = sorted((wording(part) for part in get_args(hint) if part is not types.NoneType), reverse=True)
        return " or ".join([*kinds, *(["null"] if types.NoneType in get_args(hint) else [])])
    return "mapping" if get_origin(hint) is dict else KINDS[get_origin(hint) or hint]


def value(default: str) -> Any:
    """Return the value of a default that the page writes in backticks, read as YAML."""
    assert re.fullmatch(r"`[^`]+`", default), default
    return yaml.safe_load(default.strip("`"))


def same(first: Any, second: Any) -> bool:
    """Return whether two values are equal, where `true` is not equal to 1."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_block_has_every_key_with_its_type_and_default(heading):
    cls, lines = SECTIONS[heading], table(heading)
    hints = get_type_hints(cls)
    assert list(lines) == [field.name for field in fields(cls)]
    for field in fields(cls):
        line = lines[field.name]
        assert line.type == wording(hints[field.name]), field.name
        [default] = line.defaults
        if field.default is MISSING and field.default_factory is MISSING:
            assert default == "required", field.name
        else:
            there = field.default_factory() if field.default is MISSING else field.default
            assert same(value(default), there), field.name
        assert line.text.endswith((".", ")", "`")), field.name
        if field.name in ranges(cls):
            assert f"{ranges(cls)[field.name]}." in line.text.lower(), field.name


def test_gorp_has_every_option_with_its_default_in_both_modes():
    lines, hints = table("gorp"), get_type_hints(GorpConfig)
    assert list(lines) == [field.name for field in fields(GorpConfig)]
    for column, mode in enumerate(MODE_DEFAULTS):
        there = GorpConfig(mode=mode).resolved()
        for key, line in lines.items():
            assert line.type == wording(hints[key]), key
            assert same(value(line.defaults[column]), getattr(there, key)), (mode, key)
    for key, allowed in ranges(GorpConfig).items():
        assert f"{allowed}." in lines[key].text.lower(), key


def test_every_method_has_a_section_or_is_named_as_one_without_options():
    plain = {name for name, method in METHODS.items() if not fields(method.Config)}
    assert words("method", "`sequential_full`") == plain
    assert all(table(name) for name in set(METHODS) - plain)
    assert words("lora", "For every method but") == {n for n, m in METHODS.items() if not m.uses_lora}


def test_the_top_level_has_every_block():
    lines = table("")
    assert list(lines) == list(BLOCKS)
    needed = {key for key, line in lines.items() if line.defaults == ["required"]}
    assert needed == {"model", "method", "tasks"}
    least = {"model": {"path": "m"}, "method": {"name": "gorp"}, "tasks": [{"name": "a", "train": "a.jsonl"}]}
    written = {key: value(line.defaults[0]) for key, line in lines.items() if key not in needed}
    assert parse_config(least, Path("/")) == parse_config(least | written, Path("/"))


def test_training_lists_each_default_that_gorp_changes_and_each_field_that_it_refuses():
    lines = table("training")
    assert {key: value(line.defaults[0]) for key, line in lines.items()} == DEFAULTS
    assert words("training", "Set by gorp itself") == set(SET_BY_GORP)
    others = words("training", "for example `gradient") - {"transformers.TrainingArguments"}
    assert others <= {field.name for field in fields(TrainingArguments)} - set(SET_BY_GORP) - set(DEFAULTS)


def test_formats_metrics_and_templates_are_those_of_the_code():
    lines = table("tasks")
    assert set(re.findall(r"`(\w+)`", lines["format"].text)) == set(FORMATS)
    assert set(re.findall(r"`(\w+)`", lines["metric"].text)) == set(METRICS)
    [template] = re.findall(r"the prompt of a text with a label is `\"(.*?)\"`", section("tasks"))
    assert template.replace(r"\n", "\n") == LABELLED
    [other] = re.findall(r"prompt of alpaca rows is `\"(.*?)\"`", section("tasks"))
    assert other.replace(r"\n", "\n") == ALPACA
    assert f'`"{template}"`' in START


def test_the_short_form_lists_the_orders_and_the_keys_allowed_beside_it():
    lines = table("A published order")
    assert list(lines) == ["order", "data"]
    assert set(re.findall(r"`(\w+)`", lines["order"].text)) == set(ORDERS)
    refused = {"subset", "split", "eval_split", "columns", "template", "labels"}  # by the format cl_benchmark
    shared = {field.name for field in fields(TaskSpec)} - set(NOT_SHARED) - refused
    assert words("A published order", "Beside them") == shared


def test_what_may_change_after_the_first_task_is_what_the_code_allows():
    assert words("", "**Once a task is learned**") == {"training", "encoding", "eval", "gate", "method", "lora"}
    for heading, cls in {**SECTIONS, "gorp": GorpConfig}.items():
        marked = {key for key, line in table(heading).items() if "May change between tasks." in line.text}
        assert marked == set(may_change(cls)), heading


@pytest.mark.parametrize("page", ["configuration", "getting-started"])
def test_the_yaml_of_the_pages_is_accepted(page, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.S)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        config = load_config(path)
        assert all(Path(task.train).is_relative_to(tmp_path) for task in config.tasks if task.train.endswith("jsonl"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestEveryPage:
    def test_its_links_lead_to_files_and_headings_that_exist(self, page):
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
            there = page.parent / target if target else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), f"{target}#{anchor}"

    def test_the_names_and_files_in_backticks_exist(self, page):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(gorp\.(?!lock)\w+(?:\.\w+)*)`", text):
            pkgutil.resolve_name(name)  # raises if a part does not exist
        for path in re.findall(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./-]+)`", text):
            assert (ROOT / path).exists() or path.endswith("l2.py"), path  # l2: the reader of methods.md writes it


def test_the_table_of_methods_has_a_row_for_each_with_its_source():
    listed = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", METHODS_PAGE.partition("## Notes")[0], flags=re.M)
    assert [name for name, _ in listed] == list(METHODS)
    for name, source in listed:
        stated = METHODS[name].paper + str(sys.modules[METHODS[name].__module__].__doc__)
        assert all(number in stated for number in re.findall(r"\d{4}\.\d{5}", source)), name


def test_the_table_of_flags_has_those_that_gorp_methods_shows():
    flags = re.findall(r"^\| `(\w+).*?` \|", METHODS_PAGE.partition("### Declare")[2], flags=re.M)
    assert flags == [key for key in ABOUT if isinstance(getattr(Method, key), bool)]


EXAMPLE, REGISTRATION, ITS_TESTS = re.findall(r"```python\n(.*?)```", METHODS_PAGE, flags=re.S)
"""The method `l2`, its two lines in `gorp/methods/__init__.py`, and its tests, as docs/methods.md has them."""


def test_the_example_method_passes_the_tests_that_the_page_gives_it(tmp_path, monkeypatch):
    module = types.ModuleType("gorp.methods.l2")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLE, "l2.py", "exec"), vars(module))
    monkeypatch.setitem(METHODS, "l2", module.L2)
    monkeypatch.setitem(KNOWN, "l2", module.L2)
    tests: dict[str, Any] = {}
    exec(compile(ITS_TESTS, "test_l2.py", "exec"), tests)
    tests["test_the_penalty_is_half_lambda_times_the_squared_change"]()
    tests["test_a_strong_penalty_keeps_the_change_small"](tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_three_edits_make_a_method_that_keeps_the_contract(tmp_path):
    """Write the page's files into a copy of the source tree (made of symbolic links) and run the page's commands."""
    leave_out = shutil.ignore_patterns("__pycache__")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, copy_function=os.symlink, ignore=leave_out)
    for name in ("pyproject.toml", "docs", "benchmarks", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "src/gorp/methods/l2.py").write_text(EXAMPLE)
    (tmp_path / "tests/methods/test_l2.py").write_text(ITS_TESTS)
    imported, entry = REGISTRATION.strip().split("\n\n")
    registry = tmp_path / "src/gorp/methods/__init__.py"
    text = registry.read_text(encoding="utf-8").replace("\n\n\n", f"\n{imported}\n\n\n", 1)
    registry.unlink()
    registry.write_text(text.replace("type[Method]] = {\n", f"type[Method]] = {{\n{entry}\n", 1), encoding="utf-8")

    [commands] = re.findall(r"```bash\n(pytest .*?)```", METHODS_PAGE, flags=re.S)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    for command in commands.splitlines():
        run = [sys.executable, "-m", *command.split(), "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        print(done.stdout[-200:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `bot.yaml`, its model and the workspace `bot` of two tasks."""
    folder = tmp_path_factory.mktemp("docs")
    run_sequence(load_config(make_project(folder).rename(folder / "bot.yaml")), folder / "bot")
    return folder


def commands(text: str) -> list[str]:
    """Return the commands `gorp export` of a page's bash blocks, without comments."""
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.S)).splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("gorp export ")]


# PEFT 0.21 asks transformers 5.23 for a property under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("page", "folders"),
    [
        ("getting-started", {"bot-model", "bot-adapters", "bot-october"}),
        ("export", {"bot-model", "bot-bfloat16", "bot-lora", "bot-adapters", "bot-v1", "bot-python"}),
    ],
)
def test_the_commands_and_programs_of_the_pages_export_the_versions(page, folders, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    before, text = set(os.listdir()), (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert commands(text)
    for command in commands(text):
        done = CliRunner().invoke(app, command.split()[1:])
        assert done.exit_code == 0, (command, done.stderr)
    for program in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(compile(program, f"{page}.md", "exec"), {})
    assert set(os.listdir()) - before == folders

    merged = dict(AutoModelForSeq2SeqLM.from_pretrained("bot-model").named_parameters())
    base = dict(AutoModelForSeq2SeqLM.from_pretrained("model").named_parameters())
    deltas = unpack_deltas(read_tensors(Path("bot/versions/v2/delta.safetensors"))[0])
    assert deltas and set(base) == set(merged)
    for name, weight in merged.items():
        change = deltas[name].dense() if name in deltas else 0.0
        torch.testing.assert_close(weight, base[name] + change, rtol=0, atol=1e-6)
    assert len(AutoTokenizer.from_pretrained("bot-model")) == len(AutoTokenizer.from_pretrained("model"))


def test_the_page_on_export_names_the_ranks_and_options_of_the_code():
    text = (DOCS / "export.md").read_text(encoding="utf-8")
    assert f"one rank out of {', '.join(map(str, RANKS))}, the values" in text
    flags = set(re.findall(r"--[a-z][a-z-]+", re.sub(r"```text\n.*?```", "", text, flags=re.S)))
    known = set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, ["export", "--help"]).output))
    assert flags - {"--max-lora-rank", "--outtype", "--lora"} <= known  # those of vLLM and llama.cpp


def test_the_first_commands_of_getting_started_write_its_yaml(tmp_path, monkeypatch):
    shutil.copytree(DATA, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    lines = "".join(re.findall(r"```bash\n(.*?)```", START, flags=re.S)).splitlines()
    lines = [line.partition(" #")[0].split()[1:] for line in lines if re.match(r"gorp (init|add) ", line)]
    assert [line[0] for line in lines] == ["init", "add", "add"]
    for line in lines[:2]:
        assert CliRunner().invoke(app, line).exit_code == 0
    written = yaml.safe_load(Path("bot.yaml").read_text())
    assert parse_config(written, tmp_path) == parse_config(
        yaml.safe_load(re.findall(r"```yaml\n(.*?)```", START, flags=re.S)[0]), tmp_path
    )
    assert CliRunner().invoke(app, lines[2]).exit_code == 0
    assert [task.name for task in load_config(Path("bot.yaml")).tasks] == ["october", "november"]


def test_the_model_of_the_offline_yaml_comes_with_the_package():
    config = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", START, flags=re.S)[0])
    assert (SHIPPED_FOLDER / config["model"]["path"] / "model.safetensors").is_file()

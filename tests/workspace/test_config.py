"""The configuration equals the YAML, and every error names its place and the nearest known key."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorp.data import ORDERS
from gorp.errors import ConfigError
from gorp.methods import METHODS, build_method
from gorp.workspace import effective, load_config, parse_config
from gorp.workspace.yaml_file import read_yaml


BASE = {"model": {"path": "some/model"}, "method": {"name": "gorp"}, "tasks": [{"name": "a", "train": "a.jsonl"}]}


def refused(message: str, folder: Path = Path("/nowhere"), **changes) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(BASE | changes, folder)


def test_the_configuration_equals_the_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {path: org/model, revision: abc, dtype: bfloat16}\n"
        "method: {name: gorp, mode: paper, energy: 0.9, full_modules: [wi_0]}\n"
        "lora: {r: 4, target_modules: all-linear}\n"
        "training: {learning_rate: 2e-4, weight_decay: '1e-2', save_steps: 5}\n"
        "encoding: {truncation: end}\n"
        "tasks:\n"
        "  - {name: a, train: data/a.jsonl, eval: data/b.jsonl, metric: label_ranking, labels: ['yes', 'no']}\n"
        "  - {name: b, train: org/data, subset: small, columns: {question: text}}\n"
        "eval: {limit: 7}\n"
        "seed: 3\n"
    )
    config = load_config(path)
    assert (config.model.path, config.model.revision, config.model.dtype) == ("org/model", "abc", "bfloat16")
    assert (config.method, config.options.mode, config.options.full_modules) == ("gorp", "paper", ("wi_0",))
    assert config.lora is not None and (config.lora.r, config.lora.target_modules) == (4, "all-linear")
    assert config.training == {"learning_rate": 2e-4, "weight_decay": 1e-2, "save_steps": 5}
    assert (config.encoding.truncation, config.eval.limit, config.seed) == ("end", 7, 3)
    assert config.tasks[0].train == str(tmp_path / "data/a.jsonl")
    assert config.tasks[0].eval == str(tmp_path / "data/b.jsonl")
    assert (config.tasks[1].train, config.tasks[1].subset) == ("org/data", "small")


@given(st.integers(1, 9), st.integers(-9, 9), st.sampled_from("eE"))
def test_a_number_with_an_exponent_is_a_number(tmp_path_factory, digit, exponent, letter):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(f"x: {digit}{letter}{exponent}\ny: [-{digit}.5{letter}{exponent}]\nz: {digit}\nt: {digit}e\n")
    expected = {"x": float(f"{digit}e{exponent}"), "y": [-float(f"{digit}.5e{exponent}")], "z": digit, "t": f"{digit}e"}
    assert read_yaml(path) == expected


@pytest.mark.parametrize("method", METHODS)
def test_the_effective_configuration_gives_the_same_run_again(method):
    config = parse_config(BASE | {"method": {"name": method}}, Path("/nowhere"))
    again = parse_config(effective(config), Path("/elsewhere"))
    assert effective(again) == effective(config)
    first, second = (build_method(c.method, c.options, c.lora) for c in (config, again))
    assert second.config == first.config


def test_the_effective_configuration_has_the_defaults_of_the_mode():
    method = effective(parse_config(BASE, Path("/nowhere")))["method"]
    assert (method["mode"], method["projection"], method["budget"]) == ("strict", "both", 0.75)


def test_a_published_order_is_a_list_of_tasks(tmp_path):
    config = parse_config(BASE | {"tasks": {"order": "order1", "data": "./cl", "limit_train": 9}}, tmp_path)
    assert tuple(spec.name for spec in config.tasks) == ORDERS["order1"]
    assert {(s.train, s.format, s.limit_train) for s in config.tasks} == {(str(tmp_path / "cl"), "cl_benchmark", 9)}


def test_a_model_folder_beside_the_yaml_wins_over_a_hub_id(tmp_path):
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert parse_config(BASE, tmp_path).model.path == str(tmp_path / "some" / "model")
    assert parse_config(BASE, tmp_path / "some").model.path == "some/model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traning": {}}, "traning: unknown key; known keys: model, method"),
        ({"traning": {}}, "Did you mean `training`?"),
        ({"model": {"pth": "x"}}, "model.pth: unknown key; known keys: path, revision, dtype, trust_remote_code."),
        ({"model": {}}, "model.path is missing"),
        ({"model": {"path": "x", "dtype": "float16"}}, "model.dtype is 'float16'"),
        ({"model": {"path": "./x", "revision": "abc"}}, "model.revision is for hub models"),
        ({"method": "gorp"}, "method is 'gorp'; wanted a mapping with `name:`"),
        ({"method": {"name": "olroa"}}, "unknown method `olroa`; known are gorp"),
        ({"method": {"name": "olroa"}}, "Did you mean `olora`?"),
        ({"method": {"name": "gorp", "enrgy": 0.9}}, "method.enrgy: unknown key"),
        ({"method": {"name": "gorp", "mode": "loose"}}, "method.mode is 'loose'"),
        ({"method": {"name": "gorp", "energy": 1.5}}, "method.energy is 1.5"),
        ({"method": {"name": "sequential_full", "r": 8}}, "method.r: unknown key; it takes no options."),
        ({"method": {"name": "sequential_full"}, "lora": {}}, "lora: the method `sequential_full` trains no adapters"),
        ({"lora": {"rank": 8}}, "lora.rank: unknown key"),
        ({"lora": {"r": "eight"}}, "lora.r is 'eight'"),
        ({"training": {"lerning_rate": 1}}, "Did you mean `learning_rate`?"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate is 'fast'"),
        ({"training": {"seed": 1}}, "training.seed is set by gorp itself"),
        ({"training": [1]}, "training is [1]"),
        ({"encoding": {"max_prompt_tokens": 0}}, "encoding: max_prompt_tokens is 0"),
        ({"eval": {"limit": 0}}, "eval: limit is 0"),
        ({"eval": {"batch_sise": 1}}, "Did you mean `batch_size`?"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is true; wanted a number"),
        ({"lora": 0}, "lora is a number; wanted a mapping"),
        ({"lora": ""}, "lora is text; wanted a mapping"),
        ({"training": []}, "training is []; wanted a mapping"),
        ({"encoding": []}, "encoding is a list; wanted a mapping"),
        ({"eval": False}, "eval is true or false; wanted a mapping"),
        ({"lora": {"r": True}}, "lora.r is true; wanted a number"),
        ({"method": {"name": "gorp", "core_learning_rate": False}}, "method.core_learning_rate is false; wanted a"),
        ({"method": {"name": "gorp", "scale": -1}}, "method.scale is -1.0; it must be above 0"),
        ({"method": {"name": "gorp", "recompress": float("nan")}}, "method.recompress is nan; it must be at least 0"),
        ({"method": {"name": "gorp", "power_steps": 10**9}}, "it must be at least 0 and at most 100."),
        ({"method": {"name": "gorp", "mode": ["x" * 9999] * 9999}}, "method.mode is ['xx"),
        ({"lora": {"lora_alpha": 0}}, "lora.lora_alpha is 0.0; it must be above 0."),
        ({"eval": {"max_new_tokens": 10**9}}, "eval: max_new_tokens is 1000000000; it must be at least 1 and at most"),
        ({"training": {"max_steps": True}}, "training.max_steps is True; it must be at least 1"),
        ({"model": {"path": ""}}, "model.path is empty; it must be a folder, the name of the shipped model"),
        ({"model": {"path": "~nobody-at-all/x"}}, "model.path is '~nobody-at-all/x': Could not determine home"),
        ({"tasks": [{"name": "a", "train": " "}]}, "tasks[0].train is empty"),
        ({"tasks": [{"name": "a", "train": "x", "eval": ""}]}, "tasks[0].eval is empty"),
        ({"tasks": [{"name": "a", "train": "x" * 9999}]}, "tasks[0].train is 'xxx"),
        ({"tasks": [{"name": "a", "train": "x\0.jsonl"}]}, "a path cannot contain a NUL"),
        ({"tasks": [{"name": "a" * 101, "train": "x"}]}, "so it may have at most 100 characters"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": {"order": "order9", "data": "x"}}, "unknown order `order9`"),
        ({"tasks": {"order": "order1"}}, "tasks.data is None"),
        ({"tasks": {"order": "order1", "data": "x", "name": "y"}}, "tasks.name: unknown key"),
        ({"tasks": [{"name": "a"}]}, "tasks[0].train is missing"),
        ({"tasks": [{"name": "a", "train": "x", "fromat": "auto"}]}, "tasks[0].fromat: unknown key"),
        ({"tasks": [{"name": 2024, "train": "x"}]}, "tasks[0].name is 2024: input should be a valid string. Write quo"),
        ({"tasks": [{"name": "a", "train": "x", "labels": [True]}]}, "tasks[0].labels[0] is True"),
        ({"tasks": [{"name": "a", "train": "x", "dev_rows": -1}]}, "tasks[0]: task a: dev_rows is -1"),
        ({"tasks": [{"name": "a", "train": "x"}, {"name": "A", "train": "y"}]}, "two tasks are called `a` and `A`"),
        ({"tasks": [{"name": "../a", "train": "x"}]}, "it becomes a file name"),
    ],
)
def test_an_error_names_its_place(changes, message):
    refused(message, **changes)


@pytest.mark.parametrize("block", ["model", "method", "tasks"])
def test_a_missing_block_is_named(block):
    with pytest.raises(ConfigError, match=f"`{block}:` is missing"):
        parse_config({key: value for key, value in BASE.items() if key != block}, Path("/nowhere"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [", "not YAML"),
        (b"- 1", "holds a list"),
        (b"", "holds nothing"),
        (b"seed: 1\nseed: 2", "the key `seed` occurs twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: !!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_a_file_that_does_not_hold_a_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        load_config(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load_config(tmp_path / "missing.yaml")


def test_the_margins_of_the_gate_are_those_of_the_block_and_the_default_for_other_tasks():
    gate = parse_config(BASE | {"gate": {"margins": {"a": 5}, "inconclusive": "hold"}}, Path("/")).gate
    assert gate.of(["a", "b"]) == {"a": 5.0, "b": 2.0}
    assert [gate.accepts(v) for v in ("ship", "hold", "inconclusive")] == [True, False, False]
    usual = parse_config(BASE, Path("/")).gate
    assert usual.enabled and [usual.accepts(v) for v in ("ship", "hold", "inconclusive")] == [True, False, True]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"margin": 0}, "gate.margin is 0.0; it must be above 0 and below 100"),
        ({"margin": True}, "gate.margin is true; wanted a number"),
        ({"margins": {"a": 100}}, "gate.margins.a is 100.0; it must be above 0 and below 100"),
        ({"margins": {"a": True}}, "gate.margins.a is true; wanted a number"),
        ({"margins": {"aa": 5}}, "gate.margins: no task `aa` in `tasks:`; there are a. Did you mean `a`?"),
        ({"inconclusive": "maybe"}, "gate.inconclusive is 'maybe'"),
        ({"margn": 2}, "gate.margn: unknown key; known keys: margin, margins, inconclusive, enabled, guard,"),
        ([], "gate is a list"),
    ],
)
def test_an_invalid_gate_is_refused(block, message):
    refused(message, gate=block)

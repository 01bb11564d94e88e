"""A YAML file may hold only JSON values, within the limits on size and nesting."""

import os

import pytest

from gorp.errors import ConfigError
from gorp.workspace import load_config
from gorp.workspace.yaml_file import read_yaml


def nested(levels: int, width: int = 9) -> str:
    """Return nested lists that hold `width ** levels` values when their aliases are expanded."""
    text = "lol"
    for level in range(levels):
        text = f"&a{level} [{text}, {', '.join(['lol' if level == 0 else f'*a{level - 1}'] * (width - 1))}]"
    return text


def read(tmp_path, text: str | bytes) -> dict:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"seed: {nested(9)}", "more than 100,000 values"),
        (f"a: 1\nmodel: {{path: {nested(9)}}}", "more than 100,000 values"),
        ("x0: &m0 {a: 1}\n" + "".join(f"x{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
         "more than 100,000 values"),
        ("seed: &r [*r]", "an alias that contains itself"),
        ("method: &r {name: gorp, mode: *r}", "an alias that contains itself"),
        ("seed: " + "[" * 5000 + "]" * 5000, "nested deeper than 50 levels"),
        ("seed: " + "1" * 5000, "an integer of 5000 digits"),
        ("seed: 0x" + "f" * 5000, "an integer of 5002 digits"),
        ("seed: !!int one", "not a valid value of type int"),
        ("seed: !!bool one", "not a valid value of type bool"),
        ("seed: !!float x", "not a valid value of type float"),
        ("seed: !!binary aGk=", "the tag !!binary is not supported"),
        ("seed: !!set {a}", "the tag !!set is not supported"),
        ("seed: !!timestamp x", "the tag !!timestamp is not supported"),
        ("training: {1: 2}", "the key 1 is not text; write quotes around it"),
        ("training: {null: 2}", "the key null is not text"),
        ("on: 2", "the key on is not text"),
        ("training: {[1, 2]: 3}", "is not text"),
        ("a: {b: 1, b: 2}", "the key `b` occurs twice"),
        ('seed: "\\ud800"', "half of a surrogate pair"),
        ("<<: 5\na: 1", "expected a mapping or list of mappings for merging"),
        (b"a: 1 # " + b"x" * 2_000_000, "has 2,000,007 bytes; a configuration has at most"),
    ],
)  # fmt: skip
def test_a_refused_value_is_named_in_a_short_message(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value) and str(tmp_path / "run.yaml") in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_aliases_and_merge_keys_are_read(tmp_path):
    text = (
        "shared: &s {format: auto, dev_rows: 1}\n"
        "tasks:\n  - &t {<<: *s, name: a, dev_rows: 2}\n  - {<<: *t, name: b}\n  - {<<: [*t, {metric: m}], name: c}\n"
        "outer: {inner: {deep: &d {<<: *t, name: d}}}\n"
        "early: {<<: *d, x: *s}\n"
    )
    value = read(tmp_path, text)
    assert value["tasks"][:2] == [{"format": "auto", "dev_rows": 2, "name": name} for name in ("a", "b")]
    assert value["tasks"][2] == {"format": "auto", "dev_rows": 2, "name": "c", "metric": "m"}
    assert value["early"] == {"format": "auto", "dev_rows": 2, "name": "d", "x": {"format": "auto", "dev_rows": 1}}
    assert read(tmp_path, f"a: {nested(3)}")["a"][8][8] == ["lol"] * 9


def test_a_path_that_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, tmp_path / "gone.yaml", tmp_path / "a\0b", tmp_path / ("x" * 999)):
        with pytest.raises(ConfigError, match=r"cannot be read"):
            load_config(path)

"""Every way a file of rows can be wrong is answered with its place."""

import json

import pytest

from gorp.data.files import read_rows, text_column
from gorp.errors import DataError


GOOD = b'{"a": "x"}'


def write(folder, content: bytes, name: str = "rows.jsonl"):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content", [GOOD + b"\n" + GOOD, GOOD + b"\r\n" + GOOD + b"\r\n", b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD]
)
def test_line_ends_and_byte_order_mark(tmp_path, content):
    rows = read_rows(write(tmp_path, content))
    assert [row.values for row in rows] == [{"a": "x"}] * 2
    assert rows[1].place == f"{tmp_path / 'rows.jsonl'}, line 2"


def test_other_line_separators_are_text(tmp_path):
    value = "one\u2028two\x0cthree\x85four"
    (row,) = read_rows(write(tmp_path, json.dumps({"a": value}, ensure_ascii=False).encode()))
    assert row.values["a"] == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "line 2: empty; wanted a JSON object"),
        (b"   ", "line 2: empty"),
        (b'{"a": ', r"line 2: not JSON \(Expecting value, column 7\)"),
        (b"{} {}", r"line 2: not JSON \(Extra data"),
        (b'["a"]', "line 2: a list; wanted a JSON object"),
        (b"3", "line 2: a number"),
        (b"null", "line 2: null"),
        (b'{"a": "\xff"}', "line 2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(DataError, match=r"rows\.jsonl, " + message):
        read_rows(write(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD))


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    with pytest.raises(DataError, match="the file is empty"):
        read_rows(write(tmp_path, content))


def test_missing_or_unknown_files(tmp_path):
    write(tmp_path, GOOD, "october.jsonl")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "octobre.jsonl")
    assert f"looked for in {tmp_path}. Did you mean `october.jsonl`?" in str(caught.value)
    with pytest.raises(DataError, match=r"no such file.*, which does not exist"):
        read_rows(tmp_path / "gone" / "october.jsonl")
    with pytest.raises(DataError, match=r"wanted a file named \*\.jsonl"):
        read_rows(write(tmp_path, b"a,b", "rows.csv"))
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(folder)


@pytest.mark.parametrize("content", [b'[{"a": 1}, {"a": 2}]', b'{"Instances": [{"a": 1}, {"a": 2}], "other": 0}'])
def test_json_lists(tmp_path, content):
    rows = read_rows(write(tmp_path, content, "rows.json"))
    assert [row.values for row in rows] == [{"a": 1}, {"a": 2}]
    assert rows[1].place.endswith("rows.json, item 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "the list is empty"),
        (b'{"rows": []}', r"wanted a list of objects"),
        (b"[{}, 3]", "item 2: a number"),
        (b'{"a": 1}\n{"a": 2}', r"line 2: not JSON .* must be named \*\.jsonl"),
        (b'["\xff"]', "not UTF-8"),
    ],
)
def test_bad_json_files(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path, content, "rows.json"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"txet": "x", "label": "y"}', "no column `text`; found: txet, label. Did you mean `txet`?"),
        ("{}", "found: none"),
        ('{"text": 3}', "`text` is a number; wanted text"),
        ('{"text": true}', "`text` is true or false"),
        ('{"text": null}', "`text` is null"),
        ('{"text": ["x"]}', "`text` is a list"),
        ('{"text": " "}', "`text` is blank"),
    ],
)
def test_a_column_that_is_no_text(tmp_path, values, message):
    (row,) = read_rows(write(tmp_path, values.encode()))
    with pytest.raises(DataError) as error:
        text_column(row, "text")
    assert "rows.jsonl, line 1: " in str(error.value)
    assert message in str(error.value)

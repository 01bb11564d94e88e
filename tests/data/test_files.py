"""A file of rows that is invalid is refused with the file and line."""

import csv
import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from gorp.data.files import iter_rows, read_rows
from gorp.data.rows import text_column
from gorp.errors import DataError


GOOD = b'{"a": "x"}'


def write(folder, content: bytes, name: str = "rows.jsonl"):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content", [GOOD + b"\n" + GOOD, GOOD + b"\r\n" + GOOD + b"\r\n", b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD]
)
def test_line_ends_and_a_byte_order_mark_are_accepted(tmp_path, content):
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
        (b'{"a": "x", "n": NaN}', "line 2: NaN is not valid JSON"),
        (b'{"a": "x", "n": [-Infinity]}', "line 2: -Infinity is not valid JSON"),
        (b'{"a": "x", "b": {"c": 1, "c": 2}}', "line 2: the key `c` occurs twice"),
        (b'{"a": "\\ud800"}', "line 2: a lone surrogate"),
        (b'{"a": "x", "n": [{"\\uDfFf": 1}]}', "line 2: a lone surrogate"),
        (b'{"a": "\\ude00\\ud83d"}', "line 2: a lone surrogate"),
        (b'{"n": ' + b"1" * 5000 + b"}", "line 2: an integer with thousands of digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2: nested too deeply; .* Flatten it"),
    ],
)
def test_the_error_names_the_invalid_line(tmp_path, line, message):
    with pytest.raises(DataError, match=r"rows\.jsonl, " + message):
        read_rows(write(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD))


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="the file is empty"):
        read_rows(write(tmp_path, content))


def test_missing_and_unknown_files_are_refused_with_advice(tmp_path):
    write(tmp_path, GOOD, "october.jsonl")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "octobre.jsonl")
    assert f"looked for in {tmp_path}. Did you mean `october.jsonl`?" in str(caught.value)
    with pytest.raises(DataError, match=r"no such file.*, which does not exist"):
        read_rows(tmp_path / "gone" / "october.jsonl")
    with pytest.raises(DataError, match=r"wanted a file named \*\.jsonl, .*\*\.parquet\. Save the sheet as CSV"):
        read_rows(write(tmp_path, b"PK", "rows.xlsx"))
    with pytest.raises(DataError, match="Unpack it first"):
        read_rows(write(tmp_path, b"", "rows.jsonl.gz"))
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(folder)


@pytest.mark.parametrize("content", [b'[{"a": 1}, {"a": 2}]', b'{"Instances": [{"a": 1}, {"a": 2}], "other": 0}'])
def test_a_json_file_is_a_list_of_objects(tmp_path, content):
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
def test_an_invalid_json_file_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path, content, "rows.json"))


def test_a_complete_surrogate_pair_is_one_character(tmp_path):
    (row,) = read_rows(write(tmp_path, b'{"a": "\\ud83d\\ude00"}'))
    assert row.values["a"] == "\N{GRINNING FACE}"


def test_a_pipe_a_device_and_a_loop_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name, message in (("pipe", "a pipe, socket or device"), ("zero", "device"), ("loop", "symbolic links")):
        with pytest.raises(DataError, match=rf"{name}\.jsonl: cannot be read.*{message}"):
            read_rows(tmp_path / f"{name}.jsonl")
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            read_rows(tmp_path / f"{name}.jsonl")


CSV = 'prompt,completion\r\n"one\ntwo, ""three""",007\n\ntrue,\n'


@pytest.mark.parametrize("name", ["rows.csv", "ROWS.CSV", "rows.tsv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_csv_value_is_text_and_not_converted(tmp_path, name, mark):
    content = CSV if "csv" in name.lower() else CSV.replace(",", "\t").replace("two\t", "two,")
    rows = read_rows(write(tmp_path, mark + content.encode(), name))
    assert [row.values for row in rows] == [
        {"prompt": 'one\ntwo, "three"', "completion": "007"},
        {"prompt": "true", "completion": ""},
    ]
    assert [row.place for row in rows] == [f"{tmp_path / name}, line {line}" for line in (2, 5)]
    with pytest.raises(DataError, match="line 5: `completion` is blank"):
        text_column(rows[1], "completion")


def test_unnamed_csv_columns_are_numbered(tmp_path):
    """`DataFrame.to_csv` writes its index like this, and a spreadsheet an empty column."""
    (row,) = read_rows(write(tmp_path, b",text,label, \n0,x,y,\n", "rows.csv"))
    assert row.values == {"Unnamed: 0": "0", "text": "x", "label": "y", "Unnamed: 3": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n1,2,3\n", r"line 3: 3 fields, but the first line names 2 columns: a, b"),
        (b'a,b\n1,2\n"1,2\n3,4\n', r"line 3: the row that begins here is malformed \(unexpected end of data\)"),
        (b'a,b\n"x" y,2\n', "line 2: the row that begins here is malformed"),
        (b"a,b,a\n1,2,3\n", "line 1: the column `a` occurs twice"),
        (b"a;b\n1;2\n", "line 1: only one column, `a;b`.*separated by commas"),
        (b"a\tb\n1\t2\n", r"Save the file with commas, or name it \*\.tsv"),
        (b"a,b\n", "no row after the line with the column names"),
        (b"a,b\n1,2\n\xff,3\n", "line 3: not UTF-8"),
        (b"", "the file is empty"),
    ],
)
def test_the_error_names_the_invalid_csv_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path, content, "rows.csv"))


def test_a_long_csv_field_is_read_and_the_global_limit_restored(tmp_path):
    before = csv.field_size_limit()
    (row,) = read_rows(write(tmp_path, b"a,b\n" + b"x" * (before + 1) + b",y\n", "rows.csv"))
    assert len(row.values["a"]) == before + 1
    assert csv.field_size_limit() == before


def test_parquet_rows_keep_their_types_and_errors_have_the_row_number(tmp_path):
    columns = {"text": ["x", None], "n": [7, 8], "messages": [[{"role": "user"}], []]}
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table(columns | {"kind": pyarrow.array(["a", "b"]).dictionary_encode()}), path)
    rows = read_rows(path)
    assert rows[0].values == {"text": "x", "n": 7, "messages": [{"role": "user"}], "kind": "a"}
    for column, message in (("text", "is null"), ("n", "is a number"), ("txet", r"Did you mean `text`\?")):
        with pytest.raises(DataError, match=rf"rows\.parquet, row 2: .*{message}"):
            text_column(rows[1], column)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_rows(write(tmp_path, path.read_bytes()[:-20], "cut.parquet"))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_rows(write(tmp_path, b"", "empty.parquet"))
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="the table is empty"):
        read_rows(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{"txet": "x", "label": "y"}', "no column `text`; found: txet, label. Did you mean `txet`?"),
        ('{"label": "y"}', "no column `text`; found: label. Add it, or rename columns with `columns`."),
        ("{}", "found: none"),
        ('{"text": 3}', "`text` is a number; wanted text"),
        ('{"text": true}', "`text` is true or false"),
        ('{"text": null}', "`text` is null"),
        ('{"text": ["x"]}', "`text` is a list"),
        ('{"text": " "}', "`text` is blank"),
    ],
)
def test_a_column_that_is_missing_or_not_text_is_refused(tmp_path, values, message):
    (row,) = read_rows(write(tmp_path, values.encode()))
    with pytest.raises(DataError) as error:
        text_column(row, "text")
    assert "rows.jsonl, line 1: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "numbers", "places"),
    [
        ("rows.jsonl", GOOD + b"\n{\n" + GOOD + b"\n\n7\n" + GOOD, [1, 3, 6], ["line 2", "line 4", "line 5"]),
        ("rows.csv", b'a,b\n1,"x\ny"\n1\n\n1,2\n', [2, 6], ["line 4"]),
        ("rows.json", b'[{"a": 1}, 2, {"a": 3}]', [1, 3], ["item 2"]),
    ],
)
def test_reading_goes_on_after_a_malformed_row_if_asked_to(tmp_path, name, content, numbers, places):
    path, errors = write(tmp_path, content, name), []
    assert [row.number for row in iter_rows(path, bad=errors.append)] == numbers
    assert [str(error).partition(":")[0] for error in errors] == [f"{path}, {place}" for place in places]
    with pytest.raises(DataError) as raised:
        read_rows(path)
    assert str(raised.value) == str(errors[0])

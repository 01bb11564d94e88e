"""Texts of a file: paragraphs of plain text, or rows with a column `text`."""

import json

import pytest

from gorp.data.plain_text import read_texts
from gorp.data.rows import MAX_CHARACTERS
from gorp.errors import DataError


def test_paragraphs_of_a_text_file_are_divided_by_blank_lines(tmp_path):
    path = tmp_path / "guard.txt"
    path.write_bytes("\ufeffOne line,\r\nand its next.\r\n \t\r\n\r\n  Two: ein Häuschen.\n\n\nThree\n".encode())
    assert read_texts(path, 10) == ["One line,\nand its next.", "Two: ein Häuschen.", "Three"]
    assert read_texts(path, 2) == ["One line,\nand its next.", "Two: ein Häuschen."]


def test_rows_with_a_column_text_are_read_and_others_ignored_beyond_the_limit(tmp_path):
    path = tmp_path / "guard.jsonl"
    path.write_text('{"text": " a b "}\n{"text": "c", "label": 1}\nnot JSON\n')
    assert read_texts(path, 2) == ["a b", "c"]
    with pytest.raises(DataError, match="line 3"):
        read_texts(path, 3)
    table = tmp_path / "guard.csv"
    table.write_text("text,other\nhello there,1\n")
    assert read_texts(table, 5) == ["hello there"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.txt", None, "no such file"),
        ("g.txt", b" \n\n\t\n", "the file is empty"),
        ("g.txt", b"caf\xe9\n", "not UTF-8"),
        ("g.txt", b"ab\0c\n", "NUL character"),
        ("g.txt", b"x" * (MAX_CHARACTERS + 1), "a paragraph of more than"),
        ("g.jsonl", json.dumps({"prompt": "a", "completion": "b"}).encode() + b"\n", "no column `text`"),
        ("g.jsonl", b'{"text": 3}\n', "`text` is a number"),
        ("g.pdf", b"%PDF", "wanted a file named"),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(path, 10)

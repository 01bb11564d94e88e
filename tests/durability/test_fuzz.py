"""Readers of files from elsewhere: whatever the bytes are, a reader returns a value or raises GorpError."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorp.data import TaskSpec, load_task
from gorp.data.files import iter_rows, read_rows
from gorp.errors import GorpError
from gorp.storage import read_json, read_tensors, write_json
from gorp.workspace import Workspace
from gorp.workspace.mark import is_workspace
from gorp.workspace.scores import Scores
from gorp.workspace.verify import verify
from gorp.workspace.version import read_version
from gorp.workspace.yaml_file import read_yaml
from tests.workspace.test_damage import make


FEW, MANY = 30, 1500

NAMES = st.sampled_from(["v1", "v99", "one", "0" * 64])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)

COLUMNS = st.sampled_from(
    [
        *("prompt", "completion", "text", "label", "messages", "conversations", "role", "content", "from", "value"),
        *("instruction", "input", "output", "system"),
    ]
)
ROW = st.dictionaries(COLUMNS, VALUES | st.lists(st.dictionaries(COLUMNS, VALUES, max_size=3), max_size=3), max_size=5)
ROWS = st.lists(ROW, max_size=5).map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode())
CONTENTS = st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace, whose files are replaced one at a time."""
    return make(tmp_path_factory.mktemp("fuzz") / "work").root


def changed(draw, content: bytes) -> bytes:
    """A file in which a few bytes were replaced, inserted or left out."""
    place = draw(st.integers(0, len(content)))
    return content[:place] + draw(st.binary(max_size=8)) + content[place + draw(st.integers(0, 8)) :]


def with_value(draw, content: bytes) -> bytes:
    """A JSON object in which one value at the top is another."""
    value = json.loads(content)
    return json.dumps(value | {draw(st.sampled_from(sorted(value))): draw(VALUES)}).encode()


def fuzz(read, content) -> None:
    """Read; anything but GorpError is a fault."""
    try:
        read(content)
    except GorpError as error:
        assert str(error)


YAMLS = st.text(max_size=200) | VALUES.map(lambda value: json.dumps({"model": value, "tasks": [value]}))
SEPARATED = st.text(alphabet='a,"\n\r\t;', max_size=60).map(str.encode)

SOURCES = {
    ".yaml": YAMLS.map(lambda text: text.encode(errors="replace")),
    ".jsonl": ROWS | CONTENTS,
    ".json": ROWS | CONTENTS,
    ".csv": CONTENTS | SEPARATED,
    ".tsv": CONTENTS | SEPARATED,
    ".parquet": CONTENTS.map(lambda content: b"PAR1" + content + b"PAR1"),
}
"""Ending of a file -> contents that its reader gets."""

COUNTS = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


@COUNTS
@pytest.mark.parametrize("ending", SOURCES)
def test_files_from_a_user(tmp_path, ending, count):
    """The YAML, and rows of every format, read by its own reader and turned into prompts."""
    path = tmp_path / f"file{ending}"

    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(SOURCES[ending])
    def run(content):
        path.write_bytes(content)
        if ending == ".yaml":
            fuzz(read_yaml, path)
            return
        fuzz(read_rows, path)
        fuzz(lambda path: list(iter_rows(path, bad=lambda error: None)), path)
        fuzz(lambda path: load_task(TaskSpec(name="a", train=str(path), eval=str(path)), seed=0), path)

    run()


READERS = {
    "ledger.jsonl": lambda root: (Workspace(root).ledger(), Workspace(root).lineage()),
    "CURRENT": lambda root: (Workspace(root).current(), Workspace(root).remarks()),
    "gorp-workspace.json": is_workspace,
    "config.json": lambda root: Workspace(root).accepted(),
    "eval/scores.json": lambda root: Scores(root / "eval").changed(),
    "versions/v2/version.json": lambda root: read_version(root / "versions/v2", None).accepted,
    "versions/v2/delta.safetensors": lambda root: read_tensors(root / "versions/v2/delta.safetensors"),
    "eval/gate/v2-v1.json": lambda root: verify(root / "eval/gate/v2-v1.json"),
}


@COUNTS
@pytest.mark.parametrize("name", READERS)
def test_files_of_a_workspace(root, name, count):
    path = root / name
    if name == "eval/gate/v2-v1.json" and not path.exists():
        write_json(path, {"new": {"version": "v2"}, "old": {"version": "v1"}, "margins": {}, "digest": "0"})
    whole = path.read_bytes()

    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(st.data())
    def run(data):
        kinds = [changed] + [with_value] * (path.suffix == ".json")
        how = data.draw(st.sampled_from([*kinds, None]))
        path.write_bytes(data.draw(CONTENTS) if how is None else how(data.draw, whole))
        fuzz(READERS[name], root)

    try:
        run()
    finally:
        path.write_bytes(whole)


def test_a_value_that_is_written_is_read(tmp_path):
    @settings(max_examples=FEW, deadline=None, derandomize=True)
    @given(VALUES)
    def run(value):
        try:
            write_json(tmp_path / "x.json", value)
        except ValueError:  # not a number of JSON, or a lone surrogate
            return
        assert read_json(tmp_path / "x.json") == value

    run()

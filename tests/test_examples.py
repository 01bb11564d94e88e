"""The examples in the docstrings of the public names run as they stand, offline."""

import doctest
import inspect
import json

import pytest

import gorp


def example_of(name):
    """The examples of a public name; None if its docstring has none, or is the one of a builtin type."""
    value = getattr(gorp, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return None
    parsed = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", {}, f"gorp.{name}", None, None)
    return parsed if parsed.examples else None


WITH_EXAMPLE = [name for name in gorp.__all__ if example_of(name)]


def test_the_main_public_names_have_an_example():
    assert len(WITH_EXAMPLE) >= 12
    assert {"load_model", "load_task", "train_task", "score_task", "AccuracyMatrix", "load_config"} <= set(WITH_EXAMPLE)


@pytest.fixture
def october(tmp_path, monkeypatch):
    """A folder with the rows and the YAML that the examples name."""
    rows = [{"prompt": f"Is case {i} urgent? Answer:", "completion": ("yes", "no")[i % 2]} for i in range(40)]
    (tmp_path / "october.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bot.yaml").write_text(
        "model: {path: gorp-tiny-t5}\nmethod: {name: gorp}\ntasks:\n  - {name: october, train: october.jsonl}\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_example_prints_what_it_says(name, october):
    example = example_of(name)
    failed = []
    doctest.DocTestRunner().run(example, out=failed.append)
    assert not failed, "".join(failed)

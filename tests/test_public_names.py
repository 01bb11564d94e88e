"""`from gorp import ...`: the public names, and what an import of the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gorp


SOURCE = ast.parse(Path(gorp.__file__).read_text(encoding="utf-8"))


def test_every_public_name_resolves_to_what_its_module_defines():
    for name in gorp.__all__:
        value = getattr(gorp, name)
        assert getattr(value, "__name__", name) == name
        assert name in dir(gorp)


def test_type_checkers_see_the_names_that_programs_can_import():
    [block] = [node for node in SOURCE.body if isinstance(node, ast.If)]
    for_checkers = {alias.name for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    lazy = {name for names in gorp._MODULES.values() for name in names}
    assert set(gorp.__all__) == lazy == for_checkers and len(gorp.__all__) == len(lazy)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gorp' has no attribute 'train'"):
        gorp.train  # noqa: B018


def test_importing_the_package_imports_no_heavy_library():
    code = "import gorp, sys; print({'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

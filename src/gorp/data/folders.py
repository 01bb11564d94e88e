"""Find the files of a local folder, as `datasets` would, and refuse a README that points outside the folder."""

import os
from pathlib import Path

import datasets
from huggingface_hub import metadata_load

from gorp.data.rows import texts
from gorp.errors import DataError, shown


READ_BY_US = (".jsonl", ".csv", ".tsv", ".parquet")
"""Files of a folder that gorp reads itself, as single files: `datasets` guesses types, so that `007` becomes 7."""


def local_files(folder: Path, subset: str | None, split: str) -> list[Path]:
    """Return the files of a split if gorp can read all of them itself; otherwise an empty list, for `datasets` to read.

    The names of the files, or the folder's README, say which files belong to a split.

    Raises:
        DataError: If the README names files outside the folder. The author of the folder must not be able to choose
            other files to be read.
        Exception: Whatever `datasets` raises for a folder that it cannot load.
    """
    card = folder / "README.md"
    for text in texts((metadata_load(card) or {}).get("configs") if card.is_file() else None):
        if "://" in text:  # checked before anything is downloaded
            raise _outside(folder, text)
    builder = datasets.load_dataset_builder(str(folder), subset)
    data_files = builder.config.data_files or {}
    root = os.path.abspath(folder)
    for file in (str(file) for files in data_files.values() for file in files):
        if os.path.commonpath([root, os.path.abspath(file)]) != root:
            raise _outside(folder, file)
    files = [Path(file) for file in data_files.get(split, [])]
    typed = builder.info.features is not None  # the README says which types the columns have
    return [] if typed or any(file.suffix.lower() not in READ_BY_US for file in files) else files


def _outside(folder: Path, file: str) -> DataError:
    return DataError(
        f"{folder}: its README names a file outside the folder: {shown(file)}. Move it into the folder, or give it "
        f"as `train`."
    )

"""A local folder of files, as `datasets` understands it, and what it must not reach for."""

import os
from pathlib import Path

import datasets
from huggingface_hub import metadata_load

from gorp.data.rows import texts
from gorp.errors import DataError, shown


READ_BY_US = (".jsonl", ".csv", ".tsv", ".parquet")
"""Files that are read as they are when they stand alone: `datasets` guesses types, so that `007` becomes 7."""


def local_files(folder: Path, subset: str | None, split: str) -> list[Path]:
    """The files of a split, if all of them can be read as single files are; else none, and `datasets` reads them.

    Which files belong to a split is said by their names, or by the folder's README.

    Raises:
        DataError: If the README names files outside the folder. Whoever made the folder must not choose what is read
            beside it.
        Exception: Whatever `datasets` raises of a folder that it does not understand.
    """
    card = folder / "README.md"
    for text in texts((metadata_load(card) or {}).get("configs") if card.is_file() else None):
        if "://" in text:  # before anything is fetched
            raise _reaches_out(folder, text)
    builder = datasets.load_dataset_builder(str(folder), subset)
    data_files = builder.config.data_files or {}
    root = os.path.abspath(folder)
    for file in (str(file) for files in data_files.values() for file in files):
        if os.path.commonpath([root, os.path.abspath(file)]) != root:
            raise _reaches_out(folder, file)
    files = [Path(file) for file in data_files.get(split, [])]
    typed = builder.info.features is not None  # the README says which types the columns have
    return [] if typed or any(file.suffix.lower() not in READ_BY_US for file in files) else files


def _reaches_out(folder: Path, file: str) -> DataError:
    return DataError(
        f"{folder}: its README names rows outside the folder: {shown(file)}. Move them into it, or give that file "
        f"as `train`."
    )

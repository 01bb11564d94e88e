"""Find duplicates, conflicts and the rows of the split in a file of any size, from hashes of its rows.

A row is 28 bytes: 64 bits of its prompt's hash, 64 bits of its answer's, 64 bits of its rank in the split, its line.
Two rows are duplicates if both hashes are equal, which is 128 bits. Records beyond 32 MiB are in a temporary file, and
are read in parts by the hash of one field: equal values meet in one part, and memory does not grow with the file.
"""

import hashlib
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np


FIELDS = [("prompt", "<u8"), ("answer", "<u8"), ("rank", "<u8"), ("number", "<u4")]
RECORD, INDEXED = np.dtype(FIELDS), np.dtype([*FIELDS, ("index", "<i8")])

IN_MEMORY = 32 * 2**20
"""Bytes of records that are kept in memory."""

BLOCK, PART = 2**14, 2**18
"""Rows that are written at once; about as many rows as a part has."""

MOST_PARTS = 500
"""Most parts, each of which is an open file; with more than 130 million rows the parts are larger."""

EXAMPLES = 10
"""Most line numbers that are kept of each finding."""

Array = np.ndarray[Any, Any]


def text_hash(text: str) -> int:
    """Return 64 bits of the BLAKE2b hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def normal(text: str) -> str:
    """Return a text in Unicode's form NFC, with every run of blanks and line breaks as one blank."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class RowIndex:
    """The hashes and lines of the rows of a file, in order; to be used in a `with`."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._new: list[tuple[int, int, int, int]] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)
        self._written = 0

    def __enter__(self) -> "RowIndex":
        """Return the index, whose temporary file is removed at the end of the context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file."""
        self._file.close()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._written + len(self._new)

    def add(self, prompt: int, answer: int, rank: int, number: int) -> None:
        """Add a row.

        Args:
            prompt: Hash of its prompt.
            answer: Hash of its answer.
            rank: The first 64 bits of `row_hash`, or 0 if no rows will be split off.
            number: Its line.
        """
        self._new.append((prompt, answer, rank, number))
        if len(self._new) == BLOCK:
            self._flush()

    def _flush(self) -> None:
        records = np.array(self._new, RECORD)
        self._new.clear()
        self._file.seek(0, 2)
        self._file.write(records.tobytes())
        self._written += len(records)

    def parts(self, key: str, where: Array | None = None) -> Iterator[Array]:
        """Yield the records, with their indices, of disjoint parts; rows with the same `key` are in one part.

        Args:
            key: "prompt" or "answer".
            where: Whether a row takes part, for each row; None for all.
        """
        self._flush()
        parts = min(max(1, -(-len(self) // PART)), MOST_PARTS)
        with ExitStack() as stack:
            spool = [tempfile.SpooledTemporaryFile(max_size=IN_MEMORY // parts) for _ in range(parts)]
            files = [stack.enter_context(file) for file in spool]
            for start, found in self._blocks():
                records = np.empty(len(found), INDEXED)
                records["index"] = np.arange(start, start + len(found))
                for name in found.dtype.names or ():
                    records[name] = found[name]
                if where is not None:
                    records = records[where[start : start + len(found)]]
                part_of = records[key] % np.uint64(parts)
                records = records[np.argsort(part_of, kind="stable")]
                ends = np.cumsum(np.bincount(part_of.astype(np.int64), minlength=parts))
                for file, part in zip(files, np.split(records, ends[:-1]), strict=True):
                    file.write(part.tobytes())
            for file in files:
                file.seek(0)
                yield np.frombuffer(file.read(), INDEXED)
                file.truncate(0)

    def _blocks(self) -> Iterator[tuple[int, Array]]:
        """Yield the records in order, many at a time, each time with the index of the first."""
        start = 0
        self._file.seek(0)
        while block := self._file.read(RECORD.itemsize * 4 * BLOCK):
            found = np.frombuffer(block, RECORD)
            yield start, found
            start += len(found)

    def repeats(self) -> dict[str, Any]:
        """Return how many rows are duplicates of an earlier one, and how many prompts have different answers.

        Returns:
            `duplicates` and `conflicts`, each with a `count` and the first `lines`: of a duplicate its own and that of
            the first such row; of a prompt those of the first row with each answer, at most three.
        """
        duplicates, conflicts = 0, 0
        pairs: list[tuple[int, int]] = []
        groups: list[tuple[int, ...]] = []
        for records in self.parts("prompt"):
            order = np.lexsort((records["index"], records["answer"], records["prompt"]))
            prompt, answer, number = (records[name][order] for name in ("prompt", "answer", "number"))
            same_prompt = prompt[1:] == prompt[:-1]
            same_row = same_prompt & (answer[1:] == answer[:-1])
            begins = np.flatnonzero(np.concatenate(([True], ~same_row)))  # of the runs of equal rows
            copies = np.flatnonzero(same_row) + 1
            first = begins[np.searchsorted(begins, copies, side="right") - 1]
            duplicates += len(copies)
            few = np.argsort(number[copies], kind="stable")[:EXAMPLES]
            pairs += zip(number[copies[few]].tolist(), number[first[few]].tolist(), strict=True)
            # A run whose prompt is that of the run before it has another answer to the same prompt.
            other = np.concatenate(([False], same_prompt & ~same_row))[begins]
            asked = np.cumsum(~other) - 1  # the prompt of each run, counted
            conflicting, starts = np.unique(asked[other], return_index=True)
            conflicts += len(conflicting)
            found = np.flatnonzero(other)[starts] - 1  # the first run of each such prompt
            for run in found[np.argsort(number[begins[found]], kind="stable")[:EXAMPLES]].tolist():
                runs = [run, *(n for n in range(run + 1, min(run + 3, len(begins))) if asked[n] == asked[run])]
                groups.append(tuple(sorted(number[begins[runs]].tolist())))
        return {
            "duplicates": {"count": duplicates, "lines": sorted(pairs)[:EXAMPLES]},
            "conflicts": {"count": conflicts, "lines": sorted(groups)[:EXAMPLES]},
        }

    def drawn(self, rows: int) -> list[int] | None:
        """Return the lines of the rows that `gorp.data.split.cut_dev` splits off, in order.

        Args:
            rows: Rows wanted.

        Returns:
            None if fewer prompts than that occur once: then copies are drawn together, by their texts.
        """
        rows = min(rows, len(self) // 5)
        single = np.zeros(len(self), bool)
        for records in self.parts("prompt"):
            _, where, times = np.unique(records["prompt"], return_index=True, return_counts=True)
            single[records["index"][where[times == 1]]] = True
        if int(single.sum()) < rows:
            return None
        best = np.empty(0, [("position", "<f8"), ("rank", "<u8"), ("index", "<i8"), ("number", "<u4")])
        alone, once = best.copy(), 0  # rows whose answer occurs once are one stratum
        for records in self.parts("answer", single):
            order = np.lexsort((records["index"], records["rank"], records["answer"]))
            answer = records["answer"][order]
            _, begin, size = np.unique(answer, return_index=True, return_counts=True)
            size_of, rank_in = np.repeat(size, size), np.arange(len(answer)) - np.repeat(begin, size)
            found = np.empty(len(answer), best.dtype)
            found["position"] = (rank_in + 0.5) / size_of  # (i + ½) / n
            found["rank"], found["number"] = records["rank"][order], records["number"][order]
            found["index"] = records["index"][order]
            once += int((size == 1).sum())
            new = _lowest(found[size_of == 1], "rank", rows)
            alone = np.sort(np.concatenate((alone, new)), order=("rank", "index"))[:rows]
            best = np.sort(np.concatenate((best, _lowest(found[size_of > 1], "position", rows))))[:rows]
        alone["position"] = (np.arange(len(alone)) + 0.5) / max(once, 1)
        best = np.sort(np.concatenate((best, alone)))[:rows]
        return np.sort(best["number"]).tolist()


def _lowest(found: Array, field: str, rows: int) -> Array:
    """Return the records with one of the `rows` lowest values of a field, ties included."""
    if len(found) <= rows:
        return found
    return found[found[field] <= np.partition(found[field], rows - 1)[rows - 1]] if rows else found[:0]

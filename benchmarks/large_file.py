"""Measure the memory and the time of `gorp add` on a JSON Lines file of 2 GB.

    python benchmarks/large_file.py FOLDER [--gigabytes 2] [--bytes-per-row 100]

The file is written into FOLDER and stays there. Three copies of rows, two prompts with another answer, and three rows
that an eval set has are put into it; they must be what `gorp add` finds. It runs in a process of its own, whose largest
resident memory is printed, and must be below 1 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path


LIMIT = 10**9
"""Bytes of memory that the command may use."""


def write_file(path: Path, size: int, row_bytes: int) -> dict[str, int]:
    """Write rows of a prompt and a completion until the file has `size` bytes; return the numbers of what is in it."""
    filler = ("the quick brown fox jumps over the lazy dog " * (row_bytes // 40 + 1))[: max(row_bytes - 60, 0)]
    count, written = 0, 0
    planted = {3: 1, 1003: 1000, 5000: 77}  # line -> the line that it copies
    other = {2000: 500, 3000: 501}  # line -> the line whose prompt it has, with another answer
    with path.open("w") as file:
        while written < size:
            count += 1
            of = planted.get(count) or other.get(count) or count
            answer = f"answer {of * 7919 % 1000003}{' or not' * (count in other)}"
            line = f'{{"prompt":"q {of} {filler}","completion":"{answer}"}}\n'
            written += file.write(line)
    return {"rows": count, "copies": len(planted), "conflicts": len(other)}


def main() -> None:
    """Write the files, run the command, compare what it found, and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--bytes-per-row", type=int, default=100)
    parser.add_argument("--eval", action="store_true", help="Give eval rows; otherwise they are split off.")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_file(folder / "large.jsonl", int(arguments.gigabytes * 10**9), arguments.bytes_per_row)
    with (folder / "large.jsonl").open() as file:
        head = [json.loads(next(file)) for _ in range(12)]
    small = [{"prompt": f"something else {n}", "completion": "yes"} for n in range(40)]
    held_out = [{**row, "prompt": row["prompt"].replace(" ", "  ", 1)} for row in head[9:]]
    for name, content in (("small", small), ("small_test", held_out), ("large_test", [{**small[0], "prompt": "new"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    yaml = folder / "bot.yaml"
    yaml.unlink(missing_ok=True)
    run = [sys.executable, "-m", "gorp"]
    files = [str(folder / "small.jsonl"), str(folder / "small_test.jsonl")]
    subprocess.run([*run, "init", "gorp-tiny-t5", *files, "--out", str(yaml)], check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    command = [*run, "add", "large", str(folder / "large.jsonl"), "--config", str(yaml), "--json"]
    command += ["--eval", str(folder / "large_test.jsonl")] if arguments.eval else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of `gorp init` too, which needs less of everything
    memory, cpu = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
    found = json.loads(done.stdout)["tasks"]["large"]
    train = found["train"]
    assert train["rows"] == rows["rows"]
    assert train["duplicates"] == {"count": rows["copies"], "lines": [[3, 1], [1003, 1000], [5000, 77]]}
    assert train["conflicts"] == {"count": rows["conflicts"], "lines": [[500, 2000], [501, 3000]]}
    assert found["overlaps"]["small"]["lines"] == [[10, 1], [11, 2], [12, 3]]
    assert arguments.eval or len(train["split_off"]) == 1000
    tokens = train["tokens"]
    counted = {"counted_rows": tokens["rows"], "random_rows": tokens["random_rows"]}
    facts = {"bytes": train["bytes"], **rows, **counted, "eval": arguments.eval, "reading_seconds": train["seconds"]}
    print(json.dumps({**facts, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "resident_bytes": memory}))
    assert memory < LIMIT, f"{memory:,} bytes of memory; wanted less than {LIMIT:,}"


if __name__ == "__main__":
    main()

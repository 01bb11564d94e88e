"""Measure `gorp status` on a workspace of many versions, after the imports.

    python benchmarks/many_versions.py [VERSIONS]

One version is trained; the others are copies of its record, each with a task, scores of all tasks, and answers.
"""

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

import yaml

from gorp.evaluation import TaskScore
from gorp.storage import write_json
from gorp.workspace import Workspace, load_config, run_sequence, status
from gorp.workspace.scores import Scores
from gorp.workspace.seal import sealed


ANSWERS = 20
"""Rows of each task."""


def make(folder: Path, count: int) -> Path:
    """Return a workspace with `count` versions after v0."""
    rows = "".join(f'{{"prompt": "light {i}", "completion": "{i % 2}"}}\n' for i in range(8))
    (folder / "rows.jsonl").write_text(rows)
    config = {
        "model": {"path": "gorp-tiny-t5"},
        "method": {"name": "gorp"},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4},
        "tasks": [{"name": "task1", "train": "rows.jsonl", "eval": "rows.jsonl"}],
    }
    (folder / "bot.yaml").write_text(yaml.safe_dump(config))
    run_sequence(load_config(folder / "bot.yaml"), folder / "bot")
    store = Workspace(folder / "bot")
    with store.writing():
        record = {key: value for key, value in store.current().record.items() if key not in ("version", "sha256")}
        for number in range(2, count + 1):
            names = [f"task{i}" for i in range(1, number + 1)]
            facts = {"parent": f"v{number - 1}", "task": names[-1], "contains": names}
            tasks = {name: record["tasks"]["task1"] for name in names}
            store.publish(f"v{number}", record | facts | {"tasks": tasks})
    cells, samples = Scores(store.root / "eval"), [{"index": i, "answer": str(i)} for i in range(ANSWERS)]
    for number in range(1, count + 1):
        for task in {1, number}:
            found = TaskScore(task=f"task{task}", metric="exact_match", score=50.0, rows=ANSWERS, samples=samples)
            cell = cells.add(f"v{number}", found, "key", "conditions")
            for earlier in range(1, number):
                cells.cells[f"v{number}"][f"task{earlier}"] = sealed(
                    {key: value for key, value in cell.items() if key != "digest"}, f"v{number}", f"task{earlier}"
                )
    write_json(store.root / "eval/scores.json", cells.cells)
    config["tasks"] = [{"name": f"task{i}", "train": "rows.jsonl"} for i in range(1, count + 1)]
    (folder / "bot.yaml").write_text(yaml.safe_dump(config))
    return store.root


def main() -> None:
    """Print the time of three calls, and where it goes."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder), count)
        files = [path for path in root.rglob("*") if path.is_file()]
        print(f"{count} versions, {len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.0f} MiB")
        for _ in range(3):
            start = time.perf_counter()
            status(root)
            print(f"status: {time.perf_counter() - start:.2f} s")
        profile = cProfile.Profile()
        profile.runcall(status, root)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


if __name__ == "__main__":
    main()

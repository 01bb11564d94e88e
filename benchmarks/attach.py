"""Check what `Protection` promises in each kind of Trainer, on tiny models: two tasks, on one rank or two.

    python benchmarks/attach.py                       one rank
    python benchmarks/attach.py --ranks 2 --rows trainer completion

Each row of the table is real training. It shows

    leak          share of the second task's change that acts on inputs the first one protects; the promise is 1e-5
    resume        whether the second task, stopped halfway and resumed, ends with the same bits as uninterrupted
    from engine   ‖found - engine's‖ / ‖engine's‖ of the changes, where gorp's own engine has the same rows and batches

The models, rows and the script that the ranks run are those of `tests/attach`.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from records import RESULTS, conditions, write_record
from torch.utils.data import DataLoader


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gorp import Protection  # noqa: E402
from gorp.data import Collator, Encoding, encode  # noqa: E402
from gorp.methods import METHODS, build_method  # noqa: E402
from gorp.training import train_task  # noqa: E402
from gorp.weights.delta import WeightDelta  # noqa: E402
from gorp.workspace.state import read_state, write_state  # noqa: E402
from tests.attach.runs import (  # noqa: E402
    TRAINING,
    family_of,
    learn,
    lora_config,
    make,
    options_of,
    pairs_of,
    version,
)
from tests.runs import Kill, Killed, rows, tiny, tokenizer  # noqa: E402


KINDS = {
    "trainer": "Trainer",
    "seq2seq": "Seq2SeqTrainer",
    "packing": "SFTTrainer, messages, packing",
    "completion": "SFTTrainer, prompt and completion",
    "loop": "plain loop",
}
SAME: dict[str, Any] = {"lr_scheduler_type": "linear", "max_grad_norm": 1.0, "weight_decay": 0.1}
"""What gorp's engine and the Trainer have different defaults for."""
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
NO_DIGEST = "0" * 64


def in_engine(kind: str, folder: Path) -> dict[str, WeightDelta]:
    """Train both tasks in gorp's own engine; return the changes."""
    family, options = family_of(kind), options_of(kind)
    lora = options.pop("lora")
    training = {k: v for k, v in TRAINING.items() if k not in ("report_to", "disable_tqdm", "use_cpu")} | SAME
    deltas: dict[str, WeightDelta] = {}
    for index in (1, 2):
        model, method = tiny(family), build_method("gorp", METHODS["gorp"].Config(**options), lora)
        method.setup(model)
        if index == 2:
            method.load_state_dict(read_state(folder / "1", NO_DIGEST))
        train_task(
            model, tokenizer(family), method, rows(index), name=f"task-{index}", index=index, seed=0,
            training=training | {"gradient_accumulation_steps": 1}, encoding=Encoding(), folder=folder / f"run{index}",
        )  # fmt: skip
        write_state(folder / str(index), method, NO_DIGEST)
        deltas = method.deltas
    return deltas


def in_process(kind: str, own: bool, folder: Path) -> dict[str, Any]:
    """Train, stop and resume in this process."""
    adapter = lora_config(kind) if own else None
    arguments = SAME | SAVING | {"gradient_accumulation_steps": 1}
    learn(kind, 1, folder / "whole", folder / "out1", adapter=adapter, **arguments)
    shutil.copytree(folder / "whole", folder / "stopped")
    trainer, protection = learn(kind, 2, folder / "whole", folder / "out2", adapter=adapter, **arguments)
    stopped = Protection(folder / "stopped", **options_of(kind, adapter))
    kill = Kill(max(1, trainer.state.max_steps // 2))
    try:
        make(kind, 2, folder / "out3", adapter=adapter, callbacks=[stopped, kill], **arguments).train()
    except Killed:
        pass
    learn(kind, 2, folder / "stopped", folder / "out3", adapter=adapter, resume=True, **arguments)
    found: dict[str, Any] = {"leak": protection.facts()["leak"], "resume": same_bits(folder)}
    if kind in ("trainer", "seq2seq") and not own:
        assert protection.method is not None
        expected = in_engine(kind, folder / "engine")
        found["from_engine"] = max(
            ((protection.method.deltas[name].dense() - delta.dense()).norm() / delta.norm()).item()
            for name, delta in expected.items()
        )
    return found


def in_loop(own: bool, folder: Path) -> dict[str, Any]:
    """Train with the five calls, which write no checkpoints."""
    from peft import get_peft_model

    tok, protection = tokenizer("llama"), None
    for task in (1, 2):
        adapter = lora_config() if own else None
        protection, model = Protection(folder / "whole", **options_of("trainer", adapter)), tiny("llama")
        torch.manual_seed(task)
        wrapped: Any = get_peft_model(model, adapter) if adapter else model  # pyright: ignore[reportArgumentType]
        encoded: Any = encode(rows(task), tok, encoder_decoder=False, encoding=Encoding())
        loader = DataLoader(encoded, batch_size=4, collate_fn=Collator(pad_token_id=tok.pad_token_id))
        protection.begin(wrapped, rows=loader, num_steps=len(loader))
        optimizer = torch.optim.AdamW(protection.parameters(5e-3))
        wrapped.train()
        for batch in loader:
            wrapped(**batch).loss.backward()
            protection.before_step(optimizer)
            optimizer.step()
            protection.after_step(optimizer)
            optimizer.zero_grad()
        protection.end(optimizer)
        protection.save()
    assert protection is not None
    return {"leak": protection.facts()["leak"]}


def on_ranks(kind: str, own: bool, folder: Path, ranks: int) -> dict[str, Any]:
    """Train, stop and resume with torchrun."""

    def launch(name: str, *words: str) -> str:
        script = str(ROOT / "tests/attach/train_tasks.py")
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), script]
        result = subprocess.run(
            [sys.executable, *command, str(folder / name), kind, "own" if own else "none", *words],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        if result.returncode:
            raise SystemExit(result.stderr[-3000:])
        return next(line for line in reversed(result.stdout.splitlines()) if line.startswith('{"leak'))

    found = json.loads(launch("whole-run"))
    launch("stopped-run", "--stop-at", "2")
    launch("stopped-run", "--resume")
    for name in ("whole", "stopped"):
        shutil.copytree(folder / f"{name}-run/protected", folder / name)
    return {"leak": found["leak"], "resume": same_bits(folder)}


def same_bits(folder: Path) -> bool:
    """Whether the second versions of `whole` and `stopped` are equal."""
    one, other = (version(folder / name, "v2") for name in ("whole", "stopped"))
    return one.keys() == other.keys() and all(torch.equal(other[key], x) for key, x in one.items())


def measure(kinds: list[str], ranks: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    for kind in kinds:
        for own in (False, True):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if kind == "loop":
                    found = in_loop(own, folder)
                else:
                    found = in_process(kind, own, folder) if ranks == 1 else on_ranks(kind, own, folder, ranks)
            yield {"kind": kind, "own_adapter": own, "ranks": ranks, **found}


def table(measured: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| trainer | LoRA | ranks | leak | resume | from engine |", "|---|---|---|---|---|---|"]
    for row in measured:
        resume = {True: "same bits", False: "**differs**", None: ""}[row.get("resume")]
        engine = "" if "from_engine" not in row else f"{row['from_engine']:.1e}"
        lora = "the user's LoraConfig" if row["own_adapter"] else "added by gorp"
        lines.append(f"| {KINDS[row['kind']]} | {lora} | {row['ranks']} | {row['leak']:.1e} | {resume} | {engine} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of Trainer")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the table")
    parser.add_argument("--out", type=Path, default=RESULTS / f"attach-{datetime.date.today().isoformat()}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    kinds = [kind for kind in args.rows if kind != "loop" or args.ranks == 1]
    measured = list(measure(kinds, args.ranks))
    record = {"rows": measured, "pairs": {kind: list(pairs_of(kind).targets) for kind in kinds}, **conditions()}
    write_record(args.out, f"attach-{args.ranks}-rank" + ("s" if args.ranks > 1 else ""), record)
    print(json.dumps(record, indent=2) if args.json else table(measured))


if __name__ == "__main__":
    main()

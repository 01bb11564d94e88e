"""Measure a step of TRL's SFTTrainer with a PEFT LoRA, and of the same SFTTrainer with `Protection`, in one run.

    python benchmarks/attach_speed.py --shape smollm2 --layers 6 --rows 4 --tokens 64 --clock cpu

Both train the same LoRA modules (r 8, all linear layers) on the same rows; the second is at its second task, with a
real S, and also trains gorp's cores. The two Trainers take turns, ten steps each; a step is the time from
`on_step_begin` to `on_step_end`. The script reports

    step       median seconds of a step of each
    vs lora    median over turns of (median with Protection / median without), with the range of the turns
"""

import copy
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from records import arguments, conditions, described, settle, write_record
from shapes import build_shape, random_batch, twin
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from gorp import Protection


TURN = 10
"""Steps between two changes from one Trainer to the other; gorp refreshes each frame once in as many steps."""


class Turns(TrainerCallback):
    """Times each step, and lets the other Trainer run after every `TURN` steps.

    Args:
        clock: Returns seconds.
        mine: Released by the other Trainer when this one may run.
        other: Released by this one.
    """

    def __init__(self, clock: Callable[[], float], mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.seconds: list[float] = []
        self._clock, self._mine, self._other, self._begun = clock, mine, other, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the turn, then start the clock."""
        if state.global_step % TURN == 0:
            self._mine.acquire()
        self._begun = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the clock; pass the turn on."""
        self.seconds.append(self._clock() - self._begun)
        if state.global_step % TURN == 0:
            self._other.release()


def rows_of(model: Any, count: int, tokens: int, seed: int) -> Dataset:
    """Return rows of random tokens, all of them labels."""
    batch = random_batch(model, rows=count, tokens=tokens, seed=seed)
    return Dataset.from_dict({"input_ids": batch["input_ids"].tolist(), "labels": batch["labels"].tolist()})


def trainer(args: Any, model: Any, rows: Dataset, steps: int, folder: Path, *callbacks: TrainerCallback) -> SFTTrainer:
    """Return an SFTTrainer with a LoRA adapter of PEFT."""
    return SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=args.rows,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            bf16=args.dtype == "bfloat16",
            use_cpu=args.device == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10_000,
        ),
        train_dataset=rows,
        processing_class=_tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=list(callbacks),
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer; the rows are token ids already, so only its padding id is used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    inner = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def measure(args: Any, folder: Path) -> dict[str, Any]:
    """Train the first task with Protection, then run both Trainers in turns; return their times."""
    base = build_shape(args.shape, layers=args.layers, device=args.device, dtype=args.dtype)
    steps, clock = (args.turns + 1) * TURN, time.thread_time if args.clock == "cpu" else time.perf_counter
    first, second = (rows_of(base, 16 * args.rows, args.tokens, seed) for seed in (1, 2))
    protection = Protection(folder / "protected")
    trainer(args, copy.deepcopy(base), first, 2 * TURN, folder / "first", protection).train()
    protection.save()
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    lora, ours = Turns(clock, turns[0], turns[1]), Turns(clock, turns[1], turns[0])
    protection = Protection(folder / "protected")
    runs = [
        trainer(args, twin(base), second, steps, folder / "lora", lora),
        trainer(args, twin(base), second, steps, folder / "gorp", ours, protection),
    ]
    threads = [threading.Thread(target=run.train) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ratios, medians = [], {"lora": [], "protection": []}
    for start in range(TURN, steps, TURN):  # without the first turn, which warms up
        both = [statistics.median(run.seconds[start : start + TURN]) for run in (lora, ours)]
        ratios.append(both[1] / both[0])
        medians["lora"].append(both[0])
        medians["protection"].append(both[1])
    return {
        "step_seconds": {name: statistics.median(values) for name, values in medians.items()},
        "vs_lora": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
        "leak": protection.facts().get("leak"),
        "turns": len(ratios),
    }


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, rows=4, tokens=64)
    parser.set_defaults(shape="smollm2", layers=6)
    parser.add_argument("--turns", type=int, default=5, help="turns that are counted, of ten steps each")
    args = settle(parser)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    lora, ours = (found["step_seconds"][name] for name in ("lora", "protection"))
    print(f"step    LoRA {lora:.3f} s, with Protection {ours:.3f} s")
    low, high = found["vs_lora"]["range"]
    print(f"vs lora {found['vs_lora']['median']:.3f} ({low:.3f} to {high:.3f})    leak {found['leak']:.1e}")
    record = {"arguments": described(args), "conditions": conditions(), **found}
    print(write_record(args.out, f"attach-{args.shape}", record))


if __name__ == "__main__":
    main()

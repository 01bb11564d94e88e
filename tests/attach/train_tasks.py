"""Two tasks with a stock Trainer, in one process or as many ranks as the launcher starts.

    train_tasks.py FOLDER KIND none|own [--pause-at STEP | --stop-at STEP] [--resume]
    torchrun --nproc-per-node 2 train_tasks.py ...      accelerate launch --num_processes 2 train_tasks.py ...

The second task may be stopped: `--pause-at` says "paused" and waits to be killed, `--stop-at` ends the process after a
step; `--resume` goes on with it.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from gorp.storage import write_tensors
from tests.attach.runs import learn, lora_config
from tests.runs import Kill, Killed


class Pause(TrainerCallback):
    """Waits for a signal after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            print("paused", flush=True)
            time.sleep(120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind")
    parser.add_argument("adapter", choices=["none", "own"])
    parser.add_argument("--pause-at", type=int)
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    adapter = lora_config(args.kind) if args.adapter == "own" else None
    stops = {Pause(args.pause_at)} if args.pause_at else {Kill(args.stop_at)} if args.stop_at else set()
    for task in (2,) if args.resume else (1, 2):
        trainer, protection = learn(
            args.kind,
            task,
            args.folder / "protected",
            args.folder / f"out{task}",
            adapter=adapter,
            resume=args.resume or None,
            callbacks=list(stops) if task == 2 else [],
            count=32,
            per_device_train_batch_size=8 // ranks,
            gradient_accumulation_steps=1,
            learning_rate=1e-3,
            save_strategy="steps",
            save_steps=1,
            ddp_find_unused_parameters=False if ranks > 1 else None,
        )
    write_tensors(args.folder / f"model{rank}.safetensors", dict(trainer.model.named_parameters()), {})
    write_tensors(args.folder / f"method{rank}.safetensors", protection.method.state_dict(), {})
    if rank == 0:
        print(json.dumps({"leak": protection.facts()["leak"], "steps": trainer.state.global_step}), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except Killed:
        print(json.dumps({"leak": None}), flush=True)
        os._exit(0)  # as a killed process: nothing is cleaned up

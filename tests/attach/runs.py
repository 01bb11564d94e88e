"""One task in each kind of Trainer, unmodified, with a `Protection` in its callbacks; tiny models, a few steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from gorp import LoraSettings, Protection
from gorp.data import Collator, Encoding, encode
from gorp.storage import read_tensors
from tests.runs import rows, tiny, tokenizer


TRAINERS = ("trainer", "seq2seq", "messages", "packing", "completion", "assistant")
"""`trainer` and `seq2seq` are transformers' own; the others are SFTTrainer with a format of rows, or an option."""

OPTIONS: dict[str, Any] = {"rank": 4, "refresh_every": 3, "oversampling": 4, "full_modules": "gate_proj"}
"""Of gorp: a core in each gated MLP, whose frame is refreshed within a training of 4 steps."""

TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 1,
    "learning_rate": 5e-3,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
"""28 rows make 3 full steps and a half one."""

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}assistant: {% generation %}{{ m['content'] }}\n"
    "{% endgeneration %}{% else %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def family_of(kind: str) -> str:
    """The model that a kind of Trainer trains."""
    return "t5" if kind == "seq2seq" else "llama"


def pairs_of(kind: str) -> LoraSettings:
    """Pairs on a few layers, for a model without an adapter."""
    return LoraSettings(r=4, target_modules=("q", "v") if family_of(kind) == "t5" else ("q_proj", "v_proj"))


def lora_config(kind: str = "trainer", **options: Any) -> LoraConfig:
    """An adapter of the user's, with a pair under the core too."""
    layers = ["q", "v", "wi_0"] if family_of(kind) == "t5" else ["q_proj", "v_proj", "gate_proj"]
    return LoraConfig(**({"r": 4, "lora_alpha": 16, "target_modules": layers} | options))


def options_of(kind: str, adapter: LoraConfig | None = None, **options: Any) -> dict[str, Any]:
    """Options of a `Protection` for a kind of Trainer."""
    full = {"full_modules": "wi_0"} if family_of(kind) == "t5" else {}
    lora = {} if adapter else {"lora": pairs_of(kind)}
    return OPTIONS | full | lora | options


def chats(task: int, count: int) -> Dataset:
    """The rows of a task as chats."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
            for row in rows(task, count)
        ]
    )


def make(
    kind: str,
    task: int,
    out: Path,
    *,
    model: nn.Module | None = None,
    adapter: LoraConfig | None = None,
    callbacks: Sequence[Any] = (),
    count: int = 28,
    data: Any = None,
    settings: Mapping[str, Any] = {},
    **arguments: Any,
) -> Trainer:
    """Make a Trainer as a user does.

    Args:
        kind: One of `TRAINERS`.
        task: 1 or 2.
        out: Its output folder.
        model: None for a new tiny one.
        adapter: The user's own adapter.
        callbacks: The Protection, and what the test adds.
        count: Number of rows.
        data: Rows instead of the task's.
        settings: Arguments of the Trainer itself.
        **arguments: Training arguments, over `TRAINING`.
    """
    family = family_of(kind)
    tok, arguments = tokenizer(family), TRAINING | {"seed": task, "output_dir": str(out)} | arguments
    model = tiny(family) if model is None else model
    torch.manual_seed(task)  # of a new adapter's A
    if kind in ("trainer", "seq2seq"):
        trainer_class, args_class = (
            (Seq2SeqTrainer, Seq2SeqTrainingArguments) if kind == "seq2seq" else (Trainer, TrainingArguments)
        )
        encoded = encode(rows(task, count), tok, encoder_decoder=family == "t5", encoding=Encoding())
        return trainer_class(
            model if adapter is None else get_peft_model(model, adapter),  # type: ignore[arg-type]
            args_class(**arguments),
            train_dataset=encoded if data is None else data,
            data_collator=Collator(pad_token_id=tok.pad_token_id),
            callbacks=list(callbacks),
            **settings,
        )
    tok.chat_template = CHAT
    of_kind: dict[str, Any] = {
        "packing": {"packing": True, "packing_strategy": "bfd", "max_length": 64},
        "completion": {"completion_only_loss": True},
        "assistant": {"assistant_only_loss": True},
    }.get(kind, {})
    return SFTTrainer(
        model,  # type: ignore[arg-type]
        SFTConfig(**({"bf16": False, "gradient_checkpointing": False} | of_kind | arguments)),
        train_dataset=data if data is not None else (rows(task, count) if kind == "completion" else chats(task, count)),
        processing_class=tok,
        callbacks=list(callbacks),
        peft_config=adapter,
        **settings,
    )


def learn(
    kind: str,
    task: int,
    folder: Path,
    out: Path,
    *,
    adapter: LoraConfig | None = None,
    options: Mapping[str, Any] = {},
    resume: bool | None = None,
    callbacks: Sequence[Any] = (),
    **arguments: Any,
) -> tuple[Trainer, Protection]:
    """Train a task of the protection folder `folder` and save it."""
    protection = Protection(folder, **options_of(kind, adapter, **options))
    trainer = make(kind, task, out, adapter=adapter, callbacks=[protection, *callbacks], **arguments)
    trainer.train(resume_from_checkpoint=resume)
    protection.save()
    return trainer, protection


def version(folder: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a version: deltas, memory, the method's state."""
    found = {}
    for path in sorted((folder / "versions" / name).glob("*.safetensors")):
        found |= {f"{path.stem}/{key}": x for key, x in read_tensors(path)[0].items()}
    return found


@torch.no_grad()
def logits(model: nn.Module, kind: str, task: int) -> Tensor:
    """What a model answers to the first rows of a task, padding zeroed."""
    tok, family = tokenizer(family_of(kind)), family_of(kind)
    encoded = encode(rows(task, 12), tok, encoder_decoder=family == "t5", encoding=Encoding())
    batch = Collator(pad_token_id=tok.pad_token_id)(list(encoded))
    model.eval()
    found = model(**batch).logits
    return found[batch["labels"] != -100] if family == "t5" else found[:, :-1][batch["labels"][:, 1:] != -100]

"""Two tasks in each kind of Trainer: the second changes nothing that the first needs, and the first still answers."""

import pytest
from peft import get_peft_model

from tests.attach.runs import TRAINERS, learn, logits, lora_config, make
from tests.runs import tiny


slow = pytest.mark.slow
ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "dropout": {"lora_dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
}
FAST = [
    ("trainer", "none"),
    ("seq2seq", "none"),
    ("messages", "plain"),
    ("packing", "patterns"),
    ("assistant", "rslora"),
]


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        pytest.param(kind, adapter, marks=[] if (kind, adapter) in FAST else slow)
        for kind in TRAINERS
        for adapter in ("none", *ADAPTERS)
        if kind != "seq2seq" or adapter != "patterns"  # its layers have other names
    ],
)
def test_the_second_task_changes_nothing_on_protected_inputs(kind, adapter, tmp_path):
    own = None if adapter == "none" else lora_config(kind, **ADAPTERS[adapter])
    for task in (1, 2):
        trainer, protection = learn(kind, task, tmp_path / "protected", tmp_path / f"out{task}", adapter=own)
    facts = protection.facts()
    assert 0 < facts["leak"] <= 1e-6
    assert all(delta.norm() > 0 for delta in protection.method.deltas.values())
    assert protection.folder.lineage[-1].record["leak_earlier"]["task-1"]["worst"] <= 1e-6
    assert trainer.state.global_step > 0


@pytest.mark.parametrize("kind", ["trainer", *(pytest.param(kind, marks=slow) for kind in ("completion", "seq2seq"))])
def test_the_first_task_s_answers_move_less_than_with_plain_lora(kind, tmp_path):
    longer, options = {"num_train_epochs": 4}, {"threshold": 0.2, "budget": 0.9}  # nearly all that task 1 reads
    first, _ = learn(kind, 1, tmp_path / "protected", tmp_path / "out1", options=options, **longer)
    before = logits(first.model, kind, 1)
    second, _ = learn(kind, 2, tmp_path / "protected", tmp_path / "out2", options=options, **longer)
    moved = (logits(second.model, kind, 1) - before).norm()
    model = tiny("t5" if kind == "seq2seq" else "llama")
    model.load_state_dict(first.model.state_dict())
    plain = get_peft_model(model, lora_config(kind))
    make(kind, 2, tmp_path / "out3", model=plain, **longer).train()
    assert moved < 0.5 * (logits(plain, kind, 1) - before).norm()
    learned = (logits(second.model, kind, 2) - logits(first.model, kind, 2)).norm()
    assert learned > 0.1 * logits(first.model, kind, 2).norm()

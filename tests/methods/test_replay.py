"""Replay: rows come back as they were, each as often as any other, and what they teach stays learned."""

from collections import Counter

import pytest
import torch

from gorp.core.outputs import IGNORED
from gorp.methods.replay import pack_rows, padded_batch, unpack_rows
from tests.runs import assert_equal, fresh, rows, tiny, train


ROWS = [
    {
        "input_ids": torch.tensor([5, 6, 7]),
        "attention_mask": torch.ones(3, dtype=torch.long),
        "labels": torch.tensor(2),
    },
    {"input_ids": torch.tensor([8]), "attention_mask": torch.ones(1, dtype=torch.long), "labels": torch.tensor(4)},
]


def test_rows_are_packed_and_unpacked_and_make_a_padded_batch():
    for row, again in zip(ROWS, unpack_rows(pack_rows(ROWS)), strict=True):
        assert_equal(again, row)
    batch = padded_batch(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [2, 4]
    lists = [{"labels": torch.tensor([1, 2])}, {"labels": torch.tensor([3])}]
    assert padded_batch(lists)["labels"].tolist() == [[1, 2], [3, IGNORED]]


def test_each_task_has_an_equal_share_of_the_memory(tmp_path):
    model = tiny("llama")
    method = fresh("replay", model, memory_rows=10)
    kept = []
    for task in (1, 2, 1):
        train(model, method, task, tmp_path, max_steps=1)
        kept.append([[row["input_ids"].tolist() for row in task_rows] for task_rows in method.rows])
    assert [[len(one) for one in state] for state in kept] == [[10], [5, 5], [3, 3, 3]]
    assert kept[2][0] == kept[1][0][:3] == kept[0][0][:3]


def test_a_step_draws_the_same_rows_however_it_is_cut_and_every_row_as_often():
    method = fresh("replay", tiny("llama"), ratio=0.75)
    method.rows = [[{"labels": torch.tensor(i)} for i in range(10)]]
    method._memory, method._seed = method.rows[0], 3
    counts = Counter()
    for step in range(400):
        method.step = step
        whole = [int(row["labels"]) for row in method._draw(0, 6)]
        assert whole == [int(row["labels"]) for a, b in ((0, 1), (1, 3), (3, 6)) for row in method._draw(a, b)]
        counts.update(whole)
    assert set(counts) == set(range(10)) and max(counts.values()) < 1.25 * min(counts.values())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_first_task_is_remembered_where_without_old_rows_it_is_not(family, tmp_path):
    """The loss on the rows of task 1 after task 2: a small part of what it is for plain sequential LoRA."""
    ends = []
    for name in ("sequential_lora", "replay"):
        model = tiny(family)
        method, held = fresh(name, model), []
        hold = method.end_task

        def end_task(model, optimizer, task, hold=hold, held=held):
            held.extend(task.batches(28, 28))
            hold(model, optimizer, task)

        method.end_task = end_task
        for task in (1, 2):
            train(model, method, task, tmp_path, data=rows(task), num_train_epochs=8, learning_rate=1e-2)
        with torch.no_grad():
            ends.append(model(**held[0]).loss.item())
    print(f"\n{family}: {ends[0]:.3f} without, {ends[1]:.3f} with replay")
    assert ends[1] < 0.5 * ends[0]

"""What is reported on a task does not depend on the order in which its weights were loaded."""

import itertools

import torch

from gorp.core.memory import SubspaceMemory
from gorp.protection.report import TaskReport, full_and_nearly_full


def test_a_resumed_task_has_the_same_facts_although_its_weights_come_in_another_order():
    rows = {f"layer{n}": torch.randn(6, size) for n, size in enumerate((7, 9, 11, 13))}
    facts = []
    for order in itertools.permutations(rows):
        memory, report = SubspaceMemory(energy=0.9, budget=0.4), TaskReport()
        for name in order:
            memory.extend(name, rows[name])
            report.leak[name] = 1e-7 * rows[name].shape[1]
        assert memory.left_out
        full = [name for name in order if name != "layer3"]
        facts.append((report.facts(memory, list(order)), full_and_nearly_full(memory, full, 4, finished=1)))
    assert all(each == facts[0] for each in facts)

"""Input sums are taken over exactly the tokens that an answer depends on."""

import pytest
import torch
from torch import nn

import gorp.layers.inputs
from gorp.layers.inputs import InputMoment, InputSums, SharedInputs
from gorp.layers.targets import resolve
from tests.runs import tiny


def batch_of(family: str, *, rows: int = 3) -> dict[str, torch.Tensor]:
    """Rows of different lengths; decoders are padded on the right, and their prompts have no label."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 90, (rows, 12), generator=generator)
    lengths = torch.tensor([12, 9, 5])[:rows]
    mask = (torch.arange(12)[None] < lengths[:, None]).long()
    ids = ids.where(mask.bool(), 0)
    if family == "t5":
        answers = torch.randint(5, 90, (rows, 4), generator=generator)
        return {"input_ids": ids, "attention_mask": mask, "labels": answers}
    labels = ids.where(mask.bool() & (torch.arange(12)[None] >= lengths[:, None] - 2), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {f"{name}.weight": model.get_submodule(name) for name in resolve(model, "all-linear", role="lora")}


def by_layer(*args) -> dict[str, InputSums]:
    """Return the sums of every layer, including layers that share them."""
    return {name: sums for names, sums in gorp.layers.inputs.input_moments(*args) for name in names}


def by_hand(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return Σ x xᵀ over the tokens whose output has a gradient in a layer of its module with this input."""
    found, kept = {}, {}
    handles = []
    for name, layer in layers_of(model).items():

        def keep(_, args, output, name=name):
            output.retain_grad()
            kept[name] = args[0], output

        handles.append(layer.register_forward_hook(keep))
    for p in model.parameters():
        p.requires_grad_(True)
    model.eval()
    model(**batch).loss.backward()
    for handle in handles:
        handle.remove()
    model.requires_grad_(False)
    model.zero_grad()
    counts, keys = {}, {name: (x.data_ptr(), name.rsplit(".", 2)[0]) for name, (x, _) in kept.items()}
    for name, (_, y) in kept.items():
        nonzero = y.grad.reshape(-1, y.shape[-1]).abs().sum(dim=1) > 0
        counts[keys[name]] = counts.get(keys[name], False) | nonzero
    for name, (x, _) in kept.items():
        rows = zip(x.detach().reshape(-1, x.shape[-1]), counts[keys[name]], strict=True)
        found[name] = sum(torch.outer(one, one) for one, counted in rows if counted)
    return found


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_second_moment_is_the_sum_over_tokens_with_a_gradient(family):
    model = tiny(family)
    model.requires_grad_(False)
    batch = batch_of(family)
    expected = by_hand(model, batch)
    found = by_layer(model, layers_of(model), [batch])
    assert found.keys() == expected.keys()
    for name, inputs in found.items():
        torch.testing.assert_close(inputs.total, expected[name], rtol=1e-4, atol=1e-5)


def test_padding_and_tokens_after_the_last_answer_do_not_count():
    model = tiny("llama")
    model.requires_grad_(False)
    batch = batch_of("llama")
    before = by_layer(model, layers_of(model), [batch])
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), 77)
    for name, inputs in by_layer(model, layers_of(model), [batch]).items():
        torch.testing.assert_close(inputs.total, before[name].total)
        torch.testing.assert_close(inputs.projected, before[name].projected)
        assert inputs.count == before[name].count


def test_batches_add_up_and_the_grouping_of_layers_does_not_matter(monkeypatch):
    model = tiny("t5")
    model.requires_grad_(False)
    first, second = batch_of("t5"), batch_of("t5", rows=2)
    together = by_layer(model, layers_of(model), [first, second])
    monkeypatch.setattr(gorp.layers.inputs, "BYTES", 1)  # one pass per module
    one = by_layer(model, layers_of(model), [first])
    two = by_layer(model, layers_of(model), [second])
    for name, inputs in together.items():
        torch.testing.assert_close(inputs.total, one[name].total + two[name].total)
        torch.testing.assert_close(inputs.first, one[name].first + two[name].first)
        assert inputs.count == one[name].count + two[name].count


def test_the_model_is_unchanged_afterwards():
    model = tiny("llama")
    model.requires_grad_(False)
    model.train()
    by_layer(model, layers_of(model), [batch_of("llama")])
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_with_the_same_input_share_their_sums():
    """In the last layer too, where keys and values of prompt tokens affect the answer but their queries do not."""
    model = tiny("llama")
    model.requires_grad_(False)
    groups = gorp.layers.inputs.input_moments(model, layers_of(model), [batch_of("llama")] * 2)
    found = {
        frozenset(name.removesuffix("_proj.weight").removeprefix("model.") for name in names) for names, _ in groups
    }
    wanted = [("self_attn.q", "self_attn.k", "self_attn.v"), ("self_attn.o",), ("mlp.gate", "mlp.up"), ("mlp.down",)]
    assert model.config.num_hidden_layers == 2
    assert found == {frozenset(f"layers.{i}.{name}" for name in names) for i in (0, 1) for names in wanted}


@pytest.mark.parametrize("zero", [0.0, 1e-30])
def test_a_gradient_that_is_only_rounding_in_one_layer_changes_nothing(zero):
    """The query of a first token has a gradient of zero, or of what rounding leaves of it."""
    first, second, x = nn.Linear(6, 3), nn.Linear(6, 4), torch.randn(5, 6)
    shared = SharedInputs()
    watches = [InputMoment(layer, seed, shared) for seed, layer in enumerate((first, second))]
    weights = torch.ones(5, 1)
    weights[0] = zero
    ((first(x) * weights).sum() + second(x).sum()).backward()
    shared.finish()
    assert watches[0].sums is watches[1].sums and watches[0].sums.count == 5

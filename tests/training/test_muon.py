"""Muon on matrices and AdamW elsewhere: each as torch's own, resumed bit for bit, and as safe for S as any other."""

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from gorp.core.moments import state_keys_of
from gorp.errors import ConfigError
from gorp.training.muon import MuonAdamW, tables_of
from gorp.weights.delta import WeightDelta, leak
from tests.models_small import tiny_gpt2
from tests.runs import Kill, Killed, assert_equal, fresh, tiny, train
from tests.tokenizers_small import llama_tokenizer


OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}


def parameters():
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((6, 4), (6,), (9, 3))]


def test_each_part_is_torchs_own_bit_for_bit():
    """A matrix, a vector and a table of words; rates of groups, and what a schedule makes of them, hold in both."""
    (matrix, vector, table), expected = parameters(), parameters()
    ours = MuonAdamW([{"params": [matrix, vector], "lr": 0.5}, {"params": [table]}], **OPTIONS, tables=[table])
    muon = torch.optim.Muon([expected[0]], lr=0.5, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([{"params": [expected[1]], "lr": 0.5}, {"params": [expected[2]]}], **OPTIONS)
    for step in range(4):
        for optimizer in (ours, muon, adam):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        generator = torch.Generator().manual_seed(step)
        for p, q in zip((matrix, vector, table), expected, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in (ours, muon, adam):
            optimizer.step()
        for p, q in zip((matrix, vector, table), expected, strict=True):
            assert torch.equal(p, q)
    assert set(ours.state[matrix]) == {"momentum_buffer"} and "exp_avg" in ours.state[table]


def test_a_loaded_state_goes_on_bit_for_bit():
    ends = []
    for cut in (False, True):
        matrix, vector, table = parameters()
        optimizer = MuonAdamW([matrix, vector, table], **OPTIONS, tables=[table])
        for step in range(4):
            if cut and step == 2:
                state = optimizer.state_dict()
                optimizer = MuonAdamW([matrix, vector, table], **OPTIONS, tables=[table])
                optimizer.load_state_dict(state)
            for p in (matrix, vector, table):
                p.grad = torch.sin(p.detach() + step)
            optimizer.step()
        ends.append({str(i): p.detach() for i, p in enumerate((matrix, vector, table))})
    assert_equal(*ends)


class Look(TrainerCallback):
    """Who trained what."""

    def on_train_end(self, args, state, control, model, optimizer, **kwargs):
        inner = getattr(optimizer, "optimizer", optimizer)
        assert isinstance(inner, MuonAdamW)
        names = {p: name for name, p in model.named_parameters()}
        self.muons = {names[p] for p, kept in inner.state.items() if "momentum_buffer" in kept}
        self.adams = {names[p] for p, kept in inner.state.items() if "exp_avg" in kept}


def test_tables_of_words_and_norms_are_adams(tmp_path):
    model, look = tiny("t5"), Look()
    train(model, fresh("sequential_full", model), 1, tmp_path, optim="muon", callbacks=(look,), max_steps=1)
    assert not look.muons & look.adams
    assert model.lm_head.weight is model.shared.weight and "shared.weight" in look.adams
    assert any("norm" in name for name in look.adams)
    assert all(name in look.adams for name, _ in model.named_parameters() if "relative_attention_bias" in name)
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in look.muons
    assert "decoder.block.1.layer.2.DenseReluDense.wo.weight" in look.muons


def test_a_head_of_its_own_is_a_table_too():
    model = tiny_gpt2(llama_tokenizer())
    model.lm_head = nn.Linear(32, len(llama_tokenizer()), bias=False)
    tables = {id(table) for table in tables_of(model)}
    named = {name for name, p in model.named_parameters() if id(p) in tables}
    assert named == {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}


@pytest.mark.parametrize("name", ["gorp", "sequential_full"])
def test_resumes_to_the_same_bits(name, tmp_path):
    ends = []
    options = {"optim": "muon", "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear"}
    for cut in (None, Kill(4)):
        model = tiny("llama")
        method = fresh(name, model)
        if cut is not None:
            with pytest.raises(Killed):
                train(model, method, 1, tmp_path / "cut", callbacks=(cut,), **options)
            model = tiny("llama")
            method = fresh(name, model)
        train(model, method, 1, tmp_path / ("cut" if cut else "whole"), **options)
        ends.append({**model.state_dict(), **method.state_dict()})
    assert_equal(*ends)


def test_s_is_as_safe_as_under_adam_and_moments_are_carried(tmp_path):
    """The momentum of a core is a matrix in its frame: rotated, like Adam's; strict mode's promise holds."""
    model = tiny("llama")
    method = fresh("gorp", model)
    assert state_keys_of(MuonAdamW).means[0] == "momentum_buffer" and state_keys_of(torch.optim.Muon) is not None
    train(model, method, 1, tmp_path, optim="muon")
    protected, before = method.memory_tensors(), {n: d.dense().clone() for n, d in method.deltas.items()}
    result = train(model, method, 2, tmp_path, optim="muon")
    leaks = [
        leak(WeightDelta.of(method.deltas[n].dense() - before[n]), protected[n]) for n in set(protected) & set(before)
    ]
    assert leaks and max(leaks) <= 1e-5 and result.facts["leak"] <= 1e-5
    assert any((method.deltas[n].dense() - before[n]).norm() > 0 for n in before)


def test_options_of_the_optimizer_are_refused(tmp_path):
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"training\.optim_args: `muon` takes none"):
        train(model, fresh("gorp", model), 1, tmp_path, optim="muon", optim_args="momentum=0.9")

"""Method hooks run in order, a loss that is not finite stops the run, and checkpoints are read whole or not at all."""

import pytest
import torch
from transformers import Trainer, TrainerCallback

from gorp.data import Encoding, encode
from gorp.errors import CheckpointError, ConfigError, TrainingError
from gorp.methods.base import Method
from gorp.storage import write_tensors
from gorp.training import training_arguments
from gorp.training.checkpoint import last_complete, load_checkpoint
from gorp.training.settings import check_training_block
from tests.runs import Kill, Killed, assert_equal, fresh, rows, tiny, tokenizer, train


class Spy(Method):
    """Trains one bias and writes down who called."""

    name = "spy"

    def __init__(self):
        super().__init__()
        self.calls = []

    def begin_task(self, model, task):
        super().begin_task(model, task)
        self.calls.append("begin_task")
        self.task = task
        self.parameter = model.get_parameter("model.norm.weight").requires_grad_(True)

    def parameter_groups(self, model, learning_rate):
        self.calls.append("parameter_groups")
        return [{"params": [self.parameter], "lr": 2 * learning_rate}]

    def extra_loss(self, model, batch, outputs):
        self.calls.append("extra_loss")

    def edit_gradients(self, model, optimizer):
        self.calls.append("edit_gradients")
        self.norm = self.parameter.grad.norm().item()
        self.parameter.grad.mul_(100.0)
        self.before = self.parameter.detach().clone()

    def after_step(self, model, optimizer):
        super().after_step(model, optimizer)
        self.calls.append("after_step")
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.moved = (self.parameter.detach() - self.before).norm().item()

    def end_task(self, model, optimizer, task):
        self.calls.append("end_task")
        assert isinstance(optimizer, torch.optim.SGD)


class Ruin(TrainerCallback):
    """Makes the model's next loss NaN once `steps` are done."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == self.steps:
            model.get_input_embeddings().weight.data.fill_(torch.nan)


def spied(tmp_path, **training):
    model, spy = tiny("llama"), Spy()
    spy.setup(model)
    result = train(model, spy, 1, tmp_path, **{"optim": "sgd", "weight_decay": 0.0} | training)
    return spy, result


def test_the_seams_come_in_order_once_a_step(tmp_path):
    spy, result = spied(tmp_path, num_train_epochs=1)
    step = ["extra_loss", "extra_loss", "edit_gradients", "after_step"]
    last = ["extra_loss", "edit_gradients", "after_step"]  # 28 rows are three and a half steps
    assert spy.calls == ["begin_task", "parameter_groups", *step * 3, *last, "end_task"]
    assert spy.step == result.steps == 4


def test_an_optimizer_that_averages_ends_at_its_average(tmp_path, monkeypatch):
    """A schedule-free one trains at y; what it has learned is x, which its `eval` puts into the parameters."""
    spy = Spy()

    def to_averages(optimizer):
        spy.calls.append("eval")
        optimizer.param_groups[0]["params"][0].data.fill_(7.0)

    monkeypatch.setattr(torch.optim.SGD, "eval", to_averages, raising=False)
    model = tiny("llama")
    spy.setup(model)
    train(model, spy, 1, tmp_path, optim="sgd", weight_decay=0.0, num_train_epochs=1)
    assert spy.calls[-2:] == ["eval", "end_task"]
    assert (spy.parameter == 7.0).all()


def test_clipping_sees_the_edited_gradient_and_groups_keep_their_rate(tmp_path):
    spy, _ = spied(tmp_path, max_grad_norm=0.5, learning_rate=1e-2)
    assert spy.rates == [2e-2]  # what a proximal step would be as long as
    assert 100 * spy.norm > 0.5
    assert spy.moved == pytest.approx(2 * 1e-2 * 0.5, rel=1e-4)


@pytest.mark.parametrize(
    "training", [{}, {"num_train_epochs": 0.5}, {"max_steps": 5}, {"gradient_accumulation_steps": 3}]
)
def test_the_method_is_told_how_many_steps_there_will_be(training, tmp_path):
    spy, result = spied(tmp_path, **training)
    assert spy.task.num_steps == result.steps == spy.step


def test_a_result_counts_tokens(tmp_path):
    _, result = spied(tmp_path, max_steps=1)
    assert 8 * 5 < result.tokens < 8 * 64


def test_a_method_reads_random_rows_of_the_task_and_the_same_ones_again(tmp_path):
    spy, _ = spied(tmp_path, max_steps=1)
    batches = list(spy.task.batches(3, 7))
    for batch, again in zip(batches, spy.task.batches(3, 7), strict=True):
        assert_equal(batch, again)
    drawn, everything = ([tuple(b["input_ids"][0].tolist()) for b in spy.task.batches(1, n)] for n in (7, None))
    assert drawn == everything[:7]
    in_order = [
        tuple(ids)
        for ids in encode(rows(1), tokenizer("llama"), encoding=Encoding(max_prompt_tokens=64), encoder_decoder=False)[
            "input_ids"
        ]
    ]
    assert sorted(everything) == sorted(in_order) and everything != in_order
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    assert sum(len(batch["labels"]) for batch in spy.task.batches(5, None)) == 28


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(family, tmp_path):
    model = tiny(family)
    method = fresh("gorp", model)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 4 of task `task1`.*last checkpoint"):
        train(model, method, 1, tmp_path, callbacks=(Ruin(3),), save_strategy="steps", save_steps=1)
    assert last_complete(tmp_path).name == "checkpoint-3"
    model = tiny(family)
    result = train(model, fresh("gorp", model), 1, tmp_path, save_strategy="steps", save_steps=1)
    assert (result.resumed_at, result.steps) == (3, 8)


class TestCheckpoints:
    def test_one_that_was_being_written_is_never_read(self, tmp_path):
        assert last_complete(tmp_path) is None
        for name, complete in (("checkpoint-9", True), ("checkpoint-10", True), ("checkpoint-11", False)):
            (tmp_path / name).mkdir()
            if complete:
                (tmp_path / name / "complete.json").touch()
        (tmp_path / "checkpoint-old").mkdir()
        assert last_complete(tmp_path).name == "checkpoint-10"

    def begun(self, tmp_path, name):
        model = tiny("llama")
        with pytest.raises(Killed):
            saving = {"save_strategy": "steps", "save_steps": 1}
            train(model, fresh(name, model), 1, tmp_path, callbacks=(Kill(2),), **saving)

    def test_two_are_kept_and_hold_no_base_weight(self, tmp_path):
        model = tiny("llama")
        train(model, fresh("gorp", model), 1, tmp_path, save_strategy="steps", save_steps=1)
        assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-7", "checkpoint-8"}
        files = {path.name for path in (tmp_path / "checkpoint-8").iterdir()}
        assert {"trainable.safetensors", "method.safetensors", "complete.json"} <= files
        assert not {"model.safetensors", "pytorch_model.bin"} & files

    def test_one_of_another_method_is_refused(self, tmp_path):
        self.begun(tmp_path, "olora")
        model = tiny("llama")
        with pytest.raises(CheckpointError, match="written by method `olora`, and this run uses `incremental_lora`"):
            train(model, fresh("incremental_lora", model), 1, tmp_path)

    def test_one_with_other_trainable_weights_is_refused(self, tmp_path):
        self.begun(tmp_path, "gorp")
        model = tiny("llama")
        with pytest.raises(CheckpointError, match="other trainable weights than this configuration makes"):
            train(model, fresh("gorp", model, full_modules="none"), 1, tmp_path)

    def test_a_torn_file_is_named(self, tmp_path):
        write_tensors(tmp_path / "trainable.safetensors", {}, {"method": "spy"})
        (tmp_path / "method.safetensors").write_bytes(b"torn")
        spy, model = Spy(), torch.nn.Linear(2, 2).requires_grad_(False)
        with pytest.raises(CheckpointError, match=r"method\.safetensors: not a whole safetensors file"):
            load_checkpoint(tmp_path, model, spy)


class TestSettings:
    def test_unknown_keys_are_answered_with_the_nearest(self):
        with pytest.raises(ConfigError, match=r"training\.learning_rat is not a field .* Did you mean `learning_rate`"):
            check_training_block({"learning_rat": 1e-3})

    @pytest.mark.parametrize("key", ["output_dir", "seed", "data_seed"])
    def test_what_gorp_sets_itself_is_refused(self, key):
        with pytest.raises(ConfigError, match=rf"training\.{key} is set by gorp itself"):
            check_training_block({key: 1})

    def test_values_that_hugging_face_refuses_are_errors_of_the_configuration(self, tmp_path):
        with pytest.raises(ConfigError, match="Hugging Face refuses"):
            training_arguments({"save_strategy": "sometimes"}, folder=tmp_path, seed=0, encoder_decoder=False)


@pytest.mark.parametrize(
    "block",
    [{"learning_rate": float("nan")}, {"learning_rate": -1e-3}, {"num_train_epochs": float("inf")},
     {"per_device_train_batch_size": 0}, {"gradient_accumulation_steps": 0}],
)  # fmt: skip
def test_numbers_that_fail_only_when_training_has_begun_are_refused(tmp_path, block):
    (key,) = block
    with pytest.raises(ConfigError, match=rf"training\.{key} is .*; it must be a finite number"):
        training_arguments(block, folder=tmp_path, seed=0, encoder_decoder=False)


def test_bf16_is_refused_where_the_gpu_only_emulates_it_and_only_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ConfigError, match=r"training\.bf16 is on, but this GPU has no bfloat16"):
        training_arguments({"bf16": True, "use_cpu": False}, folder=tmp_path, seed=0, encoder_decoder=False)
    with pytest.raises(ConfigError, match=r"the model is in bfloat16 .* but this GPU has no bfloat16"):
        training_arguments({"use_cpu": False}, folder=tmp_path, seed=0, encoder_decoder=False, widened=True)
    assert training_arguments({"bf16": True, "use_cpu": True}, folder=tmp_path, seed=0, encoder_decoder=False).bf16


def test_an_optimizer_that_chooses_its_own_parameters_is_refused(tmp_path, monkeypatch):
    chosen = staticmethod(lambda args, model: (torch.optim.SGD, {"lr": 1.0, "optimizer_dict": {}}))
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", chosen)
    with pytest.raises(ConfigError, match=r"training\.optim: `.*` chooses its own parameters"):
        spied(tmp_path)


def test_seeds_differ_from_task_to_task(tmp_path):
    orders = []
    for index in (1, 2):
        model, spy = tiny("llama"), Spy()
        spy.setup(model)
        seen = []
        spy.extra_loss = lambda model, batch, outputs, seen=seen: seen.append(batch["input_ids"].clone())
        train(model, spy, index, tmp_path, data=rows(1), optim="sgd", max_steps=1)
        orders.append([row for ids in seen for row in ids.tolist()])
    assert len(orders[0]) == len(orders[1]) == 8
    assert orders[0] != orders[1]


class Planner(Spy):
    """Wants to know how many tasks there are."""

    name = "planner"
    needs_num_tasks = True


def test_a_method_that_plans_for_the_number_of_tasks_is_not_begun_without_it(tmp_path):
    model, planner = tiny("llama"), Planner()
    planner.setup(model)
    with pytest.raises(ConfigError, match=r"`planner` needs the number of tasks.*Pass num_tasks to train_task"):
        train(model, planner, 1, tmp_path, optim="sgd")
    assert planner.calls == []
    train(model, planner, 1, tmp_path, optim="sgd", num_tasks=5, max_steps=1)
    assert planner.task.num_tasks == 5


class Momentum(Spy):
    """Brings its optimizer."""

    name = "momentum"

    def make_optimizer(self, groups, options):
        assert {"lr", "weight_decay", "betas", "eps"} <= set(options)
        return torch.optim.SGD(groups, lr=options["lr"], momentum=0.9)


def test_a_method_may_bring_its_own_optimizer_which_resumes_bit_for_bit(tmp_path):
    ends = []
    for cuts in ((), (Kill(3),)):
        for cut in (*cuts, None):
            model, method = tiny("llama"), Momentum()
            method.setup(model)
            options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
            if cut is not None:
                with pytest.raises(Killed):
                    train(model, method, 1, tmp_path / str(len(cuts)), callbacks=(cut,), **options)
                continue
            train(model, method, 1, tmp_path / str(len(cuts)), **options)
            ends.append(method.parameter.detach().clone())
    assert torch.equal(*ends) and not torch.equal(ends[0], tiny("llama").get_parameter("model.norm.weight"))


def test_an_optimizer_that_a_method_would_ignore_is_refused(tmp_path):
    model, method = tiny("llama"), Momentum()
    method.setup(model)
    with pytest.raises(ConfigError, match=r"training\.optim is `sgd`, but the method `momentum` uses its own"):
        train(model, method, 1, tmp_path, optim="sgd")

"""The order of a stock Trainer's events, which Protection stands on; a release that moves them fails here, by name."""

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from gorp import Protection
from tests.attach.runs import learn, make, options_of


class Recorder(TrainerCallback, ExportableState):
    """Records each event, and what holds at that moment."""

    def __init__(self, out) -> None:
        self.out, self.events, self.trainer = out, [], None

    def note(self, event, **facts):
        self.events.append((event, facts))

    def on_init_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.note("init_end", optimizer=optimizer, model=model is not None)

    def on_train_begin(self, args, state, control, model=None, optimizer=None, train_dataloader=None, **kwargs):
        self.note(
            "train_begin", optimizer=optimizer is not None, rows=train_dataloader is not None, steps=state.max_steps
        )

    def on_step_begin(self, args, state, control, **kwargs):
        self.note("step_begin")
        args.max_grad_norm = 0.0 if state.global_step == 0 else 1e-3

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        self.before = [p.detach().clone() for p in model.parameters()]
        self.note("pre_optimizer_step", norm=norm.item(), clipped=bool(norm <= 1.1e-3))

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        moved = any(not torch.equal(a, p) for a, p in zip(self.before, model.parameters(), strict=True))
        gradients = any(p.grad is not None for p in model.parameters())
        self.note("optimizer_step", moved=moved, gradients=gradients, skipped=optimizer.step_was_skipped)

    def on_step_end(self, args, state, control, **kwargs):
        self.note("step_end", save=control.should_save, step=state.global_step)

    def state(self):
        folder = self.out / f"checkpoint-{self.trainer.state.global_step if self.trainer is not None else 0}"
        self.note("state", files={path.name for path in folder.glob("*")})
        return {"args": {}, "attributes": {}}

    def on_push_begin(self, args, state, control, **kwargs):
        self.note("push")

    def on_save(self, args, state, control, **kwargs):
        self.note("save")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.note("log", last="train_runtime" in logs)

    def on_train_end(self, args, state, control, **kwargs):
        self.note("train_end")


def test_the_order_of_events(tmp_path):
    recorder = Recorder(tmp_path / "out")
    trainer = make(
        "trainer", 1, tmp_path / "out", callbacks=[recorder], max_steps=2, save_strategy="steps", save_steps=1
    )
    recorder.trainer = trainer
    trainer.train()
    names = [name for name, _ in recorder.events]
    step = ["step_begin", "pre_optimizer_step", "optimizer_step", "step_end", "state", "save"]
    assert names == ["state", "init_end", "state", "train_begin", *step, *step, "log", "train_end"], (
        "transformers calls its events in another order than `gorp.attach.protection` is written for (its docstring)"
    )
    at = {name: [facts for other, facts in recorder.events if other == name] for name in set(names)}
    truths = {
        "the model is known, and no optimizer exists, in on_init_end: layers are added there": at["init_end"]
        == [{"optimizer": None, "model": True}],
        "optimizer, rows and steps are known in on_train_begin": at["train_begin"]
        == [{"optimizer": True, "rows": True, "steps": 2}],
        "max_grad_norm is read after on_step_begin, and clipping comes before on_pre_optimizer_step": [
            facts["clipped"] for facts in at["pre_optimizer_step"]
        ]
        == [False, True],
        "on_optimizer_step comes after the step and before the gradients are set to zero": at["optimizer_step"]
        == [{"moved": True, "gradients": True, "skipped": False}] * 2,
        "on_step_end knows the step": [facts["step"] for facts in at["step_end"]] == [1, 2],
        "within a checkpoint state() comes after the optimizer and before trainer_state.json": all(
            "optimizer.pt" in facts["files"] and "trainer_state.json" not in facts["files"] for facts in at["state"][2:]
        ),
        "the last log has train_runtime and comes before on_train_end": at["log"] == [{"last": True}],
    }
    assert all(truths.values()), [truth for truth, holds in truths.items() if not holds]


def test_the_part_is_in_the_folder_that_is_pushed(tmp_path, monkeypatch):
    """With hub_strategy `checkpoint` the Trainer uploads the folder of the checkpoint; here a stand-in lists it."""
    pushed = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None, private=None: None)
    monkeypatch.setattr(
        Trainer,
        "_push_from_checkpoint",
        lambda self, folder: pushed.append(sorted(path.name for path in (tmp_path / folder / "protection").glob("*"))),
    )
    learn(
        "trainer", 1, tmp_path / "protected", tmp_path / "out", max_steps=2, push_to_hub=True,
        hub_strategy="checkpoint", hub_model_id="someone/model", save_strategy="steps", save_steps=1,
    )  # fmt: skip
    assert pushed == [["complete.json", "method.safetensors", "trainable.safetensors"]] * 2


def test_a_step_that_the_gradient_scaler_skipped_is_not_corrected(tmp_path):
    """The scaler of fp16 skips a step whose gradients are not finite: weights and the method's count stay."""
    protection = Protection(tmp_path / "protected", **options_of("trainer"))
    trainer = make("trainer", 1, tmp_path / "out", callbacks=[protection], max_steps=3)
    counted, before = [], []

    class Skip(TrainerCallback):
        """Runs before Protection, and makes the second step one that was skipped."""

        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 1:
                optimizer._is_overflow = True
                assert optimizer.step_was_skipped
            else:
                optimizer._is_overflow = False
            before.append([group["lr"] for group in optimizer.optimizer.param_groups])

        def on_step_end(self, args, state, control, **kwargs):
            counted.append(protection.method.step)

    trainer.callback_handler.callbacks.insert(0, Skip())
    trainer.train()
    assert counted == [1, 1, 2]
    assert all(len(rates) >= 2 for rates in before)  # the groups are divided within the step, and whole again after it
    assert len(trainer.optimizer.param_groups) == 2  # the Trainer's own: with and without weight decay


def test_a_checkpoint_that_another_callback_asks_for_has_the_part(tmp_path):
    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 1

    protection = Protection(tmp_path / "protected", **options_of("trainer"))
    make("trainer", 1, tmp_path / "out", callbacks=[protection, Ask()], max_steps=2).train()
    assert (tmp_path / "out/checkpoint-1/protection/complete.json").is_file()


def test_max_grad_norm_is_the_user_s_again(tmp_path):
    trainer, _ = learn("trainer", 1, tmp_path / "protected", tmp_path / "out", max_steps=1, max_grad_norm=0.7)
    assert trainer.args.max_grad_norm == 0.7


@pytest.mark.parametrize("limit", [0.05, 0.0])
def test_clipping_is_that_of_the_projected_gradients(limit, tmp_path):
    """With `max_grad_norm` each step's projected gradient has at most that norm; 0 clips nothing."""
    protection, norms = Protection(tmp_path / "protected", **options_of("trainer")), []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())

    make("trainer", 1, tmp_path / "out", callbacks=[protection, Norm()], max_steps=3, max_grad_norm=limit).train()
    assert all(norm <= limit * 1.0001 for norm in norms) if limit else min(norms) > 0.05

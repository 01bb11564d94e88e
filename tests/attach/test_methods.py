"""Every method is either trained by a stock Trainer as by gorp's own engine, bit for bit, or refused by name."""

import pytest

from gorp import LoraSettings, Protection
from gorp.data import Encoding
from gorp.errors import ConfigError
from gorp.methods import METHODS, build_method
from gorp.training import train_task
from gorp.workspace.state import read_state, write_state
from tests.attach.runs import TRAINING, make
from tests.runs import assert_equal, rows, tiny, tokenizer


REFUSED = {
    "multi_task": "the rows of all tasks in one training",
    "replay": "depends on the batch",
    "lwf": "depends on the batch",
}
FAST = ("ewc",)
PENALTIES = ("ewc", "olora", "nlora")
slow = pytest.mark.slow
LORA = LoraSettings(r=4, target_modules=("q_proj", "v_proj"))
OPTIONS = {
    "gorp": {"rank": 4, "refresh_every": 3, "oversampling": 4, "full_modules": "gate_proj"},
    "ewc": {"strength": 100.0, "fisher_examples": 4},
    "olora": {"strength": 2.0},
    "nlora": {"strength": 2.0},
}
SAME = {"lr_scheduler_type": "linear", "max_grad_norm": 1.0, "weight_decay": 0.1}
"""What gorp's engine and the Trainer have different defaults for."""
NO_DIGEST = "0" * 64


def of_engine(name, folder, **options):
    lora = LORA if METHODS[name].uses_lora else None
    method = None
    for index in (1, 2):
        method, model = build_method(name, METHODS[name].Config(**options), lora), tiny("llama")
        method.setup(model)
        if index == 2:
            method.load_state_dict(read_state(folder / "1", NO_DIGEST))
        arguments = {k: v for k, v in TRAINING.items() if k not in ("report_to", "disable_tqdm", "use_cpu")} | SAME
        train_task(
            model, tokenizer("llama"), method, rows(index), name=f"task-{index}", index=index, seed=0,
            training=arguments, encoding=Encoding(), folder=folder / f"run{index}",
        )  # fmt: skip
        write_state(folder / str(index), method, NO_DIGEST)
    return method.state_dict()


def of_trainer(name, folder, **options):
    lora = {"lora": LORA} if METHODS[name].uses_lora else {}
    for index in (1, 2):
        protection = Protection(folder / "protected", method=name, **lora, **options)
        make("trainer", index, folder / f"out{index}", callbacks=[protection], data_seed=index, **SAME).train()
        protection.save()
    return protection.method.state_dict()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"the method `{name}` needs .*{REFUSED[name]}"):
        Protection(tmp_path / "protected", method=name)
    assert not (tmp_path / "protected").exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else slow) for name in METHODS if name not in REFUSED]
)
def test_a_stock_trainer_trains_what_the_engine_does(name, tmp_path):
    options = OPTIONS.get(name, {})
    expected = of_engine(name, tmp_path / "engine", **options)
    found = of_trainer(name, tmp_path / "trainer", **options)
    assert found.keys() == expected.keys()
    assert any(x.norm() > 0 for key, x in found.items() if key.startswith("delta"))
    if name not in PENALTIES:
        assert_equal(found, expected)
        return
    # The engine adds a share of the term to each micro-batch's loss, Protection adds its gradient once: they round
    # differently.
    for key, x in expected.items():
        x = x.float()
        assert (found[key] - x).norm() <= 1e-4 * x.norm().clamp(min=1.0), key
    without = of_trainer(name, tmp_path / "without", **options | {"strength": 0.0})
    apart = [(without[key] - x).norm() / x.norm() for key, x in found.items() if key.startswith("delta")]
    assert max(apart) > 1e-2  # the term acts, a hundred times as much as rounding

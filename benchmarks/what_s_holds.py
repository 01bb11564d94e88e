"""Draw the picture of docs/concepts.md: the share of a task's inputs in S, and in the rows of the next task's A.

    python benchmarks/what_s_holds.py --data DATA --out docs/what-s-holds.svg

gorp-tiny-t5 learns `news` of `forgetting.py`, once with S from gradients and once with S from inputs. The panels show,
for the trained weights and rows that were not trained on:

    left      share of the energy of the old inputs in S, tr(Sᵀ M S) / tr(M)
    middle    energy of the old inputs along each direction, and how much of the direction is in S, for one weight
    right     energy of the inputs along a row a of A, a M aᵀ / tr(M), for the old task and the next one (`questions`):
              for random rows outside S, and for the leading rows of the next task's inputs outside S
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from forgetting import read
from matplotlib.figure import Figure
from torch import Tensor, nn

from gorp.core.linalg import leading_outside, orthonormalize, project_out
from gorp.data import Encoding, Task
from gorp.data.collate import Collator
from gorp.data.encode import encode
from gorp.layers.inputs import input_moments
from gorp.layers.lora import LoraSettings
from gorp.methods.gorp import Gorp, GorpConfig
from gorp.models.load import ModelConfig, load_model
from gorp.training import train_task


SHOWN = "encoder.block.2.layer.1.DenseReluDense.wi.weight"
ROWS = 8
ENCODING = Encoding(max_prompt_tokens=64)


def learn(source: str, task: Task) -> tuple[nn.Module, Any, Gorp]:
    """Train the task; return the served model, its tokenizer, and the method with its S."""
    model, tokenizer = load_model(ModelConfig(path="gorp-tiny-t5"), "cpu")
    rows = "aligned" if source == "inputs" else "trained"
    config = GorpConfig(full_modules="all-linear", memory_source=source, adapter_rows=rows)  # pyright: ignore
    method = Gorp(config, LoraSettings(target_modules="all-linear"))
    method.setup(model)
    training = {"learning_rate": 2e-3, "num_train_epochs": 3, "per_device_train_batch_size": 16, "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        where = {"name": task.name, "index": 1, "seed": 0, "folder": Path(folder)}
        train_task(model, tokenizer, method, task.train, encoding=ENCODING, training=training, **where)
    return model, tokenizer, method


def inputs(model: nn.Module, tokenizer: Any, method: Gorp, rows: Dataset | None) -> dict[str, Tensor]:
    """Return M = Xᵀ X, n x n, of each trained weight over the rows."""
    assert rows is not None
    encoded = encode(rows, tokenizer, encoder_decoder=True, encoding=ENCODING)
    collator, ids = Collator(pad_token_id=tokenizer.pad_token_id), encoded.to_list()
    batches = [collator(ids[start : start + 16]) for start in range(0, len(ids), 16)]
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in method.memory}
    return {name: sums.total for names, sums in input_moments(model, layers, batches) for name in names}


def energy(rows: Tensor, moment: Tensor) -> Tensor:
    """Return a M aᵀ / tr(M) of each row a."""
    return ((rows @ moment) * rows).sum(dim=1) / moment.trace()


def main() -> None:
    """Train, measure, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    first, second = (read(name, args.data, train=192, scored=100) for name in ("news", "questions"))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    shares, colours = {}, {"sketch": "#d55e00", "inputs": "#0072b2"}
    for source, label in (("sketch", "S from gradients"), ("inputs", "S from inputs")):
        model, tokenizer, method = learn(source, first)
        old = inputs(model, tokenizer, method, first.eval)
        shares[source] = [float(energy(method.memory.basis(n, m).mT, m).sum()) for n, m in old.items()]
        left.plot(sorted(shares[source]), color=colours[source], label=label)
        print(f"{label}: mean {sum(shares[source]) / len(old):.3f}, lowest {min(shares[source]):.3f}")
    left.set(xlabel="weights, in order", ylabel="share of old inputs' energy in S", ylim=(0, 1.02))
    left.legend(loc="lower right", frameon=False)

    basis, moment = method.memory.basis(SHOWN, old[SHOWN]), old[SHOWN]
    values, directions = torch.linalg.eigh(moment)
    inside = (basis.mT @ directions).square().sum(dim=0)  # share of each eigenvector in S
    dots = middle.scatter(range(len(values)), values.flip(0) / moment.trace(), c=inside.flip(0), s=6, cmap="viridis_r")
    figure.colorbar(dots, label="share of the direction in S")
    middle.set(
        yscale="log",
        xlabel=f"directions of the input space, {len(values)} in all",
        ylabel="share of old inputs' energy",
    )

    new, trained = (inputs(model, tokenizer, method, rows) for rows in (second.eval, second.train))
    generator = torch.Generator().manual_seed(0)
    for label, colour in (("random rows outside S", "#d55e00"), ("leading rows outside S", "#0072b2")):
        points = []
        for name, moment in new.items():
            basis = method.memory.basis(name, moment)
            if label.startswith("random"):
                drawn = torch.randn(len(moment), ROWS, generator=generator)
                rows = orthonormalize(project_out(drawn, basis), away_from=basis).mT
            else:
                rows = leading_outside(trained[name], basis, count=ROWS)  # from training rows
            if name in old and len(rows):
                points.append((float(energy(rows, moment).sum()), float(energy(rows, old[name]).sum())))
        x, y = zip(*points, strict=True)
        right.scatter(x, y, s=12, color=colour, label=label)
        ratios = sorted(b / a for a, b in points)
        print(f"{label}: old / new, median {ratios[len(ratios) // 2]:.3f}")
    ends = (1e-5, 1.0)
    right.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    right.set(xlabel="share of new inputs' energy along 8 rows", ylabel="share of old inputs' energy")
    right.plot(ends, ends, color="black", linewidth=0.8)
    right.legend(loc="upper left", frameon=False)
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()

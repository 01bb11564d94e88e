"""Measure how much of a real gradient the sketched frame captures, compared with the exact SVD of the same gradient.

    python benchmarks/frame_energy.py

The shipped T5 learns two of the demo's tasks with gorp, with a core on every linear layer. In the second task, with a
real S, the inputs X and output gradients D of each layer are recorded at some steps, and two frames of G (I - S Sᵀ) are
computed:

    captured = ‖Uᵀ G V‖² of the sketched frame / (σ₁² + … + σₖ²) of the exact frame        1 is the optimum

The script reports the median over layers and steps, and the layer with the lowest median over steps.
"""

import statistics
from typing import Any

import torch
from peers import Peer, task_of
from records import arguments, conditions, described, settle, write_record
from torch import Tensor, nn

from gorp.core.frame import exact_frame
from gorp.core.sketched import FrameInputs, gradient_rows, sketched_frames
from gorp.data import Collator, Encoding, encode
from gorp.demo.run import DemoSettings, demo_tasks
from gorp.layers.lora import LoraSettings
from gorp.layers.low_rank import linear_of
from gorp.methods.gorp import Gorp, GorpConfig
from gorp.models.load import ModelConfig, load_model


RATE = 1e-3
RECORDED_AT = (5, 15, 25)


class Watch:
    """Forward hooks that record X and D of layers for one backward pass, while `active`."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.active, self.pairs = False, dict[str, tuple[Tensor, Tensor]]()
        for name, layer in layers.items():
            layer.register_forward_hook(lambda module, inputs, output, name=name: self._record(name, inputs[0], output))

    def _record(self, name: str, x: Tensor, output: Tensor) -> None:
        if self.active and output.requires_grad:
            flat = x.detach().reshape(-1, x.shape[-1])
            output.register_hook(
                lambda d: self.pairs.__setitem__(name, (flat, d.detach().reshape(-1, d.shape[-1]).clone()))
            )


def captured(pair: tuple[Tensor, Tensor], basis: Tensor, config: GorpConfig, seed: int) -> float:
    """Return the energy of the sketched frame divided by that of the exact frame, in float64, for one (X, D)."""
    x, d = pair
    options = {"rank": config.rank, "oversampling": config.oversampling, "power_steps": config.power_steps}
    generator = torch.Generator().manual_seed(seed)
    (rows,) = gradient_rows([[pair]], count=config.rank + config.oversampling, generators=[generator])
    seen = FrameInputs(pairs=[pair], basis=basis, rows=rows)
    (sketched,) = sketched_frames([seen], **options)
    gradient = d.double().mT @ x.double()
    exact = exact_frame(gradient, basis.double(), rank=config.rank)
    energies = [
        (f.left.double().mT @ gradient @ f.right.double()).square().sum() for f in (sketched, exact) if f is not None
    ]
    return (energies[0] / energies[1]).item()


def main() -> None:
    """Train, record gradients, compare the frames, and write the result."""
    args = settle(arguments(__doc__, rows=16, tokens=64))
    model, tokenizer = load_model(ModelConfig(path="gorp-tiny-t5"), args.device)
    tasks = demo_tasks(DemoSettings(train_rows=args.rows * 30))[:2]
    method = Gorp(GorpConfig(full_modules="all-linear"), LoraSettings(target_modules=("q", "v")))
    method.setup(model)
    collate = Collator(tokenizer.pad_token_id)
    torch.manual_seed(0)
    shares: dict[str, list[float]] = {}
    for index, task in enumerate(tasks, 1):
        rows = encode(task.train, tokenizer, encoder_decoder=True, encoding=Encoding(max_prompt_tokens=args.tokens))
        known = {key: value.to(args.device) for key, value in collate([rows[i] for i in range(args.rows)]).items()}
        method.begin_task(model, task_of(index, batch=known))
        method.begin_training(model, task_of(index, batch=known))
        optimizer = torch.optim.AdamW(method.parameter_groups(model, RATE), lr=RATE)
        peer, model_layers = Peer(model, optimizer, method), dict(model.named_modules())
        cores = {f"{n}.weight": layer for n, layer in model_layers.items() if type(layer).__name__ == "LowRankUpdate"}
        watch = Watch(cores)
        for step in range(len(rows) // args.rows):
            batch = collate([rows[i] for i in range(step * args.rows, (step + 1) * args.rows)])
            watch.active = index == 2 and step in RECORDED_AT
            peer.backward({key: value.to(args.device) for key, value in batch.items()})
            for name, pair in watch.pairs.items():
                basis = method.memory.basis(name, linear_of(cores[name]).weight.detach())
                if basis.shape[1] < basis.shape[0]:
                    shares.setdefault(name, []).append(captured(pair, basis, method.config, seed=step))
            watch.pairs.clear()
            peer.update()
        method.end_task(model, optimizer, task_of(index, batch=known))
    median = statistics.median(share for of in shares.values() for share in of)
    worst = min(shares, key=lambda name: statistics.median(shares[name]))
    result: dict[str, Any] = {
        "median": median,
        "worst_layer": worst,
        "worst": statistics.median(shares[worst]),
        "least_single": min(share for of in shares.values() for share in of),
        "layers": shares,
    }
    write_record(
        args.out, "frame-energy-gorp-tiny", {"arguments": described(args), "environment": conditions(), **result}
    )
    print(
        f"captured energy, sketched / exact: median {median:.4f}; worst layer {worst} {result['worst']:.4f}; ", end=""
    )
    print(f"lowest single value {result['least_single']:.4f}; {len(shares)} layers, {len(RECORDED_AT)} steps")


if __name__ == "__main__":
    main()

"""Ways to have the states of a momentum run backwards, in bits per parameter and step.

    python benchmarks/reversal.py [--quick] [--data-dir FOLDER_WITH_MNIST]

Reversing the optimizer, as Maclaurin, Duvenaud and Adams did (arXiv:1502.03492), needs what rounding loses: in floating
point the difference between a state and what the reversed step makes of its successor, in their fixed-point training
the remainders of the multiplication by the momentum. Computing states again from every k-th needs that state. All of
them need one gradient per step, the same bits as in training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from cases import CASES, MNIST, Case, Images, Seconds, quiet, table
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf import InfluenceRunner, RunLog, TrajectoryRecorder
from lightning_sgdinf.checkpointing import held_in, states_in, steps_again
from lightning_sgdinf.zoo import Mnist

RATE, NUMERATOR, DENOMINATOR = 0.05, 9, 10  # momentum 0.9
SCALE = 2.0**32  # of fixed-point numbers


class Gradients:
    """Gradients of a network of 12,730 parameters on given batches, from a flat vector of parameters."""

    def __init__(self, steps: int, data_dir: Path | None) -> None:
        torch.manual_seed(0)
        self._net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 10))
        self._batches = list(self._loader(steps, data_dir))[:steps]
        self.start = torch.nn.utils.parameters_to_vector(self._net.parameters()).detach()

    def _loader(self, steps: int, data_dir: Path | None) -> DataLoader:
        if data_dir is None:
            return Images(MNIST, examples=64 * steps, batch_size=64).train_dataloader()
        found, _ = Mnist(data_dir, download=False).read()
        images = (found.images[: 64 * steps] - 0.1307) / 0.3081
        return DataLoader(TensorDataset(images, found.labels[: 64 * steps]), 64)

    def at(self, params: Tensor, step: int) -> Tensor:
        """The gradient of a step."""
        torch.nn.utils.vector_to_parameters(params, self._net.parameters())
        images, labels = self._batches[step]
        loss = nn.functional.cross_entropy(self._net(images), labels)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(self._net.parameters()))])


def entropy(values: np.ndarray) -> float:
    """Bits per value, if each is coded by how often it occurs."""
    _, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def trained(gradients: Gradients, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Parameters, momentum, and the gradient there, of each step; at last those after it, without a gradient."""
    params, momentum = gradients.start.clone(), torch.zeros_like(gradients.start)
    for step in range(steps):
        gradient = gradients.at(params, step)
        yield params, momentum, gradient
        momentum = momentum * 0.9 + gradient
        params = params - RATE * momentum
    yield params, momentum, torch.empty(0)


def drift(gradients: Gradients, steps: int) -> dict[int, float]:
    """How far parameters are off after so many reversed steps with nothing stored, as a part of the way they came."""
    run = list(trained(gradients, steps))
    params, momentum, _ = run[-1]
    found = {}
    for back in range(1, 201):
        params = params + RATE * momentum
        momentum = (momentum - gradients.at(params, steps - back)) / 0.9
        found[back] = float((params - run[steps - back][0]).norm() / (run[-1][0] - gradients.start).norm())
    return found


def float_bits(gradients: Gradients, steps: int) -> tuple[float, float]:
    """Entropy of what must be stored for parameters and momentum, so that reversal in float32 is exact."""
    of_params, of_momentum = [], []
    for before, after in pairwise(trained(gradients, steps)):
        params, momentum, gradient = before
        of_params.append(missing(params, after[0] + RATE * after[1]))
        of_momentum.append(missing(momentum, (after[1] - gradient) / 0.9))
    return entropy(np.concatenate(of_params)), entropy(np.concatenate(of_momentum))


def missing(true: Tensor, found: Tensor) -> np.ndarray:
    """Differences of bit patterns."""
    return (true.view(torch.int32) - found.view(torch.int32)).numpy()


def fixed_bits(gradients: Gradients, steps: int) -> tuple[float, bool]:
    """Bits that the remainders of fixed-point training take, and whether it goes back exactly."""
    params = (gradients.start.double() * SCALE).round().numpy().astype(np.int64)
    momentum, remainders = np.zeros_like(params), np.zeros(len(params), object)
    start = params.copy()

    def gradient(step: int) -> np.ndarray:
        real = gradients.at(torch.from_numpy(params / SCALE).float(), step)
        return (real.double() * SCALE).round().numpy().astype(np.int64)

    for step in range(steps):
        remainders = remainders * DENOMINATOR + momentum % DENOMINATOR
        momentum = momentum // DENOMINATOR * NUMERATOR + (remainders % NUMERATOR).astype(np.int64)
        remainders //= NUMERATOR
        momentum = momentum + gradient(step)
        params = params - (momentum * RATE).round().astype(np.int64)
    bits = float(np.mean([int(value).bit_length() for value in remainders])) / steps
    for step in range(steps - 1, -1, -1):
        params = params + (momentum * RATE).round().astype(np.int64)
        momentum = momentum - gradient(step)
        remainders = remainders * NUMERATOR + momentum % NUMERATOR
        momentum = momentum // NUMERATOR * DENOMINATOR + (remainders % DENOMINATOR).astype(np.int64)
        remainders //= DENOMINATOR
    return bits, bool((params == start).all() and not momentum.any() and not remainders.any())


def recorded(case: Case, data: Images, folder: Path, keep: str) -> Path:
    """A recorded run."""
    path = folder / keep
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(path, keep=keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(case.module(), data)
    return path


def recomputed(case: Case, *, quick: bool) -> Iterator[list[object]]:
    """Rows of the table on computing states again."""
    data = case.data(quick=quick)
    steps = case.quick_steps if quick else case.steps
    whole: Tensor | None = None
    base = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for k, room in ((1, 1 << 30), (10, 1 << 30), (100, 1 << 30), (100, 16 << 20), (steps, 16 << 20)):
            keep = "every_step" if k == 1 else f"every({k})"
            path = Path(folder) / keep
            path = path if path.exists() else recorded(case, data, Path(folder), keep)
            runner = InfluenceRunner(accelerator="cpu", certificate="off", progress=False, memory_bytes=room)
            began = Seconds.now()
            values = runner.run(case.module(), datamodule=data, log=path).values
            seconds = (Seconds.now() - began).cpu
            whole, base = (values, seconds) if whole is None else (whole, base)
            with RunLog.open(path) as log:
                size = sum(v.nbytes for *_, v in log.state(len(log)).items())
                stored, total = len(log.state_indices) - 1, log.size_bytes
            parameters = sum(p.numel() for p in case.module().parameters())
            held = held_in(states_in(room, size))
            again = sum(steps_again(min(k, steps - t), held) for t in range(0, steps, k))
            yield [
                k,
                f"{8 * size * stored / steps / parameters:.2f}",
                f"{total / 1e6:.1f} MB",
                f"{min(held, k)} ({min(held, k) * size / 1e6:.0f} MB)",
                f"{again / steps:.2f}",
                f"{seconds / base:.2f}",
                "yes" if torch.equal(values, whole) else "NO",
            ]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    chosen = parser.parse_args()
    quick = chosen.quick
    quiet()
    steps = 210 if quick else 900
    gradients = Gradients(steps, chosen.data_dir)
    off = drift(gradients, steps)
    params, momentum = float_bits(gradients, steps)
    fixed, exact = fixed_bits(gradients, steps)
    rows = [
        ["float32, nothing stored", 0, ", ".join(f"{off[n]:.0e} off after {n}" for n in (10, 50, 100, 200))],
        ["float32, differences stored", f"{params:.2f} + {momentum:.2f} = {params + momentum:.2f}", "yes"],
        ["fixed point, remainders stored", f"{fixed:.3f}", "yes" if exact else "NO"],
        ["every k-th state, momentum included", "64 / k", "yes"],
    ]
    print(table(["backwards by", "bits per parameter and step", "exact"], rows))
    print()
    case = Case(**{name: getattr(CASES["MLP"], name) for name in Case.__slots__} | {"optimizer": "momentum"})
    head = ["k", "bits per parameter and step", "log", "states in memory", "steps again", "replay", "same bits"]
    print(table(head, recomputed(case, quick=quick)))


if __name__ == "__main__":
    main()

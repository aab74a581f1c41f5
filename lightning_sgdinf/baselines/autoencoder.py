"""A ranking by an autoencoder: examples that it reconstructs worst come first.

Looks at inputs only, so it finds odd inputs and not wrong labels. Cost: the training of the autoencoder, 20 passes over
the examples it is fitted on.

References:
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (section 7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import random_state
from lightning_sgdinf.baselines.autoencoder_networks import autoencoder, scaling
from lightning_sgdinf.baselines.features import INPUTS, features, first_not_finite
from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.replay import OpenedRun

Network = Callable[[Tensor], nn.Module]
"""Makes an untrained autoencoder from scaled examples ``[N, *shape]``, to take shape and bounds from."""


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """Minus the mean squared reconstruction error of each training example, without augmentation.

    In a configuration::

        _target_: lightning_sgdinf.baselines.Autoencoder
        epochs: 20

    Attributes:
        epochs: Passes over the examples it is fitted on, at least 1.
        batch_size: Examples per step.
        lr: Learning rate of Adam, above 0.
        network: Makes the network; `lightning_sgdinf.baselines.autoencoder_networks.autoencoder` if ``None``.
        features: The tensors to reconstruct: ``"inputs"``, ``"penultimate"`` or the name of a sub-module; see
            `lightning_sgdinf.baselines.features.features`.
        compat: Fit on the validation examples, augmented anew in every pass as the training set augments its own, as
            the comparison in the SGD-influence paper does; otherwise on the training examples themselves, without
            augmentation.
        seed: Of its initial values, its order of examples and of augmentation.
        title: Name of the values, for tables and axes.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    network: Network | None = None
    features: str = INPUTS
    compat: bool = False
    seed: int = 0
    title = "minus the reconstruction error"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ConfigurationError(
                f"Autoencoder: expected epochs >= 1, batch_size >= 1 and lr > 0, got {self.epochs}, {self.batch_size} "
                f"and {self.lr}"
            )

    def rank(self, run: OpenedRun) -> Tensor:
        """Return values ``[N]``, at most 0: minus the mean squared error over an example's features.

        These are scaled as by `lightning_sgdinf.baselines.autoencoder_networks.scaling`.

        Raises:
            ConfigurationError: No such features, a network that gives another shape, or ``compat`` without a
                validation loader.
            NonFiniteError: A feature is NaN or infinite, or the autoencoder's training diverged.
        """
        device = run.objective.host.device
        with random_state.seeded(self.seed), torch.enable_grad():
            scored = features(run, run.training.plain(), self.features)
            passes = self._augmented(run) if self.compat else iter([scored] * self.epochs)
            first = next(passes)
            shift, scale = scaling(first)

            def scaled(part: Tensor) -> Tensor:
                return ((part - shift) / scale).to(device)

            network = (self.network or autoencoder)(scaled(first)).to(device, first.dtype)
            self._fit(network, chain([first], passes), scaled)
            network.eval()
            parts = [_errors(network, scaled(part)) for part in scored.split(self.batch_size)]
        values = -torch.cat(parts)
        if (wrong := first_not_finite(values)) is not None:
            raise NonFiniteError(f"the reconstruction error of training example {wrong} is {-values[wrong].item()}")
        return values

    def _augmented(self, run: OpenedRun) -> Iterator[Tensor]:
        examples = run.validation.augmented_as(run.training)
        for _ in range(self.epochs):
            yield features(run, examples, self.features)

    def _fit(self, network: nn.Module, passes: Iterable[Tensor], scaled: Callable[[Tensor], Tensor]) -> None:
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        order = torch.Generator().manual_seed(self.seed)
        for examples in passes:
            for ids in torch.randperm(len(examples), generator=order).split(self.batch_size):
                batch = scaled(examples[ids])
                loss = F.mse_loss(_reconstructed(network, batch), batch)
                if not bool(torch.isfinite(loss)):
                    raise NonFiniteError(f"the autoencoder diverged: its loss is {loss.item()}; take a smaller lr")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def _errors(network: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        squares = (_reconstructed(network, batch) - batch).double().square()
    return squares.reshape(len(batch), -1).mean(1).cpu()


def _reconstructed(network: nn.Module, batch: Tensor) -> Tensor:
    reconstruction = network(batch)
    if reconstruction.shape != batch.shape:
        raise ConfigurationError(
            f"Autoencoder(network): expected what it is given, shape {list(batch.shape)}, got "
            f"{list(reconstruction.shape)}"
        )
    return reconstruction

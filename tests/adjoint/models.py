"""Small models, each twice: as a module with a ``training_step``, and as a function written out by hand.

The function takes parameters and buffers by name and shares nothing with the module but ``torch``'s elementary
operations, so that autograd can go through a training of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3
Named = Mapping[str, Tensor]


class Classifier(nn.Module):
    """Mean cross entropy, and a penalty that no example owns if there is one."""

    penalty = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x, batch_idx), y)
        return loss + self.rest() if self.penalty else loss

    def rest(self) -> Tensor:
        return self.penalty * sum((p**2).sum() for p in self.parameters())


class Sequence(Classifier):
    def __init__(self, *parts: nn.Module, flat: bool = False, penalty: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(*parts)
        self.flat, self.penalty = flat, penalty

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self.net(x.flatten(1) if self.flat else x)


class Attention(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 4, bias=False) for _ in range(3))
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(torch.tanh(mixed).mean(1))


class Tied(Classifier):
    """One matrix in two places, and under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(5, 5, bias=False)
        self.decode = nn.Linear(5, 5)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))[:, :CLASSES]


class Unused(Classifier):
    """A layer that never takes part, between two that do."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 4)
        self.idle = nn.Linear(2, 2)
        self.two = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Sometimes(Classifier):
    """A layer that takes part in every second batch only, so that its optimizer state stands still in between."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(5, CLASSES)
        self.even = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        logits = torch.tanh(self.always(x))
        return logits * (1 + self.even(x)) if batch_idx % 2 == 0 else logits


class Embedded(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return self.head(torch.tanh(self.table(x)).mean(1))


class Scalar(Classifier):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, CLASSES)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        return torch.sinh(self.scale * self.linear(x))


class TwiceNormed(Classifier):
    """One BatchNorm in two places: its running statistics move twice per step."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, batch_idx: int = 0) -> Tensor:
        hidden = torch.tanh(self.norm(self.one(x)))
        return self.head(torch.tanh(self.norm(self.two(hidden))))


def linear(p: Named, name: str, x: Tensor) -> Tensor:
    out = torch.einsum("...i,oi->...o", x, p[f"{name}.weight"])
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def batch_norm(
    p: Named, b: Named, name: str, x: Tensor, *, train: bool, momentum: float | None = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """By its formula; the running statistics keep their graph."""
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var = b[f"{name}.running_mean"], b[f"{name}.running_var"]
    count = b[f"{name}.num_batches_tracked"]
    after = {}
    if train:
        rows = x.numel() / x.shape[1]
        m = x.mean(axes)
        v = ((x - m.view(shape)) ** 2).mean(axes)
        count = count + 1
        rate = 1 / count if momentum is None else momentum
        after = {
            f"{name}.running_mean": (1 - rate) * mean + rate * m,
            f"{name}.running_var": (1 - rate) * var + rate * v * rows / (rows - 1),
            f"{name}.num_batches_tracked": count,
        }
        mean, var = m, v
    out = (x - mean.view(shape)) / (var.view(shape) + 1e-5) ** 0.5
    return out * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape), after


Twin = Callable[[Named, Named, Tensor, bool, int], tuple[Tensor, Mapping[str, Tensor]]]
"""``(parameters, buffers, x, train, batch_idx)`` to logits and moved buffers."""


def _logreg(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    return linear(p, "net.0", x), {}


def _mlp(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    return linear(p, "net.2", torch.tanh(linear(p, "net.0", x))), {}


def _dropout(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    hidden = torch.tanh(linear(p, "net.0", x))
    if train:
        hidden = hidden * F.dropout(torch.ones_like(hidden), 0.3)
    return linear(p, "net.3", hidden), {}


def _conv(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    patches = x.unfold(2, 3, 1).unfold(3, 3, 1)  # [B, 1, 3, 3, 3, 3]
    hidden = torch.einsum("bcijkl,ockl->boij", patches, p["net.0.weight"]) + p["net.0.bias"].view(1, -1, 1, 1)
    return linear(p, "net.4", torch.tanh(hidden).mean((2, 3))), {}


def _normed(momentum: float | None, frozen: bool = False) -> Twin:
    def forward(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
        hidden, after = batch_norm(p, b, "net.1", linear(p, "net.0", x), train=train and not frozen, momentum=momentum)
        return linear(p, "net.3", torch.tanh(hidden)), after

    return forward


def _conv_normed(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    patches = x.unfold(2, 3, 1).unfold(3, 3, 1)
    hidden = torch.einsum("bcijkl,ockl->boij", patches, p["net.0.weight"])
    hidden, after = batch_norm(p, b, "net.1", hidden, train=train)
    return linear(p, "net.4", torch.tanh(hidden).flatten(1)), after


def _twice_normed(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    hidden, first = batch_norm(p, b, "norm", linear(p, "one", x), train=train)
    hidden, second = batch_norm(p, {**b, **first}, "norm", linear(p, "two", torch.tanh(hidden)), train=train)
    return linear(p, "head", torch.tanh(hidden)), {**first, **second}


def _layer_normed(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    hidden = linear(p, "net.0", x)
    centred = hidden - hidden.mean(1, keepdim=True)
    hidden = centred / ((centred**2).mean(1, keepdim=True) + 1e-5) ** 0.5
    return linear(p, "net.3", torch.tanh(hidden * p["net.1.weight"] + p["net.1.bias"])), {}


def _attention(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    q, k, v = (linear(p, n, x) for n in "qkv")
    scores = torch.einsum("bid,bjd->bij", q, k) / 2.0
    shares = scores.exp() / scores.exp().sum(2, keepdim=True)
    return linear(p, "out", torch.tanh(torch.einsum("bij,bjd->bid", shares, v)).mean(1)), {}


def _tied(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    w = p["encode.weight"]
    return (torch.tanh(x @ w.T) @ w.T + p["decode.bias"])[:, :CLASSES], {}


def _unused(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    return linear(p, "two", torch.tanh(linear(p, "one", x))), {}


def _sometimes(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    logits = torch.tanh(linear(p, "always", x))
    return logits * (1 + linear(p, "even", x)) if batch_idx % 2 == 0 else logits, {}


def _embedded(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    chosen = (x[..., None] == torch.arange(7)).double() @ p["table.weight"]
    return linear(p, "head", torch.tanh(chosen).mean(1)), {}


def _scalar(p: Named, b: Named, x: Tensor, train: bool, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
    z = p["scale"] * linear(p, "linear", x)
    return (z.exp() - (-z).exp()) / 2, {}


def _flat(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 5, generator=generator, dtype=torch.float64)


def _dead(count: int, generator: torch.Generator) -> Tensor:
    """The second feature is always zero, like a pixel that is never lit."""
    x = _flat(count, generator)
    x[:, 1] = 0
    return x


def _image(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 1, 5, 5, generator=generator, dtype=torch.float64)


def _tokens(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 4, 3, generator=generator, dtype=torch.float64)


def _words(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 6, (count, 4), generator=generator)  # word 6 never occurs


@dataclass(frozen=True)
class Model:
    """A model, twice.

    Attributes:
        make: The module, float32, its parameters drawn from torch's generator.
        twin: The same by hand.
        inputs: ``x`` of so many examples.
        frozen: Names of sub-modules that are in eval mode in training.
    """

    make: Callable[[], Classifier]
    twin: Twin
    inputs: Callable[[int, torch.Generator], Tensor] = _flat
    frozen: tuple[str, ...] = ()


def _hidden(*middle: nn.Module, penalty: float = 0.0) -> Classifier:
    return Sequence(nn.Linear(5, 4), *middle, nn.Linear(4, CLASSES), penalty=penalty)


MODELS: Mapping[str, Model] = {
    "logreg": Model(lambda: Sequence(nn.Linear(5, CLASSES)), _logreg),
    "mlp": Model(lambda: _hidden(nn.Tanh()), _mlp),
    "dead": Model(lambda: _hidden(nn.Tanh()), _mlp, _dead),
    "penalty": Model(lambda: _hidden(nn.Tanh(), penalty=0.05), _mlp),
    "dropout": Model(lambda: _hidden(nn.Tanh(), nn.Dropout(0.3)), _dropout),
    "conv": Model(
        lambda: Sequence(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(2, CLASSES)),
        _conv,
        _image,
    ),
    "batchnorm": Model(lambda: _hidden(nn.BatchNorm1d(4), nn.Tanh()), _normed(0.1)),
    "batchnorm-cumulative": Model(lambda: _hidden(nn.BatchNorm1d(4, momentum=None), nn.Tanh()), _normed(None)),
    "batchnorm-frozen": Model(
        lambda: _hidden(nn.BatchNorm1d(4), nn.Tanh()), _normed(0.1, frozen=True), frozen=("net.1",)
    ),
    "batchnorm-2d": Model(
        lambda: Sequence(
            nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(18, CLASSES)
        ),
        _conv_normed,
        _image,
    ),
    "batchnorm-twice": Model(TwiceNormed, _twice_normed),
    "layernorm": Model(lambda: _hidden(nn.LayerNorm(4), nn.Tanh()), _layer_normed),
    "attention": Model(Attention, _attention, _tokens),
    "tied": Model(Tied, _tied),
    "unused": Model(Unused, _unused),
    "sometimes": Model(Sometimes, _sometimes),
    "embedding": Model(Embedded, _embedded, _words),
    "scalar": Model(Scalar, _scalar),
}

r"""The optimizers of ``torch.optim`` by their published formulas, out of place, for autograd through a whole run.

Written from the formulas and not from the update rules of this package, of which they are an oracle. Each takes
parameter, gradient and state of one parameter and gives the next parameter and state; a state is empty before the first
step. At a second moment of exactly zero the square root has derivative zero.

References:
    Sutskever et al. 2013 (SGD with momentum, as torch writes it); Kingma and Ba 2015 (Adam, Adamax); Reddi et al. 2018
    (AMSGrad); Loshchilov and Hutter 2019 (AdamW); Dozat 2016 (NAdam); Liu et al. 2020 (RAdam); Duchi et al. 2011
    (Adagrad); Zeiler 2012 (Adadelta); Hinton 2012, Graves 2013 (RMSprop, centred); Polyak and Juditsky 1992 (ASGD).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Memory = Mapping[str, Any]
"""Optimizer state of one parameter: tensors and numbers by key."""
Options = Mapping[str, Any]
Formula = Callable[[Tensor, Tensor, Memory, Options], "tuple[Tensor, Memory]"]


def sgd(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Step with momentum, dampening (not at first) and Nesterov; memory ``b``, untouched while the momentum is 0."""
    a = _gradient(p, g, o)
    mu = o.get("momentum", 0.0)
    if mu == 0:
        return p - o["lr"] * a, m
    b = mu * m["b"] + (1 - o.get("dampening", 0.0)) * a if "b" in m else a
    return p - o["lr"] * (a + mu * b if o.get("nesterov") else b), {"b": b}


def adam(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Step as Adam and AMSGrad; the decay joins the gradient unless it is decoupled."""
    (b1, b2), t = o["betas"], m.get("t", 0) + 1
    if o.get("decoupled_weight_decay"):
        p, a = p - o["lr"] * o.get("weight_decay", 0.0) * p, -g if o.get("maximize") else g
    else:
        a = _gradient(p, g, o)
    mean = b1 * m.get("mean", 0.0) + (1 - b1) * a
    square = b2 * m.get("square", 0.0) + (1 - b2) * a * a
    after = {"t": t, "mean": mean, "square": square}
    if o.get("amsgrad"):
        square = after["top"] = torch.maximum(m["top"], square) if "top" in m else square
    root = _root(square) / (1 - b2**t) ** 0.5
    return p - o["lr"] * mean / (1 - b1**t) / (root + o["eps"]), after


def adamw(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Step as Adam with the decay decoupled."""
    return adam(p, g, m, {**o, "decoupled_weight_decay": True})


def nadam(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Step as Adam with Nesterov's look ahead and a momentum schedule."""
    (b1, b2), t = o["betas"], m.get("t", 0) + 1
    if o.get("decoupled_weight_decay"):
        p, a = p - o["lr"] * o.get("weight_decay", 0.0) * p, g
    else:
        a = _gradient(p, g, o)
    now, ahead = (b1 * (1 - 0.5 * 0.96 ** (s * o["momentum_decay"])) for s in (t, t + 1))
    product = _single(m.get("product", 1.0) * now)
    mean = b1 * m.get("mean", 0.0) + (1 - b1) * a
    square = b2 * m.get("square", 0.0) + (1 - b2) * a * a
    direction = (1 - now) / (1 - product) * a + ahead / (1 - product * ahead) * mean
    root = _root(square / (1 - b2**t))
    return p - o["lr"] * direction / (root + o["eps"]), {"t": t, "product": product, "mean": mean, "square": square}


def radam(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Step as Adam with the variance of its step rectified, and plain momentum while that cannot be done."""
    (b1, b2), t = o["betas"], m.get("t", 0) + 1
    a = _gradient(p, g, o)
    mean = b1 * m.get("mean", 0.0) + (1 - b1) * a
    square = b2 * m.get("square", 0.0) + (1 - b2) * a * a
    unbiased = mean / (1 - b1**t)
    limit = 2 / (1 - b2) - 1
    length = limit - 2 * t * b2**t / (1 - b2**t)
    step = unbiased
    if length > 5:
        rectify = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) ** 0.5
        step = unbiased * rectify * (1 - b2**t) ** 0.5 / (_root(square) + o["eps"])
    return p - o["lr"] * step, {"t": t, "mean": mean, "square": square}


def adamax(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Step as Adam with the largest gradient in the place of the second moment."""
    (b1, b2), t = o["betas"], m.get("t", 0) + 1
    a = _gradient(p, g, o)
    mean = b1 * m.get("mean", 0.0) + (1 - b1) * a
    size = a.abs() + o["eps"]
    top = torch.maximum(b2 * m["top"], size) if "top" in m else size
    return p - o["lr"] / (1 - b1**t) * mean / top, {"t": t, "mean": mean, "top": top}


def adagrad(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Divide the step by the root of the sum of squares."""
    t = m.get("t", 0) + 1
    a = _gradient(p, g, o)
    total = m.get("total", o.get("initial_accumulator_value", 0.0)) + a * a
    return p - o["lr"] / (1 + (t - 1) * o.get("lr_decay", 0.0)) * a / (_root(total) + o["eps"]), {
        "t": t,
        "total": total,
    }


def adadelta(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Scale the step to the unit of earlier steps."""
    rho, eps = o["rho"], o["eps"]
    a = _gradient(p, g, o)
    square = rho * m.get("square", 0.0) + (1 - rho) * a * a
    moved = m["moved"] if "moved" in m else torch.zeros_like(p)
    step = (moved + eps).sqrt() / (square + eps).sqrt() * a
    return p - o["lr"] * step, {"square": square, "moved": rho * moved + (1 - rho) * step * step}


def rmsprop(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Divide the step by the root of a running mean of squares, centred or not, with momentum or not."""
    alpha, mu = o["alpha"], o.get("momentum", 0.0)
    a = _gradient(p, g, o)
    square = alpha * m.get("square", 0.0) + (1 - alpha) * a * a
    after: dict[str, Any] = {"square": square}
    spread = square
    if o.get("centered"):
        after["mean"] = alpha * m.get("mean", 0.0) + (1 - alpha) * a
        spread = square - after["mean"] ** 2
    step = a / (_root(spread) + o["eps"])
    if mu > 0:
        step = after["b"] = mu * m.get("b", 0.0) + step
    return p - o["lr"] * step, after


def asgd(p: Tensor, g: Tensor, m: Memory, o: Options) -> tuple[Tensor, Memory]:
    """Take a decaying step; the average it is named for does not feed back into the parameters."""
    t = m.get("t", 0) + 1
    a = _gradient(p, g, o)
    eta = _single(o["lr"]) if t == 1 else m["eta"]
    after = o["lr"] / (1 + o["lambd"] * o["lr"] * t) ** o["alpha"]
    return p * (1 - o["lambd"] * eta) - eta * a, {"t": t, "eta": _single(after)}


FORMULAS: Mapping[str, Formula] = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adamw,
    "NAdam": nadam,
    "RAdam": radam,
    "Adamax": adamax,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "RMSprop": rmsprop,
    "ASGD": asgd,
}
"""By class name."""


def _gradient(p: Tensor, g: Tensor, o: Options) -> Tensor:
    """Return the direction of ascent with the decay in it."""
    signed = -g if o.get("maximize") else g
    decay = o.get("weight_decay", 0.0)
    return signed + decay * p if decay else signed


def _single(x: float) -> float:
    """Round to float32, which torch keeps such a number in whatever the parameters' dtype."""
    return float(torch.tensor(x, dtype=torch.float32))


def _root(x: Tensor) -> Tensor:
    """Return the square root with derivative 0 at 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))

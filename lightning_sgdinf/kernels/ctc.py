r"""Connectionist temporal classification by its recursion, of which torch has no second derivative.

With the labels of an example set apart by blanks, :math:`z = (\epsilon, y_1, \epsilon, \dots, y_S, \epsilon)`, the
logarithm of the probability of all alignments that end at place :math:`s` at time :math:`t` is

.. math:: a_t(s) = \log p_t(z_s) + \log \sum_{k \in K(s)} e^{a_{t-1}(s - k)},

with :math:`K(s) = \{0, 1, 2\}` where :math:`z_s` is no blank and differs from :math:`z_{s-2}`, else :math:`\{0, 1\}`
(Graves, Fernández, Gomez and Schmidhuber 2006).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Compute ``F.ctc_loss`` by operations that can be differentiated any number of times.

    Torch's gradient takes the probabilities of a time to add up to one, whether they do or not, and so does this one.

    Args:
        log_probs: Logarithms of probabilities, ``[T, B, C]`` or ``[T, C]``.
        targets: Labels, ``[B, S]``, or those of all examples in a row.
        input_lengths: Times of each example.
        target_lengths: Labels of each example.
        blank: The label that stands for none.
        reduction: As torch's.
        zero_infinity: Let examples that cannot be aligned count nothing.
    """
    whole = log_probs if log_probs.ndim == 3 else log_probs.unsqueeze(1)
    device, count = whole.device, whole.shape[1]
    times, lengths = (torch.as_tensor(v, device=device).long().expand(count) for v in (input_lengths, target_lengths))
    losses = _losses(whole, _path(targets.to(device), lengths, blank), times, lengths, blank)
    if zero_infinity:
        losses = torch.where(losses.isinf(), torch.zeros_like(losses), losses)
    sums = torch.where(torch.arange(len(whole), device=device)[:, None] < times, whole.exp().sum(-1), 0).sum(0)
    losses = losses + torch.where(losses == 0, torch.zeros_like(sums), sums - sums.detach())
    if reduction == "mean":
        return (losses / lengths.clamp_min(1)).mean()
    return losses.sum() if reduction == "sum" else losses if log_probs.ndim == 3 else losses[0]


def _path(targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Return the labels of each example with blanks around them, ``[B, 2 S + 1]``."""
    place = torch.arange(int(lengths.max()), device=lengths.device)
    if targets.ndim == 1:
        at = (lengths.cumsum(0) - lengths)[:, None] + place
        labels = F.pad(targets, (0, 1))[at.clamp(max=len(targets))]
    else:
        labels = targets[:, : len(place)]
    path = torch.full((len(lengths), 2 * len(place) + 1), blank, device=lengths.device)
    path[:, 1::2] = torch.where(place < lengths[:, None], labels.long(), blank)
    return path


def _losses(log_probs: Tensor, path: Tensor, times: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Return what each example adds, ``[B]``; infinite where it cannot be aligned."""
    leaps = torch.zeros_like(path, dtype=torch.bool)
    leaps[:, 2:] = (path[:, 2:] != blank) & (path[:, 2:] != path[:, :-2])
    # Not minus infinity, of which a sum of exponentials has no derivative.
    never = torch.finfo(log_probs.dtype).min / 4
    emitted = log_probs.gather(2, path.expand(len(log_probs), -1, -1))
    reach = F.pad(emitted[0, :, :2], (0, max(path.shape[1] - 2, 0)), value=never)
    for t in range(1, len(log_probs)):
        by_one = F.pad(reach[:, :-1], (1, 0), value=never)
        by_two = F.pad(reach, (2, 0), value=never)[:, : path.shape[1]].masked_fill(~leaps, never)
        moved = torch.logsumexp(torch.stack([reach, by_one, by_two]), 0) + emitted[t]
        reach = torch.where((t < times)[:, None], moved.clamp_min(never), reach)
    last = 2 * lengths[:, None]
    before = reach.gather(1, (last - 1).clamp_min(0)).masked_fill(last == 0, never)
    losses = -torch.cat([reach.gather(1, last), before], 1).logsumexp(1)
    return torch.where(losses > -never / 8, torch.full_like(losses, torch.inf), losses)

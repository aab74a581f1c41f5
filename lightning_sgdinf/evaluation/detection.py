"""Detection of examples that are known to be corrupt, e.g. labels that were flipped on purpose, by a ranking.

The examples are inspected from the most harmful down. Nothing is trained here; what it costs is one sort.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_precision_recall_curve

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError
from lightning_sgdinf.renamed import warn_renamed


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """Measures of finding the corrupt examples by a ranking.

    Attributes:
        auroc: Probability that a corrupt example ranks above a clean one; 0.5 is chance.
        average_precision: Area under the precision-recall curve; ``corrupt / total`` is chance.
        precision: ``[P]`` precision of the precision-recall curve, from inspecting everything to inspecting nothing.
        recall: ``[P]`` its recall, decreasing.
        cumulative_hits: ``[N + 1]``: corrupt examples among the first ``m`` inspected; equal scores in order of id.
        corrupt: Number of corrupt examples.
        total: Number ``N`` of examples.
    """

    auroc: float
    average_precision: float
    precision: np.ndarray
    recall: np.ndarray
    cumulative_hits: np.ndarray
    corrupt: int
    total: int

    @property
    def hits(self) -> int:
        """Corrupt examples found when as many are inspected as there are."""
        return int(self.cumulative_hits[self.corrupt])

    @property
    def found(self) -> np.ndarray:
        """The old name of `cumulative_hits`."""
        warn_renamed("Detection.found", "Detection.cumulative_hits")
        return self.cumulative_hits


def detect(harm: Tensor, corrupt: Iterable[int]) -> Detection:
    """Judge a ranking by the corrupt examples near its top.

    Args:
        harm: ``[N]``, larger is more harmful; see `lightning_sgdinf.scores.Scores.harm`.
        corrupt: Ids of the corrupt examples, at least one and not all.

    Raises:
        ConfigurationError: Ids out of range, none, or all of them; ``harm`` not a vector.
        NonFiniteError: NaN or infinity in ``harm``.
    """
    if harm.ndim != 1:
        raise ConfigurationError(
            f"harm: expected shape [N], got {list(harm.shape)}; for scores, pass scores.harm(query)"
        )
    if not harm.isfinite().all():
        raise NonFiniteError(f"harm of example {int((~harm.isfinite()).nonzero()[0])} is not finite")
    ids = sorted(set(map(int, corrupt)))
    if not 0 < len(ids) < len(harm) or ids[0] < 0 or ids[-1] >= len(harm):
        shown = f"{len(ids)} ids" + (f" from {ids[0]} to {ids[-1]}" if ids else "")
        raise ConfigurationError(f"corrupt: expected some but not all ids of {len(harm)} examples, got {shown}")
    target = torch.zeros(len(harm), dtype=torch.int64)
    target[ids] = 1
    # What lies outside [0, 1] the metrics squash by a sigmoid, which makes ties of large scores; ranks keep the order.
    levels, rank = torch.unique(harm.detach().cpu(), return_inverse=True)
    confidence = rank.to(torch.float64) / max(len(levels) - 1, 1)
    precision, recall, _ = binary_precision_recall_curve(confidence, target)
    order = torch.argsort(harm.detach().cpu(), descending=True, stable=True)
    return Detection(
        auroc=float(binary_auroc(confidence, target)),
        average_precision=float(binary_average_precision(confidence, target)),
        precision=precision.numpy().astype(np.float64),
        recall=recall.numpy().astype(np.float64),
        cumulative_hits=np.concatenate([[0], np.cumsum(target[order].numpy())]),
        corrupt=len(ids),
        total=len(harm),
    )

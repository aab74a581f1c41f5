"""Detection of the labels that were made wrong."""

from __future__ import annotations

from lightning_sgdinf.evaluation import Detection, detect
from lightning_sgdinf.scores import Scores
from lightning_sgdinf.zoo import ImageData, VectorData


def detect_wrong_labels(data: ImageData | VectorData, scores: Scores) -> Detection | None:
    """Return how well scores detect the labels that were made wrong; ``None`` if none were, or all."""
    flipped = data.flipped
    if flipped is None or not flipped.any() or flipped.all():
        return None
    return detect(scores.harm(), flipped.nonzero().flatten().tolist())

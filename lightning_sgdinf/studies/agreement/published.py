"""Published means and standard deviations over 100 repeats.

References:
    Hara, Nitanda and Maehara, "Data Cleansing for Models Trained with SGD", NeurIPS 2019 (arXiv:1906.08473), Table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """Kendall's tau and the Jaccard index of the 10 + 10 extremes: mean, then standard deviation."""

    tau: tuple[float, float]
    jaccard: tuple[float, float]


PUBLISHED: Mapping[tuple[str, str], Mapping[str, Published]] = {
    ("adult_lie", "logreg"): {
        "sgd_influence": Published((0.93, 0.02), (0.80, 0.10)),
        "koh_liang_paper": Published((0.85, 0.07), (0.60, 0.17)),
    },
    ("adult_lie", "dnn"): {
        "sgd_influence": Published((0.75, 0.10), (0.59, 0.16)),
        "koh_liang_paper": Published((0.54, 0.12), (0.32, 0.11)),
    },
    ("news_lie", "logreg"): {
        "sgd_influence": Published((0.94, 0.05), (0.79, 0.15)),
        "koh_liang_paper": Published((0.82, 0.15), (0.52, 0.19)),
    },
    ("news_lie", "dnn"): {
        "sgd_influence": Published((0.45, 0.12), (0.25, 0.08)),
        "koh_liang_paper": Published((0.37, 0.12), (0.11, 0.07)),
    },
    ("mnist_lie", "logreg"): {
        "sgd_influence": Published((0.95, 0.02), (0.83, 0.10)),
        "koh_liang_paper": Published((0.70, 0.15), (0.41, 0.16)),
    },
    ("mnist_lie", "dnn"): {
        "sgd_influence": Published((0.45, 0.12), (0.37, 0.15)),
        "koh_liang_paper": Published((0.27, 0.16), (0.27, 0.12)),
    },
}
"""By data set and model, then by method."""

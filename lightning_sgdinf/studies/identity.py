"""The identity of a configured object in the cache, which outlives the renaming of its class."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lightning_sgdinf.studies.cache import Json

FIRST_TARGETS: Mapping[str, str] = {
    "lightning_sgdinf.updates.CounterfactualReplay": "lightning_sgdinf.tasks.retraining.Counterfactual",
    "lightning_sgdinf.studies.Scratch": "lightning_sgdinf.tasks.retraining.Scratch",
    "lightning_sgdinf.estimators.KohLiang": "lightning_sgdinf.baselines.KohLiang",
    **{
        f"lightning_sgdinf.curvature.{solver}": f"lightning_sgdinf.baselines.{solver}"
        for solver in ("ConjugateGradient", "Dense", "Lissa", "MomentumDescent")
    },
}
"""The first ``_target_`` of every class that has moved since results were first cached: it stands in their digests."""


def identity_of(node: Json) -> Json:
    """Return a node of the configuration as it was written when its classes had their first names.

    Results are cached under digests of such nodes, so that those of earlier releases are still used. In place of a node
    there may be the ``repr`` of an object, which loses its addresses: they differ between processes.
    """
    if isinstance(node, str):
        return re.sub(r" at 0x[0-9a-f]+", "", node)
    if isinstance(node, Mapping):
        return {
            key: FIRST_TARGETS.get(value, value) if key == "_target_" else identity_of(value)
            for key, value in node.items()
        }
    return [identity_of(item) for item in node] if isinstance(node, list) else node

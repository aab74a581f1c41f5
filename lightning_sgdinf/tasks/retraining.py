"""The former place of the ways to train again."""

from __future__ import annotations

from typing import Literal

from lightning_sgdinf.renamed import renamed, warn_renamed
from lightning_sgdinf.updates import CounterfactualReplay

__getattr__ = renamed(__name__, {"Scratch": "lightning_sgdinf.studies.Scratch"})


def Counterfactual(epochs: int | Literal["all"] = 1) -> CounterfactualReplay:
    """Return a `CounterfactualReplay`, with the number of epochs that was the default under this name."""
    warn_renamed(f"{__name__}.Counterfactual", "lightning_sgdinf.updates.CounterfactualReplay")
    return CounterfactualReplay(epochs)

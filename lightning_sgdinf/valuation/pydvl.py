"""pyDVL's samplers and valuation methods on a utility of this room.

pyDVL trains once per coalition. Its samplers are seeded, so what they are going to ask for can be known: asked ahead,
many models at once, it is there when pyDVL looks::

    game = PydvlGame(utility)
    game.ask_ahead(PermutationSampler(seed=1), 50)
    valuation = ShapleyValuation(game.utility, PermutationSampler(seed=1), is_done=MaxUpdates(50), progress=False)
    valuation.fit(game.dataset)

References:
    pyDVL, the library of values by aai-institute, https://pydvl.org.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.extras import require
from lightning_sgdinf.valuation.utility import Utility, ask


class PydvlGame:
    """A utility as pyDVL takes it.

    Args:
        utility: The game.
        query: Which of its queries, by position.

    Attributes:
        utility: For pyDVL's valuation methods; looks up what was asked before.
        dataset: For their ``fit``: as many indices as there are players.

    Raises:
        MissingExtraError: pyDVL is not installed.
        ConfigurationError: There is no such query.
    """

    def __init__(self, utility: Utility, query: int = 0) -> None:
        valuation = require("pydvl.valuation", extra="pydvl")
        base = require("pydvl.valuation.utility.base", extra="pydvl").UtilityBase
        if not 0 <= query < len(utility.names):
            raise ConfigurationError(f"query: expected a position below {len(utility.names)}, got {query}")
        self._utility, self._query = utility, query
        self._known: dict[bytes, float] = {}
        look_up = self._look_up

        class Looked(base):  # type: ignore[misc, valid-type]
            """Looks values up."""

            def __call__(self, sample: Any) -> float:
                return look_up(() if sample is None else sample.subset)

        self.utility = Looked()
        players = np.arange(utility.players)
        self.dataset = valuation.Dataset(players[:, None].astype(float), players)

    def ask_ahead(self, sampler: Any, batches: int) -> int:
        """Ask, many at once, for what a sampler is going to need.

        Args:
            sampler: One of pyDVL's, that nobody has drawn from, with the seed of the one that will be used.
            batches: How many of its batches.

        Returns:
            Number of different coalitions asked.
        """
        wanted: dict[bytes, np.ndarray] = {}
        indices = self.dataset.indices
        for sample in itertools.chain.from_iterable(itertools.islice(sampler.generate_batches(indices), batches)):
            for members in _needed(sampler, sample):
                coalition = self._coalition(members)
                wanted[coalition.tobytes()] = coalition
        new = {key: coalition for key, coalition in wanted.items() if key not in self._known}
        if new:
            values = ask(self._utility, torch.from_numpy(np.stack(list(new.values()))))
            self._known.update(zip(new, values[:, self._query].tolist(), strict=True))
        return len(new)

    def _look_up(self, members: Iterable[int]) -> float:
        coalition = self._coalition(members)
        key = coalition.tobytes()
        if key not in self._known:
            self._known[key] = float(ask(self._utility, torch.from_numpy(coalition)[None])[0, self._query])
        return self._known[key]

    def _coalition(self, members: Iterable[int]) -> np.ndarray:
        coalition = np.zeros(self._utility.players, dtype=bool)
        coalition[np.asarray(list(members), dtype=np.int64)] = True
        return coalition


def _needed(sampler: Any, sample: Any) -> list[Any]:
    """Return the coalitions that a sample stands for."""
    samplers = require("pydvl.valuation.samplers", extra="pydvl")
    members = list(sample.subset)
    if isinstance(sampler, samplers.permutation.PermutationSamplerBase):
        return [members[:count] for count in range(len(members) + 1)]
    if sample.idx is None or sample.idx < 0:
        return [members]
    return [members, [*members, sample.idx]]

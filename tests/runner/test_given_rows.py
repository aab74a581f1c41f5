"""Owners of rows that the user says: right where they are, refused where not, told of where nobody can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf import InfluenceRunner
from lightning_sgdinf.errors import ConfigurationError, UntappedLossError
from lightning_sgdinf.replay import LossRows
from lightning_sgdinf.testing import relative_error
from tests.runner.call_situations import Penalty, UnreadableTokens
from tests.runner.row_situations import MaskedTokens, TimeFirst, TwoViews
from tests.runner.situations import C, D, N, Params, Run, Situation, T, apply_linear, labels, likelihoods, normal


class Graphs(Situation):
    """A batch of graphs: nodes of all of them in one list, beside the number of each node's graph."""

    sizes = torch.tensor([1, 3, 2, 4, 1, 1, 2, 3, 2, 2, 1, 4])
    collate = staticmethod(lambda graphs: graphs_joined(graphs))

    def columns(self) -> tuple[Tensor, ...]:
        return normal(N, 4, D), labels(N, 4), self.sizes

    def loss(self, net: nn.Module, batch: Any, t: int) -> Tensor:
        x, y, _ = batch
        return F.cross_entropy(net(x), y)

    def summands(self, p: Params, ids: Tensor, t: int) -> Tensor:
        x, y, sizes = (c[ids] for c in self.columns())
        nodes = torch.arange(4) < sizes[:, None]
        return (likelihoods(apply_linear(p, x), y) * nodes).sum(1) / sizes.sum()


def graphs_joined(graphs: list[Any]) -> Any:
    if len(graphs) == 1:
        raise ValueError("a batch of one graph")
    nodes = [(x[:size], y[:size], torch.full((int(size),), i)) for i, (x, y, size, _) in enumerate(graphs)]
    return [*(torch.cat(parts) for parts in zip(*nodes, strict=True)), torch.tensor([int(g[3]) for g in graphs])]


def by_graph(batch: Any, loss: LossRows) -> Tensor:
    return batch[2]


def by_mask(batch: Any, loss: LossRows) -> Tensor:
    return batch[2].nonzero()[:, 0]


def by_time(batch: Any, loss: LossRows) -> Tensor:
    return torch.arange(len(batch[0])).repeat(T)


def by_view(batch: Any, loss: LossRows) -> Tensor:
    return torch.arange(len(batch[0])).repeat(2)


def by_shape(batch: Any, loss: LossRows) -> Tensor | None:
    return torch.full(loss.shape, -1) if loss.name == "mse_loss" else None


@pytest.mark.parametrize(
    ("kind", "rows"),
    [(Graphs, by_graph), (MaskedTokens, by_mask), (TimeFirst, by_time), (TwoViews, by_view), (Penalty, by_shape)],
)
def test_scores_and_counterfactuals_are_those_of_the_loss_written_out(
    kind: type[Situation], rows: Any, tmp_path: Path
) -> None:
    run = Run(kind(), tmp_path)
    scores = run.scores(rows=rows)
    assert relative_error(scores.values, run.unrolled()) < 1e-9
    assert relative_error(run.counterfactuals(rows=rows).values, run.trained_again()) < 1e-9
    assert scores.certificate is not None
    assert ("taken at its word" in " ".join(scores.certificate.warnings)) == (kind is Graphs)


def test_batches_that_cannot_be_taken_apart_need_a_word(tmp_path: Path) -> None:
    with pytest.raises(UntappedLossError, match=r"no batch .* of one example alone.* InfluenceRunner\(rows="):
        Run(Graphs(), tmp_path).scores()


def backwards(batch: Any, loss: LossRows) -> Tensor:
    return by_mask(batch, loss).flip(0)


def nobodys(batch: Any, loss: LossRows) -> Tensor:
    return torch.full(loss.shape, -1)


def one_too_few(batch: Any, loss: LossRows) -> Tensor:
    return by_mask(batch, loss)[1:]


def beyond(batch: Any, loss: LossRows) -> Tensor:
    return by_mask(batch, loss) + 3


@pytest.mark.parametrize("result", ["scores", "counterfactuals"])
@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (backwards, r"rows= says that row \d+ of the \d+ rows of cross_entropy \(call 0\) is that of example \d+"),
        (nobodys, "is no example's, but example"),
        (one_too_few, r"one whole number for each of the \d+ rows of cross_entropy .* got shape"),
        (beyond, "0 to 3, or -1; got numbers from 3 to 6"),
    ],
)
def test_a_wrong_word_is_refused(rows: Any, why: str, result: str, tmp_path: Path) -> None:
    run = Run(MaskedTokens(), tmp_path)
    with pytest.raises(UntappedLossError, match=rf"step \d+: .*{why}"):
        getattr(run, result)(rows=rows)


def test_places_are_those_of_drawn_examples(tmp_path: Path) -> None:
    """A collate function that leaves examples out shifts the rows; a word that forgets it is refused."""
    with pytest.raises(UntappedLossError, match="rows= says"):
        Run(UnreadableTokens(), tmp_path).scores(rows=by_mask)


def test_rows_and_losses_of_examples_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="losses of examples have no rows"):
        InfluenceRunner(rows=by_mask, per_example_loss=lambda module, batch, batch_idx: torch.zeros(C))

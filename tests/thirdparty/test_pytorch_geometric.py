"""Graph networks of PyTorch Geometric: batches of graphs, and nodes of one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sgdinf.testing import central_differences, relative_error
from tests.thirdparty.library_runs import QUIET, Fitted, scored, start_and_batches

pytest.importorskip("torch_geometric", reason="needs the extra libraries")
pytestmark = pytest.mark.filterwarnings("ignore")


class Graphs(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv, GCNConv

        self.first, self.second = GCNConv(3, 4), GATConv(4, 4)
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def loss(self, batch: Any) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        hidden = self.norm(self.first(batch.x, batch.edge_index)).relu()
        pooled = global_mean_pool(self.second(hidden, batch.edge_index), batch.batch)
        return F.cross_entropy(self.out(F.dropout(pooled, 0.2, self.training)), batch.y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_graphs_by_a_lightning_data_set(tmp_path: Path) -> None:
    from torch_geometric.data import Data
    from torch_geometric.data.lightning import LightningDataset

    random = torch.Generator().manual_seed(0)
    graphs = [
        Data(
            x=torch.randn(n, 3, generator=random) + n % 2,
            edge_index=torch.randint(0, n, (2, 8), generator=random),
            y=torch.tensor([n % 2]),
        )
        for n in torch.randint(3, 6, (16,), generator=random).tolist()
    ]

    def fit(callbacks: list[Any]) -> Fitted:
        module, data = Graphs(), LightningDataset(graphs[:10], graphs[10:], batch_size=5)
        trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, **QUIET)
        trainer.fit(module, datamodule=data)
        return Fitted(module=module, trainer=trainer, datamodule=data)

    _, scores = scored(fit, tmp_path / "run.tlog")
    assert len(scores) == 10


class Nodes(pl.LightningModule):
    """Classes of some nodes of one graph; a batch is the whole graph and the nodes that are asked."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.first, self.second = GCNConv(3, 4), GCNConv(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        graph, nodes = batch
        hidden = self.first(graph.x, graph.edge_index).tanh()
        return F.cross_entropy(self.second(hidden, graph.edge_index)[nodes], graph.y[nodes])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.5)


def test_nodes_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    from torch_geometric.data import Data

    random, log = torch.Generator().manual_seed(0), tmp_path / "run.tlog"
    x = torch.randn(20, 3, generator=random, dtype=torch.float64)
    edges = torch.randint(0, 20, (2, 40), generator=random)
    graph = Data(x=x, edge_index=edges, y=(x[:, 0] > 0).long())

    def with_graph(nodes: list[int]) -> Any:
        return graph, torch.tensor(nodes)

    def fit(callbacks: list[Any]) -> Fitted:
        module = Nodes()
        train = torch.utils.data.DataLoader(range(12), batch_size=4, shuffle=True, collate_fn=with_graph)  # type: ignore[arg-type]
        validation = torch.utils.data.DataLoader(range(12, 20), batch_size=8, collate_fn=with_graph)  # type: ignore[arg-type]
        trainer = pl.Trainer(max_epochs=2, precision="64-true", callbacks=callbacks, **QUIET)
        trainer.fit(module, train, validation)
        return Fitted(module=module, trainer=trainer, train=train, validation=validation)

    _, scores = scored(fit, log)
    start, batches = start_and_batches(log)
    adjacency = torch.eye(20, dtype=torch.float64).index_put((edges[1], edges[0]), torch.ones(40).double(), True)
    own = torch.arange(20)
    adjacency[own, own] = torch.where((edges[0] == edges[1]).any(), adjacency[own, own].clamp(max=1), 1.0)
    scale = adjacency.sum(1).rsqrt()
    mix = scale[:, None] * adjacency * scale

    def losses(p: dict[str, Tensor], nodes: Any) -> Tensor:
        hidden = (mix @ x @ p["first.lin.weight"].T + p["first.bias"]).tanh()
        z = mix @ hidden @ p["second.lin.weight"].T + p["second.bias"]
        return (z.exp().sum(1).log() - z[own, graph.y])[nodes]

    def query_after(weights: Tensor) -> Tensor:
        p, speed = {n: v.clone() for n, v in start.items()}, {n: torch.zeros_like(v) for n, v in start.items()}
        for nodes in batches:
            leaves = {n: v.detach().requires_grad_() for n, v in p.items()}
            grads = torch.autograd.grad((weights[nodes] * losses(leaves, nodes)).mean(), list(leaves.values()))
            for (name, value), grad in zip(leaves.items(), grads, strict=True):
                speed[name] = 0.5 * speed[name] + grad
                p[name] = value.detach() - 0.3 * speed[name]
        return losses(p, list(range(12, 20))).mean()

    assert relative_error(scores.values, central_differences(query_after, 12)) < 1e-6

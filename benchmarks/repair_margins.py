"""A better repair over many seeds: `IteratedMargins`, cleanlab and the worst margins, judged by fresh trainings.

The same procedure as `sgdinf experiment=repair 'identify=[aum,cleanlab,iterated,known]' 'treat=[fresh]'`, in bare
torch, so that many seeds take minutes: runs that share their batches are trained together, as one network of many. A
fresh training has another initial network and another order; left-out examples have weight 0, and a batch's mean is
over what is left. All causes of a seed are judged by the same fresh networks and orders: differences are paired.

Of CIFAR-10's pixels such a network learns next to nothing. There it is trained on features that see no labels: patches
of the training images, whitened, by their nearness to k-means centroids, summed over the quarters of an image (Coates,
Lee and Ng, 2011).

    python benchmarks/repair_margins.py fashion-mnist symmetric 0.3 --seeds 10 --data-dir ...
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from cleanlab.filter import find_label_issues
from scipy import stats
from torch import Tensor

from lightning_sgdinf.zoo import AsymmetricNoise, Cifar10, Cifar10N, ImageData, Mnist, SymmetricNoise

HIDDEN, EPOCHS, BATCH, MOMENTUM = 32, 8, 100, 0.9
RATE, RATE_OF_FEATURES = 0.05, 0.01
PATCH, CENTROIDS = 6, 256
FRACTIONS, THRESHOLDS, STATES, SHARE, ROUNDS = (0.03, 0.06, 0.1, 0.15, 0.22, 0.32), (0.5, 0.8, 0.95), 4, 0.3, 2


def initial(inputs: int, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(inputs, HIDDEN), torch.nn.Linear(HIDDEN, 10))
    return [p.detach().clone() for layer in layers for p in layer.parameters()]


def logits(params: list[Tensor], x: Tensor) -> Tensor:
    """Logits ``[R, B, 10]`` of ``R`` networks whose parameters are stacked."""
    w1, b1, w2, b2 = params
    hidden = (x @ w1.reshape(-1, x.shape[1]).T).view(len(x), len(w1), HIDDEN).transpose(0, 1) + b1[:, None]
    return torch.baddbmm(b2[:, None], hidden.relu(), w2.transpose(1, 2))


def train(
    x: Tensor, labels: Tensor, weights: Tensor, seed: int, *, reduced: bool = False, marks: tuple[int, ...] = ()
) -> list[list[Tensor]]:
    """Train ``R`` networks on the same batches; return their parameters at some numbers of steps.

    Args:
        x: ``[N, D]``.
        labels: ``[R, N]``.
        weights: ``[R, N]``.
        seed: Of initial parameters and order, the same for all.
        reduced: Divide by the weights in a batch, not by its size.
        marks: Numbers of steps; the last one if empty.
    """
    count = len(labels)
    params = [p.expand(count, *p.shape).clone().requires_grad_() for p in initial(x.shape[1], seed)]
    velocity = [torch.zeros_like(p) for p in params]
    generator = torch.Generator().manual_seed(seed)
    rate = RATE_OF_FEATURES if x.shape[1] == 4 * CENTROIDS else RATE
    kept, step, steps = [], 0, EPOCHS * -(-len(x) // BATCH)
    for _ in range(EPOCHS):
        for ids in torch.randperm(len(x), generator=generator).split(BATCH):
            losses = F.cross_entropy(logits(params, x[ids]).transpose(1, 2), labels[:, ids], reduction="none")
            own = weights[:, ids]
            divisor = own.sum(1).clamp_min(1) if reduced else len(ids)
            grads = torch.autograd.grad(((losses * own).sum(1) / divisor).sum(), params)
            with torch.no_grad():
                for p, v, g in zip(params, velocity, grads, strict=True):
                    p.sub_(v.mul_(MOMENTUM).add_(g), alpha=rate)
            step += 1
            if step in (marks or (steps,)):
                kept.append([p.detach().clone() for p in params])
    return kept


def last_marks(count: int) -> tuple[int, ...]:
    total = EPOCHS * -(-count // BATCH)
    part = round(SHARE * total)
    return tuple(total - part + round(part * (k + 1) / STATES) for k in range(STATES))


def normalised(images: Tensor) -> Tensor:
    """All patches of images ``[N, 3, H, W]``, each without its mean and of unit contrast: ``[N, 3 * 36, L]``."""
    patches = F.unfold(images, PATCH)
    patches = patches - patches.mean(1, keepdim=True)
    return patches / (patches.var(1, keepdim=True) + (10 / 255) ** 2).sqrt()


def dictionary(images: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and whitening matrix of patches, and k-means centroids of whitened ones."""
    generator = torch.Generator().manual_seed(seed)
    some = normalised(images[:2000]).transpose(1, 2).reshape(-1, 3 * PATCH**2)
    some = some[torch.randperm(len(some), generator=generator)[:60_000]]
    mean = some.mean(0)
    values, vectors = torch.linalg.eigh((some - mean).T @ (some - mean) / len(some))
    whiten = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    white = (some - mean) @ whiten
    centroids = white[:CENTROIDS].clone()
    for _ in range(15):
        nearest = torch.cdist(white, centroids).argmin(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, white)
        counts = torch.bincount(nearest, minlength=CENTROIDS)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return mean, whiten, centroids


def features(images: Tensor, mean: Tensor, whiten: Tensor, centroids: Tensor) -> Tensor:
    """How near the patches of each quarter are to each centroid: ``[N, 4 * CENTROIDS]``."""
    parts = []
    for some in images.split(100):
        white = (normalised(some).transpose(1, 2) - mean) @ whiten
        far = torch.cdist(white, centroids.expand(len(some), -1, -1))
        near = (far.mean(2, keepdim=True) - far).clamp_min(0)
        side = some.shape[-1] - PATCH + 1
        grid = near.transpose(1, 2).reshape(len(some), CENTROIDS, side, side)
        parts.append(F.adaptive_avg_pool2d(grid, 2).flatten(1))
    return torch.cat(parts)


class Seed:
    """One data set of noisy labels, and the run on it."""

    def __init__(self, data: ImageData, seed: int) -> None:
        self.seed = seed
        parts = (data.train_set, data.val_set, data.test_set)
        images = [torch.stack([part[j][0] for j in range(len(part))]) for part in parts]
        if images[0].shape[1] == 3:
            learnt = dictionary(images[0], seed)
            images = [features(part, *learnt) for part in images]
            centre, scale = images[0].mean(0), images[0].std(0) + 0.01
            images = [(part - centre) / scale for part in images]
        self.x, self.xv, self.xt = (part.flatten(1) for part in images)
        self.y, self.yv, self.yt = (part.labels for part in parts)
        self.true, self.wrong = data.true_labels, data.flipped
        half = torch.randperm(len(self.yv), generator=torch.Generator().manual_seed(seed))[: len(self.yv) // 2]
        self.choosing = half  # the other half is looked at by nothing here

    def plan(self, selections: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Labels and weights ``[R, N]`` of selections (ids to drop, ids to relabel, their labels)."""
        labels, weights = self.y.repeat(len(selections), 1), torch.ones(len(selections), len(self.y))
        for row, (drop, ids, new) in enumerate(selections):
            weights[row, drop], labels[row, ids] = 0.0, new
        return labels, weights

    def losses(self, selections: list[tuple[Tensor, Tensor, Tensor]]) -> list[float]:
        """Mean loss of the choosing half along the end of replays with selections."""
        x, y = self.xv[self.choosing], self.yv[self.choosing]
        states = train(self.x, *self.plan(selections), self.seed, marks=last_marks(len(self.x)))
        each = [
            F.cross_entropy(logits(s, x).transpose(1, 2), y.expand(len(selections), -1), reduction="none").mean(1)
            for s in states
        ]
        return torch.stack(each).mean(0).tolist()

    def along(self, selection: tuple[Tensor, Tensor, Tensor], share: float = SHARE) -> tuple[Tensor, Tensor]:
        """Mean margins and probabilities along the end of a replay."""
        margins, probabilities = [], []
        total = EPOCHS * -(-len(self.x) // BATCH)
        marks = last_marks(len(self.x)) if share == SHARE else tuple(round(total * (k + 1) / 12) for k in range(12))
        for state in train(self.x, *self.plan([selection]), self.seed, marks=marks):
            log_p = logits(state, self.x)[0].log_softmax(1)
            own = log_p.gather(1, self.y[:, None])[:, 0]
            margins.append(own - log_p.scatter(1, self.y[:, None], -torch.inf).amax(1))
            probabilities.append(log_p.exp())
        return torch.stack(margins).mean(0), torch.stack(probabilities).mean(0)

    def iterated(self) -> tuple[Tensor, Tensor, Tensor]:
        """The procedure of `lightning_sgdinf.cleansing.IteratedMargins`."""
        none = torch.zeros(0, dtype=torch.int64)
        best, least = (none, none, none), self.losses([(none, none, none)])[0]
        margins, probabilities = self.along(best)
        for _ in range(ROUNDS):
            order = margins.argsort(stable=True)
            tried = [(order[: max(1, round(f * len(order)))], none, none) for f in FRACTIONS]
            losses = self.losses(tried)
            place = int(np.argmin(losses))
            if not losses[place] < least:
                break
            best, least = tried[place], losses[place]
            margins, probabilities = self.along(best)
        sure, answers = probabilities.max(1)
        drop, tried = best[0], []
        for threshold in THRESHOLDS:
            certain = sure[drop] >= threshold
            ids = drop[certain & (answers[drop] != self.y[drop])]
            if bool(certain.any()):
                tried.append((drop[~certain], ids, answers[ids]))
        losses = self.losses(tried) if tried else []
        return tried[int(np.argmin(losses))] if losses and min(losses) < least else best

    def cleanlab(self) -> Tensor:
        """Ids that cleanlab takes for wrong, at probabilities of five replays without a fold each."""
        fold = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(self.seed)) % 5
        none = torch.zeros(0, dtype=torch.int64)
        plan = self.plan([((fold == k).nonzero()[:, 0], none, none) for k in range(5)])
        probabilities = torch.zeros(len(self.y), 10)
        (state,) = train(self.x, *plan, self.seed)
        for k in range(5):
            own = fold == k
            probabilities[own] = logits([p[k : k + 1] for p in state], self.x[own])[0].softmax(1)
        issues = find_label_issues(
            self.y.numpy(), probabilities.double().numpy(), filter_by="prune_by_noise_rate", n_jobs=1
        )
        return torch.from_numpy(issues).nonzero()[:, 0]

    def measure(self, fresh: int) -> dict[str, dict[str, float]]:
        none = torch.zeros(0, dtype=torch.int64)
        known = self.wrong.nonzero()[:, 0]
        margins, _ = self.along((none, none, none), share=1.0)
        generator = torch.Generator().manual_seed(self.seed)
        causes = {
            "nothing": (none, none, none),
            "random": (torch.randperm(len(self.y), generator=generator)[: len(known)], none, none),
            "cleanlab": (self.cleanlab(), none, none),
            "aum": (margins.argsort()[: len(known)], none, none),
            "iterated": self.iterated(),
            "known": (known, none, none),
        }
        losses, hits = [], []
        for number in range(fresh):
            (state,) = train(self.x, *self.plan(list(causes.values())), self.seed + 77 * (number + 1), reduced=True)
            z = logits(state, self.xt)
            target = self.yt.expand(len(causes), -1)
            losses.append(F.cross_entropy(z.transpose(1, 2), target, reduction="none").mean(1))
            hits.append((z.argmax(2) == self.yt).double().mean(1))
        outcome = {}
        for row, (name, (drop, ids, new)) in enumerate(causes.items()):
            both = torch.cat([drop, ids])
            outcome[name] = {
                "loss": float(torch.stack(losses).mean(0)[row]),
                "accuracy": float(torch.stack(hits).mean(0)[row]),
                "size": len(both),
                "precision": float(self.wrong[both].double().mean()) if len(both) else float("nan"),
                "relabelled": len(ids),
                "right": float((self.true[ids] == new).double().mean()) if len(ids) else float("nan"),
            }
        return outcome


def data_of(args: argparse.Namespace, seed: int) -> ImageData:
    if args.noise == "cifar10n":
        source, noise = Cifar10(args.data_dir), Cifar10N(args.data_dir, which=args.amount)
    else:
        source = Mnist(args.data_dir, variant=args.dataset)
        noise = (SymmetricNoise if args.noise == "symmetric" else AsymmetricNoise)(float(args.amount))
    return ImageData(source, train_size=10_000, val_size=2000, test_size=5000, label_noise=noise, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("noise", choices=("symmetric", "asymmetric", "cifar10n"))
    parser.add_argument("amount", help="part of the labels, or whose of CIFAR-10N")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fresh", type=int, default=5)
    parser.add_argument("--data-dir", default="data")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = []
    for seed in range(args.seeds):
        seeds.append(Seed(data_of(args, seed), seed).measure(args.fresh))
        print(json.dumps(seeds[-1]), flush=True)
    columns = ("cause", "selected", "precision", "relabelled", "of these right", "test loss", "accuracy")
    print("| " + " | ".join([*columns, "`iterated` is lower by", "p"]) + " |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    column = lambda name, key: np.array([one[name][key] for one in seeds])  # noqa: E731
    for name in seeds[0]:
        gain = column(name, "loss") - column("iterated", "loss")
        p = stats.ttest_1samp(gain, 0).pvalue if name != "iterated" and len(gain) > 1 else float("nan")
        shown = (("size", 0), ("precision", 2), ("relabelled", 0), ("right", 2))
        cells = [
            "" if np.isnan(v := column(name, key)).all() else f"{np.nanmean(v):.{digits}f}" for key, digits in shown
        ]
        spread = [f"{column(name, key).mean():.3f} ± {column(name, key).std():.3f}" for key in ("loss", "accuracy")]
        print(
            f"| `{name}` | " + " | ".join([*cells, *spread, f"{gain.mean():.3f} ± {gain.std():.3f}", f"{p:.4f}"]) + " |"
        )


if __name__ == "__main__":
    main()

"""The table of cases that everything numerical is checked on, and the plain training loop that makes a record of each.

A case is a model, an optimizer, a batching, a clipping, an averaging, groups and a schedule. `train` is an ordinary
training loop, with example weights if wanted; it knows nothing of replay. `record` runs it and writes down what a
recorder would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_sgdinf.dtypes import dtype_name
from lightning_sgdinf.log.batch_digest import batch_digest
from lightning_sgdinf.log.memory import MemoryLog
from lightning_sgdinf.log.records import Clip, Draw, Header, MicroBatch, ParamGroup, Step
from lightning_sgdinf.random_state import torch_state
from lightning_sgdinf.replay import OpenedRun, Replayer
from lightning_sgdinf.replay.batches import BatchSource
from lightning_sgdinf.replay.host import Host
from lightning_sgdinf.replay.objective import open_objective
from lightning_sgdinf.state import ModelState
from lightning_sgdinf.testing.oracles import Losses, UnrolledRun, UnrolledStep, unrolled_scores
from tests.adjoint.models import CLASSES, MODELS, Classifier, Model

VALIDATION = 10
Schedule = Callable[[int, int], Mapping[str, Any]]
"""Step and number of the param group to the options that change."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """The examples that each step draws.

    Attributes:
        examples: ``N``.
        size: Examples per micro-batch.
        epochs: How often the data set is gone through.
        accumulation: Micro-batches per step.
        repeats: Draw with replacement, also within a batch, and never the last example.
    """

    examples: int = 12
    size: int = 4
    epochs: int = 3
    accumulation: int = 1
    repeats: bool = False

    def steps(self) -> list[tuple[int, list[np.ndarray]]]:
        """``(epoch, ids of each micro-batch)`` of every step."""
        steps = []
        for epoch in range(self.epochs):
            draw = np.random.default_rng(epoch)
            order = draw.permutation(self.examples)
            if self.repeats:
                order = draw.integers(0, self.examples - 1, self.examples)
                order[1] = order[0]
            batches = [order[i : i + self.size] for i in range(0, self.examples, self.size)]
            steps += [(epoch, batches[i : i + self.accumulation]) for i in range(0, len(batches), self.accumulation)]
        return steps


PLAIN, RAGGED = Batching(), Batching(examples=11)
REPEATS = Batching(repeats=True)
PAIRS = Batching(examples=13, size=3, accumulation=2, epochs=2)  # 3 3 | 3 3 | 1
TRIPLES = Batching(examples=12, size=3, accumulation=3, epochs=2)  # 3 3 3 | 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    name: str
    model: str
    optimizer: str = "SGD"
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.3})
    batching: Batching = PLAIN
    clip: Clip | None = None
    average: Callable[[int], tuple[float, float] | None] = lambda t: None
    average_buffers: bool = True
    bias_options: Mapping[str, Any] | None = None
    schedule: Schedule = lambda t, group: {}
    tolerance: float = 1e-10
    dtype: torch.dtype = torch.float64

    @property
    def twice(self) -> Model:
        """The model, as a module and by hand."""
        return MODELS[self.model]

    def module(self) -> Classifier:
        """A module with the case's initial parameters."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return self.twice.make().to(self.dtype)

    def data(self) -> tuple[TensorDataset, TensorDataset]:
        """Training and validation set."""
        generator = torch.Generator().manual_seed(11)
        sets = []
        for count in (self.batching.examples, VALIDATION):
            x = self.twice.inputs(count, generator)
            x = x.to(self.dtype) if x.is_floating_point() else x
            sets.append(TensorDataset(x, torch.randint(0, CLASSES, (count,), generator=generator)))
        return sets[0], sets[1]


def ema(t: int) -> tuple[float, float]:
    """A moving average that begins with a copy."""
    return (0.7, 0.3) if t else (0.0, 1.0)


def swa(t: int) -> tuple[float, float] | None:
    """The mean of every second state from step 2 on."""
    if t < 2 or t % 2:
        return None
    count = (t - 2) // 2
    return count / (count + 1), 1 / (count + 1)


def decaying(t: int, group: int) -> dict[str, Any]:
    return {"lr": 0.3 / math.sqrt(1 + t) / (1 + group)}


def cycling(t: int, group: int) -> dict[str, Any]:
    """Learning rate and momentum as in a one-cycle policy; momentum passes through zero."""
    return {"lr": 0.1 + 0.05 * (t % 4), "momentum": (0.9, 0.4, 0.0)[t % 3]}


SINGLE = 1e-7
"""Where torch keeps a scalar of the optimizer in float32 whatever the parameters' dtype."""
ADAM = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3}
TIGHT, LOOSE, VALUE = Clip(0.05), Clip(50.0), Clip(0.02, "value")


def _case(name: str, model: str, optimizer: str = "SGD", options: Mapping[str, Any] | None = None, **more: Any) -> Case:
    return Case(name=name, model=model, optimizer=optimizer, options=options or {"lr": 0.3}, **more)


MOMENTUM = {"lr": 0.2, "momentum": 0.9}
CASES: tuple[Case, ...] = (
    _case("sgd", "logreg"),
    _case("sgd-mlp-ragged", "mlp", batching=RAGGED),
    _case("sgd-repeats-clip", "mlp", batching=REPEATS, clip=TIGHT),
    _case("sgd-decay-schedule", "conv", options={"lr": 0.3, "weight_decay": 0.1}, schedule=decaying),
    _case("momentum", "mlp", options=MOMENTUM, batching=REPEATS),
    _case("momentum-pairs", "attention", options=MOMENTUM, batching=PAIRS),
    _case("dampened", "dropout", options={**MOMENTUM, "dampening": 0.4, "weight_decay": 0.05}, batching=RAGGED),
    _case("nesterov", "batchnorm", options={**MOMENTUM, "nesterov": True, "weight_decay": 0.05}, clip=LOOSE),
    _case("maximize", "penalty", options={"lr": 0.05, "momentum": 0.5, "maximize": True, "weight_decay": 0.02}),
    _case("momentum-cycle", "mlp", options=MOMENTUM, schedule=cycling, clip=TIGHT),
    _case("momentum-groups", "tied", options=MOMENTUM, bias_options={"lr": 0.4, "momentum": 0.3, "nesterov": True}),
    _case("momentum-unused", "unused", options={**MOMENTUM, "weight_decay": 0.1}, clip=TIGHT),
    _case("momentum-sometimes", "sometimes", options=MOMENTUM, batching=RAGGED, schedule=decaying),
    _case("momentum-ema", "mlp", options=MOMENTUM, average=ema, batching=TRIPLES),
    _case("sgd-value", "embedding", clip=VALUE, batching=PAIRS),
    _case("sgd-scalar", "scalar", bias_options={"lr": 0.1, "weight_decay": 0.3}),
    _case("adam", "mlp", "Adam", ADAM, clip=TIGHT),
    _case("adam-dead", "dead", "Adam", {**ADAM, "weight_decay": 0.0}, batching=RAGGED),
    _case("adam-decay-schedule", "tied", "Adam", {**ADAM, "weight_decay": 0.1}, schedule=decaying, batching=REPEATS),
    _case("amsgrad", "embedding", "Adam", {**ADAM, "amsgrad": True}, batching=PAIRS, clip=LOOSE),
    _case("adamw", "layernorm", "AdamW", {**ADAM, "weight_decay": 0.2}, batching=TRIPLES, clip=TIGHT),
    _case("adamw-groups", "attention", "AdamW", ADAM, bias_options={"betas": (0.5, 0.7), "weight_decay": 0.0}),
    _case("adamw-batchnorm", "batchnorm-2d", "AdamW", ADAM, batching=PAIRS, average=ema),
    _case("adam-sometimes", "sometimes", "Adam", {**ADAM, "maximize": True}),
    _case("nadam", "conv", "NAdam", {**ADAM, "momentum_decay": 0.1}, batching=REPEATS, clip=VALUE, tolerance=SINGLE),
    _case(
        "nadam-scalar",
        "scalar",
        "NAdam",
        {**ADAM, "weight_decay": 0.1, "decoupled_weight_decay": True},
        tolerance=SINGLE,
    ),
    _case("radam", "dropout", "RAdam", {**ADAM, "betas": (0.8, 0.9)}, batching=TRIPLES),
    _case("adamax", "mlp", "Adamax", {**ADAM, "weight_decay": 0.05}, batching=PAIRS, schedule=decaying),
    _case("adagrad", "embedding", "Adagrad", {"lr": 0.2, "lr_decay": 0.1, "eps": 1e-3}, clip=TIGHT),
    _case("adagrad-start", "penalty", "Adagrad", {"lr": 0.2, "initial_accumulator_value": 0.3}, batching=RAGGED),
    _case("adadelta", "dropout", "Adadelta", {"lr": 1.0, "rho": 0.8, "eps": 1e-2}, average=swa),
    _case("rmsprop", "unused", "RMSprop", {"lr": 0.03, "alpha": 0.8, "eps": 1e-2}, batching=RAGGED),
    _case("rmsprop-momentum", "dead", "RMSprop", {"lr": 0.02, "alpha": 0.8, "eps": 1e-2, "momentum": 0.6}),
    _case("rmsprop-centred", "conv", "RMSprop", {"lr": 0.01, "alpha": 0.7, "eps": 1e-1, "centered": True}, clip=TIGHT),
    _case("rmsprop-dead", "dead", "RMSprop", {"lr": 0.01, "alpha": 0.7, "eps": 1e-1, "centered": True}),
    _case("asgd", "layernorm", "ASGD", {"lr": 0.3, "lambd": 0.05, "t0": 3.0, "weight_decay": 0.02}, batching=RAGGED),
    _case("asgd-scalar", "scalar", "ASGD", {"lr": 0.1, "lambd": 0.05, "alpha": 0.6}, clip=LOOSE),
    _case("batchnorm", "batchnorm", clip=TIGHT),
    _case("batchnorm-triples", "batchnorm", options=MOMENTUM, batching=TRIPLES),
    _case("batchnorm-cumulative", "batchnorm-cumulative", "Adam", ADAM, batching=REPEATS),
    _case("batchnorm-frozen", "batchnorm-frozen", options=MOMENTUM),
    _case("batchnorm-2d", "batchnorm-2d", batching=RAGGED, bias_options={"lr": 0.1}),
    _case("batchnorm-twice", "batchnorm-twice", options=MOMENTUM, batching=Batching(accumulation=2)),
    _case("batchnorm-ema", "batchnorm", options=MOMENTUM, average=ema, batching=REPEATS),
    _case("batchnorm-swa", "batchnorm", "Adam", ADAM, average=swa, average_buffers=False),
)
BY_NAME: Mapping[str, Case] = {c.name: c for c in CASES}


@dataclass(frozen=True)
class Recorded:
    """A recorded run and all that goes to a runner with it."""

    case: Case
    log: MemoryLog
    train: DataLoader[Any]
    validation: DataLoader[Any]

    @property
    def module(self) -> Classifier:
        """A fresh module, with other parameters than the trained ones."""
        return self.case.module()


def parameter_groups(case: Case, named: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Names and options per group; biases come first where they have a group of their own."""
    if case.bias_options is None:
        return [{"names": tuple(named), **case.options}]
    biases = tuple(n for n in named if n.endswith(("bias", "scale")))
    rest = tuple(n for n in named if n not in biases)
    return [{"names": biases, **case.options, **case.bias_options}, {"names": rest, **case.options}]


def reseed(step: int, micro: int) -> None:
    """Seed all that is random in a pass, which depends on these only."""
    torch.manual_seed(1000 * step + micro)


Observer = Callable[[str, int, Any, Any, Any], None]


def train(
    case: Case, weights: Tensor | None, observe: Observer | None = None, *, labels: Tensor | None = None
) -> tuple[Classifier, dict[str, Tensor] | None]:
    """Train; returns the module at the end and the averages, if there are any.

    With weights (of all examples), the losses are weighted by hand; without, ``training_step`` is taken as it is.
    """
    module = case.module()
    named = dict(module.named_parameters())
    groups = parameter_groups(case, named)
    kind = getattr(torch.optim, case.optimizer)
    optimizer = kind([{**g, "params": [named[n] for n in g["names"]]} for g in groups], **case.options)
    dataset, _ = case.data()
    if labels is not None:
        dataset = TensorDataset(dataset.tensors[0], labels)
    average: dict[str, Tensor] | None = None
    with torch.random.fork_rng():
        for t, (epoch, batches) in enumerate(case.batching.steps()):
            for number, group in enumerate(optimizer.param_groups):
                group.update(case.schedule(t, number))
            if observe is not None:
                observe("before", t, epoch, module, optimizer)
            optimizer.zero_grad(set_to_none=True)
            for k, ids in enumerate(batches):
                set_training(case, module)
                reseed(t, k)
                x, y = dataset[ids]
                if weights is None:
                    loss = module.training_step((x, y), k)
                else:
                    each = F.cross_entropy(module(x, k), y, reduction="none")
                    loss = (weights[ids] * each).sum() / len(ids) + (module.rest() if module.penalty else 0.0)
                (loss / case.batching.accumulation).backward()
            clip_gradients(case.clip, module)
            optimizer.step()
            if (coefficients := case.average(t)) is not None:
                average = averaged(case, module, average, *coefficients)
    if observe is not None:
        observe("end", len(case.batching.steps()), None, module, optimizer)
    return module, average


def set_training(case: Case, module: Classifier) -> None:
    module.train()
    for name in case.twice.frozen:
        module.get_submodule(name).eval()


def clip_gradients(clip: Clip | None, module: Classifier) -> None:
    if clip is not None and clip.algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(list(module.parameters()), clip.value)
    elif clip is not None:
        torch.nn.utils.clip_grad_value_(list(module.parameters()), clip.value)


def averaged(
    case: Case, module: Classifier, average: dict[str, Tensor] | None, a: float, b: float
) -> dict[str, Tensor]:
    now = dict(module.named_parameters())
    if case.average_buffers:
        now |= {n: v for n, v in module.named_buffers() if v.is_floating_point()}
    values = {n: v.detach().clone() for n, v in now.items()}
    return {n: b * v if average is None else a * average[n] + b * v for n, v in values.items()}


def query_value(case: Case, module: Classifier, average: Mapping[str, Tensor] | None) -> Tensor:
    """The mean validation loss of the model at the end, or of its average."""
    if average is not None:
        module.load_state_dict({**module.state_dict(), **average})
    module.eval()
    _, validation = case.data()
    total = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        for index, start in enumerate(range(0, VALIDATION, 4)):
            x, y = validation[start : start + 4]
            total += len(y) * module.training_step((x, y), index)
    return total / VALIDATION


def query_after(case: Case) -> Callable[[Tensor], Tensor]:
    """Trains again with given weights and asks the result."""
    return lambda weights: query_value(case, *train(case, weights))


def record(case: Case) -> Recorded:
    """Return what a recorder would have written of the run."""
    dataset, validation = case.data()
    steps: list[Step] = []
    states: dict[int, ModelState] = {}
    names: dict[Any, str] = {}

    def observe(moment: str, t: int, epoch: Any, module: Classifier, optimizer: torch.optim.Optimizer) -> None:
        named = dict(module.named_parameters())
        names.update({p: n for n, p in named.items()})
        memory = {n: {k: v for k, v in optimizer.state.get(p, {}).items()} for n, p in named.items()}
        states[t] = ModelState(
            params=named, buffers=dict(module.named_buffers()), optimizer={n: m for n, m in memory.items() if m}
        ).clone()
        if moment == "before":
            steps.append(describe(t, epoch, optimizer))

    def describe(t: int, epoch: int, optimizer: torch.optim.Optimizer) -> Step:
        micros = []
        for k, ids in enumerate(case.batching.steps()[t][1]):
            with torch.random.fork_rng():
                reseed(t, k)
                state = torch_state()
            batch = torch.utils.data.default_collate([dataset[int(i)] for i in ids])
            draw = Draw(example_ids=ids.astype(np.int64), digest=batch_digest(batch))
            micros.append(MicroBatch(batch_idx=k, draws=(draw,), stepped_with={"torch": state}))
        groups = tuple(
            ParamGroup(
                params=tuple(names[p] for p in g["params"]),
                options={
                    k: list(v) if isinstance(v, tuple) else v for k, v in g.items() if k not in ("params", "names")
                },
            )
            for g in optimizer.param_groups
        )
        return Step(
            index=t,
            epoch=epoch,
            global_step=t,
            micro_batches=tuple(micros),
            groups=groups,
            accumulation=case.batching.accumulation,
            clip=case.clip,
            eval_modules=case.twice.frozen,
            average=case.average(t),
        )

    module, average = train(case, None, observe)
    kind = getattr(torch.optim, case.optimizer)
    header = Header(
        run_id=case.name,
        created="2026-01-01T00:00:00+00:00",
        model=type(module).__qualname__,
        optimizer=f"{kind.__module__}.{kind.__qualname__}",
        parameters=tuple((n, tuple(p.shape), dtype_name(p.dtype)) for n, p in module.named_parameters()),
        precision="64-true" if case.dtype == torch.float64 else "32-true",
        datasets=(("TensorDataset", len(dataset)),),
    )
    log = MemoryLog(header=header, steps=steps, states=states, average=average)
    return Recorded(case, log, DataLoader(dataset, batch_size=4), DataLoader(validation, batch_size=4))


@contextmanager
def opened(run: Recorded) -> Iterator[OpenedRun]:
    """The run with its model and data."""
    source = BatchSource([run.train], run.log.header)
    with open_objective(run.module, run.log.header, source, Host()) as objective:
        yield OpenedRun(log=run.log, objective=objective)


@contextmanager
def replayer(run: Recorded) -> Iterator[Replayer]:
    """Takes the run's steps again."""
    with opened(run) as recorded:
        yield Replayer(run.log, recorded.objective)


def unrolled(case: Case, *, first_step: int = 0, divisor: str = "kept", curvature_scale: float = 1.0) -> Tensor:
    """Scores by autograd through the run written out by hand."""
    dataset, validation = case.data()
    module = case.module()
    named = {n: p.detach() for n, p in module.named_parameters()}
    buffers = {n: b.detach().double() for n, b in module.named_buffers()}
    twin = case.twice.twin
    penalty = module.penalty

    def rest(params: Mapping[str, Tensor]) -> Tensor | float:
        return penalty * sum((p * p).sum() for p in params.values()) if penalty else 0.0

    def losses(logits: Tensor, y: Tensor) -> Tensor:
        return torch.log(logits.exp().sum(1)) - logits[torch.arange(len(y)), y]

    def forward(params: Any, buffers: Any, ids: Tensor, t: int, k: int) -> Losses:
        x, y = dataset[ids]
        reseed(t, k)
        logits, after = twin(params, buffers, x, True, k)
        return Losses(losses(logits, y), rest(params), after)

    def query(params: Any, buffers: Any) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for index, start in enumerate(range(0, VALIDATION, 4)):
            x, y = validation[start : start + 4]
            logits, _ = twin(params, buffers, x, False, index)
            total = total + losses(logits, y).sum() + len(y) * rest(params)
        return total / VALIDATION

    groups = parameter_groups(case, named)
    defaults = getattr(torch.optim, case.optimizer)([torch.nn.Parameter(torch.zeros(1))], **case.options).defaults
    steps = [
        UnrolledStep(
            batches=[torch.from_numpy(ids) for ids in batches],
            groups=[
                (g["names"], {**defaults, **{k: v for k, v in g.items() if k != "names"}, **case.schedule(t, number)})
                for number, g in enumerate(groups)
            ],
            accumulation=case.batching.accumulation,
            clip=case.clip,
            average=case.average(t),
        )
        for t, (_, batches) in enumerate(case.batching.steps())
    ]
    run = UnrolledRun(
        params=named,
        buffers=buffers,
        steps=steps,
        forward=forward,
        query=query,
        optimizer=case.optimizer,
        divisor=divisor,
        average_buffers=case.average_buffers,
        curvature_scale=curvature_scale,
    )
    with torch.random.fork_rng():
        return unrolled_scores(run, case.batching.examples, first_step=first_step)


def altered(case: Case, **changes: Any) -> Case:
    """A variation of a case."""
    return replace(case, **changes)


def thinned(log: MemoryLog, stored: Iterable[int], keep: str = "every(k)") -> MemoryLog:
    """The same run with fewer states stored; of the others only the checksum is known."""
    steps = [log.step(t) for t in range(len(log))]
    return MemoryLog(
        header=replace(log.header, keep=keep),
        steps=steps,
        states={t: log.state(t) for t in {*stored, len(log)}},
        average=log.average,
        checksums={t: log.state_checksum(t) for t in range(len(log) + 1)},
    )


def edited(
    log: MemoryLog,
    *,
    states: Mapping[int, ModelState] | None = None,
    steps: Mapping[int, Step] | None = None,
    header: Header | None = None,
) -> MemoryLog:
    """A run of which something was changed."""
    return MemoryLog(
        header=header or log.header,
        steps=[(steps or {}).get(t, log.step(t)) for t in range(len(log))],
        states={t: (states or {}).get(t, log.state(t)) for t in log.state_indices.tolist()},
        average=log.average,
    )

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sgdinf.certificate import Certificate, GradientCheck, StepReplay, Trust
from lightning_sgdinf.evaluation import CleansingCurve, detect, paired_t_test
from lightning_sgdinf.report import BeforeAfter, Cost, Example, Explanation, ReportData
from lightning_sgdinf.report.page import render_page
from lightning_sgdinf.scores import Scores

HOSTILE = '<script>alert("1 & 2")</script>'
"""What nobody should have as a label, and somebody will."""


def make_scores() -> Scores:
    per_epoch = torch.tensor(np.random.default_rng(0).normal(size=(3, 40, 2)))
    certificate = Certificate(
        level="fast",
        step_replay=StepReplay(steps=7, bitwise=7, largest_deviation=0.0),
        gradient_check=GradientCheck(
            first_step=2,
            example_ids=(1, 2),
            predicted=(0.5, 1.0),
            measured=(0.5, 1.0),
            relative_error=1e-9,
            tolerance=1e-4,
        ),
        trust=Trust(
            first_step=2,
            example_ids=(1, 2, 3),
            predicted=(0.1, 2.0, 1.0),
            measured=(1.2, 1.9, 0.0),
            correlation=0.5,
            low=-0.2,
            high=0.9,
        ),
    )
    return Scores(
        values=per_epoch.sum(0),
        queries=("validation loss", "margin"),
        labels=(*(f"label {i}" for i in range(39)), HOSTILE),
        per_epoch=per_epoch,
        certificate=certificate,
        provenance={"log digest": "9f3a", "versions": {"torch": "2"}},
        better=("lower", "higher"),
    )


@pytest.fixture(scope="session")
def scores() -> Scores:
    return make_scores()


@pytest.fixture(scope="session")
def bare(scores: Scores) -> ReportData:
    """As little as there can be: scores without certificate, labels or epochs."""
    return ReportData(title="Bare", scores=Scores(values=scores.values, queries=scores.queries))


@pytest.fixture(scope="session")
def full(scores: Scores) -> ReportData:
    """Every field filled, hostile strings wherever there are strings."""
    random = np.random.default_rng(1)
    order = scores.order().tolist()
    corrupt = frozenset(order[:3] + order[-2:])
    examples = {
        i: Example(image=random.random((8, 8) if i % 2 else (80, 60, 3)), label=f"label {i}", true_label=f"label {i}")
        for i in range(20)
    }
    examples[order[0]] = Example(image=random.random((8, 8, 1)), label="cat", true_label=HOSTILE)
    examples[order[1]] = Example(text=f"a text with {HOSTILE}", label="dog")
    before, after = (0.2, 0.3, 0.25, 0.22), (0.1, 0.15, 0.3, 0.12)
    return ReportData(
        title=f"Title {HOSTILE}",
        scores=scores,
        asked={HOSTILE: HOSTILE, "estimator": "SgdInfluence()"},
        command=f"sgdinf note='{HOSTILE}'",
        config=f"note: {HOSTILE}\n",
        examples=examples,
        shown=6,
        corrupt=corrupt,
        detections={
            f"SGD-influence {HOSTILE}": detect(scores.harm(), corrupt),
            "costs $5 and $6, $\\frac{": detect(-scores.harm(), corrupt),
        },
        before_after=(
            BeforeAfter(metric="test error", before=before, after=after, test=paired_t_test(before, after), removed=3),
            BeforeAfter(metric="accuracy in $", before=(0.5,), after=(0.4,), better="higher", percent=False),
        ),
        curves=(
            CleansingCurve(method=HOSTILE, counts=(0, 2, 4), errors=[[0.2, 0.1, 0.15], [0.3, 0.12, 0.2]]),
            CleansingCurve(method="random $x", counts=(0, 2, 4), errors=[0.25, 0.3, 0.35]),
        ),
        explanations=(
            Explanation(
                title=HOSTILE, example=examples[order[1]], causes=((order[0], -0.5), (39, 0.25)), query=HOSTILE
            ),
        ),
        costs=(Cost(part=HOSTILE, seconds=1.5), Cost(part="log", size_bytes=123456)),
        warnings=(HOSTILE,),
    )


@pytest.fixture(scope="session")
def text(full: ReportData) -> str:
    """The page of everything."""
    return render_page(full)


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE

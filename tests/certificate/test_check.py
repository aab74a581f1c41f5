"""A check is one value that says all of itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from lightning_sgdinf.certificate import Certificate, Check, GradientCheck, StepReplay

SWAP = Check(
    name="swap",
    compared="the gradient of a batch with an example swapped for another against what the weights say",
    where="4 of 48 steps",
    precision="float64",
    deviation=3e-9,
    unit="of the gradient",
    tolerance=1e-3,
    rounding=1e-6,
)


@pytest.mark.parametrize(
    ("deviation", "outcome", "words"),
    [
        (0.0, "equal", "passed: the gradient of a batch with an example .* in float64; equal to the last digit"),
        (1e-6, "rounding", r"passed: .*largest difference 1\.0e-06 of the gradient: rounding \(an error above 1e-03\)"),
        (1e-3, "near", "passed: .*more than rounding as a rule makes, less than an error"),
        (2e-3, "failed", "failed: .*: an error"),
        (float("nan"), "failed", "failed"),
    ],
)
def test_a_difference_is_judged(deviation: float, outcome: str, words: str) -> None:
    check = replace(SWAP, deviation=deviation)
    assert check.outcome == outcome
    assert re.search(f"^Swap {words}", check.sentence())


def test_all_checks_have_one_form_and_are_kept() -> None:
    certificate = Certificate(
        level="fast",
        step_replay=StepReplay(
            steps=48, bitwise=46, largest_deviation=8e-5, step=3, tensor="parameter w", precision="float32", of=48
        ),
        gradient_check=GradientCheck(
            first_step=45,
            example_ids=(1, 2),
            predicted=(1.0, 2.0),
            measured=(1.0, 2.0),
            relative_error=2e-7,
            tolerance=0.1,
            precision="float64",
            of=48,
        ),
        further=(SWAP,),
    )
    assert [check.name for check in certificate.checks] == ["step replay", "gradient check", "swap"]
    replay, gradient, swap = certificate.summary()
    assert "all 48 steps, 46 of them equal to the last digit, in float32; largest difference 8.0e-05 of what" in replay
    assert "rounding (an error above 1e-02)" in replay
    assert "2 examples, the last 3 of 48 steps, in float64" in gradient
    assert swap == SWAP.sentence()
    assert Certificate.from_json(json.loads(json.dumps(certificate.to_json()))) == certificate


def test_certificates_of_earlier_files_are_read() -> None:
    kept = {
        "level": "fast",
        "step_replay": {
            "steps": 5, "bitwise": 5, "largest_deviation": 0.0, "step": -1, "tensor": "", "tolerance": 0.01
        },
        "gradient_check": {
            "first_step": 2, "example_ids": [1], "predicted": [1.0], "measured": [1.0], "relative_error": 1e-9,
            "tolerance": 0.1,
        },
        "trust": None,
        "amplification": None,
        "seconds": 0.5,
        "notes": [],
    }  # fmt: skip
    replay, gradient = Certificate.from_json(kept).summary()
    assert replay.startswith("Step replay passed: ")
    assert "5 steps, in the precision of the run; equal to the last digit" in replay
    assert "1 example, steps 2 on" in gradient

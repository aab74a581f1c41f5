"""What is said of true removals, and of how much of the run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightning_sgdinf.certificate import Amplification, Certificate, Trust, Window
from tests.certificate_remarks import lasting_notes

WHOLE = Trust(
    first_step=0,
    example_ids=(1, 5, 7),
    predicted=(-1.0, 0.5, 2.0),
    measured=(-1.1, 0.4, 2.0),
    correlation=0.97,
    low=0.94,
    high=0.99,
    slope=1.1,
    right_signs=1.0,
    population=100,
    steps=300,
    query="validation loss",
    seconds=1.5,
    at_once=3,
    memory_bytes=5 << 20,
)
LAST = replace(WHOLE, first_step=252, correlation=1.0, low=0.99, high=1.0, needed_seconds=30.0)


def test_the_whole_run_gives_a_figure_with_its_interval_and_its_cost() -> None:
    assert WHOLE.headline == 0.97
    assert WHOLE.sentence() == (
        "Trust 0.97 (95 % interval 0.94 to 0.99): predicted and true changes over all 100 examples, by 3 examples "
        "really left out of the whole run (300 steps); true change per predicted 1.1, 100 % of signs right."
    )
    assert WHOLE.cost() == "Leaving out took 1.5 s and about 5 MiB, 3 models at once."


def test_the_last_steps_are_no_headline() -> None:
    assert LAST.headline is None
    said = replace(LAST, shorter=(Window(steps=12, correlation=0.999, left_out=6),)).sentence()
    assert said.startswith("Trust in the whole run is not known: 3 examples left out of the last 48 of 300 steps")
    assert "of the last 12 steps, 1.00" in said
    assert "What leaving out earlier does may be less well predicted." in said
    assert "six examples left out of the whole run would take 30 s" in LAST.cost()


def test_a_wide_interval_is_no_headline() -> None:
    wide = replace(WHOLE, low=0.85)
    assert wide.headline is None
    assert "0.97" not in wide.sentence()
    assert "between 0.85 and 0.99" in wide.sentence()


def test_an_estimate_of_the_last_epochs_is_about_these() -> None:
    own = replace(WHOLE, first_step=250, reach=250)
    assert own.headline == 0.97
    assert "the last 50 of 300 steps, all that these scores are about" in own.sentence()


@pytest.mark.parametrize(
    ("trust", "words"),
    [
        (replace(WHOLE, correlation=0.5, low=0.45, high=0.55), "correlate only at 0.50 (95 % interval 0.45 to 0.55)"),
        (replace(WHOLE, correlation=0.5, low=0.1, high=0.8), "correlate at 0.10 to 0.80 only"),
        (replace(LAST, correlation=0.5, low=0.1, high=0.8), "the last 48 of 300 steps, predicted and true"),
    ],
)
def test_low_trust_is_a_warning(trust: Trust, words: str) -> None:
    (warning,) = Certificate(level="fast", trust=trust).warnings
    assert warning.startswith("Low trust")
    assert words in warning


def test_amplification_is_a_warning_where_the_whole_run_was_not_measured() -> None:
    amplification = Amplification(factor=9.0, step=0, first_step=0)
    window, whole, none = (Certificate(level="fast", trust=t, amplification=amplification) for t in (LAST, WHOLE, None))
    assert whole.warnings == ()
    for certificate in (window, none):
        (warning,) = certificate.warnings
        assert "amplifies" in warning
        assert f"Warning: {warning}" in certificate.reach()


def test_what_belongs_beside_a_number() -> None:
    assert Certificate(level="fast", trust=WHOLE).reach() == (WHOLE.sentence(),)
    assert Certificate(level="fast", trust=WHOLE).reach("validation loss") == (WHOLE.sentence(),)
    (other,) = Certificate(level="fast", trust=WHOLE).reach("margin")
    assert other.startswith("Trust was measured for validation loss, not for margin.")
    assert Certificate(level="fast").reach() == ("Trust is not known: no example was really left out.",)
    unmeasured = Amplification(step=0, factor=0.5, first_step=0)
    for off in (Certificate(level="off"), Certificate(level="off", amplification=unmeasured)):
        assert off.summary()[0] == "Nothing was checked (certificate='off')."
    assert Certificate(level="off").reach() == ("Nothing was checked (certificate='off').",)


def test_it_is_kept() -> None:
    trust = replace(LAST, shorter=(Window(steps=12, correlation=0.999, left_out=6),))
    certificate = Certificate(level="fast", trust=trust)
    assert Certificate.from_json(json.loads(json.dumps(certificate.to_json()))) == certificate


def test_trust_of_earlier_files_is_no_headline() -> None:
    kept = {
        "first_step": 45,
        "example_ids": [1, 2, 3],
        "predicted": [1.0, 2.0, 3.0],
        "measured": [1.0, 2.0, 3.0],
        "correlation": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
    for first_step in (45, 0):
        certificate = Certificate.from_json({"level": "fast", "trust": {**kept, "first_step": first_step}})
        assert certificate.trust is not None
        assert certificate.trust.headline is None
    assert "left out of the whole run" in certificate.reach()[0]
    assert "the steps from 45 on" in Certificate.from_json({"level": "fast", "trust": kept}).reach()[0]


@pytest.mark.parametrize(
    "note",
    [
        "Trust was not measured: fewer than three examples are in the steps that were walked.",
        "Trust was not measured: state 3 is not stored",
        "Trust was not measured: the scores took so little time that a part of it is not enough to leave examples out. "
        "certificate='full' does it. And more.",
    ],
)
def test_only_a_want_of_time_is_left_out_of_the_notes_that_tests_look_at(note: str) -> None:
    busy = (
        "Trust was not measured: leaving out 3 examples would take about 1.2e+02 s, and even the last steps of the run "
        "more than a part of the time that the scores took. certificate='full' does it."
    )
    assert lasting_notes(Certificate(level="fast", notes=(busy, note))) == [note]

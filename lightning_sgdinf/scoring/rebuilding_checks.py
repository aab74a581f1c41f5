"""The part of a certificate on states that were rebuilt."""

from __future__ import annotations

from lightning_sgdinf.certificate import Check, rounding_in
from lightning_sgdinf.errors import CertificateError
from lightning_sgdinf.replay import Drift
from lightning_sgdinf.replay.rebuilding import DRIFT
from lightning_sgdinf.scoring.both_ways import BothWays

SCORES = 1e-2
"""Largest difference of scores, over the largest of them, that drift may make."""


def rebuilding_checks(drift: Drift, both_ways: BothWays, precision: str) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Return the checks of rebuilt states, and notes on them.

    Args:
        drift: What was rebuilt; nothing, perhaps.
        both_ways: What it does to the scores.
        precision: What the steps were taken in.

    Raises:
        CertificateError: The drift changes scores by more than a hundredth of the largest.
    """
    if not drift.stretches:
        note = f"{drift.rebuilt} states were rebuilt by taking recorded steps again; each matched its checksum."
        return (), (note,) if drift.rebuilt else ()
    if not both_ways.largest <= SCORES:
        raise CertificateError(
            f"states were rebuilt but for rounding (rebuild='close'), and what that does to the scores is too much: of "
            f"{both_ways.steps} steps walked from two versions of their states, scores differ by "
            f"{both_ways.largest:.1e} of the largest (allowed {SCORES:.0e}), though the states drifted by "
            f"{drift.largest:.1e} only: this run amplifies small changes. Replay on a machine like that of training "
            "(rebuild='exact' says what differs), or record with states closer together: a smaller k in "
            "keep='every(k)', or 'every_step'"
        )
    return _checks(drift, both_ways, precision), _notes(drift, both_ways)


def _checks(drift: Drift, both_ways: BothWays, precision: str) -> tuple[Check, ...]:
    where = f"at state {drift.step}, {drift.part}" if drift.step >= 0 else "nowhere"
    own = Check(
        name="close rebuilding",
        compared="states rebuilt from one stored state to the next, against that",
        where=f"{drift.stretches} stretches, {drift.rebuilt} states, {drift.same} of them equal to the last digit",
        precision=precision,
        deviation=drift.largest,
        unit=f"of what the stretch moved ({where})",
        tolerance=DRIFT,
        rounding=rounding_in(precision),
    )
    if not both_ways:
        return (own,)
    effect = Check(
        name="effect of close rebuilding",
        compared="scores from the rebuilt states against scores from these moved onto the stored state at their end",
        where=f"the last {both_ways.steps} steps of {both_ways.stretches} stretches",
        precision=precision,
        deviation=both_ways.largest,
        unit="of the largest of these scores",
        tolerance=SCORES,
        rounding=rounding_in(precision),
    )
    return own, effect


def _notes(drift: Drift, both_ways: BothWays) -> tuple[str, ...]:
    rebuilt = (
        f"{drift.rebuilt} states were rebuilt but for rounding (rebuild='close'), {drift.same} of them equal to the "
        f"last digit; at the stored states they were {drift.largest:.1e} of what each stretch moved apart at most, "
        "and in between step replay compares with the rebuilt ones"
    )
    if not both_ways:
        return (f"{rebuilt}. What that does to the scores was not measured.",)
    return (f"{rebuilt}. Walked both ways, scores of {both_ways.steps} steps differ by {both_ways.largest:.1e}.",)

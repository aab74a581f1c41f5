"""The first words of a report: the question, the answer, and how sure that is."""

from __future__ import annotations

from typing import NamedTuple

from lightning_sgdinf.certificate import Trust
from lightning_sgdinf.report.model import BeforeAfter, ReportData, said_of_trust

_VERDICTS = ((0.9, "Predicted well."), (0.5, "Predicted in part."), (-1.0, "Predicted badly."))
"""By the least correlation of predicted and true effects."""


class Sureness(NamedTuple):
    """The degree to which a result is sure.

    Attributes:
        verdict: In a few words.
        reason: In one sentence or two.
    """

    verdict: str
    reason: str


def question(data: ReportData) -> str:
    """Return what was asked, of what, and how it was answered."""
    count = f"{len(data.scores):,} training examples"
    if data.better == "order":
        return f"Which of the {count} to look at first? They are ranked by {data.query_name}."
    where, meaning = _asked_of(data), "" if data.scores.certificate is None else data.scores.certificate.meaning
    meaning = meaning.removeprefix(f"{data.method_name}: ")
    return (
        f"Which of the {count} made the {data.query_name}{where} better, and which made it worse? "
        f"Answered by {data.method_name}: {meaning or 'how it would change had each been left out of the training.'}"
    )


def answer(data: ReportData) -> str:
    """Return the result in one sentence."""
    if data.headline:
        return data.headline
    if data.before_after:
        return _cleansing_result(data.before_after[0], len(data.scores))
    if data.detections:
        method, detection = next(iter(data.detections.items()))
        return (
            f"Of the {detection.corrupt} examples that {method} ranks most harmful, {detection.hits} are known to "
            f"be corrupt; chance would find {detection.corrupt**2 / detection.total:.1f}."
        )
    (worst,) = data.scores.most_harmful(1, data.query)
    if data.better == "order":
        return f"By {data.query_name} the most harmful training example is {worst.example_id}."
    if data.scores.harm(data.query).max() <= 0:
        return f"No training example harms {data.query_name}: leaving out any one is not predicted to improve it."
    change = "lower" if data.better == "lower" else "raise"
    verified = data.scores.verified
    measured = verified is not None and bool(verified[worst.example_id])
    moves = {"lower": "lowered", "raise": "raised"}[change] if measured else f"is predicted to {change}"
    return (
        f"The most harmful training example is {worst.example_id}: leaving it out {moves} {data.query_name} by "
        f"{abs(worst.score):.3g}{_of_value(data)}."
    )


def sureness(data: ReportData) -> Sureness:
    """Return how sure the scores are, by what their certificate really measured."""
    if data.better == "order":
        return Sureness(
            "A ranking, not a prediction.",
            "It says whom to look at first; how the model would change without an example it does not say.",
        )
    scores = data.scores
    if scores.verified is not None and bool(scores.verified.all()):
        return Sureness("Measured.", "Every score was measured by really leaving the example out and training again.")
    certificate = scores.certificate
    if certificate is None or certificate.level == "off":
        return Sureness("Not known.", "Nothing was checked, and no example was really left out.")
    trust = certificate.trust
    if certificate.meaning:
        return Sureness(
            "An average, not this run.", "No example was left out of this very training to compare with; see the notes."
        )
    if trust is None:
        return Sureness("Not known.", "The computation was checked, but no example was really left out.")
    verdict, reason = _by_trust(trust)
    if trust.query not in ("", data.query_name):
        reason += f" This was measured for {trust.query}, not for {data.query_name}."
    return Sureness(verdict, reason)


def chance(data: ReportData) -> str:
    """Return whether what leaving out changed is more than chance, in one sentence; empty where nothing changed."""
    change = next(iter(data.before_after), None)
    if data.headline or change is None or change.removed == 0:
        return ""
    if change.test is None:
        return (
            "" if len(change.before) > 1 else f"Whether the change of {change.metric} is beyond chance was not tested."
        )
    verdict = "is beyond chance" if change.test.significant else "may be chance"
    return f"The change of {change.metric} {verdict} ({change.test.sentence()})."


def _by_trust(trust: Trust) -> Sureness:
    count, correlation = len(trust.example_ids), f"{trust.correlation:.2f}"
    interval = "" if trust.low == trust.high else f", 95 % interval {trust.low:.2f} to {trust.high:.2f}"
    really = f"{count} examples were really left out of {trust.where} and the model trained again"
    if not trust.is_whole:
        return Sureness(
            "Known for the end of the training only.",
            f"{really}: there, predicted and true effects agree with correlation {correlation} (1 is perfect"
            f"{interval}). What leaving examples out from the beginning does was not measured.",
        )
    if trust.headline is None:
        return Sureness(
            "Low, and not known well." if trust.high < 0.9 else "Not known well.",
            f"{really}: predicted and true effects correlate between {trust.low:.2f} and {trust.high:.2f} (95 % "
            "interval; 1 is perfect).",
        )
    verdict = next((words for least, words in _VERDICTS if trust.correlation >= least), _VERDICTS[-1][1])
    return Sureness(
        verdict, f"{really}: predicted and true effects agree with correlation {correlation} (1 is perfect{interval})."
    )


def said_first(data: ReportData) -> tuple[str, ...]:
    """Return the result in a sentence, what is known of true removals, and the warnings."""
    doubt = (chance(data),) if chance(data) else ()
    return (answer(data), *doubt, *said_of_trust(data), *(f"Warning: {warning}" for warning in data.all_warnings))


def _asked_of(data: ReportData) -> str:
    """Return the number of validation examples that the query is asked of, and its value for the trained model."""
    count = data.scores.provenance.get("validation_examples")
    return f" on {count:,} validation examples" if isinstance(count, int) else ""


def _of_value(data: ReportData) -> str:
    values, column = data.scores.provenance.get("query_values"), data.scores.query_index(data.query)
    if not isinstance(values, list) or len(values) != len(data.scores.queries):
        return ""
    return f" (it is {values[column]:.3g}{_asked_of(data)})"


def _cleansing_result(change: BeforeAfter, total: int) -> str:
    before, after = change.means
    if change.removed == 0:
        why = f": {change.reason}" if change.reason else ""
        on = f" on {change.where}" if change.where else ""
        stays = f"{change.metric} stays {change.show(before)}{on}."
        return f"Nothing was left out of the {total:,} training examples{why}. {stays[:1].upper()}{stays[1:]}"
    left_out = "" if change.removed is None else f"the {change.removed:,} most harmful of {total:,} training examples "
    moved = "left" if before == after else "lowered" if after < before else "raised"
    values = f"at {change.show(before)}" if before == after else f"from {change.show(before)} to {change.show(after)}"
    runs = " (one run)" if len(change.before) == 1 else f" (means of {len(change.before)} runs)"
    subject = f"Leaving out {left_out}" if left_out else "Cleansing "
    return f"{subject}{moved} {change.metric} {values}{_in_examples(change)}{runs}."


def _in_examples(change: BeforeAfter) -> str:
    if change.counts is None:
        return f" on {change.where}" if change.where else ""
    before, after = change.counts
    if before == after:
        return f", {before:.4g} of {change.where}"
    words = "fewer" if after < before else "more"
    return f": {abs(round(after - before, 9)):.4g} of {change.where} {words}"

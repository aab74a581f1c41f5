"""Remarks of a certificate that do not hang on how fast the machine is."""

from __future__ import annotations

import re

from lightning_sgdinf.certificate import Certificate

_TOO_SLOW = re.compile(
    r"Trust was not measured: (the scores took so little time that a part of it is not enough to leave examples out"
    r"|leaving out \d+ examples would take about \S+ s, and even the last steps of the run more than a part of the "
    r"time that the scores took)\. certificate='full' does it\."
)
"""The two remarks that a busy machine gets and an idle one does not; any other reason is a finding."""


def lasting_notes(certificate: Certificate | None) -> list[str]:
    """Return the notes without those that say that there was too little time to measure trust."""
    assert certificate is not None
    return [note for note in certificate.notes if not _TOO_SLOW.fullmatch(note)]

"""The exception tree.

::

    SgdInfluenceError
    ├── ConfigurationError        what was asked for cannot work; raised before any work is done
    ├── MissingExtraError         a package that only this part needs is not installed
    ├── UnsupportedRunError       a run that cannot be recorded or replayed rightly
    │   ├── UntappedLossError     a loss term that per-example weights do not reach
    │   ├── TrainerAttributeError something of the Trainer that a step asks for and the record does not have
    │   └── UnknownOptimizerError no update rule for the recorded optimizer
    ├── LogError                  trouble with the record of a run
    │   ├── LogNotFoundError      nothing, or nothing readable, at the path
    │   ├── LogExistsError        a path that is taken; never overwritten unasked
    │   ├── LogVersionError       written in a format this release does not read
    │   ├── LogCorruptError       bytes that differ from what was written; names segment and step
    │   ├── LogLockedError        another process is writing it
    │   ├── LogWriteError         the disk said no; what was flushed stays readable
    │   ├── ResumeError           a log that does not go on where a checkpoint stands
    │   └── StateNotStoredError   a state that `keep=` left out
    ├── ReplayError               replay and record disagree
    │   ├── ModelMismatchError    another model; names the parameters
    │   ├── DataMismatchError     another data set, or one with randomness of its own
    │   ├── QueryMismatchError    a query that differs from what the run logged for the final model
    │   └── StepMismatchError     a rebuilt state differs from the recorded one
    ├── NonFiniteError            NaN or infinity; names the step
    ├── ForgettingError           a set of examples that a method cannot make the model forget
    ├── DivergenceError           an iterative solver that leads nowhere; names iteration, residual and what to try
    └── CertificateError          scores that a check of their own contradicts

Every message says what was expected, what was found and what to do.
"""

from __future__ import annotations

from lightning_sgdinf.plain_text import printable


class SgdInfluenceError(Exception):
    """Root of all errors this package raises on purpose.

    Messages hold texts of others, names of classes, labels, what a log says: shown, they steer no terminal.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigurationError(SgdInfluenceError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class MissingExtraError(SgdInfluenceError, ImportError):
    """A package that only this part needs is not installed."""


class UnsupportedRunError(SgdInfluenceError):
    """A training run that cannot be recorded or replayed rightly."""


class UntappedLossError(UnsupportedRunError):
    """The loss has a data-dependent term that per-example weights do not reach."""


class TrainerAttributeError(UnsupportedRunError, AttributeError):
    """A step asks the Trainer for something that is not in the record."""


class UnknownOptimizerError(UnsupportedRunError):
    """No update rule is known for the recorded optimizer."""


class LogError(SgdInfluenceError):
    """Trouble with the record of a run."""


class LogNotFoundError(LogError, FileNotFoundError):
    """There is no readable log at the path."""


class LogExistsError(LogError, FileExistsError):
    """The path is taken, and overwriting was not asked for."""


class LogVersionError(LogError):
    """The log was written in a format that this release does not read."""


class LogCorruptError(LogError):
    """Bytes in the log differ from what was written."""


class LogLockedError(LogError):
    """Another process is writing the log."""


class LogWriteError(LogError, OSError):
    """Writing failed; everything flushed before stays readable."""


class ResumeError(LogError):
    """The log cannot be continued where the checkpoint stands."""


class StateNotStoredError(LogError, LookupError):
    """The state asked for was not kept, and cannot be rebuilt from what was."""


class ReplayError(SgdInfluenceError):
    """Replay and record disagree."""


class ModelMismatchError(ReplayError):
    """The model is not the one that was trained."""


class DataMismatchError(ReplayError):
    """The data set gives other examples than it gave in training."""


class QueryMismatchError(ReplayError):
    """A validation of the final model gives another value than the run logged for it."""


class StepMismatchError(ReplayError):
    """Doing a recorded step again leads to another state than the recorded one."""


class NonFiniteError(SgdInfluenceError, ArithmeticError):
    """NaN or infinity where a number was needed."""


class ForgettingError(SgdInfluenceError):
    """A method cannot make the model forget this set of examples; the message has the way out."""


class DivergenceError(SgdInfluenceError, ArithmeticError):
    """An iterative solver diverged or did not converge."""


class CertificateError(SgdInfluenceError):
    """A check of the scores contradicts the scores."""

"""One example as a person sees it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from lightning_sgdinf.errors import ConfigurationError, NonFiniteError

_OF_A_HEAD = re.compile(r"<(?=(?:meta|base|link)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class SafeHtml:
    """HTML to be shown as it is. Whoever makes one vouches for it: text of others in it must be escaped first.

    A page runs no script but its own and loads nothing from elsewhere, so that HTML which is not safe after all can at
    worst look like something it is not.

    Args:
        html: A fragment, e.g. ``"<audio controls src='data:audio/wav;base64,...'></audio>"``. Elements that belong into
            a page's head (``meta``, ``base``, ``link``) are shown as text: the policy of a page does not hinder a
            ``meta`` from leading elsewhere.
    """

    html: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "html", _OF_A_HEAD.sub("&lt;", self.html))


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One example as a person sees it.

    Args:
        image: ``[H, W]`` or ``[H, W, C]`` with ``C`` 1, 3 or 4, in ``[0, 1]``; values outside are clipped.
        text: What to show of an example that is not an image.
        row: The columns of an example that is a row of a table, name to value: numbers, and words for the rest. NaN and
            ``None`` stand for a missing value.
        html: What to show of an example that is none of these.
        label: The label it was trained with.
        true_label: What the label should be, where that is known.
        prediction: What the trained model says of it.

    Raises:
        ConfigurationError: The image has another shape.
        NonFiniteError: A pixel is NaN or infinite.
    """

    image: ArrayLike | None = None
    text: str = ""
    row: Mapping[str, str | float] = field(default_factory=dict)
    html: SafeHtml | None = None
    label: str = ""
    true_label: str | None = None
    prediction: str = ""

    def __post_init__(self) -> None:
        if self.row:
            object.__setattr__(self, "row", {str(name): _cell(value) for name, value in self.row.items()})
        if self.image is None:
            return
        image = np.asarray(self.image, np.float32)
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or image.size == 0:
            raise ConfigurationError(f"image: expected shape [H, W] or [H, W, 1, 3 or 4], got {list(image.shape)}")
        if not np.isfinite(image).all():
            raise NonFiniteError(
                "image: expected finite pixels, got NaN or infinity; look at the transform that made it"
            )
        object.__setattr__(self, "image", np.clip(image, 0, 1))

    @property
    def mislabelled(self) -> bool:
        """True if the label is known to be wrong."""
        return self.true_label is not None and self.true_label != self.label

    @property
    def is_row(self) -> bool:
        """True if there is a row to show and nothing else."""
        return bool(self.row) and self.image is None and not self.text and self.html is None


def _cell(value: object) -> str | float:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)

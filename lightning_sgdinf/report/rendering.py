"""From the items of a data set to examples a person can look at, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.report.example import Example, SafeHtml
from lightning_sgdinf.updates.datasets import SizedDataset

Renderer = Callable[[Any], "Example | SafeHtml"]
"""Shows an item of a data set: as an `Example`, or as HTML that it vouches for."""

_LONGEST_VECTOR = 256
_NUMBERS_IN_A_CELL = 12
_LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_BYTE = 255


class Rendered(Mapping[int, Example]):
    """The examples of a data set by id, rendered when they are looked at.

    ::

        scores.report("page.html", examples=Rendered(train_set, class_names=("cat", "dog")))
        scores.report("page.html", examples=Rendered(sounds, lambda item: SafeHtml(player(item))))

    Args:
        dataset: Map-style; best without random augmentation.
        renderer: Shows an item; see `as_example` for what is done without one.
        class_names: Names of the classes, where labels are whole numbers.
        column_names: Names of the numbers of an input, where inputs are vectors; without them a vector is one cell.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        renderer: Renderer | None = None,
        *,
        class_names: Sequence[str] = (),
        column_names: Sequence[str] = (),
    ) -> None:
        self._dataset = dataset
        self._renderer = renderer
        self._class_names = tuple(class_names)
        self._column_names = tuple(column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __contains__(self, example_id: object) -> bool:
        return isinstance(example_id, int) and 0 <= example_id < len(self)

    def __getitem__(self, example_id: int) -> Example:
        if example_id not in self:
            raise KeyError(example_id)
        item = self._dataset[example_id]
        if self._renderer is None:
            return as_example(item, self._class_names, self._column_names)
        shown = self._renderer(item)
        if isinstance(shown, SafeHtml):
            return Example(html=shown, label=label_of(item, self._class_names))
        if not isinstance(shown, Example):
            raise ConfigurationError(
                f"renderer: expected an Example or SafeHtml for example {example_id}, got {type(shown).__name__}; text "
                "goes into Example(text=...)"
            )
        return shown


def as_example(item: Any, class_names: Sequence[str] = (), column_names: Sequence[str] = ()) -> Example:
    """Show an item by its form.

    A tuple is an input, its label and what else there is. Of inputs: arrays and tensors ``[H, W]``, ``[C, H, W]`` or
    ``[H, W, C]`` and pictures of Pillow are images (bytes as they are; other values outside ``[0, 1]``, as after a
    normalisation, are spread from black to white); strings are text; mappings are rows; a vector of up to 256 numbers
    is a row of columns that have names, else one cell. A mapping that is the whole item has its label under ``label``,
    ``labels``, ``target``, ``targets`` or ``y``; its first picture ``[C, H, W]`` or ``[H, W, C]`` is shown as one, and
    a string that is all it has is text.

    Raises:
        ConfigurationError: The input is of another form.
    """
    if isinstance(item, Example):
        return item
    if isinstance(item, Mapping):
        return _of_mapping(item, class_names)
    label = label_of(item, class_names)
    content = item[0] if _is_tuple(item) else item
    if isinstance(content, SafeHtml):
        return Example(html=content, label=label)
    if isinstance(content, str):
        return Example(text=content, label=label)
    if isinstance(content, Mapping):
        return Example(row={name: _cell(value) for name, value in content.items()}, label=label)
    values = _array(content)
    if values.dtype.kind not in "biuf":
        values = np.empty((0, 0, 0, 0))
    if values.ndim in (2, 3) and (values.ndim == 2 or {values.shape[0], values.shape[2]} & {1, 3, 4}):
        return Example(image=_picture(values, of_tensor=hasattr(content, "detach")), label=label)
    if values.ndim == 1 and 0 < len(values) <= _LONGEST_VECTOR:
        return Example(row=_row_of(values, column_names), label=label)
    raise ConfigurationError(
        f"do not know how to show {_form(content)}; give a renderer, a function from an item of the data set to an "
        "Example: Rendered(dataset, renderer)"
    )


def _row_of(values: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return a vector as a row, a number per column if there is a name for each, else all of them as one cell."""
    if not names:
        return {"input": " ".join(f"{value:.4g}" for value in values.tolist())}
    if len(names) != len(values):
        raise ConfigurationError(
            f"column_names: expected one for each of the {len(values)} numbers of an example, got {len(names)}"
        )
    return dict(zip(names, values.tolist(), strict=True))


def label_of(item: Any, class_names: Sequence[str] = ()) -> str:
    """Return the label of an ``(input, label, ...)`` item or of a mapping as text; empty if there is none, or
    several."""
    if isinstance(item, Mapping):
        label = next((item[key] for key in _LABEL_KEYS if key in item), "")
    elif _is_tuple(item) and len(item) > 1:
        label = item[1]
    else:
        return ""
    if isinstance(label, str):
        return label
    values = _array(label)
    if values.size != 1 or values.dtype.kind not in "biuf":
        return ""
    value = values.reshape(()).item()
    if class_names and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_mapping(item: Mapping[Any, Any], class_names: Sequence[str]) -> Example:
    """Show an item that is a mapping: its label, its first picture, and all the rest as a row."""
    label = label_of(item, class_names)
    labelled = next((key for key in _LABEL_KEYS if key in item), None) if label else None
    rest = {name: value for name, value in item.items() if name != labelled}
    pictured = next((name for name, value in rest.items() if _is_picture(value)), None)
    if pictured is not None:
        value = rest.pop(pictured)
        image = _picture(_array(value), of_tensor=hasattr(value, "detach"))
        return Example(image=image, row={name: _cell(value) for name, value in rest.items()}, label=label)
    if len(rest) == 1 and isinstance(only := next(iter(rest.values())), str):
        return Example(text=only, label=label)
    return Example(row={name: _cell(value) for name, value in rest.items()}, label=label)


def _is_picture(value: Any) -> bool:
    """Return True if this is a picture for certain: one of Pillow, or an array with colours."""
    if not hasattr(value, "detach") and not isinstance(value, np.ndarray):
        return hasattr(value, "__array_interface__")
    values = _array(value)
    coloured = values.ndim == 3 and bool({values.shape[0], values.shape[2]} & {1, 3, 4})
    return coloured and values.dtype.kind in "biuf"


def _cell(value: Any) -> Any:
    """Return the cell of a row for a value: numbers as they are, the first of a vector, the form of anything larger."""
    if not hasattr(value, "detach") and not isinstance(value, (np.ndarray, list, tuple)):
        return value
    try:
        values = _array(value)
    except ValueError:  # lists of different lengths
        return str(value)
    if values.dtype.kind not in "biuf":
        return str(value)
    if values.size == 1:
        return values.reshape(()).item()
    if values.ndim > 1:
        return _form(values)
    numbers = " ".join(f"{number:.4g}" for number in values[:_NUMBERS_IN_A_CELL].tolist())
    return numbers + (f" … ({len(values)} numbers)" if len(values) > _NUMBERS_IN_A_CELL else "")


def _array(content: Any) -> np.ndarray:
    return np.asarray(content.detach().cpu() if hasattr(content, "detach") else content)


def _is_tuple(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) > 0


def _picture(values: np.ndarray, *, of_tensor: bool) -> np.ndarray:
    """Return ``[H, W]`` or ``[H, W, C]`` in ``[0, 1]``; where both ends could be channels, a tensor's are its first."""
    channels = (1, 3, 4)
    if values.ndim == 3 and values.shape[0] in channels and (of_tensor or values.shape[2] not in channels):
        values = values.transpose(1, 2, 0)
    if values.dtype == np.uint8:
        return values / np.float32(_BYTE)
    values = values.astype(np.float32)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return values if (low >= 0 and high <= 1) or not high > low else (values - low) / (high - low)


def _form(content: Any) -> str:
    shape = getattr(content, "shape", None)
    return f"{type(content).__name__}" + (f" of shape {list(shape)}" if shape is not None else "")

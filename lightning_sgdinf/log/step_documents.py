"""One step as a short JSON document, its example ids, and the byte strings it refers to.

What rarely changes is kept apart: generator states, and one *frame* per combination of parameter names, constant
options, accumulation, clipping, eval modes and parameters without a gradient. These are byte strings that a document
names by their position in the step's own list (the frame is position 0), and that a segment stores once however often
they are used. A collated batch, where it is stored, lies by itself; the document has its size and checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from lightning_sgdinf.log.documents import from_plain_json, text, to_plain_json, whole
from lightning_sgdinf.log.records import Clip, Draw, MicroBatch, ParamGroup, Step
from lightning_sgdinf.random_state import RandomState


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """The entry of a stored batch in a document: its bytes and their CRC-32."""

    size: int
    crc: int


ReadBatch = Callable[[int, tuple[BatchEntry, ...], int], bytes]
"""Reads batch ``place`` of step ``index``: ``(index, all entries of the step, place)``."""


@dataclass(frozen=True, slots=True)
class EncodedStep:
    """A step in the terms of the file.

    Attributes:
        document: JSON.
        example_ids: Of all draws one after another, int64.
        blobs: Byte strings the document refers to, by position.
        batches: Stored batches, in the order of the document.
    """

    document: bytes
    example_ids: np.ndarray
    blobs: tuple[bytes, ...]
    batches: tuple[bytes, ...] = ()


def encode_step(step: Step) -> EncodedStep:
    """Take a step apart.

    Raises:
        TypeError: An option or other value that JSON does not know.
        ValueError: Example ids that are not a vector of integers, or no param group.
    """
    if not step.groups:
        raise ValueError(f"step {step.index} has no param group, expected one at least")
    split = [_split_options(group) for group in step.groups]
    positions: dict[bytes, int] = {_frame_of(step, [constant for constant, _ in split]): 0}

    def random(state: RandomState) -> dict[str, int]:
        return {name: positions.setdefault(data, len(positions)) for name, data in state.items()}

    batches: list[bytes] = []
    document: dict[str, Any] = {
        "epoch": step.epoch,
        "global_step": step.global_step,
        "options": [inline for _, inline in split],
        "micro_batches": [_micro_batch_document(m, random, batches) for m in step.micro_batches],
    }
    if step.loss is not None:
        document["loss"] = step.loss
    if step.average is not None:
        document["average"] = step.average
    if step.changed:
        document["changed"] = step.changed
    if step.validation:
        document["validation"] = step.validation
    ids = step.example_ids
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(f"example ids have dtype {ids.dtype} and shape {ids.shape}, expected a vector of integers")
    return EncodedStep(
        document=to_plain_json(document),
        example_ids=np.ascontiguousarray(ids, "<i8"),
        blobs=tuple(positions),
        batches=tuple(batches),
    )


def decode_step(
    index: int,
    document: bytes,
    ids: np.ndarray,
    blobs: Sequence[bytes],
    frame: Frame | None = None,
    read_batch: ReadBatch | None = None,
) -> Step:
    """Put a step together again.

    Args:
        index: Number of the step.
        document: JSON.
        ids: Example ids of all draws; kept, not copied.
        blobs: The byte strings of the step, by position.
        frame: ``read_frame(blobs[0])``, if at hand.
        read_batch: Reads its stored batches when they are asked for.

    Raises:
        KeyError, ValueError, TypeError: The document is not one of this format.
    """
    content = from_plain_json(document)
    frame = read_frame(blobs[0]) if frame is None else frame
    offset = place = 0
    entries = batch_entries(content)
    micro_batches = []
    for micro in content["micro_batches"]:
        draws = []
        for draw in micro["draws"]:
            end = offset + whole(draw["n"], "n")
            batch = None
            if "batch" in draw:
                batch = None if read_batch is None else partial(read_batch, index, entries, place)
                place += 1
            draws.append(_draw_of(draw, ids[offset:end], blobs, batch))
            offset = end
        micro_batches.append(
            MicroBatch(
                batch_idx=whole(micro["batch_idx"], "batch_idx"),
                draws=tuple(draws),
                transferred_with=_random_of(micro.get("transferred_with"), blobs),
                stepped_with=_random_of(micro.get("stepped_with"), blobs),
                attributes=_options(micro.get("attributes", {})),
                carried=tuple(text(name, "a name") for name in micro.get("carried", ())),
                without_loss=bool(micro.get("without_loss", False)),
                rank=whole(micro.get("rank", 0), "rank"),
            )
        )
    if offset != len(ids):
        raise ValueError(f"the document of step {index} has {offset} example ids, the step {len(ids)}")
    average = content.get("average")
    return Step(
        index=index,
        epoch=whole(content["epoch"], "epoch"),
        global_step=whole(content["global_step"], "global_step"),
        micro_batches=tuple(micro_batches),
        groups=tuple(
            ParamGroup(params=params, options={**constant, **_options(inline)})
            for (params, constant), inline in zip(frame.groups, content["options"], strict=True)
        ),
        accumulation=frame.accumulation,
        clip=frame.clip,
        eval_modules=frame.eval_modules,
        without_gradient=frame.without_gradient,
        average=None if average is None else (_number(average[0]), _number(average[1])),
        loss=None if content.get("loss") is None else _number(content["loss"]),
        changed=tuple(text(label, "a label") for label in content.get("changed", ())),
        validation=None if content.get("validation") is None else _options(content["validation"]),
    )


def batch_entries(content: dict[str, Any]) -> tuple[BatchEntry, ...]:
    """Return the entries of a step's document for its stored batches, in order."""
    draws = [draw for micro in content["micro_batches"] for draw in micro["draws"]]
    return tuple(BatchEntry(*(whole(n, "batch") for n in draw["batch"])) for draw in draws if "batch" in draw)


def batches_of(index: int, document: bytes, read_batch: ReadBatch) -> tuple[bytes, ...]:
    """Read the stored batches of a step, in order."""
    entries = batch_entries(from_plain_json(document))
    return tuple(read_batch(index, entries, place) for place in range(len(entries)))


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a step that rarely changes: per group its parameter names and constant options, and more."""

    groups: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    accumulation: int
    clip: Clip | None
    eval_modules: tuple[str, ...]
    without_gradient: tuple[str, ...] | None


def read_frame(data: bytes) -> Frame:
    """Return the frame of a byte string."""
    content = from_plain_json(data)
    clip, without_gradient = content["clip"], content.get("without_gradient")
    if clip is not None and clip["algorithm"] not in ("norm", "value"):
        raise ValueError(f"clipping by {clip['algorithm']!r:.80}")
    return Frame(
        groups=tuple(
            (tuple(text(name, "a name") for name in g["params"]), _options(g["options"])) for g in content["groups"]
        ),
        accumulation=whole(content["accumulation"], "accumulation", least=1),
        clip=None if clip is None else Clip(_number(clip["value"]), clip["algorithm"]),
        eval_modules=tuple(text(name, "a name") for name in content["eval_modules"]),
        without_gradient=None if without_gradient is None else tuple(text(name, "a name") for name in without_gradient),
    )


def _options(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError(f"options are {value!r:.80}, expected an object")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.80} is no number")
    return value


def _frame_of(step: Step, constants: Sequence[dict[str, Any]]) -> bytes:
    clip = step.clip
    frame: dict[str, Any] = {
        "groups": [
            {"params": group.params, "options": constant}
            for group, constant in zip(step.groups, constants, strict=True)
        ],
        "accumulation": step.accumulation,
        "clip": None if clip is None else {"value": clip.value, "algorithm": clip.algorithm},
        "eval_modules": step.eval_modules,
    }
    if step.without_gradient is not None:
        frame["without_gradient"] = step.without_gradient
    return to_plain_json(frame)


def _split_options(group: ParamGroup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return constant and inline options: floats, alone or in a list, are what schedulers change."""
    constant: dict[str, Any] = {}
    inline: dict[str, Any] = {}
    for name, value in group.options.items():
        if isinstance(value, float) or (isinstance(value, (list, tuple)) and any(isinstance(v, float) for v in value)):
            inline[name] = value
        else:
            constant[name] = value
    return constant, inline


def _micro_batch_document(
    micro: MicroBatch, random: Callable[[RandomState], dict[str, int]], batches: list[bytes]
) -> dict[str, Any]:
    draws = []
    for draw in micro.draws:
        entry: dict[str, Any] = {"n": len(draw.example_ids)}
        if draw.loader:
            entry["loader"] = draw.loader
        if draw.digest is not None:
            entry["digest"] = draw.digest
        if draw.single:
            entry["single"] = True
        if draw.listed:
            entry["listed"] = True
        if draw.random:
            entry["random"] = random(draw.random)
        if draw.batch is not None:
            data = draw.batch()
            entry["batch"] = [len(data), crc32(data)]
            batches.append(data)
        draws.append(entry)
    document: dict[str, Any] = {"batch_idx": micro.batch_idx, "draws": draws}
    if micro.transferred_with:
        document["transferred_with"] = random(micro.transferred_with)
    if micro.stepped_with:
        document["stepped_with"] = random(micro.stepped_with)
    if micro.attributes:
        document["attributes"] = micro.attributes
    if micro.carried:
        document["carried"] = micro.carried
    if micro.without_loss:
        document["without_loss"] = True
    if micro.rank:
        document["rank"] = micro.rank
    return document


def _draw_of(entry: dict[str, Any], ids: np.ndarray, blobs: Sequence[bytes], batch: Callable[[], bytes] | None) -> Draw:
    return Draw(
        loader=whole(entry.get("loader", 0), "loader"),
        example_ids=ids,
        random=_random_of(entry.get("random"), blobs),
        digest=None if entry.get("digest") is None else whole(entry["digest"], "digest"),
        single=bool(entry.get("single", False)),
        listed=bool(entry.get("listed", False)),
        batch=batch,
    )


def _random_of(positions: dict[str, int] | None, blobs: Sequence[bytes]) -> dict[str, bytes]:
    if positions is None:
        return {}
    return {name: blobs[whole(position, "a byte string")] for name, position in positions.items()}

"""The labels that people gave to CIFAR-10's training images (CIFAR-10N): label noise as it really happens."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.compressed import read_whole
from lightning_sgdinf.zoo.file_set import FileSet
from lightning_sgdinf.zoo.label_noise import NoisyLabels

Which = Literal["aggre", "worse", "random1", "random2", "random3"]

FILE = "cifar10n_labels.npz"

_KEYS: Mapping[str, str] = {
    "aggre": "aggre_label",
    "worse": "worse_label",
    **{f"random{i}": f"random_label{i}" for i in (1, 2, 3)},
}

# RuntimeError: a method of compression that there is not, or a flag that says the file is encrypted.
_BROKEN_ARCHIVE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class Cifar10N:
    """Human labels in the place of CIFAR-10's.

    Three people labelled each image: ``random1`` to ``random3`` are theirs (17 to 18 % differ from the true label),
    ``aggre`` is their majority (9 %), ``worse`` a wrong one of theirs where there is any (40 %).

    ``cifar10n_labels.npz``, with the arrays of the authors' file (``clean_label``, ``aggre_label``, ``worse_label``,
    ``random_label1`` to ``random_label3``, each ``[50000]``), is looked for in ``<data_dir>/cifar10n`` and in
    ``data_dir``.

    In a configuration::

        label_noise:
          _target_: lightning_sgdinf.zoo.Cifar10N
          data_dir: ${data_dir}
          which: worse

    Args:
        data_dir: Folder of the data sets.
        which: Whose labels.

    Raises:
        ConfigurationError: There are no such labels.

    References:
        Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations", ICLR 2022
        (arXiv:2110.12088).
    """

    def __init__(self, data_dir: str | Path, *, which: Which = "worse") -> None:
        if which not in _KEYS:
            raise ConfigurationError(f"which: expected one of {', '.join(get_args(Which))}, got {which!r}")
        self.data_dir = Path(data_dir).expanduser()
        self.which = which

    def apply(self, labels: Tensor, *, ids: Tensor, class_names: Sequence[str], seed: int) -> NoisyLabels:
        """See `LabelNoise.apply`; nothing is drawn, so the seed does not matter.

        Raises:
            ConfigurationError: The file is not there or damaged, or these are not CIFAR-10's training images in their
                usual order.
        """
        del class_names, seed
        folders = [self.data_dir / "cifar10n", self.data_dir]
        (file,) = FileSet(dataset="cifar10n", names=(FILE,), folders=folders, command=_command(folders[0])).require()
        clean, human = _read(file, _KEYS[self.which])
        known = ids < len(clean)
        same = known.clone()
        same[known] = clean[ids[known]] == labels[known]
        if not bool(same.all()):
            raise ConfigurationError(
                f"{file}: the clean labels in it differ from those of {int((~same).sum()):,} of {len(labels):,} "
                f"training examples (number {int(ids[~same][0])} first). They belong to CIFAR-10's 50,000 training "
                "images in the order of its files: use them with dataset=cifar10"
            )
        return NoisyLabels(labels=human[ids], true_labels=labels.clone())


def _command(folder: Path) -> str:
    source = "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data/CIFAR-10_human.pt"
    repack = f"numpy.savez_compressed('{FILE}', **torch.load('CIFAR-10_human.pt', weights_only=False))"
    return f'mkdir -p {folder} && cd {folder} && curl -fLO {source} && python -c "import numpy, torch; {repack}"'


def _read(file: Path, key: str) -> list[Tensor]:
    """Read the clean labels and those of a key."""
    arrays = [_array(content, file) for content in _members(file, ("clean_label", key))]
    for name, array in zip(("clean_label", key), arrays, strict=True):
        if array.shape != arrays[0].shape or array.ndim != 1 or array.dtype.kind not in "iu":
            raise ConfigurationError(
                f"{file}: expected whole numbers, one per image, {name} has shape {array.shape} and type {array.dtype}"
            )
        if (wrong := np.flatnonzero((array < 0) | (array > 9))).size:
            raise ConfigurationError(f"{file}: expected labels of 0 to 9, {name} has {array[wrong[0]]} at {wrong[0]}")
    return [torch.from_numpy(array.astype(np.int64)) for array in arrays]


def _members(file: Path, names: Sequence[str]) -> list[bytes]:
    """Read the files in an archive that hold arrays, as bytes that agree with its checksums."""
    data = read_whole(file)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = {name.removesuffix(".npy"): name for name in archive.namelist()}
            if missing := [name for name in names if name not in held]:
                raise ConfigurationError(f"{file}: expected an array {missing[0]}, got {', '.join(held)}")
            return [archive.read(held[name]) for name in names]
    except ConfigurationError:
        raise
    except _BROKEN_ARCHIVE as error:
        raise _unreadable(file, error) from error


def _array(content: bytes, file: Path) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{file}: it cannot be read ({error}); expected an archive of arrays as numpy.savez_compressed writes it, "
        "download it again"
    )

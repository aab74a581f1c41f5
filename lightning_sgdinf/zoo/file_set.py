"""The files of a data set, where they are looked for, and what to say when they are not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_sgdinf.errors import ConfigurationError
from lightning_sgdinf.zoo.compressed import existing


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """Files that lie side by side, as their makers hand them out.

    Attributes:
        dataset: Name of the data set.
        names: Names of the files; each may also have ``.gz`` or ``.xz`` at its end.
        folders: Where to look, best first; all files must be in one of them.
        command: Shell command that puts them into the first or the last folder.
    """

    dataset: str
    names: Sequence[str]
    folders: Sequence[Path]
    command: str

    @classmethod
    def of_archive(cls, data_dir: Path, *, dataset: str, unpacked: str, names: Sequence[str], address: str) -> FileSet:
        """Build the set of the files of a makers' ``.tar.gz``, in a folder named for the data set or as it unpacks.

        Args:
            data_dir: Folder of the data sets, or the folder of this one.
            dataset: Name of the data set.
            unpacked: Folder that the archive unpacks to.
            names: Of the files.
            address: Of the archive.
        """
        folders = [data_dir / dataset, data_dir / unpacked]
        if data_dir.name in (dataset, unpacked):
            folders.append(data_dir)
        command = f"mkdir -p {data_dir} && curl -fL {address} | tar -xz -C {data_dir}"
        return cls(dataset=dataset, names=names, folders=folders, command=command)

    def find(self) -> list[Path] | None:
        """Find the files, in the order of ``names``; ``None`` unless one folder has them all."""
        for folder in self.folders:
            files = [existing(folder / name) for name in self.names]
            if all(files):
                return [file for file in files if file is not None]
        return None

    def require(self) -> list[Path]:
        """As `find`.

        Raises:
            ConfigurationError: There is no such folder; see `missing`.
        """
        if (files := self.find()) is None:
            raise ConfigurationError(self.missing())
        return files

    def missing(self) -> str:
        """Say which file is not there, what should lie where, and how to fetch it."""
        lacking = {folder: [n for n in self.names if existing(folder / n) is None] for folder in self.folders}
        nearest = min(self.folders, key=lambda folder: len(lacking[folder]))
        return (
            f"{self.dataset}: there is no {lacking[nearest][0]} in {nearest}. Expected {', '.join(self.names)}, each "
            f"plain or with .gz or .xz at its end, all in one of: {', '.join(map(str, self.folders))}. Set data_dir to "
            f"the folder above that, or fetch them with\n    {self.command}"
        )

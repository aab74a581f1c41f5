"""Paths with fields: what is there already, whatever characters the folder has."""

from pathlib import Path

import pytest

from lightning_sgdinf.record.log_location import _every_number, _numbered
from lightning_sgdinf.record.path_template import PathTemplate


@pytest.mark.parametrize("folder", ["runs", "runs [1]", "r*ns?", "{{braces}}"])
def test_present_paths_are_found_below_any_folder(folder: str, tmp_path: Path) -> None:
    real = tmp_path / folder.replace("{{", "{").replace("}}", "}")
    for made in (real, tmp_path / "runs 1"):  # the second is what an unescaped [1] would find
        (made / "net-version_0.tlog").mkdir(parents=True)
    (real / "net-version_1.other").mkdir()
    template = PathTemplate(f"{tmp_path}/{folder}/{{name}}-{{version}}.tlog")
    assert template.present() == [real / "net-version_0.tlog"]
    assert PathTemplate(f"{tmp_path}/runs.tlog").present() == []


@pytest.mark.parametrize("stem", ["run", "run[0]", "run*"])
def test_numbered_logs_are_found_whatever_their_name(stem: str, tmp_path: Path) -> None:
    first = tmp_path / f"{stem}.tlog"
    for name in (f"{stem}-1.tlog", f"{stem}-2.tlog", "run0-1.tlog", "running-1.tlog"):
        (tmp_path / name).mkdir()
    assert sorted(tmp_path.glob(_every_number(first))) == [_numbered(first, n) for n in (1, 2)]

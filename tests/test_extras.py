from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_sgdinf.errors import MissingExtraError
from lightning_sgdinf.extras import require


def test_a_module_that_is_there_is_returned() -> None:
    assert require("json.decoder", extra="cli") is sys.modules["json.decoder"]


def test_a_missing_one_is_answered_with_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="wandb")
    assert str(caught.value) == (
        'this needs no_such_package, which is not installed; install it with: pip install "lightning-sgdinf[wandb]"'
    )
    assert isinstance(caught.value, ImportError)


def test_a_package_that_itself_lacks_another_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package_of_a_test.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        require("broken_package_of_a_test", extra="cli")
    assert not isinstance(caught.value, MissingExtraError)

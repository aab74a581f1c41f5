"""Arguments that fit no configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_sgdinf.tasks.main import main

CASES = [
    (["traner.max_epochs=3"], "traner.max_epochs: no such key; did you mean 'trainer.max_epochs'?"),
    (["optimizer.lrr=1"], "optimizer.lrr: no such key; did you mean 'lr'? Known in optimizer: "),
    (["cleansing.k=3"], "cleansing.k: no such key. Known in cleansing: grid, patience, treatment."),
    (["cleansing=top_k", "cleansing.kk=3"], "cleansing.kk: no such key; did you mean 'k'? Known in cleansing: k."),
    (["sed=3"], "sed: no such key; did you mean 'seed'? Known: "),
    (["modl=mlp"], "modl: no such key; did you mean 'model'? Known: "),
    (
        ["trainer.max_steps=5"],
        "trainer.max_steps: it is in none of the configuration's files, only",
    ),
    (["model=mpl"], "model=mpl: no such file; did you mean 'mlp'? Known: cifarnet, cnn, "),
    (["model=[mlp"], "model=[mlp: expected key=value; quote what has blanks, commas or brackets"),
    (["~nothing"], "Could not delete from config. 'nothing' does not exist."),
    (["--config-dir", "mine", "model=own", "model.lrr=1"], "model.lrr: no such key; did you mean 'lr'? Known in model"),
    (["--config-dir=mine", "model=onw"], "model=onw: no such file; did you mean 'own'?"),
    (["-m", "traner.max_epochs=3,4"], "traner.max_epochs: no such key; did you mean 'trainer.max_epochs'?"),
]


@pytest.mark.parametrize(("arguments", "says"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_the_nearest_name_is_told(
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    (in_folder / "mine" / "model").mkdir(parents=True)
    (in_folder / "mine" / "model" / "own.yaml").write_text("_target_: torch.optim.SGD\nlr: 1\n")
    monkeypatch.setattr(sys, "argv", ["sgdinf", *arguments])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"ConfigurationError: {says}"), told
    assert len(told.splitlines()) == 1
    assert not (in_folder / "outputs").exists()


def test_whoever_asks_for_hydra_s_own_error_gets_it(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sgdinf", "sed=3"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override 'sed'"):
        main()

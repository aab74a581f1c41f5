"""States rebuilt but for rounding, against exact ones: the same run replayed on what rounds otherwise.

    python benchmarks/rebuilding.py [--quick] [--k 100] [--steps 300] [--threads 2] [--trained-with default]

MnistNet is trained on one thread, recorded with every state and with every k-th; with ``--trained-with``, without
vector instructions (``ATEN_CPU_CAPABILITY``). The scores of the first record, on one thread, are the exact ones; the
second is replayed on so many threads. Prints what the certificate says, and how far the scores are apart: the largest
difference over the largest score.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import torch
from lightning.pytorch import Trainer

from lightning_sgdinf import InfluenceRunner, TrajectoryRecorder
from lightning_sgdinf.errors import CertificateError, StepMismatchError


def record(case: cases.Case, data: cases.Images, path: Path, keep: str) -> None:
    """Train and record."""
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[TrajectoryRecorder(path, keep=keep)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(case.module(), data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trained-with", default="")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    cases.quiet()
    steps, k = (12, 5) if chosen.quick else (chosen.steps, chosen.k)
    case = replace(cases.CASES["MnistNet"], steps=steps)
    data = case.data()
    if chosen.record:
        record(case, data, chosen.record / "dense.tlog", "every_step")
        record(case, data, chosen.record / "sparse.tlog", f"every({k})")
        return
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder, "dense.tlog"), Path(folder, "sparse.tlog")
        command = [sys.executable, __file__, "--record", folder, "--steps", str(steps), "--k", str(k)]
        instructions = {"ATEN_CPU_CAPABILITY": chosen.trained_with} if chosen.trained_with else {}
        subprocess.run(command, check=True, env={**os.environ, **instructions})

        def scores(log: Path, **more: Any) -> Any:
            return InfluenceRunner(accelerator="cpu", progress=False, **more).run(
                case.module(), datamodule=data, log=log
            )

        exact = scores(dense, certificate="off").values
        torch.set_num_threads(chosen.threads)
        try:
            scores(sparse, rebuild="exact", certificate="off")
            print("rebuild='exact': these two machines round alike, so this run shows nothing")
        except StepMismatchError as error:
            print(f"rebuild='exact': {str(error).split('.')[0]}")
        close = scores(sparse, certificate="off")
        difference = float((close.values - exact).abs().max() / exact.abs().max())
        print(f"scores, largest difference over largest score: {difference:.1e}")
        try:
            close = scores(sparse)
        except CertificateError as error:
            print(f"certificate: {error}")
    for line in close.certificate.summary():
        if "ebuil" in line:
            print(line)


if __name__ == "__main__":
    main()

"""What importing the package adds to ``import lightning``, each in processes of its own, side by side.

python benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "import lightning_sgdinf": "import lightning_sgdinf",
    "the factory that Lightning asks": "import lightning_sgdinf.environment; lightning_sgdinf.environment.callbacks()",
    "TrajectoryRecorder": "from lightning_sgdinf import TrajectoryRecorder",
    "TrajectoryRecorder, InfluenceRunner": "from lightning_sgdinf import TrajectoryRecorder, InfluenceRunner",
    "ScoreOnFitEnd": "from lightning_sgdinf import ScoreOnFitEnd",
}

SCRIPT = """
import sys, time
began = time.process_time()
import lightning
host = time.process_time() - began
known, began = len(sys.modules), time.process_time()
{statement}
print(host, time.process_time() - began, len(sys.modules) - known)
"""


def seconds(statement: str) -> tuple[float, float, int]:
    """Processor time of ``import lightning``, what the statement adds, and how many modules it loads."""
    script = SCRIPT.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    host, added, modules = done.stdout.split()[-3:]
    return float(host), float(added), int(modules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved; the least is reported")
    rounds = parser.parse_args().rounds
    seconds("import lightning_sgdinf.environment")  # files are read from the disk once
    found = {name: [seconds(statement) for _ in range(rounds)] for name, statement in STATEMENTS.items()}
    host = statistics.median(run[0] for runs in found.values() for run in runs)
    print(f"import lightning: {host:.2f} s of processor time")
    for name, runs in found.items():
        added = min(run[1] for run in runs)
        print(
            f"{name}: adds {1000 * added:.1f} ms, {100 * added / host:.1f} % of import lightning, {runs[0][2]} modules"
        )


if __name__ == "__main__":
    main()

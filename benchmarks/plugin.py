"""What the pytest plugin costs a suite of 1,000 empty tests that asks for it: whole runs.

    python benchmarks/plugin.py [ROUNDS]

prints one row for a suite that does not use torch and one for a suite that imports it, and exits
with 1 if the processor time of the run with the plugin is above the limit. The runs take turns, so
that a change of the machine's speed meets both; the ratio is that of the medians. Judged is the
processor time, as what other processes do to the time on the clock is not the plugin's.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

LIMIT = 1.03
TESTS = 1000
ROUNDS = 15
SUITES = {"without torch": "", "importing torch": "import torch\n"}


class Run(NamedTuple):
    """Seconds of one run."""

    clock: float
    processor: float


def run(file: Path, *args: str) -> Run:
    """Run pytest over a file, in a process of its own."""
    # As a user's, whose compiled modules are kept; in a place of their own, so that they are new.
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(file.parent), "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args, str(file)]
    before, start = processor(), time.perf_counter()
    subprocess.run(command, check=True, cwd=file.parent, env=env, capture_output=True)  # noqa: S603 (this interpreter)
    return Run(time.perf_counter() - start, processor() - before)


def processor() -> float:
    """Return the processor time of all processes that have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(file: Path, rounds: int) -> tuple[list[Run], list[Run]]:
    """Return the runs with the plugin and those without, after one of each to warm the caches."""
    run(file, "--gradguard=warn"), run(file, "-p", "no:gradguard")
    with_it, without = [], []
    for at in range(rounds):  # each goes first in every other round
        for plugin in (True, False) if at % 2 else (False, True):
            if plugin:
                with_it.append(run(file, "--gradguard=warn"))
            else:
                without.append(run(file, "-p", "no:gradguard"))
    return with_it, without


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(f"{TESTS} empty tests, median seconds of {rounds} runs each (at most {LIMIT})")
    print(f"{'suite':18}{'':12}{'without':>9}{'with':>9}{'ratio':>8}")
    worst = 0.0
    for name, head in SUITES.items():
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "test_empty.py"
            tests = (f"def test_{n}():\n    pass\n" for n in range(TESTS))
            file.write_text(head + "".join(tests))
            with_it, without = measure(file, rounds)
        for what in Run._fields:
            a, b = (
                statistics.median(getattr(r, what) for r in runs) for runs in (without, with_it)
            )
            print(f"{name:18}{what:12}{a:9.3f}{b:9.3f}{b / a:8.3f}")
            worst = max(worst, b / a if what == "processor" else 0.0)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

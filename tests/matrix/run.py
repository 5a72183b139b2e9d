"""Run the suite against any torch, Python and pytest, and write a row of the table.

    python tests/matrix/run.py --torch 2.8.0                       # this Python, the newest pytest
    python tests/matrix/run.py --python python3.12 --torch 2.13.0 --pytest 7.4.4
    python tests/matrix/run.py --torch 2.6.0 -- tests/core -x      # some tests, and no row
    python tests/matrix/run.py --table                             # the rows as they stand

The environment is made in `build/matrix` (1 to 2 GB) and used again as long as it lies there. On
Linux torch comes without the libraries of CUDA, which no test calls (`--cuda` takes them, too).
Other Pythons come from pyenv, uv or the system's packages; where torch comes from is pip's to know
(PIP_INDEX_URL and the like).
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import PROJECT, Environment

ROWS = Path(__file__).with_name("rows.json")
HEAD = "| torch | Python | pytest | passed | torch's own faults | skipped | failed |"
FORKED_BEFORE = (2, 13)  # see in_processes.py


def main() -> int:
    """Make the environment, run the suite there, write its row; 1 if a test failed."""
    options, tests = arguments()
    if options.table:
        print(table())
        return 0
    # A shell has what it starts in the background ignore Ctrl-C, which tests of signals inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = options.environment or PROJECT / "build" / "matrix" / environment_name(options)
    environment = Environment(Path(folder))
    if not environment.exists():
        cuda = options.cuda or sys.platform != "linux"
        environment.make(options.python, options.torch, options.pytest, cuda=cuda)
    versions = environment.versions()
    print(*(f"{name} {version}" for name, version in versions.items()), sep=", ", flush=True)
    code, counts = run(environment, versions["torch"], tests)
    if counts and not tests:
        write(versions, counts)
    return code


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options, and what stands after ``--``, which is pytest's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", metavar="VERSION", help="as pip takes it: 2.8.0")
    parser.add_argument("--python", metavar="COMMAND", default=sys.executable)
    parser.add_argument("--pytest", metavar="VERSION", help="default: the newest")
    parser.add_argument("--environment", metavar="FOLDER", help="where it is, or shall be, made")
    parser.add_argument("--cuda", action="store_true", help="install the libraries of CUDA, too")
    parser.add_argument("--table", action="store_true", help="print the rows, and run nothing")
    parser.add_argument("tests", nargs="*", help="given to pytest; then no row is written")
    options = parser.parse_args()
    if not options.table and not options.torch:
        parser.error("say which torch: --torch VERSION")
    return options, options.tests


def environment_name(options: argparse.Namespace) -> str:
    """What the environment is called: another for each Python, which may all be `…/bin/python`."""
    ask = "import platform; print(platform.python_version())"
    python = subprocess.run(
        [options.python, "-c", ask], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    return f"torch{options.torch}-python{python}-pytest{options.pytest or ''}"


def run(environment: Environment, torch: str, tests: list[str]) -> tuple[int, dict[str, int]]:
    """Run the tests; return the exit code, and how many passed, failed and so on."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts.json")
        variables = dict(os.environ, GRADGUARD_MATRIX_COUNTS=str(counts), OMP_NUM_THREADS="1")
        variables["PYTHONPATH"] = str(Path(__file__).parent)
        if number(torch) < FORKED_BEFORE and hasattr(os, "fork"):
            variables["GRADGUARD_MATRIX_FORK"] = "1"
        # The project's own options ask for what an old pytest or plugin does not know.
        options = ["-o", "addopts=-ra --strict-markers", "-W", "ignore::pytest.PytestConfigWarning"]
        command = [environment.python, "-m", "pytest", "-p", "in_processes", *options, *tests]
        code = subprocess.run(command, cwd=PROJECT, env=variables, check=False).returncode
        return code, json.loads(counts.read_text(encoding="utf-8")) if counts.exists() else {}


def number(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def write(versions: dict[str, str], counts: dict[str, int]) -> None:
    """Put the row in the place of the one with the same versions."""
    rows = [row for row in read() if any(row[name] != versions[name] for name in versions)]
    rows.append({**versions, **counts})
    rows.sort(key=lambda row: [number(row[name]) for name in ("torch", "python", "pytest")])
    ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def read() -> list[dict[str, object]]:
    """The rows of earlier runs."""
    return json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []


def table() -> str:
    """The rows as Markdown."""
    lines = [HEAD, "|---" * 3 + "|--:" * 4 + "|"]
    for row in read():
        failed = sum(int(row[name]) for name in ("failed", "error", "xpassed"))
        parts = ("torch", "python", "pytest", "passed", "xfailed", "skipped")
        lines.append("| " + " | ".join(f"{row[part]}" for part in parts) + f" | {failed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""What `gradguard check` costs over torch's own package: lines a minute, and against parsing alone.

    python benchmarks/check.py [FOLDER]

prints the processor time, summed over all processes, so that what else the machine does is not
counted, and exits with 1 if two cores would read fewer than 1,000,000 lines in a minute.
"""

import ast
import os
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

from gradguard._findings.kinds import CHECK_NAMES
from gradguard._lint.files import python_files
from gradguard._lint.pool import check_files

LIMIT = 1_000_000
CORES = 2


def spent(work):
    """Return the processor time of this process and those it starts, and the time on the clock."""
    before, begun = os.times(), time.perf_counter()
    work()
    after = os.times()
    processor = sum(end - start for start, end in zip(before[:4], after[:4], strict=True))
    return processor, time.perf_counter() - begun


def parsed(source):
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def parse_all(sources):
    for source in sources:  # no tree is kept: a heap full of them is slow by itself
        parsed(source)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else find_spec("torch").origin)
    folder = folder if folder.is_dir() else folder.parent
    files = python_files([folder], [], folder)
    sources = [path.read_bytes() for path in files]
    lines = sum(source.count(b"\n") for source in sources)
    names = frozenset(CHECK_NAMES.values())
    warnings.simplefilter("ignore")
    parsing, _ = spent(lambda: parse_all(sources))
    checking, clock = spent(lambda: check_files(files, lambda _: names))
    a_minute = int(CORES * 60 * lines / checking)
    print(f"{lines:,} lines in {len(files):,} files, all rules")
    print(f"parsing alone      {parsing:6.1f} s of processor time")
    print(f"gradguard check    {checking:6.1f} s of processor time, {checking / parsing:.1f} of it")
    print(f"on the clock       {clock:6.1f} s here, with {os.cpu_count()} processors")
    print(f"on {CORES} free cores    {a_minute:,} lines a minute (limit {LIMIT:,})")
    return a_minute < LIMIT


if __name__ == "__main__":
    sys.exit(main())

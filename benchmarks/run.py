"""What `python -m gradguard run` costs: a small GPT is trained with and without it.

    python benchmarks/run.py [PAIRS]

Whole processes, interleaved, so that what else the machine does falls on both alike; the figure is
the ratio of the medians. Limit: 1.10. Last figures (torch 2.13.0, 2 shared cores, 5 pairs): plain
5.96 s, watched 6.19 s, ratio 1.04.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("run_gpt.py")
LIMIT = 1.10


def seconds(*front):
    began = time.perf_counter()
    subprocess.run([sys.executable, *front, SCRIPT], check=True, capture_output=True)  # noqa: S603 (this very interpreter)
    return time.perf_counter() - began


def main(pairs=7):
    plain, watched = [], []
    for _ in range(pairs):
        plain.append(seconds())
        watched.append(seconds("-m", "gradguard", "run", "--strict"))
    ratio = statistics.median(watched) / statistics.median(plain)
    print(f"plain   {statistics.median(plain):6.2f} s  (fastest {min(plain):.2f})")
    print(f"watched {statistics.median(watched):6.2f} s  (fastest {min(watched):.2f})")
    print(
        f"ratio of medians {ratio:.3f} (limit {LIMIT}), of fastest {min(watched) / min(plain):.3f}"
    )
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

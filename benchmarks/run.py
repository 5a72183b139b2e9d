"""What `gradguard run` costs: a small GPT, and three loops of tiny modules, with and without it.

    python benchmarks/run.py [PAIRS]

Whole processes, interleaved, so that what else the machine does falls on both alike; the figure is
the ratio of the fastest of each. A program that does nothing is timed as well, both ways, and taken
off: starting Python and importing torch is no loop's cost.
"""

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TINY = str(HERE / "run_tiny.py")
LIMITS = {
    "gpt": ([str(HERE / "run_gpt.py")], 1.10),
    "act": ([TINY, "act"], 1.30),
    "infer": ([TINY, "infer"], 1.30),
    "record": ([TINY, "record"], 1.30),
}
WATCHED = ("-m", "gradguard", "run")


def seconds(front, script):
    began = time.perf_counter()
    subprocess.run([sys.executable, *front, *script], check=True, capture_output=True)  # noqa: S603 (this very interpreter)
    return time.perf_counter() - began


def fastest(script, pairs):
    plain, watched = [], []
    for _ in range(pairs):
        plain.append(seconds((), script))
        watched.append(seconds(WATCHED, script))
    return min(plain), min(watched)


def main(pairs=5):
    started, started_watched = fastest([TINY, "nothing"], pairs)
    late = 0
    for name, (script, limit) in LIMITS.items():
        plain, watched = fastest(script, pairs)
        ratio = (watched - started_watched) / (plain - started)
        late += ratio > limit
        print(
            f"{name:7} plain {plain:6.2f} s  watched {watched:6.2f} s  ratio {ratio:.2f} ({limit})"
        )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

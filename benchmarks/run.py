"""What `gradguard run` costs: a small GPT, and three loops of tiny modules, with and without it.

    python benchmarks/run.py [PAIRS]

Whole processes, interleaved round by round, so that what else the machine does falls on all
alike. The figure is the ratio of the fastest of each, by the processor time that the program itself
counts: starting Python and importing torch is no loop's cost, and takes as long as one.
"""

import subprocess
import sys
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
    command = [sys.executable, *front, *script]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603 (this very interpreter)
    return float(done.stdout.split()[-1])


def fastest(pairs):
    """Return the least that each program takes, plain and watched."""
    times = {name: ([], []) for name in LIMITS}
    for _ in range(pairs):
        for name, (script, _) in LIMITS.items():
            for front, found in zip(((), WATCHED), times[name], strict=True):
                found.append(seconds(front, script))
    return {name: tuple(map(min, both)) for name, both in times.items()}


def main(pairs=5):
    late = 0
    for name, (plain, watched) in fastest(pairs).items():
        limit = LIMITS[name][1]
        late += watched / plain > limit
        print(
            f"{name:7} plain {plain:6.2f} s  watched {watched:6.2f} s  "
            f"ratio {watched / plain:.2f} ({limit})"
        )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

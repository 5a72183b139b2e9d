"""What `gradguard run` costs: a small GPT, and three loops of tiny modules, with and without it.

    python benchmarks/run.py [PAIRS]

Whole processes, interleaved round by round, so that what else the machine does falls on all
alike, and by the time that they had a processor; the figure is the ratio of the fastest of each. A
program that does nothing is run as well, both ways, and taken off: starting Python and importing
torch is no loop's cost.
"""

import resource
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
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *front, *script], check=True, capture_output=True)  # noqa: S603 (this very interpreter)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fastest(pairs):
    """Return the least that each program takes, plain and watched."""
    programs = {"nothing": [TINY, "nothing"], **{name: LIMITS[name][0] for name in LIMITS}}
    times = {name: ([], []) for name in programs}
    for _ in range(pairs):
        for name, script in programs.items():
            for front, found in zip(((), WATCHED), times[name], strict=True):
                found.append(seconds(front, script))
    return {name: tuple(map(min, both)) for name, both in times.items()}


def main(pairs=5):
    found = fastest(pairs)
    started, started_watched = found["nothing"]
    late = 0
    for name, (_, limit) in LIMITS.items():
        plain, watched = found[name]
        ratio = (watched - started_watched) / (plain - started)
        late += ratio > limit
        print(
            f"{name:7} plain {plain:6.2f} s  watched {watched:6.2f} s  ratio {ratio:.2f} ({limit})"
        )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

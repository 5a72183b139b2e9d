"""What ``evaluating`` costs, as a share of flipping the whole model by hand.

By hand is ``was = model.training; model.eval(); ...; model.train(was)``: the same two states, but
neither safe with threads nor kind to a frozen BatchNorm. Run: ``python benchmarks/evaluating.py``.
Limits on the 160-module network: 0.3 when all is in eval already, 1.0 when it must flip.
"""

from statistics import median

import torch
from torch import nn
from torch.utils.benchmark import Timer

from gradguard import evaluating

SIZES = (10, 160, 2000)
LIMITS = {"all in eval": 0.3, "must flip": 1.0}  # of the 160-module network
ROUNDS = 7

HAND = "was = model.training\nmodel.eval()\nmodel.train(was)"
SCOPE = "with evaluating(model): pass"
ENTERED_AGAIN = "with scope: pass"


def block():
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GELU(), nn.Dropout(0.1))


def network(modules):
    """Build a network of exactly so many modules, blocks of five with single layers at the end."""
    blocks, rest = divmod(modules - 1, 5)
    return nn.Sequential(*(block() for _ in range(blocks)), *(nn.Identity() for _ in range(rest)))


def microseconds(statements, model, seconds=0.02):
    """Time the statements in turns, so that whatever else the machine does strikes them all."""
    names = {"model": model, "evaluating": evaluating, "scope": evaluating(model)}
    timers = [Timer(statement, globals=names) for statement in statements]
    rounds = [
        [t.blocked_autorange(min_run_time=seconds).median for t in timers] for _ in range(ROUNDS)
    ]
    return [median(times) * 1e6 for times in zip(*rounds, strict=True)]


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, medians of {ROUNDS} interleaved rounds")
    print("modules  case         by hand µs  evaluating  ratio  again  limit")
    for size in SIZES:
        model = network(size)
        assert len(list(model.modules())) == size  # noqa: S101 (a benchmark of its own claim)
        for case, limit in LIMITS.items():
            model.train(case == "must flip")
            hand, scope, again = microseconds([HAND, SCOPE, ENTERED_AGAIN], model)
            shown = limit if size == 160 else ""  # noqa: PLR2004 (the size that has limits)
            print(
                f"{size:>7}  {case:<11}  {hand:>10.1f}  {scope:>10.1f}"
                f"  {scope / hand:>5.2f}  {again / hand:>5.2f}  {shown:>5}"
            )


if __name__ == "__main__":
    main()

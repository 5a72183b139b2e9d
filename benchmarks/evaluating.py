"""What ``evaluating`` costs, as a share of flipping the whole model by hand.

By hand is ``was = model.training; model.eval(); ...; model.train(was)``: the same two states, but
neither safe with threads nor kind to a frozen BatchNorm. Run: ``python benchmarks/evaluating.py``.
Limits on the 160-module network: 0.3 when all is in eval already, 1.0 when it must flip.

And what a call of an ``inference_method`` costs on a small MLP, as a share of the same method under
``@torch.inference_mode()`` with that flip written out in it: one that predicts, and one that does
nothing.
"""

from statistics import median

import torch
from torch import nn
from torch.utils.benchmark import Timer

from gradguard import evaluating, inference_method

SIZES = (10, 160, 2000)
LIMITS = {"all in eval": 0.3, "must flip": 1.0}  # of the 160-module network
ROUNDS = 7

HAND = "was = model.training\nmodel.eval()\nmodel.train(was)"
SCOPE = "with evaluating(model): pass"
ENTERED_AGAIN = "with scope: pass"


@torch.inference_mode()
def by_hand(model, forward, x):
    was = model.training
    model.eval()
    try:
        return forward(x)
    finally:
        model.train(was)


@inference_method
def method(_model, forward, x):
    return forward(x)


def block():
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GELU(), nn.Dropout(0.1))


def network(modules):
    """Build a network of exactly so many modules, blocks of five with single layers at the end."""
    blocks, rest = divmod(modules - 1, 5)
    return nn.Sequential(*(block() for _ in range(blocks)), *(nn.Identity() for _ in range(rest)))


def microseconds(statements, model, seconds=0.02):
    """Time the statements in turns, so that whatever else the machine does strikes them all."""
    names = {**globals(), "model": model, "scope": evaluating(model), "x": torch.ones(1, 16)}
    timers = [Timer(statement, globals=names) for statement in statements]
    rounds = [
        [t.blocked_autorange(min_run_time=seconds).median for t in timers] for _ in range(ROUNDS)
    ]
    return [median(times) * 1e6 for times in zip(*rounds, strict=True)]


def measure_methods():
    print("\nMLP of 5   case         by hand µs  inference_method  ratio")
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
    for case in LIMITS:
        model.train(case == "must flip")
        for name, forward in {"predict": "model", "empty body": "id"}.items():
            calls = [f"{call}(model, {forward}, x)" for call in ("by_hand", "method")]
            hand, ours = microseconds(calls, model)
            print(f"{name:<10} {case:<11}  {hand:>10.1f}  {ours:>16.1f}  {ours / hand:>5.2f}")


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, medians of {ROUNDS} interleaved rounds")
    measure_scopes()
    measure_methods()


def measure_scopes():
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

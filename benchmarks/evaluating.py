"""What ``evaluating`` and ``inference_method`` cost, as a share of flipping the model by hand.

By hand is ``was = model.training; model.eval(); ...; model.train(was)``: the same two states, but
neither safe with threads nor kind to a frozen BatchNorm. Run: ``python benchmarks/evaluating.py``.

Everything is timed in turns, in one process, and the best of the rounds counts: what else runs on a
machine only ever adds time. Limits, on the network of 160 modules: a block 0.3 when all is in eval
mode already and 1.0 when it must flip, the same within a tenth with 1,000 streams open, and a step
of a stream, `inference_method` on a generator, 0.15 when all is in eval mode.

And what a call of an ``inference_method`` costs on a small MLP, as a share of the same method under
``@torch.inference_mode()`` with that flip written out in it: one that predicts, and one that does
nothing.
"""

from contextlib import ExitStack
from itertools import count

import torch
from torch import nn
from torch.utils.benchmark import Timer

from gradguard import evaluating, inference_method  # noqa: F401 (timed as text)

SIZES = (10, 160, 2000)
OPEN = (0, 100, 1000)  # streams that others have open meanwhile
LIMITS = {"all in eval": 0.3, "must flip": 1.0}  # of the 160-module network
STEP_LIMIT = 0.15
ROUNDS = 60

HAND = "was = model.training\nmodel.eval()\nmodel.train(was)"
BLOCK = "with evaluating(model): pass"
STEP = "next(stream)"


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


@inference_method
def steps(_model):
    yield from count()


@inference_method(keep_eval=True)
def steps_in_eval(_model):
    yield from count()


def block():
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GELU(), nn.Dropout(0.1))


def network(modules):
    """Build a network of exactly so many modules, blocks of five with single layers at the end."""
    blocks, rest = divmod(modules - 1, 5)
    return nn.Sequential(*(block() for _ in range(blocks)), *(nn.Identity() for _ in range(rest)))


def microseconds(cases, seconds=0.003):
    """Time the cases, each a statement and its names, in turns; return the best round of each."""
    timers = [Timer(text, globals={**globals(), **names}) for text, names in cases]
    rounds = [
        [t.blocked_autorange(min_run_time=seconds).median for t in timers] for _ in range(ROUNDS)
    ]
    return [min(times) * 1e6 for times in zip(*rounds, strict=True)]


def measure_blocks():
    print("modules  case         by hand µs  evaluating  ratio  limit")
    for size in SIZES:
        model = network(size)
        assert len(list(model.modules())) == size  # noqa: S101 (a benchmark of its own claim)
        for case, limit in LIMITS.items():
            model.train(case == "must flip")
            hand, ours = microseconds([(HAND, {"model": model}), (BLOCK, {"model": model})])
            shown = limit if size == 160 else ""  # noqa: PLR2004 (the size that has limits)
            print(
                f"{size:>7}  {case:<11}  {hand:>10.1f}  {ours:>10.1f}  {ours / hand:>5.2f}  {shown}"
            )


def measure_streams():
    print("\n160 modules, while others have streams open, as a share of flipping by hand")
    print("open   on            block, in eval  block, must flip  step, in eval")
    limits = [*LIMITS.values(), STEP_LIMIT]
    print(f"{'limits':<20}  {limits[0]:>13}  {limits[1]:>16}  {limits[2]:>13}")
    for number in OPEN:
        for where in ("this model", "other models") if number else ("-",):
            with ExitStack() as streams:
                shares = measure_among(number, where, streams)
            print(f"{number:>4}   {where:<12}  " + "  ".join(f"{share:>13.2f}" for share in shares))


def measure_among(number, where, streams):
    in_eval, in_train = network(160).eval(), network(160)
    # On the model that must flip, streams that give its flags back at each step.
    others = [in_eval, in_train] if where == "this model" else [network(160) for _ in range(10)]
    for at in range(number):
        opened = (steps if at % 2 else steps_in_eval)(others[at % len(others)])
        next(opened)
        streams.callback(opened.close)
    stream = steps(in_eval)
    hand, ours, step, hand_flip, flip = microseconds(
        [
            (HAND, {"model": in_eval}),
            (BLOCK, {"model": in_eval}),
            (STEP, {"stream": stream}),
            (HAND, {"model": in_train}),
            (BLOCK, {"model": in_train}),
        ]
    )
    return ours / hand, flip / hand_flip, step / hand


def measure_methods():
    print("\nMLP of 5   case         by hand µs  inference_method  ratio")
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
    for case in LIMITS:
        model.train(case == "must flip")
        for name, forward in {"predict": model, "empty body": id}.items():
            names = {"model": model, "forward": forward, "x": torch.ones(1, 16)}
            calls = [(f"{call}(model, forward, x)", names) for call in ("by_hand", "method")]
            hand, ours = microseconds(calls)
            print(f"{name:<10} {case:<11}  {hand:>10.1f}  {ours:>16.1f}  {ours / hand:>5.2f}")


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, the best of {ROUNDS} interleaved rounds")
    measure_blocks()
    measure_streams()
    measure_methods()


if __name__ == "__main__":
    main()

"""What no_grad and inference_mode save: four architectures, batch sizes 1 to 64.

Writes its figures to savings.json and a chart to savings.png beside it, and prints them as a
table. All times are ratios between the modes of one run, taken in turns (`compare_modes`).

    python benchmarks/savings.py            measure, print, write both files
    python benchmarks/savings.py --replot   draw the chart again from savings.json
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradguard

HERE = Path(__file__).parent
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DEPTHS = (1, 2, 3, 4, 6, 8)
DEPTH, BATCH = 6, 16  # of what is varied in the other: six layers; sixteen samples
ROUNDS = 15


def mlp(depth: int) -> nn.Module:
    layers = [nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), *layers, nn.Linear(512, 10))


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut, as in ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 (torch's)
        y = self.first_norm(self.first(x)).relu()
        return (x + self.second_norm(self.second(y))).relu()


def cnn(depth: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(stem, *(Block(32) for _ in range(depth)), head)


def lstm(depth: int) -> nn.Module:
    return nn.LSTM(64, 128, num_layers=depth, batch_first=True)


def transformer(depth: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


MODELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "MLP": (mlp, (784,)),
    "residual CNN": (cnn, (3, 32, 32)),
    "LSTM": (lstm, (32, 64)),
    "transformer": (transformer, (64, 128)),
}


class Activations(TorchDispatchMode):
    """Add up what operations return in new memory: the activations of a forward."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self._given = {tensor.untyped_storage() for tensor in given}
        self._made: set[torch.UntypedStorage] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        every = result if isinstance(result, tuple | list) else (result,)
        self._made.update(t.untyped_storage() for t in every if isinstance(t, Tensor))
        return result

    def total(self) -> int:
        """Return the bytes so far."""
        return sum(storage.nbytes() for storage in self._made - self._given)


def measured(name: str, depth: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure one network in eval mode, since that is what is compared where people predict."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    net, x = make(depth).eval(), torch.randn(batch, *shape)
    with Activations(x, *net.parameters(), *net.buffers()) as activations:
        net(x)
    comparison = gradguard.compare_modes(net, (x,), repeats=rounds)
    figures = {"model": name, "depth": depth, "batch": batch, "activations": activations.total()}
    return figures | {"kept": [mode.kept_bytes for mode in comparison]} | ratios(comparison)


def ratios(comparison: Iterable[Any]) -> dict[str, float]:
    """Give the modes' times as parts of one another, and how far the rounds lie apart."""
    grad, no_grad, inference = comparison
    return {
        "no_grad/grad": round(no_grad.ratio_to(grad), 3),
        "inference_mode/grad": round(inference.ratio_to(grad), 3),
        "inference_mode/no_grad": round(inference.ratio_to(no_grad), 3),
        "spread": round(max(mode.spread for mode in (grad, no_grad, inference)), 3),
    }


def small_operations() -> Iterator[dict[str, Any]]:
    """Measure where the bookkeeping is all there is: 300 operations on eight numbers."""
    start = torch.ones(8, requires_grad=True)
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "300 views (y = y.view(8))": lambda y: y.view(8),
        "300 additions (y = y + 1)": lambda y: y + 1,
    }
    for name, step in kinds.items():
        repeated = partial(reduce, lambda y, _, step=step: step(y), range(300), start)
        yield {"what": name} | ratios(gradguard.compare_modes(repeated, repeats=ROUNDS))


def without_fused_path() -> dict[str, Any]:
    """Measure the transformer with torch's fused encoder layer, for eval without grad, off."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        figures = measured("transformer", DEPTH, BATCH, ROUNDS)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return {"what": f"transformer, batch {BATCH}, fused path off"} | {
        key: value for key, value in figures.items() if "/" in key or key == "spread"
    }


def line_through(rows: Sequence[dict[str, Any]], by: str) -> dict[str, float]:
    """Fit kept bytes = fixed + each * (batch or depth), and give the worst miss as a part."""
    at, kept = [row[by] for row in rows], [row["kept"][0] for row in rows]
    each, fixed = statistics.linear_regression(at, kept)
    miss = max(abs(fixed + each * x - y) / y for x, y in zip(at, kept, strict=True))
    shares = [row["kept"][0] / row["activations"] for row in rows]
    return {
        "bytes_each": round(each),
        "bytes_fixed": round(fixed),
        "worst_miss": round(miss, 4),
        "kept_per_activation_least": round(min(shares), 3),
        "kept_per_activation_most": round(max(shares), 3),
    }


def measure() -> dict[str, Any]:
    by_batch = [measured(name, DEPTH, batch, ROUNDS) for name in MODELS for batch in BATCHES]
    by_depth = [measured(name, depth, BATCH, 1) for name in MODELS for depth in DEPTHS]
    rows = {"batch": by_batch, "depth": by_depth}
    return {
        "machine": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "rounds": ROUNDS,
        },
        "by_batch": by_batch,
        "by_depth": [{k: v for k, v in row.items() if "/" not in k} for row in by_depth],
        "fits": {
            f"{name} by {by}": line_through([row for row in rows[by] if row["model"] == name], by)
            for name in MODELS
            for by in rows
        },
        "others": [*small_operations(), without_fused_path()],
    }


def show(figures: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items()))
    print(f"\n{'time, as a part of':44}{'grad':>8}{'grad':>11}{'no_grad':>11}")
    print(f"{'':44}{'no_grad':>8}{'inference':>11}{'inference':>11}{'± of all':>10}{'kept':>11}")
    for row in figures["by_batch"] + figures["others"]:
        name = row.get("what") or f"{row['model']}, batch {row['batch']}"
        times = (row["no_grad/grad"], row["inference_mode/grad"], row["inference_mode/no_grad"])
        kept = "  ".join(f"{count / 2**20:.2f}" for count in row.get("kept", ())[:1])
        print(
            f"{name:44}{times[0]:8.2f}{times[1]:11.2f}{times[2]:11.2f}{row['spread']:10.1%}", end=""
        )
        print(f"{kept:>7} MiB" if kept else "")
    print(
        "\nkept bytes, a line through them       each     fixed   worst miss   of all activations"
    )
    for name, fit in figures["fits"].items():
        share = f"{fit['kept_per_activation_least']:.2f} to {fit['kept_per_activation_most']:.2f}"
        print(
            f"{name:30}{fit['bytes_each']:12}{fit['bytes_fixed']:10}{fit['worst_miss']:13.2%}{share:>21}"
        )


def draw(figures: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    chart = plt.figure(figsize=(9, 6.2), layout="constrained")
    above, below = chart.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_times(above, figures["by_batch"])
    draw_kept(below, figures)
    machine = figures["machine"]
    chart.supxlabel(
        f"torch {machine['torch']}, Python {machine['python']}, {machine['cores']} cores; "
        f"eval mode, median of {machine['rounds']} interleaved rounds",
        fontsize=8,
    )
    chart.savefig(HERE / "savings.png", dpi=150)


def draw_times(part: Any, rows: list[dict[str, Any]]) -> None:
    part.suptitle("Time of a forward, grad = 1", fontsize=11, x=0.01, ha="left")
    styles = {"no_grad": {"color": "#d95f02", "marker": "o"}}
    styles["inference_mode"] = {"color": "#1b6ca8", "marker": "x", "linestyle": "--"}
    for axes, name in zip(part.subplots(1, len(MODELS), sharey=True), MODELS, strict=True):
        for mode, style in styles.items():
            ratio = [row[f"{mode}/grad"] for row in rows if row["model"] == name]
            axes.plot(BATCHES, ratio, label=mode, **style)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set(title=name, ylim=(0, 1.15), xlabel="batch", xticks=BATCHES[::2])
        axes.set_xticklabels(BATCHES[::2])
    axes.legend(loc="lower right", frameon=False)


def draw_kept(part: Any, figures: dict[str, Any]) -> None:
    title = "MiB kept for backward with grad on (no_grad and inference_mode keep 0)"
    part.suptitle(title, fontsize=11, x=0.01, ha="left")
    by_batch, by_depth = part.subplots(1, 2)
    colors = ("#1b9e77", "#7570b3", "#e7298a", "#a6761d")
    for name, color in zip(MODELS, colors, strict=True):
        for axes, by, among in ((by_batch, "batch", BATCHES), (by_depth, "depth", DEPTHS)):
            rows = [row for row in figures[f"by_{by}"] if row["model"] == name]
            fit = figures["fits"][f"{name} by {by}"]
            line = [(fit["bytes_fixed"] + fit["bytes_each"] * x) / 2**20 for x in among]
            axes.plot(among, line, color=color, linewidth=1)
            axes.plot(among, [row["kept"][0] / 2**20 for row in rows], "o", color=color, label=name)
    for axes, label, ticks in (
        (by_batch, f"batch ({DEPTH} layers)", BATCHES),
        (by_depth, f"layers (batch {BATCH})", DEPTHS),
    ):
        axes.set(xscale="log", yscale="log", ylim=(1e-2, 400), xlabel=f"{label}; lines: linear fit")
        axes.set_xticks(ticks, ticks)
        axes.set_xticks([], minor=True)
        axes.set_yticks((0.01, 0.1, 1, 10, 100), ("0.01", "0.1", "1", "10", "100"))
    by_batch.legend(frameon=False, ncols=2, fontsize=9, borderaxespad=0, loc="upper left")


def main() -> None:
    file = HERE / "savings.json"
    if "--replot" not in sys.argv:
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    figures = json.loads(file.read_text())
    show(figures)
    draw(figures)


if __name__ == "__main__":
    main()

"""How large a batch fits without grad into the memory that the measured one takes with it."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradguard import compare_modes, grad_state
from gradguard._compare import measuring, parts_of_batch
from gradguard._compare.larger_batch import BatchMemory, LargerBatch, larger_batch, told
from gradguard._compare.parts_of_batch import Parts


def mlp():
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())))


def cnn():
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.ReLU())


def transformer():
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def lstm():
    return nn.LSTM(32, 32, batch_first=True)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(mlp, (64,)), (cnn, (3, 16, 16)), (transformer, (16, 32)), (lstm, (16, 32))],
    ids=["MLP", "CNN", "fused transformer", "LSTM"],
)
def test_the_predicted_batch_fits(make, shape):
    """It takes under no_grad what the measured one took with grad, when it is run."""
    model = make()
    comparison = compare_modes(model, (torch.ones(32, *shape),), repeats=1)
    batch, error = comparison.larger_batch
    assert batch > 32
    assert error < 0.05
    inputs = torch.ones(batch, *shape)
    (*_, (size, call, bytes_in)) = Parts(model, (inputs,), {}, [model]).calls
    with torch.no_grad():
        taken = bytes_in + parts_of_batch._peak(call, inputs.device)
    assert size == batch
    limit = comparison.batches[-1].grad
    assert limit * (0.98 - error - 1 / batch) <= taken <= limit * (1.02 + error)
    assert f"is enough for {batch} under no_grad" in str(comparison)
    assert f"is enough for {batch} under no_grad" in comparison._repr_html_()


@given(
    batch=st.integers(4, 512),
    start=st.integers(0, 10**6),
    slope=st.integers(1, 10**6),
    more=st.floats(1, 50),
)
def test_any_straight_line_is_prolonged(batch, start, slope, more):
    """Points on a line give the batch at which it reaches what grad takes, without an error."""
    sizes = [batch * part // 4 for part in (1, 2, 3, 4)]
    points = [BatchMemory(n, int((start + slope * n) * more), start + slope * n) for n in sizes]
    exact = (points[-1].grad - start) / slope
    found = larger_batch([one._replace(grad=round(one.batch * 1e6)) for one in points])
    assert isinstance(found, (LargerBatch, str))
    found = larger_batch(points)
    if isinstance(found, LargerBatch):
        assert found.batch == pytest.approx(exact, abs=1.01)
        assert found.error < 1e-3
    else:  # rounded bytes of tiny figures
        assert points[0].grad < 100


def test_the_error_grows_with_what_misses_the_line():
    """Points off their line by a part of a percent make the answer uncertain by more."""
    exact = [BatchMemory(n, 10_000 * n, 1_000 * n) for n in (8, 16, 24, 32)]
    off = [
        one._replace(no_grad=one.no_grad + miss)
        for one, miss in zip(exact, (90, -90, -90, 90), strict=True)
    ]
    assert larger_batch(exact) == (320, 0.0)
    batch, error = larger_batch(off)
    assert abs(batch - 320) <= 320 * 3 * error
    assert 0.001 < error < 0.1


@pytest.mark.parametrize(
    ("bytes_", "reason"),
    [
        ([100, 400, 900, 1600], "straight line"),
        ([500, 500, 500, 500], "does not grow with the batch"),
        ([1000, 1030, 1000, 1050], "it would be"),
    ],
)
def test_what_does_not_fit_is_not_predicted(bytes_, reason):
    """It says why instead of a number."""
    points = [BatchMemory(n, 100_000 * n, one) for n, one in zip((1, 2, 3, 4), bytes_, strict=True)]
    assert reason in larger_batch(points)
    assert told(points).startswith("larger batch: not predicted: ")


def test_memory_that_grows_with_the_square(capsys):
    """A function of pairs of samples gets no straight line."""
    weight = nn.Parameter(torch.ones(8, 8))
    comparison = compare_modes(
        lambda x: (x @ weight @ x.t()).exp(), (torch.ones(64, 8),), repeats=1
    )
    assert comparison.batches
    assert comparison.larger_batch is None
    assert "not predicted: memory does not grow in a straight line" in str(comparison)


def test_a_function_that_takes_no_other_batch():
    """What it raised is told, and the rest of the comparison stands."""
    layer = nn.Linear(4, 4)
    comparison = compare_modes(lambda x: layer(x).view(8, 4), (torch.ones(8, 4),), repeats=1)
    assert comparison.grad.kept_bytes
    assert comparison.larger_batch is None
    assert "larger batch: not predicted: fn takes no batch of 2 (RuntimeError: shape" in str(
        comparison
    )


@pytest.mark.parametrize(
    "args", [(), (torch.ones(3, 4),), (torch.tensor(1.0),), ("text", 7)], ids=str
)
def test_where_there_is_no_batch_nothing_is_said(args):
    """Without a first dimension of four or more, no part is run and no line is written."""
    layer = nn.Linear(4, 4)
    comparison = compare_modes(lambda *_: layer(torch.ones(3, 4)), args, repeats=1)
    assert comparison.batches == ()
    assert "larger batch" not in str(comparison)


def test_without_a_graph_nothing_is_said():
    """Where grad keeps nothing, its absence saves nothing."""
    assert "larger batch" not in str(compare_modes(torch.exp, (torch.ones(8, 4),), repeats=1))


def test_what_is_compiled_is_not_compiled_for_each_size():
    """Its parts are not run."""
    model = torch.compile(mlp(), backend="eager")
    assert Parts(model, (torch.ones(8, 64),), {}, [model]).calls == []
    inside = nn.Sequential(model)
    assert Parts(inside, (torch.ones(8, 64),), {}, [inside]).calls == []
    plain = mlp()
    plain.compile(backend="eager")
    assert Parts(plain, (torch.ones(8, 64),), {}, [plain]).calls == []
    assert Parts(torch.compile(mlp().forward), (torch.ones(8, 64),), {}, []).calls == []


def test_every_tensor_with_a_whole_batch_is_cut():
    """By position, by keyword and in containers; a mask and all else is handed on as it is."""
    seen = []
    mask = torch.ones(5, 5)

    def fn(x, pair, *, labels, named, mask):
        sizes = (len(x), len(pair[0]), pair[1], len(labels), len(named["y"]), mask.shape)
        seen.append((*sizes, x.requires_grad))
        return x * 2

    x = torch.ones(8, 2, requires_grad=True)
    kwargs = {"labels": torch.ones(8), "named": {"y": torch.ones(8, 1)}, "mask": mask}
    parts = Parts(fn, (x, [torch.ones(8), 3]), kwargs, [])
    assert parts.turns == 8
    points, reason = parts.measure(lambda: None)
    assert (len(points), reason) == (4, "")
    assert seen == [(n, n, 3, n, n, mask.shape, True) for n in (2, 2, 4, 4, 6, 6, 8, 8)]
    assert x.grad is None


def test_everything_is_put_back_after_the_parts():
    """BatchNorm's statistics are those from before, and so is the mode."""
    model = cnn()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert compare_modes(model, (torch.rand(8, 3, 8, 8),), repeats=1).batches
    assert all(torch.equal(before[name], one) for name, one in model.named_buffers())
    assert grad_state().grad_enabled


def test_under_a_profiler_of_the_users(capfd):
    """Two cannot run at once: nothing is said, and the comparison goes on."""
    with torch.autograd.profiler.profile():
        comparison = compare_modes(nn.Linear(4, 4), (torch.ones(8, 4),), repeats=1)
    assert comparison.grad.kept_bytes
    assert comparison.batches == ()


def test_nothing_is_printed(capfd):
    """Measuring memory writes nothing to either stream, of torch's own either."""
    assert compare_modes(mlp(), (torch.ones(8, 64),), repeats=1).batches
    assert capfd.readouterr() == ("", "")


def test_on_an_accelerator_its_statistics_are_read(monkeypatch):
    """Inputs that lie there are measured by its own peak."""
    state = SimpleNamespace(now=100, peak=0)
    device = SimpleNamespace(
        reset_peak_memory_stats=lambda: setattr(state, "peak", state.now),
        memory_allocated=lambda: state.now,
        max_memory_allocated=lambda: state.peak,
    )
    monkeypatch.setattr(measuring, "accelerator", lambda: device)
    monkeypatch.setattr(parts_of_batch, "accelerator", lambda: device)

    def fn(x):
        state.peak = state.now + len(x) * (1000 if grad_state().grad_enabled else 10)

    x = torch.ones(8, 2, device="meta")
    points, _ = Parts(fn, (x,), {}, []).measure(lambda: None)
    assert points == tuple((n, n * 1008, n * 18) for n in (2, 4, 6, 8))

"""How a comparison is shown: as HTML, as a picture, and how far it is meanwhile."""

import io
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradguard import compare_modes
from gradguard._compare import progress
from gradguard._compare.figures import ModeComparison, ModeFigures


@pytest.fixture
def comparison():
    grad = ModeFigures("grad", (2.0, 4.0), 1 << 20, 7, None)
    no_grad = ModeFigures("no_grad", (1.0, 2.0), 0, 0, None)
    inference_mode = ModeFigures("inference_mode", (0.5, 1.0), 0, 0, None)
    return ModeComparison(grad, no_grad, inference_mode, 2, "2.<1>")


class Cells(HTMLParser):
    """Collects the text of each cell, and that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.cells, self.open = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_html_says_what_the_text_says(comparison):
    """The same cells as the table of `str`, whole tags, and nothing that is taken for one."""
    parser = Cells()
    parser.feed(comparison._repr_html_())
    assert parser.open == []
    table = str(comparison).splitlines()[:4]
    assert [cell for cell in parser.cells if cell] == [
        word for line in table for word in map(str.strip, line.split("  ")) if word
    ]
    assert "torch 2.&lt;1&gt;" in comparison._repr_html_()


def test_the_picture_has_the_figures(comparison):
    """A bar a mode for time and for bytes, each with its value and ratio, and a dot a round."""
    pytest.importorskip("matplotlib")
    figure = comparison.plot()
    time, kept = figure.axes
    assert [bar.get_height() for bar in time.patches] == [3.0, 1.5, 0.75]
    assert [bar.get_height() for bar in kept.patches] == [1 << 20, 0, 0]
    assert [text.get_text() for text in time.texts] == [
        "3.00 s\n1.00x",
        "1.50 s\n0.50x",
        "750.00 ms\n0.25x",
    ]
    assert [text.get_text() for text in kept.texts] == [
        "1.0 MiB\n1.00x",
        "0 B\n0.00x",
        "0 B\n0.00x",
    ]
    assert [list(line.get_ydata()) for line in time.lines] == [[2.0, 4.0], [1.0, 2.0], [0.5, 1.0]]
    written = io.BytesIO()
    figure.savefig(written)
    assert written.getvalue().startswith(b"\x89PNG")


def test_matplotlib_is_imported_for_the_picture_alone(comparison, monkeypatch):
    """Without it all but the picture works, and the picture names what is missing."""
    monkeypatch.delitem(sys.modules, "gradguard._compare.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert str(comparison)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        comparison.plot()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by one second at each look."""
    now = iter(range(10_000))
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(now)))


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)


@pytest.mark.usefixtures("clock", "without_tqdm")
def test_a_long_comparison_tells_how_far_it_is(monkeypatch):
    """On a terminal, from the third second on, in one line that is gone at the end."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    compare_modes(nn.Linear(2, 2), (torch.ones(1, 2),), repeats=2)
    pieces = stream.getvalue().split("\r")
    assert pieces[1] == "compare_modes: turn 2 of 12"
    assert pieces[-3] == "compare_modes: turn 12 of 12"
    assert pieces[-2].strip() == pieces[-1] == ""


@pytest.mark.usefixtures("clock", "without_tqdm")
def test_nothing_is_written_where_nobody_waits(monkeypatch, capsys):
    """In a log, say."""
    compare_modes(nn.Linear(2, 2), (torch.ones(1, 2),), repeats=1)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("clock", "without_tqdm")
def test_a_notebook_is_told_too(monkeypatch, capsys):
    """Its stderr is no terminal; its shell has a kernel."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    compare_modes(nn.Linear(2, 2), (torch.ones(1, 2),), repeats=1)
    assert "compare_modes: turn 9 of 9" in capsys.readouterr().err


@pytest.mark.usefixtures("without_tqdm")
def test_a_short_one_says_nothing(monkeypatch):
    """Within two seconds there is nothing to wait for."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    compare_modes(nn.Linear(2, 2), (torch.ones(1, 2),), repeats=1)
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("clock", "without_tqdm")
def test_the_line_goes_where_fn_fails(monkeypatch):
    """An error is not written behind it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    calls = []

    def fails():
        calls.append(1)
        if len(calls) > 4:
            raise ValueError

    with pytest.raises(RuntimeError, match="fn failed"):
        compare_modes(fails)
    assert stream.getvalue().endswith("\r")


def test_tqdm_shows_it_where_it_is_installed(monkeypatch):
    """With as many steps as there are turns, and only after two seconds."""
    made = []

    class Bar:
        def __init__(self, **options):
            self.options, self.steps = options, 0
            made.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

        def update(self):
            self.steps += 1

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=Bar))
    compare_modes(nn.Linear(2, 2), (torch.ones(1, 2),), repeats=2)
    (bar,) = made
    assert bar.steps == bar.options["total"] == 12
    assert bar.options["delay"] == 2.0
    assert bar.closed

"""A notebook that is executed for real."""

import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `integration`")
nbclient = pytest.importorskip("nbclient", reason="the extra `integration`")
pytest.importorskip("ipykernel", reason="the extra `integration`")

pytestmark = pytest.mark.filterwarnings("default")

CELLS = """
import torch, gradguard
model = torch.nn.Linear(2, 1)

with gradguard.trace() as switches:
    with torch.no_grad():
        model(torch.ones(1, 2))
switches

gradguard.compare_modes(model, (torch.ones(4, 2),), repeats=1)

%matplotlib inline
_.plot()

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = gradguard.watch_training(model, optimizer, on_violation="warn")

watch = gradguard.watch_training(model, optimizer, on_violation="warn")

torch.set_grad_enabled(False)
scores = model(torch.ones(1, 2))
len(optimizer._optimizer_step_pre_hooks)

torch.set_grad_enabled(False)
gradguard.assert_grad_enabled()
""".strip().split("\n\n")


@pytest.fixture(scope="module")
def outputs():
    """The outputs of each cell, executed by a real kernel."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(book, timeout=600, kernel_name="python3", allow_errors=True)
    client.execute()
    return [cell.outputs for cell in book.cells]


def html(output):
    return next(one["data"]["text/html"] for one in output if "data" in one)


def text(output):
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(map(str, output)))


def test_a_trace_is_shown_as_a_table(outputs):
    """Its lines are named as IPython names them."""
    shown = html(outputs[1])
    assert "Cell In[2], line 2" in shown
    assert "<table>" in shown


def test_a_comparison_is_shown_as_a_table_and_a_picture(outputs):
    """Without printing or saving anything."""
    assert "kept for backward" in html(outputs[2])
    assert any("image/png" in one.get("data", {}) for one in outputs[3])


def test_a_watch_made_again_replaces_the_first(outputs):
    """A cell that is run twice does not tell everything twice."""
    assert text(outputs[6]).count("Grad mode was left off") == 1
    assert "'text/plain': '1'" in text(outputs[6])


def test_an_assertion_names_the_cell(outputs):
    """In a notebook it says how to find a switch that is not on the stack."""
    said = text(outputs[7])
    assert "GradModeError" in said
    assert "gradguard.trace()" in said

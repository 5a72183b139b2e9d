"""``python -m gradguard demo``: run once, in a process of its own, and read like a user would."""

import io
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradguard import GradState, grad_state
from gradguard._demo.model import STEPS, VALIDATE_EVERY, FaultyTraining, Training, reference
from gradguard._demo.screen import Screen

# What is left switched is what these tests are about; a fixture puts it back.
pytestmark = pytest.mark.leaks_grad_mode(reason="it is about what is left")

ROW = re.compile(r"^ +(\d+) +(\d+\.\d+) +(\d+\.\d+)$", re.MULTILINE)
EVERY_VALIDATION = [*range(VALIDATE_EVERY, STEPS + 1, VALIDATE_EVERY)]


def rows(part):
    return [(int(step), float(loss), float(held)) for step, loss, held in ROW.findall(part)]


# torch 2.6, of a folder that importing Dynamo makes.
OF_TORCH = "ignore:Implicitly cleaning up:ResourceWarning"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The finished demo, run from some other directory, with any warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", OF_TORCH, "-m", "gradguard", "demo"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def parts(finished):
    """The introduction and the five parts, by number."""
    return re.split(r"^\d\. ", finished.stdout, flags=re.MULTILINE)


@pytest.fixture(autouse=True)
def grad_on_afterwards():
    """One of the loops under test leaves grad mode off on purpose."""
    yield
    torch.set_grad_enabled(True)


def test_finishes(finished):
    """It ends with exit code 0, says how long it took, and has no complaint."""
    assert finished.stderr == ""
    assert finished.returncode == 0
    assert re.search(r"^Done in \d+\.\d s\.$", finished.stdout.splitlines()[-1])


def test_plain_lines(finished, parts):
    """Without a terminal there are only plain lines; none but the model's own can be too long."""
    assert "\r" not in finished.stdout
    of_gradguard = [*parts[:2], *parts[3:], parts[2].splitlines()[-2]]
    assert all(len(line) <= 80 for part in of_gradguard for line in part.splitlines())


def test_introduction(parts):
    """It says what is trained on what."""
    assert len(parts) == 6
    assert re.search(r"a GRU of \d\d,\d{3} parameters", parts[0])
    assert re.search(r"1\d\d,\d{3} characters of Python's own language reference", parts[0])
    assert torch.__version__ in parts[0]


def test_loss_goes_down(parts):
    """The watched training is not disturbed: the loss on new text goes down all the time."""
    steps, training, validation = zip(*rows(parts[1]), strict=True)
    assert [*steps] == EVERY_VALIDATION
    assert all(later < earlier for earlier, later in pairwise(validation))
    assert training[-1] < training[0] - 0.5


def test_text_is_generated(parts):
    """predict() streams a text; the loop that prints it keeps its own modes."""
    _, text, modes = re.split(r"\n\n +", parts[2].strip())
    assert text.startswith("The ")
    assert len(text) > 250
    assert modes.endswith("grad on, model in train mode.")


def test_unwatched_fault_stands_still(parts):
    """With the fault all steps are done, but the loss is the same after each, and it says so."""
    steps, training, validation = zip(*rows(parts[3]), strict=True)
    assert [*steps] == EVERY_VALIDATION
    assert {*validation} == {rows(parts[1])[0][2]}
    assert min(training) > rows(parts[1])[1][1]
    said = " ".join(parts[3].split())
    assert f"{validation[0]:.4f} after step {steps[0]}" in said
    assert f"{validation[0]:.4f} after step {steps[-1]}" in said


def test_watched_fault_is_stopped_at_once(parts):
    """The assertion stops the same training after the first validation; its message is shown."""
    assert rows(parts[4]) == rows(parts[1])[:1]
    said = " ".join(parts[4].replace("|", " ").split())
    assert "Stopped at the start of the next step" in said
    assert "gradguard.GradModeError: assert_grad_enabled: grad mode is off." in said
    assert "What switched it" in said
    assert "To do: " in said


def test_same_numbers_each_time(parts):
    """Trainings are seeded: all three begin alike."""
    assert rows(parts[1])[0] == rows(parts[3])[0] == rows(parts[4])[0]


def test_reader_that_leaves():
    """Where nobody reads on (``demo | head -1``) it ends quietly, with exit code 1."""
    command = [sys.executable, "-m", "gradguard", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == b""
        assert demo.wait() == 1


def test_reference():
    """The text is prose in plain characters, long enough to learn from."""
    text = reference()
    assert len(text) > 100_000
    assert text.isascii()
    assert text.isprintable()
    assert "  " not in text
    assert "function" in text


def test_validation_leaves_no_trace():
    """validate() learns nothing and leaves modes, training flags and weights as they were."""
    training = Training()
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.validate()
    assert grad_state() == GradState(grad_enabled=True, inference_mode=False)
    assert all(module.training for module in training.model.modules())
    after = training.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_faulty_validation():
    """The faulty one returns the same loss, and leaves grad mode off: that is the fault."""
    right = Training().validate()
    assert FaultyTraining().validate() == pytest.approx(right)
    assert not torch.is_grad_enabled()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def displayed(written):
    """The lines that a terminal shows in the end."""
    lines = []
    for line in written.split("\n"):
        cells = []
        for piece in line.split("\r"):
            cells[: len(piece)] = piece
        lines.append("".join(cells).rstrip())
    return lines


def test_progress_on_a_terminal():
    """On a terminal, progress is one line that is written over, and gone when a line follows."""
    stream = Terminal()
    screen = Screen(stream)
    screen.line("begin")
    screen.progress("step 10")
    assert displayed(stream.getvalue()) == ["begin", "step 10"]
    screen.progress("step 9")
    assert displayed(stream.getvalue()) == ["begin", "step 9"]
    screen.line("end")
    assert displayed(stream.getvalue()) == ["begin", "end", ""]
    screen.line("after")
    assert stream.getvalue().endswith("end\nafter\n")


def test_no_progress_without_a_terminal():
    """Elsewhere, as in a log file, only the lines are written."""
    stream = io.StringIO()
    screen = Screen(stream)
    screen.progress("step 1")
    screen.line("end")
    assert stream.getvalue() == "end\n"


@given(st.text("ab \n|", max_size=400))
def test_stream_keeps_each_character(text):
    """Whatever is streamed is all there, indented, and broken only at a space."""
    stream = io.StringIO()
    Screen(stream).stream(text)
    written = stream.getvalue()
    assert written[:3] == "   "
    assert written[-1] == "\n"
    assert written[3:-1].replace("\n   ", " ") == text.replace("\n   ", " ")


def test_stream_is_broken_into_lines():
    """Words fill lines of about 70 characters."""
    stream = io.StringIO()
    Screen(stream).stream("word " * 40)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())


def test_characters_arrive_one_by_one():
    """Each character is on the screen before the next one is made."""
    stream = io.StringIO()

    def characters():
        for character in "abc":
            yield character
            assert stream.getvalue().endswith(character)

    Screen(stream).stream(characters())


def test_whatever_the_encoding():
    """A character that the stream cannot encode, such as in a path, does not end the demo."""
    bottom = io.BytesIO()
    stream = io.TextIOWrapper(bottom, encoding="ascii")
    Screen(stream).line("café")
    assert bottom.getvalue().split() == [rb"caf\xe9"]


def test_the_front_names_the_line(parts):
    """The last part runs the fault's program under `run`, which names the line that did it."""
    assert "$ python -m gradguard run -m gradguard._demo.script" in parts[5]
    said = " ".join(parts[5].replace("|", " ").split())
    assert re.search(r"mode-leak \(.*\): gradguard/_demo/model\.py:\d+ in validate", said)
    assert "torch.set_grad_enabled(False)" in said

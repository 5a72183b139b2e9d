"""The pytest plugin: what it reports, where, as what; and that the next test starts right."""

import subprocess
import sys
import threading
import types
import warnings

import pytest
import torch
from asyncio_ini import LOOP_SCOPE
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import gradguard
from gradguard import GradModeWarning
from gradguard._pytest import mode_changes as _pytest_watch
from gradguard._pytest import plugin as _plugin
from gradguard._pytest import report as _pytest_report
from gradguard._pytest import scope_lifetimes as _pytest_scopes

PRELUDE = """\
import asyncio, functools, sys, threading, unittest
import pytest, torch
import gradguard

def mode():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

ON, OFF, INFERENCE = (True, False), (False, False), (False, True)
"""
NEXT = """
def test_next():
    assert mode() == ON
    assert gradguard.guards() == ()
"""
INI = f"""\
[pytest]
asyncio_mode = strict
{LOOP_SCOPE}"""


@pytest.fixture
def run_as_it_is(pytester):
    """Run pytest over a test file within this process, which has torch already."""
    if not pytester.path.joinpath("tox.ini").exists():
        pytester.makeini(INI)

    def run(source, *args, **files):
        pytester.makepyfile(test_it=PRELUDE + source, **files)
        with warnings.catch_warnings():  # those of this suite are not those of that one
            warnings.simplefilter("default")
            return pytester.runpytest_inprocess(
                "-p", "no:cacheprovider", "-p", "no:randomly", *args
            )

    return run


@pytest.fixture
def run(run_as_it_is, pytester):
    """The same, asked to warn unless it is asked for something else."""

    def run(source, *args, **files):
        asked = any(argument.startswith("--gradguard") for argument in args)
        return run_as_it_is(source, *(() if asked else ("--gradguard=warn",)), *args, **files)

    return run


def line(source, tag="# here"):
    """Return the number of the line with the tag, in the file that `run` makes."""
    lines = (PRELUDE + source).splitlines()
    return next(number for number, text in enumerate(lines, 1) if tag in text)


def reported(result):
    """List the leaks of the warnings summary, by who left the mode changed."""
    rows = result.stdout.str().splitlines()
    found = [row.split("GradModeWarning: ")[1] for row in rows if "GradModeWarning: " in row]
    return [text.split(" left ")[0] for text in found]


# What is reported, and how it is said


def test_a_test_that_leaks_is_reported_at_the_line(run):
    """Under its name, with file, line and source of the switch, and with what to do."""
    source = (
        """
def test_leak():
    torch.set_grad_enabled(False)  # here
"""
        + NEXT
    )
    result = run(source)
    result.assert_outcomes(passed=2, warnings=1)
    at = line(source)
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_leak",
            (
                f"*test_it.py:{at}: GradModeWarning: test_leak left grad mode off; grad mode was on "
                "when it began."
            ),
            f"*Switched at *test_it.py:{at} in test_leak: torch.set_grad_enabled(False)*",
            "*To do: put the lines that need it under `with torch.no_grad():`*leaks_grad_mode(reason=*",
            "*The mode has been put back.",
            "    torch.set_grad_enabled(False)  # here",
        ],
        consecutive=True,
    )


LEAKS = {
    "statement": "torch.set_grad_enabled(False)  # here",
    "entered": "torch.no_grad().__enter__()  # here",
    "inference": "kept.append(torch.inference_mode()); kept[-1].__enter__()  # here",
    "stack": "kept.append(ExitStack()); kept[-1].enter_context(torch.no_grad())  # here",
    "ours": "gradguard.no_grad().__enter__()  # here",
    "our statement": "gradguard.set_grad_enabled(False)  # here",
    "our inference": "kept.append(gradguard.inference_mode()); kept[-1].__enter__()  # here",
    "suspended": "kept.append(held()); next(kept[-1])",
    "below": "torch.set_grad_enabled(False)  # here\n    with torch.enable_grad(): pass",
    "out of order": "a, b = torch.no_grad(), torch.no_grad(); a.__enter__(); b.__enter__()\n"
    "    a.__exit__(None, None, None)\n    b.__exit__(None, None, None)  # here",
    "decorator": "torch.set_grad_enabled(False)(len)\n    torch.set_grad_enabled(False)  # here",
    "among bodies": "torch.set_grad_enabled(False)  # here\n    kept.append(ours()); next(kept[-1])",
}
HELD = """
from contextlib import ExitStack
kept = []
def held():
    with torch.no_grad():{tag}
        yield
@gradguard.enable_grad()
def ours():
    torch.set_grad_enabled(False)
    torch.set_grad_enabled(True)
    yield
"""
# What is left open would end when it is collected, amid a later test of this suite.
CLOSING = """
def test_closing():
    for guard in kept:
        getattr(guard, "close", int)()
"""


@pytest.mark.parametrize("name", LEAKS)
def test_every_kind_of_switch_is_named_by_its_line(run, name):
    """Whatever guard left the mode changed, the line is the switch's, and the next test is safe."""
    tag = "" if "# here" in LEAKS[name] else "  # here"
    source = HELD.format(tag=tag) + f"\ndef test_leak():\n    {LEAKS[name]}\n" + NEXT + CLOSING
    result = run(source)
    result.assert_outcomes(passed=3, warnings=1)
    result.stdout.fnmatch_lines([f"*Switched at *test_it.py:{line(source)} in *"])


def test_a_guard_of_a_module_that_is_loaded_later(pytester):
    """The line is named also where torch is imported long before gradguard's first guard."""
    pytester.makeconftest("import torch")
    source = "def test_leak():\n    import gradguard\n    global kept\n    kept = gradguard.inference_mode()\n    kept.__enter__()  # here\n"
    pytester.makepyfile(test_it=source)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:randomly", "--gradguard=warn"
    )
    result.stdout.fnmatch_lines(["*Switched at *test_it.py:5 in *"])


def test_both_flags_are_told(run):
    """Inference mode is a second flag: what was left of each is said."""
    result = run("\nkept = torch.inference_mode()\ndef test_a():\n    kept.__enter__()\n" + NEXT)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            (
                "*: test_a left grad mode off and inference mode on; grad mode was on and inference "
                "mode was off when it began."
            )
        ]
    )


def test_open_guards_of_gradguard_are_named_and_closed(run):
    """The guards that were entered and never exited, outermost first."""
    result = run(
        "\ndef test_a():\n    gradguard.inference_mode().__enter__()\n"
        "    gradguard.no_grad().__enter__()\n" + NEXT
    )
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        ["*Guards entered and never exited: inference_mode(mode=True), no_grad()."]
    )


def test_a_switch_that_cannot_be_seen_is_reported_at_the_test(run):
    """A direct call of torch._C leaks as well; the line is the test's, and the message says why."""
    source = "\ndef test_raw():  # here\n    torch._C._set_grad_enabled(False)\n" + NEXT
    result = run(source)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            f"*test_it.py:{line(source)}: GradModeWarning: test_raw left grad mode off; *",
            (
                "*What switched it was not seen: a direct call of torch._C, C++, or a compiled function. Put `with "
                "gradguard.trace() as switches:` around the suspected part and print(switches)."
            ),
        ]
    )


UNSEEN = {
    "taken back": "torch.set_grad_enabled(False); torch.set_grad_enabled(True)",
    "decorator": "torch.set_grad_enabled(False)(len); gradguard.set_grad_enabled(False)(len)",
    "to another mode": "kept.append(torch._C._InferenceMode(True)); torch.set_grad_enabled(True)",
}


@pytest.mark.parametrize("name", UNSEEN)
def test_an_older_switch_is_not_blamed(run, name):
    """One of an earlier test, or that was taken back, or to a mode that is not the one left."""
    source = f"""
kept = []

def test_first():
    torch.set_grad_enabled(False)  # here

def test_raw():
    {UNSEEN[name]}
    torch._C._set_grad_enabled(False)
"""
    result = run(source + NEXT)
    result.assert_outcomes(passed=3, warnings=2)
    assert result.stdout.str().count("Switched at") == 1
    result.stdout.fnmatch_lines([f"*Switched at *test_it.py:{line(source)} in test_first: *"])
    assert result.stdout.str().count("was not seen") == 1


def test_each_case_of_a_parametrised_test_is_reported(run):
    """Under its own name; warnings that are the same are shown as one, as pytest does."""
    result = run(
        "\n@pytest.mark.parametrize('n', [1, 2])\ndef test_n(n):\n    assert mode() == ON\n"
        "    torch.set_grad_enabled(False)\n"
    )
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(["test_it.py::test_n?1?", "test_it.py::test_n?2?", "*test_n left*"])
    assert len(reported(result)) == 1


def test_a_fixture_that_is_torn_down_before_one_within_it(run):
    """Where it holds no mode, the inner one's leak is reported all the same."""
    source = """
@pytest.fixture(scope="module", params=[1, 2])
def outer(request):
    return request.param

@pytest.fixture(scope="module")
def off():
    torch.set_grad_enabled(False)  # here

def test_off(outer, off):
    pass
"""
    result = run(source)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines([f"*test_it.py:{line(source)}*"])


def test_what_is_no_leak_is_silent(run):
    """Balanced switches, other threads' modes and train/eval flags are not reported."""
    result = run(
        """
def test_balanced():
    with torch.no_grad(), gradguard.inference_mode():
        torch.set_grad_enabled(True)
    torch.set_grad_enabled(False)
    torch.set_grad_enabled(True)

def test_flags():
    global net
    net = torch.nn.Dropout()
    net.eval()

def test_flags_are_kept():
    assert not net.training

def test_thread():
    thread = threading.Thread(target=torch.set_grad_enabled, args=(False,))
    thread.start()
    thread.join()

def test_dropped():
    torch.inference_mode().__enter__()  # switches back as soon as nothing holds it
    assert mode() == ON
"""
    )
    result.assert_outcomes(passed=5)
    assert reported(result) == []


# As what it is reported


def test_error_makes_a_leak_a_failure(run):
    """With --gradguard=error the test fails, shown and located at the switch."""
    source = "\ndef test_leak():\n    torch.set_grad_enabled(False)  # here\n" + NEXT
    result = run(source, "--gradguard=error")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            ">   torch.set_grad_enabled(False)  # here",
            "E   gradguard.GradLeakError: test_leak left grad mode off; *",
            f"test_it.py:{line(source)}: GradLeakError",
            "FAILED test_it.py::test_leak - gradguard.GradLeakError: *",
        ]
    )
    result.stdout.no_fnmatch_line("*_pytest_*.py*")


def test_filterwarnings_error_makes_it_one_too(run):
    """Where the suite's warnings are errors, so is this one, at the line as well."""
    source = "\ndef test_leak():\n    torch.set_grad_enabled(False)  # here\n" + NEXT
    result = run(source, "-W", "error::gradguard.GradModeWarning")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E   gradguard.GradModeWarning: *", f"test_it.py:{line(source)}: GradModeWarning"]
    )


OTHER_ENDS = (
    """
def test_fails():
    torch.set_grad_enabled(False)
    assert 0

def test_skips():
    torch.set_grad_enabled(False)
    pytest.skip("why not")

@pytest.mark.xfail(strict=True)
def test_xfails():
    torch.set_grad_enabled(False)
    assert 0

@pytest.mark.xfail
def test_xpasses():
    torch.set_grad_enabled(False)
"""
    + NEXT
)


@pytest.mark.parametrize("how", ["warn", "error"])
def test_a_test_that_ends_otherwise_is_warned_about(run, how):
    """What failed, was skipped or is expected to fail keeps its outcome, and is put back."""
    result = run(OTHER_ENDS, f"--gradguard={how}")
    result.assert_outcomes(passed=1, failed=1, skipped=1, xfailed=1, xpassed=1, warnings=4)
    assert reported(result) == ["test_fails", "test_skips", "test_xfails", "test_xpasses"]


def test_an_interrupt_goes_on(run):
    """pytest.exit and Ctrl-C end the run even where the leak's warning is an error."""
    result = run(
        "\ndef test_a():\n    torch.set_grad_enabled(False)\n    pytest.exit('enough')\n" + NEXT,
        "-W",
        "error::gradguard.GradModeWarning",
    )
    result.stdout.fnmatch_lines(["*Exit: enough*"])
    result.assert_outcomes()


LEAVES_OFF = """
def test_a():
    torch.set_grad_enabled(False)

def test_b():
    assert mode() == OFF
    torch.set_grad_enabled(True)
"""


@pytest.mark.parametrize("args", [(), ("--gradguard=off",)])
def test_who_does_not_ask_sees_nothing(run_as_it_is, args):
    """By default, and with off, nothing is reported, put back or added to what pytest prints."""
    result = run_as_it_is(LEAVES_OFF, *args)
    result.assert_outcomes(passed=2)
    assert "gradguard" not in "".join(
        line for line in result.stdout.lines if not line.startswith(("plugins: ", "rootdir: "))
    )


def test_who_does_not_ask_imports_nothing(pytester):
    """Of gradguard, a suite that did not ask loads the plugin's own module alone."""
    pytester.makepyfile(
        test_it="""
import sys

def test_it():
    ours = {name for name in sys.modules if name.partition(".")[0] == "gradguard"}
    assert ours == {"gradguard", "gradguard._pytest", "gradguard._pytest.plugin"}
    assert "torch" not in sys.modules
    assert not any("gradguard" in type(finder).__module__ for finder in sys.meta_path)
"""
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly").assert_outcomes(
        passed=1
    )


def test_it_can_be_left_out(run_as_it_is):
    """With -p no:gradguard there is no plugin: no header, no option, no check."""
    result = run_as_it_is(LEAVES_OFF, "-p", "no:gradguard")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("gradguard: *")


@pytest.mark.parametrize(
    ("ini", "args", "mode"),
    [
        ("warn", (), "warn"),
        ("error", (), "error"),
        ("off", ("--gradguard=error",), "error"),
        ("error", ("--gradguard", "warn"), "warn"),
    ],
)
def test_the_option_falls_back_to_the_ini_value(run_as_it_is, pytester, ini, args, mode):
    """The option, else the ini value; the header shows which it is."""
    pytester.makeini(f"{INI}gradguard = {ini}\n")
    result = run_as_it_is("\ndef test_a():\n    torch.set_grad_enabled(False)\n", *args)
    result.stdout.fnmatch_lines([f"gradguard: mode={mode}"])
    if mode == "error":
        result.assert_outcomes(failed=1)
    else:
        result.assert_outcomes(passed=1, warnings=1)


@pytest.mark.parametrize(
    ("ini", "args", "setting"),
    [("", ("--gradguard=loud",), "--gradguard"), ("loud", (), "ini option gradguard")],
)
def test_a_bad_value_lists_the_valid_ones(run_as_it_is, pytester, ini, args, setting):
    """It is a usage error, whether it comes from the command line or the ini file."""
    pytester.makeini(f"{INI}gradguard = {ini}\n" if ini else INI)
    result = run_as_it_is("", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {setting} = 'loud' is not one of warn, error, off."])


def test_help_lists_the_modes_and_the_marker(pytester):
    """`pytest --help` and `--markers` tell what there is."""
    pytester.makeini(INI)
    assert "warn, error or off" in pytester.runpytest_inprocess("--help").stdout.str()
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.leaks_grad_mode(reason=...): *"]
    )


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_the_marker_silences_and_puts_back(run, mode):
    """On a test, for its fixtures too, and on a class; the next test starts right all the same."""
    result = run(
        """
@pytest.fixture
def off():
    torch.set_grad_enabled(False)

@pytest.mark.leaks_grad_mode(reason="it is about that")
def test_marked():
    torch.set_grad_enabled(False)

@pytest.mark.leaks_grad_mode
def test_fixture(off):
    assert mode() == OFF

@pytest.fixture(scope="class")
def held():
    torch.set_grad_enabled(False)

@pytest.mark.leaks_grad_mode(reason="all of them")
class TestAll:
    def test_it(self, held):
        torch.set_grad_enabled(True)

    def test_held(self):
        assert mode() == OFF
"""
        + NEXT,
        f"--gradguard={mode}",
        "--strict-markers",
    )
    result.assert_outcomes(passed=5)


# Fixtures


def test_fixtures_may_hold_a_mode(run):
    """For their scope, whichever it is and however they do it; nothing is reported."""
    result = run(
        """
@pytest.fixture
def function():
    with torch.no_grad():
        yield

@pytest.fixture
def finalizer(request):
    torch.set_grad_enabled(False)
    request.addfinalizer(lambda: torch.set_grad_enabled(True))

@pytest.fixture(scope="module")
def module():
    with gradguard.inference_mode():
        yield

@pytest.fixture
def inner(module):
    with torch.inference_mode(False), torch.enable_grad():
        yield

def test_function(function):
    assert mode() == OFF

@pytest.mark.parametrize("n", [1, 2])
def test_on_within(function, n):
    with torch.enable_grad():
        assert mode() == ON

def test_finalizer(finalizer):
    assert mode() == OFF

@pytest.fixture(scope="class")
def off():
    with torch.no_grad():
        yield

class TestClass:
    def test_one(self, off):
        assert mode() == OFF

    def test_two(self, function):
        assert mode() == OFF

def test_before():
    assert mode() == ON

def test_module(module):
    assert mode() == INFERENCE

def test_module_lasts():
    assert mode() == INFERENCE

def test_inner(inner):
    assert mode() == ON
""",
        test_session=PRELUDE
        + """
@pytest.fixture(scope="session", autouse=True)
def session():
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(before)

def test_session():
    assert mode() == OFF
""",
    )
    result.assert_outcomes(passed=11)
    assert reported(result) == []


FIXTURES = """
@pytest.fixture
def set_up():
    torch.set_grad_enabled(False)  # set-up

@pytest.fixture
def tear_down():
    yield
    torch.set_grad_enabled(False)  # tear-down

@pytest.fixture(scope="class")
def whole():
    torch.set_grad_enabled(False)  # whole
    yield

def test_set_up(set_up):
    assert mode() == OFF

def test_tear_down(tear_down):
    assert mode() == ON

class TestWhole:
    def test_one(self, whole):
        assert mode() == OFF

    def test_two(self):
        assert mode() == OFF
"""


def test_a_fixture_leaks_if_the_mode_differs_after_its_tear_down(run):
    """It is reported as the fixture's, at its own line, in the test whose tear-down it was."""
    result = run(FIXTURES + NEXT)
    result.assert_outcomes(passed=5, warnings=3)
    for test, name, tag in [
        ("test_set_up", "fixture 'set_up' (scope: function)", "# set-up"),
        ("test_tear_down", "fixture 'tear_down' (scope: function)", "# tear-down"),
        ("TestWhole::test_two", "fixture 'whole' (scope: class)", "# whole"),
    ]:
        at = line(FIXTURES, tag)
        result.stdout.fnmatch_lines(
            [
                f"test_it.py::{test}",
                (
                    f"*test_it.py:{at}: GradModeWarning: {name} left grad mode off after its "
                    "tear-down; grad mode was on before its set-up."
                ),
                f"*Switched at *test_it.py:{at} in *",
                (
                    "*To do: let the tear-down end what the set-up switches, as `with "
                    "torch.no_grad(): yield` does; *leaks_grad_mode*"
                ),
            ],
            consecutive=True,
        )


def test_with_error_a_fixtures_leak_is_an_error_of_the_tear_down(run):
    """The test itself has passed; what comes after it starts right."""
    result = run(FIXTURES + NEXT, "--gradguard=error")
    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_set_up*",
            f"test_it.py:{line(FIXTURES, '# set-up')}: GradLeakError",
            "*ERROR at teardown of test_tear_down*",
            "*ERROR at teardown of TestWhole.test_two*",
        ]
    )


@pytest.mark.parametrize("how", ["warn", "error"])
def test_a_set_up_that_fails_is_put_back_at_once(run, how):
    """A fixture that raises or skips after switching has no tear-down: it is checked then."""
    result = run(
        """
@pytest.fixture
def fails():
    torch.set_grad_enabled(False)
    raise ValueError

@pytest.fixture
def skips():
    torch.set_grad_enabled(False)
    pytest.skip("why not")
    yield

@pytest.fixture
def other():
    yield
    assert mode() == ON

def test_fails(other, fails):
    pass

def test_skips(other, skips):
    pass
"""
        + NEXT,
        f"--gradguard={how}",
    )
    result.assert_outcomes(passed=1, errors=1, skipped=1, warnings=2)
    assert len(reported(result)) == 2


def test_a_test_that_undoes_what_a_fixture_holds_is_reported(run):
    """And the fixture's mode is put back, for the other tests of its scope."""
    source = """
@pytest.fixture(scope="module", autouse=True)
def off():
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)

def test_on():
    torch.set_grad_enabled(True)  # here

def test_other():
    assert mode() == OFF
"""
    result = run(source)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            (
                f"*test_it.py:{line(source)}: GradModeWarning: test_on left grad mode on; grad mode was "
                "off when it began."
            )
        ]
    )


def test_fixtures_asked_for_while_something_runs(run):
    """A mode held by a fixture that a body, or another fixture, asks for is no leak of theirs."""
    result = run(
        """
@pytest.fixture
def off():
    with torch.no_grad():
        yield

@pytest.fixture
def around(request):
    request.getfixturevalue("off")
    assert mode() == OFF

@pytest.fixture(scope="module")
def holds_nothing():
    yield

def test_body(request):
    request.getfixturevalue("off")

def test_within(request):
    with torch.enable_grad():
        request.getfixturevalue("off")

def test_around(around):
    assert mode() == OFF

def test_wider_within_narrower(off, request):
    request.getfixturevalue("holds_nothing")

def test_narrower_has_ended():
    assert mode() == ON
"""
    )
    result.assert_outcomes(passed=5)
    assert reported(result) == []


def test_a_leak_beside_a_fixture_asked_for_in_the_body(run):
    """Where that fixture holds nothing, it is the test's; else it is found after both."""
    source = """
@pytest.fixture
def nothing():
    yield

@pytest.fixture(scope="class")
def inference():
    with torch.inference_mode():
        yield

@pytest.fixture
def off():
    with torch.no_grad():
        yield

def test_nothing(request):
    request.getfixturevalue("nothing")
    torch.set_grad_enabled(False)  # here

class TestBoth:
    def test_both(self, off, request):
        request.getfixturevalue("inference")  # it brings back the mode that off holds now

    def test_lasts(self):
        assert torch.is_inference_mode_enabled()
"""
    result = run(source + NEXT)
    result.assert_outcomes(passed=4, warnings=2)
    result.stdout.fnmatch_lines([f"*Switched at *test_it.py:{line(source)} in test_nothing: *"])
    assert reported(result) == ["test_nothing", "fixture 'inference' (scope: class)"]


def test_fixture_without_a_line_is_reported_at_its_definition(run):
    """Where the switch was not seen, the line is the fixture function's; else the test file's."""
    source = """
def decorated(fn):
    @functools.wraps(fn)
    def wrapper():
        return fn()

    return wrapper

@pytest.fixture  # here
@decorated
def raw():
    torch._C._set_grad_enabled(False)

def test_raw(raw):
    pass

class TestSetUp:
    def setup_method(self):
        torch._C._set_grad_enabled(False)

    def test_it(self):
        assert mode() == OFF
"""
    result = run(source + NEXT)
    result.assert_outcomes(passed=3, warnings=2)
    result.stdout.fnmatch_lines(
        [
            f"*test_it.py:{line(source)}: GradModeWarning: fixture 'raw' (scope: function) left *",
            "*test_it.py:1: GradModeWarning: setup_method (or its tear-down) of TestSetUp left *",
        ]
    )


# The other kinds of tests


def test_xunit_unittest_and_doctest(run):
    """setup_method and the like are named so; setUp and tearDown are part of their test."""
    result = run(
        '''
def off(*_):
    torch.set_grad_enabled(False)

def on(*_):
    torch.set_grad_enabled(True)

def doc():
    """
    >>> _ = torch.set_grad_enabled(False)
    """

class TestHolds:
    setup_class, teardown_class = off, on

    def test_it(self):
        assert mode() == OFF

class TestLeaks:
    setup_method = off

    def test_it(self):
        assert mode() == OFF

class TestCase(unittest.TestCase):
    setUp, tearDown = off, on

    def test_balanced(self):
        assert mode() == OFF

class TestLeft(unittest.TestCase):
    setUp = off

    def test_left(self):
        with self.subTest("one"):
            assert mode() == OFF

class TestWholeCase(unittest.TestCase):
    setUpClass = classmethod(off)

    def test_whole(self):
        assert mode() == OFF
'''
        + NEXT,
        "--doctest-modules",
    )
    result.assert_outcomes(passed=7, warnings=4)
    assert sorted(reported(result)) == [
        "setUpClass (or its tear-down) of TestWholeCase",
        "setup_method (or its tear-down) of TestLeaks",
        "test_it.doc",
        "test_left",
    ]


def test_async_tests_and_fixtures(run):
    """An async test's leak is its own, also by a task that still waits inside a `with`."""
    source = """
import pytest_asyncio

@pytest_asyncio.fixture
async def off():
    with torch.no_grad():
        yield

@pytest_asyncio.fixture
async def leaky():
    yield
    torch.set_grad_enabled(False)

async def waiting():
    with torch.no_grad():  # waiting
        await asyncio.sleep(60)

@pytest.mark.asyncio
async def test_held(off):
    await asyncio.sleep(0)
    assert mode() == OFF

@pytest.mark.asyncio
async def test_leaky(leaky):
    assert mode() == ON

@pytest.mark.asyncio
async def test_leak():
    await asyncio.sleep(0)
    torch.set_grad_enabled(False)  # here

@pytest.mark.asyncio
async def test_task():
    global task
    task = asyncio.ensure_future(waiting())
    await asyncio.sleep(0)

@pytest.mark.asyncio
async def test_fine():
    with torch.no_grad():
        await asyncio.sleep(0)
"""
    result = run(source + NEXT)
    result.assert_outcomes(passed=6, warnings=3)
    assert reported(result) == ["fixture 'leaky' (scope: function)", "test_leak", "test_task"]
    result.stdout.fnmatch_lines(
        [
            f"*test_it.py:{line(source)}: GradModeWarning: test_leak left *",
            f"*test_it.py:{line(source, '# waiting')}: GradModeWarning: test_task left *",
        ]
    )


def test_tests_that_run_in_other_threads(run):
    """A test that a plugin runs in a thread of its own cannot leak; fixtures and the next can."""
    result = run(
        """
@pytest.fixture
def off():
    torch.set_grad_enabled(False)

def test_own_thread(off):
    assert mode() == ON  # each thread starts so
    torch.set_grad_enabled(False)

def test_other():
    torch.set_grad_enabled(False)
""",
        conftest="""
import threading
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if "thread" in pyfuncitem.name:
        args = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        thread = threading.Thread(target=pyfuncitem.obj, kwargs=args)
        thread.start()
        thread.join()
        return True
""",
    )
    result.assert_outcomes(passed=2, warnings=2)
    assert reported(result) == ["fixture 'off' (scope: function)", "test_other"]


def test_what_a_conftest_switches_around_tests_is_not_looked_at(run):
    """A hook of the suite that switches the mode for its tests is no test and no fixture."""
    result = run(
        """
@pytest.fixture
def nothing():
    assert mode() == OFF
    yield

def test_a(nothing):
    assert mode() == OFF

def test_b():
    assert mode() == OFF
    torch.set_grad_enabled(True)

def test_c():
    assert mode() == OFF
    torch._C._set_grad_enabled(True)
""",
        conftest="""
import pytest, torch

@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup():
    torch.set_grad_enabled(False)
    return (yield)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    torch.set_grad_enabled(False)
    return (yield)
""",
    )
    assert not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    result.assert_outcomes(passed=3, warnings=2)
    assert reported(result) == ["test_b", "test_c"]


def test_a_fixture_torn_down_by_another_thread_is_left_alone():
    """Modes of two threads are not compared."""
    scope = _pytest_scopes.enter()
    try:
        found = []
        thread = threading.Thread(target=lambda: found.append(_pytest_scopes.leave(scope)))
        thread.start()
        thread.join()
        assert found == [None]
    finally:
        assert _pytest_scopes.leave(scope) is None


def test_an_inference_guard_that_is_dropped_later(run):
    """As one that a failed test's traceback holds: a later test's mode does not change by that."""
    result = run(
        """
kept = []

def test_leaks():
    kept.append(torch.inference_mode())
    kept[0].__enter__()

@pytest.fixture(scope="module")
def off():
    with torch.no_grad():
        yield

def test_held(off):
    kept.clear()
    assert mode() == OFF
"""
    )
    result.assert_outcomes(passed=2, warnings=1)
    assert reported(result) == ["test_leaks"]


def test_putting_back_is_no_switch_of_the_suites():
    """What the plugin does itself is not recorded for the fixtures around the test."""
    outer = _pytest_scopes.enter()
    with torch.no_grad():
        held = outer.last_switch()
        inner = _pytest_scopes.enter()
        guard = torch.inference_mode()
        guard.__enter__()
        assert _pytest_scopes.leave(inner) is not None
        assert outer.last_switch() == held
    assert _pytest_scopes.leave(outer) is None


def test_the_outermost_within_answers_for_what_ends_before_it():
    """Of fixtures that hold modes within each other, whichever ends first."""
    scopes = []
    for grad in (False, True, False):
        scopes.append(_pytest_scopes.enter())
        torch.set_grad_enabled(grad)
        _pytest_scopes.hold(scopes[-1])
    first, second, third = scopes
    assert _pytest_scopes.leave(first) is None
    torch.set_grad_enabled(True)
    assert _pytest_scopes.leave(third) is None
    assert _pytest_scopes.leave(second) is None


def test_xdist(pytester):
    """Under -n 2 each worker reports its tests', and puts back."""
    pytester.makeini(INI)
    source = "\n@pytest.fixture\ndef off():\n    torch.set_grad_enabled(False)\n"
    source += "\n@pytest.mark.parametrize('n', range(4))\ndef test_leak(n):\n"
    source += "    assert mode() == ON\n    torch.set_grad_enabled(False)  # here\n"
    source += "\ndef test_fixture(off):\n    assert mode() == OFF\n"
    pytester.makepyfile(test_it=PRELUDE + source)
    result = pytester.runpytest_subprocess(
        "-n", "2", "-p", "no:cacheprovider", "-p", "no:randomly", "--gradguard=warn"
    )
    result.assert_outcomes(passed=5, warnings=5)
    result.stdout.fnmatch_lines([f"*test_it.py:{line(source)}: GradModeWarning: test_leak left *"])
    result.stdout.fnmatch_lines(["*GradModeWarning: fixture 'off' (scope: function) left *"])


NO_TORCH = """
import sys, types
import pytest

def test_nothing_imports_torch():
    assert "torch" not in sys.modules
    assert "gradguard._core.state" not in sys.modules

def test_stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))

def test_after_the_stand_in():
    assert "torch" not in sys.modules

def test_blocked(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)

@pytest.fixture(scope="module")
def off():
    global torch
    import torch
    with torch.no_grad():
        yield

def test_first_import():
    import torch
    torch.set_grad_enabled(False)

def test_next():
    import torch
    assert torch.is_grad_enabled()

def test_seen_from_now_on():
    import torch
    torch.set_grad_enabled(False)

def test_held(off):
    assert not torch.is_grad_enabled()
"""
AFTERWARDS = """
import sys
import pytest
code = pytest.main(["-p", "no:cacheprovider", "-p", "no:randomly", "--gradguard=warn", "test_no_torch.py"])
import torch
print("code", int(code))
guards = torch.no_grad, torch.enable_grad, torch.inference_mode, torch.set_grad_enabled
print("replaced", [value for guard in guards for value in vars(guard).values()
    if "gradguard" in str(getattr(value, "__globals__", {}).get("__name__"))])
"""


def test_torch_is_never_imported_by_the_plugin(pytester):
    """A suite without torch stays so; one test's own import is seen afterwards; all is undone."""
    pytester.makeini(INI)
    pytester.makepyfile(test_no_torch=NO_TORCH)
    result = pytester.runpython(pytester.makepyfile(afterwards=AFTERWARDS))
    result.stdout.fnmatch_lines(
        [
            "*GradModeWarning: test_first_import left grad mode off; *",
            "*Switched at *test_no_torch.py:* in test_first_import: *",
            "*Switched at *test_no_torch.py:* in test_seen_from_now_on: *",
            "*8 passed, 2 warnings*",
            "code 0",
            "replaced []",
        ]
    )


def test_a_stand_in_for_torch_is_not_torch(monkeypatch):
    """A module that a suite puts in torch's place is left alone, as is none."""
    monkeypatch.setattr(_pytest_scopes, "_side", None)
    for stand_in in (types.ModuleType("torch"), None):
        monkeypatch.setitem(sys.modules, "torch", stand_in)
        assert _pytest_scopes._torch_side() is None


def test_importing_the_plugin_imports_no_torch():
    """Nor does anything that it needs before torch is there."""
    code = "import gradguard._pytest.plugin, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What it replaces


@pytest.fixture
def switching():
    """Let a test put the patches on and off; afterwards they are as before."""
    active = _pytest_watch._patches.active
    yield _pytest_watch
    _pytest_watch.stop()
    if active:
        _pytest_watch.start()


class Subclass(torch.no_grad):
    pass


def block(x):
    with torch.no_grad():
        return x * 2


def inference(x):
    with torch.inference_mode():
        y = x * 2
        torch._dynamo.graph_break()
        return y, x * 3


@torch.no_grad()
def decorated(x):
    return x * 2


def statement(x):
    torch.set_grad_enabled(False)
    y = x * 2
    torch.set_grad_enabled(True)
    return y


KEPT = torch.no_grad()


def stored(x):
    with KEPT:
        y = x * 2
    return y, x * 3


def subclass(x):
    with Subclass():
        y = x * 2
    return y, x * 3


def ours(x):
    with gradguard.no_grad():
        y = x * 2
        torch._dynamo.graph_break()
    return y, decorated(x)


OUR_KEPT = gradguard.no_grad()


def our_stored(x):
    with OUR_KEPT:
        y = x * 2
    return y, x * 3


def compiled(fn):
    """Compile and run; return how much was compiled, how often, and where the graph broke."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    run = torch.compile(fn, backend=counter)
    for size in (2, 2, 3):
        run(torch.ones(size, requires_grad=True))
    with torch.no_grad():
        run(torch.ones(2))
    breaks = sorted((why[:40], n) for why, n in counters["graph_break"].items())
    frames = dict(counters["frames"])
    torch._dynamo.reset()
    return counter.frame_count, counter.op_count, breaks, frames


PROGRAMS = [block, inference, decorated, statement, stored, subclass, ours, our_stored]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_compiling_is_as_without_the_plugin(switching, program):
    """The same graphs, breaks and recompiles, also where a guard breaks the graph."""
    switching.stop()
    plain = compiled(program)
    switching.start()
    scope = _pytest_scopes.enter()
    watched = compiled(program)
    assert _pytest_scopes.leave(scope) is None
    assert watched == plain


@pytest.mark.parametrize("program", [block, decorated, statement])
def test_fullgraph(switching, program):
    """Nothing breaks a graph that must be whole."""
    switching.stop()
    switching.start()
    scope = _pytest_scopes.enter()
    torch._dynamo.reset()
    x = torch.ones(2, requires_grad=True)
    assert not torch.compile(program, backend="eager", fullgraph=True)(x).requires_grad
    assert _pytest_scopes.leave(scope) is None
    torch._dynamo.reset()


def scripted(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return x * 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_compiles_the_guards(switching):
    """TorchScript reads the source of the guards' methods, which is still torch's."""
    switching.stop()
    switching.start()
    assert not torch.jit.script(scripted)(torch.ones(1, requires_grad=True)).requires_grad


def test_replacing_is_undone(switching):
    """What was there comes back, unless somebody else has replaced it since; torch._C stays."""
    switching.stop()
    owners = (torch.no_grad, torch.set_grad_enabled, torch.inference_mode)
    before = [dict(vars(owner)) for owner in owners]
    raw = torch._C._set_grad_enabled, torch._C._InferenceMode
    switching.start()
    assert vars(torch.no_grad)["__enter__"] is not before[0]["__enter__"]
    assert torch.no_grad.__enter__.__wrapped__ is before[0]["__enter__"]
    assert (torch._C._set_grad_enabled, torch._C._InferenceMode) == raw
    theirs = torch.no_grad.__exit__ = lambda self, *exc: before[0]["__exit__"](self, *exc)
    switching.stop()
    assert torch.no_grad.__exit__ is theirs
    torch.no_grad.__exit__ = before[0]["__exit__"]
    assert [dict(vars(owner)) for owner in owners] == before


def test_replacing_lasts_as_long_as_any_session(switching, monkeypatch):
    """A suite that runs pytest within its own process goes on being watched."""
    switching.stop()
    monkeypatch.setattr(_pytest_scopes, "_side", None)
    _pytest_scopes.begin_session()
    assert _pytest_scopes._torch_side() is _pytest_watch
    _pytest_scopes.begin_session()
    _pytest_scopes.end_session()
    assert _pytest_watch._patches.active
    _pytest_scopes.end_session()


def test_nothing_is_recorded_outside_of_tests_and_fixtures(switching, monkeypatch):
    """A thread of the suite's, say, pays for one more call, and that is all."""
    switching.stop()
    switching.start()
    monkeypatch.setattr(switching, "_watch", lambda *_: pytest.fail("recorded"))
    modes = []

    def work():
        with torch.no_grad(), gradguard.inference_mode():
            modes.append(gradguard.grad_state())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert modes == [(False, True)]


def test_a_guards_errors_come_out_as_they_were(switching):
    """A wrong argument of set_grad_enabled, say; and what follows is recorded again."""
    switching.stop()
    switching.start()
    scope = _pytest_scopes.enter()
    with pytest.raises(TypeError):
        torch.set_grad_enabled("no")
    torch.set_grad_enabled(False)
    leak = _pytest_scopes.leave(scope)
    assert leak is not None
    assert leak.switch is not None
    assert leak.switch.function == "test_a_guards_errors_come_out_as_they_were"


# Texts


def test_a_long_value_stays_on_one_line():
    """Names and values are the user's, and may be anything."""
    with pytest.raises(pytest.UsageError) as caught:
        _plugin._mode("x\n" * 1000, "off")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_leak_can_be_reported_of_a_callable_without_code():
    """A fixture may be any callable: then the file of its node is the place."""
    net = nn.Identity()

    class Node:
        path = "somewhere/test_x.py"

    class Request:
        node = Node()

    class Definition:
        argname, scope, func = "net", "function", net

    leak = _pytest_scopes.Leak((True, False), (False, False), None, [])
    subject = _pytest_report.of_fixture(Request(), Definition(), leak)
    with pytest.warns(GradModeWarning, match="fixture 'net'") as caught:
        _pytest_report.report(leak, subject, failing=False)
    assert (caught[0].filename, caught[0].lineno) == ("somewhere/test_x.py", 1)

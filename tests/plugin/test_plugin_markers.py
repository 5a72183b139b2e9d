"""The marker of the pytest plugin: its advice for fixtures of every scope, and one too many."""

import re
import warnings

import pytest
from asyncio_ini import LOOP_SCOPE

# pytester forgets what its runs import, and torch cannot come twice in one process.
from gradguard._pytest import mode_changes as _hooks  # noqa: F401

WIDE = """
import pytest, torch
{pytestmark}
@pytest.fixture(scope="{scope}")
def off():
    torch.set_grad_enabled(False)  # here
    yield

{on_class}
class TestIt:
    {on_test}
    def test_it(self, off):
        assert not torch.is_grad_enabled()

def test_other():
    pass
"""
MARK = '@pytest.mark.leaks_grad_mode(reason="...")'


@pytest.fixture
def run(pytester):
    """Run pytest over one test file within this process."""
    pytester.makeini(f"[pytest]\n{LOOP_SCOPE}")

    def run(source, *args):
        pytester.makepyfile(test_it=source)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            return pytester.runpytest_inprocess(
                "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers", *args
            )

    return run


def wide(scope, pytestmark="", on_class="", on_test=""):
    return WIDE.format(scope=scope, pytestmark=pytestmark, on_class=on_class, on_test=on_test)


@pytest.mark.parametrize(
    ("scope", "advice", "place"),
    [
        ("function", f"mark the test {MARK}", "on_test"),
        ("class", f"mark the class {MARK}", "on_class"),
        ("module", f"put `pytestmark = {MARK[1:]}` at the top of the test file", "pytestmark"),
        ("package", f"mark the tests that use it {MARK}", "on_test"),
        ("session", f"mark the tests that use it {MARK}", "on_test"),
    ],
)
def test_the_advice_works_to_the_letter(run, scope, advice, place):
    """What the message says silences the fixture of each scope, and is then no marker too many."""
    told = run(wide(scope), "--gradguard=warn")
    told.assert_outcomes(passed=2, warnings=1)
    assert f"where the leak is meant, {advice}." in told.stdout.str()
    written = f"pytestmark = {MARK[1:]}" if place == "pytestmark" else MARK
    followed = run(wide(scope, **{place: written}), "--gradguard=error")
    followed.assert_outcomes(passed=2)
    assert "remove" not in followed.stdout.str()


def test_a_test_that_uses_a_wide_fixture_later(run):
    """The marker counts on whichever test uses the fixture, not only on the one that set it up."""
    result = run(
        f"""
import pytest, torch

@pytest.fixture(scope="module")
def off():
    torch.set_grad_enabled(False)

def test_first(off):
    pass

{MARK}
def test_second(off):
    pass
""",
        "--gradguard=error",
    )
    result.assert_outcomes(passed=2)


def test_a_marked_test_that_does_not_use_it(run):
    """It says nothing about the fixture."""
    source = wide("session") + f"\n{MARK}\ndef test_marked():\n    torch.set_grad_enabled(False)\n"
    result = run(source, "--gradguard=error")
    result.assert_outcomes(passed=3, errors=1)


NEEDLESS = f"""
import pytest, torch

{MARK}
def test_needless():
    pass

{MARK}
@pytest.mark.parametrize("off", [True, False])
def test_one_case_needs_it(off):
    if off:
        torch.set_grad_enabled(False)

{MARK}
class TestNeedless:
    def test_it(self):
        pass

{MARK}
def test_fails():
    assert 0

{MARK}
@pytest.mark.xfail
def test_xfails():
    assert 0

{MARK}
def test_skipped():
    pytest.skip("today")

{MARK}
def test_needs_it():
    torch.set_grad_enabled(False)
"""


def removed(result):
    """List what the summary tells to remove."""
    said = re.search(r"\((\d+)\); remove them:\n((?:  .*\n)+)", result.stdout.str())
    if said is None:
        return []
    names = said[2].split()
    assert len(names) == int(said[1])
    return names


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_marker_that_is_no_longer_needed_is_told(run, workers):
    """Those of tests that passed without leaving anything changed; under xdist as well."""
    result = run(NEEDLESS, "--gradguard=error", *workers)
    result.assert_outcomes(passed=5, failed=1, skipped=1, xfailed=1)
    assert removed(result) == ["test_it.py::TestNeedless", "test_it.py::test_needless"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("-k", "TestNeedless"), []),
        (("test_it.py::TestNeedless::test_it",), []),
        (("test_it.py::test_needless",), ["test_it.py::test_needless"]),
        (("-x", "--deselect=test_it.py::test_needs_it"), ["test_it.py::test_needless"]),
    ],
)
def test_a_wide_marker_is_not_judged_by_a_part_of_its_tests(run, args, told):
    """Others under it may need it; a test's own marker is judged by that test."""
    assert removed(run(NEEDLESS, "--gradguard=warn", *args)) == told


def test_the_total(run):
    """The summary counts what was left changed, by what left it, and says so where nothing was."""
    result = run(
        wide("module") + "\ndef test_a():\n    torch.set_grad_enabled(True)\n", "--gradguard=warn"
    )
    result.stdout.fnmatch_lines(
        [
            "*= gradguard =*",
            "The grad mode was left changed, and was put back: 1 by fixtures, 1 by tests.",
        ]
    )
    fine = run("import torch\ndef test_a():\n    pass\n", "--gradguard=warn")
    fine.stdout.fnmatch_lines(["gradguard: no test, fixture or import left the grad mode changed."])
    quiet = run("import torch\ndef test_a():\n    pass\n", "--gradguard=warn", "-q")
    assert "gradguard" not in quiet.stdout.str()


def test_a_suite_without_torch_is_told_so(pytester):
    """Nothing was checked, which is not the same as nothing found."""
    pytester.makepyfile("def test_a():\n    pass\n")
    result = pytester.runpytest_subprocess("--gradguard=warn", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(
        ["gradguard: torch was not imported, so there was nothing to check."]
    )

"""The pytest plugin on what test modules and conftest.py switch while they are imported."""

import warnings

import pytest
import torch
from asyncio_ini import LOOP_SCOPE

# pytester forgets what its runs import, and torch cannot come twice in one process.
from gradguard._pytest import mode_changes as _hooks  # noqa: F401

IMPORTS_OFF = "import torch\ntorch.set_grad_enabled(False)  # here\n"
ON = "import torch\ndef test_on():\n    assert torch.is_grad_enabled()\n"


@pytest.fixture
def run(pytester):
    """Run pytest over the files: within this process, or in a new one without torch as yet."""
    pytester.makeini(f"[pytest]\n{LOOP_SCOPE}")

    def run(*args, mode="warn", new_process=False):
        started = pytester.runpytest_subprocess if new_process else pytester.runpytest_inprocess
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            return started(
                "-p", "no:cacheprovider", "-p", "no:randomly", f"--gradguard={mode}", *args
            )

    return run


def test_the_import_of_a_test_module_is_reported_at_its_line(run, pytester):
    """Also where it is the module that imports torch; the next module starts right."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}def test_a():\n    assert torch.is_grad_enabled()\n")
    pytester.makepyfile(test_b=ON)
    result = run(new_process=True)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            (
                "*test_a.py:2: GradModeWarning: the import of test_a.py left grad mode off; grad "
                "mode was on before it."
            ),
            "*Switched at *test_a.py:2 in <module>: torch.set_grad_enabled(False)  # here",
            '*@pytest.fixture(autouse=True, scope="module")',
            "*The mode has been put back.",
        ]
    )
    result.stdout.fnmatch_lines(["The grad mode was left changed, and was put back: 1 by imports."])


def test_with_error_it_is_a_collection_error(run, pytester):
    """It has the file and line; the tests of the other files are collected."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}def test_a():\n    pass\n", test_b=ON)
    result = run("--continue-on-collection-errors", mode="error")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR collecting test_a.py*",
            "test_a.py:2: in <module>",
            "*torch.set_grad_enabled(False)  # here",
            "E   gradguard.GradLeakError: the import of test_a.py left grad mode off; *",
        ]
    )


def test_warnings_that_are_errors_make_it_one_too(run, pytester):
    """As for a test."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}def test_a():\n    pass\n")
    result = run("-W", "error::gradguard.GradModeWarning")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E   gradguard.GradModeWarning: the import of test_a.py left *"])


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_an_import_that_fails_anyway(run, pytester, mode):
    """Its own error is shown, and what it left switched is put back and told besides."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}raise ValueError('broken')\n", test_b=ON)
    result = run("--continue-on-collection-errors", mode=mode)
    result.assert_outcomes(passed=1, errors=1, warnings=1)
    result.stdout.fnmatch_lines(["E   ValueError: broken"])
    result.stdout.fnmatch_lines(["*GradModeWarning: the import of test_a.py left *"])


def test_an_import_that_fails_where_warnings_are_errors(run, pytester):
    """Then the leak stands in a section of the same report."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}raise ValueError('broken')\n")
    result = run("-W", "error::gradguard.GradModeWarning")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["E   ValueError: broken", "*- gradguard -*", "the import of test_a.py left *"]
    )


@pytest.mark.parametrize("where", ["conftest.py", "inner/conftest.py"])
def test_the_import_of_a_conftest_is_reported(run, pytester, where):
    """That of the root, which is imported before the collection, and one in a folder."""
    pytester.mkdir("inner")
    pytester.path.joinpath("inner/test_b.py").write_text(ON)
    pytester.path.joinpath(where).write_text(IMPORTS_OFF)
    pytester.makepyfile(test_a=ON)
    result = run(new_process=True)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [f"*conftest.py:2: GradModeWarning: the import of {where} left grad mode off; *"]
    )
    failed = run(mode="error")
    failed.stdout.fnmatch_lines(["E   gradguard.GradLeakError: the import of *conftest.py left *"])
    failed.assert_outcomes(errors=1)


def test_a_helper_that_a_test_module_imports(run, pytester):
    """What switched it is named, though the import is the test module's."""
    pytester.makepyfile(helper=IMPORTS_OFF)
    pytester.makepyfile(test_a="import helper\ndef test_a():\n    pass\n")
    result = run()
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*helper.py:2: GradModeWarning: the import of test_a.py left *"])


def test_the_advice_followed_to_the_letter(run, pytester):
    """The fixture of the message gives the file's tests the mode, and nothing is reported."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}def test_a():\n    pass\n")
    lines = run().stdout.lines
    start = next(at for at, line in enumerate(lines) if "@pytest.fixture(autouse" in line)
    pasted = "\n".join(line[6:] for line in lines[start : start + 4])
    source = f"import pytest\nimport torch\n\n{pasted}\n\ndef test_a():\n"
    pytester.makepyfile(test_a=f"{source}    assert not torch.is_grad_enabled()\n", test_b=ON)
    result = run(mode="error")
    result.assert_outcomes(passed=2)


def test_a_modules_own_marker_silences_its_import(run, pytester):
    """`pytestmark` says that it is meant; the mode is put back all the same."""
    mark = 'import pytest\npytestmark = pytest.mark.leaks_grad_mode(reason="meant")\n'
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}{mark}{ON}")
    result = run(mode="error")
    result.assert_outcomes(passed=1)


def test_what_a_hook_switches_for_all_tests_is_no_import(run, pytester):
    """Such a suite has decided about its mode: pytest_configure is no import."""
    pytester.makeconftest(
        "import torch\ndef pytest_configure():\n    torch.set_grad_enabled(False)\n"
    )
    pytester.makepyfile(
        test_a="import torch\ndef test_off():\n    assert not torch.is_grad_enabled()\n"
    )
    result = run(mode="error")
    torch.set_grad_enabled(True)
    result.assert_outcomes(passed=1)


def test_under_xdist_each_import_is_reported_once_a_worker(run, pytester):
    """Workers import for themselves; what they found is added up."""
    pytester.makepyfile(test_a=f"{IMPORTS_OFF}def test_a():\n    pass\n")
    pytester.makepyfile(test_b=ON)
    result = run("-n", "2")
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(["*was put back: 2 by imports."])

"""The pytest plugin "gradguard": no test leaves its grad mode to the next.

It is off until asked for (``--gradguard=warn|error``, or ``gradguard = warn`` in the ini file):
installing gradguard changes nobody's suite. Then a test, a fixture after its tear-down, or the
import of a test module or conftest.py that left the grad or inference mode of its thread other than
it found it is reported under its own name, at the line of the switch, and the mode is put back.
Reporting is a `GradModeWarning` in pytest's summary, or with ``--gradguard=error`` a failure of the
test, an error of the fixture's tear-down or a collection error. As any warning, it is an exception
where ``filterwarnings`` has ``error``. Of a test that failed or was skipped anyway, the leak is a
warning in both modes. The plugin never imports torch itself.
"""

import pytest

_MODES = ("warn", "error", "off")
_HELP = (
    "What to do about a test, fixture or import that leaves the grad mode changed: warn, error or "
    "off (the default). The mode is put back in any case, unless it is off."
)
_MARKER = (
    "leaks_grad_mode(reason=...): this test leaves the grad mode changed on purpose; gradguard "
    "puts it back and says nothing."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini value it falls back to."""
    group = parser.getgroup("gradguard")
    group.addoption("--gradguard", metavar="MODE", default=None, help=_HELP)
    parser.addini("gradguard", _HELP, type="string", default="off")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin before the first conftest.py is imported, which may be the one that leaks."""
    _begin(early_config, early_config.known_args_namespace.gradguard)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, also where the checks are off: suites have strict markers."""
    config.addinivalue_line("markers", _MARKER)
    _begin(config, config.getoption("gradguard"))


def _begin(config: pytest.Config, option: str | None) -> None:
    mode = _mode(option, config.getini("gradguard"))
    if mode == "off" or config.pluginmanager.has_plugin("gradguard-checks"):
        return
    from gradguard._pytest.checks import register  # who did not ask imports nothing

    register(config, mode)


def _mode(option: str | None, ini: str) -> str:
    mode = ini if option is None else option
    if mode not in _MODES:
        from gradguard._core.text import one_line

        setting = "ini option gradguard" if option is None else "--gradguard"
        msg = f"{setting} = {one_line(mode)!r} is not one of {', '.join(_MODES)}."
        raise pytest.UsageError(msg)
    return mode

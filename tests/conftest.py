"""What the whole suite shares."""

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

# No test is a timed one: machines are shared, and torch compiles on first use.
settings.register_profile("gradguard", deadline=None)
settings.load_profile("gradguard")

# Files whose tests leave the mode switched on purpose; a fixture of theirs puts it back.
LEAK_ON_PURPOSE = {"test_demo.py", "test_faults.py", "test_locate.py", "test_trace.py"}


def pytest_collection_modifyitems(config, items):
    """Tell gradguard's own plugin, if it is on, that these are meant."""
    for item in items if config.pluginmanager.hasplugin("gradguard") else []:
        if item.path.name in LEAK_ON_PURPOSE:
            item.add_marker(pytest.mark.leaks_grad_mode(reason="it is about what is left"))

"""What the whole suite shares."""

from hypothesis import settings

pytest_plugins = ["pytester"]

# No test is a timed one: machines are shared, and torch compiles on first use.
settings.register_profile("gradguard", deadline=None)
settings.load_profile("gradguard")


def pytest_configure(config):
    """Know the marker of gradguard's plugin also where the plugin is left out."""
    config.addinivalue_line(
        "markers", "leaks_grad_mode(reason): the test leaves the grad mode switched on purpose"
    )

"""What the whole suite shares."""

from hypothesis import settings

pytest_plugins = ["pytester"]

# No test is a timed one: machines are shared, and torch compiles on first use.
settings.register_profile("gradguard", deadline=None)
settings.load_profile("gradguard")

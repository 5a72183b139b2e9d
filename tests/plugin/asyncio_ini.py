"""What an ini file says to pytest-asyncio, which from 0.24 on warns where it is not said."""

from importlib.metadata import version

_KNOWS = tuple(map(int, version("pytest-asyncio").split(".")[:2])) >= (0, 24)
LOOP_SCOPE = "asyncio_default_fixture_loop_scope = function\n" if _KNOWS else ""

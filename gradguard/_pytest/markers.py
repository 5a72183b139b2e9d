"""Which leaks the marker ``leaks_grad_mode`` silences, and which markers silence none."""

import pytest

from gradguard._pytest.summary import Summary

_NAME = "leaks_grad_mode"


class Users:
    """A fixture that is set up, and the markers of the tests that use it.

    The node of a wide fixture is a class, a module or the session: a marker on a test that uses it
    is none of that node's, and is meant all the same.
    """

    def __init__(self, fixture: str, markers: set[str]) -> None:
        self.fixture = fixture
        self.markers = markers


class Markers:
    """The markers of the tests that run."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._item: pytest.Item | None = None
        self._set_up: list[Users] = []

    def begin(self, item: pytest.Item) -> None:
        """Note which of the fixtures that are set up already the test uses."""
        self._item = item
        if markers := self._of(item):
            for users in self._set_up:
                if users.fixture in getattr(item, "fixturenames", ()):
                    users.markers |= markers

    def users(self, fixture: str) -> Users:
        """Begin to note which marked tests use a fixture, the one that sets it up first."""
        users = Users(fixture, set() if self._item is None else self._of(self._item))
        self._set_up.append(users)
        return users

    def forget(self, users: Users) -> None:
        """End it: the fixture is torn down."""
        if users in self._set_up:
            self._set_up.remove(users)

    def silence(self, node: pytest.Item | pytest.Collector, users: Users | None = None) -> bool:
        """Tell whether a leak is marked, and note that its markers are needed."""
        markers = self._of(node) | (set() if users is None else users.markers)
        self._summary.markers_used |= markers
        return bool(markers)

    def went(self, item: pytest.Item, *, passed: bool) -> None:
        """Note how a part of a test went."""
        markers = self._of(item)
        (self._summary.markers_passed if passed else self._summary.markers_failed).update(markers)

    def _of(self, node: pytest.Item | pytest.Collector) -> set[str]:
        """Name the places that are marked, a parametrised test as one."""
        marked = [at for at, _ in node.iter_markers_with_node(_NAME)]
        names = {at: at.nodeid.partition("[")[0] for at in marked}
        self._summary.wide_markers |= {
            name for at, name in names.items() if not isinstance(at, pytest.Item)
        }
        return set(names.values())

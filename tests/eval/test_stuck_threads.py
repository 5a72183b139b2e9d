"""Whether threads go on or wait: what is asked before somebody goes on behind a stuck one."""

import hashlib
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from gradguard._eval.stuck_threads import Looks, Thread

LOOKS = 150  # more than any thread is looked at before it counts as stuck
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="the system does not tell of threads"
)


@contextmanager
def running(body):
    """Run a body in a thread of its own until the end of the block, which gets its numbers."""
    begun, end = threading.Event(), threading.Event()

    def run():
        begun.set()
        body(end)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield Thread(thread.ident, thread.native_id)
    finally:
        end.set()
        thread.join()


def wait(end):
    end.wait()


def compute(end):
    data = bytes(1 << 20)  # for which hashlib lets other threads have Python's lock
    while not end.is_set():
        hashlib.sha256(data)


def count(end):
    number = 0
    while not end.is_set():
        number += 1


def looks_until_stuck(thread, waiting=()):
    """The fewest of three times: a thread that begins or ends in between counts, too."""
    times = []
    for looks in (Looks(), Looks(), Looks()):
        times += [n for n in range(LOOKS) if looks.is_stuck(thread, waiting)][:1]
    return min(times, default=None)


def test_a_thread_that_waits_for_ever_is_stuck():
    """One that nobody in the process could wake is told after a few looks."""
    with running(wait) as thread:
        assert looks_until_stuck(thread) is not None


@pytest.mark.parametrize("body", [compute, count])
def test_a_thread_that_computes_is_not(body):
    """Neither in C nor in Python, however little of the processor it gets."""
    with running(body) as thread:
        assert looks_until_stuck(thread) is None


def test_one_that_another_might_wake_is_stuck_later():
    """While a third thread computes it may come and wake it: that takes ten times as many looks."""
    with running(wait) as thread:
        alone = looks_until_stuck(thread)
        with running(compute):
            assert looks_until_stuck(thread) > 5 * alone


def test_threads_that_only_look_do_not_count():
    """What else waits behind the stuck thread, and computes nothing but that, wakes nobody."""
    with running(wait) as thread:
        alone = looks_until_stuck(thread)
        with running(compute) as looking:
            assert looks_until_stuck(thread, [looking]) == alone


def test_only_one_goes_on_at_a_time():
    """Who has looked as long as the one that went on begins anew."""
    with running(wait) as thread:
        one, two = Looks(), Looks()
        for _ in range(LOOKS):
            gone_on = [one.is_stuck(thread, ()), two.is_stuck(thread, ())]
            if any(gone_on):
                break
        assert sum(gone_on) == 1
        first, second = (one, two) if gone_on[0] else (two, one)
        assert not second.is_stuck(thread, ())
        assert first.is_stuck(thread, ())  # until the thread goes on
        assert any(second.is_stuck(thread, ()) for _ in range(LOOKS))


def test_a_thread_that_has_ended_is_stuck():
    """Its turn is never ended by itself: an interrupt has taken it away in the midst."""
    with running(wait) as thread:
        pass
    assert looks_until_stuck(thread) is not None

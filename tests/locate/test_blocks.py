"""Which blocks lie around an instruction: syntax alone, checked against what really is open."""

import ast
import inspect
import linecache
import sys
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from gradguard._locate.blocks import (
    Position,
    _parse,
    _scope,
    calls_before,
    open_items,
    position,
    scope_of,
)

names = count()


class Manager:
    """A context manager that keeps a list of those that are open."""

    opened: list[int] = []  # noqa: RUF012 - emptied by each run

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        self.opened.append(self.number)

    def __exit__(self, *_):
        assert self.opened.pop() == self.number


def seen_at(frame, *, columns=True):
    """Return the numbers of the managers that the syntax says are open, outermost first."""
    code = frame.f_code
    at = position(code, frame.f_lasti, frame.f_lineno)
    if not columns:
        at = Position(at.line, None)
    items = open_items(scope_of(code, frame.f_globals), at)
    return [ast.literal_eval(item.context_expr.args[0]) for item in items][::-1]


def run(source, **given_names):
    """Run source that linecache knows."""
    filename = f"<blocks {next(names)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        exec(compile(source, filename, "exec"), {"Manager": Manager, **given_names})  # noqa: S102
    finally:
        del linecache.cache[filename]


def indent(lines):
    return [f"    {line}" for line in lines]


def written(draw, depth, numbers):
    """Write a random block of statements; each `look()` is to find what is open there."""
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.integers(0, 9)) if depth else 0
        inner = [] if kind == 0 else written(draw, depth - 1, numbers)
        one, two, three = (f"Manager({next(numbers)})" for _ in "abc")
        lines += {
            0: lambda: ["look()"],
            1: lambda one=one, inner=inner: [f"with {one}:", *indent(inner)],
            2: lambda one=one, two=two, inner=inner: [f"with {one}, {two} as x:", *indent(inner)],
            3: lambda one=one, two=two, inner=inner: [
                "with (", f"    {one},", f"    {two},", "):", *indent(inner),
            ],
            4: lambda one=one, two=two: [f"with {one}, {two}: look(); [look() for _ in 'ab']"],
            5: lambda inner=inner: ["for _ in 'ab':", *indent(inner)],
            6: lambda one=one, inner=inner: [
                "try:", f"    with {one}:", *indent(indent(inner)), "        raise KeyError",
                "except KeyError:", "    look()", "finally:", "    look()",
            ],
            7: lambda inner=inner: ["def f():", *indent(inner), "f()"],
            8: lambda inner=inner, one=one: ["class C:", f"    with {one}:", *indent(indent(inner))],
            9: lambda one=one, two=two, three=three, inner=inner: [
                f"with {one}, \\", f"     {two}, {three}:", *indent(inner),
            ],
        }[kind]()  # fmt: skip
    return lines


@st.composite
def programs(draw):
    return "\n".join(written(draw, 3, count())) + "\n"


def own(frame):
    """Return how many of the open managers were entered by this frame, not by its callers."""
    outer, total = frame.f_back, 0
    while outer.f_code.co_filename == frame.f_code.co_filename:
        total += len(seen_at(outer))
        outer = outer.f_back
    return Manager.opened[total:]


@settings(deadline=None, max_examples=60)  # a busy machine is no failure
@given(programs())
def test_open_items_are_what_is_open_whatever_the_nesting(source):
    """At any line of any program the items found are the managers that really are open."""

    def look():
        frame = sys._getframe(1)
        while frame.f_code.co_name.startswith("<") and frame.f_code.co_name != "<module>":
            frame = frame.f_back  # a comprehension, where it has a frame of its own
        assert seen_at(frame) == own(frame)

    run(source, look=look)
    assert Manager.opened == []


@settings(deadline=None, max_examples=60)  # a busy machine is no failure
@given(programs())
def test_lines_alone_do_where_python_keeps_no_columns(source):
    """As Python 3.10, and as any with `-X no_debug_ranges`: the line finds the same blocks."""

    def look():
        frame = sys._getframe(1)
        while frame.f_code.co_name.startswith("<") and frame.f_code.co_name != "<module>":
            frame = frame.f_back
        assert seen_at(frame, columns=False) == own(frame)

    run(source, look=look)


def test_position_falls_back_to_the_line():
    """Code without columns, and a frame that has not begun, are placed by their line alone."""
    code = compile("x = 1\n", "<none>", "exec")
    assert position(code, -1, 7) == Position(7, None)
    if sys.version_info >= (3, 11):
        assert position(code, 2, 7) == Position(1, 4)
        assert position(code.replace(co_linetable=b""), 2, 7) == Position(7, None)


def test_header_lines_of_a_multi_line_with_open_what_comes_before():
    """By lines alone, the line of an item lies inside the items before it."""
    source = "with (\n    one(),\n    two(),\n):\n    pass\n"
    scope = ast.parse(source)
    found = {
        line: [ast.unparse(item.context_expr) for item in open_items(scope, Position(line, None))]
        for line in (1, 2, 3, 5)
    }
    assert found == {1: ["one()"], 2: [], 3: ["one()"], 5: ["two()", "one()"]}
    scope = ast.parse("with one(), two():\n    pass\n")
    (item,) = open_items(scope, Position(1, None))
    assert ast.unparse(item) == "one()"


def test_calls_before_come_with_the_blocks_that_have_ended():
    """A call inside an ended block is told with that block, and calls elsewhere do not count."""
    source = "a()\nwith b():\n    c()\nx = d()\nf(g())\nlambda: h()\nhere()\ni()\n"
    found = [
        (ast.unparse(call), [ast.unparse(block.items[0]) for block in ended])
        for call, ended in calls_before(ast.parse(source), Position(7, 0))
    ]
    assert found == [("f(g())", []), ("d()", []), ("c()", ["b()"]), ("a()", [])]


def test_only_a_few_sources_are_kept():
    """What is parsed for messages is bounded, whatever the number of files."""
    for number in range(100):
        run(f"x = {number}\nlook()\n", look=lambda: seen_at(inspect.currentframe().f_back))
    assert _parse.cache_info().currsize <= 8
    assert _scope.cache_info().currsize <= 32

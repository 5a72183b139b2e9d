"""Naming the line that switched the mode, on the call stack of a running program."""

import _thread
import asyncio
import contextlib
import doctest
import functools
import linecache
import sys
import textwrap
import threading
import types
import unittest.mock
import warnings
from pathlib import Path

import pytest
import torch
from torch import no_grad as quiet
from torch.utils._contextlib import context_decorator
from torch.utils.checkpoint import checkpoint

import gradguard
from gradguard import GradModeWarning
from gradguard._core.frames import Line, user_frame
from gradguard._core.guards import enable_grad, inference_mode, no_grad, set_grad_enabled
from gradguard._core.places import file_shown
from gradguard._core.state import GradState, grad_state
from gradguard._core.warning import warn
from gradguard._locate.blocks import UnreadableError
from gradguard._locate.enclosing import Block
from gradguard._locate.guard_expressions import Switch
from gradguard._locate.where import decisive, enclosing, where
from gradguard._locate.where_text import block_text

# What is left switched is what these tests are about; a fixture puts it back.
pytestmark = pytest.mark.leaks_grad_mode(reason="it is about what is left")

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


def marked(tag):
    """Return number and text of the line of this file that ends with the comment `# tag`."""
    number = next(n for n, line in enumerate(LINES, 1) if line.endswith(f"# {tag}"))
    return number, LINES[number - 1].strip()


def cause():
    """Return the block that decided the caller's mode."""
    return decisive(enclosing(sys._getframe(1)), grad_state())


def kinds(frame=None):
    """Return the guards around the caller that are in this file, innermost first."""
    found = enclosing(frame or sys._getframe(1))
    return [block.kind for block in found if block.filename in (__file__, "<cell>")]


def check(block, tag, kind, function):
    assert block is not None
    assert (block.lineno, block.source) == marked(tag)
    assert (block.kind, block.function, block.filename) == (kind, function, __file__)


# --- with blocks


def test_with_block_is_named_by_line_function_and_source():
    """A `with` block of a function further out is named in full."""

    def validate():
        with torch.no_grad():  # plain with
            return cause()

    check(validate(), "plain with", "torch.no_grad()", "validate")


def test_gradguard_and_torch_blocks_come_innermost_first():
    """Blocks of both libraries, several on one line, are told in the order of nesting."""
    with torch.no_grad(), enable_grad():
        with torch.inference_mode(mode=False), no_grad(), set_grad_enabled(True):
            assert kinds() == [
                "gradguard.set_grad_enabled(True)",
                "gradguard.no_grad()",
                "torch.inference_mode(False)",
                "gradguard.enable_grad()",
                "torch.no_grad()",
            ]


def test_item_of_a_multi_line_with_is_named_by_its_own_line():
    """In a `with` over several lines it is the guard's line that is named."""
    with (
        contextlib.nullcontext(),
        quiet(),  # second item
    ):
        check(cause(), "second item", "torch.no_grad()", sys._getframe().f_code.co_name)


class Looks:
    """A context manager that looks at what is around it."""

    def __enter__(self):
        self.entering = kinds(sys._getframe(1))

    def __exit__(self, *_):
        self.leaving = kinds(sys._getframe(1))


def test_only_the_items_already_entered_are_around_a_later_item():
    """An item's enter and exit lie inside the items before it, and not inside those after it."""
    before, after = Looks(), Looks()
    with torch.no_grad(), before:
        pass
    with after, torch.no_grad():
        pass
    assert (before.entering, before.leaving) == (["torch.no_grad()"], ["torch.no_grad()"])
    assert (after.entering, after.leaving) == ([], [])


def test_a_block_that_has_ended_or_not_begun_is_not_named():
    """Lines beside a block, and its own header, are not inside it."""
    with torch.no_grad():
        pass
    assert kinds() == []
    with torch.set_grad_enabled(bool(before := kinds()) or True):
        pass
    assert before == []
    with torch.no_grad():
        pass


def test_stored_guards_are_recognised_wherever_they_are_kept():
    """A guard in a local, an attribute, a class attribute or a closure is named by what it is."""
    guard, alias = torch.set_grad_enabled(True), torch
    holder = types.SimpleNamespace(guard=torch.inference_mode(mode=False))

    class Owner:
        guard = no_grad()

        def run(self):
            with self.guard, guard, alias.autograd.grad_mode.no_grad():
                return kinds()

    with holder.guard, (new := torch.enable_grad()):
        found = Owner().run()
    assert new is not None
    assert found == [
        "torch.no_grad()",
        "torch.set_grad_enabled(True)",
        "gradguard.no_grad()",
        "torch.enable_grad()",
        "torch.inference_mode(False)",
    ]


@pytest.mark.parametrize("train", [False, True])
def test_mode_argument_is_looked_up_and_said(train):
    """A mode given by a name, `not` or a comparison is looked up and told with its value."""
    phase = "train" if train else "val"
    with torch.set_grad_enabled(train):
        assert kinds()[0] == f"torch.set_grad_enabled(train) [train is {train} here]"
        assert cause().switch.grad == (train,)
    with torch.set_grad_enabled(mode=phase == "train"):
        assert kinds()[0].endswith(f"(phase == 'train') [phase == 'train' is {train} here]")
        assert cause().switch.grad == (train,)
    with torch.set_grad_enabled(phase != "val"):
        assert cause().switch.grad == (train,)
    with inference_mode(not train):
        assert kinds()[0] == f"gradguard.inference_mode(not train) [not train is {not train} here]"


def test_mode_that_would_need_a_call_is_left_unknown():
    """An argument that only running code could tell is not computed, and the block still counts."""
    calls = []
    with torch.set_grad_enabled(calls.append(1) is not None):
        (kind,) = kinds()
        assert (kind, calls) == (
            "torch.set_grad_enabled(calls.append(1) is not None) [argument not known]",
            [1],
        )
        assert cause().switch.grad == (True, False)


def test_conditional_guard_is_resolved_where_its_condition_is_a_name():
    """`a() if c else b()` is the branch that was taken, or "may have" where that is not known."""
    quick = True
    with torch.no_grad() if quick else contextlib.nullcontext():
        assert cause().how == "with"
    with contextlib.nullcontext() if quick else torch.no_grad():
        assert kinds() == []
    with torch.no_grad() if not quick else contextlib.nullcontext():
        assert kinds() == []
    with torch.no_grad() if len(kinds()) == 0 else contextlib.nullcontext():
        assert (cause().how, cause().certain) == ("choice", False)


def test_rebound_names_and_subclasses_are_seen_through(monkeypatch):
    """`torch.no_grad` rebound to gradguard's is gradguard's; a subclass is what it derives from."""

    class Quieter(torch.no_grad):
        pass

    monkeypatch.setattr(torch, "no_grad", no_grad)
    with torch.no_grad(), Quieter():
        assert kinds() == ["torch.no_grad()", "gradguard.no_grad()"]


def test_async_with_try_and_match_are_looked_through():
    """Statements of other kinds between the line and the block do not hide it."""

    async def body():
        async with contextlib.AsyncExitStack(), contextlib.AsyncExitStack():
            with torch.no_grad():
                try:
                    raise ValueError  # noqa: TRY301 - the handler is what is looked at
                except ValueError:
                    match [1]:
                        case [one]:
                            return one, kinds()

    assert asyncio.run(body()) == (1, ["torch.no_grad()"])


def test_lambdas_comprehensions_and_generator_expressions_are_looked_through():
    """They have no block of their own; the function that runs them has."""
    look = lambda: [torch.no_grad, kinds()][1]  # noqa: E731 - a lambda is what is tested
    with torch.no_grad():
        found = [look(), *[look() for _ in "a"], *(look() for _ in "a"), *{0: look()}.values()]
    assert found == [["torch.no_grad()"]] * 4


def test_nested_function_and_class_body_have_blocks_of_their_own():
    """A block around a definition is not around the later call; one around a class body is."""
    with torch.no_grad():

        def later():
            return kinds()

        class Body:
            with torch.enable_grad():
                found = kinds()

    assert later() == []
    assert Body.found == ["torch.enable_grad()", "torch.no_grad()"]


def test_generator_and_coroutine_frames_show_their_resumers_blocks():
    """The block in which a generator or coroutine is resumed is around its line, too."""

    def numbers():
        with torch.enable_grad():
            yield kinds()

    async def task():
        return kinds()

    with torch.no_grad():
        assert next(numbers()) == ["torch.enable_grad()", "torch.no_grad()"]
        with pytest.raises(StopIteration) as stop, torch.enable_grad():
            task().send(None)
    assert stop.value.value == ["torch.enable_grad()", "torch.no_grad()"]


def test_suspended_generators_hold_their_guard_around_whoever_runs_them():
    """A context manager written with `yield`, and a generator that yields inside a guard."""

    @contextlib.contextmanager
    def evaluation():
        with torch.no_grad():
            yield

    def stream(found=None):
        with torch.no_grad():
            yield found

    with evaluation():  # manager
        held = "torch.no_grad(), held open by evaluation() while it yields,"
        check(cause(), "manager", held, sys._getframe().f_code.co_name)
    assert [kinds() for _ in stream()] == [[]]  # of no function's own lines: not seen
    for found in stream(kinds()):
        assert found == []
    for _ in stream():  # stream
        held = "torch.no_grad(), held open by stream() while it yields,"
        check(cause(), "stream", held, sys._getframe().f_code.co_name)
    assert kinds() == []


def test_guards_made_by_a_function_are_named_at_the_with():
    """`with helper():` is known by what the helper returns; "may" if it returns other things too."""

    def made(train):
        return torch.set_grad_enabled(train)

    def either(train):
        return no_grad() if kinds() else contextlib.nullcontext(train)

    def perhaps(train):
        if train:
            return contextlib.nullcontext()
        return torch.no_grad()

    class Owner:
        def quiet(self):
            return no_grad()

        def nothing(self):
            return

        def run(self):
            with self.quiet():
                return kinds()

    with made(train=False):  # made
        kind = "torch.set_grad_enabled(train) [argument not known], made by made(),"
        check(cause(), "made", kind, sys._getframe().f_code.co_name)
    with perhaps(train=False):
        assert (cause().how, kinds()) == ("choice", ["torch.no_grad(), made by perhaps(),"])
    with either(train=False):
        assert [block.certain for block in enclosing() if block.filename == __file__] == [False]
    assert Owner().run() == ["gradguard.no_grad(), made by quiet(),"]
    assert [kinds() for _ in [Owner().nothing()]] == [[]]


def test_helper_that_cannot_be_read_is_passed_over():
    """A helper without source, or that is no function, is no guard as far as can be seen."""
    names = {"torch": torch}
    exec("def helper(): return torch.no_grad()", names)  # noqa: S102 - code without source
    helper = names["helper"]
    with helper():
        assert kinds() == []


# --- decorators


@torch.set_grad_enabled(True)
@torch.inference_mode(False)
@quiet  # torch decorator
def decorated_by_torch():
    return cause(), kinds()


def test_torch_decorators_are_read_from_their_closures():
    """Each decorator of a stack is named by its own line, the innermost first."""
    block, found = decorated_by_torch()
    check(block, "torch decorator", "torch.no_grad()", "decorated_by_torch")
    assert block.how == "decorator"
    assert block.certain
    assert found == [
        "torch.no_grad()",
        "torch.inference_mode(False)",
        "torch.set_grad_enabled(True)",
    ]


class Model:
    @torch.inference_mode()  # torch generator
    def stream(self):
        yield cause()

    @no_grad()  # gradguard method
    def plain(self):
        return cause()

    @classmethod
    @inference_mode  # gradguard generator
    def generate(cls):
        yield cause()

    @inference_mode(mode=True)  # gradguard coroutine
    async def infer(self):
        await asyncio.sleep(0)
        return cause()

    @no_grad  # gradguard async generator
    async def tokens(self):
        yield cause()

    async def first(self):
        async for block in self.tokens():
            return block
        return None

    @no_grad  # gradguard handing back
    def handing(self):
        def inner():  # handed back
            yield cause()

        return inner()


@pytest.mark.parametrize(
    ("tag", "kind", "function", "run"),
    [
        ("torch generator", "torch.inference_mode(True)", "stream", lambda m: next(m.stream())),
        ("gradguard method", "gradguard.no_grad()", "plain", lambda m: m.plain()),
        (
            "gradguard generator",
            "gradguard.inference_mode(mode=True)",
            "generate",
            lambda m: next(m.generate()),
        ),
        (
            "gradguard coroutine",
            "gradguard.inference_mode(mode=True)",
            "infer",
            lambda m: asyncio.run(m.infer()),
        ),
        (
            "gradguard async generator",
            "gradguard.no_grad()",
            "tokens",
            lambda m: asyncio.run(m.first()),
        ),
        ("handed back", "gradguard.no_grad()", "inner", lambda m: next(m.handing())),
    ],
)
def test_decorated_functions_of_every_kind_are_named(tag, kind, function, run):
    """The decorator's line is named, whatever kind of function it decorates."""
    block = run(Model())
    check(block, tag, kind, function)
    assert block.how == "decorator"
    assert block.certain


def test_decorated_partials_and_built_ins_are_named_as_far_as_possible():
    """A partial leads to its function; what has no code is named by the line that calls it."""

    def body(_):  # partial body
        return cause()

    class Callable:
        def __call__(self):  # call method
            return cause()

    check(torch.no_grad()(Callable())(), "call method", "torch.no_grad()", "__call__")
    check(torch.no_grad()(functools.partial(body, 1))(), "partial body", "torch.no_grad()", "body")
    block = torch.no_grad()(sorted)(cause() for _ in "a")[0]  # built-in
    check(block, "built-in", "torch.no_grad()", sys._getframe().f_code.co_name)


def test_decorators_of_every_making_are_read():
    """A decorated bound method is named; torch's other decorators are no guards."""

    class Owner:
        def method(self):  # bound
            return cause()

    method = Owner().method
    check(torch.no_grad()(method)(), "bound", "torch.no_grad()", "method")
    assert context_decorator(lambda: contextlib.nullcontext(), method)() is None
    assert torch.autograd.set_multithreading_enabled(mode=True)(kinds)() == []


@pytest.mark.parametrize("library", [torch, gradguard], ids=["torch", "gradguard"])
def test_decorated_function_without_source_is_named_by_its_definition(library):
    """Where no decorator line can be read, the line of the definition is named without a text."""
    names = {"look": enclosing, "library": library}
    exec("\n\n@library.no_grad()\ndef body(): return look()", names)  # noqa: S102 - has no source
    block = names["body"]()[0]
    assert (block.how, block.filename, block.lineno) == ("decorator", "<string>", 3)
    assert block.source is None


# --- exit stacks and plain calls


def test_exit_stack_is_named_once_by_the_line_that_entered_the_guard():
    """A guard held by an ExitStack is named where it was entered, not where it was handed to."""

    def helper(stack):
        return stack, [block for block in enclosing() if block.filename == __file__]

    def run():
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.nullcontext())
            stack.enter_context(torch.no_grad())  # entered
            return helper(stack)[1]

    (block,) = run()
    check(block, "entered", "torch.no_grad()", "run")
    assert block.how == "stack"


def test_exit_stack_filled_elsewhere_is_named_where_it_is_held():
    """Without the entering call in sight, the line that the holder is at is named."""

    def fill():
        stack = contextlib.ExitStack()
        stack.enter_context(torch.enable_grad())
        stack.enter_context(no_grad())
        return stack

    held = fill()
    block, found = cause(), kinds()  # held
    held.close()
    check(block, "held", "gradguard.no_grad()", sys._getframe().f_code.co_name)
    assert found == ["gradguard.no_grad()", "torch.enable_grad()"]
    assert kinds() == []


@pytest.fixture
def _mode_put_back():
    """Let a test leave the grad mode switched."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.mark.usefixtures("_mode_put_back")
@pytest.mark.parametrize("tag", ["torch call", "raw call", "gradguard call", "entered by hand"])
def test_plain_call_earlier_in_a_running_function_may_be_the_cause(tag):
    """A switch that ends with no block is named with "may", as it may have been skipped."""
    if tag == "torch call":
        torch.set_grad_enabled(False)  # torch call
    if tag == "raw call":
        torch._C._set_grad_enabled(False)  # raw call
    if tag == "gradguard call":
        set_grad_enabled(False)  # gradguard call
    if tag == "entered by hand":
        torch.no_grad().__enter__()  # entered by hand
    blocks = [block for block in enclosing() if block.how == "statement"]
    assert marked(tag) in [(block.lineno, block.source) for block in blocks]
    assert not any(block.certain for block in blocks)
    assert cause() == blocks[0]


@pytest.mark.usefixtures("_mode_put_back")
def test_plain_call_later_in_a_loop_counts_and_one_after_it_does_not():
    """What comes later in the loop ran in the round before; what comes after the loop did not."""
    for epoch in range(2):
        if epoch:
            check(
                cause(),
                "in the loop",
                "torch.set_grad_enabled(False)",
                sys._getframe().f_code.co_name,
            )
            assert len(kinds()) == 1
        torch.set_grad_enabled(False)  # in the loop
    torch.set_grad_enabled(True)


def test_plain_call_in_a_block_that_has_ended_does_not_count():
    """The end of a guard's block has taken the call back; another block's has not."""
    with torch.enable_grad():
        torch.set_grad_enabled(False)
    with contextlib.nullcontext():
        torch.set_grad_enabled(True)
    assert kinds() == ["torch.set_grad_enabled(True)"]


@pytest.mark.usefixtures("_mode_put_back")
def test_calls_and_blocks_of_one_function_are_told_in_order():
    """What was switched last comes first; what comes later in the loop ran before all the rest."""
    for _ in range(2):
        with torch.enable_grad():
            torch.set_grad_enabled(True)
            with torch.no_grad():
                found, text = kinds(), "".join(where(grad_state()))
        torch._C._set_grad_enabled(False)
    assert found == [
        "torch.no_grad()",
        "torch.set_grad_enabled(True)",
        "torch.enable_grad()",
        "torch.set_grad_enabled(False)",
    ]
    assert "torch.enable_grad()" in text
    assert "may have been called" not in text


def test_functions_that_can_hold_no_block_are_not_parsed(monkeypatch):
    """A message costs the parsing of those functions that have a block or name a guard."""
    read = []

    def scope(code, _):
        read.append(code.co_name)
        raise UnreadableError

    def neither():
        return cause()

    def holds():
        with contextlib.nullcontext():
            return neither()

    monkeypatch.setattr("gradguard._locate.enclosing.scope_of", scope)
    holds()
    assert "holds" in read
    assert "neither" not in read


# --- autograd


class Double(torch.autograd.Function):
    seen = None

    @staticmethod
    def forward(_, x):
        Double.seen = cause()
        return x * 2

    @staticmethod
    def backward(_, grad):
        Double.seen = cause()
        return grad * 2


class Apart(torch.autograd.Function):
    """Its forward takes no ctx."""

    @staticmethod
    def forward(x):
        Double.seen = cause()
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(_, grad):
        return grad * 2


def test_a_forward_without_ctx_is_named():
    """The forward of a function with a setup_context is the origin, too."""
    Apart.apply(torch.ones(2, requires_grad=True))
    assert Double.seen.kind.startswith("Apart.forward, an autograd.Function.forward")


@pytest.mark.parametrize("ctx", [None, object()])
def test_a_forward_called_by_hand_is_no_origin(ctx):
    """Only `apply` turns grad off: a forward called directly is not blamed for what surrounds it."""
    with torch.no_grad():
        Double.forward(ctx, torch.ones(2))
    assert "forward" not in Double.seen.kind


def test_autograd_functions_and_hooks_name_autograd_as_the_origin():
    """Torch switches grad off in forward and, without create_graph, in backward and hooks."""
    name = sys._getframe().f_code.co_name
    x = torch.ones(2, requires_grad=True)
    y = Double.apply(x).sum()  # forward
    kind = "Double.forward, an autograd.Function.forward (torch turns grad off inside),"
    check(Double.seen, "forward", kind, name)
    in_hook = []
    x.register_hook(lambda _: in_hook.append(cause()))
    y.backward(retain_graph=True)  # backward
    kind = "a backward pass with create_graph={} (its functions and hooks run in that mode)"
    check(Double.seen, "backward", kind.format(False), name)
    check(in_hook[0], "backward", kind.format(False), name)
    torch.autograd.grad(y, x, create_graph=True)  # double backward
    check(Double.seen, "double backward", kind.format(True), name)
    assert Double.seen.switch.grad == (True,)


def test_a_forward_that_is_called_directly_switches_nothing():
    """Only `apply` turns grad off: a forward called as any other function is not named."""
    with torch.no_grad():  # around the direct call
        Double.forward(None, torch.ones(2))
    check(Double.seen, "around the direct call", "torch.no_grad()", sys._getframe().f_code.co_name)


def test_an_applied_function_may_have_another_name():
    """``f = Function.apply``, as torch's tutorials call it, is named by the call."""
    double = Double.apply
    double(torch.ones(2, requires_grad=True))  # by another name
    assert Double.seen.kind.startswith("Double.forward, an autograd.Function.forward")
    assert Double.seen.lineno == marked("by another name")[0]


def timed(fn):
    @torch.no_grad()  # in the decorator
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)

    return wrapper


@timed
def innocent():
    return cause()


def plain(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)

    return wrapper


@torch.no_grad()  # above a plain decorator
@plain
def decorated_twice():
    return cause()


def test_a_guard_inside_a_decorator_is_named_there():
    """A guard above functools.wraps inside a decorator is not the wrapped function's."""
    check(innocent(), "in the decorator", "torch.no_grad()", "wrapper")
    check(decorated_twice(), "above a plain decorator", "torch.no_grad()", "decorated_twice")


def test_function_forward_under_a_functorch_transform_is_named_once():
    """With a transform active torch's `apply` runs twice; only the one that switches is named."""
    seen = []

    class Through(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            seen.append([kind for kind in kinds() if "forward" in kind])
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(_, grad):
            return grad * 2

    torch.func.grad(lambda x: Through.apply(x).sum())(torch.ones(2))
    assert [len(found) for found in seen] == [1]


def test_backward_in_a_thread_of_its_own_is_recognised():
    """Threads of the engine begin at a function's backward: the mode there is autograd's."""
    found, done = [], threading.Event()

    def look():
        found.extend(enclosing())
        done.set()

    scope = {"__name__": "torch.autograd.function"}
    exec("def apply(self, look): look()", scope)  # noqa: S102 - stands for BackwardCFunction.apply
    _thread.start_new_thread(scope["apply"], (None, look))
    assert done.wait(10)
    assert [(block.kind[:15], block.function) for block in found] == [("a backward pass", "look")]


def test_reentrant_checkpoint_is_named_by_the_users_line():
    """Its first pass runs in an autograd function's forward, its second under enable_grad."""
    found = []

    def segment(x):
        found.append(enclosing())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    y = checkpoint(segment, x, use_reentrant=True).sum()  # checkpoint
    y.backward()
    first, second = found
    (block,) = [block for block in first if "CheckpointFunction.forward" in block.kind]
    assert (block.lineno, block.source) == marked("checkpoint")
    assert decisive(first, GradState(False, False)).kind == "torch.no_grad()"
    assert second[0].kind == "torch.enable_grad()"


# --- sources of every kind


def run_cell(source, **names):
    """Run source that linecache knows under a name that is no file, as notebooks do."""
    source = textwrap.dedent(source)
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
    try:
        exec(compile(source, "<cell>", "exec"), names)  # noqa: S102 - as a notebook runs its cells
    finally:
        del linecache.cache["<cell>"]
    return names


def test_notebook_cell_is_read_through_linecache():
    """A cell that linecache knows is named like a file."""
    ran = run_cell("x = 1\nwith torch.no_grad():\n    found = cause()\n", torch=torch, cause=cause)
    block = ran["found"]
    assert (block.filename, block.lineno, block.source, block.function) == (
        "<cell>",
        2,
        "with torch.no_grad():",
        "<module>",
    )


def test_doctest_example_is_read_through_linecache():
    """A doctest's example is named by its line within the example."""
    text = ">>> with torch.no_grad():\n...     found.append(cause())\n"
    found = []
    names = {"torch": torch, "cause": cause, "found": found}
    test = doctest.DocTestParser().get_doctest(text, names, "example", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
    assert (found[0].lineno, found[0].source) == (1, "with torch.no_grad():")
    assert "example" in found[0].filename


def test_code_without_source_is_reported_as_unread():
    """Where there is no source the guard's name in the code is all there is; it is said so."""
    names = {"torch": torch, "cause": cause, "where": where, "grad_state": grad_state}
    source = "with torch.no_grad():\n    found, text = cause(), where(grad_state())\n"
    exec(source, names)  # noqa: S102 - code without source is what is tested
    block = names["found"]
    assert (block.how, block.filename, block.source, block.certain) == (
        "unread",
        "<string>",
        None,
        False,
    )
    text = "\n".join(names["text"])
    assert "no_grad used, perhaps around this line (its source cannot be read)" in text
    assert "<string>:2 in <module>: (source not available)" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "its source cannot be read"),
        ("def f(:\n", "its source cannot be parsed (invalid syntax"),
        (
            "\0",
            "its source cannot be read"  # by linecache
            if sys.version_info >= (3, 14)
            else "its source cannot be parsed (source code string cannot contain null bytes",
        ),
        ("\n\n\ndef other(): pass\n", "its source has changed since it was loaded"),
    ],
    ids=["deleted", "broken", "binary", "edited"],
)
def test_file_that_no_longer_fits_is_reported_as_unread(tmp_path, text, why):
    """A file that was deleted, broken or edited since it was loaded is said to be so."""
    path = tmp_path / "gone.py"
    source = "def f(look):\n    with torch.no_grad():\n        return look()\n"
    names = {"torch": torch}
    exec(compile(source, str(path), "exec"), names)  # noqa: S102 - stands for an import
    if text is not None:
        path.write_text(text)
    block = names["f"](lambda: cause())
    assert block.how == "unread"
    assert why in block.kind


def test_looking_runs_no_code_of_the_users():
    """Properties, `__getattr__`, class mappings and other code of the user's are never run."""

    class Held:
        @property
        def guard(self):
            ran.append("property")
            return torch.no_grad()

        def __getattr__(self, name):
            ran.append("getattr")
            return torch.no_grad()

        def __eq__(self, other):
            ran.append("eq")
            return True

        __hash__ = None

    class Mapping(dict):
        def __contains__(self, key):
            ran.append("contains")
            return super().__contains__(key)

    class Meta(type):
        @classmethod
        def __prepare__(cls, *_):
            return Mapping()

    ran, held, found = [], Held(), []
    with held.guard, held.other, torch.set_grad_enabled(held == 1):

        class _Body(metaclass=Meta):
            with torch.no_grad():
                found.append(kinds())

    assert ran == ["property", "getattr", "eq"]
    assert found == [
        ["torch.no_grad()", "torch.set_grad_enabled(held == 1) [argument not known]"],
    ]


# --- which one decided


def test_decisive_block_is_named_first():
    """Of several blocks the one that made the present mode comes first, then the others."""
    with torch.inference_mode():  # decided
        with torch.enable_grad():
            first, second, *_ = where(grad_state())[1:]
    assert "torch.inference_mode() entered at" in first
    assert f"{file_shown(__file__)}:{marked('decided')[0]} in" in first
    assert "torch.enable_grad()" in second


@pytest.mark.usefixtures("_mode_put_back")
def test_overridden_block_is_not_the_cause():
    """Where an inner guard says otherwise, an outer one explains nothing."""
    with torch.no_grad(), torch.enable_grad():
        helper = torch.set_grad_enabled
        helper(False)
        blocks = [block for block in enclosing() if block.how != "statement"]
        assert decisive(blocks, grad_state()) is None
        assert "not to what it is" in where(GradState(False, True))[0]


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("library", [torch, gradguard], ids=["torch", "gradguard"])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("no_grad", ()),
        ("enable_grad", ()),
        ("set_grad_enabled", (True,)),
        ("set_grad_enabled", (False,)),
        ("inference_mode", ()),
        ("inference_mode", (False,)),
    ],
)
def test_what_a_guard_is_said_to_switch_is_what_it_switches(outer, library, name, mode):
    """The effect told of each guard is its real one, and it is found to have decided the mode."""
    with outer():
        before = grad_state()
        guard = getattr(library, name)(*mode)
        with guard:
            after, block, found = grad_state(), enclosing()[0], cause()
    for now, was, said in zip(after, before, block.switch.effect, strict=True):
        assert now in said if said else now is was or is_surrounding(block)
    assert found is not None


def is_surrounding(block):
    """Whether the guard brings back the grad mode from around an inference block."""
    return block.kind == "gradguard.inference_mode(mode=False)"


def test_leaving_inference_mode_brings_back_what_lies_around_it():
    """Gradguard's inference_mode(False) undoes the inference block, so what is around decides."""
    with torch.no_grad(), inference_mode(), inference_mode(False):
        assert cause().kind == "torch.no_grad()"
    with inference_mode(), inference_mode(False):
        assert cause().kind == "gradguard.inference_mode(False)"
    with torch.inference_mode(), inference_mode(False), no_grad(), inference_mode():
        assert cause().kind == "gradguard.inference_mode()"
    with torch.no_grad(), inference_mode(), inference_mode(), inference_mode(False):
        assert cause().kind == "torch.no_grad()"


def test_resumers_block_only_may_decide_a_suspended_body():
    """A body with its own mode may have begun elsewhere, so its resumer's block is no certainty."""

    @inference_mode(False)
    def body():
        yield enclosing()

    with torch.no_grad():
        blocks = [block for block in next(body()) if block.filename == __file__]
    assert [(block.kind, block.certain) for block in blocks] == [
        ("gradguard.inference_mode(mode=False)", True),
        ("torch.no_grad()", False),
    ]


# --- the text, and that it always comes


def test_where_points_elsewhere_when_nothing_is_on_the_stack():
    """Without a cause here it says how to find it, or what a trace has recorded."""
    (line,) = where(GradState(False, False))[-1:]
    assert "not seen on this call stack" in line
    assert "python -m gradguard run" in line
    assert "gradguard.trace()" in line
    (line,) = where(GradState(False, False), recorded="train.py:3 in eval")[-1:]
    assert line.endswith("as trace() has recorded: train.py:3 in eval")


def test_where_explains_a_recording_thread_by_how_threads_start():
    """Grad on needs no cause, and in a worker thread `carry` is what to do."""
    texts = []
    target = lambda: texts.append(where(grad_state())[-1])  # noqa: E731 - it has no block
    thread = threading.Thread(target=target, name="loader")
    thread.start()
    thread.join()
    assert "thread 'loader'" in texts[0]
    assert "gradguard.carry" in texts[0]
    assert "unless something turns it off" in where(grad_state())[-1]


def test_where_says_that_the_search_failed(monkeypatch):
    """A failure of the search becomes its text, which still says what to do."""

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("gradguard._locate.where.enclosing", fail)
    (line,) = where(GradState(False, False))
    assert "(RuntimeError)" in line
    assert "gradguard.trace()" in line


def test_where_survives_a_full_stack():
    """At the recursion limit there still is a text."""

    def deeper():
        try:
            return deeper()
        except RecursionError:
            return where(grad_state())

    assert deeper()


def test_text_stays_short_however_many_blocks_there_are():
    """At most five blocks are told, then how many more, and no line of source fills a screen."""
    text = []
    names = {"torch": torch, "text": text, "where": where, "state": grad_state}
    run_cell(f"with torch.no_grad(): text += where(state())  # {'x' * 1000}", **names)
    assert len(text[1]) < 300
    with contextlib.ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(torch.no_grad())
        text = where(grad_state())
    assert len(text) == 7
    assert text[-1] == "  … and 4 more"


def test_each_way_of_switching_has_its_words():
    """What is certain, what may have happened and what a call does are told apart."""

    def text(how, source="line"):
        switch = Switch("guard()", (False,), ())
        return block_text(Block(switch, how, "f.py", 3, "fn", source, certain=True))

    assert text("with") == "guard() entered at f.py:3 in fn: line"
    assert text("choice") == "guard() may have been entered at f.py:3 in fn: line"
    assert text("statement") == "guard() may have been called at f.py:3 in fn: line"
    assert text("stack") == "guard() held open by an ExitStack, at f.py:3 in fn: line"
    assert text("decorator") == "guard() decorates fn, at f.py:3: line"
    assert text("call") == "guard() called at f.py:3 in fn: line"
    assert text("unread", None) == "guard() at f.py:3 in fn: (source not available)"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has lines, and no columns")
def test_the_target_of_a_with_runs_inside_it():
    """While the target of ``as`` is worked out the item is open, and what follows it is not."""
    found, slots = [], {}

    def at():
        found.append(kinds(sys._getframe(1)))
        return 0

    with torch.no_grad() as slots[at()], torch.enable_grad(), torch.inference_mode():
        pass
    with torch.enable_grad() as slots[at()]:
        pass
    assert found == [["torch.no_grad()"], ["torch.enable_grad()"]]


def test_guards_are_known_by_what_they_are(monkeypatch):
    """Where a project has rebound torch's names, both libraries' guards are told as they are."""
    stock = {name: getattr(torch, name) for name in ("no_grad", "inference_mode")}
    for name in stock:
        for module in (torch, torch.autograd, torch.autograd.grad_mode):
            monkeypatch.setattr(module, name, getattr(gradguard, name))
    quiet = stock["no_grad"]

    @torch.inference_mode()
    def decorated():
        with quiet():
            return kinds()

    with torch.no_grad():
        assert kinds() == ["gradguard.no_grad()"]
        assert decorated()[:2] == ["torch.no_grad()", "gradguard.inference_mode(mode=True)"]


# --- libraries


def test_a_librarys_guard_is_named_by_the_users_line(some_trainer):
    """A guard inside an installed library is named by the line that called it, then by its own."""
    lines = some_trainer.main(lambda: where(grad_state()))  # the library's caller
    here = sys._getframe().f_code.co_name
    called = marked("the library's caller")[0]
    source = "lines = some_trainer.main(lambda: where(grad_state()))  # the library's caller"
    entered = f"entered at {some_trainer.__file__}:5 in run"
    inside = f"torch.no_grad() {entered}: with torch.no_grad():"
    assert lines == [
        "The mode was switched on this call stack:",
        f"  {file_shown(__file__)}:{called} in {here}: {source} (inside it: {inside})",
    ]


def test_a_librarys_block_has_the_users_line(some_trainer):
    """What else names the line takes the user's from the block, with the library's in it."""
    (block,) = some_trainer.main(enclosing)
    assert block.line.filename == __file__
    assert block.line.library == Line(some_trainer.__file__, 5, "run")


# --- the user's frame


def test_user_frame_passes_over_torch_and_plumbing():
    """A hook called by torch, or a callable run by functools, is the user's; torch is not."""
    module, frames = torch.nn.Identity(), []
    look = contextlib.contextmanager(functools.partial(_append_user_frame, frames))
    module.register_forward_hook(lambda *_: frames.append(user_frame(sys._getframe(1))))
    module(torch.ones(1))
    with unittest.mock.Mock(side_effect=look)():
        pass
    assert frames[:2] == [sys._getframe(), sys._getframe()]


def _append_user_frame(frames):
    frames.append(user_frame(sys._getframe(1)))
    yield


def test_user_frame_takes_generated_code_for_the_users_unless_it_is_torchs():
    """Code of a dataclass or exec is the user's, of torch's modules and graphs it is not."""
    source = "def call(look): return look()"
    names = []
    for module, filename in [
        ("mine", "<string>"),
        ("gradguard._demo.command", "<string>"),
        ("torch.x", "<string>"),
        ("mine", "<eval_with_key>.1"),
        ("asyncio.runners", asyncio.runners.__file__),
        ("gradguard.x", "<string>"),
        ("__main__", str(Path(torch.__file__).parent / "distributed/run.py")),
    ]:
        scope = {"__name__": module}
        exec(compile(source, filename, "exec"), scope)  # noqa: S102 - stands for generated code
        frame = scope["call"](lambda: user_frame(sys._getframe(1)))
        names.append(frame.f_code.co_name)
    assert names == ["call"] * 2 + [sys._getframe().f_code.co_name] * 5


def test_user_frame_needs_no_torch(monkeypatch):
    """In a process without torch, as the pytest plugin may run in, it works as well."""
    monkeypatch.delitem(sys.modules, "torch")
    assert user_frame() is sys._getframe()


def test_user_frame_falls_back_to_the_outermost():
    """Where all frames are torch's, as when its own code is the program, the outermost is taken."""
    frames = []
    scope = {"__name__": "torch.x", "frames": frames, "user_frame": user_frame}
    exec("def call(): frames.append(user_frame())", scope)  # noqa: S102 - stands for torch's code
    thread = threading.Thread(target=scope["call"])
    thread.start()
    thread.join()
    assert frames[0].f_code.co_name == "_bootstrap"


def test_warning_points_at_the_users_line_and_is_shown_once_per_line():
    """`warn` is attributed to the user's file and line, by the registry of its module."""
    module = torch.nn.Identity()
    module.register_forward_hook(types.FunctionType(_warning_hook.__code__, vars(torch.nn)))
    vars(torch.nn)["_warn_for_test"] = functools.partial(warn, "text", GradModeWarning)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            module(torch.ones(1))  # warned
    del vars(torch.nn)["_warn_for_test"]
    assert [(one.filename, one.lineno) for one in seen] == [(__file__, marked("warned")[0])]
    assert seen[0].category is GradModeWarning


def _warning_hook(*_):
    _warn_for_test()  # noqa: F821 - run in the namespace of a torch module

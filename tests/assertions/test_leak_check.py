"""leak_check: what it finds, what it puts back, and that it hides nothing."""

import asyncio
import contextlib
import gc
import inspect
import sys
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradLeakError, GradState, leak_check
from gradguard._core.places import file_shown

RECORDING = GradState(grad_enabled=True, inference_mode=False)


def model():
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout())


@pytest.fixture(autouse=True)
def mode_is_put_back():
    """Every test here leaks on purpose, and must end in the mode that it began in."""
    yield
    assert gradguard.grad_state() == RECORDING
    assert gradguard.guards() == ()


def leak():
    torch.set_grad_enabled(False)


def test_a_block_that_leaks_is_told_and_put_back():
    """A `with` block that leaves grad off raises GradLeakError, and grad is on again."""
    with pytest.raises(GradLeakError) as caught, leak_check():
        leak()
    first, *rest = str(caught.value).splitlines()
    assert first == "leak_check: the block left grad mode off; it was on when it began."
    place = f"{file_shown(__file__)}:{leak.__code__.co_firstlineno + 1}"
    there = f"{place} in leak: torch.set_grad_enabled(False)"
    assert rest == [
        "The mode was switched inside it, probably by the first of these:",
        f"  torch.set_grad_enabled(False) may have been called at {there}",
        "To do: switch the mode with `with` or a decorator, so that it ends there.",
        "All has been put back.",
    ]


def test_a_block_that_ends_as_it_began_is_silent():
    """Switches that end within the block are no leak."""
    net = model()
    with leak_check(net):
        with torch.no_grad(), gradguard.inference_mode():
            net.eval()
        net.train()


def test_inference_mode_left_on_is_put_back():
    """A torch inference guard that is entered and never exited is a leak of both flags."""
    guard = torch.inference_mode()
    with pytest.raises(GradLeakError) as caught, leak_check():
        guard.__enter__()
    assert "left inference mode on; it was off" in str(caught.value)
    assert gradguard.grad_state() == RECORDING
    guard.__exit__(None, None, None)  # dropped, it would do so at a random time


def test_open_guards_are_named_and_closed():
    """gradguard guards that the block entered and never exited are named, and closed."""
    with pytest.raises(GradLeakError) as caught, leak_check():
        gradguard.inference_mode().__enter__()
        gradguard.enable_grad().__enter__()
        gradguard.no_grad().__enter__()
    assert (
        "Guards entered and never exited: inference_mode(mode=True), enable_grad(), no_grad()."
        in str(caught.value)
    )


def test_guards_outside_stay_open():
    """Only what the block opened is closed; a guard around it goes on."""
    with gradguard.no_grad():
        with pytest.raises(GradLeakError), leak_check():
            gradguard.enable_grad().__enter__()
        assert gradguard.guards() == (gradguard.no_grad(),)
        assert not torch.is_grad_enabled()


def test_training_flags_are_named_and_put_back():
    """Each submodule whose flag changed is named; those that did not change are not."""
    net = model()
    with pytest.raises(GradLeakError) as caught, leak_check(net):
        net[1].eval()
    assert "left the training flag changed of (1):\n  Sequential.1\n" in str(caught.value)
    assert "evaluating(module)" in str(caught.value)
    assert net[1].training


def test_many_flags_are_counted():
    """Beyond ten modules the rest are counted, so the message stays short."""
    net = nn.Sequential(*(nn.ReLU() for _ in range(30)))
    with pytest.raises(GradLeakError) as caught, leak_check(net):
        net.eval()
    assert "(31):" in str(caught.value)
    assert "and 21 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 25


def test_an_exception_of_the_body_comes_out_with_a_note():
    """The body's own exception is not hidden; the finding is added to it as a note."""
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, leak_check():
        leak()
        raise error
    assert caught.value is error
    assert "left grad mode off" in error.__notes__[0]


def test_a_decorated_function_is_named():
    """As a decorator the message names the function."""

    @leak_check()
    def validate():
        leak()

    with pytest.raises(GradLeakError, match=r"validate\(\) left grad mode off"):
        validate()


def test_a_decorated_generator_is_checked_at_its_end():
    """A generator's switches are invisible outside meanwhile, and reported when it ends."""

    @leak_check()
    def batches():
        leak()
        yield torch.is_grad_enabled()

    steps = batches()
    assert next(steps) is False
    assert torch.is_grad_enabled()
    with pytest.raises(GradLeakError, match=r"batches\(\) left grad mode off"):
        next(steps)


def test_closing_a_generator_reports_its_leak():
    """A generator closed early is checked, too."""

    @leak_check()
    def batches():
        leak()
        yield 1

    steps = batches()
    next(steps)
    with pytest.raises(GradLeakError):
        steps.close()


def test_flags_that_others_change_meanwhile_are_not_the_generators():
    """Only the body's own changes of a training flag count."""
    net = model()

    @leak_check(net)
    def batches():
        yield 1
        yield 2

    steps = batches()
    next(steps)
    net.eval()
    assert list(steps) == [2]
    assert not net.training


def test_a_decorated_coroutine_and_async_generator():
    """Both async kinds are checked when their body ends, and an exception keeps its type."""

    @leak_check()
    async def step():
        leak()
        await asyncio.sleep(0)

    @leak_check()
    async def stream():
        yield 1
        leak()
        raise LookupError

    async def main():
        with pytest.raises(GradLeakError, match=r"step\(\)"):
            await step()
        with pytest.raises(LookupError) as caught:
            [item async for item in stream()]
        assert "stream() left grad mode off" in caught.value.__notes__[0]

    asyncio.run(main())


def test_one_object_nested_and_in_threads():
    """One leak_check object may be open several times, in several threads."""
    check = leak_check()
    seen = []

    def work():
        with check, check:
            seen.append(torch.is_grad_enabled())

    with check:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [True] * 4


@pytest.mark.parametrize("bad", [3, len, "net"])
def test_bad_arguments_are_refused(bad):
    """Anything but a module is a TypeError that shows the decorator form."""
    with pytest.raises(TypeError, match=r"takes torch\.nn\.Module objects.*@leak_check\(\)"):
        leak_check(bad)


@pytest.mark.parametrize("form", ["block", "function"])
def test_a_compiled_step_keeps_one_graph(form):
    """Where nothing leaks, a compiled function has no graph break, as a block and as a decorator."""
    torch._dynamo.reset()
    net = model()

    @leak_check(net)
    def double(x):
        return x * 2

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        if form == "function":
            return double(x)
        with leak_check(net), leak_check():
            with torch.no_grad():
                return x * 2

    assert step(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("form", ["block", "function"])
@pytest.mark.parametrize("change", [leak, lambda: NET.eval()], ids=["mode", "flag"])
def test_a_compiled_step_that_leaks_is_told(form, change):
    """What is left changed in a compiled function is told, or not compiled in a full graph."""
    NET.train()
    checked = leak_check(NET)(change)

    def step(x):
        if form == "function":
            checked()
        else:
            with leak_check(NET):
                change()
        return x * 2

    torch._dynamo.reset()
    with pytest.raises(GradLeakError):
        torch.compile(step, backend="eager")(torch.ones(2))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(step, backend="eager", fullgraph=True)(torch.ones(2))
    assert torch.is_grad_enabled()
    NET.train()


NET = model()


def test_a_scope_of_another_thread_is_not_the_blocks_doing():
    """Eval scopes that open or close meanwhile elsewhere are no leak, and stay undisturbed."""
    net = model()
    scope = gradguard.evaluating(net)
    with leak_check(net):
        scope.__enter__()
    assert not net.training
    with leak_check(net):
        scope.__exit__(None, None, None)
    assert net.training


def test_flags_left_changed_under_an_open_scope_are_put_back_at_its_end():
    """What the block changes beneath a scope that it opens and closes itself is still found."""
    net = model()
    with pytest.raises(GradLeakError), leak_check(net):
        with gradguard.evaluating(net):
            pass
        net[1].eval()
    assert net[1].training


def test_a_module_removed_meanwhile_hides_nothing():
    """A changed submodule that was removed is named by its type; the body's exception comes out."""
    net = model()
    with pytest.raises(KeyError, match="mine") as caught, leak_check(net):
        net[1].eval()
        net[1] = nn.Identity()
        raise KeyError("mine")
    assert "Dropout (removed since)" in caught.value.__notes__[0]


def test_an_exit_in_another_thread_or_without_entry():
    """A block that ends in another thread hides no exception; an exit alone is a clear error."""

    def body():
        with leak_check(model()):
            yield
            raise KeyError("mine")

    steps = body()
    next(steps)
    caught = []

    def end():
        try:
            next(steps)
        except KeyError as error:
            caught.append(error)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="this leak_check is not open"):
        leak_check().__exit__(None, None, None)


def test_a_flag_changed_under_another_scope_comes_back_at_its_end():
    """What the block changed is put back also where another scope holds the module by then."""
    net = model()
    scope = gradguard.evaluating(net)
    with pytest.raises(GradLeakError, match=r"Sequential\.1"), leak_check(net):
        net[1].eval()
        scope.__enter__()
    assert not net.training
    scope.__exit__(None, None, None)
    assert net[1].training


def test_a_generators_open_guards_are_named_whatever_the_step():
    """Guards that a body leaves open in a later step are named, above what its resumer has open."""

    @leak_check()
    def batches():
        yield 1
        gradguard.no_grad().__enter__()

    steps = batches()
    next(steps)
    with (
        gradguard.enable_grad(),
        pytest.raises(GradLeakError, match=r"never exited: no_grad\(\)\."),
    ):
        next(steps)


def test_a_block_that_closes_a_guard_of_outside():
    """A guard from outside that the block closes is a leak like any other, and no crash."""
    outer = gradguard.no_grad()
    outer.__enter__()
    with pytest.raises(GradLeakError, match="left grad mode on; it was off"), leak_check():
        outer.__exit__()
    torch.set_grad_enabled(True)


def named(error, source):
    """Tell whether the message names the line with this source, of this file."""
    lines = inspect.getsource(sys.modules[__name__]).splitlines()
    (number,) = [at for at, line in enumerate(lines, 1) if line.strip() == source]
    return f"{file_shown(__file__)}:{number} in" in str(error.value)


def test_a_line_in_its_own_block_is_named():
    """A plain call in the block itself is named, and one that its own `with` takes back is not."""
    with pytest.raises(GradLeakError) as caught:
        with leak_check():
            with torch.enable_grad():
                torch.set_grad_enabled(mode=False)  # taken back
            torch.set_grad_enabled(mode=False)  # left
    assert named(caught, "torch.set_grad_enabled(mode=False)  # left")
    assert "# taken back" not in str(caught.value)


def test_a_line_in_a_block_on_a_shared_object_is_named():
    """The block is found where the `with` is over a name, among other items, and within another."""
    check = leak_check()
    with torch.enable_grad(), pytest.raises(GradLeakError) as caught:
        with check, ExitStack():
            torch._C._set_grad_enabled(False)  # on a shared object
    assert named(caught, "torch._C._set_grad_enabled(False)  # on a shared object")


class Method:
    @classmethod
    @leak_check()
    def of_the_class(cls):
        torch.set_grad_enabled(False)  # of a classmethod

    @leak_check()
    async def coroutine(self):
        torch.set_grad_enabled(False)  # of a coroutine


@pytest.mark.parametrize(
    ("call", "tag"),
    [
        (lambda: Method.of_the_class(), "of a classmethod"),
        (lambda: asyncio.run(Method().coroutine()), "of a coroutine"),
    ],
)
def test_a_line_in_the_decorated_function_is_named(call, tag):
    """What leaves the mode switched inside the function is named."""
    with pytest.raises(GradLeakError) as caught:
        call()
    assert named(caught, f"torch.set_grad_enabled(False)  # {tag}")


@contextlib.contextmanager
def checked():
    with leak_check():
        yield


def under_contextmanager():
    with checked():
        torch.set_grad_enabled(False)  # under a contextmanager


def in_exit_stack():
    with contextlib.ExitStack() as stack:
        stack.enter_context(leak_check())
        torch.set_grad_enabled(False)  # in an exit stack


@pytest.mark.parametrize(
    ("call", "tag"),
    [(under_contextmanager, "under a contextmanager"), (in_exit_stack, "in an exit stack")],
)
def test_a_line_in_the_block_over_what_holds_it_is_named(call, tag):
    """Where `leak_check` lies in a helper or an exit stack, the block is that one's."""
    with pytest.raises(GradLeakError) as caught:
        call()
    assert named(caught, f"torch.set_grad_enabled(False)  # {tag}")


def test_a_function_without_source_is_not_named():
    """Where there is no source the message says how to find the line."""
    scope = {"torch": torch}
    exec("def unread(): torch.set_grad_enabled(False)", scope)  # noqa: S102 (no source)
    with pytest.raises(GradLeakError, match="gradguard run SCRIPT"):
        leak_check()(scope["unread"])()


def test_an_end_inside_a_guard_that_is_in_use_leaves_the_guard_open():
    """A check that an exit stack ends in a decorated function does not close that one's guard."""
    stack = ExitStack()
    modes = []

    @gradguard.no_grad()
    def close():
        stack.close()
        modes.append(gradguard.grad_state().grad_enabled)

    stack.enter_context(leak_check())
    close()
    with stack, gradguard.inference_mode():
        stack.enter_context(leak_check())
        stack.pop_all().close()
        modes.append(gradguard.grad_state().inference_mode)
    assert modes == [False, True]


def test_an_end_inside_a_guard_closes_those_that_are_not_in_use():
    """A guard left open by the block is named and closed, and the one in use goes on deciding."""
    stack = ExitStack()
    modes = []

    @gradguard.no_grad()
    def close():
        with pytest.raises(GradLeakError) as caught:
            stack.close()
        modes.append(gradguard.grad_state().grad_enabled)
        assert "Guards entered and never exited: inference_mode(mode=True)." in str(caught.value)
        assert gradguard.guards() != ()

    stack.enter_context(leak_check())
    left = gradguard.inference_mode()
    left.__enter__()
    close()
    assert modes == [False]


def test_a_plain_call_before_a_guard_in_use_is_told():
    """What the guard in use will bring back is what counts, and is told."""
    stack = ExitStack()

    @gradguard.no_grad()
    def close():
        with pytest.raises(GradLeakError, match="left grad mode off; it was on") as caught:
            stack.close()
        assert "no_grad() is still open here: it goes on deciding" in str(caught.value)

    stack.enter_context(leak_check())
    leak()
    close()
    torch.set_grad_enabled(True)


def test_torchs_inference_guard_is_exited_for_good():
    """One of torch's that was left open does not switch the mode when it is dropped later."""
    left = []  # made here: the collector shows nothing of what it was told to freeze
    with pytest.raises(GradLeakError, match="left inference mode on"), leak_check():
        left.append(torch.inference_mode())
        left[0].__enter__()
    with torch.no_grad():
        left.clear()
        gc.collect()
        assert gradguard.grad_state() == GradState(grad_enabled=False, inference_mode=False)


def test_an_inference_guard_that_others_are_in_is_left_alone():
    """Guards that a `with` or an exit stack of another thread holds stay in force."""
    inside, go_on = threading.Barrier(3), threading.Event()
    seen = []

    def block():
        with torch.inference_mode():
            inside.wait()
            go_on.wait()
            seen.append(gradguard.grad_state().inference_mode)
        seen.append(gradguard.grad_state().inference_mode)

    def stack():
        with ExitStack() as held:
            held.enter_context(torch.inference_mode())
            inside.wait()
            go_on.wait()
            seen.append(gradguard.grad_state().inference_mode)
        seen.append(gradguard.grad_state().inference_mode)

    threads = [threading.Thread(target=each) for each in (block, stack)]
    for thread in threads:
        thread.start()
    inside.wait()
    left = []
    with pytest.raises(GradLeakError), leak_check():
        left.append(torch.inference_mode())
        left[0].__enter__()
    left.clear()
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [False, False, True, True]


def test_one_object_in_eight_threads_at_once():
    """One object and one decorated function in eight threads that switch at each bytecode."""
    shared = leak_check()
    failed = []

    @leak_check()
    def function(leaks):
        if leaks:
            leak()

    def work(number):
        for at in range(300):
            leaks = (at + number) % 3 == 0
            for call in (function, block):
                try:
                    call(leaks)
                except GradLeakError:
                    told = True
                else:
                    told = False
                if told is not leaks or not torch.is_grad_enabled():
                    failed.append((number, at))

    def block(leaks):
        with shared:
            with shared:
                pass
            if leaks:
                leak()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    assert shared._entries == {}


def test_a_check_that_has_ended_is_forgotten():
    """What a block began with is forgotten at its end: a second end is refused."""
    check = leak_check()
    with check:
        pass
    assert check._entries == {}
    with pytest.raises(RuntimeError, match="not open"):
        check.__exit__(None, None, None)


def test_the_rank_is_told(process_group):
    """While a process group is initialized the message says the rank."""
    with pytest.raises(GradLeakError, match=r"^rank 0 of 1: leak_check: "), leak_check():
        leak()


TABLE = {
    "no_grad": gradguard.no_grad,
    "enable_grad": gradguard.enable_grad,
    "inference": gradguard.inference_mode,
    "no_inference": lambda: gradguard.inference_mode(False),
    "set_off": lambda: gradguard.set_grad_enabled(False),
    "torch_no_grad": torch.no_grad,
    "torch_inference": torch.inference_mode,
}


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("inner", TABLE)
@pytest.mark.parametrize("outer", TABLE)
def test_an_end_inside_guards_from_a_table_leaves_them_open(outer, inner, crossing):
    """Their own blocks exit them, though the source does not show what they are."""
    stack, second = ExitStack(), ExitStack()
    stack.enter_context(leak_check())
    with contextlib.suppress(GradLeakError):
        with TABLE[outer]():
            if crossing:
                second.enter_context(leak_check())
            with TABLE[inner]():
                with contextlib.suppress(GradLeakError):
                    stack.close()
                second.close()

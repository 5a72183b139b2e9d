"""leak_check: what it finds, what it puts back, and that it hides nothing."""

import asyncio
import threading

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradLeakError, GradState, leak_check

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
    assert any("python -m gradguard run" in line for line in rest)
    assert any(line.startswith("To do: ") for line in rest)


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


def test_a_compiled_step_keeps_one_graph():
    """While Dynamo compiles it does nothing: no graph break, as a block and as a decorator."""
    torch._dynamo.reset()
    net = model()

    @leak_check(net)
    def double(x):
        return x * 2

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        with leak_check(net):
            return double(x)

    assert step(torch.ones(2)).tolist() == [2.0, 2.0]


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

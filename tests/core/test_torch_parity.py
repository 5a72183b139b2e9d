"""Wherever torch is right, gradguard gives the same.

The rows in which torch is wrong, left out here by `torch_is_right`, are in test_torch_wrong.py.
"""

import functools
import inspect
from itertools import product

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradState, grad_state, guards
from gradguard._core.guard_stack import thread
from gradguard._core.state import put_back

GRAD = GradState(grad_enabled=True, inference_mode=False)

# By name: the guard of a library.
GUARDS = {
    "no_grad": lambda lib: lib.no_grad(),
    "enable_grad": lambda lib: lib.enable_grad(),
    "set_off": lambda lib: lib.set_grad_enabled(False),
    "set_on": lambda lib: lib.set_grad_enabled(True),
    "inference": lambda lib: lib.inference_mode(),
    "no_inference": lambda lib: lib.inference_mode(False),
}
BARE = {
    "no_grad": lambda lib: lib.no_grad,
    "enable_grad": lambda lib: lib.enable_grad,
    "inference": lambda lib: lib.inference_mode,
    "inference(mode=fn)": lambda lib: lambda fn: lib.inference_mode(mode=fn),
}
DECORATORS = {
    **{f"{name}()": (lambda lib, make=make: make(lib)) for name, make in GUARDS.items()},
    **BARE,
}
LIBRARIES = (torch, gradguard)


@pytest.fixture(autouse=True)
def thread_is_clean():
    """Every test begins and ends recording, with no guard open."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    ended = grad_state(), guards()
    thread.cell[0] = None  # so that a failure is one failure
    put_back(GRAD)
    assert ended == (GRAD, ())


def torch_is_right(*names):
    """Whether torch is right about these guards, entered one inside the other while recording."""
    inference, off = False, False
    for name in names:
        if name in {"enable_grad", "set_on"}:
            if inference:
                return False  # it does not record
            off = False
        elif name == "inference":
            inference = True
        elif name == "no_inference":
            if off:
                return False  # it turns grad on inside no_grad
            inference = False
        else:
            off = True
    return True


RIGHT_PAIRS = [pair for pair in product(GUARDS, repeat=2) if torch_is_right(*pair)]
RIGHT_TRIPLES = [names for names in product(GUARDS, repeat=3) if torch_is_right(*names)]
pairs = pytest.mark.parametrize("names", RIGHT_PAIRS, ids="-".join)
triples = pytest.mark.parametrize("names", RIGHT_TRIPLES, ids="-".join)

WEIGHT = torch.ones(1, requires_grad=True)


def seen():
    """The two flags, and what they make of an operation."""
    made = WEIGHT * 2
    return grad_state(), made.requires_grad, made.is_inference(), torch.ones(1).is_inference()


def same(scenario, *more):
    """Run a scenario with every choice of libraries; all must give what torch gives."""
    results = []
    for libraries in product(LIBRARIES, repeat=max(1, len(more))):
        results.append(scenario(*libraries))
        assert (grad_state(), guards()) == (GRAD, ())
    assert all(result == results[0] for result in results[1:])
    return results[0]


# Blocks


@triples
def test_nested_blocks(names):
    """Three nested blocks, of either library each: the same mode at every point."""

    def scenario(one, two, three):
        points = [seen()]
        with GUARDS[names[0]](one):
            points.append(seen())
            with GUARDS[names[1]](two):
                points.append(seen())
                with GUARDS[names[2]](three):
                    points.append(seen())
                points.append(seen())
            points.append(seen())
        return points

    same(scenario, *names)


@pairs
def test_blocks_one_after_the_other(names):
    """Guards made before either is entered, entered one after the other."""

    def scenario(lib):
        points, made = [], [GUARDS[name](lib) for name in names if "set" not in name]
        for guard in made:
            with guard:
                points.append(seen())
            points.append(seen())
        return points

    same(scenario)


@pairs
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_blocks_left_by_an_error(names, error):
    """An error passes through both blocks, and the mode comes back."""

    def scenario(one, two):
        points = []
        with pytest.raises(error) as caught, GUARDS[names[0]](one):
            try:
                with GUARDS[names[1]](two):
                    raise error
            finally:
                points.append(seen())
        return points, type(caught.value)

    same(scenario, *names)


@pytest.mark.parametrize("name", GUARDS)
@pytest.mark.parametrize("on", [True, False])
def test_raw_switch_in_a_block(name, on):
    """A raw call, or `set_grad_enabled` as a statement, decides to the end of the block."""

    def scenario(lib, statement):
        points = []
        with GUARDS[name](lib):
            statement.set_grad_enabled(on)
            points.append(seen())
            torch._C._set_grad_enabled(not on)
            points.append(seen())
        points.append(seen())
        return points

    same(scenario, 1, 2)


@pytest.mark.parametrize("name", GUARDS)
def test_training_around_and_inside(name):
    """The gradients of a step that has such a block in it are the same."""

    def scenario(lib):
        weight = torch.ones(3, requires_grad=True)
        with GUARDS[name](lib):
            scale = (weight * 2).sum()
        scale = scale.clone() if scale.is_inference() else scale
        if name == "inference":
            scale = torch.ones(())
        (weight.sum() * scale).backward()
        return weight.grad.tolist()

    same(scenario)


# set_grad_enabled


@pytest.mark.parametrize("mode", [True, False])
def test_set_grad_enabled_forms(mode):
    """As a statement, as a block made at once or earlier, and as a decorator."""

    def scenario(lib):
        points = []
        with lib.no_grad():
            lib.set_grad_enabled(mode)
            points.append(seen())
        points.append(seen())
        guard = lib.set_grad_enabled(mode)
        points.append(seen())
        with guard:
            points.append(seen())
        points.append(seen())
        decorate = lib.set_grad_enabled(mode)
        decorated = decorate(seen)
        points.append(seen())
        return [*points, decorated(), seen()]

    same(scenario)


@pytest.mark.parametrize("mode", [True, False])
def test_set_grad_enabled_statement_in_inference_mode(mode):
    """As a statement it acts on the grad flag alone, also there."""

    def scenario(one, two):
        with one.inference_mode():
            two.set_grad_enabled(mode)
            return seen()

    same(scenario, 1, 2)


def test_set_grad_enabled_made_then_switched_then_entered():
    """The first exit brings back the mode from before construction."""

    def scenario(lib):
        guard = lib.set_grad_enabled(False)
        torch._C._set_grad_enabled(True)
        torch._C._set_grad_enabled(False)
        with guard:
            pass
        return seen()

    same(scenario)


# Functions


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x)


def plain(value=1):
    """A docstring."""
    return value, seen()


def raising(value=1):
    raise KeyError(value, seen())


def generator(value=1):
    """A docstring."""
    yield value, seen()
    sent = yield seen()
    yield sent, seen()
    return seen()


class Callable:
    def __call__(self, value=1):
        return value, seen()

    def method(self, value=1):
        return value, seen()

    def streaming(self, value=1):
        yield value, seen()


def whole(result):
    """All that a generator gives, and its consumer's mode between the steps."""
    if not inspect.isgenerator(result):
        return result
    points = []
    try:
        points.append(next(result))
        while True:
            points.append(seen())
            points.append(result.send("sent"))
    except StopIteration as stop:
        points.append(stop.value)
    return points


FUNCTIONS = {
    "plain": plain,
    "lambda": lambda value=1: (value, seen()),
    "generator": generator,
    "partial": functools.partial(plain, 3),
    "partial generator": functools.partial(generator, 3),
    "callable": Callable(),
    "bound": Callable().method,
    "bound generator": Callable().streaming,
    "builtin": torch.is_grad_enabled,
    "cached": functools.lru_cache(maxsize=None)(lambda: 3),
}
each_function = pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
each_decorator = pytest.mark.parametrize("name", DECORATORS)


@each_decorator
@each_function
def test_decorated_functions(name, fn):
    """The body's mode, the caller's, and each value are the same."""
    if fn is FUNCTIONS["partial generator"]:
        fn = generator  # torch does not see through a partial

    def scenario(lib):
        decorated = DECORATORS[name](lib)(fn)
        return whole(decorated()), seen(), whole(decorated()), seen()

    same(scenario)


@each_decorator
@each_function
def test_decorated_functions_look_the_same(name, fn):
    """Kind, signature, names and docstring are the same."""
    if "partial" in str(fn):
        return  # torch does not see through a partial

    def scenario(lib):
        decorated = DECORATORS[name](lib)(fn)
        try:
            signature = inspect.signature(decorated)
        except ValueError:
            signature = None
        return (
            inspect.isgeneratorfunction(decorated),
            inspect.isfunction(decorated),
            signature,
            decorated.__doc__,
            getattr(decorated, "__name__", None),
            getattr(decorated, "__qualname__", None),
            getattr(decorated, "__module__", None),
            decorated.__wrapped__ is fn,
        )

    if name.endswith("callable"):
        return
    theirs, ours = scenario(torch), scenario(gradguard)
    if not hasattr(fn, "__name__"):
        theirs, ours = theirs[:4] + theirs[6:], ours[:4] + ours[6:]
    assert ours == theirs


@each_decorator
def test_decorated_functions_that_raise(name):
    """What the body raises comes out, and the mode comes back."""

    def scenario(lib):
        with pytest.raises(KeyError) as caught:
            DECORATORS[name](lib)(raising)(value=5)
        return caught.value.args, seen()

    same(scenario)


DECORATOR_PAIRS = [
    pair
    for pair in product(DECORATORS, repeat=2)
    if torch_is_right(*(name.partition("(")[0] for name in pair))
]


@pytest.mark.parametrize("names", DECORATOR_PAIRS, ids="-".join)
@pytest.mark.parametrize("kind", ["plain", "generator", "raising"])
def test_stacked_decorators(names, kind):
    """Two decorators on one function, of either library each."""
    fn = {"plain": plain, "generator": generator, "raising": raising}[kind]

    def scenario(outer, inner):
        decorated = DECORATORS[names[0]](outer)(DECORATORS[names[1]](inner)(fn))
        try:
            return whole(decorated()), seen()
        except KeyError as error:
            return error.args, seen()

    same(scenario, *names)


@pairs
@pytest.mark.parametrize("kind", ["plain", "generator"])
def test_decorated_functions_inside_blocks(names, kind):
    """A decorated function called inside a block."""
    fn = {"plain": plain, "generator": generator}[kind]

    def scenario(outer, inner):
        decorated = GUARDS[names[1]](inner)(fn)
        with GUARDS[names[0]](outer):
            return seen(), whole(decorated()), seen()

    same(scenario, *names)


@pairs
def test_blocks_inside_decorated_functions(names):
    """A block inside a decorated function that is not suspended in it."""

    def scenario(outer, inner):
        @GUARDS[names[0]](outer)
        def decorated():
            points = [seen()]
            with GUARDS[names[1]](inner):
                points.append(seen())
            return [*points, seen()]

        @GUARDS[names[0]](outer)
        def streaming():
            yield seen()
            with GUARDS[names[1]](inner):
                inside = seen()
            yield inside
            yield seen()

        return decorated(), whole(streaming()), seen()

    same(scenario, *names)


@pytest.mark.parametrize("name", DECORATORS)
def test_methods_of_a_model(name):
    """`forward` decorated in a class, on an instance, and the whole model."""

    def scenario(lib):
        decorate = DECORATORS[name](lib)
        results = []
        owner = type("Owner", (Model,), {"forward": DECORATORS[name](lib)(Model.forward)})
        for net in (owner(), DECORATORS[name](lib)(Model())):
            out = net(torch.ones(1, 1))
            results.append((out.requires_grad, out.is_inference(), seen()))
        net = Model()
        net.forward = decorate(net.forward)
        out = net(torch.ones(1, 1))
        return [*results, (out.requires_grad, out.is_inference())]

    same(scenario)


@pytest.mark.parametrize("name", DECORATORS)
def test_static_methods(name):
    """`staticmethod` over and, for plain functions, under the guard."""

    def scenario(lib):
        over = type("Owner", (), {"look": staticmethod(DECORATORS[name](lib)(plain))})
        under = type("Owner", (), {"look": DECORATORS[name](lib)(staticmethod(plain))})
        return over.look(5), over().look(6), under.look(7)

    same(scenario)


def test_class_methods_over_the_guard():
    """`classmethod` over the guard, the order that torch can do."""

    def scenario(lib):
        owner = type(
            "Owner", (), {"look": classmethod(lib.no_grad()(lambda cls: (cls.__name__, seen())))}
        )
        return owner.look(), owner().look()

    same(scenario)


# Generators under torch's protocol


@each_decorator
@pytest.mark.parametrize("stop", ["close", "throw", "drop", "exhaust"])
def test_generators_stopped(name, stop):
    """However a generator ends, its cleanup runs in its mode, and its caller keeps its own."""

    def scenario(lib):
        points = []

        @DECORATORS[name](lib)
        def body():
            try:
                yield seen()
                yield seen()
            except KeyError:
                points.append(("caught", seen()))
                yield "went on"
            finally:
                points.append(("finally", seen()))

        running = body()
        points.append(next(running))
        if stop == "close":
            running.close()
        elif stop == "throw":
            points.append(running.throw(KeyError))
            running.close()
        elif stop == "exhaust":
            points.extend(running)
        del running
        return points, seen()

    same(scenario)


@each_decorator
def test_nested_generators(name):
    """`yield from` a decorated generator gives its values and its return value."""

    def scenario(lib):
        @DECORATORS[name](lib)
        def inner():
            got = yield seen()
            return got, seen()

        def outer():
            result = yield from inner()
            yield result, seen()

        return whole(outer())

    same(scenario)


# Autograd's own switching


@pytest.mark.parametrize("name", ["no_grad", "enable_grad", "set_off", "set_on"])
def test_inside_autograd_functions_and_hooks(name):
    """Inside a custom function's forward and backward, and in hooks, the same mode is seen."""

    def scenario(lib):
        points = []

        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                points.append(grad_state())
                with GUARDS[name](lib):
                    points.append(grad_state())
                points.append(grad_state())
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                with GUARDS[name](lib):
                    points.append(grad_state())
                points.append(grad_state())
                return grad * 2

        weight = torch.ones(1, requires_grad=True)
        weight.register_hook(lambda _: points.append(GUARDS[name](lib)(grad_state)()))
        for create_graph in (False, True):
            torch.autograd.grad(Double.apply(weight).sum(), weight, create_graph=create_graph)
        Double.apply(weight).sum().backward()
        return points, weight.grad.tolist()

    same(scenario)


def test_double_backward_and_views():
    """Views made under a guard, and a second backward, behave as under torch's."""

    def scenario(lib):
        weight = torch.ones(4, requires_grad=True)
        with lib.no_grad():
            weight[:2].mul_(3)
            view = weight.view(2, 2)
        grad = torch.autograd.grad((weight**3).sum(), weight, create_graph=True)[0]
        grad.sum().backward()
        return weight.tolist(), view.requires_grad, weight.grad.tolist(), weight._version

    same(scenario)


def test_inference_tensors_are_as_strict():
    """An inference tensor cannot be saved for backward, and can be changed only inside the mode."""

    def scenario(lib):
        with lib.inference_mode():
            frozen = torch.ones(2)
        weight = torch.ones(2, requires_grad=True)
        with pytest.raises(RuntimeError) as saved:
            weight * frozen
        with pytest.raises(RuntimeError) as changed:
            frozen.add_(1)
        with lib.inference_mode():
            frozen.add_(1)
        return str(saved.value), str(changed.value), frozen.tolist()

    same(scenario)


@pytest.mark.parametrize("bad", [None, 0, 1, "yes", 1.5])
def test_bad_modes_are_refused_by_both(bad):
    """torch refuses these modes with a `TypeError` or another error; gradguard with a `TypeError`."""
    with pytest.raises(Exception):  # noqa: B017, PT011 (torch's own kinds differ)
        torch.set_grad_enabled(bad)
    with pytest.raises(TypeError):
        gradguard.set_grad_enabled(bad)

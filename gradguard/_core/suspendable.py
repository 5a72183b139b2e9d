"""What can be suspended: telling it, stepping it, and the loop that drives it."""

import dis
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Protocol
from weakref import ReferenceType

from typing_extensions import Self

from gradguard._core.guard_stack import MADE_BY_TORCH, Link, Opener, Owner


class Suspendable:
    """What a body runs under: taken up before each of its steps, laid down after it."""

    __slots__ = ()

    def resume(self) -> None:
        """Take it up."""
        raise NotImplementedError

    def suspend(self) -> None:
        """Lay it down until the next step."""
        raise NotImplementedError

    def finish(self) -> None:
        """Lay it down for good: the body has returned, raised or been closed."""
        raise NotImplementedError

    def step(self, call: Callable[[Any], Any], passed: list[Any], *, more: bool = False) -> Any:
        """Call `call` (the `send` or `throw` of the body) with what is `passed` to it.

        In a list, because the variables of a frame keep alive what nobody else needs any more; and
        an error that was thrown in would keep the frame, and so itself.

        Raises:
            StopIteration: the body has returned. `more` says that this is only a suspension: what
                steps an async generator returns what the generator has yielded.
        """
        self.resume()
        try:
            result = call(passed.pop())
        except StopIteration:
            (self.suspend if more else self.finish)()
            raise
        except BaseException:
            self.finish()
            raise
        finally:
            del call  # that of an async generator holds the error, too
        self.suspend()
        return result


def has_ended(made: Any) -> bool:
    """Tell whether a generator, coroutine or async generator will never run again."""
    kind = type(made)
    if kind is GeneratorType:
        return made.gi_frame is None
    if kind is CoroutineType:
        return made.cr_frame is None
    return kind is not AsyncGeneratorType or made.ag_frame is None


def close_in_its_mode(made: Any, body: Suspendable) -> None:
    """Close a generator or coroutine that nobody will step any more, unless it is running."""

    def close(_: object) -> None:
        made.close()
        raise StopIteration

    if not (made.gi_running if type(made) is GeneratorType else made.cr_running):
        with suppress(StopIteration):
            body.step(close, [None])


def has_begun(made: Any) -> bool:
    """Tell whether a generator, coroutine or async generator has run already, or is over."""
    if type(made) is GeneratorType:
        return inspect.getgeneratorstate(made) != inspect.GEN_CREATED
    if type(made) is CoroutineType:
        return inspect.getcoroutinestate(made) != inspect.CORO_CREATED
    frame = made.ag_frame
    if frame is None or frame.f_lasti < 0:
        return frame is None
    suspended: bool | None = getattr(made, "ag_suspended", None)  # from Python 3.12 on
    if suspended is not None:
        return suspended or made.ag_running
    at: str = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return at != "RETURN_GENERATOR"


def first_step(target: AsyncGenerator[Any, Any]) -> Any:
    """Begin `target` without its loop's knowledge.

    A loop that shuts down closes each async generator it knows, all at once: it would run the
    body's end outside its mode, and amid the wrapper's own closing of it.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return target.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


@types.coroutine
def drive(
    target: Any, body: Suspendable, made: Any, *, more: bool = False
) -> Generator[Any, Any, Any]:
    """Run `target` (a coroutine, or what steps an async generator) under `body`.

    As ``yield from`` (PEP 380), with `body` taken up for each step: what is sent or thrown in
    reaches `target`, and its return value is returned. An interrupt that comes between two steps is
    thrown in, too: it is the body's to answer, as it would have been if it had come in the body.

    Args:
        target: what is stepped.
        body: what it runs under.
        made: what tells whether the body has ended: `target`, or the async generator.
        more: as for `Suspendable.step`.

    """
    call: Any = target.send
    passed: list[Any] = [None]
    interrupt: BaseException | None = None
    try:
        while True:
            try:
                passed.append(body.step(call, passed, more=more))
            except StopIteration as stop:
                return stop.value
            except BaseException as raised:
                if interrupt is not None and made is not target and _has_no_more_steps(raised):
                    raise interrupt from None  # it came when the step was over
                if interrupt is not None or has_ended(made):
                    raise
                interrupt, passed[:], call = raised, [raised], target.throw
                continue
            interrupt = None
            try:
                passed.append((yield passed.pop()))
                call = target.send
            except BaseException as thrown:  # noqa: BLE001 (it is the body's to answer)
                passed[:] = [thrown]
                call = target.throw
    except BaseException:
        if made is target and not has_ended(made):  # an interrupt came amid the lines above
            close_in_its_mode(made, body)
        raise
    finally:
        del (
            target,
            call,
            interrupt,
        )  # an error thrown in would keep this frame, and so itself, alive


def _has_no_more_steps(error: BaseException) -> bool:
    """Tell whether this is what an async generator's step, which is over, says to an error."""
    return isinstance(error, RuntimeError) and "cannot reuse already awaited" in str(error)


class EntersBodies(Protocol):
    """A guard, for the body of a call."""

    def enter_body(self) -> None: ...


def steady_mode(own: list[Link], modes: list[bool]) -> tuple[bool, bool] | None:
    """The mode in which an inference block is innermost, and none below it switched that mode."""
    tokens = [link[2] is not None for link in own]
    return (False, True) if tokens[:1] == [True] and sum(tokens) == 1 and modes[0] else None


def without_tokens(own: list[Link]) -> list[tuple[Opener, bool | None]]:
    """The guards of a body that have none, and what each found, outermost first.

    A function of its own: CPython 3.12 puts no handler around the jump back of a loop from amid
    its body, so an interrupt there would pass by a ``with`` or ``try`` around the loop.
    """
    return [link[:2] for link in reversed(own) if link[2] is None]


def all_asleep(own: list[Link], modes: list[bool]) -> tuple[list[Link], list[bool]]:
    """The links of a body as `asleep`, without those of torch's own guards, and their modes."""
    slept = [(asleep(link), mode) for link, mode in zip(own, modes, strict=True)]
    return [link for link, _ in slept if link], [mode for link, mode in slept if link]


def asleep(link: Link) -> Link | None:
    """A link as it is kept while the body is suspended: without a token, and without those below.

    An `Owner` lies in it itself: where a body is part of a cycle that is collected, a weak
    reference to the guards in its frame is gone before the body is closed.
    """
    guard, found, token, _ = link
    if guard is MADE_BY_TORCH:
        return None
    if not isinstance(token, ReferenceType):
        return guard, found, None if token is None else True, None
    owner: Owner | None = token()
    if owner is None:
        return None
    asleep: Link = (guard, found, owner, None)
    owner.link = asleep
    return asleep


class exited_at_error:  # noqa: N801 (as contextlib's own)
    """Exits a token where an interrupt comes: dropped, it would switch at a random time."""

    token: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.token is not None:
            self.token.__exit__(None, None, None)


def give_back(own: list[Link], made: list[Any]) -> None:
    """Exit the tokens of a resume that an interrupt has cut short, and have its guards sleep on."""
    for token in reversed(made):
        token.__exit__(None, None, None)
    for link in own:
        if isinstance(link[2], Owner):
            link[2].link = link

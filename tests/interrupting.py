"""An exception from outside wherever it can come in an entry, step or exit: that of a signal.

Up to Python 3.11 a trace function raises at each bytecode, which is more than signals reach. From
3.12 on it is raised exactly where CPython looks for signals, which `sys.monitoring` shows.
"""

import asyncio
import dis
import functools
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

import gradguard
from gradguard._core.guard_stack import thread
from gradguard._core.state import set_inference
from gradguard._eval.modules_in_eval import groups

HOME = {library: str(Path(library.__file__).parent) for library in (torch, gradguard)}
BOTH = torch, gradguard  # in the place of a library
NET = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
IN_EVAL = torch.nn.Dropout().eval()
EACH_BYTECODE = sys.version_info < (3, 12)


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, and what the handlers of time limits raise."""


@contextmanager
def prepared(kind):
    """Have what interrupts ready, for one run or for many."""
    if kind.ready:
        yield
        return
    kind.prepare()
    kind.ready = True
    try:
        yield
    finally:
        kind.ready = False
        kind.end()


class Interrupting:
    """Run something, with an interrupt at one point of a library."""

    ready = False

    def __init__(self, library, position):
        self.library = library
        self.left = position
        self.came = False

    def run(self, work):
        """Return whether the interrupt came, and whether it came out."""
        with prepared(type(self)):
            return self.run_once(work)

    def run_once(self, work):
        self.start()
        try:
            work()
        except Interrupt:
            return self.came, True
        finally:
            self.stop()
        return self.came, False

    def is_in_library(self, code):
        homes = HOME[self.library] if self.library is not BOTH else tuple(HOME.values())
        generated = self.library is not torch and code.co_filename.startswith("<gradguard")
        return generated or code.co_filename.startswith(homes)

    def at_start(self, code, offset):
        """Be at the beginning of a function, or where it is resumed."""
        self.at(code)

    def at(self, code):
        if self.is_in_library(code):
            self.point(code)

    def point(self, code):
        self.left -= 1
        if self.left < 0:
            self.came = True
            self.stop()
            raise Interrupt


class AtBytecodes(Interrupting):
    """At one bytecode: up to Python 3.11, which looks for signals at some of them."""

    def start(self):
        sys.settrace(self)

    def stop(self):
        sys.settrace(None)

    @staticmethod
    def prepare():
        pass

    end = prepare

    def __call__(self, frame, event, arg):
        if not self.is_in_library(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        points = no_nops(frame.f_code)

        def at_opcode(frame, event, arg):
            if event == "opcode":
                if self.left > 0:  # most are passed by
                    self.left -= frame.f_lasti in points
                elif frame.f_lasti in points:
                    self.point(frame.f_code)
            return at_opcode

        return at_opcode


class AtCalls(AtBytecodes):
    """Up to Python 3.11 at most of the points at which it looks for signals.

    Not where it jumps back; nor, up to 3.10, where a generator is resumed: it is left there at once.
    """

    def start(self):
        sys.setprofile(self)

    def stop(self):
        sys.setprofile(None)

    def __call__(self, frame, event, arg):
        code = frame.f_code
        if event == "call" and looks_at_call(code, frame.f_lasti):
            self.at_start(code, frame.f_lasti)
        elif event == "c_return":
            self.at(code)


class WhereSignalsCome(Interrupting):
    """Where CPython looks for signals from Python 3.12 on, and nowhere else.

    That is where a function written in Python begins or is resumed by `next` or `send`, but not in
    the midst of an `await` or a ``yield from``; where it jumps back; and where a call of what is not
    written in Python has returned: the instructions with the eval breaker in CPython's bytecodes.c.
    """

    TOOL = 4  # of those that are nobody's
    running = None

    def start(self):
        WhereSignalsCome.running = self

    def stop(self):
        WhereSignalsCome.running = None

    @classmethod
    def prepare(cls):
        events, on = sys.monitoring.events, sys.monitoring.register_callback
        sys.monitoring.use_tool_id(cls.TOOL, "interrupts")
        on(cls.TOOL, events.PY_START, cls._started)
        on(cls.TOOL, events.PY_RESUME, cls._started)
        on(cls.TOOL, events.C_RETURN, cls._returned)  # it comes with CALL
        # Not JUMP: up to 3.13 what is raised there is not looked for a handler at the jump.
        on(cls.TOOL, events.INSTRUCTION, cls._runs)
        asked = events.PY_START | events.PY_RESUME | events.CALL | events.INSTRUCTION
        sys.monitoring.restart_events()
        sys.monitoring.set_events(cls.TOOL, asked)

    @classmethod
    def end(cls):
        sys.monitoring.set_events(cls.TOOL, 0)
        sys.monitoring.free_tool_id(cls.TOOL)

    @staticmethod
    def _started(code, offset):
        running = WhereSignalsCome.running
        if running is not None and not is_amid_await(code, offset):
            running.at_start(code, offset)

    @staticmethod
    def _runs(code, offset):
        if offset not in jumps_back(code):
            return sys.monitoring.DISABLE  # most are none, and need not be asked about again
        return WhereSignalsCome._returned(code)

    @staticmethod
    def _returned(code, *_):
        running = WhereSignalsCome.running
        if running is not None:
            running.at(code)


def is_amid_await(code, offset):
    after_yield_from = 2  # of the argument of RESUME; 3 is after an await
    return code.co_code[offset + 1] & 3 >= after_yield_from


def looks_at_call(code, offset):
    """Tell whether CPython 3.10 or 3.11 looks for signals: not where something is thrown in."""
    if sys.version_info < (3, 11):
        return offset < 0
    return code.co_code[offset] == dis.opmap["RESUME"] and not is_amid_await(code, offset)


@functools.cache
def no_nops(code):
    """Return where a NOP is not: it has no place in the table of handlers, and waits for nothing."""
    return {each.offset for each in dis.get_instructions(code) if each.opname != "NOP"}


@functools.cache
def jumps_back(code):
    return {each.offset for each in dis.get_instructions(code) if each.opname == "JUMP_BACKWARD"}


Tracing = AtBytecodes if EACH_BYTECODE else WhereSignalsCome
Signals = AtCalls if EACH_BYTECODE else WhereSignalsCome


def step_through(coroutine):
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass


async def drain(items):
    async for _ in items:
        pass


def forms(library):
    """Return what only enters and exits, in each way that torch has, too."""

    @library.no_grad()
    def plain():
        pass

    @library.enable_grad()
    def plain_enable():
        pass

    @library.inference_mode()
    def plain_inference():
        pass

    @library.no_grad()
    def generator():
        yield
        yield

    @library.inference_mode()
    def generator_inference():
        yield
        with library.no_grad():
            yield

    def block(make):
        def work():
            with make():
                pass

        return work

    return {
        "with no_grad": block(library.no_grad),
        "with enable_grad": block(library.enable_grad),
        "with set_grad_enabled": block(lambda: library.set_grad_enabled(False)),
        "with inference_mode": block(library.inference_mode),
        "with inference_mode(False)": block(lambda: library.inference_mode(False)),
        "@no_grad": plain,
        "@enable_grad": plain_enable,
        "@inference_mode": plain_inference,
        "@no_grad generator": lambda: list(generator()),
        "@inference_mode generator": lambda: list(generator_inference()),
    }


def own_forms():
    """Return what torch has no such form of, or one that does nothing: nothing may be left."""

    @gradguard.no_grad
    async def coroutine():
        await asyncio.sleep(0)
        with gradguard.enable_grad():
            await asyncio.sleep(0)

    @gradguard.inference_mode
    async def async_generator():
        yield
        await asyncio.sleep(0)
        yield

    @gradguard.evaluating(NET)
    def evaluated():
        pass

    @gradguard.inference_function
    def predict(net):
        pass

    @gradguard.inference_function
    def stream(net):
        yield
        yield

    def block():
        with gradguard.evaluating(NET):
            pass

    return {
        "@no_grad async def": lambda: step_through(coroutine()),
        "@inference_mode async generator": lambda: step_through(drain(async_generator())),
        "with evaluating": block,
        "@evaluating": evaluated,
        "@inference_function": lambda: predict(NET),
        "@inference_function, in eval already": lambda: predict(IN_EVAL),
        "@inference_function generator": lambda: list(stream(NET)),
    }


def every_position(library, work, *, start=True, tracing=Tracing, afterwards=lambda: None):
    """Interrupt at each point in turn; count what is wrong after, by its kind."""
    counts = {"positions": 0, "mode": 0, "guards": 0, "lost": 0, "flags": 0}
    modules = [*NET.modules(), *IN_EVAL.modules()]
    flags = [module.training for module in modules]
    work()  # what the first call imports or makes is no part of it
    with prepared(AtBytecodes if EACH_BYTECODE else WhereSignalsCome):
        while True:
            torch._C._set_grad_enabled(start)
            came, came_out = tracing(library, counts["positions"]).run(work)
            if not came:
                return counts
            counts["positions"] += 1
            mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            counts["mode"] += mode != (start, False)
            counts["guards"] += gradguard.guards() != ()
            counts["lost"] += not came_out
            counts["flags"] += [module.training for module in modules] != flags or bool(groups)
            thread.cell[0] = None
            set_inference(False)
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            groups.clear()
            afterwards()

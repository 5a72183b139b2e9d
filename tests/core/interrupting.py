"""An exception from outside, raised at a point of a library where a signal's handler might run."""

import dis
import functools
import sys
from pathlib import Path

import torch

import gradguard

HOME = {library: str(Path(library.__file__).parent) for library in (torch, gradguard)}
EACH_BYTECODE = sys.version_info < (3, 12)


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, and what the handlers of time limits raise."""


class Interrupting:
    """Run something, with an interrupt at one point of a library."""

    def __init__(self, library, position):
        self.library = library
        self.left = position
        self.came = False

    def run(self, work):
        """Return whether the interrupt came, and whether it came out."""
        self.start()
        try:
            work()
        except Interrupt:
            return self.came, True
        finally:
            self.stop()
        return self.came, False

    def is_in_library(self, code):
        generated = self.library is gradguard and code.co_filename.startswith("<gradguard")
        return generated or code.co_filename.startswith(HOME[self.library])

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


class AfterCalls(AtBytecodes):
    """As well as a trace function can: where CPython looks for signals up to Python 3.11."""

    def __call__(self, frame, event, arg):
        if not self.is_in_library(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        points = after_calls(frame.f_code)

        def at_opcode(frame, event, arg):
            if event == "opcode" and frame.f_lasti in points:
                self.point(frame.f_code)
            return at_opcode

        return at_opcode


class WhereSignalsCome(Interrupting):
    """Where CPython looks for signals from Python 3.12 on, and nowhere else.

    That is where a function written in Python begins or is resumed by `next` or `send`, but not in
    the midst of an `await` or a ``yield from``; where it jumps back; and where a call of what is not
    written in Python has returned: the instructions with the eval breaker in CPython's bytecodes.c.
    """

    TOOL = 4  # of those that are nobody's

    def start(self):
        events, on = sys.monitoring.events, sys.monitoring.register_callback
        sys.monitoring.use_tool_id(self.TOOL, "interrupts")
        on(self.TOOL, events.PY_START, self.at_start)
        on(self.TOOL, events.PY_RESUME, self.at_start)
        on(self.TOOL, events.C_RETURN, self.at_return)  # it comes with CALL
        # Not JUMP: up to 3.13 what is raised there is not looked for a handler at the jump.
        on(self.TOOL, events.INSTRUCTION, self.at_instruction)
        asked = events.PY_START | events.PY_RESUME | events.CALL | events.INSTRUCTION
        sys.monitoring.set_events(self.TOOL, asked)

    def stop(self):
        if sys.monitoring.get_tool(self.TOOL) is not None:
            sys.monitoring.set_events(self.TOOL, 0)
            sys.monitoring.free_tool_id(self.TOOL)

    def at_start(self, code, offset):
        after_yield_from = 2  # of the argument of RESUME; 3 is after an await
        if self.is_in_library(code) and code.co_code[offset + 1] & 3 < after_yield_from:
            self.point(code)

    def at_instruction(self, code, offset):
        if self.is_in_library(code) and offset in jumps_back(code):
            self.point(code)

    def at_return(self, code, offset, function, first):
        if self.is_in_library(code):
            self.point(code)


@functools.cache
def no_nops(code):
    """Return where a NOP is not: it has no place in the table of handlers, and waits for nothing."""
    return {each.offset for each in dis.get_instructions(code) if each.opname != "NOP"}


@functools.cache
def after_calls(code):
    """Return where a function goes on when it has begun, was resumed or called, or jumps back."""
    found, looks = set(), True
    for each in dis.get_instructions(code):
        if each.opname == "NOP":
            continue
        if looks or each.opname in ("JUMP_BACKWARD", "JUMP_ABSOLUTE"):
            found.add(each.offset)
        after_yield_from = 2  # of the argument of RESUME; 3 is after an await
        resumes = each.opname == "RESUME" and each.arg < after_yield_from
        looks = resumes or each.opname.startswith("CALL")
    return found


@functools.cache
def jumps_back(code):
    return {each.offset for each in dis.get_instructions(code) if each.opname == "JUMP_BACKWARD"}


Tracing = AtBytecodes if EACH_BYTECODE else WhereSignalsCome
Signals = AfterCalls if EACH_BYTECODE else WhereSignalsCome

"""How often an interrupt leaves the mode wrong: torch's guards and gradguard's, the same program.

Usage: python benchmarks/interrupts.py [--storms N] [--seconds S]

Each storm is a process of its own (a fork: importing torch takes seconds), which only enters and
exits while a timer's signal raises an exception at a random point. It ends with the mode as it
should be, or not. Interrupts that never reached the program (raised in a destructor, where Python
drops them) are counted, and so are guards left on the thread's chain. Prints a table and writes
interrupts.json beside this file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STORM = """
import os, random, signal, sys, torch, gradguard
library, form, storms, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
guards = torch if library == "torch" else gradguard

class Interrupt(BaseException):
    pass

raised = swallowed = caught = 0
armed = False

def interrupt(*_):
    global raised
    if armed:
        raised += 1
        raise Interrupt

def unraisable(hook):
    global swallowed
    swallowed += hook.exc_type is Interrupt

sys.unraisablehook = unraisable

@guards.no_grad()
def decorated():
    pass

@guards.inference_mode()
def decorated_inference():
    pass

@guards.no_grad()
def generator():
    yield
    yield

@guards.inference_mode()
def generator_inference():
    yield
    yield

def blocks(guard):
    def work():
        with guard():
            pass
    return work

def steps(function):
    def work():
        for _ in function():
            pass
    return work

FORMS = {
    "with no_grad": blocks(guards.no_grad),
    "with enable_grad": blocks(guards.enable_grad),
    "with inference_mode": blocks(guards.inference_mode),
    "@no_grad": decorated,
    "@inference_mode": decorated_inference,
    "@no_grad generator": steps(generator),
    "@inference_mode generator": steps(generator_inference),
}
work = FORMS[form]
expected = torch.is_grad_enabled(), False
if form == "with enable_grad":
    torch._C._set_grad_enabled(False)
    expected = False, False
signal.signal(signal.SIGALRM, interrupt)
work()

def storm():
    global armed
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.2, 1.2) * seconds)
    armed = True
    try:
        while True:
            work()
    finally:
        armed = False

for seed in range(storms):
    process = os.fork()
    if process:
        os.waitpid(process, 0)
        continue
    random.seed(seed)
    try:
        storm()
    except Interrupt:
        caught += 1
    now = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    print(int(now != expected), raised - caught, len(gradguard.guards()), flush=True)
    os._exit(0)
"""
FORMS = (
    "with no_grad",
    "with enable_grad",
    "with inference_mode",
    "@no_grad",
    "@inference_mode",
    "@no_grad generator",
    "@inference_mode generator",
)


def totals_of(library, form, storms, seconds):
    """Return how often the mode was wrong, how many interrupts were lost and guards left open."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        STORM,
        library,
        form,
        str(storms),
        str(seconds),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found = [[int(number) for number in line.split()] for line in ran.stdout.splitlines()]
    if len(found) != storms:
        msg = f"{storms - len(found)} storms ended otherwise:\n{ran.stderr}"
        raise SystemExit(msg)
    return [sum(column) for column in zip(*found, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storms", type=int, default=400, help="processes for each form")
    parser.add_argument("--seconds", type=float, default=0.01, help="about how long each runs")
    parser.add_argument("--forms", nargs="*", default=FORMS)
    args = parser.parse_args()
    figures = {}
    print(f"{args.storms} storms each       wrong mode        interrupts lost   guards left")
    print(f"{'':27}torch  gradguard  torch  gradguard  gradguard")
    for form in args.forms:
        (wrong, lost, _), (our_wrong, our_lost, left) = (
            totals_of(library, form, args.storms, args.seconds)
            for library in ("torch", "gradguard")
        )
        print(f"{form:26}{wrong:6}{our_wrong:11}{lost:7}{our_lost:11}{left:11}", flush=True)
        figures[form] = {"wrong": [wrong, our_wrong], "lost": [lost, our_lost], "left": left}
    text = json.dumps({"storms": args.storms, "figures": figures}, indent=2)
    (HERE / "interrupts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

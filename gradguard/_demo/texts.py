"""What `python -m gradguard` says: its help, its errors and the demo."""

from collections.abc import Collection
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradguard._demo.model import Row

DEMO_HELP = "see the guards on a small language model, then a fault: unwatched, watched and found"
DEMO_DESCRIPTION = (
    "Trains a small character-level language model on text that Python itself ships, streams what "
    "it writes, and shows what a forgotten grad mode does to the same training: nobody is told, "
    "until an assertion stops it, or `run` finds it. Takes a few seconds and needs no network."
)


def demo_loading(number: str) -> str:
    return f"gradguard {number} demo: loading torch ..."


def demo_example(torch_version: str, parameters: int, characters: int) -> str:
    return (
        f"Model: a GRU of {parameters:,} parameters that guesses the next character.\n"
        f"Text: {characters:,} characters of Python's own language reference.\n"
        f"Runs on torch {torch_version}, one CPU thread."
    )


def demo_training() -> str:
    return (
        "\n1. Training. validate() is decorated with @inference_method; at the top of the\n"
        "   loop stands assert_grad_enabled(), silent as long as the mode is right.\n"
    )


def demo_streaming() -> str:
    return (
        "\n2. predict(), a generator method decorated with @inference_method, streams what\n"
        "   the model writes:\n"
    )


def demo_streamed(seen: Collection[tuple[bool, bool]]) -> str:
    """``seen`` is the grad mode and the model's train mode wherever the characters arrived."""
    modes = " and ".join(
        f"grad {'on' if grad else 'off'}, model in {'train' if training else 'eval'} mode"
        for grad, training in sorted(seen)
    )
    return f"\n   Between the characters the printing loop saw: {modes}."


def demo_unwatched() -> str:
    return (
        "\n3. The same training, but validate() says torch.set_grad_enabled(False) and\n"
        "   nothing turns it on again. Nothing watches.\n"
    )


def demo_stood_still(first: "Row", last: "Row") -> str:
    """Say what nobody was told; ``first`` and ``last`` are validations."""
    return (
        f"\n   No error, no warning. Validation loss: {first.validation:.4f} after step "
        f"{first.step}, {last.validation:.4f} after\n   step {last.step}. The steps between them "
        "learnt nothing."
    )


def demo_watched() -> str:
    return "\n4. The same fault, with assert_grad_enabled() at the top of the loop.\n"


def demo_stopped(error: str) -> str:
    """``error`` is the whole error, with its name."""
    wrapped = "\n".join(map(_wrapped, error.splitlines()))
    return f"\n   Stopped at the start of the next step:\n\n{wrapped}\n"


def demo_run(command: str) -> str:
    return f"\n5. The program of part 3, not edited, under another command:\n\n   $ {command}\n"


def demo_found(report: str) -> str:
    """Show the report of `run`; ``report`` is what it wrote."""
    return "\n".join(map(_wrapped, report.strip().splitlines())) + "\n"


def _wrapped(line: str) -> str:
    return fill(
        line,
        79,
        initial_indent="   | ",
        subsequent_indent="   |   ",
        break_long_words=False,  # paths, which a terminal can make links of
        break_on_hyphens=False,
    )


def demo_heading() -> str:
    return "   step   training loss   validation loss"


def demo_row(row: "Row") -> str:
    return f"   {row.step:4}   {row.training:13.4f}   {row.validation:15.4f}"


def demo_progress(row: "Row", steps: int) -> str:
    return f"   step {row.step} of {steps}, training loss {row.training:.4f}"


def demo_done(seconds: float) -> str:
    return f"Done in {seconds:.1f} s."

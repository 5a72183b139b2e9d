"""The parts of the demo: a training, its predictions, and a fault, unwatched, watched and found."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill

import torch

from gradguard import GradModeError, assert_grad_enabled, grad_state, set_grad_enabled
from gradguard._demo.model import STEPS, CharacterModel, FaultyTraining, Row, Training
from gradguard._demo.screen import Screen

_PROMPT, _LENGTH = "The ", 280


def show(screen: Screen) -> None:
    """Show all five."""
    # For so small a model one thread is as fast as two; where other programs keep the cores busy,
    # two wait for each other, and it took 20 times as long.
    torch.set_num_threads(1)
    training = Training()
    _introduce(screen, training)
    _train(screen, training)
    _predict(screen, training.model)
    _fail_unwatched(screen)
    _fail_watched(screen)
    _find(screen)


def _introduce(screen: Screen, training: Training) -> None:
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    screen.line(
        f"Model: a GRU of {parameters:,} parameters that guesses the next character.\n"
        f"Text: {training.characters:,} characters of Python's own language reference.\n"
        f"Runs on torch {torch.__version__}, one CPU thread."
    )


def _train(screen: Screen, training: Training) -> None:
    screen.line(
        "\n1. Training. validate() is decorated with @inference_method; at the top of the\n"
        "   loop stands assert_grad_enabled(), silent as long as the mode is right.\n"
    )
    _table(screen, training.run(assert_grad_enabled))


def _predict(screen: Screen, model: CharacterModel) -> None:
    screen.line(
        "\n2. predict(), a generator method decorated with @inference_method, streams what\n"
        "   the model writes:\n"
    )
    seen: set[tuple[bool, bool]] = set()
    screen.stream(_streamed(model, seen))
    modes = " and ".join(
        f"grad {'on' if grad else 'off'}, model in {'train' if training else 'eval'} mode"
        for grad, training in sorted(seen)
    )
    screen.line(f"\n   Between the characters the printing loop saw: {modes}.")


def _streamed(model: CharacterModel, seen: set[tuple[bool, bool]]) -> Iterator[str]:
    """Yield the prompt and what follows it; note in which modes each character arrives."""
    yield from _PROMPT
    for character in model.predict(_PROMPT, _LENGTH):
        seen.add((grad_state().grad_enabled, model.training))
        yield character


def _fail_unwatched(screen: Screen) -> None:
    screen.line(
        "\n3. The same training, but validate() says torch.set_grad_enabled(False) and\n"
        "   nothing turns it on again. Nothing watches.\n"
    )
    try:
        rows = _table(screen, FaultyTraining().run(lambda: None))
    finally:
        set_grad_enabled(True)
    first, last = rows[0], rows[-1]
    screen.line(
        f"\n   No error, no warning. Validation loss: {first.validation:.4f} after step "
        f"{first.step}, {last.validation:.4f} after\n   step {last.step}. The steps between them "
        "learnt nothing."
    )


def _fail_watched(screen: Screen) -> None:
    screen.line("\n4. The same fault, with assert_grad_enabled() at the top of the loop.\n")
    try:
        _table(screen, FaultyTraining().run(assert_grad_enabled))
    except GradModeError as error:
        said = "".join(traceback.format_exception_only(error))
        screen.line(f"\n   Stopped at the start of the next step:\n\n{_quoted(said)}\n")
    finally:
        set_grad_enabled(True)


def _find(screen: Screen) -> None:
    command = ["-m", "gradguard", "run", "-m", "gradguard._demo.script"]
    screen.line(
        "\n5. The program of part 3, not edited, under another command:\n\n"
        f"   $ {' '.join(['python', *command])}\n"
    )
    done = subprocess.run(  # noqa: S603 (this very interpreter)
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, check=True
    )
    here = f"{Path(__file__).parents[2]}{os.sep}"  # may be long, and says nothing
    screen.line(f"{_quoted(done.stderr.replace(here, '').strip())}\n")


def _table(screen: Screen, rows: Iterable[Row]) -> list[Row]:
    """Write a line for each validation, and return them; the steps between are progress."""
    screen.line("   step   training loss   validation loss")
    validated: list[Row] = []
    for row in rows:
        if row.validation is None:
            screen.progress(f"   step {row.step} of {STEPS}, training loss {row.training:.4f}")
        else:
            screen.line(f"   {row.step:4}   {row.training:13.4f}   {row.validation:15.4f}")
            validated.append(row)
    return validated


def _quoted(text: str) -> str:
    """Put a bar before each line, wrapped; paths are left whole: a terminal makes links of them."""
    return "\n".join(
        fill(
            line,
            79,
            initial_indent="   | ",
            subsequent_indent="   |   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )

"""The parts of the demo: a training, its predictions, and a fault, unwatched, watched and found."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from gradguard import GradModeError, assert_grad_enabled, grad_state, set_grad_enabled
from gradguard._demo import texts as fronts
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
    screen.line(fronts.demo_example(torch.__version__, parameters, training.characters))


def _train(screen: Screen, training: Training) -> None:
    screen.line(fronts.demo_training())
    _table(screen, training.run(assert_grad_enabled))


def _predict(screen: Screen, model: CharacterModel) -> None:
    screen.line(fronts.demo_streaming())
    seen: set[tuple[bool, bool]] = set()
    screen.stream(_streamed(model, seen))
    screen.line(fronts.demo_streamed(seen))


def _streamed(model: CharacterModel, seen: set[tuple[bool, bool]]) -> Iterator[str]:
    """Yield the prompt and what follows it; note in which modes each character arrives."""
    yield from _PROMPT
    for character in model.predict(_PROMPT, _LENGTH):
        seen.add((grad_state().grad_enabled, model.training))
        yield character


def _fail_unwatched(screen: Screen) -> None:
    screen.line(fronts.demo_unwatched())
    try:
        rows = _table(screen, FaultyTraining().run(lambda: None))
    finally:
        set_grad_enabled(True)
    screen.line(fronts.demo_stood_still(rows[0], rows[-1]))


def _fail_watched(screen: Screen) -> None:
    screen.line(fronts.demo_watched())
    try:
        _table(screen, FaultyTraining().run(assert_grad_enabled))
    except GradModeError as error:
        screen.line(fronts.demo_stopped("".join(traceback.format_exception_only(error))))
    finally:
        set_grad_enabled(True)


def _find(screen: Screen) -> None:
    command = ["-m", "gradguard", "run", "-m", "gradguard._demo.script"]
    screen.line(fronts.demo_run(" ".join(["python", *command])))
    done = subprocess.run(  # noqa: S603 (this very interpreter)
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, check=True
    )
    here = f"{Path(__file__).parent.parent}{os.sep}"  # may be long, and says nothing
    screen.line(fronts.demo_found(done.stderr.replace(here, "")))


def _table(screen: Screen, rows: Iterable[Row]) -> list[Row]:
    """Write a line for each validation, and return them; the steps between are progress."""
    screen.line(fronts.demo_heading())
    validated: list[Row] = []
    for row in rows:
        if row.validation is None:
            screen.progress(fronts.demo_progress(row, STEPS))
        else:
            screen.line(fronts.demo_row(row))
            validated.append(row)
    return validated

"""The demo's example: a small character-level language model and its training loops.

Written as its user would write it: nothing here is part of the demonstration's output.
"""

from collections.abc import Callable, Iterator
from pydoc_data.topics import topics
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradguard import inference_method

STEPS = 200
VALIDATE_EVERY = 40
_BATCH, _LENGTH, _HELD_OUT = 16, 64, 8_000
_TEMPERATURE = 0.5

# Chapters of the language reference that do not overlap, so that what is held out is new. They
# are data for pydoc's help(): in every Python, there without a network, and, unlike
# docstrings, under -OO too.
_CHAPTERS = ("objects", "types", "specialnames", "compound", "execmodel")
_SKIPPED = ("|", "+", "***", "===", "---")


class Row(NamedTuple):
    """How a step went; ``validation`` is None for a step that no validation follows."""

    step: int
    training: float
    validation: float | None


def reference() -> str:
    """Return the text to learn: no tables and rules, one space between words."""
    text = "\n".join(topics[chapter] for chapter in _CHAPTERS).encode("ascii", "ignore").decode()
    prose = (line for line in text.splitlines() if not line.startswith(_SKIPPED))
    return " ".join(" ".join(prose).split())


class CharacterModel(nn.Module):
    """Guesses the next character from all before it."""

    def __init__(self, characters: str) -> None:
        super().__init__()
        self.characters = characters
        self.embed = nn.Embedding(len(characters), 64)
        self.recur = nn.GRU(64, 128, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(128, len(characters))

    def forward(self, given: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scores of what comes after each of ``given``, and the state after all."""
        read, after = self.recur(self.embed(given), state)
        return self.head(self.dropout(read)), after

    def encode(self, text: str) -> Tensor:
        """Number the characters."""
        number = {character: at for at, character in enumerate(self.characters)}
        return torch.tensor([number[character] for character in text])

    @inference_method
    def predict(self, prompt: str, length: int) -> Iterator[str]:
        """Yield one character after the other."""
        given, state = self.encode(prompt)[None], None
        for _ in range(length):
            scores, state = self(given, state)
            given = torch.multinomial((scores[:, -1] / _TEMPERATURE).softmax(-1), 1)
            yield self.characters[int(given)]


class Training:
    """A training that validates now and then, as many are written.

    Training and validation share one `step`, which learns from a batch if its loss was recorded.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        text = reference()
        self.characters = len(text)
        self.model = CharacterModel("".join(sorted(set(text))))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        numbers = self.model.encode(text)
        self.text, held_out = numbers[:-_HELD_OUT], numbers[-_HELD_OUT:]
        self.held_out = held_out.unfold(0, _LENGTH + 1, _LENGTH)

    def run(self, check: Callable[[], None]) -> Iterator[Row]:
        """Train, calling ``check`` at the start of each step."""
        losses: list[float] = []
        for number in range(1, STEPS + 1):
            check()
            losses.append(self.step(self._batch()))
            if number % VALIDATE_EVERY:
                yield Row(number, losses[-1], None)
            else:
                yield Row(number, mean(losses), self.validate())
                losses.clear()

    def step(self, windows: Tensor) -> float:
        """Return the loss of one batch, in training and validation alike."""
        scores, _ = self.model(windows[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
        if loss.requires_grad:
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        return loss.item()

    @inference_method(module="model")
    def validate(self) -> float:
        """Return the loss on text that is never trained on."""
        return self.step(self.held_out)

    def _batch(self) -> Tensor:
        starts = torch.randint(len(self.text) - _LENGTH, (_BATCH, 1))
        return self.text[starts + torch.arange(_LENGTH + 1)]


class FaultyTraining(Training):
    """The same, with a validation that leaves grad mode off."""

    def validate(self) -> float:
        """Return the loss on text that is never trained on, and forget to turn grad on again."""
        torch.set_grad_enabled(False)
        self.model.eval()
        loss = self.step(self.held_out)
        self.model.train()
        return loss

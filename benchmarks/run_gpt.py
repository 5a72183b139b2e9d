"""A small GPT and its training, as scripts have it; what benchmarks/run.py runs.

Prints at its end the seconds of processor time that it took.
"""

import time

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

WORDS, LENGTH, WIDTH, HEADS, LAYERS, BATCH, STEPS = 96, 64, 128, 4, 4, 8, 150


class Block(nn.Module):
    """Attention and what follows it."""

    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1)
        )

    def forward(self, given):
        """Return what the block makes of it."""
        batch, length, _ = given.shape
        parts = self.attend(self.before(given)).view(batch, length, 3, HEADS, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        given = given + self.project(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return given + self.think(self.between(given))


class GPT(nn.Module):
    """Guesses the next word."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, given):
        """Return the scores of the words after each."""
        places = torch.arange(given.shape[1])
        return self.head(self.norm(self.blocks(self.words(given) + self.places(places))))


def loss_of(model, batch):
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    text = torch.randint(WORDS, (20_000,))
    for step in range(1, STEPS + 1):
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1))
        batch = text[starts + torch.arange(LENGTH + 1)][:, :LENGTH]
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            model.eval()
            with torch.no_grad():
                print(step, loss.item(), loss_of(model, batch).item())
            model.train()


if __name__ == "__main__":
    began = time.process_time()
    main()
    print(time.process_time() - began)

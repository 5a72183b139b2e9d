"""Loops of tiny modules, where a watched call costs most; what benchmarks/run.py runs.

    python benchmarks/run_tiny.py act | infer | record

`act`: a policy acts under no_grad in eval mode and is trained after each rollout. `infer`: forwards
under no_grad alone. `record`: the same, recorded. Prints the seconds of processor time it took.
"""

import sys
import time

import torch
from torch import nn


def net():
    return nn.Sequential(
        nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )


def act(rounds=1200):
    policy = net()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
    state = torch.randn(1, 4)
    for _ in range(rounds):
        policy.eval()
        for _ in range(8):
            with torch.no_grad():
                policy(state)
        policy.train()
        loss = policy(state.expand(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def infer(rounds=30_000):
    model = net().eval()
    x = torch.randn(1, 4)
    with torch.no_grad():
        for _ in range(rounds):
            model(x)


def record(rounds=30_000):
    model = net().eval()
    x = torch.randn(1, 4)
    for _ in range(rounds):
        model(x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.process_time()
    {"act": act, "infer": infer, "record": record}[sys.argv[1]]()
    print(time.process_time() - began)

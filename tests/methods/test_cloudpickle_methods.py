"""Decorated functions and classes of ``__main__`` go by value to another process, as Ray sends them."""

import subprocess
import sys

import pytest

pytest.importorskip("cloudpickle")

SENDER = """
import sys
import cloudpickle, torch
from torch import nn
from gradguard import evaluating, inference_function, inference_method, training_method

net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

class Net(nn.Sequential):
    @inference_method(autocast=torch.bfloat16)
    def predict(self, x):
        return self(x), self.training
    @inference_method(keep_eval=True)
    def stream(self, x):
        yield self(x), self.training
    @training_method
    def step(self, x):
        return self(x).mean()

class Holder:
    def __init__(self):
        self.net = Net(nn.Linear(3, 3), nn.Dropout(0.5))
    @inference_method(module="net")
    async def answer(self, x):
        return self.net(x), self.net.training

@inference_function
def predict(model, x):
    return model(x), model.training

@inference_function(modules=(net, "model"))
def named(x, model):
    return model(x), net.training

@inference_function
async def tokens(model, x):
    yield model(x), model.training

@evaluating(net)
def decorated(x):
    return net(x), net.training

{use}
sent = (net, Net, Net(nn.Linear(3, 3), nn.Dropout(0.5)), Holder, predict, named, tokens, decorated)
sys.stdout.buffer.write(cloudpickle.dumps(sent))
"""

RECEIVER = """
import asyncio, pickle, sys
import torch
from torch import nn

net, Net, made, Holder, predict, named, tokens, decorated = pickle.loads(sys.stdin.buffer.read())
x = torch.ones(1, 3)

async def main():
    results = [await Holder().answer(x)]
    async for result in tokens(net, x):
        results.append(result)
    return results

results = [made.predict(x), *made.stream(x), *asyncio.run(main())]
results += [predict(made, x=x), named(x, made), decorated(x)]
assert len(results) == 7
for result, training in results:
    assert result.is_inference() or result.requires_grad, result
    assert training is False
assert made.training and net.training
assert made.step(x).grad_fn is not None
print("received")
"""

USE = """
predict(net, torch.ones(1, 3))
Net(nn.Linear(3, 3)).step(torch.ones(1, 3))
decorated(torch.ones(1, 3))
"""


def run(program, sent=b""):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=sent, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_sent_by_value():
    """All kinds, called before, arrive in a process that lacks their module, and work there."""
    assert run(RECEIVER, run(SENDER.replace("{use}", USE))) == b"received\n"

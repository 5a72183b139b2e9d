"""A project whose four names in torch are rebound to gradguard's does what it did before."""

import json
import subprocess
import sys

import pytest

# Run in a fresh process, with or without the swap; prints what it computed as JSON.
PRELUDE = """
import json, sys, torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
NAMES = ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode")
stock = {name: getattr(torch, name) for name in NAMES}
if sys.argv[1] == "swap":
    import gradguard
    for name in NAMES:
        setattr(torch, name, getattr(gradguard, name))
        setattr(torch.autograd, name, getattr(gradguard, name))
        setattr(torch.autograd.grad_mode, name, getattr(gradguard, name))
def state():
    return [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
def batch(at):
    return torch.sin(torch.arange(24, dtype=torch.float).view(4, 6) + at)
def numbers(module):
    return [round(float(p.double().sum()), 6) for p in module.parameters()]
out = {}
"""
END = """
out["state"] = state()
if sys.argv[1] == "swap":
    assert gradguard.guards() == (), gradguard.guards()
print(json.dumps(out))
"""

OPTIMIZERS = """
names = ("SGD Adam AdamW Adamax Adagrad Adadelta ASGD NAdam RAdam RMSprop Rprop LBFGS").split()
for name in names:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.01)
    def closure():
        optimizer.zero_grad()
        loss = net(batch(0)).pow(2).mean()
        loss.backward()
        return loss
    for _ in range(3):
        optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)
    out[name] = numbers(net), state()
"""

DIFFERENTIABLE = """
net = nn.Linear(6, 1)
weights = [p.clone() for p in net.parameters()]
optimizer = torch.optim.SGD(weights, lr=0.1, differentiable=True)
loss = torch.func.functional_call(net, dict(zip(("weight", "bias"), weights)), batch(0)).sum()
for weight, grad in zip(weights, torch.autograd.grad(loss, weights, create_graph=True)):
    weight.grad = grad
optimizer.step()
weights[0].sum().backward()
out["grads"] = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
"""

TRANSFORMER = """
layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=6)
losses = []
for at in range(5):
    net.train()
    loss = net(batch(at)[None]).pow(2).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    nn.utils.clip_grad_value_(net.parameters(), 0.05)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    net.eval()
    with torch.no_grad():
        losses.append(round(net(batch(at)[None]).double().sum().item(), 5))
    with torch.inference_mode():
        fast = net(batch(at)[None])
        losses.append([fast.requires_grad, fast.is_inference(), round(fast.sum().item(), 4)])
out["losses"], out["lr"] = losses, schedule.get_last_lr()
out["net"] = numbers(net)
"""

CHECKPOINTS = """
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
for reentrant in (True, False):
    net.zero_grad()
    x = batch(1).requires_grad_()
    torch.manual_seed(1)
    seen = []
    def segment(value):
        seen.append(state())
        with torch.no_grad():
            seen.append(state())
        return net(value)
    checkpoint(segment, x, use_reentrant=reentrant).sum().backward()
    out[f"reentrant={reentrant}"] = [x.grad.sum().item(), numbers(net), seen]
    x = batch(2).requires_grad_()
    checkpoint_sequential(net, 2, x, use_reentrant=reentrant).sum().backward()
    out[f"sequential={reentrant}"] = [x.grad.sum().item()]
"""

DATA = """
from torch.utils.data import DataLoader, Dataset
class Data(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, at):
        with torch.no_grad():
            return batch(at)[0]
if __name__ == "__main__":
    loader = DataLoader(Data(), batch_size=4, num_workers=1, multiprocessing_context="fork")
    out["batches"] = [round(chunk.double().sum().item(), 6) for chunk in loader]
    loader = DataLoader(Data(), batch_size=4)
    out["plain"] = [round(chunk.double().sum().item(), 6) for chunk in loader]
"""

SWA = """
from torch.optim.swa_utils import AveragedModel, SWALR, get_ema_multi_avg_fn, update_bn
net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
averaged = AveragedModel(net)
ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
schedule = SWALR(optimizer, swa_lr=0.05)
for at in range(4):
    optimizer.zero_grad()
    net(batch(at)).pow(2).mean().backward()
    optimizer.step()
    averaged.update_parameters(net)
    ema.update_parameters(net)
    schedule.step()
update_bn([batch(at) for at in range(3)], averaged)
out["averaged"], out["ema"] = numbers(averaged), numbers(ema)
out["bn"] = [round(b.double().sum().item(), 5) for b in averaged.buffers()]
"""

PARAMETRIZE = """
from torch.nn.utils import parametrize, parametrizations, prune
net = nn.Linear(6, 6)
parametrizations.weight_norm(net)
other = parametrizations.spectral_norm(nn.Linear(6, 6))
square = parametrizations.orthogonal(nn.Linear(6, 6))
pruned = prune.l1_unstructured(nn.Linear(6, 6), "weight", amount=0.5)
whole = nn.Sequential(net, other, square, pruned)
optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
for at in range(3):
    optimizer.zero_grad()
    whole(batch(at)).pow(2).mean().backward()
    optimizer.step()
with torch.no_grad():
    other.weight = torch.eye(6)
parametrize.remove_parametrizations(net, "weight")
with parametrize.cached():
    out["out"] = round(whole(batch(0)).double().sum().item(), 4)
out["net"] = [round(value, 4) for value in numbers(whole)]
lazy = nn.LazyLinear(3)
lazy(batch(0)).sum().backward()
out["lazy"] = [p.grad is not None for p in lazy.parameters()]
for make in (nn.init.kaiming_uniform_, nn.init.orthogonal_, nn.init.trunc_normal_):
    out[make.__name__] = round(make(torch.empty(4, 4)).double().sum().item(), 5)
"""

AUTOGRAD = """
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.enable_grad():
            inner = (x.detach().requires_grad_() * 2).requires_grad
        return x ** 2 if inner else None
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0]
x = batch(0).requires_grad_()
Square.apply(x).sum().backward()
out["square"] = x.grad.sum().item()
out["hessian"] = torch.autograd.functional.hessian(lambda v: (v ** 3).sum(), torch.ones(2)).tolist()
out["check"] = torch.autograd.gradcheck(lambda v: v ** 2, torch.ones(2, dtype=torch.double, requires_grad=True))
out["vmap"] = torch.func.vmap(torch.func.grad(lambda v: (v ** 2).sum()))(batch(0)).sum().item()
with torch.autograd.forward_ad.dual_level():
    dual = torch.autograd.forward_ad.make_dual(torch.ones(2), torch.ones(2))
    with torch.no_grad():
        out["dual"] = torch.autograd.forward_ad.unpack_dual(dual ** 2).tangent.tolist()
with torch.autograd.graph.save_on_cpu(), torch.autograd.set_detect_anomaly(False):
    (x ** 2).sum().backward()
with torch.set_grad_enabled(False), torch.set_grad_enabled(True):
    out["nested"] = (x * 2).requires_grad
out["grad_mode"] = [torch.autograd.no_grad is torch.no_grad]
"""

# What a library made at import with torch's own guards, before the swap.
STOCK = """
@stock["no_grad"]()
def decorated(x):
    with torch.enable_grad():
        return (x * 2).requires_grad, state()
@stock["no_grad"]()
def streaming():
    yield state()
    with torch.no_grad():
        yield state()
@stock["inference_mode"]()
def inference():
    with torch.no_grad():
        return state()
@torch.no_grad()
def ours(x):
    with stock["enable_grad"]():
        return (x * 2).requires_grad, state(), decorated(x)
@torch.no_grad
def outer():
    return list(streaming()), inference(), state()
x = torch.ones(1, requires_grad=True)
out["stock"] = [decorated(x), list(streaming()), inference(), ours(x), outer()]
def fails():
    with torch.no_grad(), stock["enable_grad"]():
        raise KeyError
try:
    fails()
except KeyError:
    out["failed"] = state()
class Net(nn.Module):
    @torch.no_grad()
    def predict(self, x):
        return x * 2
    @torch.inference_mode()
    def stream(self, x):
        for item in x:
            yield item * 2
net = Net()
out["methods"] = [net.predict(x).requires_grad, [y.is_inference() for y in net.stream(batch(0))]]
"""

PROGRAMS = {
    "optimizers": OPTIMIZERS,
    "differentiable optimizer": DIFFERENTIABLE,
    "transformer": TRANSFORMER,
    "checkpoints": CHECKPOINTS,
    "data": DATA,
    "swa": SWA,
    "parametrize": PARAMETRIZE,
    "autograd": AUTOGRAD,
    "stock": STOCK,
}


def run(program, how):
    ran = subprocess.run(
        [sys.executable, "-c", program, how], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1]), ran.stderr


@pytest.fixture(scope="module")
def results():
    """All programs one after the other, in one process without and one with the swap."""
    parts = [
        f"out = outs[{name!r}] = {{}}\ntorch.manual_seed(0)\n{program}\nassert state() == [True, False]\n"
        for name, program in PROGRAMS.items()
    ]
    whole = "\n".join([PRELUDE, "outs = {}", *parts, "out = outs", END])
    return run(whole, "stock"), run(whole, "swap")


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_results(results, name):
    """Real code that nests, decorates and trains gives the same, to the last digit shown."""
    (stock, _), (swapped, _) = results
    assert swapped[name] == stock[name]
    assert stock[name]


def test_no_warning_is_added(results):
    """Nothing is said that was not said before, and the modes end where they began."""
    (stock, said), (swapped, said_swapped) = results
    assert swapped["state"] == stock["state"] == [True, False]
    assert "GradMode" not in said_swapped
    assert said_swapped.count("Warning") == said.count("Warning")


def test_memory_is_flat():
    """torch's own guards, which call `torch.set_grad_enabled` at each end, keep nothing."""
    program = (
        PRELUDE
        + """
import gc, tracemalloc
@stock["no_grad"]()
def decorated():
    pass
def work(times):
    for _ in range(times):
        with stock["no_grad"](), stock["enable_grad"]():
            decorated()
        torch.set_grad_enabled(False)
        torch.set_grad_enabled(True)
work(1000)
gc.collect()
tracemalloc.start()
work(10)
before = tracemalloc.get_traced_memory()[0]
work(20000)
gc.collect()
out["grown"] = tracemalloc.get_traced_memory()[0] - before
"""
        + END
    )
    assert run(program, "swap")[0]["grown"] < 2000


def test_swapped_before_torch_modules_are_imported():
    """Parts of torch that are imported after the swap are built on gradguard's guards."""
    program = (
        PRELUDE
        + """
for name in [name for name in sys.modules if name.startswith(("torch.optim", "torch.ao"))]:
    del sys.modules[name]
import torch.optim, torch.ao.quantization
from torch.optim.adamw import AdamW
net = nn.Linear(6, 1)
optimizer = AdamW(net.parameters(), lr=0.1)
net(batch(0)).sum().backward()
optimizer.step()
optimizer.zero_grad()
out["net"] = numbers(net)
"""
        + END
    )
    assert run(program, "swap")[0] == run(program, "stock")[0]


def test_undone():
    """Putting torch's names back in the middle of a block leaves nothing behind."""
    program = (
        PRELUDE
        + """
with torch.no_grad():
    with torch.enable_grad():
        for name in NAMES:
            setattr(torch, name, stock[name])
        out["inside"] = state()
    with torch.enable_grad():
        pass
    out["outer"] = state()
"""
        + END
    )
    assert run(program, "swap")[0] == run(program, "stock")[0]

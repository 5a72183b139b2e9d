"""Decorated functions and classes in another process, as Ray, dask, Spark and joblib send them."""

import subprocess
import sys

import pytest

pytest.importorskip("cloudpickle")

SENDER = """
import asyncio, cloudpickle, functools, sys, torch, gradguard

GUARDS = {
    "no_grad": gradguard.no_grad,
    "inference_mode": gradguard.inference_mode,
    "enable_grad": gradguard.enable_grad,
    "set_off": gradguard.set_grad_enabled(False),
    "inference_off": gradguard.inference_mode(False),
    "isolated": gradguard.isolated,
}
def plain(x): return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), x
def generator(x): yield plain(x)
async def coroutine(x): return plain(x)
async def async_generator(x): yield plain(x)
class Callable:
    def __call__(self, x): return plain(x)
FUNCTIONS = [plain, generator, coroutine, async_generator]
sent = {}
for name, guard in GUARDS.items():
    for fn in FUNCTIONS if name != "isolated" else FUNCTIONS[1:]:
        sent[name, fn.__name__] = guard(fn)
    if name != "isolated":
        sent[name, "partial"] = guard(functools.partial(plain))
        sent[name, "object"] = guard(Callable())
        class Net(torch.nn.Module):
            @guard
            def predict(self, x): return plain(x)
            @guard
            def stream(self, x): yield plain(x)
            @guard
            @classmethod
            def made(cls, x): return plain(x)
            @guard
            @property
            def mode(self): return plain(1)
        sent[name, "class"] = Net
for fn in sent.values():  # used before it is sent: the wrapper of one that ran must go, too
    if not isinstance(fn, type) and fn.__name__ in ("plain", "Callable"): fn(1)
cloudpickle.dump(sent, sys.stdout.buffer)
"""
RECEIVER = """
import asyncio, pickle, sys, torch
async def first(items):
    return await anext(items)
def run(result):
    if hasattr(result, "__next__"): return next(result)
    if hasattr(result, "__await__"): return asyncio.run(result_of(result))
    if hasattr(result, "__anext__"): return asyncio.run(first(result))
    return result
async def result_of(result): return await result
EXPECTED = {"no_grad": (False, False, 1), "inference_mode": (False, True, 1),
            "enable_grad": (True, False, 1), "set_off": (False, False, 1),
            "inference_off": (True, False, 1), "isolated": (True, False, 1)}
for (guard, kind), fn in pickle.load(sys.stdin.buffer).items():
    if kind == "class":
        net = fn()
        results = [net.predict(1), next(net.stream(1)), fn.made(1), net.mode]
    else:
        results = [run(fn(1))]
    assert results == [EXPECTED[guard]] * len(results), (guard, kind, results)
    assert torch.is_grad_enabled()
print("done")
"""


def test_by_value(tmp_path):
    """All that ``__main__`` decorates goes to a process that does not have it, and works there."""
    sender = tmp_path / "sender.py"
    sender.write_text(SENDER, encoding="utf-8")
    sent = subprocess.run([sys.executable, sender], capture_output=True, check=False)
    assert sent.returncode == 0, sent.stderr.decode()
    received = subprocess.run(
        [sys.executable, "-c", RECEIVER], input=sent.stdout, capture_output=True, check=False
    )
    assert received.stdout == b"done\n", received.stderr.decode()


def test_by_reference(tmp_path):
    """What an importable module decorates is sent by its name, and is found by it."""
    (tmp_path / "library.py").write_text(
        "import gradguard\n@gradguard.no_grad\ndef predict(x): return x\n", encoding="utf-8"
    )
    program = (
        "import cloudpickle, pickle, library\n"
        "data = cloudpickle.dumps(library.predict)\n"
        "assert len(data) < 100, len(data)\n"
        "assert pickle.loads(data) is library.predict\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()

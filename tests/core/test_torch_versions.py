"""The one module that knows versions of torch, and that it is the only one."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradguard
from gradguard._core.torch_versions import (
    CONVERTS,
    DYNAMO_FOLLOWS_INFERENCE,
    RUNS_BACKWARD,
    default_store,
)

PACKAGE = Path(gradguard.__file__).parent
OWNER = PACKAGE / "_core" / "torch_versions.py"
# Names by which code can learn a version, to decide by it.
NAMES = {"__version__", "TorchVersion", "torch_version", "parse_version", "git_version"}


def decisions(tree):
    """Yield the lines that compare a version, or prepare to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            inner = {getattr(n, "attr", getattr(n, "id", None)) for n in ast.walk(node)}
            if inner & NAMES:
                yield node.lineno
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = {alias.name for alias in node.names}
            if module.startswith("torch") and names & NAMES:
                yield node.lineno
            if any(name.startswith("packaging") for name in (module, *names)):
                yield node.lineno


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_other_module_decides_by_a_version(path):
    """Only `torch_versions` compares a version of torch; showing one to a user is no decision."""
    found = list(decisions(ast.parse(path.read_text(encoding="utf-8"))))
    assert bool(found) is (path == OWNER)


def test_dynamo_follows_a_class_that_switches_inference_mode():
    """What is decided by number is what this torch's Dynamo does: it has a handler, or has not."""
    from torch._dynamo.variables import torch as variables

    handled = "_enter_inference_mode" in inspect.getsource(variables)
    assert handled is DYNAMO_FOLLOWS_INFERENCE


def test_a_backward_and_a_conversion_go_by_the_private_names(monkeypatch):
    """What `run` replaces to see a backward and a conversion is what torch still calls."""
    seen = []

    def spy(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    spy(torch.autograd, RUNS_BACKWARD)
    spy(torch.nn.Module, CONVERTS)
    model = torch.nn.Linear(1, 1).double()
    model(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
    assert seen == [CONVERTS, RUNS_BACKWARD]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_the_store_of_a_process_group(tmp_path):
    """The private name gives the store in which ranks can meet."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        assert default_store().add("gradguard/test", 2) == 2
    finally:
        torch.distributed.destroy_process_group()


def test_importing_the_guards_imports_no_dynamo():
    """Knowing what this torch can do costs no import of Dynamo, which takes seconds."""
    code = "import sys, gradguard; gradguard.no_grad; print('torch._dynamo' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["False"], process.stderr


def test_a_decorated_inference_function_compiles_and_leaves_the_process_well():
    """Compiling it gives an inference tensor, and later calls of backward() work."""

    @gradguard.inference_mode
    def predict(x):
        return x * 2

    made = torch.compile(predict, backend="eager", fullgraph=True)(torch.ones(2))
    assert made.is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad.tolist() == [2.0, 2.0]

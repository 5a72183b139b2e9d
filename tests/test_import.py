import subprocess
import sys

import pytest

import gradguard
from gradguard import _MODULE_OF

PROOF = """
import sys
{statement}
loaded = sorted(name for name in sys.modules if name.split(".")[0] == "torch")
sys.exit(f"torch was imported: {{loaded[:3]}}" if loaded else 0)
"""


def prove(statement):
    """Run a statement in a fresh interpreter; 0, or 1 if torch has been imported."""
    return subprocess.run(
        [sys.executable, "-c", PROOF.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import gradguard",
        "import gradguard; dir(gradguard); gradguard.__all__; gradguard.__version__",
    ],
)
def test_import_leaves_torch_alone(statement):
    """Importing gradguard, and listing its names, does not import torch."""
    ran = prove(statement)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("statement", ["import torch", "from gradguard import no_grad"])
def test_the_proof_can_fail(statement):
    """The same proof finds torch where it is imported."""
    ran = prove(statement)
    assert ran.returncode == 1
    assert "torch was imported: ['torch'" in ran.stderr


def test_errors_do_not_need_torch():
    """The errors can be caught by code that does not use torch."""
    assert (
        prove("from gradguard import GradModeError, GradLeakError, GradModeWarning").returncode == 0
    )


@pytest.mark.parametrize("name", sorted(_MODULE_OF))
def test_every_name_can_be_imported(name):
    """Each public name is found by `from gradguard import`, by attribute, and in `dir`."""
    space = {}
    exec(f"from gradguard import {name}", space)  # noqa: S102 (a name of ours)
    assert space[name] is getattr(gradguard, name)
    assert name in dir(gradguard)
    assert name in gradguard.__all__
    assert gradguard.__dict__[name] is space[name]  # resolved once


def test_the_fixed_names_of_the_guards():
    """The names that users of torch's guards know are there."""
    assert {
        "no_grad",
        "enable_grad",
        "set_grad_enabled",
        "inference_mode",
        "grad_state",
        "GradState",
        "guards",
        "GradModeError",
        "GradLeakError",
        "GradModeWarning",
    } <= set(gradguard.__all__)


def test_star_import():
    """`from gradguard import *` brings the public names."""
    space = {}
    exec("from gradguard import *", space)  # noqa: S102
    assert set(gradguard.__all__) <= set(space)


def test_unknown_attribute():
    """Another name is an `AttributeError` as any module raises it, and an `ImportError`."""
    with pytest.raises(AttributeError, match="module 'gradguard' has no attribute 'no_gard'"):
        gradguard.no_gard  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'no_gard' from 'gradguard'"):
        exec("from gradguard import no_gard", {})  # noqa: S102
    assert not hasattr(gradguard, "__wrapped__")


@pytest.mark.parametrize(
    ("error", "base"),
    [
        ("GradModeError", AssertionError),
        ("GradLeakError", AssertionError),
        ("GradModeWarning", UserWarning),
    ],
)
def test_errors_report_the_public_module(error, base):
    """Errors print as `gradguard.…`, and are what their names say."""
    kind = getattr(gradguard, error)
    assert kind.__module__ == "gradguard"
    assert issubclass(kind, base)
    assert issubclass(gradguard.GradLeakError, gradguard.GradModeError)

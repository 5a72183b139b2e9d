"""Whatever lies in the folder, it is told and the rest goes on."""

import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradguard._lint import pool
from gradguard._lint.check import Checked, check_bytes
from gradguard._lint.files import python_files
from gradguard._lint.rules import RULES
from gradguard._lint.torch_layers import AFFINE, DROPOUTS, LAYERS, PARAMETRIC

NAMES = frozenset(rule.name for rule in RULES)
GUARD = "import torch\ntorch.no_grad()\n"
BROKEN = {
    "syntax.py": b"import torch\ndef f(:\n",
    "indent.py": b"  import torch\n x\n",
    "null.py": b"import torch\n\0torch.no_grad()\n",
    "latin.py": b"import torch  # caf\xe9\n",
    "unknown.py": b"# coding: nonsense-8\nimport torch\n",
    "wrong_bom.py": b"\xef\xbb\xbf# coding: latin-1\nimport torch\n",
    "deep.py": b"import torch\nx = " + b"(" * 3000 + b")" * 3000,
    "deep_minus.py": b"import torch\nx = " + b"-" * 200_000 + b"1\n",
    "python2.py": b"import torch\nprint 'x'\n",
}


def codes(data):
    return [(one.code, one.lineno) for one in check_bytes(data, "a.py", NAMES).findings]


def test_broken_files(project):
    """Each broken file is one finding that says why, a fault; the others are checked."""
    for name, data in BROKEN.items():
        project.write(name, data)
    project.write("z.py", GUARD)
    run = project.check(".")
    assert run.code == 1
    told = {line.split(":")[0]: line for line in run.lines[:-1]}
    assert set(told) == {*BROKEN, "z.py"}
    for name in BROKEN:
        assert ": GG001 " in told[name]
    assert "syntax.py:2:7: GG001 Python cannot parse this: " in run.out
    assert "cannot be decoded" in told["latin.py"]
    assert run.err == ""


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfimport torch\ntorch.no_grad()\n",
        b"# -*- coding: latin-1 -*-\nimport torch\nx = '\xe9'; torch.no_grad()\n",
        b"import torch\r\ntorch.no_grad()\r\n",
        b"import torch\rtorch.no_grad()\r",
        "import torch\nx = 'ü'; torch.no_grad()".encode(),
        b"import torch\nx = '''\x0c'''\ntorch.no_grad()",
    ],
)
def test_encodings(data):
    """A byte order mark, a coding comment, any line ends: Python's own reading."""
    assert [code for code, _ in codes(data)] == ["GG107"]


def test_columns_are_characters():
    """A column counts characters, as editors do, not bytes."""
    (finding,) = check_bytes(
        "import torch\nx = 'üü'; torch.no_grad()".encode(), "a", NAMES
    ).findings
    assert finding.column == 11


def test_long_file():
    """A file of 100,000 lines is checked to its end."""
    source = "import torch\n" + "x = f(1)[2].g\n" * 100_000 + "torch.no_grad()\n"
    assert codes(source.encode()) == [("GG107", 100_002)]


def test_deep_nesting():
    """What Python can parse, however deep, the rules can read."""
    depth = 90
    blocks = "".join(" " * n + "if x:\n" for n in range(depth))
    source = f"import torch\n{blocks}{' ' * depth}torch.no_grad()\n"
    assert codes(source.encode()) == [("GG107", depth + 2)]
    chain = "import torch\nx = " + "+".join(["f()"] * 900) + "\ntorch.no_grad()\n"
    assert codes(chain.encode()) == [("GG107", 3)]


def test_too_deep_for_the_rules():
    """An expression that Python parses and that cannot be written out again is told."""
    deep = f"import torch\nm = torch.nn.Linear(1, 1)\nm.requires_grad = {'-' * 900}1\n"
    assert codes(deep.encode())[0][0] in {"GG001", "GG115"}
    longer = f"import torch\nm = torch.nn.Linear(1, 1)\nm.requires_grad = {'+'.join('x' * 990)}\n"
    assert codes(longer.encode())[0][0] in {"GG001", "GG115"}


def test_circles():
    """Names that stand for each other, and classes that are their own base, end the search."""
    source = """
import torch
a = b
b = a
@a()
async def f(): ...
class A(B): ...
class B(A):
    def forward(self, x):
        self.x = self.x.to(1)
        m = m.eval()
        m.requires_grad = False
        return torch.nn.functional.dropout(x)
"""
    assert codes(source.encode()) == []


def test_rebinding_takes_no_time():
    """A name that is bound again and again, each time from itself, is read in linear time."""
    lines = "".join(f"    x = x.f{n}\n    m = m.to({n})\n" for n in range(2000))
    source = f"import torch\ndef f(x, m):\n{lines}    x()\n    m.requires_grad = False\n"
    assert codes(source.encode()) == []


SNIPPETS = [
    "import torch",
    "from torch import *",
    "import torch as t, gradguard",
    "torch.no_grad()",
    "with torch.no_grad() as g, t.inference_mode(): yield",
    "x = [y async for y in z]",
    "loss.backward()",
    "total += loss",
    "self.x.requires_grad = False",
    "m = torch.nn.Linear(1, 2)(x)",
    "lambda: (yield)",
    "global x, torch",
    "torch.set_grad_enabled(*a, **k)",
    "torch.set_grad_enabled()",
    "del x",
    "for i in x: pass",
    "match x:\n    case {'a': b, **c} | [d, *e]: pass",
    "try: pass\nexcept* E as x: pass" if sys.version_info >= (3, 11) else "pass",
]
HEADS = ["def f(self, x=1, *a, **k):", "async def g():", "class A(torch.nn.Module):", "if x:"]
DECORATORS = ["", "@torch.no_grad()\n", "@property\n", "@t.inference_mode\n"]


@st.composite
def programs(draw):
    """Draw programs of odd statements, nested in functions and classes."""
    lines = []
    depth = 0
    for _ in range(draw(st.integers(1, 14))):
        indent = "    " * depth
        if draw(st.booleans()):
            head = draw(st.sampled_from(HEADS))
            decorator = draw(st.sampled_from(DECORATORS)) if not head.startswith("if") else ""
            lines += [indent + part for part in (decorator + head).split("\n")]
            depth += 1
            lines.append("    " * depth + "pass")
        else:
            lines += [indent + part for part in draw(st.sampled_from(SNIPPETS)).split("\n")]
            depth = draw(st.integers(0, depth))
    return "\n".join(lines)


@settings(max_examples=300, deadline=None)
@given(programs())
def test_any_program(source):
    """No program, however odd, makes a rule fail."""
    assert isinstance(check_bytes(source.encode(), "a.py", NAMES), Checked)


@given(st.binary(max_size=200))
def test_any_bytes(data):
    """No bytes make it fail."""
    assert isinstance(check_bytes(data, "a.py", NAMES), Checked)


def test_installed_packages(request):
    """Every twentieth file of the standard library and torch is read.

    With --every-file every one, and those of all that is installed beside torch.
    """
    whole = request.config.getoption("--every-file")
    package = Path(torch.__file__).parent
    folders = [Path(sysconfig.get_path("stdlib")), package]
    if whole:
        folders += [one for one in package.parent.iterdir() if one.is_dir() and one != package]
    files = [path for one in folders for path in python_files([one], [], one)]
    assert len(files) > 2000
    for path in files if whole else files[::20]:
        assert isinstance(check_bytes(path.read_bytes(), str(path), NAMES), Checked)


def test_pool(project, monkeypatch):
    """Many bytes are checked by processes, few are not; the findings are the same."""
    paths = [project.write(f"{name}.py", GUARD) for name in "cab"]
    alone = pool.check_files(paths, lambda _: NAMES)
    monkeypatch.setattr(pool, "_WORTH_IT", 1)
    monkeypatch.setattr(pool, "_processors", lambda: 2)
    started = []
    executor = pool.ProcessPoolExecutor

    def counted(*arguments, **options):
        started.append(arguments)
        return executor(*arguments, **options)

    monkeypatch.setattr(pool, "ProcessPoolExecutor", counted)
    assert pool.check_files(paths, lambda _: NAMES) == alone
    assert len(started) == 1
    monkeypatch.setattr(pool, "_WORTH_IT", 10**9)
    assert pool.check_files(paths, lambda _: NAMES) == alone
    assert len(started) == 1


ARGUMENTS = {
    "AdaptiveLogSoftmaxWithLoss": (4, 5, [2]),
    "Bilinear": (2, 2, 2),
    "Embedding": (2, 2),
    "EmbeddingBag": (2, 2),
    "GroupNorm": (1, 2),
    "MultiheadAttention": (2, 1),
    "PReLU": (),
    "Transformer": (2, 1, 1, 1, 2),
    "TransformerDecoderLayer": (2, 1, 2),
    "TransformerEncoderLayer": (2, 1, 2),
}


def made(name):
    """Make the layer of torch with small sizes."""
    cls = getattr(torch.nn, name)
    if name in ARGUMENTS:
        return cls(*ARGUMENTS[name])
    for arguments in ((2,), (2, 2), (2, 2, 1), (2, 1), ()):
        try:
            return cls(*arguments)
        except (TypeError, ValueError):
            continue
    raise AssertionError(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(PARAMETRIC | AFFINE))
def test_layers_with_state(name):
    """Each layer that the rules take to hold parameters or buffers does hold some."""
    layer = made(name)
    assert [*layer.parameters(), *layer.buffers()]


@pytest.mark.parametrize("name", sorted(DROPOUTS))
def test_layers_without_state(name):
    """Each layer that the rules take to act in train mode alone gives another output there."""
    torch.manual_seed(0)
    layer, x = made(name) if name != "RReLU" else torch.nn.RReLU(), -torch.ones(4, 8, 8)
    x = x.unsqueeze(-1) if name == "Dropout3d" else x
    x = x.unsqueeze(0) if name == "Dropout2d" else x
    assert not torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.filterwarnings("ignore")
def test_no_layer_of_torch_is_forgotten():
    """Every public layer of torch that has parameters when it is made is in the table."""
    forgotten = set()
    for name, cls in vars(torch.nn).items():
        is_layer = isinstance(cls, type) and issubclass(cls, torch.nn.Module)
        if not is_layer or name in LAYERS or "Loss" in name or name.startswith("Parameter"):
            continue
        try:
            layer = made(name)
        except AssertionError:
            continue
        if next(layer.parameters(), None) is not None:
            forgotten.add(name)
    assert forgotten <= {f"LazyInstanceNorm{n}d" for n in (1, 2, 3)}  # only with affine=True

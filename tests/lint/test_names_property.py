"""However a fault is written, it stays a fault: renamed, aliased, nested, moved."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradguard._lint.check import check_bytes
from gradguard._lint.rules import RULES

NAMES = frozenset(rule.name for rule in RULES)
IMPORTS = {
    "torch": [
        ("import torch", "torch"),
        ("import torch as {a}", "{a}"),
        ("from torch import autograd as {a}", "{a}"),
        ("import torch.autograd", "torch.autograd"),
        ("import torch.autograd.grad_mode as {a}", "{a}"),
        ("try:\n    import torch as {a}\nexcept ImportError:\n    {a} = None", "{a}"),
        ("import torch as {b}\n{a} = {b}", "{a}"),
    ]
}
WRAPPERS = [
    "{}",
    "if {u}:\n{}",
    "for {u} in {v}:\n{}",
    "while {u}:\n{}",
    "try:\n{}\nfinally:\n    pass",
    "with {u}:\n{}",
]
# Other names of these programs are shorter, or end otherwise.
identifiers = st.text("abcdxyz_", min_size=1, max_size=5).map(lambda name: f"n{name}0")


def indented(text):
    return "\n".join("    " + line for line in text.splitlines())


def codes(source):
    ast.parse(source)
    return [one.code for one in check_bytes(source.encode(), "a.py", NAMES).findings]


@st.composite
def spelled(draw, guard):
    """Draw an import, and an expression that is this guard because of it."""
    a, b = draw(st.lists(identifiers, min_size=2, max_size=2, unique=True))
    if draw(st.booleans()):
        home = draw(st.sampled_from(["torch", "torch.autograd", "torch.autograd.grad_mode"]))
        return f"from {home} import {guard} as {a}", a
    line, owner = draw(st.sampled_from(IMPORTS["torch"]))
    names = {"a": a, "b": b}
    line, owner = line.format(**names), owner.format(**names)
    if draw(st.booleans()):
        return f"{line}\n{b}_ = {owner}.{guard}", f"{b}_"
    return line, f"{owner}.{guard}"


@st.composite
def nested(draw, body):
    """Draw the statements inside of other blocks."""
    for number in range(draw(st.integers(0, 3))):
        wrapper = draw(st.sampled_from(WRAPPERS))
        body = wrapper.format(indented(body) if wrapper != "{}" else body, u=f"u{number}", v="v")
    return body


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unused_guard(data):
    """A guard as a statement is found under any spelling, in any block."""
    line, guard = data.draw(spelled("no_grad"))
    body = data.draw(nested(f"{guard}()"))
    inside = data.draw(st.booleans())
    function = data.draw(identifiers)
    source = f"import torch\n{line}\n" + (
        f"def {function}_f(u, v):\n{indented(body)}" if inside else body
    )
    assert codes(source) == ["GG107"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_suspended(data):
    """A guard on a coroutine, and an `await` or `yield` in a block, are found wherever they are."""
    line, guard = data.draw(spelled("inference_mode"))
    name = data.draw(identifiers)
    suspended, code = data.draw(
        st.sampled_from(
            [("await v", "GG102"), ("yield v", "GG103"), ("[w async for w in v]", "GG102")]
        )
    )
    body = f"with {guard}():\n{indented(data.draw(nested(suspended)))}"
    kind = "def" if code == "GG103" else "async def"
    blocks = [
        f"@{guard}()\nasync def {name}_1(x):\n    return x",
        f"{kind} {name}_2(u, v):\n{indented(data.draw(nested(body)))}",
        f"class {name.title()}_3:\n    pass",
    ]
    ordered = data.draw(st.permutations(blocks))
    source = "\n\n".join([f"import torch\n{line}", *ordered])
    assert sorted(codes(source)) == ["GG101", code]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_set_and_enable(data):
    """So are a switch that is left, and `enable_grad` inside inference mode."""
    line, switch = data.draw(spelled("set_grad_enabled"))
    other, enable = data.draw(spelled("enable_grad"))
    enable = enable if other != line else "torch.enable_grad"
    body = f"with torch.inference_mode():\n{indented(f'with {enable}():' + chr(10) + '    x * 2')}"
    source = (
        f"import torch\n{other if other != line else ''}\n"
        f"def one(u, v, x):\n{indented(data.draw(nested(body)))}\n"
    )
    assert codes(source) == ["GG110"]
    source = (
        f"import torch\n{line}\ndef two(u, v):\n{indented(f'{switch}(False)')}\n    return v(u)\n"
    )
    assert codes(source) == ["GG108"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_losses(data):
    """A loss is followed under any name, in any order of what else the step does."""
    loss, total, model = data.draw(st.lists(identifiers, min_size=3, max_size=3, unique=True))
    loss, total, model = f"{loss}_l", f"{total}_t", f"{model}_m"
    add = data.draw(
        st.sampled_from(
            [f"{total} += {loss}", f"{total} = {total} + {loss}", f"{total} += {loss} * 2"]
        )
    )
    steps = data.draw(st.permutations([f"{loss}.backward()", add, "opt.step()", "print(1)"]))
    inner = [f"{loss} = crit({model}(x), y)", *steps]
    loop = "for x, y in loader:\n" + indented("\n".join(inner))
    source = (
        f"import torch\ndef train({model}, loader, opt, crit):\n    {total} = 0\n{indented(loop)}\n"
    )
    assert codes(source) == ["GG113"]
    cut = source.replace(add, f"{total} += {loss}.item()")
    assert codes(cut) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rebound_names_are_unknown(data):
    """A guard's name that is bound to something else as well is not taken for the guard."""
    line, guard = data.draw(spelled("no_grad"))
    root = guard.split(".")[0]
    rebinding = data.draw(
        st.sampled_from(
            [
                f"{root} = other",
                f"def {root}(): pass",
                f"for {root} in y: pass",
                f"class {root}: pass",
            ]
        )
    )
    source = f"import torch as torch_\n{line}\n{rebinding}\ndef f(x):\n    {guard}()\n"
    assert codes(source) == []


class Renamed(ast.NodeTransformer):
    """Gives a program's own variables, and what it imports, other names."""

    def __init__(self, tree, suffix):
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _is_stored(n)}
        arguments = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        keywords = {n.arg for n in ast.walk(tree) if isinstance(n, ast.keyword)}
        imported = {a.asname or a.name for a in _imported(tree) if "." not in a.name}
        names = (stored | arguments | imported) - keywords - {"self", "cls", "__name__"}
        self.names = {name: f"{name}{suffix}" for name in names}

    def visit_Name(self, node):
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node):
        node.arg = self.names.get(node.arg, node.arg)
        return self.generic_visit(node)

    def visit_alias(self, node):
        name = node.asname or node.name
        if name in self.names:
            node.asname = self.names[name]
        return node


def _is_stored(node):
    return isinstance(node.ctx, ast.Store)


def _imported(tree):
    kinds = (ast.Import, ast.ImportFrom)
    return [alias for node in ast.walk(tree) if isinstance(node, kinds) for alias in node.names]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_rule_whatever_the_names(rule, data):
    """Each rule's bad example stays one under other names, amid other functions, in any order."""
    tree = ast.parse(rule.bad)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    rest = [node for node in tree.body if node not in imports]
    suffix = data.draw(st.sampled_from(["_a", "_of_mine", "2"]))
    moved = ast.Module([*data.draw(st.permutations(imports)), *rest], [])
    program = ast.unparse(Renamed(tree, suffix).visit(moved))
    other = data.draw(
        st.sampled_from(["", "def unrelated_f(u):\n    return u\n", "UNRELATED = 3\n"])
    )
    before = data.draw(st.booleans())
    source = f"{other}{program}\n" if before else f"{program}\n{other}"
    assert rule.code in codes(rule.bad)
    assert rule.code in codes(source)

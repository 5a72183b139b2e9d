"""What a file shows to be an `nn.Module`: by its class, by how it was made, by how it is used."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, TypeGuard

from gradguard._lint.torch_layers import AFFINE, DROPOUTS, NOT_MODULES, PARAMETRIC
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from gradguard._lint.names import Names
    from gradguard._lint.scopes import Function
    from gradguard._lint.tree import Tree

_BASES = re.compile(
    r"(^|\.)(\w*Module|\w*Model|\w*Net|\w*Network|\w*Layer|\w*Block|MessagePassing)$"
)
_NOT_BASES = re.compile(r"(^|\.)(BaseModel|DataModule|LightningDataModule|SQLModel)$")
_SAME_MODULE = frozenset(
    [
        "to",
        "cuda",
        "cpu",
        "half",
        "float",
        "double",
        "bfloat16",
        "eval",
        "train",
        "requires_grad_",
        "apply",
        "share_memory",
    ]
)
_MODULE_METHODS = frozenset(
    ["parameters", "named_parameters", "modules", "named_modules", "children", "named_children"]
)
_FACTORIES = re.compile(
    r"^(torchvision\.models(\.\w+)*\.[a-z]\w*|timm\.create_model|torch\.hub\.load"
    r"|transformers\.(\w+\.)*\w*(Model|For[A-Z]\w*)\.from_pretrained"
    r"|torch\.(compile|nn\.(parallel\.)?\w*DataParallel))$"
)


class Modules:
    """Tells modules from other objects in one file; what is not shown is not a module."""

    def __init__(self, tree: Tree, names: Names) -> None:
        self._tree = tree
        self._names = names
        self._attributes: dict[ast.ClassDef, dict[str, list[ast.expr]]] = {}
        self._classes: dict[ast.ClassDef, bool] = {}
        self._used: dict[tuple[ast.AST, str], set[str]] | None = None
        # What is being asked about is not shown yet: names may refer to each other in circles.
        self._modules: dict[ast.AST, bool] = {}
        self._named: dict[tuple[ast.AST, str], bool] = {}
        self._stateful: dict[ast.AST, bool] = {}

    def is_class(self, cls: ast.ClassDef | None) -> bool:
        """Tell whether the class is an `nn.Module`, by its bases and by having a forward."""
        if cls is None:
            return False
        if cls not in self._classes:
            self._classes[cls] = False  # a class that is its own base
            self._classes[cls] = any(self._is_base(base, cls) for base in cls.bases)
        return self._classes[cls]

    def _is_base(self, base: ast.expr, cls: ast.ClassDef) -> bool:
        definition = self._names.definition(base)
        if isinstance(definition, ast.ClassDef):
            return self.is_class(definition)
        full = self._names.full(base) or ast.unparse(base)
        if full.startswith("torch.nn."):
            return full.rpartition(".")[2] not in NOT_MODULES
        named = bool(_BASES.search(full)) and not _NOT_BASES.search(full)
        return named and (full.endswith("LightningModule") or _method(cls, "forward") is not None)

    def attributes(self, cls: ast.ClassDef) -> dict[str, list[ast.expr]]:
        """Return what the methods of a class assign to each attribute of `self`."""
        if cls not in self._attributes:
            found: dict[str, list[ast.expr]] = {}
            for node in ast.walk(cls):
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    for target in targets:
                        if is_self(target):
                            found.setdefault(target.attr, []).append(node.value)
            self._attributes[cls] = found
        return self._attributes[cls]

    def is_module(self, node: ast.AST) -> bool:
        """Tell whether the expression is shown to be a module by how it was made."""
        if node not in self._modules:
            self._modules[node] = False
            self._modules[node] = self._is_module(node)
        return self._modules[node]

    def _is_module(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return self._makes_module(node)
        if isinstance(node, ast.Name):
            return self._is_module_name(node)
        if isinstance(node, ast.Attribute):
            if is_self(node):
                cls = self._tree.method_class(node)
                values_of = self.attributes(cls).get(node.attr, []) if cls else []
                return any(self.is_module(one) for one in values_of)
            return node.attr == "module" and self.is_module(node.value)
        if isinstance(node, ast.Subscript):  # of a ModuleList or Sequential; nothing else has items
            return self.is_module(node.value)
        return False

    def _is_module_name(self, node: ast.Name) -> bool:
        """Tell whether one of the values of a name is a module; asked once for all its uses."""
        bindings = self._names.bindings(node)
        if not bindings:
            return False
        first = bindings[0].node
        key = (first, node.id)
        if key not in self._named:
            self._named[key] = False
            values = [one.value for one in bindings]
            self._named[key] = any(one is not None and self.is_module(one) for one in values)
        return self._named[key]

    def is_used_as_module(self, node: ast.expr) -> bool:
        """Tell whether, in this function or class, it is called or asked for its parameters."""
        text = ast.unparse(node)
        uses = self._uses().get((self._home(node), text), set())
        return bool(uses)

    def made_class(self, call: ast.Call) -> str | None:
        """Return the name of the `torch.nn` layer that the call makes."""
        full = self._names.full(call.func) or ""
        package, _, name = full.rpartition(".")
        in_nn = package == "torch.nn" or package.startswith("torch.nn.modules")
        return name if in_nn and name[:1].isupper() else None

    def holds_state(self, call: ast.Call) -> bool:
        """Tell whether the call makes a layer with parameters, buffers or Dropout."""
        name = self.made_class(call)
        if name is not None:
            if name in {"Sequential", "ModuleList"}:
                return any(self._any_state(one) for one in call.args)
            return name in PARAMETRIC or name in DROPOUTS or (name in AFFINE and _affine(call))
        definition = self._names.definition(call.func)
        if not isinstance(definition, ast.ClassDef) or not self.is_class(definition):
            return False
        if definition not in self._stateful:
            self._stateful[definition] = False
            values = [one for many in self.attributes(definition).values() for one in many]
            self._stateful[definition] = any(self._any_state(one) for one in values)
        return self._stateful[definition]

    def _any_state(self, node: ast.AST) -> bool:
        for each in ast.walk(node):
            if isinstance(each, ast.Call):
                if self._names.full(each.func) == "torch.nn.Parameter":
                    return True
                if self.holds_state(each):
                    return True
        return False

    def _makes_module(self, call: ast.Call) -> bool:
        full = self._names.full(call.func)
        if full is not None:
            package, _, name = full.rpartition(".")
            if package == "torch.nn" or package.startswith(
                ("torch.nn.modules", "torch.nn.parallel")
            ):
                return name[:1].isupper() and name not in NOT_MODULES
            if _FACTORIES.match(full):
                return True
        definition = self._names.definition(call.func)
        if isinstance(definition, ast.ClassDef):
            return self.is_class(definition)
        func = call.func
        return (
            isinstance(func, ast.Attribute)
            and func.attr in _SAME_MODULE
            and self.is_module(func.value)
        )

    def _uses(self) -> dict[tuple[ast.AST, str], set[str]]:
        if self._used is None:
            self._used = {}
            for call in self._tree.of_type(ast.Call):
                func = call.func
                if isinstance(func, ast.Attribute) and func.attr in _MODULE_METHODS:
                    key = (self._home(func.value), ast.unparse(func.value))
                    self._used.setdefault(key, set()).add(func.attr)
                elif isinstance(func, ast.Name):
                    self._used.setdefault((self._home(func), func.id), set()).add("call")
                elif isinstance(func, ast.Attribute) and is_self(func):
                    key = (self._home(func), ast.unparse(func))
                    self._used.setdefault(key, set()).add("call")
        return self._used

    def _home(self, node: ast.AST) -> ast.AST:
        """Return where the expression means one thing: of `self.x` the class, else the function."""
        root = node
        while isinstance(root, (ast.Attribute, ast.Subscript, ast.Call)):
            root = root.func if isinstance(root, ast.Call) else root.value
        if isinstance(root, ast.Name) and root.id == "self":
            return self._tree.method_class(node) or self._tree.root
        return self._tree.function(node) or self._tree.root


def is_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Tell whether it is ``self.name``."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _method(cls: ast.ClassDef, name: str) -> Function | None:
    return next((one for one in cls.body if isinstance(one, FUNCTIONS) and one.name == name), None)


method = _method


def _affine(call: ast.Call) -> bool:
    """Tell whether a normalization has parameters: it is not made with them turned off."""
    off = {"elementwise_affine", "affine"}
    return not any(
        one.arg in off and isinstance(one.value, ast.Constant) and one.value.value is False
        for one in call.keywords
    )

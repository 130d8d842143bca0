"""Generate the mutants of a module: its syntax tree with one comparison, operator, constant, default, return value or
statement changed. Docstrings, annotations, decorators and error messages are left alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
}  # fmt: skip
UNCHANGED = {"annotation", "returns", "decorator_list", "msg"}  # fields of nodes
PATHS = ("run", "folder", "parent")  # names of paths, for which / is not a division
Change = tuple[ast.AST, str, Any]  # node, its field, what the field becomes


def changes(node: ast.AST) -> Iterator[Change]:
    """All mutants of a node and of the nodes below it."""
    if isinstance(node, (ast.Raise, ast.JoinedStr)) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            yield from ((node, "ops", replaced(node.ops, place, swap())) for swap in SWAPS[type(operator)])
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        joins = isinstance(node, ast.BinOp) and ast.unparse(node.left).startswith(PATHS)
        yield from ((node, "op", swap()) for swap in SWAPS.get(type(node.op), ()) if not joins)
    elif isinstance(node, ast.UnaryOp):  # applied twice, which cancels it
        yield node, "operand", ast.UnaryOp(node.op, node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield node, "value", not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Return) and node.value is not None:
        yield node, "value", ast.Constant(None)
    elif isinstance(node, ast.arguments):
        for default in (*node.defaults, *node.kw_defaults):
            if isinstance(default, ast.Constant) and not isinstance(default.value, int):
                yield default, "value", {float: 1.5, str: "mutant"}.get(type(default.value), 0)
    for name, value in ast.iter_fields(node):
        if name in UNCHANGED:
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if name in ("body", "orelse") and isinstance(value, list) and acts(child):
                yield node, name, replaced(value, place, ast.Pass())
            if isinstance(child, ast.AST):
                yield from changes(child)


def acts(statement: ast.stmt) -> bool:
    """Whether the statement can be left out without leaving a name undefined."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in statement.targets)
    return isinstance(statement, ast.AugAssign) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    )


def replaced(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


def differing(before: list[str], after: list[str]) -> str:
    return next(f"{old.strip()}  ->  {new.strip()}" for old, new in zip(before, after, strict=False) if old != new)

"""Arithmetic between the queries of a rule: + - * /, parentheses, numbers and their names. Nothing else.

Python's own parser reads it, and every node of what it gives must be one of these: no language of ours to learn, to
document or to get wrong.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["Expression"]

MAX_LENGTH: Final = 500
_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Expression:
    """A parsed expression.

    Raises:
        ValueError: it is none, or has something else in it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_LENGTH:
            raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
        try:
            self._root = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text!r} is no expression: {getattr(error, 'msg', None) or error}") from None
        names: dict[str, None] = {}
        self._check(self._root, names)
        self._check_constants()
        self.names = tuple(names)
        """The queries it names, in order."""

    def _check(self, node: ast.expr, names: dict[str, None]) -> None:
        match node:
            case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
                self._check(left, names)
                self._check(right, names)
            case ast.UnaryOp(ast.USub(), operand):
                self._check(operand, names)
            case ast.Constant(value) if type(value) in (int, float):
                pass
            case ast.Name(name):
                names[name] = None
            case _:
                part = ast.get_source_segment(self.text.strip(), node)
                raise ValueError(f"{part!r}: an expression has + - * /, parentheses, numbers, and names of queries")

    def _check_constants(self) -> None:
        """What has no names in it has its value now: a division by zero in there would come with each evaluation."""
        for node in ast.walk(self._root):
            if isinstance(node, ast.expr) and not any(isinstance(one, ast.Name) for one in ast.walk(node)):
                try:
                    self._evaluate(node, {})
                except ZeroDivisionError:
                    raise ValueError("divides by zero") from None
                except OverflowError:
                    raise ValueError("has a number that is too large") from None

    @property
    def is_name(self) -> bool:
        """Whether it is the value of one query, as it is."""
        return isinstance(self._root, ast.Name)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """With a value for each name: numbers, or arrays of equal length. Division by zero is theirs to decide."""
        return self._evaluate(self._root, values)

    def _evaluate(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.BinOp(left, op, right):
                return _OPERATORS[type(op)](self._evaluate(left, values), self._evaluate(right, values))
            case ast.UnaryOp(_, operand):
                return -self._evaluate(operand, values)
            case ast.Name(name):
                return values[name]
            case _:
                assert isinstance(node, ast.Constant)
                assert isinstance(node.value, int | float)
                return float(node.value)

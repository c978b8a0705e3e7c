"""YAML files with the line of each value, and errors that name file, line and key.

YAML as of version 1.2's core schema: `yes`, `on` and dates are text. A key that comes twice is an error. What aliases
unfold to is bounded.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tailrace_schemas.config.base import ConfigModel

__all__ = ["ConfigError", "Document", "Item", "Key", "Problem", "read_documents"]

MAX_VALUES: Final = 1_000_000
"""Values in a file, aliases unfolded."""

Key = tuple[str | int, ...]
"""Where in a document: `("groups", 0, "rules", 2, "for")`."""
Model = TypeVar("Model", bound=BaseModel)


class Problem(NamedTuple):
    """What is wrong, and where."""

    file: str
    line: int
    """From 1; 0: the file itself."""
    key: Key
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {key_text(self.key)}: {self.message}" if self.key else f"{where}: {self.message}"


class ConfigError(ValueError):
    """The configuration cannot be used; `problems` has all that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda one: (one.file, one.line)))
        super().__init__("\n".join(str(one) for one in self.problems))


def key_text(key: Key) -> str:
    """groups[0].rules[2].for"""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).removeprefix(".")


@dataclass(frozen=True)
class Document:
    """One YAML document, as plain values, with the line of each."""

    file: str
    value: Any
    lines: Mapping[Key, int]

    def line(self, key: Key) -> int:
        """The line of what is at `key`; of the nearest thing around it, where that is missing."""
        while key not in self.lines and key:
            key = key[:-1]
        return self.lines.get(key, 1)

    def problem(self, key: Key, message: str) -> Problem:
        return Problem(self.file, self.line(key), key, message)

    def at(self, key: Key) -> Any:
        """The value at `key`.

        Raises:
            LookupError: there is none.
        """
        value = self.value
        for part in key:
            value = value[part]
        return value

    def validate(self, model: type[Model], key: Key = ()) -> Model:
        """What is at `key`, as a model.

        Raises:
            ConfigError: with a problem for each thing that is wrong.
        """
        try:
            return model.model_validate_json(json.dumps(self.at(key)))
        except ValidationError as error:
            found = [_explain(model, one) for one in _errors(error)]
            raise ConfigError([self.problem(key + place, message) for place, message in found]) from None


@dataclass(frozen=True)
class Item:
    """One thing of the configuration, and where it was written."""

    kind: str
    name: str
    model: ConfigModel
    document: Document
    key: Key

    def problem(self, message: str, *inside: str | int) -> Problem:
        """A problem with it, or with what is at the keys `inside` of it."""
        return self.document.problem(self.key + inside, message)


# -- reading -------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Its parser, with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as its base has it


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def read_documents(file: str, text: str) -> list[Document]:
    """The documents of a file; empty ones are left out.

    Raises:
        ConfigError: it is no YAML, a key comes twice, or a value has a type that JSON does not have.
    """
    documents = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node says so
            reader = _Reader(file)
            value = reader.value(node, ())
            if value is not None:
                documents.append(Document(file, value, reader.lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.problem, error.context) if part)
        raise ConfigError([Problem(file, mark.line + 1 if mark else 0, (), f"this is no YAML: {what}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"this is no YAML: the character U+{error.character:04X} is not allowed"
        raise ConfigError([Problem(file, line, (), message)]) from None
    except RecursionError:
        raise ConfigError([Problem(file, 0, (), "this is nested too deeply")]) from None
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # of PyYAML: an escape such as "\U00110000", a version of many digits
        raise ConfigError([Problem(file, loader.line + 1, (), f"this is no YAML: {error}")]) from None
    return documents


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Key, int] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        if len(self.lines) > MAX_VALUES:
            raise self._error(line, key, f"the file unfolds to more than {MAX_VALUES:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if id(node) in self._open:
            raise self._error(line, key, "an alias contains itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(one, (*key, number)) for number, one in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, key)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or not isinstance(name, str):
                raise self._error(line, key, "a key must be text")
            if name == "<<":
                raise self._error(line, key, "merge keys (<<) are not supported; repeat what is meant")
            if name in found:
                raise self._error(line, (*key, name), f"is given twice, first in line {self.lines[(*key, name)]}")
            self.lines[(*key, name)] = line
            found[name] = self.value(value_node, (*key, name))
        return found

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return text
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                whole = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
                float(whole)
                return whole
            if kind == "float":
                number = float(text.replace(".inf", "inf").replace(".nan", "nan").replace(".Inf", "inf"))
                if math.isfinite(number):
                    return number
                raise ValueError("it is not finite")
        except (ValueError, OverflowError) as error:
            raise self._error(node.start_mark.line + 1, key, f"{text!r} cannot be used as a number: {error}") from None
        raise self._error(node.start_mark.line + 1, key, f"the tag {node.tag} is not supported")

    def _error(self, line: int, key: Key, message: str) -> ConfigError:
        return ConfigError([Problem(self.file, line, key, message)])


# -- explaining ----------------------------------------------------------------------------------------


def _errors(error: ValidationError) -> list[Any]:
    """Without what only follows from another: a list is not too short because what is in it is wrong."""
    every = error.errors(include_url=False, include_input=False)
    places = [tuple(one["loc"]) for one in every]

    def follows(one: Any) -> bool:
        own = tuple(one["loc"])
        return one["type"] == "too_short" and any(
            len(place) > len(own) and place[: len(own)] == own for place in places
        )

    return [one for one in every if not follows(one)]


def _explain(model: type[BaseModel], error: Any) -> tuple[Key, str]:
    """Where and what, in words for who wrote the file."""
    place: Key = tuple(error["loc"])
    kind: str = error["type"]
    message: str = error["msg"]
    if kind == "wrong":
        return place + tuple(error["ctx"]["key"]), message
    if kind == "extra_forbidden":
        allowed = sorted(_allowed(model, place[:-1]))
        close = get_close_matches(str(place[-1]), allowed, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return place, f"there is no such key{hint or '.'}" + (f" Allowed: {', '.join(allowed)}" if allowed else "")
    if kind == "missing":
        return place[:-1], f"{place[-1]!r} is missing"
    if kind in ("value_error", "assertion_error"):
        message = str(error["ctx"]["error"])
    elif kind == "string_type":
        message = "must be text; put it in quotes"
    elif kind in ("float_type", "int_type", "int_from_float"):
        message = (
            "must be a number, without quotes" if kind == "float_type" else "must be a whole number, without quotes"
        )
    elif kind == "enum" or kind == "literal_error":
        message = f"must be one of {error['ctx']['expected'].replace(' or ', ', ')}"
    elif kind in ("model_type", "dict_type", "model_attributes_type"):
        message = "must be a mapping of keys to values"
    elif kind in ("tuple_type", "list_type"):
        message = "must be a list"
    elif kind == "too_short":
        message = f"must have at least {error['ctx']['min_length']}"
    elif kind == "string_pattern_mismatch":
        message = f"must match {error['ctx']['pattern']}"
    return place, message


def _allowed(model: type[BaseModel], place: Key) -> set[str]:
    """The keys of the models that `place` may lead to."""
    found: list[Any] = [model]
    for part in place:
        inner: list[Any] = []
        for one in found:
            if isinstance(one, type) and issubclass(one, BaseModel):
                inner += [f.annotation for name, f in one.model_fields.items() if (f.alias or name) == part]
            else:
                inner += get_args(one)[-2:]
        # A part that leads nowhere is pydantic's name for a branch of a union.
        found = _unfold(inner) if inner else found
    keys: set[str] = set()
    for one in found:
        if isinstance(one, type) and issubclass(one, BaseModel):
            keys |= {f.alias or name for name, f in one.model_fields.items()}
    return keys


def _unfold(annotations: Sequence[Any]) -> list[Any]:
    """The members of unions, and what Annotated is about."""
    found: list[Any] = []
    for one in annotations:
        origin = getattr(one, "__origin__", None)
        if hasattr(one, "__metadata__"):
            found += _unfold([origin])
        elif isinstance(one, type) or origin in (tuple, list, dict):
            found.append(one)
        else:
            found += _unfold(get_args(one))
    return found

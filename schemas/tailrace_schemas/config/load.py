"""Files to validated things, things to records of the config topic, and back."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from tailrace_schemas.config.base import ConfigModel
from tailrace_schemas.config.sections import CHECKS, DIALECTS, SECTIONS, Section
from tailrace_schemas.config.source import ConfigError, Document, Item, Key, Problem, read_documents

__all__ = ["Config", "Record", "load", "model_of", "record_of"]

_BY_KEY: Final = {section.key: section for section in SECTIONS}
_BY_KIND: Final = {section.kind: section for section in SECTIONS}


@dataclass(frozen=True)
class Config:
    """A valid configuration."""

    items: tuple[Item, ...]

    def of(self, kind: str) -> list[Item]:
        """The things of one kind, in the order of the files."""
        return [item for item in self.items if item.kind == kind]


def load(sources: Iterable[Path | tuple[str, str]]) -> Config:
    """Reads and validates files, or pairs of a name and a text, as one configuration.

    Raises:
        ConfigError: with all that is wrong in any of them.
        OSError: a file cannot be read.
    """
    problems: list[Problem] = []
    items: list[Item] = []
    others: dict[str, list[Document]] = {}
    for source in sources:
        try:
            for document in _documents(source):
                dialect = _dialect(document)
                if dialect is None:
                    items += _sections(document, problems)
                else:
                    others.setdefault(dialect, []).append(document)
        except ConfigError as error:
            problems += error.problems
    for dialect, documents in others.items():
        try:
            items += DIALECTS[dialect](documents)
        except ConfigError as error:
            problems += error.problems
    problems += _duplicates(items)
    if not problems:  # a reference to what could not be read would be a second complaint about one thing
        problems += [problem for check in CHECKS for problem in check(items)]
    if problems:
        raise ConfigError(problems)
    return Config(tuple(items))


def _documents(source: Path | tuple[str, str]) -> list[Document]:
    if isinstance(source, tuple):
        return read_documents(*source)
    try:
        return read_documents(str(source), source.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(source), 0, (), f"this is no UTF-8: {error}")]) from None


def _dialect(document: Document) -> str | None:
    """The `apiVersion` of a document of another form; None: it is of ours.

    Raises:
        ConfigError: it is of none that is known.
    """
    if not isinstance(document.value, dict):
        raise ConfigError([document.problem((), f"must be a mapping; the keys allowed are {_allowed()}")])
    if "apiVersion" not in document.value:
        return None
    version = document.value["apiVersion"]
    if not isinstance(version, str) or version not in DIALECTS:
        known = ", ".join(DIALECTS) or "none"
        raise ConfigError([document.problem(("apiVersion",), f"{version!r} is not known; there is: {known}")])
    return version


def _allowed() -> str:
    return ", ".join(_BY_KEY)


def _sections(document: Document, problems: list[Problem]) -> list[Item]:
    """The things of a native document; what is wrong goes to `problems`."""
    found = []
    for key, value in document.value.items():
        section = _BY_KEY.get(key)
        if section is None:
            problems.append(document.problem((key,), f"there is no such section. Allowed: {_allowed()}"))
            continue
        places: list[Key] = [(key,)]
        if not section.single:
            if not isinstance(value, list):
                problems.append(document.problem((key,), "must be a list"))
                continue
            places = [(key, number) for number in range(len(value))]
        for place in places:
            try:
                found.append(_item(section, document, place))
            except ConfigError as error:
                problems += error.problems
    return found


def _item(section: Section, document: Document, place: Key) -> Item:
    model = document.validate(section.model, place)
    return Item(section.kind, _name(section, model), model, document, place)


def _name(section: Section, model: ConfigModel) -> str:
    name = section.key if section.single else getattr(model, "name", None)
    assert isinstance(name, str), f"{section.model} has no name"
    return name


def _duplicates(items: Sequence[Item]) -> list[Problem]:
    first: dict[tuple[str, str], Item] = {}
    problems = []
    for item in items:
        other = first.setdefault((item.kind, item.name), item)
        if other is not item:
            where = f"{other.document.file}:{other.document.line(other.key)}"
            problems.append(item.problem(f"{item.name!r} is defined already, at {where}"))
    return problems


# -- records -------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """A message of the config topic: compacted by its key."""

    key: str
    """`kind/name`."""
    value: dict[str, Any] | None
    """JSON; None: removed."""


def record_of(item: Item) -> Record:
    """What says the same on the config topic: durations in one form, what was left out left out."""
    value = item.model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Record(f"{item.kind}/{item.name}", value)


def model_of(key: str, value: bytes | str | dict[str, Any]) -> ConfigModel:
    """The thing that a record of the config topic holds.

    Raises:
        ValueError: the key is of no kind that is known, or the value is not valid; it says which and why.
    """
    kind, _, name = key.partition("/")
    section = _BY_KIND.get(kind)
    if section is None:
        raise ValueError(f"{key}: there is no kind {kind!r}; there is: {', '.join(_BY_KIND)}")
    try:
        text = json.dumps(value) if isinstance(value, dict) else value
        model = section.model.model_validate_json(text)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        raise ValueError(f"{key}: {'; '.join(wrong)}") from None
    if _name(section, model) != name:
        raise ValueError(f"{key}: the value is named {_name(section, model)!r}")
    return model

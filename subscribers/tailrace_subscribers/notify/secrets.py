"""Secrets of receivers: references resolved when something is sent, and masked in everything that is said."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from tailrace_schemas.config.receivers import REFERENCE, Receiver

__all__ = ["Masker", "MaskingFilter", "SecretError", "resolve", "url_part"]

MASK: Final = "***"
MAX_BYTES: Final = 64 * 1024


class SecretError(ValueError):
    """A reference that leads to nothing: the message names it, and never a value."""


def resolve(text: str, *, encode: Callable[[str], str] = str) -> str:
    """The text with its references replaced.

    `encode` is applied to what replaces a part of the text, but not where the reference is all of it: a whole URL comes
    out of a file as it is, a token within one is percent-encoded.

    Raises:
        SecretError: no such variable or file, or an empty one.
    """
    if whole := REFERENCE.fullmatch(text):
        return _value(whole)
    return REFERENCE.sub(lambda found: encode(_value(found)), text)


def url_part(value: str) -> str:
    """Percent-encodes everything that could be taken for a part of a URL's structure."""
    return quote(value, safe="")


def _value(reference: re.Match[str]) -> str:
    kind, name = reference.groups()
    if kind == "env":
        value = os.environ.get(name, "")
        where = f"the environment variable {name}"
    else:
        where = f"the file {name}"
        try:
            with Path(name).open("rb") as file:
                value = file.read(MAX_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SecretError(f"{where} cannot be read: {why}") from None
    if not value:
        raise SecretError(f"{where} is not set, or empty")
    return value


class Masker:
    """Replaces what must not be seen by `***`: resolved references, header values, what in URLs may be secret.

    A secret is remembered as long as the process lives, in the forms in which libraries show it. For any thread.
    """

    def __init__(self) -> None:
        self._secrets: set[str] = set()

    def learn(self, receiver: Receiver) -> None:
        """Remembers all of a receiver that may be secret. Unresolvable references are left to who sends."""
        texts: list[str] = []
        if receiver.webhook:
            texts += [*receiver.webhook.headers.values(), receiver.webhook.url]
        if receiver.apprise:
            texts.append(receiver.apprise.url)
        if receiver.email:
            texts.append(receiver.email.password)
        for text in filter(None, texts):
            for reference in REFERENCE.finditer(text):
                try:
                    self._add(_value(reference))
                except SecretError:
                    continue
            try:
                whole = resolve(text, encode=url_part)
            except SecretError:
                continue
            if "://" in whole:
                self._add_url(whole)
            else:
                self._add(whole)
                self._add(whole.rpartition(" ")[2])  # "Bearer TOKEN": the token alone, too

    def _add_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # as with a [ in its password: who sends there may take it all the same
            self._add(url)
            self._add(url.partition("://")[2])
            return
        for one in (url, parts.username, parts.password, parts.path, parts.query):
            self._add(one or "")
        for segment in parts.path.split("/"):
            if len(segment) >= 8 and not (segment.isalpha() and segment.islower()):  # a token, not a word
                self._add(segment)
        for pair in parts.query.split("&"):  # Apprise takes headers as ?+X-Token=value
            self._add(pair.partition("=")[2])
        if parts.scheme not in ("http", "https") and "." not in parts.netloc:
            self._add(parts.netloc)  # slack://TOKEN/...

    def _add(self, secret: str) -> None:
        for form in (secret, unquote(secret), url_part(secret), repr(secret)[1:-1]):
            if len(form) >= 4:  # a shorter one would mask half of what is said, and protects nothing
                self._secrets.add(form)

    def mask(self, text: str) -> str:
        """The text without secrets."""
        for secret in sorted(self._secrets, key=len, reverse=True):  # which copies the set first, in one step
            text = text.replace(secret, MASK)
        return text


class MaskingFilter(logging.Filter):
    """On a handler: masks every record that passes, of whatever library, with its traceback."""

    def __init__(self, masker: Masker) -> None:
        super().__init__()
        self._masker = masker

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._masker.mask(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = self._masker.mask(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True

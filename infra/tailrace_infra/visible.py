"""Text of others on a terminal and in logs: names and attributes come from whoever may send samples."""

import re
from typing import Final

__all__ = ["json_visible", "visible"]

_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 controls, which terminals obey, and what turns the direction of text; tabs and line breaks are left."""


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with escapes in place of control characters, `\\x1b`; with `one_line`, of line breaks too."""
    shown = _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.replace("\n", "\\n") if one_line else shown


def json_visible(text: str) -> str:
    """JSON that says the same, with JSON's own escapes in place of what `visible` escapes."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)

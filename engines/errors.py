"""The ways a command fails that are not bugs of ours, and what no message says."""

from __future__ import annotations

import re

_HIDDEN = "***"
# Up to the last @, as FFmpeg takes it: a password may hold one.  With a slash in it, it is no less secret.
_LOGIN = re.compile(r"""(?<=://)(?:[^/?#]*|[^/?#"':@[]*:(?!\d+[/?#]).*)@""")  # in a word up to its last @
_BLANK = re.compile(r"""(?<=://)(?=[^/?#\s"':@[]*:)[^/?#\n]*@""")  # a login with a space in it
_ADDRESS = re.compile(r"(?:\b[a-z][a-z0-9+.-]{0,30}://|/vsi[a-z0-9_]+)[^?]*\?", re.IGNORECASE)  # up to its values
_END = "\"':;,.)]"  # of the sentence that an address stands in
_VALUE = re.compile(r"(^|[&;])([^=&;]*=)?[^&;]+")
_PROPERTY = re.compile(  # of a GStreamer element: user-pw, passphrase, extra-headers, ...
    r"""(?<![\w-])((?=(?:[\w-]*[-_])?(?:pw|pass(?:wd|word|phrase)?|user(?:id|name|pw)?|login|secrets?|tokens?"""
    r"""|(?:api|access)?keys?|auth(?:orization)?|cookies?|headers?|credentials?|proxy-id)(?![^\W_]))[\w-]+\s*=\s*)"""
    r"""("(?:\\.|[^"\\])*(?:"|\Z)|'(?:\\.|[^'\\])*(?:'|\Z)|(?!\*{3})[^\s"']\S*)""",
    re.IGNORECASE,
)
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def without_secrets(text: str) -> str:
    """A source, or a message that names one: no login before an address's @, no values behind its ?, and of a
    GStreamer pipeline no property that by its name is a secret.  What it gives it leaves as it is.
    """
    text = re.sub(r"\S+", lambda found: _word(found[0]), _BLANK.sub("", text))
    return _PROPERTY.sub(rf"\g<1>{_HIDDEN}", text) if "gst:" in text else text


def _word(word: str) -> str:
    """Searched no further than to its last @ and ?, so that the time is as its length, whatever it holds."""
    at = word.rfind("@") + 1
    word = _LOGIN.sub("", word[:at]) + word[at:]
    address = _ADDRESS.search(word[: word.rfind("?") + 1])
    if not address:
        return word
    query = word[address.end() :]
    values = query.rstrip(_END)
    hidden = _VALUE.sub(lambda found: found[1] + (found[2] or "") + _HIDDEN, values)
    return word[: address.end()] + hidden + query[len(values) :]


def in_a_line(text: str) -> str:
    """A message that names a file: a name may hold line breaks, a terminal's commands, and marks that turn the text."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class DeployError(Exception):
    """The user's input is at fault.  One line: what was got, what was expected, what to do; no secrets in it."""

    exit_code = 2

    def __init__(self, text: str = "") -> None:
        super().__init__(in_a_line(without_secrets(text)))


class GateError(DeployError):
    """A result was computed but does not agree with its reference closely enough to be shipped."""

    exit_code = 3


class NotFiniteError(DeployError):
    """The engine's logits are NaN or infinite, so that there is no mask."""


class GpuLostError(DeployError):
    """The GPU's context is gone (a fault in a kernel, a reset): nothing more can run in this process."""

    exit_code = 1

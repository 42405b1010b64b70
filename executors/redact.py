"""What looks like a secret is taken out of text before anybody sees it: tokens, keys, signed addresses.

Every log record, crash report and printed configuration passes here. Patterns only: nothing is looked up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"
# Names of places and of durations are no secrets: the file a token lies in may be shown.
_HOLDS = (
    r"(?:TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|PRIVATE_?KEY)"
    r"(?!S?_?(?:FILE|PATH|DIR|LIFETIME|COUNT)\b)\w{0,32}"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A certificate may be shown, but a proxy file is one together with its key: the whole block goes.
    (re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----.*?(?:-----END \1-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"\bey[A-Z][\w-]{5,}\.[\w-]{5,}\.[\w-]*"), HIDDEN),  # a JWT
    (re.compile(r"(?i)(\bBearer(?:\s+|%20))[\w.~+/=%-]{6,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\bauthz=)[^&\s'\"<>]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s'\"<>]+"), rf"\1{HIDDEN}"),
    # the password in an address: scheme, user, password, host
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@]{1,200}:)[^/\s@]{1,500}(@)"), rf"\1{HIDDEN}\2"),
    # a name and its value, as in shells, JSON, TOML and YAML
    (
        re.compile(rf"(?i)({_HOLDS}['\"]?\s*[=:]\s*)(?!\[hidden\])(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&}}\]]+)"),
        rf"\1{HIDDEN}",
    ),
)
_NAME = re.compile(rf"(?i){_HOLDS}$")
# Cheap test: most text holds none of these, and then no pattern is tried.
_TRACE = re.compile(r"(?i)-----BEGIN|\.[\w-]{5,}\.|bearer|authz=|x-amz-|://|token|passw|secret|key")


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced."""
    if not _TRACE.search(text):
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def cleaned(value: Any) -> Any:
    """The same for what is to be written as JSON or TOML: text by text, before anything is quoted.

    Redacting what is written already would take quotes along with the secrets.
    """
    if isinstance(value, str):
        return redact(str(value))
    if isinstance(value, Mapping):
        return {
            redact(key) if isinstance(key, str) else key: _hidden(item)
            if isinstance(key, str) and secret_name(key)
            else cleaned(item)
            for key, item in value.items()
        }
    return [cleaned(item) for item in value] if isinstance(value, list | tuple) else value


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool) else HIDDEN


def secret_name(name: str) -> bool:
    """Whether a variable or key of this name is taken to hold a secret."""
    return _NAME.search(name) is not None


class RedactingFilter(logging.Filter):
    """A logging filter that lets every record pass, without its secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; its traceback as well."""
        try:
            record.msg = redact(record.getMessage())
        except (TypeError, ValueError):  # arguments that do not fit the format: logging says so itself
            record.msg = redact(str(record.msg))
        record.args = None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return True

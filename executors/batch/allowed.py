"""Which strings may reach the text of a batch job; everything else is refused by the name of its field.

Pure functions from a value to the same value. A grammar says what is allowed, never what is forbidden;
nothing here quotes, writes or knows a batch system's language.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from executors.errors import UsageError

if TYPE_CHECKING:
    from pathlib import PurePath

# Always used with fullmatch: "$" would let a line break at the end pass; re.ASCII keeps other alphabets out.
WORD = re.compile(r"[A-Za-z0-9_@%+=:,./][A-Za-z0-9_@%+=:,./-]{0,255}", re.ASCII)
OPTION = re.compile(r"[A-Za-z0-9_@%+=:,./-]{1,256}", re.ASCII)
JOB_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}", re.ASCII)
# No "%" (Slurm and LSF put numbers in its place), no "," (a list of files to most systems).
PATH = re.compile(r"/[A-Za-z0-9_@+=:./-]{0,1023}", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
EXPRESSION = re.compile(r"[!-~](?:[ -~]{0,998}[!-~])?", re.ASCII)
MACRO = re.compile(r"\$[A-Za-z0-9_]*\(|\$\{", re.ASCII)
SCRATCH = re.compile(r"(?:/|\$[A-Z_][A-Z0-9_]*)(?:[A-Za-z0-9_@+=:./-]|\$[A-Z_][A-Z0-9_]*){0,255}", re.ASCII)

# Fields by the names and options that a user knows.
QUEUE, ACCOUNT, IMAGE = "job.queue (--queue)", "job.account (--account)", "job.image (--image)"
CORES, MEMORY = "resources.cores (--cores)", "resources.memory (--memory)"
DISK, WALLTIME = "resources.disk (--disk)", "resources.walltime (--walltime)"

LINE_AT_MOST = 4096
VALUE_AT_MOST = 32768  # one environment string may have 131072 bytes, of which four make a character
# The shell keeps these for itself: an export of them fails or is forgotten.
OF_THE_SHELL = frozenset(
    ["_", "UID", "EUID", "PPID", "GROUPS", "PWD", "OLDPWD", "SHLVL", "SHELLOPTS", "BASHOPTS", "BASHPID",
     "FUNCNAME", "DIRSTACK", "RANDOM", "SRANDOM", "LINENO", "SECONDS", "EPOCHSECONDS", "EPOCHREALTIME",
     "HISTCMD", "PIPESTATUS", "OPTARG", "OPTIND", "COMP_WORDBREAKS", "IFS", "POSIXLY_CORRECT"]
)  # fmt: skip


def directive_of(field: str) -> str:
    """The key in which a site says how it wants this field: ``job.queue_directive``."""
    return f"job.{field.partition(' ')[0].rpartition('.')[2]}_directive"


def directive(key: object) -> str:
    """The field of one directive; a key that is no word is shown as the value that it is."""
    known = isinstance(key, str) and OPTION.fullmatch(key.replace(" ", "-", 1)) and len(key) <= 80
    return f"directives.{key} (--directive)" if known else "directives (--directive)"


def shown(value: object) -> str:
    """A value as an error may show it: on one line, escaped, at most 80 characters."""
    whole = ascii(value[:100] if isinstance(value, str) else value)
    return whole if len(whole) <= 80 else f"{whole[:77]}..."


def refused(field: str, value: object, rule: str) -> UsageError:
    """The error for a value that may not reach the text of a batch job."""
    return UsageError(f"{field} cannot be {shown(value)}: {rule}", field=field)


def word(field: str, value: object) -> str:
    """A name for the batch system: queue, account, image, option value."""
    if isinstance(value, str) and WORD.fullmatch(value):
        return value
    raise refused(
        field, value, "only ASCII letters, digits and _@%+=:,./- (not first), at most 256 characters"
    )


def option(field: str, value: object) -> str:
    """One word of the submit command; it may begin with a dash."""
    if isinstance(value, str) and OPTION.fullmatch(value):
        return value
    raise refused(field, value, "only ASCII letters, digits and _@%+=:,./-, at most 256 characters")


def job_name(field: str, value: object) -> str:
    """A job's name, in what all batch systems allow."""
    if isinstance(value, str) and JOB_NAME.fullmatch(value):
        return value
    raise refused(field, value, "a letter, then letters, digits and dashes, at most 32 in all")


def path(field: str, value: PurePath, *, without: str = "") -> str:
    """An absolute path without any character that a batch system reads as something else."""
    text = str(value)
    if PATH.fullmatch(text) and not any(one in text for one in without):
        return text
    signs = "".join(one for one in "_@+=:./-" if one not in without)
    rule = f"batch systems take an absolute path of ASCII letters, digits and {signs}; use another folder"
    raise refused(field, text, rule)


def variable(field: str, value: object) -> str:
    """The name of an environment variable that the job's shell lets us set."""
    if not isinstance(value, str) or not VARIABLE.fullmatch(value):
        raise refused(
            field, value, "a variable's name has only ASCII letters, digits and _, and no digit first"
        )
    if value in OF_THE_SHELL or value.startswith("BASH_"):
        raise refused(field, value, "the shell sets this variable itself")
    return value


def value(field: str, given: object) -> str:
    """Any printable text on one line, which will stand in single quotes in a shell script."""
    if isinstance(given, str) and given.isprintable() and len(given) <= VALUE_AT_MOST:
        return given
    raise refused(field, given, f"only printable text on one line, at most {VALUE_AT_MOST} characters")


def line(field: str, given: object) -> str:
    """A shell line: raw by design, but one line that can be seen as it is."""
    if isinstance(given, str) and given.strip() and given.isprintable() and len(given) <= LINE_AT_MOST:
        return given
    raise refused(field, given, f"one line of printable text, at most {LINE_AT_MOST} characters")


def expression(field: str, given: object, *, without: str = "") -> str:
    """A directive's value: raw by design, but on one line and without anything that is replaced or run."""
    if not isinstance(given, str) or not EXPRESSION.fullmatch(given):
        raise refused(
            field, given, "one line of printable ASCII, no blank at its ends, at most 1000 characters"
        )
    if "`" in given or MACRO.search(given):
        raise refused(field, given, "nothing in it may be run or replaced: no `, no $(...), no ${...}")
    if given.count('"') % 2 or given.endswith("\\"):
        raise refused(field, given, "its quotes must close, and it may not end in a backslash")
    found = next((one for one in without if one in given), None)
    if found is not None:
        raise refused(field, given, f"this batch system would read {found!r} as something else")
    return given


def scratch(field: str, given: object) -> str:
    """A folder on the worker: a path in which ``$NAME`` stands for the worker's own variables."""
    if isinstance(given, str) and SCRATCH.fullmatch(given):
        return given
    raise refused(field, given, "a path such as /scratch/$USER or $TMPDIR")


def whole(field: str, given: object) -> int:
    """A whole number from 1 on."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return given
    raise refused(field, given, "a whole number, 1 or more")


def seconds(field: str, given: object) -> int:
    """A time in whole seconds, rounded up."""
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < math.inf:
        return math.ceil(given)
    raise refused(field, given, "a number of seconds above 0")

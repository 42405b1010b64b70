"""The command line as argparse knows it, built from the declared options: verbs, flags, help, hints.

It turns an argument list into text by option name and nothing more; reading the text is for ``settings``,
doing what it says for ``runner``.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from executors.errors import UnknownNameError, UsageError
from executors.options import JOBS, SAY, SPLIT, WHAT, WHERE, Option, options

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 80
VERBS = {
    "merge": "merge the outputs of one or more run directories",
    "status": "say how far a run directory has come",
    "plan": "print what a run would do, or make its plan, without running",
    "inspect": "check stored outputs and say what they hold",
    "memory": "print what the chunks of runs needed of memory, and plot it",
    "sites": "list the sites, or show one with the origin of every value",
    "check": "say whether a site can be used from here, and what mends it if not",
    "selftest": "run a hundred chunks of made data at a site, and say how that went",
}
# Options of the original that pass through to the processor: they are the workflow's arguments here.
PROCESSOR = ("year", "campaign", "isSyst", "isArray", "noHist", "ttbar-reweights")
# Options that come with submission, a later part.
LATER = {
    "jobName": "name of a batch submission",
    "condorFileSize": "files of a batch job; --fsize is the nearest now",
    "outputDir": "where batch jobs copy outputs",
    "outputXrootdDir": "where batch jobs copy outputs",
    "remoteRepo": "code that batch jobs clone",
    "jobqueue": "queue of a batch submission",
    "submit": "batch submission",
}
# Options of the original that are called differently, or that nothing is left to do for.
RENAMED = {
    "skip-structure-validation": "nothing to skip: files are only checked with --validate",
    "validate-files-per-sample": "use --validate (every file), with --limit N for the first ones",
}
_EPILOG = """commands (each has its own --help)
{verbs}

arguments of the processor (the original's --year, --campaign, --isSyst, …)
  are given as --wf-arg year=2022

with a later part of this project come
  {later}

every option can also stand in run.toml (chunk = 50000), in the environment
(COFFEA_SCALEOUT_CHUNK=50000) or after --set; the later of these wins:
file, environment, command line, --set. --show-config shows which it was.

exit codes
  0 complete    1 the analysis raised    2 wrong command or configuration
  3 incomplete: the same command resumes   4 site or credentials
  130 interrupted: the same command resumes"""


@dataclass(frozen=True)
class Command:
    """An argument list, taken apart: the verb ('run' without one) and what was typed for each option."""

    verb: str
    values: dict[str, Any]


class _Parser(argparse.ArgumentParser):
    """Argparse that raises instead of ending the process, and never guesses an abbreviation."""

    def __init__(self, **about: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, add_help=False, **about)
        self._positionals.title = "what"
        group = self.add_argument_group("help")
        group.add_argument("-h", "--help", action="help", help="show this and exit")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].lower()}{message[1:]} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # '-j, --workers N', not '-j N, --workers N'
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {action.metavar}"


def read_command(argv: Sequence[str]) -> Command:
    """The argument list taken apart; ``--help`` prints and leaves through ``SystemExit``."""
    if argv and not argv[0].startswith("-"):
        verb = argv[0]
        if verb not in VERBS:
            raise UnknownNameError.of("command", verb, VERBS, "(plain 'runner.py --wf … --json …' runs)")
        return _read(verb, _PARSERS[verb](), argv[1:])
    return _read("run", run_parser(), argv)


def _read(verb: str, parser: argparse.ArgumentParser, argv: Sequence[str]) -> Command:
    known, left = parser.parse_known_args(list(argv))
    if left:
        raise _unknown(left, parser)
    return Command(verb, vars(known))


def _unknown(left: list[str], parser: argparse.ArgumentParser) -> UsageError:
    flag = next((word for word in left if word.startswith("-") and word not in ("-", "--")), None)
    if flag is None:
        return UsageError(f"unexpected {left[0]!r}: every value needs its option (see {parser.prog} --help)")
    name, equals, value = flag.lstrip("-").partition("=")
    name, value = name.strip(), value if equals else _after(left, flag)
    for table, text in (
        (LATER, "comes with the submission of jobs, a later part"),
        (RENAMED, ""),
    ):
        if name in table:
            return UsageError(f"--{name} ({table[name]}) {text}" if text else f"--{name}: {table[name]}")
    if name in PROCESSOR:
        example = f"--wf-arg {name.replace('-', '_')}={value or '…'}"
        return UsageError(f"unknown option --{name}: arguments of the workflow are given as {example}")
    known = [word for action in parser._actions for word in action.option_strings]  # noqa: SLF001
    if not re.fullmatch(r"[\w-]+", name):
        return UsageError(f"unknown option {flag!r} (see {parser.prog} --help)")
    return UnknownNameError.of("option", f"--{name}" if len(name) > 1 else f"-{name}", known)


def _after(left: list[str], flag: str) -> str:
    after = left[left.index(flag) + 1 :][:1]
    return after[0] if after and not after[0].startswith("-") else ""


def run_parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of a run, and of ``plan``, which takes the same options."""
    prog = f"runner.py {verb}".strip()
    verbs = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
    later = _wrapped(sorted({f"--{name}" for name in LATER}))
    parser = _Parser(
        prog=prog,
        usage=f"{prog} --wf WF --json FILESET [--executor NAME] [options]",
        description="Run a workflow over a fileset. The same command again resumes it."
        if not verb
        else VERBS[verb].capitalize() + ".",
        epilog=_EPILOG.format(verbs=verbs, later=later),
    )
    groups = _add_options(parser)
    if verb == "plan":
        groups["what is said"].add_argument(*_AS_JSON, **_AS_JSON_ABOUT)
    return parser


def _add_options(parser: argparse.ArgumentParser, only: Sequence[str] = ()) -> dict[str, Any]:
    """Add the options of some groups, or of all; the groups by their titles."""
    groups: dict[str, Any] = {}
    for each in options():
        title = each.about["group"]
        if only and title not in only:
            continue
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], each)
    return groups


def _wrapped(words: list[str]) -> str:
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > WIDTH - 6:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n  ".join(lines)


_AS_JSON = ("--as-json",)
_AS_JSON_ABOUT: dict[str, Any] = {
    "action": "store_true",
    "default": argparse.SUPPRESS,
    "help": "print it for a program",
}


def _add(group: Any, each: Option) -> None:
    about: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS, "help": _help_of(each)}
    if each.switch:
        about |= {"action": "store_const", "const": not each.default}
    else:
        about |= {"metavar": each.about["metavar"]}
        if each.repeated or each.table:
            about["action"] = "append"
    group.add_argument(*each.flags, **about)


def _help_of(each: Option) -> str:
    text = each.about["help"]
    if each.switch:
        text = f"do not {text}" if each.default is True else text
    elif each.default not in ((), {}, None, "") and "default" not in text:
        text += f" [{each.default}]"
    return str(text).replace("%", "%%")


def _merge_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="runner.py merge",
        usage="runner.py merge DIR [DIR …] [-o FILE] [options]",
        description="Merge the outputs of one or more run directories into one file. Outputs that\n"
        "overlap are refused; so is a run with events missing, unless that is allowed.",
    )
    parser.add_argument("dirs", nargs="+", metavar="DIR", help="a run's directory (hist_…)")
    group = parser.add_argument_group("options")
    hidden = argparse.SUPPRESS
    group.add_argument("-o", "--output", metavar="FILE", default=hidden, help="where the result goes")
    group.add_argument(
        "--overwrite", action="store_true", default=hidden, help="replace the result if there is one"
    )
    group.add_argument(
        "--allow-missing", metavar="N", default=hidden, help="merge with up to N events missing [0]"
    )
    group.add_argument(
        "--allow-missing-files", metavar="N", default=hidden, help="and with up to N unopened files [0]"
    )
    group.add_argument("--no-postprocess", dest="postprocess", action="store_false", default=hidden,
                       help="do not apply the workflow's postprocess")  # fmt: skip
    group.add_argument("-q", "--quiet", action="store_true", default=hidden, help="say only errors")
    return parser


def _look_parser(verb: str, metavar: str, what: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"runner.py {verb}", usage=f"runner.py {verb} {metavar} [{metavar} …] [--as-json]",
                     description=VERBS[verb].capitalize() + ".")  # fmt: skip
    parser.add_argument("paths", nargs="+", metavar=metavar, help=what)
    parser.add_argument_group("options").add_argument(*_AS_JSON, **_AS_JSON_ABOUT)
    return parser


def _memory_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="runner.py memory",
        usage="runner.py memory DIR [DIR …] [options]",
        description="Print what the chunks of one or more runs needed of memory: by dataset, by what\n"
        "the results hold, and drawn against events. Runs may still be at work.",
    )
    parser.add_argument("paths", nargs="+", metavar="DIR", help="a run's directory (hist_…)")
    group = parser.add_argument_group("options")
    hidden = argparse.SUPPRESS
    group.add_argument("--plot", metavar="FILE.png", default=hidden, help="draw it into a file as well")
    group.add_argument("--only", metavar="NAME", default=hidden, help="only this dataset")
    group.add_argument(*_AS_JSON, **_AS_JSON_ABOUT)
    return parser


def _sites_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="runner.py sites",
        usage="runner.py sites [NAME] [options]",
        description=VERBS["sites"].capitalize() + ".",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", default=argparse.SUPPRESS, help="a site")
    group = parser.add_argument_group("options")
    hidden = argparse.SUPPRESS
    group.add_argument(
        "--schema", action="store_true", default=hidden, help="the JSON schema of a profile, for editors"
    )
    group.add_argument(*_AS_JSON, **_AS_JSON_ABOUT)
    group = parser.add_argument_group("what a run would ask of the site: it is shown as that run has it")
    for each in options():
        if "site" in each.about or each.name in ("site_file", "workers", "config", "set"):
            _add(group, each)
    return parser


def _site_parser(verb: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"runner.py {verb}",
        usage=f"runner.py {verb} --executor NAME [options]",
        description=VERBS[verb].capitalize() + ".",
    )
    looks = verb == "check"  # with a workflow and a fileset, it says what is known of the run's memory
    groups = _add_options(parser, (WHAT, WHERE, JOBS, SPLIT, SAY) if looks else (WHERE, JOBS, SAY))
    group = groups[SAY]
    for each in options():
        if each.name in ("config", "set"):
            _add(group, each)
    if verb == "check":
        group.add_argument(
            "--canary", action="store_true", default=argparse.SUPPRESS,
            help="start a job too, and have it say what it sees",
        )  # fmt: skip
    hidden = argparse.SUPPRESS
    group.add_argument(
        "--outputdir", metavar="DIR", default=hidden, help="where the run's directory would be [.]"
    )
    group.add_argument(*_AS_JSON, **_AS_JSON_ABOUT)
    return parser


_PARSERS: dict[str, Any] = {
    "sites": _sites_parser,
    "check": lambda: _site_parser("check"),
    "selftest": lambda: _site_parser("selftest"),
    "merge": _merge_parser,
    "status": lambda: _look_parser("status", "DIR", "a run's directory (hist_…)"),
    "plan": lambda: run_parser("plan"),
    "inspect": lambda: _look_parser("inspect", "PATH", "a .coffea file, or a run's directory"),
    "memory": _memory_parser,
}

"""The command line: arguments → settings → ``executors`` → exit code. Everything else is done elsewhere.

This is one of the two places that catch everything: no traceback of ours ever reaches a user, and whatever
is printed goes through ``redact``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.errors import ExecutorsError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from executors.command import Command
    from executors.settings import Resolved, Settings
    from executors.work.report import Outcome

CRASHED = 70  # a bug of ours: none of the documented codes, so that no script resumes for ever


def _expected(settings: Settings) -> Any:
    """What is known of a run's memory; only here is more imported for it than for looking at a site."""
    from executors.running import expected_memory

    return expected_memory(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    _plain_streams()
    try:
        with _signals_interrupt():
            return _run(argv)
    except SystemExit as end:  # argparse after --help
        _say("", end="")
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        _complain("interrupted: what was finished is kept, the same command resumes")
        return InterruptedRunError.exit_code
    except ExecutorsError as error:
        _complain(error.message)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the runner's edge: a bug is reported, not shown as a traceback
        return _crashed(error, argv)


def _run(argv: Sequence[str]) -> int:
    from executors.command import read_command

    command = read_command(argv or ["--help"])
    if command.verb in ("run", "plan"):
        return _start(command)
    if command.verb == "sites":
        return _sites(command.values)
    if command.verb in ("check", "selftest"):
        return _at_site(command)
    outcome = _memory(command.values) if command.verb == "memory" else _look(command)
    _show(outcome, command.values)
    return outcome.exit_code


def _start(command: Command) -> int:
    from executors.settings import resolve, show_config

    typed = dict(command.values)
    as_json = typed.pop("as_json", False)
    resolved = resolve(typed, env=os.environ)
    settings = resolved.settings
    if settings.show_config:
        from executors import site_words

        _say(show_config(resolved) + site_words.for_config(settings), end="")
        return 0
    _required(resolved)
    from executors.running import execute, plan_only
    from executors.show import Progress

    planning = settings.dry_run or command.verb == "plan"
    do = plan_only if planning else execute
    if settings.profile_memory:
        from executors.running import profile_memory as do
    with Progress(quiet=settings.quiet, level=settings.log_level) as progress:
        outcome: Outcome = do(settings, observer=progress)
    _show(outcome, {"as_json": as_json} if planning else {})
    return outcome.exit_code


def _sites(values: dict[str, Any]) -> int:
    from executors import site_words
    from executors.settings import resolve

    typed = dict(values)
    as_json, schema, name = (typed.pop(key, None) for key in ("as_json", "schema", "name"))
    settings = resolve(typed, env=os.environ).settings
    if schema:
        _say(site_words.schema_text())
    elif name or settings.site_file is not None:
        _say(site_words.asked_for(name, settings, as_json=bool(as_json)))
    elif typed:
        raise UsageError("of which site? runner.py sites NAME, or --site-file FILE.toml (see sites --help)")
    else:
        _say(site_words.listed(bool(as_json)))
    return 0


def _at_site(command: Command) -> int:
    from executors.settings import resolve

    typed = dict(command.values)
    as_json, canary = typed.pop("as_json", False), typed.pop("canary", False)
    settings = resolve(typed, env=os.environ).settings
    if command.verb == "check":
        from executors.checking import check

        code, text = check(settings, as_json=as_json, canary=canary, run=_expected)
        _say(text)
        return code
    from executors.selftest import selftest
    from executors.show import Progress

    with Progress(quiet=settings.quiet or as_json, level=settings.log_level) as progress:
        outcome = selftest(settings, observer=progress)
    _show(outcome, {"as_json": as_json})
    return outcome.exit_code


def _required(resolved: Resolved) -> None:
    settings = resolved.settings
    missing = [flag for flag, value in (("--wf", settings.wf), ("--json", settings.json)) if not value]
    if missing:
        raise UsageError(f"missing {' and '.join(missing)}: runner.py --wf WF --json FILESET (see --help)")


def _look(command: Command) -> Outcome:
    if command.verb == "merge":
        return _merged(command.values)
    from executors import inspection

    look = inspection.status if command.verb == "status" else inspection.inspect
    return _together([look(Path(path)) for path in command.values["paths"]])


def _merged(values: dict[str, Any]) -> Outcome:
    from executors.combining import merge_dirs
    from executors.settings import resolve

    accepted = ("allow_missing", "allow_missing_files")
    settings = resolve({key: values[key] for key in accepted if key in values}).settings
    return merge_dirs(
        [Path(folder) for folder in values["dirs"]],
        Path(values["output"]) if "output" in values else None,
        overwrite=values.get("overwrite", False),
        allow_missing=settings.allow_missing,
        allow_missing_files=settings.allow_missing_files,
        postprocess=values.get("postprocess", True),
    )


def _memory(values: dict[str, Any]) -> Outcome:
    from executors.memory.report import memory

    plot = Path(values["plot"]) if "plot" in values else None
    return memory([Path(path) for path in values["paths"]], only=values.get("only", ""), plot=plot)


def _together(outcomes: list[Outcome]) -> Outcome:
    """Several outcomes as one: the worst exit code, all texts."""
    from executors.work.report import Outcome

    if len(outcomes) == 1:
        return outcomes[0]
    text = "\n".join(outcome.text for outcome in outcomes)
    data = {str(i): outcome.data for i, outcome in enumerate(outcomes)}
    return Outcome(max(outcome.exit_code for outcome in outcomes), text, data=data)


def _show(outcome: Outcome, values: dict[str, Any]) -> None:
    from executors.redact import cleaned, redact

    if values.get("as_json"):
        import json

        _say(json.dumps(cleaned(outcome.data), indent=1, default=lambda one: redact(str(one))))
        return
    if outcome.text and not values.get("quiet"):
        _say(redact(outcome.text))
    if outcome.summary is not None:
        from executors.show import summary_text

        _say(summary_text(outcome.summary))


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Before work has begun, being told to end is the same as Ctrl-C; what is ignored (nohup) stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _plain_streams() -> None:
    """A stream that cannot write a character writes its number; a closed one is replaced by nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _say(text: str, end: str = "\n") -> None:
    _write("stdout", text + end)


def _complain(text: str) -> None:
    from executors.redact import redact

    text = "".join(char if char == "\n" or char.isprintable() else repr(char)[1:-1] for char in redact(text))
    _write("stderr", f"runner.py: error: {text}\n")


def _write(name: str, text: str) -> None:
    """Write; whoever stopped listening does not stop the run."""
    stream = getattr(sys, name)
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()  # at once: what is left to the end of the process is complained about then


def _crashed(error: Exception, argv: Sequence[str]) -> int:
    """A bug of ours: one line for the user, the rest in a file."""
    import tempfile
    import traceback

    from executors.redact import redact

    said = traceback.format_exception_only(error)[-1].strip()
    report = (
        f"runner.py {' '.join(argv)}\nPython {sys.version}\n\n{''.join(traceback.format_exception(error))}"
    )
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="coffea-scaleout-crash-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="replace",
        ) as file:
            file.write(redact(report))
        where = f"; details are in {file.name}"
    except OSError:
        where = "; details could not be written"
    _complain(f"unexpected {said} (a bug of this program, not of yours){where}")
    return CRASHED


if __name__ == "__main__":
    sys.exit(main())

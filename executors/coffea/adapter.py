"""The drop-in executor for coffea's ``Runner``: ``for_coffea("dask/local")`` on any engine of this project.

It is the contract with coffea, and no more: fields, copies, start values, what is returned and raised.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from coffea.processor import accumulate
from coffea.processor.executor import ExecutorBase
from coffea.util import rich_bar

from executors.coffea.adapter_drive import Drive, Plan
from executors.coffea.adapter_item import chain, revive, understand
from executors.coffea.adapter_merge import Tree, add
from executors.coffea.adapter_reach import can_lead, elsewhere
from executors.coffea.adapter_report import Report, item_name, listing
from executors.coffea.adapter_session import Pool, Session
from executors.errors import (
    AnalysisError,
    ExecutorsError,
    IncompleteError,
    SiteError,
    UnknownNameError,
    UsageError,
)
from executors.work.model import Kind
from executors.work.policy import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from executors.coffea.adapter_item import Step

REDRAW = 0.1  # seconds between two drawings of the progress bar


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass
class EngineExecutor(ExecutorBase):  # type: ignore[misc]
    """A coffea executor on one engine: give it to ``Runner`` as ``executor`` or ``pre_executor``.

    The engine opens at the first call and stays open for the next ones until ``close()``, the end of a
    ``with`` block, or the end of the program. ``report`` says what was skipped, failed and retried.
    """

    engine: str = "futures"
    workers: int = field(default_factory=cores)
    jobs: int = 1  # at a batch site, each with so many workers
    site: Mapping[str, Any] = field(default_factory=dict)  # options of the command about the site: queue, …
    retries: int = 3  # of what can pass: a bug in the analysis is never run twice
    pool: Pool = None  # instead of the engine: an open concurrent.futures.Executor, or a class of one
    window: int | None = None  # items handed to the pool at once; None: enough to keep the workers busy
    backoff: float = 1.0  # seconds before the first retry; doubles each time
    report: Report = field(default_factory=Report, repr=False, compare=False)
    session: Session | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse nonsense now; nothing is started before the first call."""
        _check(self)
        key = (self.engine, self.workers, self.pool, self.jobs, dict(self.site))
        if self.session is None or self.session.key != key:
            self.session = Session(*key)

    def __call__(
        self, items: Iterable[Any], function: Callable[[Any], Any], accumulator: Any
    ) -> tuple[Any, BaseException | int]:
        """Sum ``function`` over the items: ``(sum, 0)``, or ``(partial sum, exception)``."""
        todo = list(items)
        if not todo or self.session is None:
            return accumulator, 0
        step = understand(function, self.function_name)
        step, urls = _reached(self, step, todo)
        tree = Tree(len(todo), functools.partial(_added, what=self.unit))
        self.report.planned += len(todo)
        skipped = len(self.report.skipped)
        with _bar(self, len(todo)) as progressed:
            plan = Plan(
                items=todo,
                step=step,
                limits=Limits(retries=self.retries, backoff=self.backoff),
                window=self.window or 2 * self.workers * self.jobs + 2,
                workers=self.workers * self.jobs,
                compression=self.compression,
                done=tree.put,
                progressed=progressed,
                report=self.report,
                urls=urls,
            )
            drive = Drive(plan, self.session)
            drive.run()
        self._tell(skipped, len(todo))
        total = accumulate([tree.total()], accumulator)
        return _verdict(total, drive, step)

    def _tell(self, before: int, items: int) -> None:
        new = self.report.skipped[before:]
        if new:
            text = f"{len(new)} of {items} {self.unit}s skipped; all of them are in the executor's report:"
            warnings.warn(f"{text}\n{listing(new)}", UserWarning, stacklevel=4)

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        if self.session is not None:
            self.session.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()


def for_coffea(name: str, **options: Any) -> EngineExecutor:
    """A coffea executor on the engine of that name, with the options given (see ``EngineExecutor``).

    What the command says about a site (``queue=``, ``memory=``, ``account=``, …) is said in the same words.
    """
    from executors.pools import default_workers, site_options

    known = {f.name for f in fields(EngineExecutor)} - {"engine", "session", "site"}
    about = site_options() - known
    for option in options:
        if option not in known | about:
            raise UnknownNameError.of("option of for_coffea", option, known | about)
    site = {key: options.pop(key) for key in list(options) if key in about}
    if options.get("workers") is None:
        options.pop("workers", None)
        if options.get("pool") is None and (workers := default_workers(name, **site)) is not None:
            options["workers"] = workers
    return EngineExecutor(engine=name, site=site, **options)


def _check(executor: EngineExecutor) -> None:
    for name, least in (("workers", 1), ("jobs", 1), ("retries", 0), ("window", 1)):
        value = getattr(executor, name)
        if name == "window" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name}={value!r}: for_coffea takes a whole number from {least} on")
    if not isinstance(executor.backoff, int | float) or executor.backoff < 0:
        raise UsageError(f"backoff={executor.backoff!r}: for_coffea takes seconds, 0 or more")
    if executor.pool is None:
        from executors.pools import default_workers

        default_workers(executor.engine, **executor.site)


def _reached(executor: EngineExecutor, step: Step, items: list[Any]) -> tuple[Step, dict[str, str]]:
    """The step with what its site tells XRootD's client; and where the site reads which files."""
    from executors.pools import reading

    try:
        read, client = reading(executor.engine, **executor.site)
    except UnknownNameError:
        if executor.pool is None:
            raise
        return step, {}  # a pool of one's own may have any name
    urls = elsewhere(read, items)
    if urls and not can_lead(step.function):
        name, url = next(iter(urls.items()))
        text = (
            f"{executor.engine} reads {name} as {url}, and {len(urls)} files in all by other addresses. What "
            "this Runner does with files is not known here, so each is opened by its own name: give it "
            f"executors.as_read(fileset, on={executor.engine!r})"
        )
        warnings.warn(text, UserWarning, stacklevel=3)
        urls = {}
    return replace(step, client=client), urls


@contextlib.contextmanager
def _bar(executor: EngineExecutor, total: int) -> Iterator[Callable[[int], None]]:
    if not executor.status:
        yield lambda _done: None
        return
    with rich_bar() as progress:
        task = progress.add_task(executor.desc, total=total, unit=executor.unit)
        drawn = 0.0

        def progressed(done: int) -> None:
            nonlocal drawn
            due = done == total or time.monotonic() - drawn > REDRAW
            drawn = time.monotonic() if due else drawn
            progress.update(task, completed=done, refresh=due)

        yield progressed


def _added(left: Any, right: Any, leaves: bool, *, what: str) -> Any:
    try:
        return add(left, right, leaves)
    except Exception as error:
        raise AnalysisError(
            f"the results of two {what}s cannot be added: {type(error).__name__}: {error}; "
            "do all of them have the same keys, types and axes?"
        ) from error


def _verdict(total: Any, drive: Drive, step: Step) -> tuple[Any, BaseException | int]:
    """What ``Runner`` gets; raised instead of returned wherever it would drop an exception it is handed."""
    if not drive.failures:
        return total, 0
    error = _error(drive)
    if total is None or step.metadata:
        raise error
    if not step.defer and any(isinstance(link, step.allowed) for link in chain(error)):
        # Runner would take it for a file to be skipped, and hand out the partial sum as if it were all.
        error.partial_output = total.get("out") if isinstance(total, dict) else total  # type: ignore[attr-defined]
        raise error
    return total, error


_RANK = (Kind.USER, Kind.SITE, Kind.LOST, Kind.MEMORY, Kind.TIMEOUT, Kind.BAD, Kind.PASSING)


def _error(drive: Drive) -> ExecutorsError:
    worst = min(drive.failures, key=lambda failure: _RANK.index(failure[1].kind))
    mine = drive.plan.report.failed[-len(drive.failures) :]
    total, missing = len(drive.plan.items), [ticket.item for ticket, _, _ in drive.failures]
    head = f"{len(missing)} of {total} items failed and are missing from the result"
    if drive.stopped:
        head += f", and the rest was not run, because {drive.stopped}"
    kind = worst[1].kind
    made: type[ExecutorsError] = IncompleteError
    if kind in {Kind.USER, Kind.SITE}:
        made = AnalysisError if kind is Kind.USER else SiteError
    error = made(
        f"{head}:\n{listing(mine)}",
        items=tuple(missing),
        missing=tuple(item_name(item) for item in missing),
        not_run=bool(drive.stopped),
    )
    error.__cause__ = worst[2] or revive(worst[1])
    return error

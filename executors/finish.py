"""The end of a run: indexed and merged outputs, the manifest, what failed, and the exit code."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from executors import outputs, words
from executors.errors import AnalysisError, DamagedError, IncompleteError, InterruptedRunError, SiteError
from executors.redact import redact
from executors.work.model import Kind
from executors.work.report import Outcome, Summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from executors.options import Settings
    from executors.work.drive import Drive
    from executors.work.model import Analysis
    from executors.work.report import DatasetCount


class Finish:
    """Writes what a run leaves, as far as it is due."""

    def __init__(
        self, drive: Drive, analysis: Analysis, processor: Any, settings: Settings, folder: Path
    ) -> None:
        self.drive, self.analysis, self.processor = drive, analysis, processor
        self.settings, self.folder = settings, folder
        self.plan = drive.tree.plan
        self.written: dict[str, str] = {}
        self.fresh: set[str] = set()  # of them, those of which this run did a part
        self.digest = ""
        self.mixed = False  # with --reuse: parts may stem from an earlier version of the analysis
        self.merged = ""
        self._indexed = settings.fsize is not None or settings.no_merge

    # -- outputs -----------------------------------------------------------------------------------

    def splits_done(self) -> None:
        """Write the indexed outputs of all splits that an earlier run completed."""
        if self._indexed:
            for split in range(len(self.drive.tree.splits)):
                root = self.drive.tree.split_root(split)
                if self.drive.coverage.done(root) and self.drive.coverage.complete(root):
                    self.split(split)
            self.fresh.clear()

    def split(self, number: int) -> None:
        """Write one split's indexed output, from what is stored of it."""
        from executors.coffea.pack import unpack

        split = self.drive.tree.splits[number]
        name = outputs.indexed_name(self.plan, split.index, split.part)
        if self._indexed and name not in self.written:
            found = self.drive.total_of_split(number, self.analysis.combine)
            if self._cut_off(found):
                return
            self._check(0 if found is None else found[1], self.drive.events_below(number))
            self.fresh.add(name)
            self._save(name, None if found is None else unpack(found[0]))

    def _cut_off(self, found: Any) -> bool:
        """Whether the run was stopped while a damaged sum was made again: there is nothing to write then."""
        return found is None and self.drive.stopping()

    def _check(self, stored: int, counted: int) -> None:
        if stored != counted:
            raise DamagedError(
                f"{self.folder}: the stored sums hold {stored} events where {counted} were counted; "
                "--overwrite starts anew"
            )

    def _save(self, name: str, value: Any) -> None:
        from executors.coffea.save import save

        self.written[name] = save({} if value is None else value, self.folder / name)

    def _merge(self) -> None:
        from executors.coffea.pack import unpack

        found = self.drive.total(self.analysis.combine)
        if self._cut_off(found) or not self._due(self._code(None)):
            return  # what was damaged could not be made again
        self._check(0 if found is None else found[1], self.drive.ledger.events_counted)
        value: Any = {}
        if found is not None:
            self.digest = found[0].digest()
            value = unpack(found[0])
        self.merged = outputs.merged_name(self.plan)
        self._save(self.merged, self._postprocessed(value))
        if self.settings.output is not None:
            self.settings.output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / self.merged, self.settings.output)

    def _postprocessed(self, value: Any) -> Any:
        postprocess = getattr(self.processor, "postprocess", None)
        if not self.settings.postprocess or postprocess is None:
            return value
        try:
            result = postprocess(value)
        except Exception as error:
            # The runner's edge to the user's own code.
            raise AnalysisError(
                f"postprocess raised {type(error).__name__}: {error} "
                f"({'; '.join(self.analysis.frames(error)) or 'no frame of yours'}). "
                "All events are counted and kept: mend it and run the same command with --reuse"
            ) from error
        return value if result is None else result

    # -- the account -------------------------------------------------------------------------------

    def outcome(self, selected: list[int] | None, began: float, close: Callable[[], None]) -> Outcome:
        """Everything that is due at the end, and what it comes to."""
        code = self._code(selected)
        due = self._due(code)
        error: AnalysisError | None = None
        try:
            if due and self._indexed:
                self._rest_of_splits(selected)
            if due and selected is None and not self.settings.no_merge:
                self._merge()
                code = self._code(selected)
        except AnalysisError as found:
            error, code = found, AnalysisError.exit_code
        with contextlib.suppress(KeyboardInterrupt):
            close()
        summary = self._summary(began)
        manifest = self._manifest(code, summary)
        self._write(manifest)
        self.drive.observer.finished(summary)
        # It quotes what the user's own code raised.
        text = redact(error.message if error else self._text(code, selected))
        return Outcome(code, text, summary, manifest)

    def _rest_of_splits(self, selected: list[int] | None) -> None:
        """Write the splits that are not whole (their loss is accepted) and those without an event."""
        wanted = range(len(self.drive.tree.splits)) if selected is None else selected
        for number in wanted:
            self.split(number)

    def _due(self, code: int) -> bool:
        """Whether outputs are written with this exit code."""
        return code == 0 or (code == IncompleteError.exit_code and self.settings.skipbadfiles)

    def _code(self, selected: list[int] | None) -> int:
        drive = self.drive
        user = drive.ledger.user_failures() or (drive.halted is not None and drive.halted.kind is Kind.USER)
        if user:
            return AnalysisError.exit_code
        if drive.halted is not None:
            return SiteError.exit_code
        missing, unknown = self._missing(selected)
        if not missing and not unknown:
            return 0
        if drive.stop.is_set():
            return InterruptedRunError.exit_code
        accepted = missing <= self.settings.allow_missing and unknown <= self.settings.allow_missing_files
        return 0 if accepted else IncompleteError.exit_code

    def _missing(self, selected: list[int] | None) -> tuple[int, int]:
        """Events that are planned and not counted, and files nobody could count, of the selected splits."""
        tree, coverage = self.drive.tree, self.drive.coverage
        if selected is None:
            ledger = self.drive.ledger
            return ledger.events_planned - ledger.events_counted, ledger.unknown_files()
        missing = unknown = 0
        for number in selected:
            root = tree.split_root(number)
            unknown += sum(f.entries is None for f in tree.splits[number].files)
            if not any(above in coverage.stored for above in coverage.path(root)):
                missing += sum(tree.events(node) for node in coverage.missing(root))
                missing += sum(f.whole - f.fixed for f in (tree.file(*at) for at in tree.uncut(root)))
        return missing, unknown

    def _rows(self) -> tuple[DatasetCount, ...]:
        """The account, with what the chunks of each dataset needed of memory."""
        rows, peaks = self.drive.ledger.rows(), self.drive.ledger.peak
        fits = map(self.drive.sizing.measured, range(len(rows)))
        return tuple(
            replace(row, peak_memory=peak, bytes_per_event=fit.per_event if fit else 0.0)
            for row, peak, fit in zip(rows, peaks, fits, strict=True)
        )

    def _summary(self, began: float) -> Summary:
        ledger = self.drive.ledger
        return Summary(
            rows=self._rows(),
            wall=time.monotonic() - began,
            cpu=ledger.cpu,
            peak_memory=max(ledger.peak, default=0),
            bytes_read=ledger.bytes_read,
            digest=self.digest,
            outputs=tuple(
                str(self.folder / name) for name in ([self.merged] if self.merged else sorted(self.fresh))
            ),
            resumed_events=ledger.resumed_events,
        )

    def _manifest(self, code: int, summary: Summary) -> dict[str, Any]:
        ledger, settings = self.drive.ledger, self.settings
        return {
            "workflow": self.plan.workflow,
            "fileset": self.plan.fileset,
            "executor": settings.executor,
            "complete": ledger.complete,
            "exit_code": code,
            "events_planned": ledger.events_planned,
            "events_counted": ledger.events_counted,
            "events_missing": ledger.events_planned - ledger.events_counted,
            "files_not_counted": ledger.unknown_files(),
            "datasets": outputs.account(ledger, self.drive.sizing),
            "failures": outputs.failures(self.plan, ledger),
            "reused_analysis": self.mixed,
            "halved_chunks": outputs.halved(self.plan, ledger),
            "digest": self.digest,
            "merged": self.merged,
            "outputs": dict(sorted(self.written.items())),
            "plan": self.drive.tree.planned().digest(),
            "fingerprint": self.plan.fingerprint,
            "fingerprint_parts": dict(self.plan.fingerprint_parts),
            "chunk": "auto" if self.plan.auto else self.plan.chunk,
            "fsize": self.plan.fsize,
            "schema": settings.schema,
            "workflow_arguments": dict(settings.wf_arg),
            "versions": outputs.versions(),
            "wall_seconds": round(summary.wall, 3),
            "cpu_seconds": round(summary.cpu, 3),
            "peak_memory": summary.peak_memory,
            "bytes_read": summary.bytes_read,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def _write(self, manifest: dict[str, Any]) -> None:
        missing = outputs.missing_fileset(self.plan, self.drive.coverage)
        failed = self.folder / "failed.json"
        if missing:
            outputs.write_json(failed, missing)
        else:
            failed.unlink(missing_ok=True)
        outputs.write_json(self.folder / "manifest.json", manifest)

    def _text(self, code: int, selected: list[int] | None) -> str:
        ledger, halted = self.drive.ledger, self.drive.halted
        missing, unknown = self._missing(selected)
        lost = words.gap(missing, unknown, ledger.events_planned)
        if code == 0:
            gap = lost if missing or unknown else ""
            return words.good_end(ledger.complete, gap, self.folder, self.merged)
        if code == AnalysisError.exit_code:
            return words.users_mistake(ledger, halted)
        options = words.accept(missing, unknown)
        return words.bad_end(code, lost, options, halted=halted, folder=self.folder, merged=self.merged)

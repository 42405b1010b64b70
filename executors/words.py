"""What a run says at its end, in words: what is missing, why, and the command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executors.errors import InterruptedRunError
from executors.work.model import Kind

if TYPE_CHECKING:
    from pathlib import Path

    from executors.work.ledger import Ledger
    from executors.work.model import Failure


def number(n: int, what: str) -> str:
    """``1 file``, ``1,200 files``."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def gap(missing: int, unknown: int, planned: int) -> str:
    """What is not in the result."""
    parts = [f"{missing:,} of {planned:,} planned events are not counted"] if missing else []
    if unknown:
        parts.append(f"{number(unknown, 'file')} could not be opened")
    return ", and ".join(parts) or "nothing is missing"


def accept(missing: int, unknown: int) -> str:
    """The options that accept just this loss."""
    events = [f"--allow-missing {missing}"] if missing else []
    return " ".join([*events, *([f"--allow-missing-files {unknown}"] if unknown else [])])


def bad_end(code: int, lost: str, options: str, *, halted: Failure | None, folder: Path, merged: str) -> str:
    """Why a run did not finish, and what to do; ``lost`` is from ``gap``, ``options`` from ``accept``."""
    if halted is not None:
        return f"stopped: {halted.message}\n{lost}. Once that is mended, the same command goes on from here"
    if code == InterruptedRunError.exit_code:
        return f"interrupted: {lost}. The same command goes on from here"
    kept = f"; the good ones are in {folder / merged}" if merged else ""
    return (
        f"incomplete: {lost}{kept}. What is missing is in {folder / 'failed.json'}, why in manifest.json. "
        f"The same command tries again; {options} accepts the loss"
    )


def good_end(whole: bool, lost: str, folder: Path, merged: str) -> str:
    """That all is well, and where the result is; ``lost`` is empty where nothing is missing."""
    if lost:
        return f"accepted: {lost}; the good ones are in {folder / merged}"
    if not whole:
        return f"the chosen splits are done; 'runner.py status {folder}' says what is left"
    if merged:
        return f"complete: {folder / merged}"
    return f"complete, not merged: 'runner.py merge {folder}' merges"


def users_mistake(ledger: Ledger, halted: Failure | None) -> str:
    """The user's own error: what, in which of the user's lines, on which events."""
    kinds = (Kind.USER, Kind.TIMEOUT)
    found = [f for f in ledger.lost.values() if f.kind in kinds]
    if halted is not None and halted.kind in kinds:
        found = [halted, *(f for f in found if f is not halted)]
    first = found[0]
    lines = [f"the analysis raised {first.error}: {first.message}"]
    lines += [f"  {frame}" for frame in first.frames]
    if first.path:
        lines.append(f"  in {first.path}, entries {first.range[0]} to {first.range[1]}")
    if len(found) > 1:
        lines.append(f"  and on {number(len(found) - 1, 'chunk')} more; see manifest.json")
    return "\n".join(lines)

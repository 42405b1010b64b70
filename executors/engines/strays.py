"""Ends what a killed keeper could not: processes of ours that still work in the engine's private folder."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def end(folder: Path, mark: str) -> None:
    """Kill every process of this user that belongs to the folder or keeper, which no one else ever names."""
    for process in list(_found(str(folder), mark)):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _found(folder: str, mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.pid != os.getpid()
                and process.uids().real == os.getuid()
                and _of(process, folder, mark)
            ):
                yield process


def _of(process: psutil.Process, folder: str, mark: str) -> bool:
    """By its arguments, its folder or an open file: one that renames itself shows only the last."""
    words = process.cmdline()
    if any(folder in word or mark in word for word in words) or process.cwd().startswith(folder):
        return True
    return any(file.path.startswith(folder) for file in process.open_files())

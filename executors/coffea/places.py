"""Places within an accumulator, and errors that name them. Knows nothing of what lies there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import AnalysisError, ExecutorsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Path: TypeAlias = tuple[Any, ...]


def place(path: Path) -> str:
    """A place within the accumulator, as one would write it: ``out['dy']['mass']``."""
    return "out" + "".join(f"[{key!r}]" for key in path)


class at:  # noqa: N801
    """Whatever fails within, the user's own code included, is said of one place in the accumulator.

    As wide as ``except Exception``, on purpose: what is stored and added here has methods of the user's.
    """

    __slots__ = ("_path", "_what")

    def __init__(self, path: Path, what: str | Callable[[], str]) -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ExecutorsError, MemoryError)):
            reason = " ".join(str(error).split())[:500] or "no reason given"
            where = place(self._path)
            what = self._what if isinstance(self._what, str) else self._what()
            raise AnalysisError(f"{where}: {what}: {type(error).__name__}: {reason}", path=where) from error

"""One call on one worker of a Dask cluster: its outcome, or that there will be none.

Dask itself would make a call again whose worker is gone, and wait for ever where only that worker may make
it. So whoever calls knows whether the worker is there, and wakes the one who waits when that changes.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from executors.engines.call import run

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

RESULT_WAIT = 300.0  # seconds for a large result over a slow network
LAST_WAIT = 5.0  # seconds for one that may have left the worker before it died


class LostError(Exception):
    """There is no outcome; in Dask's own words, if it has any."""


def outcome_of(
    client: Any,
    address: str,
    blob: bytes,
    *,
    awake: threading.Event,
    alive: Callable[[], bool],
    patience: Callable[[], float | None] = lambda: None,
) -> bytes:
    """What the worker at this address answers.

    The caller sets ``awake`` whenever ``alive`` or ``patience`` (how long to wait on, at most) changes.
    """

    def until(done: Callable[[], bool], most: float | None) -> None:
        while alive() and not done():
            if not awake.wait(most if (short := patience()) is None else short):
                break
            awake.clear()

    awake.clear()
    future = client.submit(
        run,
        blob,
        key=f"call-{uuid.uuid4().hex}",
        workers=[address],
        allow_other_workers=False,
        pure=False,
        retries=0,
    )
    future.add_done_callback(lambda _: awake.set())
    try:
        until(future.done, None)
        if future.done():
            coming = asyncio.run_coroutine_threadsafe(
                client.gather(future, asynchronous=True), client.loop.asyncio_loop
            )
            coming.add_done_callback(lambda _: awake.set())
            until(coming.done, RESULT_WAIT)
            outcome: bytes = coming.result(LAST_WAIT)
            return outcome
    except Exception as error:
        future.cancel()  # ends what fetches it, too, which must not be cancelled: other calls share it
        raise LostError(f"lost: {type(error).__name__}: {error}") from error
    future.cancel()
    raise LostError("lost")

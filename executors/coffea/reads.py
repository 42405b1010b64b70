"""The columns of an open tree, read for several chunks at once: in one request, and each basket only once.

Which columns an analysis reads is seen from what it did read. A wrong guess costs bytes and never changes
what is shown: what was not foreseen is read when it is asked for, as coffea does. No schema is known here.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import awkward as ak
import numpy as np
import uproot

from executors.work.worker import TimeLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from executors.work.model import Range

    Array: TypeAlias = NDArray[Any]
    Take: TypeAlias = Callable[["Numbers", int, int], Array | None]

MOST = 8 << 20  # bytes of columns read at once, where that is more than one chunk
MOST_ALONE = 128 << 20  # a chunk with more is read column by column: of nothing there is then little
MOST_AHEAD = 64 << 20  # of what is read while another is computed
OFTEN = 0.5  # a column is foreseen if at least such a share of the chunks read it
DATASETS = 1000


class Numbers(NamedTuple):
    """A column of numbers, or of lists of numbers: then where each begins in the content, and the end."""

    content: Array
    offsets: Array | None = None


def numbers(layout: Any) -> Numbers | None:
    """An array of uproot's as flat ones; None if it is of anything else."""
    offsets = None
    if isinstance(layout, ak.contents.ListOffsetArray):
        offsets, layout = np.asarray(layout.offsets.data, "i8"), layout.content
    if not isinstance(layout, ak.contents.NumpyArray) or layout.data.ndim != 1 or layout.parameters:
        return None
    return Numbers(layout.data, offsets)


# --- entries of one chunk, and nothing of others: coffea's transformations take contents as they are ---


def flat(whole: Numbers, start: int, stop: int) -> Array | None:
    """The buffer of a column of numbers."""
    return whole.content[start:stop] if whole.offsets is None else None


def content(whole: Numbers, start: int, stop: int) -> Array | None:
    """The buffer of the content of lists."""
    if whole.offsets is None:
        return None
    return whole.content[whole.offsets[start] : whole.offsets[stop]]


def offsets(whole: Numbers, start: int, stop: int) -> Array | None:
    """The buffer that says where lists begin."""
    return None if whole.offsets is None else whole.offsets[start : stop + 1] - whole.offsets[start]


def offsets_of_counts(whole: Numbers, start: int, stop: int) -> Array | None:
    """The same, of a column that says how long each list is."""
    if whole.offsets is not None:
        return None
    found = np.zeros(stop - start + 1, "i8")
    np.cumsum(whole.content[start:stop], out=found[1:])
    return found


def array(whole: Numbers, start: int, stop: int) -> Any:
    """As uproot gives it."""
    found = flat(whole, start, stop)
    if found is not None:
        return ak.Array(ak.contents.NumpyArray(found.copy()))
    inner = np.array(content(whole, start, stop))
    where = ak.index.Index64(offsets(whole, start, stop))
    return ak.Array(ak.contents.ListOffsetArray(where, ak.contents.NumpyArray(inner)))


class Column:
    """A branch as coffea's mapping asks it for its entries, answered from what its group has read."""

    def __init__(self, branch: Any, group: Group) -> None:
        self._branch, self._group = branch, group
        self.name, self.interpretation = branch.name, branch.interpretation

    def array(self, interpretation: Any, *, entry_start: int, entry_stop: int, **options: Any) -> Any:
        """As of the branch."""
        whole = self._group.whole(self.name)
        if whole is not None:
            start = self._group.start
            return array(whole, entry_start - start, entry_stop - start)
        return self._branch.array(interpretation, entry_start=entry_start, entry_stop=entry_stop, **options)


class Group:
    """Consecutive chunks and the columns foreseen for them, which are read when the first of them is used."""

    def __init__(
        self, tree: Any, spans: Sequence[Range], branches: Mapping[str, Any], size: float = 0
    ) -> None:
        self.spans, self.last = frozenset(spans), spans[-1]
        self.start, self.stop = spans[0][0], spans[-1][1]
        self.size = size  # bytes, about
        self._tree, self._branches = tree, branches
        self._arrays: dict[str, Numbers] | None = None
        self._coming: Future[dict[str, Numbers]] | None = None

    def column(self, name: str, branch: Any) -> Any:
        """What answers for a branch: the branch itself unless it was foreseen."""
        return Column(branch, self) if self._branches.get(name) is branch else branch

    def arrays(self) -> dict[str, Numbers]:
        """All columns of all chunks; none if they could not be read."""
        if self._arrays is None:
            coming, self._coming = self._coming, None
            if coming is None:
                self._arrays = self._now()
            else:
                self._arrays = {} if coming.exception() is not None else coming.result()
        return self._arrays

    def ahead(self, pool: ThreadPoolExecutor) -> None:
        """Have the columns read meanwhile."""
        if self._arrays is None and self._coming is None:
            self._coming = pool.submit(self._read)

    def foresees(self, name: str) -> bool:
        """Whether a column is among those that are read."""
        return name in self._branches

    def whole(self, name: str) -> Numbers | None:
        """A column of all chunks; None of what could not be read."""
        return self.arrays().get(name)

    def part(self, name: str, span: Range, take: Take) -> Array | None:
        """What is to be taken of one chunk; None of what could not be read or is of another form.

        Writing into it must change nothing else, and to keep some of it must not keep all: so it is copied
        where there are other chunks, and else given away, to be read anew should it be asked for again.
        """
        arrays = self.arrays()
        whole = arrays.get(name)
        if whole is None:
            return None
        found = take(whole, span[0] - self.start, span[1] - self.start)
        if found is None or found.base is None:
            return found
        if len(self.spans) > 1:
            return found.copy()
        arrays.pop(name, None)
        return found

    def _now(self) -> dict[str, Numbers]:
        try:
            return self._read()
        except TimeLimitError:
            raise
        except Exception:  # noqa: BLE001 - readers raise anything; the chunk it belongs to will meet it again
            return {}

    def _read(self) -> dict[str, Numbers]:
        arrays = self._tree.arrays(
            [(name, branch.interpretation) for name, branch in self._branches.items()],
            entry_start=self.start,
            entry_stop=self.stop,
            array_cache=None,
            how=dict,
        )
        found = {name: numbers(array.layout) for name, array in arrays.items()}
        return {name: simple for name, simple in found.items() if simple is not None}


class Reads:
    """What is read of one open tree, chunk by chunk, and what that says of the chunks to come."""

    def __init__(
        self, tree: Any, ranges: Iterable[Range], known: MutableMapping[str, frozenset[str]], dataset: str
    ) -> None:
        self._tree, self._ranges, self._known, self._dataset = tree, list(ranges), known, dataset
        self._place = {span: i for i, span in enumerate(self._ranges)}
        self._group: Group | None = None
        self._next: Group | None = None
        self._seen: Counter[str] = Counter()
        self._logs: list[list[Any]] = []
        self._pool: ThreadPoolExecutor | None = None

    def look_ahead(self) -> None:
        """From now on, read the next group while one is computed: for files behind a network."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def group(self, span: Range, log: list[Any]) -> Group | None:
        """The group of a chunk whose accesses will be in the log; None where nothing is foreseen."""
        if self._group is None or span not in self._group.spans:
            self._learn()
            self._group = self._entered(span)
        self._logs.append(log)
        return self._group

    def close(self) -> None:
        """Remember what was read, for the next file; let no thread read on."""
        self._learn()
        self._group = self._next = None
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _learn(self) -> None:
        if not self._logs:
            return
        seen = Counter(name for log in self._logs for name in {access.branch for access in log})
        often = frozenset(name for name, times in seen.items() if times >= OFTEN * len(self._logs))
        self._logs.clear()
        if len(self._known) < DATASETS or self._dataset in self._known:
            self._known[self._dataset] = often

    def _entered(self, span: Range) -> Group | None:
        ready, self._next = self._next, None
        group = ready if ready is not None and span in ready.spans else self._made(span)
        if group is not None and self._pool is not None:
            group.ahead(self._pool)  # itself first, so that it is not behind the next
            self._next = self._after(group)
            if self._next is not None:
                self._next.ahead(self._pool)
        return group

    def _after(self, group: Group) -> Group | None:
        following = self._place[group.last] + 1
        found = self._made(self._ranges[following]) if following < len(self._ranges) else None
        return found if found is not None and found.size <= MOST_AHEAD else None

    def _made(self, span: Range) -> Group | None:
        branches = self._foreseen()
        first = self._place.get(span)
        if first is None or not branches:
            return None
        each = sum(map(_bytes_an_entry, branches.values()))
        spans = [span]
        for following in self._ranges[first + 1 :]:
            if following[0] != spans[-1][1] or each * (following[1] - span[0]) > MOST:
                break
            spans.append(following)
        if each * (spans[-1][1] - span[0]) > MOST_ALONE:
            return None
        return Group(self._tree, spans, branches, each * (spans[-1][1] - span[0]))

    def _foreseen(self) -> dict[str, Any]:
        names = self._known.get(self._dataset, frozenset())
        found = {name: self._tree[name] for name in sorted(names) if name in self._tree}
        return {name: branch for name, branch in found.items() if readable(branch) and branch.name == name}


def readable(branch: Any) -> bool:
    """Whether a branch is of numbers, or of lists of numbers: nothing else is read for several chunks."""
    kind = getattr(branch, "interpretation", None)
    if isinstance(kind, uproot.AsJagged):
        kind = kind.content
    return isinstance(kind, uproot.AsDtype) and np.dtype(kind.to_dtype).kind in "biuf"


def _bytes_an_entry(branch: Any) -> float:
    """About what an entry takes in memory."""
    return 8 + int(branch.uncompressed_bytes) / max(1, int(branch.num_entries))

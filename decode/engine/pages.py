"""Accounting of one pool of KV pages: who holds which page, what it contains, and what may be thrown away.

Pure bookkeeping: no tensors. A *page* holds the keys and values of ``page_tokens`` consecutive positions of one
sequence, for every layer. A *table* is a sequence's list of pages and the number of positions that are filled.

Invariants, tested by ``check``:

* a page is free, or held by as many tables as its reference count says, or retained (held by none, but its content is
  known and may be reused), never two of these;
* a page whose content is registered in the tree is immutable: whoever writes beyond or into it gets a copy. So forks,
  rewinds and reuse across requests need no coordination;
* the tree is a radix tree over whole pages of token ids. Children are found by comparing token ids, not hashes of them,
  so a collision can't hand one request another's context. One pool serves one model instance (its weights), hence a
  page is identified by the instance and all the tokens before it.

The lowest free page is handed out first: on a CPU, pages of sequences that run together then lie side by side, and
attention reads them through a view instead of a copy (see ``attention``).
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Copy", "OutOfPages", "Pages", "Table"]

_ROOT = 0
_MAX_PARTIAL_CANDIDATES = 64  # children compared for a partial match: bounds the cost of opening a sequence


class Copy(NamedTuple):
    """Copy the first ``tokens`` positions of page ``source`` to page ``target``, in every layer."""

    source: int
    target: int
    tokens: int


class OutOfPages(Exception):
    """No free or retained page is left. Nothing was changed."""


@dataclass(eq=False, slots=True)
class Table:
    """Pages of one sequence; positions [0, length) are filled."""

    pages: list[int] = field(default_factory=list)
    length: int = 0
    # Tree nodes of the leading whole pages. A node may be that of another table's page with the same content.
    nodes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Node:
    page: int
    parent: int
    tokens: tuple[int, ...]
    children: dict[tuple[int, ...], int] = field(default_factory=dict)


class Pages:
    """Reference-counted pages with copy on write, prefix reuse and eviction of the least recently used.

    Args:
        count: number of pages, >= 1.
        page_tokens: positions per page, >= 1.
        min_reuse: shortest partial page worth copying for reuse, in tokens; shorter matches are recomputed.
    """

    def __init__(self, count: int, page_tokens: int, min_reuse: int = 8) -> None:
        if count < 1 or page_tokens < 1:
            raise ValueError(f"a pool needs at least one page of one token, got {count} pages of {page_tokens}")
        self.count, self.page_tokens, self.min_reuse = count, page_tokens, min_reuse
        self._free = list(range(count))  # a heap
        self._refs = [0] * count
        self._tables: dict[int, Table] = {}
        self._nodes: dict[int, _Node] = {_ROOT: _Node(-1, -1, ())}
        self._node_of: dict[int, int] = {}  # page -> node
        self._retained: OrderedDict[int, None] = OrderedDict()  # pages with no holder, least recently used first
        self._next_node = _ROOT + 1

    # ------------------------------------------------------------------------------------------------------ readings

    @property
    def held(self) -> int:
        """Pages held by open tables."""
        return self.count - len(self._free) - len(self._retained)

    @property
    def retained(self) -> int:
        """Pages kept only for reuse."""
        return len(self._retained)

    @property
    def available(self) -> int:
        """Pages that a table could get. A retained page under one that is in use counts, though it goes last."""
        return len(self._free) + len(self._retained)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    # ----------------------------------------------------------------------------------------------- life of a table

    def open(self) -> Table:
        """A new, empty table."""
        table = Table()
        self._tables[id(table)] = table
        return table

    def adopt(self, table: Table, tokens: Sequence[int]) -> list[Copy]:
        """Fill an empty table with what is already known of ``tokens``; returns the copies that this needs.

        Whole pages are shared, the best partial one is copied. ``table.length`` says how much was found.
        """
        if table.pages:
            raise ValueError("only an empty table can adopt a prefix")
        size, node_id = self.page_tokens, _ROOT
        while len(tokens) - table.length >= size:
            child = self._nodes[node_id].children.get(tuple(tokens[table.length : table.length + size]))
            if child is None:
                break
            page = self._nodes[child].page
            self._hold(page)
            table.pages.append(page)
            table.nodes.append(child)
            table.length += size
            node_id = child
        rest = tokens[table.length : table.length + size]
        best_page, best = -1, self.min_reuse - 1
        for child_tokens, child in list(self._nodes[node_id].children.items())[-_MAX_PARTIAL_CANDIDATES:]:
            common = _common_prefix(child_tokens, rest)
            if common > best:
                best_page, best = self._nodes[child].page, common
        if best_page < 0:
            return []
        self._hold(best_page)  # so that taking a page can't evict the one it is copied from
        try:
            page = self._take()
        except OutOfPages:
            return []
        finally:
            self._drop(best_page)
        table.pages.append(page)
        table.length += best
        return [Copy(best_page, page, best)]

    def reserve(self, table: Table, tokens: int) -> list[Copy]:
        """Make positions [length, length + tokens) writable; returns the copies to do before writing.

        Raises:
            OutOfPages: not enough pages, even after eviction. The table is unchanged.
        """
        if tokens < 0:
            raise ValueError(f"tokens must be >= 0, got {tokens}")
        inside = table.length % self.page_tokens
        last = table.pages[-1] if table.pages else -1
        cow = bool(tokens and inside) and (self._refs[last] > 1 or last in self._node_of)
        fresh = self.pages_for(table.length + tokens) - len(table.pages)
        if fresh + cow > self.available:
            raise OutOfPages  # before anything is evicted for it
        taken = [self._take() for _ in range(fresh + cow)]
        copies: list[Copy] = []
        if cow:
            target = taken.pop(0)
            copies.append(Copy(last, target, inside))
            table.pages[-1] = target
            self._drop(last)
        table.pages.extend(taken)
        return copies

    def commit(self, table: Table, tokens: Sequence[int], length: int) -> None:
        """Positions up to ``length`` are written; ``tokens`` are the sequence's ids. Registers full pages."""
        if not table.length <= length <= len(table.pages) * self.page_tokens:
            raise ValueError(f"cannot commit {length}: length {table.length}, {len(table.pages)} pages reserved")
        table.length = length
        size = self.page_tokens
        while len(table.nodes) < length // size:
            index = len(table.nodes)
            node = self._register(table, index, tuple(tokens[index * size : (index + 1) * size]))
            if node < 0:
                break
            table.nodes.append(node)

    def fork(self, table: Table) -> Table:
        """A second table over the same pages; what either writes next is its own."""
        twin = self.open()
        twin.pages = table.pages[: self.pages_for(table.length)]  # a page reserved but not written stays its own
        twin.length, twin.nodes = table.length, list(table.nodes)
        for page in twin.pages:
            self._hold(page)
        return twin

    def truncate(self, table: Table, length: int) -> None:
        """Forget positions from ``length`` on, and any page reserved beyond."""
        if not 0 <= length <= table.length:
            raise ValueError(f"cannot truncate a table of {table.length} positions to {length}")
        keep = self.pages_for(length)
        for page in table.pages[keep:]:
            self._drop(page)
        del table.pages[keep:]
        del table.nodes[length // self.page_tokens :]
        table.length = length

    def close(self, table: Table, tokens: Sequence[int]) -> None:
        """Give the pages back; ``tokens`` are the sequence's ids, so that its last, partial page can be reused."""
        size, full = self.page_tokens, table.length // self.page_tokens
        partial = tuple(tokens[full * size : table.length])
        if len(table.nodes) == full and len(partial) >= self.min_reuse:
            self._register(table, full, partial)
        for page in reversed(table.pages):  # leaves become evictable before their parents
            self._drop(page)
        del self._tables[id(table)]
        table.pages, table.nodes, table.length = [], [], 0

    def forget(self) -> None:
        """Throw away all retained pages."""
        while self._retained:
            self._evict()

    # ------------------------------------------------------------------------------------------------------ internals

    def _hold(self, page: int) -> None:
        if self._refs[page] == 0:
            self._retained.pop(page, None)
        self._refs[page] += 1

    def _drop(self, page: int) -> None:
        self._refs[page] -= 1
        if self._refs[page] == 0:
            if page in self._node_of:
                self._retained[page] = None
            else:
                heapq.heappush(self._free, page)

    def _take(self) -> int:
        if not self._free:
            self._evict()
        page = heapq.heappop(self._free)
        self._refs[page] = 1
        return page

    def _evict(self) -> None:
        """Free the least recently used retained page that nothing hangs on."""
        for page in self._retained:
            node_id = self._node_of[page]
            node = self._nodes[node_id]
            if not node.children:
                del self._retained[page], self._node_of[page], self._nodes[node_id]
                del self._nodes[node.parent].children[node.tokens]
                heapq.heappush(self._free, page)
                return
        # Every retained page has a descendant in use. Its content stays valid, but reuse through it ends here: the
        # oldest one's subtree leaves the tree.
        for page in self._retained:
            self._detach(self._node_of[page])
            return
        raise OutOfPages

    def _detach(self, node_id: int) -> None:
        """Take a node and all below it out of the tree; their retained pages become free."""
        node = self._nodes.pop(node_id)
        if node.parent in self._nodes:
            del self._nodes[node.parent].children[node.tokens]
        for child in list(node.children.values()):
            self._detach(child)
        del self._node_of[node.page]
        if self._refs[node.page] == 0:
            del self._retained[node.page]
            heapq.heappush(self._free, node.page)

    def _register(self, table: Table, index: int, tokens: tuple[int, ...]) -> int:
        """Put page ``index`` of ``table`` into the tree; returns its node, -1 if its parent is no longer there."""
        parent = table.nodes[index - 1] if index else _ROOT
        if parent not in self._nodes:
            return -1
        siblings = self._nodes[parent].children
        if tokens in siblings:
            return siblings[tokens]  # an equal page is already there; ours stays private
        page = table.pages[index]
        if page in self._node_of:
            # Registered under other tokens: a partial page of the same content that another holder registered first.
            return -1
        node = self._next_node
        self._next_node += 1
        self._nodes[node] = _Node(page, parent, tokens)
        siblings[tokens] = node
        self._node_of[page] = node
        return node

    # ---------------------------------------------------------------------------------------------------------- check

    def check(self) -> None:
        """Raise AssertionError if any invariant is broken."""
        held = Counter(page for table in self._tables.values() for page in table.pages)
        for page in range(self.count):
            assert self._refs[page] == held[page], f"page {page}: {self._refs[page]} references, {held[page]} holders"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        retained = set(self._retained)
        for one, other in ((free, retained), (free, set(held)), (retained, set(held))):
            assert not one & other, "a page is in two states"
        assert len(free) + len(retained) + len(held) == self.count, "a page is lost"
        assert not free & self._node_of.keys(), "a free page is registered"
        assert retained <= self._node_of.keys(), "a retained page is not registered"
        for page, node_id in self._node_of.items():
            node = self._nodes[node_id]
            assert node.page == page, "a node names another page"
            assert self._nodes[node.parent].children[node.tokens] == node_id, "the tree is torn"
        assert len(self._node_of) == len(self._nodes) - 1, "a node has no page"
        for table in self._tables.values():
            assert table.length <= len(table.pages) * self.page_tokens, "a table is longer than its pages"
            assert len(table.nodes) <= table.length // self.page_tokens, "a table names pages that are not full"


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n

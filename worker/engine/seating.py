"""Places for rows: a slot, the adapter that is worn, what is known of the prompt; and how they are given back.

Rows that begin with the same tokens in the same adapter, of one tenant, run them once: they are copied out of blocks
that were kept (prefix_cache.py), or out of the slot of an earlier row that is still seated. So the choices of one
prompt, and the labels behind one, read it together.
"""

from core.cache import KVCache
from core.effects import Effect, KVPrefix, SoftPrompt, members_of
from core.specs.generation import AdapterRef, FrameError
from core.specs.template import Layout
from worker.engine.forward import Forward, Seat, Work
from worker.engine.prefix_cache import BLOCK, PrefixCache, Root
from worker.engine.residency import Residency
from worker.engine.sequences import Sequence


class Seating:
    """The slots of one cache. Called by the step loop alone."""

    def __init__(
        self, forward: Forward, cache: KVCache, residency: Residency, prefixes: PrefixCache, *, context: int
    ) -> None:
        """context: entries of one row, its prefix and virtual tokens among them."""
        self._forward, self._cache, self._residency = forward, cache, residency
        self._prefixes, self._context = prefixes, context
        self._seats: dict[int, Seat] = {}  # by slot, the earliest first

    def sit(self, request: Sequence) -> Seat | FrameError:
        """A slot, the adapter pinned, its prefix first, the prompt in its template; or why that cannot be."""
        slot = self._cache.take()
        assert slot is not None, "the scheduler admits no more rows than there are slots"
        seat = self._seated(request, slot)
        if isinstance(seat, FrameError):
            self._cache.release(slot)
            self._unpin(request)
            return seat
        self._seats[slot] = seat
        return seat

    def reuse(self, seat: Seat) -> int:
        """How many more tokens of a row that has not run need not run, now that they are in its slot."""
        before = self._known(seat)
        if before >= seat.request.may_skip or not _is_shared(seat.request):
            return 0
        if before % BLOCK == 0:  # else another row's chunk ended within a block
            seat.links = self._prefixes.links(_root(seat.request), seat.request.ids, seat.links)
            tokens = seat.request.may_skip + 1 - before
            self._prefixes.reuse(seat.slot, seat.links[before // BLOCK :], tokens)
        self._copy(seat)
        return self._known(seat) - before

    def awaits(self, seat: Seat) -> bool:
        """Whether a row that has not run shall let this step pass, for an earlier one still runs what it would copy.

        Less than a block of tokens is not worth a step's wait.
        """
        if seat.request.may_skip - self._known(seat) < BLOCK or not _is_shared(seat.request):
            return False
        twin = self._twin(seat)
        return twin is not None and (self._prefixes.size > 0 or twin.request.goes_on)

    def keep(self, seat: Seat) -> None:
        """What a row has run so far may be reused by others. Not for a row whose numbers are no numbers."""
        n_blocks = self._known(seat) // BLOCK
        request = seat.request
        if n_blocks <= seat.n_kept or not _is_shared(request):
            return
        seat.links = self._prefixes.links(_root(request), request.ids, seat.links)
        self._prefixes.keep(seat.slot, seat.first, seat.links[:n_blocks], request.digest)
        seat.n_kept = n_blocks

    def ran(self, part: Work) -> None:
        """A chunk is in the cache, and its numbers are numbers."""
        if not part.seat.has_run:
            part.seat.has_run = True
            self._prefixes.count(part.chunk.start, len(part.seat.request.ids) - part.chunk.start)
        if part.chunk.count > 1:
            self.keep(part.seat)

    def leave(self, seat: Seat) -> None:
        """The slot is free and the adapter worn by one row less. What a whole answer ran is kept."""
        del self._seats[seat.slot]
        if seat.request.is_whole:
            self.keep(seat)
        self._forward.clear(seat)
        self._unpin(seat.request)
        digest = seat.request.digest
        if digest is not None and not self._residency.has(digest):
            self._prefixes.forget([digest])  # it was deleted while rows wore it, and this was the last of them

    def _known(self, seat: Seat) -> int:
        """How many of its tokens are in its slot."""
        return self._cache.lengths[seat.slot] - seat.first

    def _twin(self, seat: Seat) -> Seat | None:
        """The earliest row that begins with all that this one may skip, in the same adapter and of the same tenant."""
        root, own = _root(seat.request), seat.request.ids[: seat.request.may_skip]
        for other in self._seats.values():
            if other is seat:
                return None
            if _root(other.request) == root and other.request.ids[: len(own)] == own:
                return other
        return None

    def _copy(self, seat: Seat) -> None:
        """What a twin has run and this row has not, out of the twin's slot."""
        twin, known = self._twin(seat), self._known(seat)
        count = 0 if twin is None else min(self._known(twin), seat.request.may_skip) - known
        if twin is not None and count > 0:
            self._cache.append(seat.slot, *self._cache.entries(twin.slot, twin.first + known, count))

    def _seated(self, request: Sequence, slot: int) -> Seat | FrameError:
        effect = None if request.adapter is None else self._worn(request.adapter)
        if isinstance(effect, FrameError):
            return effect
        prefix = effect.keys.shape[1] if isinstance(effect, KVPrefix) else 0
        layout = effect.layout if isinstance(effect, SoftPrompt) else Layout((), ())
        room = self._context - prefix - len(layout)
        if room <= len(request.ids):
            return _too_long(len(request.ids), room)
        if isinstance(effect, KVPrefix):
            self._cache.put_prefix(slot, effect)
        request.lay_out(layout, room - len(request.ids))
        return Seat(request, slot, effect, first=prefix)

    def _worn(self, adapter: AdapterRef) -> Effect | FrameError:
        """What a row wears of an adapter, which is pinned for it: the whole, or one member of an ensemble."""
        members = members_of(self._residency.pin(adapter.sha256))
        member = 0 if adapter.member is None and len(members) == 1 else adapter.member
        if member is None or member >= len(members):
            return _no_member(adapter, len(members))
        return members[member]

    def _unpin(self, request: Sequence) -> None:
        if request.adapter is not None:
            self._residency.unpin(request.adapter.sha256)


def _is_shared(request: Sequence) -> bool:
    """Whether others may know its prompt by their own: what is nobody's is not kept for anybody."""
    return bool(request.queue.tenant)


def _root(request: Sequence) -> Root:
    member = request.adapter.member if request.adapter else None
    return Root(request.queue.tenant, request.digest, member or 0)


def _no_member(adapter: AdapterRef, members: int) -> FrameError:
    asked = "none is named" if adapter.member is None else f"there is no member {adapter.member}"
    message = f"the adapter has {members} members, of which a row wears one: {asked}; they count from 0"
    return FrameError(code="unknown_member", message=message, param="model")


def _too_long(tokens: int, room: int) -> FrameError:
    return FrameError(
        code="context_length_exceeded",
        message=f"the prompt has {tokens} tokens; with this adapter there is room for {max(room - 1, 0)}",
        param="messages",
    )

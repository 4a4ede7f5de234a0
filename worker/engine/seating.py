"""Places for rows: a slot, the adapter that is worn, what is known of the prompt; and how they are given back."""

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

    def sit(self, request: Sequence) -> Seat | FrameError:
        """A slot, the adapter pinned, its prefix first, the prompt in its template; or why that cannot be."""
        slot = self._cache.take()
        assert slot is not None, "the scheduler admits no more rows than there are slots"
        seat = self._seated(request, slot)
        if isinstance(seat, FrameError):
            self._cache.release(slot)
            self._unpin(request)
        return seat

    def reuse(self, seat: Seat) -> int:
        """How many more tokens of a row that has not run need not run, now that they are in its slot."""
        ids, known = seat.request.ids, self._cache.lengths[seat.slot] - seat.first
        if seat.request.runs_whole or not _is_shared(seat.request):
            return 0
        seat.links = self._prefixes.links(_root(seat.request), ids, seat.links)
        return self._prefixes.reuse(seat.slot, seat.links[known // BLOCK :], len(ids) - known)

    def keep(self, seat: Seat) -> None:
        """What a row has run so far may be reused by others. Not for a row whose numbers are no numbers."""
        n_blocks = (self._cache.lengths[seat.slot] - seat.first) // BLOCK
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
        if seat.request.is_whole:
            self.keep(seat)
        self._forward.clear(seat)
        self._unpin(seat.request)

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

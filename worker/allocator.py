"""How this process's C library deals with memory that was freed."""

import ctypes
import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
BLOCK_BYTES = 1 << 20


def give_back_large_blocks() -> bool:
    """Has blocks of BLOCK_BYTES and more go back to the system when they are freed; whether this library can do so.

    By itself glibc takes ever larger blocks from a heap that keeps them, in which holes of all sizes stay behind: a
    checkpointed step of SmolLM2 in fp32, of 2,048 tokens, peaked at 3.0 GB and not at 1.3. What it costs is a page
    fault for every page of every block, so it is for runs to which memory matters more than time.
    """
    return _told(M_MMAP_THRESHOLD, BLOCK_BYTES)


def share_one_heap() -> bool:
    """Has all threads take memory from one heap; whether this library can do so. To be called before there are any.

    By itself glibc gives each thread a heap of its own. Autograd's backward is a thread: what forward kept is freed by
    it into the heap of forward, where it cannot use it. A step of SmolLM2 in fp32, of 700 tokens on a base in 4 bits,
    peaked at 2.27 GB and not at 1.87, and took as long.
    """
    return _told(M_ARENA_MAX, 1)


def _told(what: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries than glibc may have none
    return mallopt is not None and mallopt(what, value) == 1

"""Every cap of a connection, each with the attack that it stops, and the counters behind them.

Owns the numbers. Refuses to read a clock: time is an argument.
"""

from __future__ import annotations

from typing import Final

# What Envoy's own client opens on one connection. More is refused, so that one connection cannot
# make us hold endless half-open streams.
STREAMS_MAX: Final = 1_024
# Connection flood: each costs a descriptor and a buffer; an Envoy has one per thread and cluster.
CONNECTIONS_MAX: Final = 64

# Rapid reset (CVE-2023-44487) and MadeYouReset (CVE-2025-8671): opening a stream is cheap for the
# peer, serving it is not. Counted are resets of streams not yet answered, and all that we are made
# to send. Envoy ends every answered stream by a reset: those are free.
RESETS_BURST: Final = 200
RESETS_PER_S: Final = 100.0

# The same budget pays for calls that we must end by a status of the peer's fault.

# Calls whose own time (grpc-timeout) is over, which we reset. A stall of ours ends all that are
# open at once, and more a moment later: that is no attack.
EXPIRED_BURST: Final = 2 * STREAMS_MAX
EXPIRED_PER_S: Final = 1_000.0

# DATA for streams that have ended: what was on its way when they did, and no more. In bytes, of
# which a frame counts for so many at least: one of none costs us as much as one of some.
LATE_BURST: Final = 512 * 1024
LATE_PER_S: Final = 64 * 1024.0
LATE_FRAME_BYTES: Final = 256
# Streams that we have answered and the peer has not ended are reset (NO_ERROR) after so long; a
# second reset by us before would race with the answer (grpc then reports INTERNAL).
ANSWERED_S: Final = 5.0

# CONTINUATION flood (CVE-2024-27316 and its kin, CVE-2024-30255): a header block without an end.
HEADER_BLOCK_BYTES_MAX: Final = 16_384
CONTINUATIONS_MAX: Final = 8
# HPACK bomb (CVE-2016-6581): a few bytes that decode to megabytes.
HEADER_LIST_BYTES_MAX: Final = 16_384
# Blocks whose decoding is skipped: their learned beginnings.
PREFIXES_MAX: Final = 16

# PING flood (CVE-2019-9512): more than so many in a row without a request or an answer between.
PINGS_IN_A_ROW_MAX: Final = 2
PINGS_WINDOW_S: Final = 10.0
# SETTINGS flood (CVE-2019-9515).
SETTINGS_MAX: Final = 20
SETTINGS_WINDOW_S: Final = 10.0
SETTINGS_ENTRIES_MAX: Final = 32
# Peer that asks and does not read (CVE-2019-9517 and the two above): replies that wait to be read.
CONTROL_REPLIES_MAX: Final = 100
# Empty frames (CVE-2019-9518): a DATA frame without data and without END_STREAM says nothing.
EMPTY_DATA_IN_A_ROW_MAX: Final = 1
# WINDOW_UPDATE flood (CVE-2019-9511's cousin), counted as Envoy does: so many for each DATA frame
# that we have sent. One that a small window cut to fewer bytes than DATA_BYTES_MIN earns nothing,
# or who opens windows byte by byte could do so for ever.
WINDOW_UPDATES_BASE: Final = 100
WINDOW_UPDATES_PER_DATA: Final = 10
DATA_BYTES_MIN: Final = 64
# PRIORITY flood (CVE-2019-9513), and all else that is allowed and says nothing: unknown types,
# acknowledgements of nothing, resets of streams that are gone. Clients reset calls whose answer is
# on its way: one more for each answer.
NOISE_BASE: Final = 100

# Slow preface, slow header block (Slowloris), slow message, and an answer that is never read.
PREFACE_S: Final = 5.0
HEADER_BLOCK_S: Final = 5.0
MESSAGE_S: Final = 10.0
ANSWER_S: Final = 10.0

# Memory: the largest messages taken. Envoy sends no more than 60 KiB of headers.
PROCESS_BYTES_MAX: Final = 64 * 1024
HEALTH_BYTES_MAX: Final = 4 * 1024
# Envoy sends a log when it has so much (the bootstrap's buffer), to the end of its last entry.
LOG_FULL_BYTES: Final = 2 * 1024 * 1024
LOG_BYTES_MAX: Final = LOG_FULL_BYTES + 1024 * 1024
PREFIX_BYTES: Final = 5
# Memory of one connection: one largest message, and requests beside it.
BUFFERED_BYTES_MAX: Final = LOG_BYTES_MAX + 2 * PROCESS_BYTES_MAX
# Memory of all connections together: an Envoy of eight threads after an outage. Beyond it, who has
# more than a fair share is refused like a connection that is full.
ALL_BUFFERED_BYTES_MAX: Final = 8 * LOG_BYTES_MAX
FAIR_SHARE_BYTES: Final = 2 * PROCESS_BYTES_MAX
# A stream that is given no more than this never waits for us, and never takes more memory.
STREAM_WINDOW: Final = 2 * PROCESS_BYTES_MAX
# The connection's window is given once and refilled at half: only streams push back.
CONNECTION_WINDOW: Final = 2**30
# Flood of small messages: each costs a task and its place in a queue, whatever it says. An entry of
# an access log alone has some hundred bytes; smaller messages have a budget, as has what comes on a
# health watch behind its request.
CRUMB_BYTES: Final = 128
CRUMBS_BURST: Final = 4_000
CRUMBS_PER_S: Final = 400.0
# What a message that waits for its turn takes beside its bytes.
MESSAGE_OVERHEAD_BYTES: Final = 64
# Answers that wait for the peer's window: beyond it new streams are refused.
UNSENT_BYTES_MAX: Final = 64 * 1024
# Ids of streams that ended oddly, so that what is still on its way can be told from a fault.
CLOSED_REMEMBERED: Final = 1_024

# Fairness: what one connection gets of one turn of the loop. One step is a frame, or a whole
# request on the fast path, which is two frames.
STEPS_PER_TURN: Final = 512
# What costs as much as 10 to 30 frames: decoding a usual header block, or every DECODE_BYTES of a
# larger one; refusing a call.
CHORES_PER_TURN: Final = 32
DECODE_BYTES: Final = 256


class Bucket:
    """A token bucket: `burst` at once, `per_s` in the long run."""

    __slots__ = ("_burst", "_full_s", "_per_s", "_tokens")

    def __init__(self, burst: int, per_s: float) -> None:
        """Full at the start."""
        self._burst = float(burst)
        self._per_s = per_s
        self._tokens = float(burst)
        self._full_s = 0.0

    def take(self, now_s: float, count: int = 1) -> bool:
        """Take some; whether there were as many."""
        earned = (now_s - self._full_s) * self._per_s
        self._full_s = now_s
        self._tokens = min(self._burst, self._tokens + earned) - count
        return self._tokens >= 0.0


class Memory:
    """What all connections of a server hold together.

    Attributes:
        held_bytes: Of messages that are not whole, or wait for their turn.
    """

    __slots__ = ("held_bytes",)

    def __init__(self) -> None:
        """Nothing."""
        self.held_bytes = 0


class Window:
    """At most `limit` in `window_s` seconds, counted from the first."""

    __slots__ = ("_count", "_limit", "_since_s", "_window_s")

    def __init__(self, limit: int, window_s: float) -> None:
        """Nothing counted yet."""
        self._limit = limit
        self._window_s = window_s
        self._since_s = 0.0
        self._count = 0

    def take(self, now_s: float) -> bool:
        """Count one; whether it is within the limit."""
        if not self._count or now_s - self._since_s > self._window_s:
            self._since_s = now_s
            self._count = 0
        self._count += 1
        return self._count <= self._limit

    def clear(self) -> None:
        """Forget what was counted."""
        self._count = 0

"""How often something may happen and how much may pass: token buckets, one or one for each key.

A bucket holds up to ``burst`` of something, is full at first, and is filled again by ``rate`` a
second. ``now`` is in seconds, of any clock that does not go back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Generic, TypeVar

__all__ = ["Bucket", "Buckets", "Supply", "address_key"]

_SPARE = 10
"""See `Supply`."""

Key = TypeVar("Key", bound=Hashable)


class Bucket:
    """One bucket. What is taken beyond what it holds is owed: its level is below zero then."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def level(self, now: float) -> float:
        """What it holds; below zero what is owed."""
        level = self._level + (now - self._at) * self._rate
        return min(self._burst, level)

    def take(self, cost: float, now: float) -> float:
        """Take ``cost``, whether it is there or not; the level after that."""
        # As in `level`, but this is on the way of every frame: one call, not two.
        level = self._level + (now - self._at) * self._rate
        if level > self._burst:
            level = self._burst
        self._level = level = level - cost
        self._at = now
        return level

    def used(self, now: float) -> float:
        """What is missing in it, of the burst."""
        return self._burst - self.level(now)

    def wait(self, cost: float, now: float) -> float:
        """Seconds until it holds ``cost``: 0 when it does. What is over the burst never comes."""
        missing = cost - self.level(now)
        return missing / self._rate if missing > 0 else 0.0


class Buckets(Generic[Key]):
    """A bucket for each key, such as an address.

    One that is full again is forgotten, which changes nothing. There are never more than ``limit``:
    beyond it the one that was used longest ago is forgotten too, so whoever has that many keys has
    a full bucket each time, which it would have with one key more as well.
    """

    __slots__ = ("_buckets", "_burst", "_limit", "_rate")

    def __init__(self, rate: float, burst: float, limit: int) -> None:
        self._rate = rate
        self._burst = burst
        self._limit = limit
        # In the order of their latest use. One is full ``burst / rate`` after that at the latest,
        # unless it owes something: so none keeps those behind it much longer than need be.
        self._buckets: OrderedDict[Key, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def level(self, key: Key, now: float) -> float:
        """What it holds for ``key``; below zero what is owed."""
        bucket = self._buckets.get(key)
        return self._burst if bucket is None else bucket.level(now)

    def wait(self, key: Key, now: float, cost: float = 1.0) -> float:
        """Seconds until `take` would take ``cost``: 0 when it would now. Changes nothing."""
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else bucket.wait(cost, now)

    def take(self, key: Key, now: float, cost: float = 1.0) -> float:
        """Take ``cost``, which is not over the burst, and return 0; or take nothing and return the
        seconds until it is there."""
        bucket = self._bucket(key, now)
        if (wait := bucket.wait(cost, now)) == 0:
            bucket.take(cost, now)
        self._forget(now)
        return wait

    def charge(self, key: Key, now: float, cost: float) -> None:
        """Take ``cost``, whether it is there or not. One below zero is given back."""
        self._bucket(key, now).take(cost, now)
        self._forget(now)

    def _bucket(self, key: Key, now: float) -> Bucket:
        if (bucket := self._buckets.get(key)) is None:
            bucket = self._buckets[key] = Bucket(self._rate, self._burst, now)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def _forget(self, now: float) -> None:
        buckets = self._buckets
        while len(buckets) > self._limit or (buckets and self._oldest(now) >= self._burst):
            buckets.popitem(last=False)

    def _oldest(self, now: float) -> float:
        return next(iter(self._buckets.values())).level(now)


class Supply(Generic[Key]):
    """Buckets for those who come and go under one key, such as an address: who goes and comes again
    has no more than who stays.

    What those that went had used up is missing to those that come. Of each key ten emptied buckets
    are spared, and as much as one bucket is filled by is forgotten: nobody is to pay for others who
    leave in the middle of something.
    """

    __slots__ = ("_burst", "_rate", "_used")

    def __init__(self, rate: float, burst: float, limit: int) -> None:
        self._rate = rate
        self._burst = burst
        self._used = Buckets[Key](rate, _SPARE * burst, limit)

    def give(self, key: Key, now: float) -> Bucket:
        """A bucket for somebody who comes."""
        bucket = Bucket(self._rate, self._burst, now)
        owed = min(-self._used.level(key, now), self._burst)
        if owed > 0:
            bucket.take(owed, now)
            self._used.charge(key, now, -owed)
        return bucket

    def take_back(self, key: Key, bucket: Bucket, now: float) -> None:
        """The one who had this bucket is gone."""
        if (used := bucket.used(now)) > 0:
            self._used.charge(key, now, used)


@lru_cache(maxsize=1024)  # asked more than once for a connection
def address_key(address: str) -> str:
    """Who stands behind an IP address: of IPv6 its /64, which one customer has as a whole.

    An IPv4 address in IPv6 form (RFC 4291, section 2.5.5.2) is that IPv4 address. What is no
    address stands for itself.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    # Without the zone of a link-local address: it is another text for each interface.
    return f"{IPv6Address(int(ip) >> 64 << 64)}/64"

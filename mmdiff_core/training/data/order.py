"""The order of a run: which image is example number so-and-so. It follows from the seed alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


def seeded(*key: object) -> torch.Generator:
    """A CPU generator that follows from the key alone, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=64)  # a few epochs of a few buckets: every example asks for one
def permutation(count: int, *key: object) -> Tensor:
    """0..count-1 in an order that follows from the key [count]."""
    return torch.randperm(count, generator=seeded(*key))


class BucketPosition(NamedTuple):
    """Index `position` of the `turn`-th permutation of a bucket's images, all from 0."""

    bucket: int
    turn: int
    position: int


@dataclass(frozen=True)
class BucketOrder:
    """An endless order in which aligned groups of `group` examples share a bucket.

    Every image comes equally often. Each bucket is read in one permutation after the other, cut
    into groups; a group may span two of them. Epoch e has those groups of each bucket that are
    full after e + 1 times its images but not after e, in an order of its own; so what is left over
    is neither dropped nor repeated, it comes in the next epoch.

    counts  images of each bucket
    """

    counts: tuple[int, ...]
    seed: int
    group: int

    def at(self, index: int) -> BucketPosition:
        """Position of example `index`, from 0."""
        number, within = divmod(index, self.group)
        epoch = self.epoch_of(number)
        bucket, group = self._group(epoch, number - self.groups_before(epoch))
        turn, position = divmod(group * self.group + within, self.counts[bucket])
        return BucketPosition(bucket, turn, position)

    def groups_before(self, epoch: int) -> int:
        """Number of groups before this epoch."""
        return sum(epoch * count // self.group for count in self.counts)

    def epoch_of(self, number: int) -> int:
        """Epoch of group `number`: the last one that begins at or before it."""
        epoch = number * self.group // sum(self.counts)
        while self.groups_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _group(self, epoch: int, number: int) -> tuple[int, int]:
        """(bucket, the bucket's group) of an epoch's `number`-th group."""
        first = [epoch * count // self.group for count in self.counts]
        ends = [(epoch + 1) * count // self.group for count in self.counts]
        number = int(permutation(sum(ends) - sum(first), self.seed, "groups", epoch)[number])
        for bucket, (start, end) in enumerate(zip(first, ends)):
            if number < end - start:
                return bucket, start + number
            number -= end - start
        raise AssertionError("an epoch has as many positions as groups")

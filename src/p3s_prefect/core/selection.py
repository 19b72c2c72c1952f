"""The prescale's choice: one number for each unit, the same for every stage, so that kept sets are nested."""

from __future__ import annotations

import hashlib

from p3s_prefect.core.data_id import DataId


def sample_number(data_id: DataId, seed: int) -> float:
    """The number u in [0, 1) that decides about this unit: a pure function of its data id and the seed.

    A unit is kept where u < q. As every stage compares the same u, who passes a stricter q passed every looser one,
    and the probability of having passed several is their minimum.
    """
    digest = hashlib.blake2b(f"{seed}\n{data_id}".encode(), digest_size=8).digest()
    # 53 bits are what a float64 holds exactly: with 64, the largest values would round up to 1.
    return (int.from_bytes(digest) >> 11) / 2**53

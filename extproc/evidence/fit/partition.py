"""Which texts a choice of tiers is made on, and which are reported on."""

import hashlib

# Texts whose fraction is below FIT_SHARE are fitted on. The others are reported on.
FIT_SHARE = 0.6


def hash_fraction(text: str, seed: int) -> float:
    """Return a number from 0 to 1 that depends only on the words of the text and on the seed.

    Repeated texts therefore always belong to the same part.
    """
    normalised = " ".join(text.lower().split()).encode()
    digest = hashlib.blake2b(normalised, key=str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64

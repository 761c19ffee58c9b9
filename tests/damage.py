"""Random damage to good files, for the tests that read thousands of damaged ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

# What numbers, texts and headers do not expect.
BYTES = (0, 255, 127, 128, 0x1B, *b'"[]{},:9-')
NUMBERS = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"9999", b"1e99")
TEXTS = (b"NaN", b"-1", b"[" * 2000, b"\x1b[2J", b"null", b"1e999", b"true", b'""')


def damaged(data: bytes, rng: random.Random, single: Sequence[int] = BYTES, inserted: Sequence[bytes] = TEXTS) -> bytes:
    """The file with one to four changes: of bits, bytes, runs, numbers, its length, half of them in its head.

    `single` are bytes that replace one, and `inserted` are put between two.
    """
    parts = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not parts:
            break
        end = len(parts) if rng.random() < 0.5 else min(len(parts), 600)
        at, to, length = rng.randrange(end), rng.randrange(len(parts)), rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(8):
            case 0:
                parts[at] ^= 1 << rng.randrange(8)
            case 1:
                parts[at] = rng.choice(single)
            case 2:
                del parts[at : at + length]
            case 3:
                parts[at:at] = parts[to : to + length]
            case 4:
                parts[at : at + length] = parts[to : to + length]
            case 5:
                parts[at : at + 4] = rng.choice(NUMBERS)
            case 6:
                parts[at:at] = rng.choice(inserted)
            case 7:
                del parts[to:]
    return bytes(parts)

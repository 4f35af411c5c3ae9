"""The shuffle of Python's ``random`` as numpy computes it: the same permutation, ten times as fast.

Python's shuffle is that of Fisher and Yates: for i from the last place to 1, it swaps place i with a random place
j <= i. The random bits are those of the Mersenne Twister, which numpy has, too. Jobs began with these orders, so a
faster shuffle with another result would let a resumed job train some rows twice and others never.
"""

import random

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

WORDS = 1 << 16
"""Random words that are drawn at once."""
ONE_BY_ONE = 2048
"""Below this place, swaps meet so often that numpy is slower than a loop."""


def permutation(length: int, seed: str) -> Rows:
    """What ``random.Random(seed).shuffle`` makes of the numbers from 0 to ``length`` - 1."""
    partners, rows = _partners(length, seed), np.arange(length, dtype=np.int64)
    seen = np.zeros(length, dtype=np.int32)
    last = length - 1
    while last > ONE_BY_ONE:
        # Swaps commute if no place is in two of them, which is likely for fewer than the square root of all places.
        size = int(0.7 * last**0.5)
        stretch = partners[length - 1 - last :][:size]
        numbers = np.arange(size, dtype=np.int32)
        seen[stretch] = numbers
        meets = (seen[stretch] != numbers) | (stretch > last - size)
        if meets.any():
            stretch = stretch[: max(1, int(meets.argmax()))]
        places = rows[last - len(stretch) + 1 : last + 1][::-1]
        swapped = rows[stretch]
        rows[stretch] = places
        places[:] = swapped
        last -= len(stretch)
    head = rows[: last + 1].tolist()
    for place, partner in zip(range(last, 0, -1), partners[length - 1 - last :].tolist(), strict=True):
        head[place], head[partner] = head[partner], head[place]
    rows[: last + 1] = head
    return rows


def _partners(length: int, seed: str) -> Rows:
    """[length - 1]: the place that each place is swapped with, from the last to 1.

    Python draws a number below n as the first word whose highest bits, as many as n has, are below n. Whether a word is
    taken depends on n, and n on the words taken before it. The words of a stretch are first judged as if none before
    them was taken, then again by how many were, until the judgement stays: n hardly changes within a stretch."""
    twister, state = np.random.MT19937(), random.Random(seed).getstate()[1]
    key = np.array(state[:-1], dtype=np.uint32)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": state[-1]}}
    partners = np.empty(max(length - 1, 0), dtype=np.int64)
    words, done = partners[:0], 0
    while done < length - 1:
        bound = length - done
        bits = bound.bit_length()
        wanted = min(bound - (1 << (bits - 1)) + 1, length - 1 - done)
        """Draws from here on that need as many bits."""
        if not len(words):
            words = twister.random_raw(WORDS).astype(np.int64)
        numbers = words >> (32 - bits)
        taken, judged = numbers < bound, None
        while judged is None or not np.array_equal(taken, judged):
            judged = taken
            taken = numbers < bound - (np.cumsum(judged) - judged)
        places = np.flatnonzero(taken)[:wanted]
        partners[done : done + len(places)] = numbers[places]
        done += len(places)
        words = words[int(places[-1]) + 1 if len(places) == wanted else len(words) :]
    return partners

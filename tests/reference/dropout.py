"""What dropout between layers drops: a function of seed, layer, step, row and unit.

One number of 32 bits belongs to each place, of which 24 decide. The generator is Philox4x32-7
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four words of each counter.
"""

import numpy as np


def philox(counter, key):
    """Philox4x32-7 (Salmon et al. 2011) of counters (4, ...) in uint64 arithmetic."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(word, np.uint64) for word in counter]
    key0, key1 = (np.uint64(k) for k in key)
    for _ in range(7):
        product0, product1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (product1 >> np.uint64(32)) ^ c[1] ^ key0,
            product1 & low,
            (product0 >> np.uint64(32)) ^ c[3] ^ key1,
            product0 & low,
        ]
        key0 = (key0 + np.uint64(0x9E3779B9)) & low
        key1 = (key1 + np.uint64(0xBB67AE85)) & low
    return np.array(c)


def factors(shape, dtype, p, seed, layer, first_step):
    """What a layer's output (T, N, width) is multiplied by, from the generator's definition."""
    T, N, width = shape
    t, n, unit = np.ogrid[:T, :N, :width]
    step = np.uint64(first_step) + t.astype(np.uint64)
    group, word, lane = unit // 64, unit % 64 // 16, unit % 16
    words = philox(
        np.broadcast_arrays(
            16 * group + lane,
            n,
            step & np.uint64(0xFFFFFFFF),
            (step >> np.uint64(32)) + np.uint64(layer << 16),
        ),
        (seed & 0xFFFFFFFF, seed >> 32),
    )
    drawn = np.take_along_axis(words, np.broadcast_to(word, shape)[None], axis=0)[0]
    dropped = (drawn >> np.uint64(8)) < round(p * 2**24)
    return np.where(dropped, 0, dtype(0 if p == 1 else 1 / (1 - p))).astype(dtype)

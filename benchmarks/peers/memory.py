"""How fast the memory of this machine lets the values of the samples be read at all: their sum, over and over new ones.

16 bytes a sample, as the columns of a message have, of which each is touched once; nothing is decoded.
"""

import numpy as np

from benchmarks.clock import Clock
from benchmarks.peers.child import job, report

BYTES_EACH = 16


def main() -> None:
    this, clock = job(), Clock()
    columns = np.ones(this.samples * BYTES_EACH // 8, "u8")
    clock.count(this.samples)
    columns.sum()
    report(this, clock.result(), ())


if __name__ == "__main__":
    main()

"""How long requests wait for a model alone, in a server that costs nothing: what `bench/servers.py` can reach at best.

    python bench/waiting.py --rate 1032 --batch_ms 1.1 --text_ms 0.19

Requests come at random times (a Poisson process); a batch takes what has come while the one before was computed, 16 at most, and
`batch_ms` and `text_ms` for each of them.
"""

from __future__ import annotations

import argparse
import random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000, help="requests a second")
    parser.add_argument("--batch_ms", type=float, default=1.1)
    parser.add_argument("--text_ms", type=float, default=0.19)
    parser.add_argument("--requests", type=int, default=200_000)
    given = parser.parse_args()
    draw, came = random.Random(0), [0.0]
    while len(came) < given.requests:
        came.append(came[-1] + draw.expovariate(given.rate / 1000))
    waits, batches, now, first = [], [], 0.0, 0
    while first < len(came):
        now, last = max(now, came[first]), first
        while last < min(len(came), first + 16) and came[last] <= now:
            last += 1
        batches.append(given.batch_ms + given.text_ms * (last - first))
        now += batches[-1]
        waits += [now - due for due in came[first:last]]
        first = last
    waits.sort()
    half, late, own = waits[len(waits) // 2], waits[int(0.99 * len(waits))], sum(batches) / len(batches)
    size = len(came) / len(batches)
    print(f"p50 {half:.2f} ms, p99 {late:.2f} ms: {late / own:.2f} times a mean batch of {size:.2f}, which takes {own:.2f} ms")
    print(f"the model is busy {100 * sum(batches) / now:.0f} % of the time")


if __name__ == "__main__":
    main()

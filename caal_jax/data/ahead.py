"""Files read ahead in a few threads, in their order."""

import collections
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

MOST_THREADS = 4  # each holds a case: volumes are large


def read_ahead(work, entries):
    """Yields (entry, answer) for each entry, in order; `answer()` is work(entry) or raises as it
    did. Threads work on the next few entries meanwhile; decoding runs beside other Python code."""
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    pool, waiting, rest = ThreadPoolExecutor(threads), collections.deque(), iter(entries)
    try:
        while True:
            for entry in itertools.islice(rest, threads - len(waiting)):
                waiting.append((entry, pool.submit(work, entry)))
            if not waiting:
                return
            entry, found = waiting.popleft()
            yield entry, found.result
    finally:
        pool.shutdown(cancel_futures=True)

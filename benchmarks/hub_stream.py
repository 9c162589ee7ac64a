"""Measure streaming from a local hub: seconds, traffic, mixing of documents, size of a saved position.

    python -m benchmarks.hub_stream

The hub answers on the loopback interface with 50 ms a request and 50 MB/s.
"""

import functools
import io
import json
import os
import tempfile
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests import hub_server

ROWS, GROUP, TAKEN, BATCH = 100_000, 1000, 150_000, 300


class SlowHub(hub_server._Handler):
    traffic = np.zeros(2)  # requests, bytes

    def _send(self, status, body, kind, headers):
        sent = 0 if self.command == "HEAD" else len(body)
        self.traffic += 1, sent
        time.sleep(0.05 + sent / 50e6)
        super()._send(status, body, kind, headers)


def parquet(number: int) -> bytes:
    """A file whose rows have about 900 characters and begin with their number in the dataset."""
    rng = np.random.default_rng(number)
    words = ["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(2, 8, 2000)]
    rows = enumerate(rng.integers(0, 2000, (ROWS, 165)).tolist(), number * ROWS)
    texts = [" ".join([str(n), *(words[i] for i in row)]) for n, row in rows]
    pq.write_table(pa.table({"text": texts}), file := io.BytesIO(), row_group_size=GROUP)
    return file.getvalue()


def timed(what, function):
    SlowHub.traffic[:], began = 0, time.perf_counter()
    result, seconds = function(), time.perf_counter() - began
    print("{}: {:.1f} s, {:.0f} requests, {:,.0f} bytes".format(what, seconds, *SlowHub.traffic))
    return result


def main():
    hub = hub_server.HubServer({f"data/train-{n}.parquet": parquet(n) for n in range(4)})
    hub.RequestHandlerClass, hub_server._sha1 = SlowHub, lambda data: f"{len(data):040x}"
    os.environ |= {"HF_ENDPOINT": hub.__enter__().url, "HF_HOME": tempfile.mkdtemp()}
    from architecture.tokenizer import get_tokenizer
    from data.hub import open_hub
    from data.loader import TrainLoader

    open_it = functools.partial(open_hub, split="train", whole=True, text_column="text")
    source = timed("open", lambda: open_it(hub_server.REPO))
    batches = functools.partial(TrainLoader, batch_size=8, block_size=512, prefetch=1)
    timed("first batch", lambda: batches(source, get_tokenizer("stories4k"))).close()
    stream = source.shuffled(0)
    texts = timed(f"{TAKEN:,} documents", lambda: [next(stream) for _ in range(TAKEN)])
    state = stream.state_dict()
    timed("first document of a resume", lambda: next(source.shuffled(0, state)))
    groups = np.array([int(text.split()[0]) // GROUP for text in texts[TAKEN // 2 :]])
    found = [Counter(batch).most_common() for batch in groups.reshape(-1, BATCH)]
    many, most = np.mean([len(f) for f in found]), np.mean([f[0][1] for f in found])
    print(f"a position: {len(json.dumps(state)):,} bytes;", end=" ")
    print(f"{BATCH} documents: of {many:.0f} row groups, {most:.0f} of one", flush=True)
    os._exit(0)  # because threads of pyarrow still wait for the hub


if __name__ == "__main__":
    main()

"""Streaming from a hub: time to the first batch and to a resume, traffic, mixing, size of a position.

    python benchmarks/hub_stream.py [--row_groups]

The loopback hub of the tests, with 50 ms a request and 50 MB/s, serves 4 parquet files of 100 row
groups of 1,000 documents. --row_groups measures what data/hub.py does not do: the row groups of a
file in a random order, each read alone.
"""

import functools
import io
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import hub_server

FILES, ROWS, GROUP, TAKEN, BATCH = 4, 100_000, 1000, 150_000, 300


class SlowHub(hub_server._Handler):
    def _send(self, status, body, kind, headers):
        sent = 0 if self.command == "HEAD" else len(body)
        self.server.traffic += np.array([1, sent])
        time.sleep(0.05 + sent / 50e6)
        super()._send(status, body, kind, headers)


def parquet(number: int, rows: int) -> bytes:
    """About 900 characters a row, which begin with the row's number in the dataset."""
    rng = np.random.default_rng(number)
    words = np.array([bytes(rng.integers(97, 123, n).tolist()).decode() for n in rng.integers(2, 8, 2000)])
    texts = [f"{number * rows + i} " + " ".join(rng.choice(words, 165)) for i in range(rows)]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=GROUP)
    return file.getvalue()


def by_row_groups(source, first, row, file_seed):
    """Instead of HubSource._examples; the first number of a place counts row groups."""
    data, rng, number = source._dataset, np.random.default_rng(file_seed or 0), -1
    for file in rng.permutation(data.num_shards):
        groups = data.shard(num_shards=data.num_shards, index=int(file)).reshard()
        for group in rng.permutation(groups.num_shards):
            if (number := number + 1) >= first:
                rows = groups.shard(num_shards=groups.num_shards, index=int(group)).skip(row)
                yield from (((number, n), one) for n, one in enumerate(rows, row + 1))
                row = 0


files = {f"data/train-{n:05d}-of-{FILES:05d}.parquet": parquet(n, ROWS) for n in range(FILES)}
hub = hub_server.HubServer(files | {"data/validation.parquet": parquet(FILES, GROUP)})
hub.RequestHandlerClass, hub.traffic = SlowHub, np.zeros(2)
hub_server._sha1 = lambda data: f"{len(data):040x}"
os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": tempfile.mkdtemp(), "HF_HUB_OFFLINE": "0"}
import datasets

from architecture.tokenizer import get_tokenizer
from data import hub as data_hub
from data.loader import TrainLoader
from data.sources import open_dataset

if "--row_groups" in sys.argv:
    small = {"hf": {"block_size": 2**16}}  # of 5 MB that fsspec reads at least
    datasets.load_dataset = functools.partial(datasets.load_dataset, storage_options=small)
    data_hub.HubSource._examples = by_row_groups


def timed(what, function):
    hub.traffic, began = np.zeros(2), time.perf_counter()
    result, seconds = function(), time.perf_counter() - began
    print(f"{what}: {seconds:.1f} s, {hub.traffic[0]:.0f} requests, {hub.traffic[1] / 1e6:.0f} MB")
    return result


with hub:
    tokenizer, size = get_tokenizer("stories4k"), {"batch_size": 8, "block_size": 512}
    source = timed("open", lambda: open_dataset("tinystories", split="train"))
    loader = timed("first batch", lambda: TrainLoader(source, tokenizer, prefetch=1, **size))
    loader.close()
    stream = source.shuffled(0)
    texts = timed(f"{TAKEN:,} documents", lambda: [next(stream) for _ in range(TAKEN)])
    state = stream.state_dict()
    stream.close()
    resumed = source.shuffled(0, state)
    timed("first document after a resume", lambda: next(resumed))
    resumed.close()
torch.save(state, file := io.BytesIO())
numbers = np.array([int(text.split()[0]) for text in texts])
order = {file: place for place, file in enumerate(dict.fromkeys(numbers // ROWS))}
read = np.array([order[n // ROWS] * ROWS + n % ROWS for n in numbers])
travel = np.abs(read - np.arange(TAKEN))[BATCH:]
shares = [Counter(numbers[i : i + BATCH] // GROUP) for i in range(TAKEN // 2, TAKEN - BATCH, BATCH)]
print(f"a position: {file.tell():,} bytes; a document travels {np.median(travel):,.0f} (median)")
print(
    f"{BATCH} documents in a row come from {np.mean([len(s) for s in shares]):.0f} row groups, "
    f"{np.mean([max(s.values()) for s in shares]) / BATCH:.0%} from the most frequent of them"
)
os._exit(0)

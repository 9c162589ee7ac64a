"""CPU threads beside other work: how many a computation takes, and how long an idle one spins."""

import os
import sys
import time

PROC_STAT = "/proc/stat"

# Rounds that an idle thread of GNU's OpenMP, which torch has on Linux, spins at a barrier before it sleeps. The
# library's own 300,000 are 8 ms in which it keeps a core from the thread that it waits for. benchmarks/LOG.md says
# why it is this number. The runtimes of other systems have another name for it; nothing was measured there.
SPIN_COUNT = 5000
SETTLED_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # either of them in the environment is the user's choice

# Up to so many parameters and rows, one thread writes texts as fast as two (docs/recipes.md).
SMALL_MODEL, FEW_ROWS = 10_000_000, 16

SHORTEST = 0.2  # seconds between two looks at the cores; the system counts in hundredths

# seconds; core seconds of all processes, if known; those of this process
Look = tuple[float, float | None, float]


def bound_spinning() -> None:
    """Bound the spinning of idle threads. Call it before torch is imported: the library reads the bound once."""
    if sys.platform == "linux" and not any(name in os.environ for name in SETTLED_BY):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def usable_cores() -> set[int]:
    """The numbers of the cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def look() -> Look:
    """How long the cores of this process have worked so far. Take the difference of two with others_between()."""
    busy = None
    try:
        with open(PROC_STAT) as file:
            lines = {f"cpu{number}" for number in usable_cores()}
            rows = [line.split() for line in file if line.split(" ", 1)[0] in lines]
        user, nice, system, interrupts, soft, stolen = 1, 2, 3, 6, 7, 8  # columns; stolen: by another guest
        ticks = sum(int(row[n]) for row in rows for n in (user, nice, system, interrupts, soft, stolen))
        busy = ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    return time.perf_counter(), busy, time.process_time()


def others_between(before: Look, after: Look) -> float:
    """The mean number of cores that other work used between two looks.

    Without /proc/stat, as on macOS, it is the load average of the last minute without this process.
    """
    seconds, own = after[0] - before[0], after[2] - before[2]
    if before[1] is None or after[1] is None:
        return max(0.0, os.getloadavg()[0] - own / seconds)
    return max(0.0, (after[1] - before[1] - own) / seconds)


def free_threads(most: int, cores: int, others: float) -> int:
    """One thread for each core of which other work uses less than half: from 1 to `most`.

    More would be slower: all threads of an operation wait for the one that shares its core.
    """
    return max(1, min(most, int(cores - others + 0.5)))


def set_threads(asked: int | None, since: Look | None) -> str:
    """Set torch's threads: the number asked for, or one for each free core. Returns a line if that is fewer.

    since: a look from the start of the process; None to look now, which takes SHORTEST.  OMP_NUM_THREADS in the
    environment counts as asking.
    """
    import torch

    if asked is not None and asked < 1:
        raise ValueError(f"threads must be at least 1, got {asked}; leave it out for one for each free core")
    most, cores = asked or torch.get_num_threads(), len(usable_cores())
    if asked or most == 1 or "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(most)
        return ""
    since = since or look()
    time.sleep(max(0.0, since[0] + SHORTEST - time.perf_counter()))
    others = others_between(since, look())
    threads = free_threads(most, cores, others)
    torch.set_num_threads(threads)
    if threads == most:
        return ""
    return (
        f"{threads} thread{'s' * (threads > 1)}: other work has {others:.1f} of {cores} cores; "
        f"--threads {most} takes {'both' if most == 2 else 'all' if most == cores else 'more'}"
    )


def set_threads_for_texts(asked: int | None, parameters: int, rows: int) -> None:
    """Lower torch's threads to one if a model writes its texts as fast with one. Call it after set_threads.

    asked: as for set_threads.  parameters: of the model.  rows: texts at once.
    """
    import torch

    if (
        asked is None
        and "OMP_NUM_THREADS" not in os.environ
        and parameters <= SMALL_MODEL
        and rows <= FEW_ROWS
    ):
        torch.set_num_threads(1)

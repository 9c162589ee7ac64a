"""Tiny training runs of several processes, as torchrun starts them, from the fork server of toy_run.py."""

import functools
import math
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from ranks import exit_codes
from toy_run import started

SMALL = (  # no two axes of a parameter are equal; six experts, because the ranks of a test must divide them
    "--device cpu --threads 1 --tokenizer bundled1536 --num_hidden_layers 2 --hidden_size 20 --head_dim 4 "
    "--num_attention_heads 6 --num_key_value_heads 3 --intermediate_size 9 --num_experts 6 --experts_per_token 2 "
    "--sliding_window 8 --initial_context_length 16 --block_size 16 --batch_size 2 --max_iters 20 --save_every 20 "
    "--eval_every 20 --eval_tokens 80 --final_eval_tokens 80 --log_every 1 --no-use_tensorboard"
).split()


def launch(
    folder: Path,
    number: int,
    cases: list[list],
    *,
    double: bool = False,
    script: str = "train",
    events: Sequence[str] = (),
) -> list[str]:
    """Run `train.py FLAGS` for each case in `number` processes, which join once. Returns what each printed.

    double: with weights in float64.  events: what happens to the last rank in each case after step 3: "stop" for
    SIGTERM, "data" for damaged data, "nan" for NaN in its experts, "" for nothing; and "closing" for damaged data in
    the closing evaluation.  Fails if a case does not end
    with the exit code of that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "localhost"}
    environment |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    cases = [[str(flag) for flag in case] for case in cases]
    ranks = []
    for rank in range(number):
        own = {name: str(value) for name, value in (environment | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        arguments = folder, own, cases, double, script, events or [""] * len(cases)
        ranks.append(started(_run_cases, *arguments))
    codes = exit_codes(ranks, seconds=1200)  # a busy machine wakes two processes for each exchange
    printed = [(folder / f"rank_{rank}").read_text() for rank in range(number)]
    assert codes == [0] * number, "".join(printed)
    return printed


def _run_cases(folder: Path, environment: dict[str, str], cases, double, script, events) -> None:
    log = os.open(folder / f"rank_{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ.update(environment)
    from architecture import registry
    from training import reporting, trainer
    from training.command_line import parse_command_line
    from training.config import ContextTrainConfig, TrainConfig
    from training.distributed.mesh import joined_ranks
    from training.train_command import model_fields, run_on

    os.fsync = lambda descriptor: None
    reporting.SAMPLE_TOKENS = 4
    if double:
        build = registry.build_model
        registry.build_model = lambda *args, **kwargs: build(*args, **kwargs).double()
    config_class = ContextTrainConfig if script == "train_context" else TrainConfig
    torch.set_num_threads(1)
    take_batches, scored_batches = trainer.take_batches, trainer.scored_batches
    try:
        with joined_ranks() as ranks:
            for flags, event in zip(cases, events, strict=True):
                here = event if ranks.rank == ranks.number - 1 else ""
                trainer.take_batches = functools.partial(_with_event, take_batches, here)
                trainer.scored_batches = functools.partial(_damaged_at_the_end, scored_batches, here)
                try:
                    code = run_on(ranks, parse_command_line(flags, model_fields, config_class=config_class))
                except ValueError as error:
                    code = 2
                    print(f"{type(error).__name__}: {error}", flush=True)
                assert code == {"": 0, "stop": 128 + signal.SIGTERM}.get(event, 2), f"{flags}: {code}"
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class _Damaged:
    """A loader whose next batch fails."""

    def __init__(self, loader):
        self.state_dict, self.progress = loader.state_dict, loader.progress

    def __next__(self):
        raise ValueError("line 7 is damaged")


def _damaged_at_the_end(scored_batches, event: str, cfg, *rest, max_tokens):
    batches = scored_batches(cfg, *rest, max_tokens=max_tokens)
    if event != "closing" or max_tokens == cfg.eval_tokens:
        yield from batches
        return
    yield next(batches)
    raise ValueError("line 7 is damaged")


def _with_event(take_batches, event: str, run, progress):
    if progress.step == 3 and event == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if progress.step == 3 and event == "data":
        run.loader = _Damaged(run.loader)
    if progress.step == 3 and event == "nan":
        run.model.block[1].mlp.mlp1_bias.detach().to_local().fill_(math.nan)
    return take_batches(run, progress)

"""Compare llama.cpp and MLX with this project: YaRN's limits, and the speed of greedy decoding.

    python -m benchmarks.engines [--rounds 9] [--threads 1] [--no-write]
        writes benchmarks/results/engines.json

YaRN: largest difference of log-probabilities between this project and transformers, llama.cpp and MLX, on a
random model, with the limits of gpt-oss (truncate: false) and with limits that are rounded (truncate: true).

Speed: new tokens per second, with the prompts, of one row and of eight, in float32. Each side is a process of
its own with the same number of threads; the sides take turns, and medians are published. llama.cpp runs as
its users run it (flash attention, cache of 16 bits) and as verify runs it (cache in float32).
Needs requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from architecture.gptoss import ModelConfig, Transformer
from architecture.open_gpt_oss import engines, export, gguf_file, targets, verify, verify_engines
from architecture.tokenizer import get_tokenizer, tokenizer_state
from benchmarks.parity import random_model
from benchmarks.publish import judge, publish

TOKENIZER = "bundled1536"
YARN = dict(
    num_hidden_layers=4, num_experts=5, experts_per_token=2, vocab_size=1536, hidden_size=64,
    intermediate_size=96, head_dim=32, num_attention_heads=6, num_key_value_heads=3, sliding_window=16,
    initial_context_length=256, rope_scaling_factor=4.0,
)  # fmt: skip
TOKENS, ROWS = 3 * 16 + 1, 2
EXACT = 1e-4  # nats: rounding of float32 in another order
PROMPT, NEW = 16, 128  # tokens of each row
BATCHES = (1, 8)
OURS, LLAMA, LLAMA_F32 = "nano-gpt-oss", "llama.cpp", "llama.cpp, float32 cache"
PAUSE = 0.3  # seconds before a turn, because the idle threads of the other side spin for a while


def state_of(config: ModelConfig) -> dict:
    tokenizer = tokenizer_state(get_tokenizer(TOKENIZER))
    weights = dict(random_model(config, torch.float32).state_dict())
    return {
        "model_name": "gptoss",
        "config": asdict(config),
        "step": 0,
        "model": weights,
        "tokenizer": tokenizer,
    }


def write(state: dict, folder: Path) -> dict[str, Path]:
    """{format: folder} of three exports."""
    made = {layout: folder / layout for layout in ("hf", *targets.PROGRAMS)}
    for layout, path in made.items():
        export.write_folder(state, path, layout=layout)
    made["gguf"] /= gguf_file.FILE
    return made


# --------------------------------------------------------------------------------------------------- YaRN
@torch.no_grad()
def by_transformers(folder: Path, ids: torch.Tensor, truncate: bool) -> dict[tuple[int, int], torch.Tensor]:
    config = json.loads((folder / "config.json").read_text())
    for spelling in ("rope_scaling", "rope_parameters"):
        if config[spelling] is not None and "factor" in config[spelling]:
            config[spelling]["truncate"] = truncate
    (folder / "config.json").write_text(json.dumps(config))
    values = verify.peer_of_folder(folder)(ids).logits.log_softmax(-1)
    lengths = engines.lengths(ids.shape[1])
    return {(row, n): values[row, n - 1] for row in range(len(ids)) for n in lengths}


def yarn_table() -> dict[str, dict[str, float]]:
    """{setting: {engine: largest difference in nats}}."""
    table = {}
    for name, changes in (
        ("RoPE without YaRN", dict(rope_scaling_factor=1.0)),
        ("YaRN, truncate: false", {}),
        ("YaRN, truncate: true", {}),
    ):
        config, rounded = ModelConfig(**YARN | changes), name.endswith("true")
        state = state_of(config)
        ours = Transformer(config)
        ours.load_state_dict(state["model"])
        if rounded:
            verify_engines.round_yarn(ours, "mlx")
        ids = torch.randint(config.vocab_size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as scratch:
            made = write(state, Path(scratch))
            theirs = {"transformers": by_transformers(made["hf"], ids, truncate=rounded)}
            for target, engine in targets.PROGRAMS.items():
                theirs[engine] = verify_engines.log_probabilities(
                    engine, made[target], ids, config.vocab_size
                )
        table[name] = {
            engine: verify_engines.differences(ours.eval(), ids, values)[0].max().item()
            for engine, values in theirs.items()
        }
    return table


# -------------------------------------------------------------------------------------------------- speed
def serve(pipe, side: str, checkpoint: Path, gguf: Path, threads: int) -> None:
    """Run the process of one side: continue each batch of prompts, and send the seconds."""
    torch.set_num_threads(threads)
    if side == OURS:
        from architecture.generation.decode import generate_steps
        from architecture.registry import load_model

        model = load_model(checkpoint)

        def continue_all(prompts: list[list[int]]) -> int:
            steps = generate_steps(model, prompts, max_tokens=NEW, temperature=0)
            return sum(len(step) for step in steps)
    else:
        exact, made = side == LLAMA_F32, {}

        def continue_all(prompts: list[list[int]]) -> int:
            rows = len(prompts)
            if rows not in made:
                made.clear()
                made[rows] = engines.LlamaCpp(
                    gguf, context=PROMPT + NEW, rows=rows, threads=threads, exact=exact
                )

            def one(ids: list[int]) -> int:
                answer = made[rows].complete(ids, NEW, ignore_eos=True)
                return answer["usage"]["completion_tokens"]

            with ThreadPoolExecutor(rows) as pool:
                return sum(pool.map(one, prompts))

    for prompts in iter(pipe.recv, None):
        began = time.perf_counter()
        tokens = continue_all(prompts)
        pipe.send((tokens, time.perf_counter() - began))


def speeds(preset: str, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """{rows: {side: new tokens per second}}: medians of rounds, after one that is not counted."""
    from architecture.registry import build_config

    config = build_config("gptoss", preset, {"vocab_size": 1536})
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    state = state_of(config) | {"model": dict(model.state_dict())}
    context, sides, processes, found = multiprocessing.get_context("spawn"), {}, [], {}
    with tempfile.TemporaryDirectory() as scratch:
        export.write_folder(state, Path(scratch) / "hf", layout="hf")
        export.write_folder(state, Path(scratch) / "gguf", layout="gguf")
        gguf = Path(scratch) / "gguf" / gguf_file.FILE
        for side in (OURS, LLAMA, LLAMA_F32):
            sides[side], theirs = context.Pipe()
            processes.append(
                context.Process(target=serve, args=(theirs, side, Path(scratch) / "hf", gguf, threads))
            )
            processes[-1].start()
            theirs.close()
        try:
            generator = torch.Generator().manual_seed(1)
            for rows in BATCHES:
                rates = {side: [] for side in sides}
                for _ in tqdm(range(rounds + 1), desc=f"{rows} rows", leave=False, disable=None):
                    prompts = torch.randint(1536, (rows, PROMPT), generator=generator).tolist()
                    for side in sides:
                        time.sleep(PAUSE)
                        sides[side].send(prompts)
                        tokens, seconds = sides[side].recv()
                        if tokens != rows * NEW:
                            raise AssertionError(f"{side} made {tokens} tokens in place of {rows * NEW}")
                        rates[side].append(tokens / seconds)
                found[str(rows)] = {side: statistics.median(rate[1:]) for side, rate in rates.items()}
        finally:
            for process in processes:
                process.terminate()
                process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="toy", help="shape for the speed (default: toy)")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each side (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    table = yarn_table()
    print(f"{'largest difference, nats':<26}" + "".join(f"{engine:>14}" for engine in engines.INSTALL))
    for name, found in table.items():
        print(f"{name:<26}" + "".join(f"{found[engine]:>14.1e}" for engine in engines.INSTALL))
    decoding = speeds(options.preset, options.rounds, options.threads)
    for rows, found in decoding.items():
        for side, rate in found.items():
            print(f"{rows} rows  {side:<26} {rate:8,.0f} tokens/s")
    if not options.no_write:
        from importlib.metadata import version

        packages = ("transformers", "xllamacpp", "mlx", "mlx-lm", "gguf")
        publish("engines", {
            "versions": {name: version(name) for name in packages}, "yarn": table,
            "preset": options.preset, "threads": options.threads, "prompt_tokens": PROMPT, "new_tokens": NEW,
            "tokens_per_second": decoding,
        })  # fmt: skip
    exact = [*table["RoPE without YaRN"].values(), *table["YaRN, truncate: true"].values()]
    exact.append(table["YaRN, truncate: false"]["transformers"])
    return judge({f"differences of float32 at most {EXACT:g} nats": max(exact) <= EXACT})


if __name__ == "__main__":
    sys.exit(main())

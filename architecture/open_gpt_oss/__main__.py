"""The official formats of gpt-oss, from the command line.

python -m architecture.open_gpt_oss download --output_dir gpt_oss_weights
python -m architecture.open_gpt_oss COMMAND --help
"""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import importlib
import sys

from common.script import Parser, exit_code

# {command: (module, what it does)}. A module offers add_arguments(parser) and run(args); only that of the command
# at hand is imported, because some take seconds.
COMMANDS = {
    "download": ("download_weights", "fetch the official weights from the Hugging Face Hub"),
    "export": ("export", "write a checkpoint in the formats of gpt-oss, or for llama.cpp or MLX"),
    "import": ("import_weights", "make a checkpoint of a folder of gpt-oss"),
    "verify": ("verify", "compare an exported model with transformers, llama.cpp or MLX"),
}


def run(argv: list[str]) -> int | None:
    prog = "python -m architecture.open_gpt_oss"
    parser = Parser(prog=prog, description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = None
    for name, (module, told) in COMMANDS.items():
        sentence = f"{told[0].upper()}{told[1:]}."
        command = commands.add_parser(name, help=told, description=sentence, allow_abbrev=False)
        if argv[:1] == [name]:
            chosen = importlib.import_module(f"architecture.open_gpt_oss.{module}")
            chosen.add_arguments(command)
    args = parser.parse_args(argv)
    return chosen.run(args)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; see common/script.py."""
    return exit_code("architecture.open_gpt_oss", lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())

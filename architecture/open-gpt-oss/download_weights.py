"""The path that nano-gpt-oss's README names; the program is architecture/open_gpt_oss/download_weights.py."""

if __name__ == "__main__":
    import os
    import sys

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import sys

from architecture.open_gpt_oss.download_weights import main

if __name__ == "__main__":
    sys.exit(main())

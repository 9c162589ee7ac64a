"""JSON that somebody else may have written: whatever is wrong with it is a ValueError of a few words."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises ValueError whose message is the reason, to be put behind the name of the file.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except ValueError:  # Python's limit, told in words for programmers
        raise ValueError("a number has too many digits") from None

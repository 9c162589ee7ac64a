"""Questions to the Hugging Face Hub: a limit on the wait, and a few words on what went wrong."""

import re
import threading

from common.script import first_line

PROBE_SECONDS = 3.0  # how long to wait for the first answer of a host
NETWORK_PACKAGES = {"aiohttp", "http", "httpx", "httpx2", "requests", "socket", "ssl", "urllib3"}
COMMIT = re.compile("[0-9a-f]{40}")


def call_within(seconds: float, function, *args, **kwargs):
    """The result of function(...), or TimeoutError after `seconds`, even if it hangs in a name look-up."""
    outcome = {}

    def run():
        try:
            outcome["value"] = function(*args, **kwargs)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return outcome["value"]


def why_unreachable(error: Exception, seconds: float) -> str:
    """What happened to a question that the Hub had `seconds` to answer, as the beginning of a sentence."""
    kind, reason = type(error).__name__, re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    if kind == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    if "Timeout" in kind:
        return f"the Hub does not answer within {seconds:g} s"
    if status_of(error):
        return f"the Hub refuses to answer ({first_line(error)})"
    if is_of_the_network(error):
        return f"the Hub cannot be reached ({reason or kind})"
    return f"the Hub's answer cannot be read ({first_line(error)})"


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error comes from a broken connection or a busy server."""
    if status := status_of(error):  # the server answered
        return status in (408, 425, 429) or status >= 500
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    cause = error.__cause__
    known = isinstance(error, (ConnectionError, TimeoutError)) or packages & NETWORK_PACKAGES
    return bool(known) or (cause is not None and is_of_the_network(cause))


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an answer that became an error; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)

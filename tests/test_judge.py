"""A judge by endpoint, against a server on this machine: grades, order, faults, and a key that is never written."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import LoopbackServer

from evaluation import stories
from evaluation.story_scores.judge import ATTEMPTS, GRADES, Judge, measure
from evaluation.story_scores.work import Work

TRUNK = Path(__file__).parent / "fixtures" / "trunk" / "checkpoint_6.pt"
KEY = "sk-never-to-be-written-0123456789"
REAL = [f"Tim had a ball {n}. He lost it. Sue found it. He was glad." for n in range(12)]
GROUPS = [("Tim had", None)] * 3


def of_length(text: str) -> dict[str, int]:
    """The longer story is the better one."""
    return dict.fromkeys(GRADES, min(10, 1 + len(text) // 20))


def by_order(text: str) -> dict[str, int]:
    """Good where the sentences come in their order."""
    places = [text.find(part) for part in ("had", "lost", "found", "glad")]
    right = places == sorted(places)
    return {"grammar": 8, "creativity": 5, "consistency": 9 if right else 3}


class Server(LoopbackServer):
    """An OpenAI-compatible server.  grade: of one story.  faults: what it does first, one a request."""

    def __init__(self, grade=by_order, faults=()):
        super().__init__(_Handler)
        self.grade, self.faults, self.asked = grade, list(faults), []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if callable(fault):
            return fault(self)
        if isinstance(fault, str):
            return self.answer(200, fault)
        if fault is not None:
            return self.answer(fault, f"refused: {self.headers.get('Authorization')}")
        prompt = body["messages"][0]["content"]
        told = re.findall(r"<story_[ab]>\n(.*?)\n</story_[ab]>", prompt, re.DOTALL)
        grades = json.dumps(dict(zip("ab", map(self.server.grade, told), strict=True)))
        self.answer(200, content(f"Here they are:\n```json\n{grades}\n```"))

    def answer(self, status, text, **headers):
        self.send_response(status, f"no {self.headers.get('Authorization')}" if status != 200 else None)
        for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def content(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def judge_of(server: Server, **options) -> Judge:
    return Judge(f"{server.url}/v1", "small", KEY, **{"timeout": 5.0, "pause": 0.0} | options)


def settings(pairs: int = 12) -> SimpleNamespace:
    return SimpleNamespace(seed=0, judge_pairs=pairs)


def texts(model: list[str]) -> dict[str, list[list[str]]]:
    groups = [REAL[start : start + 4] for start in (0, 4, 8)]
    return {"real": groups, "model": [model[start : start + 4] for start in (0, 4, 8)]}


def test_a_judge_that_reads_the_order_agrees_with_it_and_likes_no_place():
    broken = ["Tim had a ball. Sue found it. He lost it. He was glad."] * 11 + ["Tim had"]
    with Server() as server:
        found = measure(judge_of(server), texts(broken), GROUPS, settings(), Work(None))
    known, model = found["known_order"], found["models"]["model"]
    assert (known["better"]["hits"], known["better"]["number"], known["ties"]) == (12, 12, 0)
    assert (
        known["grades"]["consistency"]["mean"] == 9
        and known["grades_of_the_other"]["consistency"]["mean"] == 3
    )
    assert model["better"]["number"] == 11  # the empty completion is not judged
    assert model["better"]["hits"] == 0 and model["grades"]["consistency"]["mean"] == 3
    assert model["grades_of_the_other"]["grammar"]["mean"] == 8
    assert 6 <= found["first_place"]["hits"] <= 17 and found["first_place"]["number"] == 23
    path, key, body = server.asked[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "small")


def test_a_judge_that_only_likes_the_first_place_is_found_out():
    def first(_):
        first.calls += 1
        return dict.fromkeys(GRADES, 7 if first.calls % 2 else 4)

    first.calls = 0
    with Server(first) as server:
        found = measure(judge_of(server), texts(REAL), GROUPS, settings(), Work(None))
    assert found["first_place"]["mean"] == 1
    assert 2 < found["known_order"]["better"]["hits"] < 10


def test_equal_grades_are_ties():
    with Server(lambda text: dict.fromkeys(GRADES, 5)) as server:
        found = measure(judge_of(server), texts(REAL), GROUPS, settings(), Work(None))
    assert found["known_order"]["ties"] == 12 and found["known_order"]["better"]["hits"] == 0
    assert found["first_place"]["number"] == 0 and found["first_place"]["mean"] is None


NONSENSE = [
    "not json", "[]", "{}", '{"choices": []}', content("I like both."), content("{}"), content('{"a": {}, "b": {}}'),
    content(json.dumps({"a": dict.fromkeys(GRADES, 11), "b": dict.fromkeys(GRADES, 5)})),
    content(json.dumps({"a": dict.fromkeys(GRADES, True), "b": dict.fromkeys(GRADES, 5)})),
    content(json.dumps({"a": dict.fromkeys(GRADES, "5"), "b": dict.fromkeys(GRADES, 5)})),
    json.dumps({"choices": [{"message": {"content": None}}]}), "[" * 100_000, " " * (2**20 + 1),
]  # fmt: skip


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_a_nonsense_answer_is_asked_for_again(nonsense):
    with Server(of_length, [nonsense]) as server:
        assert judge_of(server).grades("a" * 50, "b" * 90) == (of_length("a" * 50), of_length("b" * 90))
        assert len(server.asked) == 2


def test_a_judge_of_nonsense_ends_with_a_sentence():
    with Server(faults=["nonsense"] * 99) as server:
        assert judge_of(server).grades("a", "b") is None and len(server.asked) == ATTEMPTS
        with pytest.raises(ValueError, match="gave no grades in 5 of 5 answers; use a model that follows"):
            measure(judge_of(server), texts(REAL), GROUPS, settings(), Work(None))


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_busy_server_is_asked_again_and_then_told(status):
    with Server(of_length, [status, status]) as server:
        assert (
            judge_of(server).grades("a", "b") == (of_length("a"), of_length("b")) and len(server.asked) == 3
        )
    with Server(faults=[status] * 9) as server:
        with pytest.raises(
            ValueError, match=rf"answers {status} .*\(4 attempts\); try again later"
        ) as raised:
            judge_of(server).grades("a", "b")
        assert KEY not in str(raised.value) and len(server.asked) == ATTEMPTS


def test_a_server_says_how_long_to_wait(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    faults = [lambda h, s=s: h.answer(429, "", Retry_After=s) for s in ("7", "999999", "soon")]
    with Server(of_length, faults) as server:
        assert judge_of(server, pause=0.5).grades("a", "b")
    assert waits == [7.0, 60.0, 2.0]


@pytest.mark.parametrize(("status", "way_out"), [
    (301, "a redirect is not followed"), (307, "a redirect is not followed"), (401, "environment variable of the key"),
    (403, "OPENAI_API_KEY"), (404, "check the URL, which often ends in /v1"), (400, "--judge_model"),
])  # fmt: skip
def test_a_refusal_is_told_at_once_without_the_key(status, way_out):
    with (
        Server() as elsewhere,
        Server(faults=[lambda h: h.answer(status, "", Location=elsewhere.url)]) as server,
    ):
        with pytest.raises(ValueError, match=f"answers {status}.*{way_out}") as raised:
            judge_of(server).grades("a", "b")
        assert KEY not in str(raised.value) and "[key]" in str(raised.value)
        assert len(server.asked) == 1 and not elsewhere.asked


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "12")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(12):
            handler.wfile.write(b" ")
            time.sleep(0.03)


def test_a_silent_server_and_none_at_all_are_told():
    done = threading.Event()
    with Server(faults=[lambda h: done.wait(5)] * 9) as server:
        with pytest.raises(ValueError, match="does not answer within 0.05 s"):
            judge_of(server, timeout=0.05).grades("a", "b")
        done.set()
    with Server(faults=[drip] * 9) as server:  # each byte comes in time, the answer does not
        with pytest.raises(ValueError, match="does not answer within 0.1 s"):
            judge_of(server, timeout=0.1).grades("a", "b")
    with Server(faults=[lambda h: h.connection.close()] * 9) as server:
        with pytest.raises(ValueError, match="cannot be reached"):
            judge_of(server).grades("a", "b")
    with pytest.raises(ValueError, match="cannot be reached.*refused"):  # nothing listens there any more
        judge_of(server).grades("a", "b")


@pytest.mark.parametrize(("url", "told"), [
    ("ftp://host/v1", "must be an http or https URL"), ("host:8000", "must be an http or https URL"),
    ("http://", "must be an http or https URL"), ("http://a b/v1", "must be an http or https URL"),
    ("http://host:99999/v1", "must be an http or https URL"), (f"https://u:{KEY}@host/v1", "no user, password, query"),
    (f"https://host/v1?key={KEY}", "no user, password, query"),
])  # fmt: skip
def test_a_url_that_no_request_can_use_or_that_holds_a_secret_is_refused(url, told):
    with pytest.raises(ValueError, match=told) as raised:
        Judge(url, "small")
    assert KEY not in str(raised.value)


def test_a_key_with_a_line_break_is_refused_without_showing_it():
    with pytest.raises(ValueError, match="must be printable ASCII") as raised:
        Judge("http://127.0.0.1:1/v1", "small", KEY + "\nX: y")
    assert KEY not in str(raised.value)


def test_the_command_keeps_what_is_done_and_writes_the_key_nowhere(tmp_path, monkeypatch, capsys):
    """The server breaks in the middle; the second call asks only what is left."""
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    out = tmp_path / "stories.json"
    small = "--pairs 4 --prompts 3 --completions 2 --max_tokens 9 --stories 90 --training_stories 60 --threads 1".split()
    with Server(
        lambda text: dict.fromkeys(GRADES, 5),
        [lambda h: _Handler.answer(h, 200, content(GOOD))] * 3 + [500] * 9,
    ) as server:
        flags = [
            "--judge",
            f"{server.url}/v1",
            "--judge_model",
            "small",
            "--judge_key_env",
            "MY_KEY",
            "--judge_pairs",
            "5",
        ]
        assert stories.main([str(TRUNK), "--out", str(out), *small, *flags]) == 2
        told = capsys.readouterr().err
        assert "answers 500" in told and "minimal pairs" in told  # the other scores are shown and written
        first = json.loads(out.read_text())
        assert "texts" in first and "500" in first["judge"]["unfinished"]
        asked, server.faults = len(server.asked), []
        assert stories.main([str(TRUNK), "--out", str(out), *small, *flags]) == 0
        found = json.loads(out.read_text())["judge"]
        assert found["known_order"]["better"]["number"] == 5
        assert asked == 3 + ATTEMPTS
        again = len(server.asked) - asked
        assert again == 5 - 3 + found["models"][str(TRUNK)]["better"]["number"]
    told += "".join(capsys.readouterr()) + "".join(path.read_text() for path in tmp_path.iterdir())
    assert KEY not in told
    monkeypatch.delenv("MY_KEY")
    assert stories.main([str(TRUNK), *small, *flags]) == 2
    assert "--judge_key_env MY_KEY: this environment variable is not set" in capsys.readouterr().err


GOOD = json.dumps({"a": dict.fromkeys(GRADES, 6), "b": dict.fromkeys(GRADES, 6)})

"""A few fuzzed inputs of each kind, the same ones every time, and the fuzzer itself."""

import pytest
from hypothesis import strategies as st

from tests.stress.fuzz import hunt, report
from tests.stress.fuzzing.cases import AS_COMMANDS, IN_SILENCE, KINDS, Case
from tests.stress.fuzzing.judge import ROOT, Ending, Finding, contents, in_silence, judge, run_case
from tests.stress.fuzzing.materials import make_materials
from tests.stress.fuzzing.mutations import Mutant

CASES = 1  # of each kind and origin; python -m tests.stress.fuzz runs thousands


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield make_materials(tmp_path_factory.mktemp("fuzz") / "materials")


@pytest.mark.parametrize("origin", ["mutations", pytest.param("arbitrary", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [kind for kind, strategies in KINDS.items() if len(strategies) == 2])
def test_fuzzed_input_ends_with_0_or_with_2_and_one_clear_sentence(materials, tmp_path, kind, origin):
    strategy = KINDS[kind][origin == "arbitrary"]

    def run(case: Case) -> Finding | None:
        return run_case(case, materials, tmp_path / "case")

    assert not "\n".join(map(report, hunt(strategy(kind, materials), CASES, run, None)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*IN_SILENCE, *AS_COMMANDS])
def test_nothing_goes_wrong_in_silence(materials, tmp_path, kind):
    def run(case: Case) -> Finding | None:
        return run_case(case, materials, tmp_path / "case", real=kind in AS_COMMANDS)

    assert not "\n".join(map(report, hunt(KINDS[kind][0](kind, materials), 10, run, None)))


# --------------------------------------------------------------------------- the fuzzer itself


def test_a_fault_is_found_once_and_its_case_made_small():
    cases = st.lists(st.sampled_from(("a", "b", "bad", "worse")), max_size=6).map(
        lambda words: Case("kind", "train", tuple(words))
    )

    def run(case):
        wrong = [word for word in ("bad", "worse") if word in case.argv]
        return Finding(f"it is {wrong[0]}", "") if wrong else None

    seen = []
    found = hunt(cases, 200, run, seed=0, count=seen.append)
    assert sorted(one.case.argv for one in found) == [("bad",), ("worse",)]
    assert len(seen) == 200


def test_a_mutant_says_how_to_build_its_bytes_again(materials):
    whole = (materials / "stories.txt").read_bytes()
    cut = Mutant("stories.txt", "bytes", (("cut", 2, 3), ("put", 0, b"ab"), ("end", 9)))
    assert cut.build(materials) == (b"ab" + whole[:2] + whole[5:])[:9]
    steps = (("set", ("val_loss",), None), ("rename", ("step",), "x"), ("drop", ("checkpoint",)))
    assert b'"x": 2,' in Mutant("run/best.json", "tree", steps).build(materials)
    assert b"checkpoint" not in Mutant("run/best.json", "tree", steps).build(materials)


ERROR = "train.py: error: lr must be above 0; got -1\n"


@pytest.mark.parametrize(
    "ending, written, told",
    [
        (Ending(0, "", ""), {}, None),
        (Ending(2, "", ERROR), {}, None),
        (Ending(2, "", "reading\n" + ERROR), {}, None),
        (Ending(1, "", ERROR), {}, "exit code N"),
        (Ending(None, "", "", "KeyError at train.py:1"), {}, "KeyError at train.py:1"),
        (Ending(0, "", "Traceback (most recent call last):\n"), {}, "Traceback"),
        (Ending(0, "", "/x/y.py:3: RuntimeWarning: mean of empty slice\n"), {}, "RuntimeWarning"),
        (Ending(2, "", ""), {}, "N error lines"),
        (Ending(2, "", ERROR + ERROR), {}, "N error lines"),
        (Ending(2, "", ERROR + "and more\n"), {}, "N error lines"),
        (Ending(2, "", "train.py: error: KeyError\n"), {}, "no sentence"),
        (Ending(2, "", "train.py: error: [Errno 2] No such file: 'x'\n"), {}, "jargon"),
        (Ending(2, "", f"train.py: error: it is {'x' * 3000}\n"), {}, "characters"),
        (Ending(2, "", "train.py: error: it is \x1b[31m\n"), {}, "control characters"),
        (Ending(2, "", ERROR), {"page.png": b""}, "failed and yet changed page.png"),
        (Ending(0, "", ""), {"page.png": b"\x89PNG"}, "page.png is cut off"),
        (Ending(0, "", ""), {"a.json": b'{"a": 1'}, "a.json is not whole"),
        (Ending(0, "", ""), {".checkpoint_3.pt.tmp": b""}, "left behind"),
    ],
)
def test_the_verdict_is_right(tmp_path, ending, written, told):
    before = contents(tmp_path)
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    finding = judge(Case("kind", "train", ()), ending, tmp_path, before)
    assert (finding is None) == (told is None)
    assert told is None or told in finding.signature


OURS = (
    f'Traceback (most recent call last):\n  File "{ROOT}/train.py", line 3, in <module>\nKeyboardInterrupt\n'
)


@pytest.mark.parametrize(
    "ending, told",
    [
        (Ending(130, "", "train.py: interrupted\n"), None),
        (Ending(0, "", ""), None),
        (Ending(-2, "", ""), None),
        (Ending(1, "", 'Traceback (most recent call last):\n  File "<frozen runpy>"\n'), None),
        (Ending(130, "", OURS), "Traceback"),
        (Ending(1, "", OURS), "exit code N"),
        (Ending(130, "", ""), "says nothing"),
    ],
)
def test_ctrl_c_in_the_first_seconds_gives_130_and_a_line(tmp_path, ending, told):
    case = Case("first seconds", "train", (), rule="interrupted", ctrl_c=1.0)
    finding = judge(case, ending, tmp_path, {}) or in_silence(case, ending, tmp_path)
    assert (finding is None) == (told is None)
    assert told is None or told in finding.signature


def test_what_is_refused_is_not_wrong_and_what_is_accepted_is_judged(tmp_path):
    case = Case("both sides", "train", ("--dataset", "a"), rule="refused")
    assert in_silence(case, Ending(2, "", ERROR), tmp_path) is None
    assert "is accepted" in in_silence(case, Ending(0, "", ""), tmp_path).signature
    assert in_silence(case, Ending(None, "", "", "", finished=False), tmp_path) is not None

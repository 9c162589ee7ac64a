"""Pages in a real browser, an installed Chromium, through Playwright: the chat page, from a server of Streamlit,
and the page of the routing microscope, from disk.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import REPO_ROOT
from toy_run import TINY, run

pytestmark = pytest.mark.browser
LONG = ["--initial_context_length", "65536", "--max_iters", "16"]  # checkpoints at steps 8 and 16
# A model that hardly learned repeats itself, and does not end. So many tokens take longer than a test looks on.
GREEDY = "temperature=0&max_tokens=100000"


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A working directory with model/, which has two trained checkpoints."""
    here = tmp_path_factory.mktemp("browser")
    done = run(here, *corpus, *TINY, *LONG, "--out_dir", "model")
    assert done.code == 0, done.err
    return here


@pytest.fixture(scope="module")
def address(folder):
    """The address of a running page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "streamlit", "run", REPO_ROOT / "server.py", "--server.headless", "true"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [*command, "--server.port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        for _ in range(300):
            time.sleep(0.1)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium, address):
    """Opens pages with some settings in their address, in a window of the given width."""
    contexts, wrong = [], []

    def open_page(settings: str = "", width: int = 1100):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda sent: sent.url.startswith(("data:", "blob:", address)) or wrong.append(sent.url)
        )
        page.goto(f"{address}?{settings}")
        page.get_by_text("Surprise me").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []  # no error in the page, and nothing is asked of another machine


# --------------------------------------------------------------------------- what a user does and sees


def send(page, message: str) -> float:
    """Send a message; the seconds from Enter to the first words of the answer."""
    number = page.get_by_test_id("stChatMessage").count() + 1
    page.get_by_test_id("stChatInputTextArea").fill(message)
    began = time.monotonic()
    page.get_by_test_id("stChatInputTextArea").press("Enter")
    page.wait_for_function(
        "n => { const text = document.querySelectorAll('[data-testid=stChatMessage]')[n]"
        "?.querySelector('[data-testid=stText]')?.innerText; return text && text != '...' }",
        arg=number,
    )
    return time.monotonic() - began


def settle(page) -> None:
    """Wait until the page has done what was asked."""
    page.wait_for_timeout(200)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


def choose_step_8(page) -> None:
    settle(page)
    page.get_by_test_id("stSelectbox").get_by_role("combobox").click()
    page.get_by_role("option", name="model, step 8").click()
    settle(page)


def texts(page) -> list[str]:
    return page.get_by_test_id("stChatMessage").get_by_test_id("stText").all_inner_texts()


def stop(page) -> None:
    page.get_by_test_id("stChatInputStopButton").click()
    page.get_by_test_id("stChatInputSubmitButton").wait_for()


def grows(page, seconds: int = 5) -> bool:
    """Whether the last answer gets longer within that time."""
    length = len(texts(page)[-1])
    for _ in range(10 * seconds):
        page.wait_for_timeout(100)
        if len(texts(page)[-1]) > length:
            return True
    return False


def wait_until_written(page, count: int) -> None:
    """Wait until the last of `count` messages is complete, and its seconds are shown."""
    page.get_by_test_id("stChatMessage").nth(count - 1).get_by_text(re.compile(" tokens in ")).wait_for()


def reload(page, count: int) -> None:
    page.reload()
    page.get_by_test_id("stChatMessage").nth(count - 1).wait_for()
    page.get_by_role("button", name="Regenerate").wait_for()


# ---------------------------------------------------------------------------------------------- the tests


def test_a_message_is_answered_piece_by_piece_by_the_chosen_checkpoint(new_page):
    page = new_page(GREEDY)
    choose_step_8(page)
    assert send(page, "Once upon a time") < 2
    assert grows(page) and grows(page)
    stop(page)
    assert (
        texts(page)[0] == "Once upon a time"
        and "model, step 8" in page.get_by_test_id("stChatMessage").nth(1).inner_text()
    )


def test_what_was_written_stays_after_a_stop_a_reload_and_the_next_message(new_page):
    page = new_page(GREEDY)
    send(page, "Once upon a time")
    assert grows(page)
    stop(page)
    written = texts(page)[1]
    assert not grows(page, 1) and len(written) > 3
    page.wait_for_timeout(300)
    reload(page, 2)
    assert texts(page)[1].startswith(written)
    assert "stopped" in page.get_by_test_id("stChatMessage").nth(1).inner_text()
    written = texts(page)
    send(page, "Then a dog came")
    stop(page)
    assert texts(page)[:3] == [*written, "Then a dog came"]


def test_a_setting_that_changes_ends_an_answer_and_counts_from_the_next_one(new_page):
    page = new_page(GREEDY)
    send(page, "Once upon a time")
    assert grows(page)
    page.get_by_role("slider").first.press("ArrowRight")
    page.wait_for_url("**temperature=0.05**")
    wait_until_written(page, 2)
    assert "stopped" in page.get_by_test_id("stChatMessage").nth(1).inner_text()
    page.get_by_role("spinbutton", name="Max tokens").fill("12")
    page.get_by_role("button", name="Continue").click()  # the field and the button in one action
    wait_until_written(page, 3)
    assert "12 tokens" in page.get_by_test_id("stChatMessage").nth(2).inner_text()
    reload(page, 3)
    assert page.get_by_role("spinbutton", name="Max tokens").input_value() == "12"


def test_regenerate_continue_stop_download_and_a_new_conversation(new_page):
    page = new_page("temperature=1&max_tokens=20")
    page.get_by_role("button", name="Once upon a time").click()
    wait_until_written(page, 2)
    first = texts(page)
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_function(
        "old => { const now = document.querySelectorAll('[data-testid=stText]')[1]?.innerText;"
        "return now && now != '...' && now != old }",
        arg=first[1],
    )
    wait_until_written(page, 2)
    second = texts(page)
    assert len(second) == 2 and second[0] == first[0] and second[1] not in (first[1], "...")
    page.get_by_role("spinbutton", name="Max tokens").fill("100000")
    page.get_by_role("spinbutton", name="Max tokens").press("Enter")
    page.get_by_role("slider").first.press("Home")  # temperature 0
    page.wait_for_url(re.compile(r"temperature=0(\.0)?(&|$)"))
    page.get_by_role("button", name="Continue").click()
    page.get_by_test_id("stChatMessage").nth(2).wait_for()
    assert grows(page)
    # not a click of the mouse: the text grows, and moves the button
    page.get_by_role("button", name="Stop", exact=True).last.dispatch_event("click")
    page.get_by_role("button", name="Continue").wait_for()
    wait_until_written(page, 3)
    assert not grows(page, 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as text").click()
    story = download.value.path().read_text()
    assert story.startswith("Once upon a time") and texts(page)[2][:10] in story
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Surprise me").wait_for()
    assert texts(page) == [] and "c=" not in page.url


def test_two_tabs_at_once_each_get_their_answer(new_page):
    first, second = new_page("temperature=0&max_tokens=300"), new_page("temperature=0&max_tokens=40")
    send(first, "Once upon a time")
    send(second, "Tom had a ball")
    for page in (first, second):
        wait_until_written(page, 2)
    assert [texts(page)[0] for page in (first, second)] == ["Once upon a time", "Tom had a ball"]
    assert len({page.url for page in (first, second)}) == 2


def test_on_a_phone_the_side_bar_is_folded_and_nothing_is_cut_off(new_page):
    page = new_page(GREEDY, width=375)
    assert page.get_by_test_id("stExpandSidebarButton").is_visible()
    assert page.get_by_test_id("stSidebar").bounding_box()["width"] == 0
    send(page, "Once upon a time there was a very long word " + "a" * 60)
    stop(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    box = page.get_by_test_id("stChatInputTextArea").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 375 and box["y"] + box["height"] <= 800


def test_a_checkpoint_that_vanishes_while_the_page_is_open(new_page, folder):
    page = new_page("temperature=0&max_tokens=20")
    send(page, "Once upon a time")
    wait_until_written(page, 2)
    newest = folder / "model" / "checkpoint_16.pt"
    newest.rename(folder / "away.pt")
    try:
        page.get_by_test_id("stChatInputTextArea").fill("Then")
        page.get_by_test_id("stChatInputTextArea").press("Enter")
        page.get_by_text("model/checkpoint_16.pt no longer exists; choose another").wait_for()
        assert len(texts(page)) == 2
        choose_step_8(page)
        page.get_by_text("no longer exists").wait_for(state="detached")
        send(page, "Then")
        wait_until_written(page, 4)
    finally:
        (folder / "away.pt").rename(newest)


# ------------------------------------------------------------------------- the page of the routing microscope


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_the_routing_page_answers_the_mouse_and_the_keys_and_asks_nobody(chromium, tmp_path, scheme, width):
    from evaluation.routing.__main__ import main

    told, out = "Tom </script> saw\n a dog", tmp_path / "routing.html"
    words = [
        "--text",
        told,
        "--out",
        str(out),
        "--replay",
        "loop:float32",
        "sorted:bfloat16",
        "--max_tokens",
        "4",
    ]
    assert (
        main([str(REPO_ROOT / "tests/fixtures/trunk"), *words, "--knock_out", "1:3", "--threads", "1"]) == 0
    )
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("request", lambda sent: sent.url == out.as_uri() or wrong.append(sent.url))
    page.goto(out.as_uri())
    tokens, head, rows = (
        page.locator("#tokens > span"),
        page.locator("#token"),
        page.locator("#token_layers > tr"),
    )
    assert tokens.first.inner_text() == "<|endoftext|>" and rows.count() == 2
    assert "".join(tokens.all_inner_texts()[1:]).replace("\u23ce", "") == told
    tokens.nth(2).click()
    assert head.inner_text().startswith("Token 2: ")
    page.locator("#tokens").press("ArrowRight")
    assert head.inner_text().startswith("Token 3: ") and "pinned" in tokens.nth(3).get_attribute("class")
    experts = page.evaluate(
        "data.index[1][3].map((e, slot) => e + ' (' + data.weight[1][3][slot].toFixed(2) + ')')"
    )
    assert rows.nth(1).locator(".experts > span").all_inner_texts() == experts

    background = "[...document.querySelectorAll('#tokens > span')].map(s => s.style.backgroundColor).join()"
    before = page.evaluate(background)
    first = page.locator("tr[data-measure^=knock_out]").first  # the costliest expert of layer 0
    first.locator("td").first.click()
    assert page.locator("#measure").input_value() == first.get_attribute("data-measure")
    assert page.evaluate(background) != before
    first.locator("button.token").first.click()
    place = first.locator("button.token").first.get_attribute("data-place")
    assert head.inner_text().startswith(f"Token {place}: ")
    cells = page.locator("#map_0 canvas").nth(1)
    cells.click(position={"x": 5, "y": 5})
    assert (
        head.inner_text().startswith("Token 0: ") and "expert 0: " in page.locator("#caption_0").inner_text()
    )
    drawn = "[...document.querySelectorAll('canvas')].map(c => new Set(new Uint32Array(c.getContext('2d')" \
            ".getImageData(0, 0, c.width, c.height).data.buffer)).size)"  # fmt: skip
    assert min(page.evaluate(drawn)) > 5  # colours in each
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert wrong == []

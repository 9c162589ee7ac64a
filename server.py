"""A page in the browser to write with the models of this machine.

    streamlit run server.py                                        # then open http://localhost:8501
    streamlit run server.py -- --folders model model_context       # checkpoints of these folders only

Streamlit runs this file from the top at every action of a user, and ends that run at the next one. So the
conversation is in a file, and an answer is saved whenever its run ends.
"""

from __future__ import annotations  # and not common.begin: Streamlit, which starts this file, handles Ctrl-C

import contextlib
import functools
import os
import re
import secrets
import sys
import time
from pathlib import Path

import streamlit as st

from common.threads import bound_spinning, set_threads, set_threads_for_texts

if st.runtime.exists():
    bound_spinning()  # before the imports below load torch

import torch

from architecture.generation import chat
from architecture.generation.chat import MODEL, USER
from architecture.generation.text import image_format
from architecture.images import read_image
from architecture.open_gpt_oss.harmony import Harmony
from architecture.open_gpt_oss.weights import packing_for
from architecture.tokenizer import HARMONY, get_tokenizer
from common.device import available_memory, choose_device
from common.script import Parser, is_out_of_memory, one_line, say
from inference import load_model
from training.state.checkpoint import naming_a_good_one

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
AVATARS = {USER: ":material/person:", MODEL: ":material/auto_stories:"}
OPENINGS = ("Once upon a time", "Tom had a red ball.", "One day, a little dog")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CONVERSATIONS = CACHE / "nano-gpt-oss" / "conversations"


def parse(argv: list[str]):
    parser = Parser(prog="streamlit run server.py --", allow_abbrev=False, add_help=False)
    parser.add_argument("--folders", nargs="+")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(argv)
    address = st.get_option("server.address")
    if not args.public and address not in THIS_MACHINE:
        raise ValueError(
            f"this page must listen at an address of this machine only, got {address or 'every address'}; "
            "start it from the project's folder, with --server.address 127.0.0.1, or with -- --public if "
            "everybody who reaches this machine may use it"
        )
    if args.folders is None:
        args.folders = [str(path) for name in ("model", "model_*", "gpt_oss*") for path in Path().glob(name)]
    elif missing := [folder for folder in args.folders if not Path(folder).is_dir()]:
        st.warning(f"{', '.join(missing)} (from --folders) does not exist; its checkpoints are not listed.")
    return args


@contextlib.contextmanager
def told():
    """What a user can cause becomes a sentence in the page."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            st.error(
                f"There is not enough memory ({one_line(error)}); close programs, or use a smaller model."
            )
        elif isinstance(error, (ValueError, OSError, ImportError)):
            text = one_line(error)
            if text.split()[0].isalpha():  # not a path
                text = text[0].upper() + text[1:]
            st.error(f"{text}.")
        else:
            raise


# -------------------------------------------------------------------------------------------- the model
@st.cache_resource
def choose_threads(asked: int | None) -> int:
    """Once in the life of the server, at the first model."""
    if line := set_threads(asked, None):
        say(line)
    return torch.get_num_threads()


@st.cache_resource(max_entries=1, show_spinner="Loading the model ...")
def load(path: str, changed: int):
    """The model of a checkpoint; changed: the time of the file, as a run may write it again."""
    device = choose_device("auto")
    return load_model(path, device=device, weights=packing_for(path, available_memory(device)))


@st.cache_resource(max_entries=3)
def harmony(reasoning: str):
    return Harmony(get_tokenizer(HARMONY), reasoning=reasoning)


def format_of(model) -> chat.ChatFormat | None:
    """The chat format of a model; None for one that continues text."""
    return harmony(st.session_state.reasoning) if has_turns(model) else None


def has_turns(model) -> bool:
    return model is not None and model.tokenizer.name == HARMONY


@contextlib.contextmanager
def turn_to_compute():
    """Wait until no other page computes. The message in the page lets Streamlit end this run meanwhile."""
    waiting = st.empty()
    while not chat.ONE_AT_A_TIME.acquire(timeout=0.2):
        waiting.caption("Another page is using this machine's model; this page is next.")
    try:
        waiting.empty()
        yield
    finally:
        chat.ONE_AT_A_TIME.release()


def choose_checkpoint(folders: list[str], turns: list[dict]) -> str | None:
    """The checkpoint that the user chose, at first that of the last answer, or else the newest one."""
    there = [str(path) for path in chat.list_checkpoints(folders)]
    state, used = st.session_state, [turn["checkpoint"] for turn in turns if turn.get("checkpoint") in there]
    if not state.get("checkpoint"):
        state.checkpoint = (used[-1:] or there[:1] or [None])[0]
    gone = state.checkpoint is not None and state.checkpoint not in there
    if gone:
        st.warning(f"{state.checkpoint} no longer exists; choose another checkpoint in the side bar.")
    elif not there:
        looked = f"no checkpoint in {', '.join(folders)}" if folders else "no folder with a model here"
        st.info(
            f"There is {looked} yet. Train a model with `make quickstart` or `python train.py`, and reload this "
            "page when its first checkpoint is saved."
        )
    options = [state.checkpoint, *there] if gone else there
    told = dict(placeholder="none yet", format_func=label, help="Newest first")
    chosen = st.sidebar.selectbox("Checkpoint", options, key="checkpoint", **told)
    return None if gone else chosen


def label(path: str) -> str:
    return re.sub(r"/checkpoint_(\d+)\.pt$", r", step \1", path)


def ready_model(path: str, threads: int | None):
    """The model of a checkpoint; None, with a sentence in the page, if it cannot be loaded."""
    with told(), naming_a_good_one(Path(path)):
        chosen = choose_threads(threads)
        model = load(path, Path(path).stat().st_mtime_ns)
        torch.set_num_threads(chosen)  # the model before may have been small
        set_threads_for_texts(threads, model.config.parameter_counts()["total"], rows=1)
        return model


# --------------------------------------------------------------------------------------------- the page
def settings(model) -> None:
    """The settings of answers. A change during an answer ends it, like every action in a page of Streamlit."""
    bound = dict(bind="query-params")  # in the address of the page, so that they survive a reload
    if has_turns(model):
        st.selectbox("Reasoning", ("medium", "low", "high"), key="reasoning", **bound)
    told = "0 always takes the most probable token, 1 is the model's own distribution"
    st.slider("Temperature", 0.0, 2.0, 0.8, 0.05, key="temperature", help=told, **bound)
    st.number_input("Top-k", 1, None, None, key="top_k", placeholder="all tokens", **bound)
    st.slider("Top-p", 0.05, 1.0, 1.0, 0.05, key="top_p", help="1 keeps all tokens", **bound)
    told = "The most tokens of one answer"
    st.number_input("Max tokens", 1, 100_000, 200, key="max_tokens", help=told, **bound)
    told = "The same text, settings and seed give the same answer"
    st.number_input("Seed", 0, 2**31 - 1, None, key="seed", placeholder="drawn", help=told, **bound)


def new_images(model, turns: list[dict]) -> list[bytes]:
    """The images for the next message, if the model reads any. What is no image becomes a sentence."""
    form, images = image_format(model), []
    if form is None:
        return images
    key = f"images{len(turns)}"  # another key empties the field after a message
    told_below = "They stand in front of the message, or where it has <|image|>"
    shown = dict(accept_multiple_files=True, key=key, help=told_below)
    for file in st.file_uploader("Images for the next message", **shown):
        with told():
            read_image(file.getvalue(), form.size, file.name)
            images.append(file.getvalue())
    return images


def ask(action: str, opening: str | None = None) -> None:
    """What a button wants done in the next run, by the name of the button."""
    st.session_state.asked = action, opening


def begin_anew() -> None:
    """Leave the conversation; a name for the next one is in its address when it has a first turn."""
    st.query_params.pop("c", None)
    st.session_state.name = secrets.token_hex(8)


def buttons(place, names: str, disabled: bool = False) -> None:
    """Buttons in one row, in place of those that are there."""
    icons = {"Continue": "arrow_forward", "Regenerate": "refresh", "Stop": "stop"}
    with place.container(horizontal=True):
        for name in names.split():
            form = dict(icon=f":material/{icons[name]}:", on_click=ask, args=(name,), disabled=disabled)
            st.button(name, key=name, **form)


def show(turn: dict, file: Path) -> None:
    """A turn as it is: no Markdown, no HTML. file: of the conversation."""
    with st.chat_message(turn["role"], avatar=AVATARS[turn["role"]]):
        for name in turn.get("images", ()):
            if (image := chat.image_file(file, name)).is_file():
                st.image(image.read_bytes(), width=160)
        if turn.get("analysis"):
            with st.expander("Reasoning"):
                st.text(turn["analysis"].strip())
        st.text(turn["text"].strip() or "(nothing)")
        if turn["role"] == MODEL:
            st.caption(about(turn))


def about(turn: dict) -> str:
    """What was noted about an answer, in one line."""
    parts = [label(turn.get("checkpoint", "")), f"seed {turn.get('seed')}"]
    if turn.get("tokens"):
        parts.append(f"{turn['tokens']:,} tokens in {turn['seconds']:.1f} s")
    return " · ".join(filter(None, [*parts, turn.get("end"), turn.get("note")]))


def write_answer(model, prompt, file: Path, index: int, facts: dict) -> None:
    """Stream an answer into the page, and into the file as turn `index`, once a second and at the end."""
    wanted = {name: st.session_state[name] for name in ("temperature", "top_k", "top_p")}
    answer, memory = chat.Answer(), st.session_state.setdefault("memory", chat.Memory())
    if prompt.unread:
        facts["note"] = f"the first {prompt.unread:,} tokens of the text no longer fit and were not read"
    with st.chat_message(MODEL, avatar=AVATARS[MODEL]):
        place, below = st.empty(), st.empty()
        place.text("...")
        below.caption(about(facts))
        with turn_to_compute():
            began, saved = time.monotonic(), 0.0
            pieces = chat.stream_answer(model, prompt, answer, memory, seed=facts["seed"], **wanted)
            try:
                for _ in chat.paced(pieces):
                    place.text(answer.text.lstrip() or f"({answer.analysis.strip()})")
                    if time.monotonic() > saved + 1:
                        saved = time.monotonic()
                        chat.put_turn(file, index, facts | vars(answer) | dict(seconds=saved - began))
            finally:  # also if the user stops it
                pieces.close()
                facts |= vars(answer) | dict(seconds=time.monotonic() - began)
                if answer.tokens:
                    chat.put_turn(file, index, facts)
        place.text(answer.text.strip() or "(nothing)")
        below.caption(about(facts))


def welcome(model) -> None:
    if has_turns(model):
        st.title("Ask gpt-oss")
        st.markdown("This model answers in turns. Its reasoning folds away above the answer.")
        return
    st.title("Write a story together")
    st.markdown(
        "These models continue text. What you write becomes a part of the story, and the model goes on from there; "
        "it does not answer questions. **Continue** lets it go on alone, and **Regenerate** tells its last part anew."
    )
    with st.container(horizontal=True):
        for opening in (*OPENINGS, None):
            name = opening or "Surprise me"
            st.button(name, on_click=ask, args=("Continue", opening), disabled=model is None)


def page() -> None:
    st.set_page_config(page_title="nano-gpt-oss")  # a page_icon comes from a server of Google
    notices, messages, beginning, row = st.container(), st.container(), st.empty(), st.empty()
    action, opening = st.session_state.pop("asked", ("", None))
    args = None
    with notices, told():
        args = parse(sys.argv[1:])
    if args is None:
        return
    message = st.chat_input("Begin a story, or write how it goes on", submit_mode="stop")
    with notices, told():
        turns = []
        try:
            if name := st.query_params.get("c"):
                turns = chat.read_turns(chat.conversation_file(CONVERSATIONS, name))
                st.session_state.name = name
        except ValueError as error:
            st.warning(f"A new conversation begins here, because {one_line(error)}.")
            begin_anew()
        if "name" not in st.session_state:
            begin_anew()
        file = chat.conversation_file(CONVERSATIONS, st.session_state.name)
        checkpoint = choose_checkpoint(args.folders, turns)
        model = ready_model(checkpoint, args.threads) if checkpoint else None
        with st.sidebar:
            settings(model)
            images = new_images(model, turns) if model else []
            st.button("New conversation", on_click=begin_anew, icon=":material/add:", width="stretch")
            form = dict(on_click="ignore", icon=":material/download:", width="stretch")
            story = functools.partial(chat.story_of, file)  # called at the click
            st.download_button("Download as text", story, "story.txt", **form)
        typed, message = message is not None, opening if message is None else message
        if message is not None and not message.strip():
            st.warning("The message is empty; write some words, or press Continue.")
            message = None
        elif message is not None and model is None:
            st.warning("There is no model that could go on; choose a checkpoint in the side bar.")
        elif message is not None:
            action = "Continue"
            turns.append({"role": USER, "text": message})
            if images:
                turns[-1]["images"] = [chat.keep_image(file, image) for image in images]
        converse(messages, beginning, row, model, checkpoint, file, turns, action, typed)


def converse(messages, beginning, row, model, checkpoint, file, turns, action, typed) -> None:
    """Show the conversation, and let the model write if the action says so. typed: in the field for text."""
    seed = st.session_state.seed
    if model and action == "Regenerate" and turns and turns[-1]["role"] == MODEL:
        last = turns.pop()  # the seed that it had would give the same text
        seed = seed if seed is None else max(seed, last["seed"] + 1)
    with messages:
        for turn in turns:
            show(turn, file)
    if model is None or action not in ("Continue", "Regenerate"):
        if turns:
            buttons(row, "Continue Regenerate", disabled=model is None)
        else:
            with beginning.container():
                welcome(model)
        return
    beginning.empty()
    # The field for text has a button that ends this run at once, so what should be there afterwards is there now.
    buttons(row, "Continue Regenerate" if typed else "Stop")
    with messages, told():
        form, facts = image_format(model), dict(role=MODEL, checkpoint=checkpoint)
        read = chat.with_images(turns, file, form.size) if form else turns
        if form is None and any(turn.get("images") for turn in turns):
            facts["note"] = "this model does not read the images"
        # too long a message is not saved
        prompt = chat.prompt_of(model, read, st.session_state.max_tokens, format_of(model))
        if turns and turns[-1]["role"] == USER:
            chat.put_turn(file, len(turns) - 1, turns[-1])
        st.query_params["c"] = file.stem
        facts["seed"] = secrets.randbits(31) if seed is None else seed
        write_answer(model, prompt, file, len(turns), facts)
    if not typed:
        buttons(row, "Continue Regenerate")


if __name__ == "__main__":
    if not st.runtime.exists():
        sys.exit("server.py: error: this is a page of Streamlit; start it with: streamlit run server.py")
    page()

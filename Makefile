# Every target sets up .venv by itself; nothing is installed outside it.
PYTHON ?= python3
PIP_FLAGS ?=  # for pip install; without CUDA: --extra-index-url https://download.pytorch.org/whl/cpu
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

.PHONY: quickstart tiny-gpt-oss setup chat test test-peers test-browser slow check pictures bench bench-gpu clean

QUICKSTART := model_quickstart

quickstart: .venv/.runtime  ## a small model on two cores; once installed, no network
	@echo "quickstart: trains a small mixture of experts on stories that this project writes, then tells three."
	@echo "The recorded run took 360 s on two cores. Ctrl-C saves; make quickstart goes on from there."
	@$(BIN)/python train.py --out_dir $(QUICKSTART) \
		$(if $(wildcard $(QUICKSTART)/checkpoint_*.pt),--resume,--config configs/quickstart.yaml)

tiny-gpt-oss: .venv/.runtime  ## a gpt-oss of 3.6 MB that tells stories, in every format, with golden results
	@$(PIP) -r requirements-export.txt
	$(BIN)/python examples/tiny_gpt_oss.py

setup: .venv/.runtime  ## what training and sampling need

chat: .venv/.server  ## a page in the browser for the models here
	$(BIN)/streamlit run server.py

test: .venv/.dev  ## the whole suite, no network
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-peers: .venv/.peers  ## beside transformers and other programs, and the package in a fresh environment
	$(BIN)/python -m pytest -n 3 --peers -m peer

test-browser: .venv/.browser  ## the chat page and the page of the routing microscope, in an installed Chromium
	@test -n "$(CHROMIUM)" || { echo "make test-browser needs Chromium; install it, on Debian with" \
		"apt-get install -y --no-install-recommends chromium, or set CHROMIUM=PATH"; exit 1; }
	CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest --browser -m browser

slow: .venv/.dev  ## with the slow tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --slow

check: .venv/.dev  ## linter and formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

pictures: .venv/.dev  ## the pictures of README and docs, from benchmarks/results
	$(BIN)/python -m benchmarks.pictures

bench: .venv/.peers  ## the published figures of parity and head memory
	$(BIN)/python -m benchmarks.parity
	$(BIN)/python -m benchmarks.head_memory

bench-gpu: .venv/.peers  ## one CUDA device, ten minutes, goes on if started again: values, speed beside transformers, a curve
	$(BIN)/python -m benchmarks.gpu_check $(BENCH_GPU)

clean:
	rm -rf .venv

.venv/.runtime: requirements.txt
	@echo "installing into .venv: once, mostly PyTorch"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt
	touch $@

.venv/.server: requirements-server.txt .venv/.runtime
	@$(PIP) -r requirements-server.txt
	touch $@

.venv/.browser: requirements-browser.txt requirements-server.txt .venv/.dev
	@$(PIP) -r requirements-browser.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	touch $@

.venv/.peers: requirements-peers.txt requirements-export.txt requirements-eval.txt .venv/.dev
	@$(PIP) -r requirements-peers.txt
	touch $@

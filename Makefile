# make demo: install and open the workbench.  make test: install and test.  Both may be run again at any time.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
CHROMIUM ?= /usr/bin/chromium
APP ?=

# The arms of docs/RESULTS.md: scalar at 4 bits, ours and the libraries'; at 3 bits; vectors at 3 and at 2 bits.
RESULTS := fp16 rtn:bits=4 nf4 float:bits=4 hqq:bits=4 gptq:bits=4 adaround:bits=4 \
	lib.bitsandbytes lib.gguf lib.gguf:type=Q4_1 lib.hqq lib.quanto lib.sdnq lib.sdnq:group_size=64 @scalar-4bit \
	rtn:bits=3 hqq:bits=3 gptq:bits=3 adaround:bits=3 lib.hqq:bits=3 lib.sdnq:bits=3 \
	rvq:bits=3 aq:bits=3 tcq:bits=3 @vqdm-3bit @best-3bit rvq:bits=2 tcq:bits=2 @best-2bit

.PHONY: demo test test-all lint peers results chromium clean

demo: $(VENV)/.runtime
	$(BIN)/python app.py $(APP)

test: $(VENV)/.dev peers chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile --timeout 1200 -m "not slow and not gpu"

test-all: $(VENV)/.dev peers chromium
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "SDVQ needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Other libraries, compared with ours where they install; their tests are skipped elsewhere.
peers: $(VENV)/.runtime
	@test $(VENV)/.peers -nt requirements-peers.txt || { \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt \
			&& touch $(VENV)/.peers || echo "Not all peers could be installed; their tests are skipped."; }

results: peers
	$(BIN)/python -m sdvq_core evaluate nano $(addprefix --arm ,$(RESULTS)) --n 128 --out out/results

chromium:
	@test -x $(CHROMIUM) || command -v chromium >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
		else \
			echo "The browser tests need Chromium: install it (Debian: sudo apt-get install chromium) or set CHROMIUM=path."; \
			exit 1; \
		fi; }

clean:
	rm -rf $(VENV) build out

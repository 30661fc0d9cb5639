# `make demo` and `make test` need nothing but Python 3.11-3.13 with venv; the rest they fetch with pip.
#   PYTHON=python3.12   the interpreter to build the environment from (default: the first that fits)
#   VENV=.venv          where the environment lives
#   JOBS=2              parallel workers for the quick tests

VENV ?= .venv
JOBS ?= 2
BIN   = $(VENV)/bin
NOT_RUN = $(VENV)/not-run.txt
PIP   = $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
FITS  = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
            $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)

.PHONY: help app demo gallery lab teach pictures test quick lint clean

help:
	@echo "make demo   environment, then the first notebook on the embedded model: a WAV and a page to listen to"
	@echo "make app    environment, then the panel as a page of its own, in a browser"
	@echo "make lab    environment, then JupyterLab on the notebooks"
	@echo "make gallery  environment, then all notebooks as a site with players, in outputs/gallery"
	@echo "make teach  environment, then notes, slides, handout and exercises of a workshop, in outputs/teach"
	@echo "make test   environment, then every check: formatting, lint, types, all tests"
	@echo "make quick  environment, then the quick tests alone"
	@echo "make clean  remove .venv, outputs and caches"

# Stamps: a second call finds them newer than pyproject.toml and constraints.txt and does nothing.
$(VENV)/.lab: pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
	  echo "No Python 3.11-3.13 with venv found. Install one (on Debian: apt-get install python3-venv)"; \
	  echo "or name it: make demo PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[lab]'
	@touch $@

# tinysoundfont asks for PyAudio, which plays through a sound card, needs a compiler, and is not used here;
# of basic-pitch and musicnn only the weights are used, and not the TensorFlow that they ask for.
$(VENV)/.test: $(VENV)/.lab
	$(PIP) -e '.[lab,train,test,stems]'
	$(PIP) --no-deps tinysoundfont basic-pitch musicnn
	@touch $@

# The page holds its pictures and sounds itself, and fetches nothing. It opens by itself where there is a screen.
demo: $(VENV)/.lab
	$(BIN)/python -m mgkit gallery notebooks/01_demo.ipynb --out outputs --open
	@test -s outputs/demo.wav
	@echo
	@echo "Made by the embedded model just now:"
	@echo "  listen    outputs/demo.wav"
	@echo "  read      outputs/01_demo.html   (the whole notebook with players: open it in a browser)"
	@echo "  your own  make lab               (opens JupyterLab on notebooks/01_demo.ipynb)"
	@echo "  or        $(BIN)/python -m mgkit generate \"calm piano in C major, slow\" -o outputs/mine.wav"

# One page a notebook and an index of them; a notebook that fails is named, and the others come out.
gallery: $(VENV)/.lab
	$(BIN)/python -m mgkit gallery

app: $(VENV)/.lab
	$(BIN)/python -m mgkit app

# From notebooks/teach; PDFs too where Chromium or Chrome is installed.
teach: $(VENV)/.lab
	$(BIN)/python -m mgkit.lab.handouts

# Rooted here, so that outputs/ is in reach of its file browser.
lab: $(VENV)/.lab
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=. notebooks/01_demo.ipynb

# The pictures in the README that are drawn from what the embedded model makes of a sentence, and of a melody.
pictures: $(VENV)/.lab
	$(BIN)/python -c "from mgkit import MusicGen; from mgkit.lab import figures; model = MusicGen.get_pretrained('nano'); \
	  model.set_generation_params(duration=8); text = 'happy folk with violin, with drums, 120 bpm'; \
	  wave, codes = model.generate([text], seed=1, return_tokens=True); \
	  figures.overview(text, codes[0], wave[0], model.sample_rate).savefig('notebooks/images/overview.png', dpi=110)"
	$(BIN)/python -c "from mgkit import MusicGen, audio, melody; from mgkit.lab import figures; model = MusicGen.get_pretrained('nano'); \
	  model.set_generation_params(duration=8); tune, rate = audio.read('data/melodies/scarborough_fair.ogg'); \
	  text = 'happy folk with violin'; [wave] = model.generate_with_chroma([text], tune, rate, seed=5); \
	  pair = [('melody: Scarborough Fair, absent from the training data', tune[:, :wave.shape[-1]]), ('generated: ' + text, wave)]; \
	  figures.chroma([(name, melody.chroma(sound, rate)) for name, sound in pair], rate) \
	  .savefig('notebooks/images/melody.png', dpi=80)"

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Side by side, one thread each.
quick: $(VENV)/.test
	@rm -f $(NOT_RUN)
	OMP_NUM_THREADS=1 NOT_RUN=$(NOT_RUN) $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not browser"

# Then the slow ones (true model sizes, notebooks) one by one on all cores, and those in a browser.
# Tests whose sound font or browser is absent do not fail; what they need is said last.
test: lint quick
	NOT_RUN=$(NOT_RUN) $(BIN)/python -m pytest -m "slow and not browser" --durations=10
	NOT_RUN=$(NOT_RUN) $(BIN)/python -m pytest -m browser --durations=5
	@test ! -s $(NOT_RUN) || { echo; echo "All passed that could run here. Not run:"; cat $(NOT_RUN); }

clean:
	rm -rf .venv .venv-3.* outputs build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

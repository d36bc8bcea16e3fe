# Everything runs in .venv, a virtual environment of this folder's own.
#   make demo GPU=cpu         without the GPU (default: GPU 0, or the CPU where there is none)
#   make demo-vis CLASS=...   for another class of the demo set than nut
#   make setup PYTHON=...     with another Python than python3
#   make test WORKERS=6       with more test processes than 3, which suit two cores: tests often wait for others
PYTHON = python3
GPU = 0
WORKERS = 3
VENV_PYTHON = .venv/bin/python

CLASS = nut

.PHONY: help setup demo demo-vis test fuzz lint docs clean

help:   ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s%s\n", $$1, $$2}' Makefile

setup: .venv/.installed   ## make .venv with the packages of requirements.txt

demo: setup   ## make the demo data set, fill a memory and train UniAD on it, and evaluate: minutes
	$(VENV_PYTHON) tools/make_demo_data.py
	@echo "Memory, which trains nothing: seconds"
	PYTHON=$(VENV_PYTHON) sh experiments/demo/memory/train_torch.sh 1 $(GPU) --overwrite
	@echo "UniAD: minutes"
	PYTHON=$(VENV_PYTHON) sh experiments/demo/train_torch.sh 1 $(GPU) --overwrite
	PYTHON=$(VENV_PYTHON) sh experiments/demo/eval_torch.sh 1 $(GPU)
	@echo "report: experiments/demo/result/report.html   all heat maps: experiments/demo/result/vis_compound"

demo-vis: setup   ## after make demo: train a vis decoder, draw reconstructions and learned queries: minutes
	PYTHON=$(VENV_PYTHON) sh experiments/demo/train_vis_decoder/train_torch.sh 1 $(GPU) $(CLASS) --overwrite
	CUDA_VISIBLE_DEVICES=$(GPU:cpu=) PYTHON=$(VENV_PYTHON) sh experiments/demo/vis_recon/vis_recon_torch.sh $(CLASS)
	CUDA_VISIBLE_DEVICES=$(GPU:cpu=) PYTHON=$(VENV_PYTHON) sh experiments/demo/vis_query/vis_query_torch.sh $(CLASS)
	@echo "reconstructions: experiments/demo/vis_recon/result/$(CLASS)   queries: experiments/demo/vis_query/result/$(CLASS)"

test: lint   ## check the code and run the tests
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest tests --numprocesses=$(WORKERS) --dist=loadfile

fuzz: .venv/.installed-tests   ## attack every reader until one fails or Ctrl-C: a minute each a round, in 16 GB of address space
	ulimit -v 16000000; while FUZZ_SECONDS=60 OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest --exitfirst tests/test_fuzz.py; do :; done

lint: .venv/.installed-tests   ## check the code only
	$(VENV_PYTHON) -m ruff check .
	.venv/bin/lint-imports

docs: .venv/.installed-docs   ## build the documentation as a site, site/index.html
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --quiet --strict
	@echo "documentation: site/index.html   with its search: $(VENV_PYTHON) -m http.server --directory site"

clean:   ## remove the demo's data and results; .venv stays
	rm -rf data/demo experiments/demo/feature_cache experiments/demo/checkpoints experiments/demo/log experiments/demo/result
	rm -rf experiments/demo/memory/checkpoints experiments/demo/memory/log experiments/demo/memory/result
	rm -rf experiments/demo/train_vis_decoder/*/ experiments/demo/vis_*/log experiments/demo/vis_*/result

# The marks of what is installed: made anew only when the list of packages changes.
.venv/.installed: requirements.txt
	@echo "installing the packages of requirements.txt into .venv; the first time this takes minutes"
	@$(PYTHON) -m venv .venv >/dev/null || { echo "error: $(PYTHON) cannot make a virtual environment (Debian and Ubuntu: apt-get \
	install python3-venv); name another with PYTHON=..." >&2; exit 1; }
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.installed-tests: tests/requirements.txt .venv/.installed
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

.venv/.installed-docs: docs/requirements.txt .venv/.installed
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

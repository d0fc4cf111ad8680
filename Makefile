# Needs Python 3.11 or newer, make and git. Another interpreter: make PYTHON=python3.12 quickstart
PYTHON ?= python3

# Every path is relative, so a space in the path of the clone does no harm.
PY := .venv/bin/python
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check
INSTALLED := .venv/installed.stamp
# A file's tests stay together, and files in the order of tests/conftest.py.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Notebooks of committed runs, whose stored outputs are checked.
STORED := pseudo_label_bias other_learners cifar10_lt cifar100_lt stl10_lt semi_aves \
	ablations cpu_study training_curves confusion features open_set

.DEFAULT_GOAL := help
.PHONY: help quickstart test coverage notebooks report lab clean

help: ## list the targets (this text)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(INSTALLED) ## train FixMatch and FixMatch+DASO on long-tailed MNIST; notebook and HTML in runs/quickstart/
	mkdir -p runs/quickstart
	$(PY) -m papermill notebooks/quickstart.ipynb runs/quickstart/quickstart.ipynb --cwd notebooks --progress-bar --log-output
	$(PY) -m nbconvert --to html runs/quickstart/quickstart.ipynb
	@echo "Read runs/quickstart/quickstart.html, or open runs/quickstart/quickstart.ipynb with: make lab"

test: $(INSTALLED) ## lint, unit and reference-number tests, doctests, every notebook
	$(PY) -m ruff check .
	$(PY) -m pytest $(PARALLEL)
	$(PY) -m pytest $(PARALLEL) --nbval-lax --nbval-current-env $(STORED:%=notebooks/%.ipynb)

coverage: $(INSTALLED) ## which lines of dasolib the tests leave out; measuring that takes them a third longer
	$(PY) -m pytest --cov $(PARALLEL)

notebooks: $(INSTALLED) ## execute the stored notebooks anew, where runs have been added
	$(PY) -m nbconvert --to notebook --execute --inplace --log-level=WARN --ExecutePreprocessor.record_timing=False \
		--coalesce-streams $(STORED:%=notebooks/%.ipynb)

report: $(INSTALLED) ## every notebook executed and rendered, and a front page: runs/report/index.html
	$(PY) -m dasolib.report

lab: $(INSTALLED) ## open JupyterLab in this folder
	$(PY) -m jupyterlab

clean: ## remove build products and caches; .venv, data/ and runs/ stay
	rm -rf build dist daso_study.egg-info .pytest_cache .ruff_cache .coverage htmlcov
	find . \( -path ./.git -o -path ./.venv -o -path ./data -o -path ./runs \) -prune -o \
		-type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Brought up to date whenever the lock or pyproject.toml changes. setuptools is in the lock, so building needs no download.
$(INSTALLED): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	"$(PYTHON)" -m venv .venv
	$(PIP_INSTALL) -r requirements.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	touch $(INSTALLED)

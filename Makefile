# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check clean

# `make demo` trains on data that comes with the packages, and prints where the pictures are.
demo: $(VENV)/demo
	$(BIN)/python -m experiments.demo

# `make test` checks style, and then types while it runs every test; what mypy found is printed at the end.
test: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(BIN)/mypy > $(VENV)/mypy.txt 2>&1 & types=$$!; trap 'kill $$types 2> /dev/null; exit 130' INT TERM; \
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/mypy.txt; exit $$((tests | types))

$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# With PyTorch, the reference of many tests and the baseline of the benchmarks, and with what reaches buckets; without
# them these tests are skipped.
$(VENV)/bench: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench,gcs]"
	touch $@

clean:
	rm -rf $(VENV) .venv-* .cache .pytest_cache .ruff_cache .mypy_cache

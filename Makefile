# Works on a machine with Python 3.11+ and make alone. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
T ?= tests
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where it is set, each of the hundreds of processes of a test run would compile all that it imports, 2 s long.
unexport PYTHONDONTWRITEBYTECODE

# An option for a variable, where it was given by name (`make run DATABASE_URL=…`) and is not of the environment.
named = $(if $(findstring command line,$(origin $(1))),$(2)='$(subst ','\'',$(value $(1)))')

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all test-floors test-compose mysql mysql-stop bench chaos soak check lint format docs \
  reference screenshots package audit lock clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make run ONCE=1 ends after one night; make test T=tests/unit runs one part"
	@echo "  make run DATABASE_URL=URL CELERY_BROKER_URL=URL uses yours; what the environment says is ignored"
	@echo "  make run SERVE_PORT=8002 FLOWER_PORT=5556 LMS_PORT=8003 PROMETHEUS_PORT=9091 chooses the ports"
	@echo "  make chaos SEED=2 FAULTS=1000 plays longer; ENGINE=mariadb BROKER=redis NIGHT=7 plays one night again"

setup: $(READY)  ## Make the environment, in .venv

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Making the environment in $(VENV) (a minute the first time) ..."
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make environments. On Debian: apt-get install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

run: setup  ## Run a night end to end on this machine, and stay until Ctrl-C
	@$(BIN)/python -m simulator.demo $(if $(ONCE),--once) $(call named,DATABASE_URL,--database) \
	  $(call named,CELERY_BROKER_URL,--broker) $(call named,LMS_URL,--lms) \
	  $(call named,LMS_PORT,--lms-port) $(call named,FLOWER_PORT,--flower-port) \
	  $(call named,SERVE_PORT,--serve-port) $(call named,PROMETHEUS_PORT,--prometheus-port)

test: setup  ## Run the tests (what is missing is skipped; with CI set, it fails)
	@$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder $(T)

# The floors lie over what `setup` has installed, so that only what is older is fetched.
FLOORS := .venv-floors
$(FLOORS)/.ready: requirements/floors.txt $(READY)
	@rm -rf $(FLOORS)
	@$(PYTHON) -m venv --without-pip $(FLOORS)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  >"$$($(FLOORS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/later.pth"
	@$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
	  -r requirements/floors.txt
	@touch $@

test-floors: setup $(FLOORS)/.ready  ## Run the tests of attacks with the oldest packages that pyproject.toml admits
	@$(FLOORS)/bin/python -m pytest -n auto --dist loadscope tests/security \
	  $(addprefix --ignore=tests/security/test_,accounts.py broker_user.py health.py)  # which are about servers

test-all: setup  ## Run the long tests too, and those of the steps on each kind of database (an hour)
	@EVERY_ENGINE=1 EXAMPLES=75 $(BIN)/python -m pytest -m "" -n auto --dist loadscope --no-loadscope-reorder $(T)

mysql: setup  ## Start the tests' MySQL servers, 9.7 and one set as 8.x (fetches 50 MB the first time; Debian)
	@PYTHONPATH=tests:. $(BIN)/python -m support.mysql_server start

mysql-stop: setup  ## Stop them (remove ~/.cache/license-expiry-mysql to be rid of them)
	@PYTHONPATH=tests:. $(BIN)/python -m support.mysql_server stop

test-compose: setup  ## Run the image and docker-compose.yml on a Docker of its own (root; else it is skipped)
	@PYTHONPATH=tests:. $(BIN)/python -m compose

bench: setup  ## Measure whole nights on real processes (ARGS="--help" tells more)
	@PYTHONPATH=tests:. $(BIN)/python -m bench $(ARGS)

chaos: setup  ## Kill and cut off real processes at random, with people at work; the promises must hold
	@PYTHONPATH=tests:. $(BIN)/python -m chaos --seed $(or $(SEED),1) --faults $(or $(FAULTS),50) \
	  --engine $(or $(ENGINE),both) $(if $(BROKER),--broker $(BROKER)) $(if $(NIGHT),--night $(NIGHT)) $(if $(POINTS),--points $(POINTS))

soak: setup  ## Play 30 nights in a row on real processes, and see whether anything grows (ARGS="--help" tells more)
	@PYTHONPATH=tests:. $(BIN)/python -m soak $(ARGS)

# All texts of the product. PROSE=worker/cli checks one folder.
PROSE ?= README.md CHANGELOG.md docs deploy worker tasks simulator celeryconfig.py
check: setup  ## Run ruff, mypy, the import rules, the prose linter and the check of the workflows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell $(PROSE)

format: setup  ## Put the code in form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The tools that build, check and pin; apart from .venv, so that `setup` stays quick.
PACKAGE := .venv-package
$(PACKAGE)/.ready: requirements/package.txt $(READY)
	@$(PYTHON) -m venv --without-pip --clear $(PACKAGE)
	@$(BIN)/python -m pip --python $(PACKAGE)/bin/python install --quiet --disable-pip-version-check --no-compile \
	  --require-hashes -r requirements/package.txt
	@touch $@

package: setup $(PACKAGE)/.ready  ## Build dist/, the same bytes each time; check, install and test what was built
	@.ci/package
# The docs tools have an environment of their own, so that `make setup` stays fast. Mermaid is served by the site itself.
DOCS := .venv-docs
MERMAID := 11.17.2
MERMAID_SHA256 := 6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd
$(DOCS)/.ready: requirements/docs.txt
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

docs/assets/mermaid.min.js: $(DOCS)/.ready
	@mkdir -p docs/assets
	@npm pack --silent --pack-destination $(DOCS) mermaid@$(MERMAID) >/dev/null
	@echo "$(MERMAID_SHA256)  $(DOCS)/mermaid-$(MERMAID).tgz" | sha256sum --check --quiet
	@tar --extract --gzip --to-stdout --file $(DOCS)/mermaid-$(MERMAID).tgz package/dist/mermaid.min.js >$@.new
	@mv $@.new $@

docs: $(DOCS)/.ready docs/assets/mermaid.min.js  ## Build the documentation into site/; fails on a broken link (needs npm)
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

reference: setup  ## Write what the code says into docs/reference/
	@PYTHONPATH=tests:. $(BIN)/python -m support.reference

screenshots: setup  ## Take the pictures of the docs from the demo (needs chromium)
	@PYTHONPATH=tests:. $(BIN)/python -m support.screenshots

# What each list is made with; requirements/build.txt is what a package is built with.
COMPILE := $(PACKAGE)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet --upgrade
RUN := pyproject.toml --extra mysql --extra postgresql --extra segment
lock: setup $(PACKAGE)/.ready  ## Pin the environment's packages anew, by name and hash
	@$(COMPILE) pyproject.toml --all-extras --group dev --output-file requirements/dev.txt
	@$(COMPILE) $(RUN) --constraint requirements/dev.txt --output-file requirements/run.txt
	@echo setuptools | $(COMPILE) - --constraint requirements/dev.txt --output-file requirements/build.txt
	@$(COMPILE) $(RUN) --resolution lowest-direct --output-file requirements/floors.txt
	@$(COMPILE) --group package --constraint requirements/dev.txt --output-file requirements/package.txt
	@$(COMPILE) --group docs --constraint requirements/dev.txt --output-file requirements/docs.txt

audit: setup  ## Compare the pinned packages with the known advisories, where their service can be reached
	@[ -x .venv-audit/bin/pip-audit ] || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	@PYTHONPATH=tests:. $(BIN)/python -m support.audit .venv-audit/bin/pip-audit requirements/dev.txt requirements/floors.txt

clean:  ## Drop the data and logs of the demo, the bench and the soak
	@rm -rf .demo .bench .soak

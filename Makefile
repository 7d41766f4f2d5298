# make lab     build the lab, tune it, hold the connections, report (root)
# make vm-lab  the same on QEMU virtual machines with kernels of their own (once set up, no root)
# make vm-setup  all that make vm-lab needs: packages and image (root)
# make down    put everything back as it was found (root)
# make vm-down  remove the virtual machines alone
# make test    lint, roles on real hosts, unit and integration tests (root)
# make faults  every fault x every phase of a run on a lab of its own, then the playbooks
#              interrupted at each task (root; an hour); ONLY=pattern for some of them
# make claims  what people say about limits, each measured, with its verdict (root)
# make perf    the engine beside plain C, alternating, in the lab that is up (root)
# make mutants  small faults put into the code one at a time: do the tests notice? (root)
# make soak    a long hold with churn, many clients, runs in a row, on a lab of its own (root)
# Variables: CONNECTIONS=50000 CLIENTS=4 SCENARIO=name SET='{"hold_seconds": 5}',
#            PROFILE=full for claims as large as they are told,
#            ONLY='bench/agent' for the faults that match, of make mutants,
#            and to run a second lab beside the first: LAB=name PREFIX=169.254.200.0/24,
#            or for virtual machines LAB=name PORTS=22400

PYTHON ?= python3
VENV := .venv

# Ansible refuses to start without a UTF-8 locale, which a bare Debian does not set, and ignores
# an ansible.cfg that it found by itself in a directory that others can write to.
export LC_ALL := C.UTF-8
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH):/usr/sbin:/sbin

LAB_NAME := $(or $(LAB),$(shell sed -n 's/^lab_name: *//p' inventory/local/group_vars/all.yml))
EXTRA := $(if $(CONNECTIONS),-e connections=$(CONNECTIONS)) \
	$(if $(CLIENTS),-e lab_clients=$(CLIENTS)) \
	$(if $(SCENARIO),-e scenario=$(SCENARIO)) \
	$(if $(LAB),-e lab_name=$(LAB)) \
	$(if $(PREFIX),-e lab_mgmt_prefix=$(PREFIX)) \
	$(if $(PORTS),-e lab_ssh_port_base=$(PORTS)) \
	$(if $(SET),-e '{"set": $(SET)}')

VM_NAME := $(or $(LAB),$(shell sed -n 's/^lab_name: *//p' inventory/vm/group_vars/all.yml))

.PHONY: help setup dev lab faults claims vm-lab vm-setup down vm-down test lint perf mutants \
	soak root tools
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make\|Variables\|     \)/\1/p' Makefile

root:
	@[ "$$(id -u)" = 0 ] || { \
	  echo "needs root: namespaces, mounts and sysctls are made; run: sudo make $(MAKECMDGOALS)" >&2; \
	  exit 2; }

setup: $(VENV)/.runtime
dev: $(VENV)/.dev

# Stamps come last: what was interrupted is done again. A venv is bound to its path, so one that
# was copied along with the checkout is made anew.
$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  [ "$$(id -u)" = 0 ] || { echo "needs python3-venv: run: sudo make setup" >&2; exit 2; }; \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	    python3 python3-venv >/dev/null; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "needs Python 3.11 or newer; this is $$($(PYTHON) --version)" >&2; exit 2; }
	@echo "Installing the pinned Python packages into $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "Installing the pinned development packages into $(VENV)"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# What tests use of the machine beside what the lab itself installs.
tools: root
	@command -v nft >/dev/null || { \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	    nftables >/dev/null; }

lab: root $(VENV)/.runtime
	@ansible-playbook lab.yml $(EXTRA)

# A lab with all that the claims need. The small profile holds fewer than 100,000 connections.
claims: root $(VENV)/.runtime
	@ansible-playbook playbooks/claims.yml -e lab_routers=1 -e lab_proxies=2 \
	  -e lab_server_addresses=2 -e lab_client_addresses=3 -e lab_proxy_addresses=4 \
	  $(if $(PROFILE),-e profile=$(PROFILE)) $(if $(filter full,$(PROFILE)),,-e connections=100000) \
	  $(EXTRA)

vm-lab: $(VENV)/.runtime
	@ansible-playbook -i inventory/vm lab.yml $(EXTRA)

vm-setup: root $(VENV)/.runtime
	@ansible-playbook -i inventory/vm playbooks/create.yml -e lab_vm_state=prepared $(EXTRA)

# Their disks are thrown away: there is nothing to revert first.
vm-down: $(VENV)/.runtime
	@[ ! -d .lab/$(VM_NAME).vm ] || ansible-playbook -i inventory/vm playbooks/destroy.yml $(EXTRA)

# With no lab of this name on the machine there is no host to revert, only the machine itself:
# without the lab's own link, its management addresses would be looked for outside.
down: root $(VENV)/.runtime
	@status=0; limit=; \
	[ -e /run/connlab/$(LAB_NAME).owner ] || limit="--limit underlay"; \
	ansible-playbook playbooks/revert.yml $$limit $(EXTRA) || status=$$?; \
	ansible-playbook playbooks/destroy.yml $(EXTRA) || status=$$?; \
	$(MAKE) --no-print-directory vm-down || status=$$?; \
	exit $$status

lint: $(VENV)/.dev
	@ruff check . && ruff format --check .
	@mypy
	@python tests/typing/check.py
	@yamllint --strict .
	@ansible-lint --profile production --strict

# pytest comes last: its summary is the last thing to be seen.
test: root tools $(VENV)/.dev lint
	@molecule test --all
	@pytest

faults: root tools $(VENV)/.dev
	@PYTHONPATH=$(CURDIR) python tests/faults/matrix.py $(or $(LAB),faults) \
	  -e lab_mgmt_prefix=$(or $(PREFIX),169.254.204.0/24) -e connections=20000 \
	  --only '$(ONLY)' --results results/faults.md

# Needs a lab that is up and tuned; a million connections several times over.
perf: root $(VENV)/.runtime
	@python -m bench.perf

# Needs no lab; a quarter of an hour where the machine does nothing else, and an hour at the most.
mutants: root tools $(VENV)/.dev
	@python tests/mutants/run.py $(if $(ONLY),--only '$(ONLY)')

# Builds a lab named soak beside any other and removes it; 25 minutes, and an hour at the most.
soak: root $(VENV)/.runtime
	@timeout --foreground --signal=INT --kill-after=600 3600 python -m bench.perf.soak \
	  $(if $(LAB),--lab $(LAB)) $(if $(PREFIX),--prefix $(PREFIX)) \
	  $(if $(CONNECTIONS),--connections $(CONNECTIONS)) $(if $(SECONDS),--seconds $(SECONDS))

# What a person does with fusesnap's source. `make help` lists it.
SHELL := /bin/bash
PREFIX ?= /usr/local
DESTDIR ?=
SWIFT ?= swift
SCRIPTS := Tests/Scripts

# Where benchmarks and campaigns make their files.
BASE ?= /tmp
# Of the campaigns: how often (100 kills, 10 snapshots of each application), and the I/O policy.
ROUNDS ?=
POLICY ?= write-through
# Of bench and check-scale: how many files the tree has.
FILES ?= 1000000
# Of check-cut: it ends after STARTS snapshots, or after SECONDS where that is given.
DIR ?= $(BASE)
STARTS ?= 1000
SECONDS ?=
SEED ?=
CUTLOAD_OPTIONS ?=
# Of check-real: which applications, with how much data (pgbench's scale factor), in which mode.
APPS ?= postgresql,mariadb,sqlite,image
SCALE ?= 10
MODE ?= preserve
REAL_OPTIONS ?=

.PHONY: help build test demo install uninstall lint format clean bench
.PHONY: check-kill check-cut check-scale check-real require require-test require-demo require-real

help:
	@echo 'make build      build fusesnap in release (.build/release/fusesnap)'
	@echo 'make test       install what is missing (as root) and run all tests'
	@echo 'make demo       see a torn backup without fusesnap, and an exact one with it'
	@echo 'make bench      measure the stall of a start, and what a tree of FILES costs (BASE=DIR: where)'
	@echo 'make check-scale run the tests of size with FILES files, and 1,000 starts and stops (BASE)'
	@echo 'make check-kill kill daemon and helper ROUNDS times each while a snapshot starts (POLICY, BASE)'
	@echo 'make check-cut  check STARTS snapshots under load (POLICY, DIR, SECONDS, SEED, CUTLOAD_OPTIONS)'
	@echo 'make check-real back up databases and disk images at work, ROUNDS times each (APPS, SCALE, POLICY, BASE, MODE,'
	@echo '                SECONDS, SEED); installs PostgreSQL, MariaDB, ... as root'
	@echo 'make install    install to $$(DESTDIR)$$(PREFIX), /usr/local by default'
	@echo 'make uninstall  remove what install put there'
	@echo 'make lint       check the style with swift format'
	@echo 'make format     apply it'
	@echo 'make clean      remove what was built'

require:
	@$(SCRIPTS)/require build

require-test:
	@$(SCRIPTS)/require build test programs

require-demo:
	@$(SCRIPTS)/require build demo

require-real:
	@$(SCRIPTS)/require build demo real

build: require
	$(SWIFT) build -c release --static-swift-stdlib --product fusesnap

# The mounted tests run the binary of the same build. One test at a time: they share the machine's mounts.
test: require-test
	$(SWIFT) build --build-tests
	$(SWIFT) test --skip-build --no-parallel

check-cut: build
	$(SWIFT) build -c release --product cutload
	$(SCRIPTS)/check-cut .build/release/fusesnap .build/release/cutload '$(DIR)' io=$(POLICY) \
		--starts $(STARTS) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(CUTLOAD_OPTIONS)

check-real: require-real build
	Tests/Real/check-real .build/release/fusesnap --base '$(BASE)' --apps $(APPS) --rounds $(or $(ROUNDS),10) \
		$(if $(SECONDS),--seconds $(SECONDS)) --scale $(SCALE) --mode $(MODE) --mount-options io=$(POLICY) \
		$(if $(SEED),--seed $(SEED)) $(REAL_OPTIONS)

demo: require-demo build
	$(SCRIPTS)/demo .build/release/fusesnap

bench: build
	Benchmarks/stall .build/release/fusesnap $(BASE)/fusesnap-bench $(POLICIES)
	Benchmarks/scale .build/release/fusesnap $(BASE)/fusesnap-scale $(FILES)

check-scale: require-test
	$(SWIFT) build --build-tests
	FUSESNAP_TEST_BASE=$(BASE) FUSESNAP_TEST_FILES=$(FILES) FUSESNAP_TEST_ROUNDS=1000 FUSESNAP_TEST_HANG_SECONDS=3600 \
		$(SWIFT) test --skip-build --no-parallel --filter ScaleTests

check-kill: require-test
	$(SWIFT) build --build-tests
	FUSESNAP_TEST_BASE=$(BASE) FUSESNAP_TEST_ROUNDS=$(or $(ROUNDS),100) FUSESNAP_TEST_MOUNT_OPTIONS=io=$(POLICY) \
		$(SWIFT) test --skip-build --no-parallel --filter FreezeTests/killed

install: build
	install -D -m 755 .build/release/fusesnap $(DESTDIR)$(PREFIX)/bin/fusesnap
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/share/fusesnap/hooks Hooks/*.sample

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/fusesnap
	rm -rf $(DESTDIR)$(PREFIX)/share/fusesnap/hooks

lint: require
	$(SWIFT) format lint --strict --recursive Sources Tests Package.swift

format: require
	$(SWIFT) format --in-place --recursive Sources Tests Package.swift

clean:
	$(SWIFT) package clean
	rm -rf .build

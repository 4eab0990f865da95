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
# Of check-crash, check-damage and check-faults: so many cases of each kind, at random, instead of all; of check-power: so
# many power cuts in each mode on each file system.
SAMPLE ?=
CUTS ?= 50
# Of check-real: which applications, with how much data (pgbench's scale factor), in which mode.
APPS ?= postgresql,mariadb,sqlite,image
SCALE ?= 10
MODE ?= preserve
REAL_OPTIONS ?=

.PHONY: help build test demo picture install uninstall deb check-package check-systemd lint format clean bench
.PHONY: bench-scale
.PHONY: check-kill check-cut check-scale check-real require require-test require-demo require-real
.PHONY: check-crash check-power check-damage check-faults check-sanitizers soak

help:
	@echo 'make build      build fusesnap in release (.build/release/fusesnap)'
	@echo 'make test       install what is missing (as root) and run all tests'
	@echo 'make demo       see a torn backup without fusesnap, and an exact one with it'
	@echo 'make picture    draw Docs/torn.svg from a real run (BASE, ROUNDS)'
	@echo 'make bench      measure the speed of fusesnap and its peers into Docs/Benchmarks.md (as root; BASE, ROUNDS, QUICK,'
	@echo '                SUITES, ROWS, SYSTEMS)'
	@echo 'make bench-scale measure the stall of a start, what a tree of FILES costs, a single pass, an export, a merge'
	@echo 'make check-scale run the tests of size with FILES files, and 1,000 starts and stops (BASE)'
	@echo 'make check-kill kill daemon and helper ROUNDS times each while a snapshot starts (POLICY, BASE)'
	@echo 'make check-cut  check STARTS snapshots under load (POLICY, DIR, SECONDS, SEED, CUTLOAD_OPTIONS)'
	@echo 'make check-real back up databases and disk images at work, ROUNDS times each (APPS, SCALE, POLICY, BASE, MODE,'
	@echo '                SECONDS, SEED); installs PostgreSQL, MariaDB, ... as root'
	@echo 'make check-crash  kill the daemon at every step of what it does, and look what is left (SAMPLE, SEED, BASE)'
	@echo 'make check-power  cut the power CUTS times in each mode on ext4 and XFS (SEED, BASE)'
	@echo 'make check-damage damage the store that a killed daemon left in every way (SAMPLE, SEED, BASE)'
	@echo 'make check-faults let every call of the daemon fail; full, read-only and vanished disks (SAMPLE, SEED, BASE)'
	@echo 'make soak       operations, snapshots, kills and mounts at random, for SECONDS (SEED, BASE)'
	@echo 'make check-sanitizers  build with the address and thread sanitizers and run the tests'
	@echo 'make install    install to $$(DESTDIR)$$(PREFIX), /usr/local by default'
	@echo 'make deb        build a Debian package (DEBDIR: where to)'
	@echo 'make check-package  build that package, install it, use it and purge it (as root)'
	@echo 'make check-systemd  boot the units and a fstab in a container, use them, shut down (as root)'
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

SAMPLED = --base '$(BASE)' $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

check-crash: build
	for mode in redirect preserve; do \
		Tests/Crash/check-crash .build/release/fusesnap --mode $$mode $(SAMPLED) || exit 1; \
	done

check-power: build
	$(SCRIPTS)/require xfs
	Tests/Crash/check-power .build/release/fusesnap --base '$(BASE)' --memory --cuts $(CUTS) $(if $(SEED),--seed $(SEED))

check-damage: build
	Tests/Crash/check-damage .build/release/fusesnap $(SAMPLED) $(if $(SAMPLE),--random $(SAMPLE))

check-faults: build
	$(SCRIPTS)/require xfs
	for mode in redirect preserve; do \
		Tests/Crash/check-faults .build/release/fusesnap --mode $$mode $(SAMPLED) || exit 1; \
	done

soak: build
	Tests/Crash/soak .build/release/fusesnap --base '$(BASE)' --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

check-sanitizers: require-test
	Tests/Crash/check-sanitizers $(SANITIZERS)

demo: require-demo build
	$(SCRIPTS)/demo .build/release/fusesnap

# Docs/torn.svg, from a real run of ROUNDS backups without fusesnap, and as many with it.
picture: build
	$(SCRIPTS)/require demo picture
	$(SCRIPTS)/picture .build/release/fusesnap Docs/torn.svg --base '$(BASE)' $(if $(ROUNDS),--rounds $(ROUNDS))

# SUITES, ROWS and SYSTEMS pick from what `Benchmarks/speed list` names; QUICK=8 takes an eighth of the data. As root.
BENCH := /tmp/fusesnap-bench.json
bench: build
	$(SCRIPTS)/require bench
	Benchmarks/speed run .build/release/fusesnap --base '$(BASE)' --rounds $(or $(ROUNDS),5) --quick $(or $(QUICK),1) \
		--suites '$(SUITES)' --rows '$(ROWS)' --systems '$(SYSTEMS)' --output '$(BENCH)'
	Benchmarks/speed run .build/release/fusesnap --base '$(BASE)' --rounds 1 --quick 8 --requests \
		--suites '$(SUITES)' --rows '$(ROWS)' --output '$(BENCH).requests' \
		--systems 'fusesnap-ext4-auto,fusesnap-ext4-write-through,fusesnap-xfs-passthrough'
	Benchmarks/speed report '$(BENCH)' --requests '$(BENCH).requests' --document Docs/Benchmarks.md

# For how long a start stalls applications, and what a daemon takes of the machine for FILES files.
bench-scale: build
	Benchmarks/stall .build/release/fusesnap $(BASE)/fusesnap-bench $(POLICIES)
	Benchmarks/scale .build/release/fusesnap $(BASE)/fusesnap-scale $(FILES)
	test "$$(id -u)" != 0 || Benchmarks/passes .build/release/fusesnap $(BASE)/fusesnap-passes
	test "$$(id -u)" != 0 || Benchmarks/areas .build/release/fusesnap $(BASE)/fusesnap-areas 1000000 $(FILES)
	test "$$(id -u)" != 0 || Benchmarks/export .build/release/fusesnap $(BASE)/fusesnap-export
	test "$$(id -u)" != 0 || Benchmarks/merge .build/release/fusesnap $(BASE)/fusesnap-merge

check-scale: require-test
	$(SWIFT) build --build-tests
	FUSESNAP_TEST_BASE=$(BASE) FUSESNAP_TEST_FILES=$(FILES) FUSESNAP_TEST_ROUNDS=1000 FUSESNAP_TEST_HANG_SECONDS=3600 \
		$(SWIFT) test --skip-build --no-parallel --filter ScaleTests

check-kill: require-test
	$(SWIFT) build --build-tests
	FUSESNAP_TEST_BASE=$(BASE) FUSESNAP_TEST_ROUNDS=$(or $(ROUNDS),100) FUSESNAP_TEST_MOUNT_OPTIONS=io=$(POLICY) \
		$(SWIFT) test --skip-build --no-parallel --filter FreezeTests/killed

# Where mount(8) looks for its helpers.
MOUNTDIR ?= $(if $(shell test -L /sbin && echo merged),/usr/sbin,/sbin)
SYSCONFDIR ?= /etc
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
# What is installed; another binary than that of the build is taken as it is.
BINARY ?= .build/release/fusesnap
ifeq ($(origin BINARY),file)
# sudo's PATH may lack Swift: then what a user has built is taken.
ifneq ($(if $(shell command -v $(SWIFT)),,$(if $(wildcard $(BINARY)),built)),built)
install deb: build
endif
endif

DOCDIR = $(PREFIX)/share/doc/fusesnap
# Those for users.
DOCUMENTS = $(addprefix Docs/,Recipes.md Hooks.md Json.md Control.md Semantics.md Conformance.md)
# Samples of hooks.
HOOKDIR = $(PREFIX)/share/fusesnap/hooks
BASHDIR = $(PREFIX)/share/bash-completion/completions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d
UNITDIR = $(PREFIX)/lib/systemd
# The files that install makes, but for those in /etc that the administrator may have changed.
INSTALLED = $(PREFIX)/bin/fusesnap $(MOUNTDIR)/mount.fusesnap $(MOUNTDIR)/mount.fuse.fusesnap \
	$(UNITDIR)/system/fusesnap@.service $(UNITDIR)/user/fusesnap@.service \
	$(BASHDIR)/fusesnap $(ZSHDIR)/_fusesnap $(FISHDIR)/fusesnap.fish \
	$(PREFIX)/share/man/man8/mount.fuse.fusesnap.8 \
	$(foreach page,$(notdir $(wildcard Docs/man/*)),$(PREFIX)/share/man/man$(patsubst .%,%,$(suffix $(page)))/$(page))

install:
	install -D -m 755 '$(BINARY)' '$(DESTDIR)$(PREFIX)/bin/fusesnap'
	install -d '$(DESTDIR)$(MOUNTDIR)'
	ln -sfr '$(DESTDIR)$(PREFIX)/bin/fusesnap' '$(DESTDIR)$(MOUNTDIR)/mount.fusesnap'
	ln -sf mount.fusesnap '$(DESTDIR)$(MOUNTDIR)/mount.fuse.fusesnap'
	for unit in system user; do \
		install -d '$(DESTDIR)$(UNITDIR)'/$$unit; \
		sed -e 's|@BINDIR@|$(PREFIX)/bin|' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|' \
			Packaging/systemd/$$(test $$unit = user && echo user/)fusesnap@.service.in \
			>'$(DESTDIR)$(UNITDIR)'/$$unit/fusesnap@.service || exit 1; \
	done
	install -d '$(DESTDIR)$(BASHDIR)' '$(DESTDIR)$(ZSHDIR)' '$(DESTDIR)$(FISHDIR)'
	'$(BINARY)' --generate-completion-script bash | sed '1{/^#!/d}' >'$(DESTDIR)$(BASHDIR)/fusesnap'
	'$(BINARY)' --generate-completion-script zsh >'$(DESTDIR)$(ZSHDIR)/_fusesnap'
	'$(BINARY)' --generate-completion-script fish >'$(DESTDIR)$(FISHDIR)/fusesnap.fish'
	for page in Docs/man/*; do \
		install -D -m 644 $$page '$(DESTDIR)$(PREFIX)/share/man'/man$${page##*.}/$${page##*/} || exit 1; \
	done
	ln -sf mount.fusesnap.8 '$(DESTDIR)$(PREFIX)/share/man/man8/mount.fuse.fusesnap.8'
	install -d '$(DESTDIR)$(SYSCONFDIR)/fusesnap/hooks.d'
	test -e '$(DESTDIR)$(SYSCONFDIR)/default/fusesnap' || \
		install -D -m 644 Packaging/default '$(DESTDIR)$(SYSCONFDIR)/default/fusesnap'
	install -d '$(DESTDIR)$(DOCDIR)/examples'
	install -m 644 Packaging/examples/* '$(DESTDIR)$(DOCDIR)/examples'
	install -m 644 $(DOCUMENTS) '$(DESTDIR)$(DOCDIR)'
	install -D -m 755 -t '$(DESTDIR)$(HOOKDIR)' Hooks/*.sample

# What the administrator has put into /etc/fusesnap stays.
uninstall:
	rm -f $(foreach file,$(INSTALLED),'$(DESTDIR)$(file)')
	rm -rf '$(DESTDIR)$(DOCDIR)' '$(DESTDIR)$(HOOKDIR)'
	! cmp -s Packaging/default '$(DESTDIR)$(SYSCONFDIR)/default/fusesnap' || rm '$(DESTDIR)$(SYSCONFDIR)/default/fusesnap'
	for directory in hooks.d ''; do \
		test ! -d '$(DESTDIR)$(SYSCONFDIR)/fusesnap'/$$directory || \
			rmdir --ignore-fail-on-non-empty '$(DESTDIR)$(SYSCONFDIR)/fusesnap'/$$directory; \
	done

# The package lands in the directory that DEBDIR names.
DEBDIR ?= .build
deb:
	$(SCRIPTS)/require deb
	mkdir -p '$(DEBDIR)'
	Packaging/deb/build '$(BINARY)' '$(DEBDIR)'

# Builds the package, and as root installs it, uses it and purges it.
check-package: deb
	$(SCRIPTS)/check-package "$$(ls -t '$(DEBDIR)'/fusesnap_*.deb | head -n 1)"

# Boots systemd in a container with what install makes.
check-systemd: build
	Tests/Systemd/check-systemd .build/release/fusesnap

lint: require
	$(SWIFT) format lint --strict --recursive Sources Tests Package.swift

format: require
	$(SWIFT) format --in-place --recursive Sources Tests Package.swift

clean:
	$(SWIFT) package clean
	rm -rf .build

# What a person does with fusesnap's source. `make help` lists it.
SHELL := /bin/bash
PREFIX ?= /usr/local
DESTDIR ?=
SWIFT ?= swift
SCRIPTS := Tests/Scripts

# Where benchmarks and campaigns make their files.
BASE ?= /tmp
# Of the campaigns: how often, and the first seed.
ROUNDS ?= 100
POLICY ?= write-through
# Of check-cut: it ends after STARTS snapshots, or after SECONDS where that is given.
DIR ?= $(BASE)
STARTS ?= 1000
SECONDS ?=
SEED ?=
CUTLOAD_OPTIONS ?=

.PHONY: help build test demo install uninstall deb lint format clean require require-test require-demo bench check-kill check-cut

help:
	@echo 'make build      build fusesnap in release (.build/release/fusesnap)'
	@echo 'make test       install what is missing (as root) and run all tests'
	@echo 'make demo       see a torn backup without fusesnap, and an exact one with it'
	@echo 'make bench      measure how long a start stalls applications (BASE=DIR: where)'
	@echo 'make check-kill kill daemon and helper ROUNDS times each while a snapshot starts (POLICY, BASE)'
	@echo 'make check-cut  check STARTS snapshots under load (POLICY, DIR, SECONDS, SEED, CUTLOAD_OPTIONS)'
	@echo 'make install    install to $$(DESTDIR)$$(PREFIX), /usr/local by default'
	@echo 'make deb        build a Debian package (DEBDIR: where to)'
	@echo 'make uninstall  remove what install put there'
	@echo 'make lint       check the style with swift format'
	@echo 'make format     apply it'
	@echo 'make clean      remove what was built'

require:
	@$(SCRIPTS)/require build

require-test:
	@$(SCRIPTS)/require build test

require-demo:
	@$(SCRIPTS)/require build demo

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

demo: require-demo build
	$(SCRIPTS)/demo .build/release/fusesnap

bench: build
	Benchmarks/stall .build/release/fusesnap $(BASE)/fusesnap-bench $(POLICIES)

check-kill: require-test
	$(SWIFT) build --build-tests
	FUSESNAP_TEST_BASE=$(BASE) FUSESNAP_TEST_ROUNDS=$(ROUNDS) FUSESNAP_TEST_MOUNT_OPTIONS=io=$(POLICY) \
		$(SWIFT) test --skip-build --no-parallel --filter FreezeTests/killed

# Where mount(8) looks for its helpers.
MOUNTDIR ?= $(if $(shell test -L /sbin && echo merged),/usr/sbin,/sbin)
SYSCONFDIR ?= /etc
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
# What is installed; another binary than that of the build is taken as it is.
BINARY ?= .build/release/fusesnap
ifeq ($(origin BINARY),file)
install deb: build
endif

DOCDIR = $(PREFIX)/share/doc/fusesnap
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

# What the administrator has put into /etc/fusesnap stays.
uninstall:
	rm -f $(foreach file,$(INSTALLED),'$(DESTDIR)$(file)')
	rm -rf '$(DESTDIR)$(DOCDIR)'
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

lint: require
	$(SWIFT) format lint --strict --recursive Sources Tests Package.swift

format: require
	$(SWIFT) format --in-place --recursive Sources Tests Package.swift

clean:
	$(SWIFT) package clean
	rm -rf .build

# make                 builds ./joold, static
# make install         copies it, its manual, unit, completions and examples; DESTDIR and PREFIX say where
# make uninstall       removes all of that
# make test            everything, as root on Debian 12: there are network namespaces and guests with the real Jool
# make test-short      what is quick of it: format, vet, staticcheck, shellcheck, unit tests with the race detector
# make test-long       the simulated cluster, thousands of stories of it
# make test-lab        the scenarios in the guests alone
# make lab-faults      those in which something breaks under the daemon
# make fuzz            each fuzz test for FUZZTIME
# make fuzz-long       the same for a night: ten minutes each, or FUZZTIME
# make demo            the failover of Jool's tutorial, shown to a person
# make lab             a shell in the guest's network, with Jool LAB_VERSION
# make bench           the benchmarks, as root and beside the run that was recorded last; BENCH=REGEXP for some of them
# make bench-record    records that run, for docs/BENCHMARKS.md and to be compared with
# make bench-lab       ours against the C daemon, on real Jool; the tables of docs/BENCHMARKS.md
# make clean           removes ./joold and bench.out; what the lab built stays in its cache

PREFIX = /usr/local
BINDIR = $(PREFIX)/bin
DATADIR = $(PREFIX)/share
MANDIR = $(DATADIR)/man
DOCDIR = $(DATADIR)/doc/joold
UNITDIR = $(PREFIX)/lib/systemd/system
BASHDIR = $(DATADIR)/bash-completion/completions
ZSHDIR = $(DATADIR)/zsh/site-functions
FISHDIR = $(DATADIR)/fish/vendor_completions.d

VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME = 5s
BENCH = .
# Some of them are not a run to be recorded.
BENCHOUT = $(if $(filter .,$(BENCH)),bench.out,bench-some.out)
LAB_VERSION = 4.1.15

GO = scripts/go
# The version comes from VERSION alone: go's own stamp fails in a work tree that another user owns.
export GOFLAGS += -buildvcs=false

.PHONY: all build install uninstall test test-short lint unit test-long test-install fuzz fuzz-long lab test-lab lab-faults demo bench bench-record bench-lab clean help

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o joold ./cmd/joold

# For install, which should find it built: go is not for root to run.
joold:
	$(MAKE) build

install: joold
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(UNITDIR) \
		$(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR) $(DESTDIR)$(DOCDIR)/examples
	install -m 755 joold $(DESTDIR)$(BINDIR)/joold
	install -m 644 docs/joold.8 $(DESTDIR)$(MANDIR)/man8/joold.8
	sed 's,/usr/local/bin,$(BINDIR),' contrib/systemd/joold@.service >$(DESTDIR)$(UNITDIR)/joold@.service
	chmod 644 $(DESTDIR)$(UNITDIR)/joold@.service
	install -m 644 contrib/completion/joold.bash $(DESTDIR)$(BASHDIR)/joold
	install -m 644 contrib/completion/_joold $(DESTDIR)$(ZSHDIR)/_joold
	install -m 644 contrib/completion/joold.fish $(DESTDIR)$(FISHDIR)/joold.fish
	install -m 644 LICENSE README.md CHANGELOG.md docs/*.md $(DESTDIR)$(DOCDIR)
	cp -R contrib/. $(DESTDIR)$(DOCDIR)/examples

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/joold $(DESTDIR)$(MANDIR)/man8/joold.8 $(DESTDIR)$(UNITDIR)/joold@.service \
		$(DESTDIR)$(BASHDIR)/joold $(DESTDIR)$(ZSHDIR)/_joold $(DESTDIR)$(FISHDIR)/joold.fish
	rm -rf $(DESTDIR)$(DOCDIR)

test: test-short test-install fuzz test-lab

test-short: lint unit

# With the tag lab, which only adds files: what the guest runs is looked at too.
lint:
	@scripts/apt-needs shellcheck
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .); \
	[ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet -tags lab ./...
	$(GO) tool -modfile=tools/go.mod staticcheck -tags lab ./...
	shellcheck -S warning $$(git grep -lE '^#!/bin/(ba)?sh|^#!/usr/bin/env (ba)?sh|^#!/sbin/openrc-run')

# The race detector needs a C compiler; the rest are the programs that read what stands in contrib and docs.
unit:
	@scripts/apt-needs gcc libc6-dev iproute2 iputils-ping nftables keepalived systemd groff-base man-db bash zsh fish
	$(GO) test -race ./...

# What is installed is static, finds its program, and can be removed, all of it.
test-install:
	@set -eu; stage=$$(mktemp -d); trap 'rm -rf "$$stage"' EXIT; \
	set -- --no-print-directory DESTDIR="$$stage" PREFIX=/usr; \
	$(MAKE) build; $(MAKE) "$$@" install >/dev/null; \
	"$$stage/usr/bin/joold" version; \
	if ldd "$$stage/usr/bin/joold" >/dev/null 2>&1; then echo "joold is not static"; exit 1; fi; \
	grep -q '^ExecStart=/usr/bin/joold ' "$$stage/usr/lib/systemd/system/joold@.service"; \
	$(MAKE) "$$@" uninstall >/dev/null; \
	left=$$(find "$$stage" -type f); \
	[ -z "$$left" ] || { echo "make uninstall leaves: $$left"; exit 1; }

fuzz:
	scripts/fuzz $(FUZZTIME)

fuzz-long: FUZZTIME = 10m
fuzz-long: fuzz

# A story that fails says how to replay it.
test-long: SEEDS = 3000
test-long:
	$(GO) test -count=1 -timeout 10h ./internal/cluster -run WhateverHappens -sim.first $$(date +%s) -sim.seeds $(SEEDS)

test-lab:
	$(GO) test -tags lab -count=1 -timeout 2h -p 1 ./test/lab/vm ./test/lab

lab-faults:
	$(GO) test -tags lab -count=1 -timeout 2h ./test/lab -run 'TestLab//^Fault'

lab:
	$(GO) run -tags lab ./test/lab/shell -jool $(LAB_VERSION)

demo:
	$(GO) run -tags lab ./test/lab/demo -jool $(LAB_VERSION)

# One package at a time, and each benchmark as often as benchstat wants for its medians. All of them take
# a quarter of an hour.
bench:
	@scripts/apt-needs iproute2
	$(GO) test -p 1 -run '^$$' -bench '$(BENCH)' -benchtime 0.3s -count 8 -timeout 2h ./internal/... >bench.new || { cat bench.new; exit 1; }
	@grep -Ev "^(ok|PASS|[?])" bench.new >$(BENCHOUT); rm bench.new
	$(GO) tool -modfile=tools/go.mod benchstat recorded=docs/bench/native.txt now=$(BENCHOUT)

bench-record:
	@[ -s bench.out ] || { echo "there is no run to record: make bench first"; exit 1; }
	cp bench.out docs/bench/native.txt

bench-lab:
	$(GO) run ./test/lab/bench

clean:
	rm -f joold bench.new bench.out bench-some.out

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

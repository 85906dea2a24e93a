# make               builds ./joold, static
# make install       DESTDIR, PREFIX and the directories below say where to
# make test          everything; as root on Debian 12 or kin: the tests make network namespaces, and a guest with the real Jool
# make test-short    what is quick: format, vet, staticcheck, unit tests
# make demo          the failover, shown to a person
# make help          the rest

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
LAB_VERSION = 4.1.15

GO = scripts/go
# The version comes from VERSION alone: go's own stamp fails in a work tree that another user owns.
export GOFLAGS += -buildvcs=false

.PHONY: all build install uninstall test test-short lint unit test-install fuzz lab test-lab demo bench clean help

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o joold ./cmd/joold

# For install, which should find it built: go is not for root to run.
joold:
	$(MAKE) build

install: joold
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(UNITDIR) \
		$(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR) $(DESTDIR)$(DOCDIR)
	install -m 755 joold $(DESTDIR)$(BINDIR)/joold
	install -m 644 docs/joold.8 $(DESTDIR)$(MANDIR)/man8/joold.8
	sed 's,/usr/local/bin,$(BINDIR),' contrib/systemd/joold@.service >$(DESTDIR)$(UNITDIR)/joold@.service
	chmod 644 $(DESTDIR)$(UNITDIR)/joold@.service
	install -m 644 contrib/completion/joold.bash $(DESTDIR)$(BASHDIR)/joold
	install -m 644 contrib/completion/_joold $(DESTDIR)$(ZSHDIR)/_joold
	install -m 644 contrib/completion/joold.fish $(DESTDIR)$(FISHDIR)/joold.fish
	install -m 644 LICENSE README.md CHANGELOG.md docs/*.md $(DESTDIR)$(DOCDIR)
	cp -R --no-preserve=ownership contrib $(DESTDIR)$(DOCDIR)/examples

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
	shellcheck -S warning $$(git grep -lE '^#!/bin/(ba)?sh|^#!/usr/bin/env (ba)?sh')

# The race detector needs a C compiler; the rest are the programs that read what stands in contrib and docs.
unit:
	@scripts/apt-needs gcc libc6-dev iproute2 iputils-ping nftables keepalived systemd groff-base
	$(GO) test -race ./...

# What is installed can be removed, all of it.
test-install:
	@stage=$$(mktemp -d) && trap 'rm -rf "$$stage"' EXIT && \
	$(MAKE) --no-print-directory build && \
	$(MAKE) --no-print-directory install DESTDIR="$$stage" PREFIX=/usr >/dev/null && \
	"$$stage/usr/bin/joold" version && \
	grep -q '^ExecStart=/usr/bin/joold ' "$$stage/usr/lib/systemd/system/joold@.service" && \
	$(MAKE) --no-print-directory uninstall DESTDIR="$$stage" PREFIX=/usr >/dev/null && \
	left=$$(find "$$stage" -type f) && \
	[ -z "$$left" ] || { echo "make uninstall leaves: $$left"; exit 1; }

# Each fuzz test for FUZZTIME.
fuzz:
	scripts/fuzz $(FUZZTIME)

# The scenarios on the real module, each version.
test-lab:
	$(GO) test -tags lab -count=1 -timeout 2h ./test/lab/...

# A shell in the guest's network, with Jool LAB_VERSION.
lab:
	$(GO) run -tags lab ./test/lab/shell -jool $(LAB_VERSION)

# The failover of the tutorial, shown to a person.
demo:
	$(GO) run -tags lab ./test/lab/demo -jool $(LAB_VERSION)

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

clean:
	rm -f joold
	$(GO) clean -testcache

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile
	@awk '/^#/ { why = substr($$0, 3); next } /^(lint|unit|test-install|fuzz|test-lab|lab|bench|clean|uninstall):/ { sub(":.*", ""); printf "make %-13s %s\n", $$0, why } { why = "" }' Makefile

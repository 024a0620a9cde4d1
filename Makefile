# SPDX-License-Identifier: MIT
# What goes where when this is installed; all packages use it.

VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' generator/wsl-binfmt-generator)
DESTDIR =
PREFIX = /usr

.PHONY: demo check install

install:
	install -D -m 755 generator/wsl-binfmt-generator $(DESTDIR)$(PREFIX)/lib/systemd/system-generators/wsl-binfmt-generator
	install -D -m 755 generator/wsl-binfmt $(DESTDIR)$(PREFIX)/bin/wsl-binfmt
	install -d $(DESTDIR)$(PREFIX)/lib/wsl-binfmt-generator/wsl_binfmt
	install -m 644 generator/wsl_binfmt/*.py $(DESTDIR)$(PREFIX)/lib/wsl-binfmt-generator/wsl_binfmt
	sed -i 's/@VERSION@/$(VERSION)/' $(DESTDIR)$(PREFIX)/lib/wsl-binfmt-generator/wsl_binfmt/command.py
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system units/*.mount units/*.path units/*.service
	install -m 644 units/status $(DESTDIR)$(PREFIX)/lib/wsl-binfmt-generator/status
	/usr/bin/python3 -m compileall -q -s '$(DESTDIR)' -p / $(DESTDIR)$(PREFIX)/lib/wsl-binfmt-generator

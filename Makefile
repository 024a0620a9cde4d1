# SPDX-License-Identifier: MIT
# Targets for developers; and `make install`, which all packages use.

VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' generator/wsl-binfmt-generator)
DESTDIR =
PREFIX = /usr
# Whether `install` compiles the Python modules. A package may compile them when it is installed.
COMPILE = yes

.PHONY: help deps needs install uninstall demo shell test unit check check-kernels check-pythons faults bench pictures fuzz simulate

help:
	@echo 'make deps TARGET     as root, install the Debian packages that TARGET needs, then make TARGET; without TARGET, for all'
	@echo 'make demo            show a Windows program in a distro without this package, and in one with it'
	@echo 'make shell           boot a distro, and run a shell in it; WSL=none, 2.0.9, 2.6.1, 2.6, 3.0 or read-only'
	@echo 'make install         install this package; DESTDIR= and PREFIX=/usr'
	@echo 'make uninstall       remove what make install has installed'
	@echo 'make test            run the tests that need no root'
	@echo 'make check           run all tests'
	@echo 'make check-kernels   run the tests that depend on the kernel, on other kernels; SUITES=bookworm'
	@echo 'make faults          make each system call of the programs fail'
	@echo 'make fuzz            read mutated files; SECONDS=60 for each of three kinds'
	@echo 'make simulate        simulate histories of many distros; SECONDS=3600, or SEED=check-7 to show one'
	@echo 'make check-pythons   run the unit tests on each Python of this machine'
	@echo 'make bench           measure, into bench/'
	@echo 'make pictures        draw the terminals of the documentation, into docs/ and README.md'
	@echo 'make deb|rpm|arch    build a package in dist/'
	@echo 'make check-packages  build all three packages, and install them in distros'
	@echo 'make release         check and build everything that a release consists of, in dist/'

# Without scdoc, `make install` leaves the man pages out, and needs nothing but Python.
SCDOC := $(shell command -v scdoc 2>/dev/null)
PAGES = build/man/wsl-binfmt-generator.8 build/man/wsl-binfmt.1
UNITS = $(wildcard units/*.mount units/*.service)
LIB = $(DESTDIR)$(PREFIX)/lib
BASH_COMPLETION = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
# Debian's zsh looks in vendor-completions.
ZSH_COMPLETION = $(DESTDIR)$(PREFIX)/share/zsh/site-functions

# The directory of a man page, by its section.
man_dir = $(DESTDIR)$(PREFIX)/share/man/man$(subst .,,$(suffix $(1)))
# What `uninstall` removes: what `install` installs, and what it installed in version 0.2.0.
INSTALLED = $(LIB)/systemd/system-generators/wsl-binfmt-generator $(DESTDIR)$(PREFIX)/bin/wsl-binfmt $(LIB)/wsl-binfmt-generator \
	$(UNITS:units/%=$(LIB)/systemd/system/%) $(BASH_COMPLETION)/wsl-binfmt $(ZSH_COMPLETION)/_wsl-binfmt \
	$(foreach page,$(PAGES),$(call man_dir,$(page))/$(notdir $(page))) \
	$(LIB)/systemd/system/wsl-binfmt.service

install: $(if $(SCDOC),$(PAGES))
	install -D -m 755 -t $(LIB)/systemd/system-generators generator/wsl-binfmt-generator
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin generator/wsl-binfmt
	install -D -m 644 -t $(LIB)/wsl-binfmt-generator units/status units/WSLInterop.conf
	install -D -m 644 -t $(LIB)/wsl-binfmt-generator/wsl_binfmt generator/wsl_binfmt/*.py
	install -D -m 644 -t $(LIB)/wsl-binfmt-generator/wsl_binfmt/diagnosis generator/wsl_binfmt/diagnosis/*.py
	install -D -m 644 -t $(LIB)/systemd/system $(UNITS)
	install -D -m 644 packaging/completion/wsl-binfmt.bash $(BASH_COMPLETION)/wsl-binfmt
	install -D -m 644 -t $(ZSH_COMPLETION) packaging/completion/_wsl-binfmt
	$(foreach page,$(if $(SCDOC),$(PAGES)),install -D -m 644 -t $(call man_dir,$(page)) $(page) &&) :
	sed -i -e 's/@VERSION@/$(VERSION)/' \
		-e 's,/usr/\(bin/wsl-binfmt\|lib/wsl-binfmt-generator\|lib/systemd/system/\|lib/systemd/system-generators/\),$(PREFIX)/\1,g' \
		$(DESTDIR)$(PREFIX)/bin/wsl-binfmt \
		$(LIB)/systemd/system-generators/wsl-binfmt-generator \
		$(LIB)/wsl-binfmt-generator/wsl_binfmt/command.py \
		$(LIB)/wsl-binfmt-generator/wsl_binfmt/diagnosis/*.py \
		$(UNITS:units/%=$(LIB)/systemd/system/%) \
		$(if $(SCDOC),$(DESTDIR)$(PREFIX)/share/man/man?/wsl-binfmt*)
ifeq ($(COMPILE),yes)
	/usr/bin/python3 -m compileall -q -d $(PREFIX)/lib/wsl-binfmt-generator $(LIB)/wsl-binfmt-generator
endif
	$(if $(SCDOC),,@echo 'The man pages are left out, as scdoc is missing.')

# Does what a package does when it is removed.
uninstall:
	. packaging/takes-effect.sh; $(if $(DESTDIR),,wsl_binfmt_goes;) rm -rf $(INSTALLED) $(if $(DESTDIR),,&& wsl_binfmt_is_gone)

# The Debian packages that each target needs. The distros of the test bed have this machine's root file system.
BED = python3 systemd systemd-sysv dbus binfmt-support gcc libc6-dev util-linux
VENV = python3-venv ca-certificates
TESTS = $(BED) $(VENV) mmdebstrap procps strace
NEEDS_demo = $(BED)
NEEDS_shell = $(BED)
NEEDS_bench = $(BED)
NEEDS_faults = $(BED) strace
NEEDS_pictures = $(BED) $(VENV)
NEEDS_test = $(VENV)
NEEDS_fuzz = $(VENV)
NEEDS_simulate = $(VENV)
NEEDS_deb = build-essential debhelper dh-python scdoc
NEEDS_rpm = python3 rpm scdoc
NEEDS_arch = libarchive-tools makepkg pacman-package-manager scdoc
NEEDS_check = $(TESTS) $(NEEDS_deb) $(NEEDS_rpm) $(NEEDS_arch) autopkgtest faketime lintian mandoc piuparts rpmlint shellcheck
NEEDS_check-packages = $(NEEDS_check)
NEEDS_check-kernels = $(TESTS) busybox-static debian-archive-keyring kmod qemu-system-x86
NEEDS_release = $(NEEDS_check) git

ASKED = $(filter deps,$(MAKECMDGOALS))
# What the targets on this command line need; without a target, what all targets need.
NEEDED = $(sort $(foreach name,$(or $(patsubst %,NEEDS_%,$(filter-out deps,$(MAKECMDGOALS))),$(filter NEEDS_%,$(.VARIABLES))),$($(name))))

# A target that needs packages runs this first. Only `deps` installs them.
deps: needs
needs:
	@[ -e /etc/debian_version ] || $(if $(ASKED),{ echo 'make deps is for Debian and its derivatives' >&2; exit 1; },exit 0); \
	installed=$$(dpkg-query -W -f '$${Package}=$${db:Status-Status} ' $(NEEDED) 2>/dev/null); \
	missing=$$(for package in $(NEEDED); do \
			case " $$installed" in *" $$package=installed "*) ;; *) printf ' %s' $$package ;; esac; \
		done); \
	[ "$$missing" ] || exit 0; \
	if [ ! '$(ASKED)' ] || [ "$$(id -u)" != 0 ]; then \
		echo 'Some Debian packages are missing. Run this as root:' >&2; \
		echo "    apt-get install --no-install-recommends$$missing" >&2; \
		exit 1; \
	fi; \
	echo "Installing$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	said=$$({ apt-get update && apt-get install --yes --no-install-recommends $$missing; } 2>&1) || { echo "$$said" >&2; exit 1; }

demo: needs
	@/usr/bin/python3 -B tests/system/demo.py

faults: needs
	/usr/bin/python3 -B tests/system/faults.py

WSL = none
shell: needs
	@/usr/bin/python3 -B tests/system/shell.py $(WSL)

bench: needs
	/usr/bin/python3 -B tests/system/bench.py

pictures: needs .venv/done
	.venv/bin/python -B tests/system/picture.py

test: .venv/done
	.venv/bin/python -B -m pytest tests/unit

SECONDS = 60
fuzz: .venv/done
	$(REQUIREMENTS) fuzz | .venv/bin/pip install --quiet --requirement /dev/stdin
	@for target in wsl.conf entry binfmt.d; do \
		rm -rf build/fuzz/tmp; mkdir -p build/fuzz/tmp; \
		PYTHONPATH=generator:tests/simulation:tests/unit TMPDIR=build/fuzz/tmp .venv/bin/python -B tests/fuzz.py $$target $(SECONDS) || exit 1; \
	done

# Runs on all cores, until it is stopped or for SECONDS.
SEED =
simulate: .venv/done
	@PYTHONPATH=generator .venv/bin/python -B tests/simulation/simulate.py \
		$(if $(SEED),--seed '$(SEED)',$(if $(filter command,$(origin SECONDS)),$(SECONDS)))

# The unit tests for builds of packages, and for other Pythons. It installs nothing and lints nothing, and warnings of newer
# libraries do not fail a build.
PYTHON = python3
unit:
	$(PYTHON) -B -m pytest -qq -W default -p no:cacheprovider tests/unit --ignore=tests/unit/test_lint.py

SUITES =
check-kernels: needs .venv/done
	.venv/bin/pip install --quiet virtme-ng
	.venv/bin/python -B tests/system/kernels.py $(SUITES)

check: needs .venv/done
	.venv/bin/python -B -m pytest --numprocesses=2

# Prints the requirements of the kinds that are given, from pyproject.toml.
REQUIREMENTS = /usr/bin/python3 -c 'import sys, tomllib; \
	needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(need for kind in sys.argv[1:] for need in needs[kind]), sep="\n")'

.venv/done: pyproject.toml | needs
	/usr/bin/python3 -m venv .venv
	$(REQUIREMENTS) tests check lint pictures | .venv/bin/pip install --quiet --requirement /dev/stdin
	touch $@

# Runs the unit tests on each Python from 3.8 on that is in /usr/bin or in pyenv.
PYTHONS = $(wildcard /usr/bin/python3.[0-9] /usr/bin/python3.[0-9][0-9] $(HOME)/.pyenv/versions/3.*/bin/python3)
check-pythons:
	@for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2] if sys.version_info >= (3, 8) else "")'); \
		[ "$$version" ] || continue; \
		echo "Python $$version"; venv=build/pythons/$$version; \
		[ -x $$venv/bin/pytest ] || { $$python -m venv $$venv && \
			$(REQUIREMENTS) tests | $$venv/bin/pip install --quiet --requirement /dev/stdin; } && \
		$(MAKE) --no-print-directory unit PYTHON=$$venv/bin/python || exit 1; \
	done

# Everything below is for releases and packages.

.PHONY: man first-change dist deb rpm arch release check-packages

RELEASE = wsl-binfmt-generator-$(VERSION)
# The public address of this tree, for the recipes of the packages. There is none yet.
URL =
# The day of the release, so that a build on any day gives the same files. It does not come from the environment, as makepkg
# sets SOURCE_DATE_EPOCH to the time of the build.
RELEASED := $(shell date -u -d "$$(sed -n 's/^## .* (\(.*\))$$/\1/p' CHANGELOG.md | head -n 1)" +%s)
# A build of a package must not see the variables of this `make`, such as DESTDIR.
BUILD = env -u MAKEFLAGS -u MFLAGS

man: $(PAGES)

# sed removes what mandoc warns of in scdoc's output: paragraphs before and after a heading and at the end, and a title in
# lower case.
build/man/%: man/%.scd man/problems.py CHANGELOG.md generator/wsl-binfmt-generator $(wildcard generator/wsl_binfmt/diagnosis/*.py)
	mkdir -p $(@D)
	PYTHONPATH=generator /usr/bin/python3 -B man/problems.py >$@.problems
	sed -e 's/@VERSION@/$(VERSION)/' -e '/^@PROBLEMS@$$/{r $@.problems' -e 'd}' $< | SOURCE_DATE_EPOCH=$(RELEASED) scdoc >$@.tmp
	sed -E '/^\.TH /s/"[^"]*"/\U&/;:a;/^\.S[HS] /{n;/^\.PP?$$/d};/^\.PP?$$/{$$d;N;/\n\.(S[HS] |PP?$$)/{s/^[^\n]*\n//;ba};s/^(.*)\n(\.RE)$$/\2\n\1/;P;D}' $@.tmp >$@
	rm $@.tmp $@.problems

first-change:
	@grep -m 1 '^## ' CHANGELOG.md | grep -q '^## $(subst .,\.,$(VERSION)) (....-..-..)$$' || \
		{ echo 'CHANGELOG.md does not begin with "## $(VERSION) (YYYY-MM-DD)"'; exit 1; }

# What builds leave in the tree, dpkg-source included, and debian/, which distributions add.
NOT_RELEASED = .git .pc .venv .hypothesis .*_cache build debian dist
# A clone and an unpacked release give the same tarball. The recipes of the packages in it have the version.
dist: first-change
	rm -rf build/dist
	mkdir -p build/dist/$(RELEASE) dist
	tar -c $(patsubst %,--exclude='./%',$(NOT_RELEASED)) --exclude=__pycache__ . | tar -x -C build/dist/$(RELEASE)
	cd build/dist/$(RELEASE)/packaging && \
		sed -n 's/^## \(.*\) (\(.*\))$$/\1 \2/p' ../CHANGELOG.md | while read -r version day; do \
			printf 'wsl-binfmt-generator (%s-1) unstable; urgency=medium\n\n  * New upstream release.\n\n -- %s  %s\n\n' \
				"$$version" "$$(sed -n 's/^Maintainer: //p' debian/control)" "$$(date -u -R -d "$$day")"; \
		done | sed '$$d' >debian/changelog && \
		sed -i -e 's/@VERSION@/$(VERSION)/' -e '$(if $(URL),s|@URL@|$(URL)|,/@URL@/d)' -e '/^%changelog/,$${/^%/!d}' \
			rpm/wsl-binfmt-generator.spec arch/PKGBUILD nixos/module.nix && \
		python3 -IS rpm/changelog <../CHANGELOG.md >>rpm/wsl-binfmt-generator.spec && \
		sed -i -e '/^# include/{r takes-effect.sh' -e 'd}' arch/wsl-binfmt-generator.install
	tar -c -C build/dist --sort=name --mtime=@$(RELEASED) --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
		$(RELEASE) | gzip -9 -n >dist/$(RELEASE).tar.gz

deb: needs dist
	rm -rf build/deb dist/*.deb dist/*.dsc dist/*.orig.tar.* dist/*.debian.tar.*
	mkdir -p build/deb
	cp dist/$(RELEASE).tar.gz build/deb/wsl-binfmt-generator_$(VERSION).orig.tar.gz
	tar -x -p -z -C build/deb -f dist/$(RELEASE).tar.gz
	cp -a build/deb/$(RELEASE)/packaging/debian build/deb/$(RELEASE)/debian
	cd build/deb/$(RELEASE) && $(BUILD) dpkg-buildpackage --no-sign
	cp build/deb/*.deb build/deb/*.dsc build/deb/*.tar.* dist

# On Debian, rpm and makepkg do not know which packages are installed.
NODEPS = $(if $(shell command -v dpkg-query),--nodeps)
rpm: needs dist
	rm -rf build/rpm dist/*.rpm
	$(BUILD) rpmbuild -ta $(NODEPS) --define '_topdir $(CURDIR)/build/rpm' dist/$(RELEASE).tar.gz
	cp build/rpm/RPMS/noarch/*.rpm dist

# Checks what has to be true of a release, and builds all its files.
release: needs first-change
	@[ "$$(date -u +%Y-%m-%d)" = "$$(date -u -d @$(RELEASED) +%Y-%m-%d)" ] || { echo 'the first version in CHANGELOG.md is not of today'; exit 1; }
	@[ -z "$$(git status --porcelain)" ] || { echo 'there are uncommitted changes'; exit 1; }
	@! git rev-parse --quiet --verify refs/tags/v$(VERSION) >/dev/null || { echo 'there is already a tag v$(VERSION)'; exit 1; }
	CI=true $(MAKE) check
	rm -rf dist
	$(MAKE) deb rpm arch
	cd dist && sha256sum -- * >SHA256SUMS

# makepkg refuses to run as root.
arch: needs dist
	rm -rf build/arch dist/*.pkg.tar.*
	mkdir -p build/arch
	cp build/dist/$(RELEASE)/packaging/arch/* dist/$(RELEASE).tar.gz build/arch
	sed -i "s/SKIP/$$(sha256sum <dist/$(RELEASE).tar.gz | cut -d ' ' -f 1)/" build/arch/PKGBUILD
	set -e; at=$$(mktemp -d); trap 'rm -rf "$$at"' EXIT; cp build/arch/* "$$at"; cd "$$at"; \
		user=; [ "$$(id -u)" != 0 ] || { chown -R nobody "$$at"; user='setpriv --reuid=nobody --clear-groups'; }; \
		HOME=$$at $(BUILD) $$user makepkg $(NODEPS) --nocheck; \
		cp PKGBUILD *.install ./*.pkg.tar.* $(CURDIR)/dist

# Builds all three packages, compares their contents, and installs them in distros.
check-packages: needs .venv/done
	.venv/bin/python -B -m pytest -m packages tests/packages

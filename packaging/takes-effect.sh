# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What a package does to the running system. This is part of the scripts of every package, which
# call one of the three functions. Where no systemd runs, as in a chroot or an image that is being
# built, there is nothing to do. What fails here is said, and is no reason for a package to be
# neither installed nor removed: the next boot sets it right.

# After installation, and after an upgrade. What the generator has written is its decision about
# this system: nothing, if it is not WSL. The units are static, so "enable" does not apply.
wsl_binfmt_takes_effect() {
        [ -d /run/systemd/system ] || return 0
        # Runs the generator.
        systemctl daemon-reload || return 0
        [ -h /run/systemd/generator/sysinit.target.wants/proc-sys-fs-binfmt_misc-status.mount ] || return 0
        systemctl start proc-sys-fs-binfmt_misc-status.mount || :
        if [ -h /run/systemd/generator/sysinit.target.wants/wsl-binfmt-restore.path ]; then
                # Waits for a look at the entry.
                systemctl start wsl-binfmt-restore.path wsl-binfmt-recheck.service || :
        fi
        # Refused to empty the table by WSL 2.8.9 and later, systemd 257 and older make this fail at boot.
        if systemctl is-failed --quiet systemd-binfmt.service; then
                systemctl restart systemd-binfmt.service || :
        fi
}

# Before removal, not before an upgrade: the guard and the watch stay up through that.
wsl_binfmt_goes() {
        [ -d /run/systemd/system ] || return 0
        systemctl stop 'wsl-binfmt-*' || :
        # WSL 2.8.9 and later have a guard of their own in that place, which is not ours to lift. The
        # source of a bind mount is "//deleted" once an upgrade has replaced it.
        if grep -q '/wsl-binfmt-generator/status\(//deleted\)\{0,1\} /proc/sys/fs/binfmt_misc/status ' /proc/self/mountinfo; then
                systemctl stop proc-sys-fs-binfmt_misc-status.mount || :
        fi
        # Nobody else removes what stands in for WSLInterop after a kill.
        if [ -h /run/systemd/generator/sysinit.target.wants/wsl-binfmt-restore.path ]; then
                wsl-binfmt restore || :
        fi
        # By patterns: a unit that is named and never was there is an error for systemctl.
        systemctl reset-failed 'wsl-binfmt-*' 'proc-sys-fs-binfmt_misc-status.moun[t]' || :
}

# After removal.
wsl_binfmt_is_gone() {
        [ -d /run/systemd/system ] || return 0
        # The drop-ins go with the generator. systemd-binfmt.service is not restarted: without them it
        # would remove WSLInterop.
        systemctl daemon-reload || :
        # A service that was being started meanwhile may have left these: its notes, and what stands
        # in for WSLInterop, of this distro and no other.
        rm -rf /run/wsl-binfmt
        held=/proc/sys/fs/binfmt_misc/WSLInterop-held-by-$(stat -L -c %i /proc/self/ns/pid)
        for entry in "$held" "$held"+*; do
                if [ -e "$entry" ]; then
                        echo -1 >"$entry" || :
                fi
        done
}

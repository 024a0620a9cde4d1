# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What a package does to the running system. This is part of the scripts of every package, which
# call one of the three functions. What fails here is said, and is no reason for a package to be
# neither installed nor removed: the next boot sets it right.

# Whether there is a running system to change. A chroot, such as an image that is being built, may
# have the /run of the system around it; dpkg --root sets DPKG_ROOT.
wsl_binfmt_is_running() {
        [ -d /run/systemd/system ] && [ ! "${DPKG_ROOT-}" ] && ! systemd-detect-virt --quiet --chroot 2>/dev/null
}

# After installation, and after an upgrade. What the generator has written is its decision about
# this system: nothing, if it is not WSL. The units are static, so "enable" does not apply.
wsl_binfmt_takes_effect() {
        wsl_binfmt_is_running || return 0
        # Runs the generator.
        systemctl daemon-reload || return 0
        [ -h /run/systemd/generator/sysinit.target.wants/proc-sys-fs-binfmt_misc-status.mount ] || return 0
        systemctl start proc-sys-fs-binfmt_misc-status.mount || :
        if [ -h /run/systemd/generator/sysinit.target.wants/wsl-binfmt.service ]; then
                # After an upgrade, another version is running. This ends when nothing is wrong any more.
                systemctl restart wsl-binfmt.service || :
        fi
        # Of version 0.1.0.
        systemctl stop 'wsl-binfmt-*' || :
        systemctl reset-failed 'wsl-binfmt-*' || :
        rm -rf /run/wsl-binfmt/*.service /run/wsl-binfmt/binfmt.d /run/wsl-binfmt/disabled
        # Refused to empty the table by WSL 2.8.9 and later, systemd 252 to 257 make this fail at boot.
        if systemctl is-failed --quiet systemd-binfmt.service; then
                systemctl restart systemd-binfmt.service || :
        fi
}

# Before removal, not before an upgrade: the guard and the watch stay up through that.
wsl_binfmt_goes() {
        wsl_binfmt_is_running || return 0
        systemctl stop 'wsl-binfmt.servic[e]' || :
        # WSL 2.8.9 and later have a guard of their own in that place, which is not ours to lift. The
        # source of a bind mount is "//deleted" once an upgrade has replaced it.
        if grep -q '/wsl-binfmt-generator/status\(//deleted\)\{0,1\} /proc/sys/fs/binfmt_misc/status ' /proc/self/mountinfo; then
                systemctl stop proc-sys-fs-binfmt_misc-status.mount || :
        fi
        # Nobody else removes what stands in for WSLInterop after a kill.
        if [ -h /run/systemd/generator/sysinit.target.wants/wsl-binfmt.service ]; then
                wsl-binfmt restore >/dev/null || :
        fi
        # By patterns: a unit that is named and never was there is an error for systemctl.
        systemctl reset-failed 'wsl-binfmt.servic[e]' 'proc-sys-fs-binfmt_misc-status.moun[t]' || :
}

# After removal.
wsl_binfmt_is_gone() {
        wsl_binfmt_is_running || return 0
        # The drop-ins go with the generator. systemd-binfmt.service is not restarted: without them it
        # would remove WSLInterop.
        systemctl daemon-reload || :
        rm -rf /run/wsl-binfmt
}

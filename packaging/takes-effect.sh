# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What a package does to the running system. This is part of the scripts of every package, which call its functions.
# What fails here is said, and does not fail the installation or the removal: the next boot sets it right.

# Whether there is a running system to change. A chroot, such as an image that is being built, may
# have the /run of the system around it; dpkg --root sets DPKG_ROOT.
wsl_binfmt_is_running() {
        [ -d /run/systemd/system ] && [ ! "${DPKG_ROOT-}" ] && ! systemd-detect-virt --quiet --chroot 2>/dev/null
}

# Whether the generator wants a unit on this system: none, if it is not WSL.
wsl_binfmt_wants() {
        [ -h "/run/systemd/generator/sysinit.target.wants/$1" ]
}

# wsl_binfmt_takes_effect COMMAND: after an installation or an upgrade. COMMAND starts units as systemctl does.
wsl_binfmt_takes_effect() {
        wsl_binfmt_is_running || return 0
        # Runs the generator.
        systemctl daemon-reload || return 0
        wsl_binfmt_wants proc-sys-fs-binfmt_misc-status.mount || return 0
        "$1" start proc-sys-fs-binfmt_misc-status.mount || :
        if wsl_binfmt_wants wsl-binfmt-watch.service; then
                "$1" start wsl-binfmt-boot.service || :
                # After an upgrade, an older version of it is running.
                "$1" restart wsl-binfmt-watch.service || :
        fi
        wsl_binfmt_0_2_0_goes
        # WSL 2.8.9 and later refuse that the table is emptied, and systemd 250 to 261 make this fail at boot then.
        if systemctl is-failed --quiet systemd-binfmt.service; then
                "$1" reload-or-restart systemd-binfmt.service || :
        fi
}

# The watch of version 0.2.0 has a name that other units have as well: WSL's up to 2.5.6, and administrators' own.
wsl_binfmt_0_2_0_goes() {
        case $(systemctl show --value --property=FragmentPath wsl-binfmt.service) in
        '' | /lib/* | /usr/lib/*)
                # By a pattern: a unit that is named and not there is an error for systemctl.
                systemctl stop 'wsl-binfmt.servic[e]' || :
                systemctl reset-failed 'wsl-binfmt.servic[e]' || :
                ;;
        esac
        rm -f /run/wsl-binfmt/*.before /run/wsl-binfmt/*.after /run/wsl-binfmt/*.formats /run/wsl-binfmt/WSLInterop \
                /run/wsl-binfmt/.*.[0-9]*
        for entry in /proc/sys/fs/binfmt_misc/WSLInterop-held-by-*; do
                if [ -e "${entry%-held-by-*}" ]; then
                        { echo -1 >"$entry"; } 2>/dev/null || :
                fi
        done
}

# Before a removal, not before an upgrade: the guard and the watch stay up through that.
wsl_binfmt_goes() {
        wsl_binfmt_is_running || return 0
        wsl_binfmt_0_2_0_goes
        systemctl stop 'wsl-binfmt-watch.servic[e]' || :
        # WSL 2.8.9 and later have a guard of their own in that place, which is not ours to lift. The
        # source of a bind mount is "//deleted" once an upgrade has replaced it.
        if grep -q '/wsl-binfmt-generator/status\(//deleted\)\{0,1\} /proc/sys/fs/binfmt_misc/status ' /proc/self/mountinfo; then
                systemctl stop proc-sys-fs-binfmt_misc-status.mount || :
        fi
        # What the watch was about to do, and a temporary entry of one that was killed.
        if wsl_binfmt_wants wsl-binfmt-watch.service; then
                wsl-binfmt restore >/dev/null || :
        fi
        systemctl reset-failed 'wsl-binfmt-watch.servic[e]' 'wsl-binfmt-boot.servic[e]' 'proc-sys-fs-binfmt_misc-status.moun[t]' || :
}

# After a removal.
wsl_binfmt_is_gone() {
        wsl_binfmt_is_running || return 0
        # The drop-ins go with the generator. systemd-binfmt.service is not restarted: without them it
        # would remove WSLInterop.
        systemctl daemon-reload || :
        rm -rf /run/wsl-binfmt
}

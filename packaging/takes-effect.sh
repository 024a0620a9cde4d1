# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# What a package does to the running system. The scripts of every package include this file, and call its functions.
# A failure is printed, but does not fail the installation or the removal, as the next boot repairs it.

# Whether there is a running system to change. A chroot, such as an image that is being built, may have the /run of the
# system around it. dpkg --root sets DPKG_ROOT.
wsl_binfmt_is_running() {
        [ -d /run/systemd/system ] && [ ! "${DPKG_ROOT-}" ] && ! systemd-detect-virt --quiet --chroot 2>/dev/null
}

# Whether the generator wants a unit on this system. If this is not WSL, it wants none.
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
                # After an upgrade, the watch of the older version is running.
                "$1" restart wsl-binfmt-watch.service || :
        fi
        wsl_binfmt_0_2_0_goes
        # On WSL 2.8.9 and later, this service of systemd 250 to 261 fails at boot, as it may not empty the table.
        if systemctl is-failed --quiet systemd-binfmt.service; then
                "$1" reload-or-restart systemd-binfmt.service || :
        fi
}

# The watch of version 0.2.0 is called wsl-binfmt.service, as are a unit of WSL up to 2.5.6, and units that administrators
# have made.
wsl_binfmt_0_2_0_goes() {
        case $(systemctl show --value --property=FragmentPath wsl-binfmt.service) in
        '' | /lib/* | /usr/lib/*)
                # By a pattern: for systemctl, it is an error to stop a unit that does not exist.
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

# Before a removal. During an upgrade, the guard and the watch stay up.
wsl_binfmt_goes() {
        wsl_binfmt_is_running || return 0
        wsl_binfmt_0_2_0_goes
        systemctl stop 'wsl-binfmt-watch.servic[e]' || :
        # WSL 2.8.9 and later have a guard of their own in that place, which has to stay. If an upgrade has replaced the
        # source of a bind mount, "//deleted" follows its path.
        if grep -q '/wsl-binfmt-generator/status\(//deleted\)\{0,1\} /proc/sys/fs/binfmt_misc/status ' /proc/self/mountinfo; then
                systemctl stop proc-sys-fs-binfmt_misc-status.mount || :
        fi
        # Makes the repairs that the watch was about to make, and removes the temporary entry of a watch that was killed.
        if wsl_binfmt_wants wsl-binfmt-watch.service; then
                wsl-binfmt restore >/dev/null || :
        fi
        systemctl reset-failed 'wsl-binfmt-watch.servic[e]' 'wsl-binfmt-boot.servic[e]' 'proc-sys-fs-binfmt_misc-status.moun[t]' || :
}

# After a removal.
wsl_binfmt_is_gone() {
        wsl_binfmt_is_running || return 0
        # Without the generator, this removes the drop-ins. systemd-binfmt.service is not restarted, as without its drop-in
        # it could empty the table.
        systemctl daemon-reload || :
        rm -rf /run/wsl-binfmt
}

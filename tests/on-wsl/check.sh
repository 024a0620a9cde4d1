#!/bin/sh
# SPDX-License-Identifier: MIT
# check.sh [-y] [--wipe] [--second DISTRO]: checks in a real WSL distro, in which this package is installed, what the
# package promises. Prints a report, to be pasted into an issue. Needs root, and nothing but what a distro with systemd has.
#
# The script asks before it changes anything; with -y it does not ask. It puts back what it has changed, also when it is
# interrupted. It restarts and stops systemd-binfmt.service, and changes WSLInterop and entries on-wsl-* in the kernel's table.
#   --wipe             also empties the whole table: distros without this package lose their entries until they restart
#   --second DISTRO    also starts another distro, and ends it with `wsl.exe --terminate`
# Exit status: 0 no check failed; 1 a check failed; 2 wrong arguments; 3 the checks cannot run in this distro.
#
# For shellcheck: functions are called by name, and names of entries and programs have no newlines.
# shellcheck disable=SC1091,SC2010,SC2012,SC2317
set -u

TABLE=/proc/sys/fs/binfmt_misc
SERVICE=systemd-binfmt.service
WATCH=wsl-binfmt-watch.service
RULES=/run/binfmt.d/on-wsl-check.conf
RESTARTS=20

yes='' wipe='' second='' failed=0 work='' answer=''

usage() {
        echo "usage: check.sh [-y] [--wipe] [--second DISTRO]" >&2
        exit 2
}

while [ $# -gt 0 ]; do
        case $1 in
        -y) yes=1 ;;
        --wipe) wipe=1 ;;
        --second)
                [ $# -gt 1 ] || usage
                second=$2
                shift
                ;;
        -h | --help)
                sed -n '3,/^# Exit status/s/^# \{0,1\}//p' "$0"
                exit 0
                ;;
        *) usage ;;
        esac
        shift
done

# Makes plain text of what wsl.exe writes, which is UTF-16 with carriage returns.
plain() {
        tr -d '\000\r'
}

fact() {
        printf '%-22s %s\n' "$1" "$2"
}

ok() {
        printf 'ok       %s\n' "$1"
}

not_ok() {
        printf 'FAILED   %s\n' "$1"
        failed=1
}

skipped() {
        printf 'skipped  %s\n' "$1"
}

# Whether cmd.exe starts and prints something.
windows() {
        answer=$("$CMD" /c ver 2>&1 </dev/null) && [ "$answer" ]
}

# Whether a command succeeds within a second.
soon() {
        for _ in 1 2 3 4 5 6 7 8 9 10; do
                "$@" && return 0
                sleep 0.1
        done
        return 1
}

has() {
        [ -e "$TABLE/$1" ]
}

has_not() {
        [ ! -e "$TABLE/$1" ]
}

# Whether on-wsl-ape handles a file that begins as llamafile's files do.
ape() {
        said=$("$work/ape" 2>&1) && [ "$said" = "$work/ape" ]
}

is_disabled() {
        read -r state <"$TABLE/WSLInterop" && [ "$state" = disabled ]
}

# expect TEXT COMMAND...: runs COMMAND, and reports by TEXT whether it succeeds.
expect() {
        text=$1
        shift
        if "$@"; then ok "$text"; else not_ok "$text (Windows answered last: $(echo "$answer" | plain | tr -d '\n'))"; fi
}

# Without reset-failed, systemd would soon refuse to start the service so often.
restart() {
        systemctl reset-failed "$SERVICE" 2>/dev/null
        systemctl restart "$SERVICE"
}

launch_until_told() {
        count=0 lost=0
        while [ ! -e "$work/enough" ]; do
                windows || lost=$((lost + 1))
                count=$((count + 1))
        done
        echo "$count $lost" >"$work/launches"
}

# launching TEXT COMMAND...: starts Windows programs over and over while COMMAND runs.
launching() {
        text=$1
        shift
        rm -f "$work/enough" "$work/launches"
        launch_until_told &
        "$@"
        status=$?
        : >"$work/enough"
        wait $!
        read -r count lost <"$work/launches"
        if [ "$status" = 0 ] && [ "$lost" = 0 ]; then
                ok "$text ($count Windows programs started meanwhile, none failed)"
        else
                not_ok "$text (exit status $status; of $count Windows programs $lost failed)"
        fi
}

put_back() {
        trap '' INT TERM HUP
        : >"$work/enough"
        wait
        rm -f "$RULES"
        for name in on-wsl-rival on-wsl-rule on-wsl-ape; do
                if has "$name"; then echo -1 >"$TABLE/$name"; fi
        done
        if [ -e "$work/disabled" ] && is_disabled; then echo 1 >"$TABLE/WSLInterop"; fi
        if [ -e "$work/changed" ]; then restart; fi
        rm -rf "$work"
}

### Where this runs

[ "$(id -u)" = 0 ] || { echo "check.sh: run this as root: sudo sh $0" >&2; exit 3; }
if [ ! -d /run/systemd/system ]; then
        echo "check.sh: systemd does not run here: [boot] systemd=true in /etc/wsl.conf" >&2
        exit 3
fi
if [ ! -h "/run/systemd/generator/sysinit.target.wants/$WATCH" ]; then
        echo "check.sh: the package is not active here, see: wsl-binfmt" >&2
        exit 3
fi
CMD=$(command -v cmd.exe || ls /mnt/*/Windows/System32/cmd.exe 2>/dev/null | head -n 1)
WSL=$(command -v wsl.exe || ls /mnt/*/Windows/System32/wsl.exe 2>/dev/null | head -n 1)
[ "$CMD" ] || { echo "check.sh: cmd.exe is neither in PATH nor in a drive below /mnt" >&2; exit 3; }

echo "### Report of tests/on-wsl/check.sh"
echo '```'
fact date "$(date -u +%Y-%m-%dT%H:%MZ)"
fact distro "$(. /etc/os-release && echo "$PRETTY_NAME")"
fact kernel "$(uname -r)"
fact systemd "$(systemctl --version | head -n 1)"
fact package "$(wsl-binfmt --version)"
[ -z "$WSL" ] || "$WSL" --version 2>/dev/null </dev/null | plain | sed 's/^/    /'
for unit in "$SERVICE" binfmt-support.service; do
        override=/run/systemd/generator/$unit.d/override.conf
        [ ! -e "$override" ] || fact "override of WSL" "$override"
done
fact "mounted on status" "$(sed -n "s,^[^ ]* [^ ]* [^ ]* \([^ ]*\) $TABLE/status .*,\1,p" /proc/self/mountinfo | tail -n 1)"
fact "state of systemd" "$(systemctl is-system-running)"
fact entries "$(ls -U "$TABLE" | grep -v -e '^register$' -e '^status$' | tr '\n' ' ')"
wsl-binfmt status

if [ -z "$yes" ]; then
        printf '%s\n' '```' "This script restarts $SERVICE over and over, and changes entries of the table for moments."
        [ -z "$wipe" ] || echo "It EMPTIES the table: distros without this package lose their entries until they restart."
        [ -z "$second" ] || echo "It TERMINATES the distro $second, with all that runs in it."
        printf 'Go on? [y/N] '
        read -r said || said=
        case $said in [yY]*) ;; *) echo "Nothing was changed."; exit 0 ;; esac
        echo '```'
fi

work=$(mktemp -d) || exit 3
trap put_back EXIT
trap 'exit 130' INT TERM HUP

### The checks

expect "Windows answers" windows
expect "wsl-binfmt finds nothing wrong" sh -c 'wsl-binfmt status --fail-on=warning >/dev/null'

: >"$work/changed"
for _ in $(seq "$RESTARTS"); do
        start=$(date +%s%N)
        restart
        echo $((($(date +%s%N) - start) / 1000000))
done | sort -n >"$work/times"
fact "a restart takes" "$(sed -n "$((RESTARTS / 2))p" "$work/times") ms, the median of $RESTARTS"

printf '%s\n' 'MZqFpD' >"$work/ape"
chmod +x "$work/ape"
echo ':on-wsl-ape:M::MZqFpD::/bin/echo:' >"$TABLE/register"

restarts() {
        for _ in $(seq "$RESTARTS"); do restart || return; done
}
launching "$RESTARTS restarts of $SERVICE" restarts
launching "reload" systemctl reload-or-restart "$SERVICE"
launching "daemon-reload" systemctl daemon-reload
launching "daemon-reexec" systemctl daemon-reexec

# As packages of Fedora and Arch do after an installation. systemd-binfmt of systemd 250 to 261 fails if WSL refuses the
# wipe.
run_directly() {
        /usr/lib/systemd/systemd-binfmt 2>/dev/null || :
}
mkdir -p "${RULES%/*}"
echo ':on-wsl-rule:M::on-wsl-check::/bin/true:' >"$RULES"
restart
if [ "$(systemctl show --value --property=ConditionResult "$SERVICE")" != yes ]; then
        skipped "rules of binfmt.d: $SERVICE does not start here; see: systemctl status $SERVICE"
        rm -f "$RULES"
else
        expect "a rule of binfmt.d is registered" has on-wsl-rule
        launching "systemd-binfmt is run outside of its service" run_directly
        systemctl stop "$SERVICE"
        sleep 1
        expect "the entry ends with the service" soon has_not on-wsl-rule
        restart
        rm -f "$RULES"
        restart
        expect "the entry ends with its rule" soon has_not on-wsl-rule

        echo ':on-wsl-rival:M::MZ::/bin/false:' >"$RULES"
        restart
        expect "a rival in binfmt.d is outranked" soon windows
        rm -f "$RULES"
        restart
        expect "a rival in binfmt.d ends with its rule" soon has_not on-wsl-rival
fi

echo ':on-wsl-rival:M::MZ::/bin/false:' >"$TABLE/register"
expect "a rival is outranked" soon windows
expect "a rival stays in the table" has on-wsl-rival
echo -1 >"$TABLE/on-wsl-rival"

is_back() {
        has WSLInterop && windows
}
echo -1 >"$TABLE/WSLInterop"
expect "WSLInterop removed by hand is back" soon is_back
expect "an entry like APE's has stayed in front" ape
echo -1 >"$TABLE/on-wsl-ape"

: >"$work/disabled"
echo 0 >"$TABLE/WSLInterop"
restart
expect "WSLInterop disabled by hand stays disabled" is_disabled
echo 1 >"$TABLE/WSLInterop"
rm -f "$work/disabled"
expect "Windows answers when WSLInterop is enabled again" windows

if { echo -1 >"$TABLE/status"; } 2>/dev/null; then
        not_ok "nothing in this distro can empty the table"
else
        ok "nothing in this distro can empty the table"
fi
# Another distro or a container has a mount of the table, without the guard.
empty_table() {
        unshare --mount sh -c 'mount -t binfmt_misc binfmt_misc /mnt && echo -1 >/mnt/status'
}
if [ -z "$wipe" ]; then
        skipped "another distro empties the table (needs --wipe)"
else
        empty_table
        expect "another distro empties the table" soon is_back
fi

peer() {
        "$WSL" -d "$second" -e true </dev/null && sleep 2 && "$WSL" --terminate "$second" </dev/null >/dev/null && sleep 2
}
if [ -z "$second" ] || [ -z "$WSL" ]; then
        skipped "another distro starts and ends (needs --second DISTRO)"
else
        launching "another distro starts and ends" peer
fi

state=$(systemctl is-system-running)
if [ "$state" = running ]; then ok "systemd is running"; else not_ok "systemd is $state: $(systemctl --failed --plain --no-legend | tr '\n' ';')"; fi
journalctl --quiet --unit="$WATCH" --lines=10 --output=short-iso | sed 's/^/    /'
printf '%s\n' '```' 'What wsl-binfmt report says:' '```json'
wsl-binfmt report -
echo '```'
exit "$failed"

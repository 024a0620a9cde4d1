# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Completion of wsl-binfmt(1) for bash, by the package bash-completion.

_wsl_binfmt() {
        local word=${COMP_WORDS[COMP_CWORD]} action=${COMP_WORDS[1]} words
        if [ "$COMP_CWORD" = 1 ]; then
                words='status restore -h --help --version'
        elif [ "$action" = status ]; then
                words='-v --verbose --json --fail-on=warning --list --launch -h --help'
        elif [ "$action" = restore ]; then
                words='-n --dry-run -h --help'
        fi
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
        # The program that does not start.
        if [ "$action" = status ] && [ "${word#-}" = "$word" ] && [ "$COMP_CWORD" -gt 1 ]; then
                mapfile -t COMPREPLY < <(compgen -f -- "$word")
        fi
}
complete -o filenames -F _wsl_binfmt wsl-binfmt

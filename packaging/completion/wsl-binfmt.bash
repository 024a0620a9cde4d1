# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Completion of wsl-binfmt(1) for bash, by the package bash-completion.

_wsl_binfmt() {
        local word=${COMP_WORDS[COMP_CWORD]} action=${COMP_WORDS[1]} words=''
        if [ "$COMP_CWORD" = 1 ]; then
                words='status explain report restore -h --help --version'
        else
                case $action in
                status) words='-v --verbose --json --fail-on=warning --list --launch --from -h --help' ;;
                explain) words=$(wsl-binfmt --list | cut -d ' ' -f 1) ;;
                report) words='--program --launch -h --help' ;;
                restore) words='-n --dry-run -h --help' ;;
                esac
        fi
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
        # The program that does not start, or a report.
        case $action in
        status | report)
                if [ "${word#-}" = "$word" ] && [ "$COMP_CWORD" -gt 1 ]; then
                        mapfile -t COMPREPLY < <(compgen -f -- "$word")
                fi
                ;;
        esac
}
complete -o filenames -F _wsl_binfmt wsl-binfmt

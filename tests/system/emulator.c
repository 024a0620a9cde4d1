/* SPDX-License-Identifier: MIT */
/* What the bed has for an emulator: runs nothing, and exits as the program of
 * checks.foreign_program() would. With arguments, it says how it was called. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
        /* With the flag P: the interpreter, the program's path, its argv[0], its arguments. */
        if (argc > 3 && strcmp(argv[3], "--quiet") != 0) {
                for (int i = 0; i < argc; i++)
                        printf("%s%s", argv[i], i + 1 < argc ? " " : "\n");
        }
        return 42;
}

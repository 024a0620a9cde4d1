/* SPDX-License-Identifier: MIT */
/* What WSL has as /init, as far as binfmt_misc is concerned: says how it was called. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
        /* With the flag P: the interpreter, the program's path, its argv[0], its arguments. */
        if (argc > 3 && strcmp(argv[3], "--quiet") == 0)
                return 42;
        printf("/init");
        for (int i = 1; i < argc; i++)
                printf(" %s", argv[i]);
        printf("\n");
        return 0;
}

/* SPDX-License-Identifier: MIT */
/* What WSL has as /init, as far as binfmt_misc is concerned: says how it was called.
 *
 * Where /run/WSL is there, it needs a socket to Windows, and looks for one as WSL's does.
 * /run/init-answer, see bed.py, has it answer in another way: an exit status, the seconds that
 * pass before, and on the next lines what it says, %s for the program's path, %d for its own
 * PID. With the status 0 it says how it was called as well. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The parent of a process. One that nsenter(1) has started has none here, and counts as a child of PID 1. */
static int parent(int pid) {
        char path[64], line[256] = "", *end;
        int found = 0;
        FILE *file;

        snprintf(path, sizeof(path), "/proc/%d/stat", pid);
        file = fopen(path, "r");
        if (!file)
                return 1;
        fgets(line, sizeof(line), file);
        fclose(file);
        end = strrchr(line, ')');
        if (end)
                sscanf(end, ") %*c %d", &found);
        return found > 0 ? found : 1;
}

/* Connects to the socket that WSL_INTEROP names, or else to that of the closest ancestor that has one. */
static void connect_to_windows(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        const char *name = getenv("WSL_INTEROP");
        int pid = getpid();

        if (name && access(name, F_OK) == 0)
                snprintf(address.sun_path, sizeof(address.sun_path), "%s", name);
        else
                do {
                        if (pid == 1)
                                exit(1);
                        pid = parent(pid);
                        snprintf(address.sun_path, sizeof(address.sun_path), "/run/WSL/%d_interop", pid);
                } while (access(address.sun_path, F_OK) != 0);
        if (connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *) &address, sizeof(address)) != 0) {
                fprintf(stderr, "<3>WSL (%d) ERROR: UtilConnectUnix:510: connect failed %d\n", getpid(), errno);
                exit(1);
        }
}

static void answer(const char *program) {
        FILE *file = fopen("/run/init-answer", "r");
        int status = 0, c;
        double seconds = 0;

        if (!file)
                return;
        fscanf(file, "%d %lf\n", &status, &seconds);
        usleep(seconds * 1e6);
        while ((c = getc(file)) != EOF)
                if (c != '%')
                        putc(c, stderr);
                else if (getc(file) == 's')
                        fputs(program, stderr);
                else
                        fprintf(stderr, "%d", getpid());
        if (status != 0)
                exit(status);
}

int main(int argc, char **argv) {
        char directory[4096];

        /* WSL's throws where the current directory was removed. */
        if (!getcwd(directory, sizeof(directory)))
                return 1;
        if (access("/run/WSL", F_OK) == 0)
                connect_to_windows();
        answer(argc > 1 ? argv[1] : "");
        /* With the flag P: the interpreter, the program's path, its argv[0], its arguments. */
        if (argc > 3 && strcmp(argv[3], "--quiet") == 0)
                return 42;
        printf("/init");
        for (int i = 1; i < argc; i++)
                printf(" %s", argv[i]);
        printf("\n");
        return 0;
}

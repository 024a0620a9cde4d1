/* SPDX-License-Identifier: MIT */
/* launch PROGRAM [SECONDS]: starts PROGRAM over and over until SIGTERM or the time is up.
 * Prints how many launches there were, how many were not answered by /init (see init.c), and
 * the times without one that was, in milliseconds: the longest, and the sum of those in which
 * one failed. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t done;

static void stop(int signal) {
        (void) signal;
        done = 1;
}

static double now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
        char *args[] = { argv[1], "--quiet", NULL }, *environment[] = { NULL };
        long launches = 0, failed = 0, failed_before = 0;
        double end = argc > 2 ? now() + atof(argv[2]) * 1e3 : 0, good = now(), outage = 0, lost = 0;
        struct sigaction action = { .sa_handler = stop };

        posix_spawn_file_actions_t quiet;

        posix_spawn_file_actions_init(&quiet);
        posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
        sigaction(SIGTERM, &action, NULL);
        /* Tells the program that started this one that launches happen from now on. */
        printf("launching\n");
        fflush(stdout);
        while (!done && (end == 0 || now() < end)) {
                pid_t pid;
                int status = 0, error = posix_spawn(&pid, argv[1], &quiet, NULL, args, environment);

                if (error == 0)
                        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                                ;
                launches++;
                double time = now();
                if (time - good > outage)
                        outage = time - good;
                if (error != 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 42)
                        failed++;
                else {
                        if (failed > failed_before)
                                lost += time - good;
                        failed_before = failed;
                        good = time;
                }
        }
        if (failed > failed_before)
                lost += now() - good;
        printf("%ld %ld %.1f %.1f\n", launches, failed, outage, lost);
        return 0;
}

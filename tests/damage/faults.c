/* Loaded before the C library: a file system that lies about locks, and a clock that somebody sets.
 *
 * FAULTS_LOCKS=lie     every fcntl lock is granted
 * FAULTS_CLOCK=FILE    CLOCK_REALTIME is off by the seconds that the file says at the moment
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int granted(int command) {
    return getenv("FAULTS_LOCKS") && (command == F_SETLK || command == F_SETLKW);
}

#define WRAPPED(name)                                               \
    int name(int file, int command, ...) {                          \
        static int (*real)(int, int, ...);                          \
        va_list arguments;                                          \
        void *argument;                                             \
        if (!real) real = dlsym(RTLD_NEXT, #name);                  \
        va_start(arguments, command);                               \
        argument = va_arg(arguments, void *);                       \
        va_end(arguments);                                          \
        return granted(command) ? 0 : real(file, command, argument); \
    }
WRAPPED(fcntl)
WRAPPED(fcntl64)

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("FAULTS_CLOCK");
    if (result == 0 && clock == CLOCK_REALTIME && path) {
        FILE *file = fopen(path, "r");
        long seconds = 0;
        if (file) {
            if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
            fclose(file);
        }
    }
    return result;
}

/* The writer: a guest's only program. It writes its disks, remembers in its own memory what each
 * sector must hold (so the memory migrates with the disks), compares, and prints what it finds as
 * lines of a word and JSON on its console, and lines of a dot if it is to tick. Lines typed there
 * are orders:
 *
 *     check ID      compare everything written; ends with a VERDICT line that has the ID
 *     rate N        writes a second; "idle" or "max" as well
 *     reset         forget the longest gap and the slowest request
 *     quit          power off
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "lane.h"

#define BEAT 50 /* milliseconds between two looks at the clock */
#define SECOND 1000000000ull

static struct {
    uint64_t beat;          /* CLOCK_BOOTTIME of the last look; it counts what a suspend took */
    uint64_t beat_running;  /* likewise by CLOCK_MONOTONIC, which does not */
    uint64_t gap, gap_running;
    bool checking;
    char id[32];
    unsigned long long bad, checked; /* as they were when the check began */
} state;

static unsigned long long get(atomic_ullong *counter)
{
    return atomic_load(counter);
}

static void print_counters(void)
{
    printf("\"writes\": %llu, \"reads\": %llu, \"flushes\": %llu, \"discards\": %llu, "
           "\"discards_refused\": %u, \"errors\": %llu, \"bad\": %llu, \"gap\": %.3f, "
           "\"gap_running\": %.3f, \"slowest\": %.3f, \"uptime\": %.3f, \"running\": %.3f}\n",
           get(&counters.writes), get(&counters.reads), get(&counters.flushes),
           get(&counters.discards), atomic_load(&counters.discards_refused), get(&counters.errors),
           get(&counters.bad), (double)state.gap / SECOND, (double)state.gap_running / SECOND,
           (double)get(&counters.slowest) / SECOND, (double)nanoseconds(CLOCK_BOOTTIME) / SECOND,
           (double)nanoseconds(CLOCK_MONOTONIC) / SECOND);
}

static void report(void)
{
    static unsigned number;

    printf("REPORT {\"number\": %u, \"busy\": %s, ", ++number, lanes_busy() ? "true" : "false");
    print_counters();
}

static void begin_check(const char *id)
{
    snprintf(state.id, sizeof state.id, "%s", id);
    state.bad = get(&counters.bad);
    state.checked = get(&counters.checked);
    state.checking = true;
    lanes_check();
}

static void end_check(void)
{
    bool good = get(&counters.bad) == 0 && get(&counters.errors) == 0;

    state.checking = false;
    printf("VERDICT {\"id\": \"%s\", \"good\": %s, \"sectors\": %llu, \"bad_now\": %llu, ",
           state.id, good ? "true" : "false", get(&counters.checked) - state.checked,
           get(&counters.bad) - state.bad);
    print_counters();
}

static void reset(void)
{
    state.gap = state.gap_running = 0;
    atomic_store(&counters.slowest, 0);
}

/* Tried on a machine that is not a guest, it must not power that off. */
static void quit(void)
{
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    exit(0);
}

static void obey(char *line)
{
    line[strcspn(line, "\r\n")] = 0;
    if (!strncmp(line, "check ", 6) && !state.checking)
        begin_check(line + 6);
    else if (!strncmp(line, "rate ", 5))
        lanes_rate(options_rate(line + 5));
    else if (!strcmp(line, "reset"))
        reset();
    else if (!strcmp(line, "quit"))
        quit();
    else if (*line)
        printf("REFUSED \"%s\"\n", line);
}

static void look_at_clock(void)
{
    uint64_t now = nanoseconds(CLOCK_BOOTTIME), running = nanoseconds(CLOCK_MONOTONIC);

    if (state.beat && now - state.beat > state.gap)
        state.gap = now - state.beat;
    if (state.beat && running - state.beat_running > state.gap_running)
        state.gap_running = running - state.beat_running;
    state.beat = now;
    state.beat_running = running;
}

static void await_order(int milliseconds)
{
    static char line[256];
    static size_t used;
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

    if (poll(&input, 1, milliseconds) <= 0 || !(input.revents & POLLIN))
        return;
    ssize_t got = read(STDIN_FILENO, line + used, sizeof line - 1 - used);
    if (got <= 0)
        return;
    used += (size_t)got;
    line[used] = 0;
    if (strchr(line, '\n') || used == sizeof line - 1) {
        obey(line);
        used = 0;
    }
}

static void no_echo(void)
{
    struct termios terminal;

    if (tcgetattr(STDIN_FILENO, &terminal))
        return;
    terminal.c_lflag &= (tcflag_t)~ECHO;
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
}

static bool await_disk(const char *name)
{
    char path[64];

    snprintf(path, sizeof path, "/dev/%s", name);
    for (int i = 0; i < 1000 && access(path, F_OK); i++)
        usleep(20000);
    return access(path, F_OK) == 0;
}

static unsigned start_disks(const struct options *options)
{
    char names[sizeof options->disks];
    unsigned lanes = 0, number = 0;

    strcpy(names, options->disks);
    for (char *name = strtok(names, ","); name && number < MAX_DISKS; name = strtok(NULL, ",")) {
        unsigned started = await_disk(name) ? lanes_start(options, number, name) : 0;
        if (!started)
            printf("FATAL {\"disk\": \"%s\", \"reason\": \"not usable\"}\n", name);
        lanes += started;
        number++;
    }
    return lanes;
}

int main(void)
{
    struct options options = options_read();
    uint64_t next = 0, next_check = options.check * SECOND;
    unsigned lanes;

    setvbuf(stdout, NULL, _IOLBF, 0);
    no_echo();
    lanes = start_disks(&options);
    printf("START {\"disks\": \"%s\", \"lanes\": %u}\n", options.disks, lanes);
    lanes_rate(options.rate);
    for (;;) {
        uint64_t now = nanoseconds(CLOCK_MONOTONIC);
        if (now >= next) {
            report();
            next = now + SECOND;
        }
        if (state.checking && !lanes_busy())
            end_check();
        if (options.check && !state.checking && now >= next_check) {
            begin_check("periodic");
            next_check = now + options.check * SECOND;
        }
        await_order(options.tick ? (int)options.tick : BEAT);
        look_at_clock();
        if (options.tick)
            puts(".");
    }
}

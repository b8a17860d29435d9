#define _GNU_SOURCE
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "request.h"

#define BLOCK 8u    /* sectors */

/* What main asks of the lanes, and how many lanes there are to ask. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t rate;
    unsigned lanes, checks, busy;
} orders = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t draw(struct lane *lane)
{
    lane->random ^= lane->random << 13;
    lane->random ^= lane->random >> 7;
    lane->random ^= lane->random << 17;
    return lane->random >> 11;
}

static bool one_in(struct lane *lane, uint32_t many)
{
    return many && draw(lane) % many == 0;
}

static struct range range_of(const struct lane *lane, uint64_t chunk, uint32_t start, uint32_t count)
{
    uint64_t there = (chunk * lane->step + lane->index) * CHUNK;

    return (struct range){chunk * CHUNK + start, there + start, count};
}

static uint64_t some_chunk(struct lane *lane)
{
    uint64_t hot = (uint64_t)lane->options->hot * 2048 / CHUNK / lane->step;

    if (hot == 0 || hot > lane->chunks || one_in(lane, 16))
        hot = lane->chunks;
    return draw(lane) % hot;
}

/* Mostly one block; now and then a part of one, or a whole chunk. */
static struct range some_range(struct lane *lane)
{
    uint64_t chunk = some_chunk(lane);
    uint32_t block = (uint32_t)(draw(lane) % (CHUNK / BLOCK)) * BLOCK;

    if (one_in(lane, lane->options->partial) && lane->granule < BLOCK) {
        uint32_t start = (uint32_t)(draw(lane) % (BLOCK / lane->granule)) * lane->granule;
        uint32_t most = (BLOCK - start) / lane->granule;
        uint32_t count = (1 + (uint32_t)(draw(lane) % most)) * lane->granule;
        return range_of(lane, chunk, block + start, count == BLOCK ? lane->granule : count);
    }
    if (one_in(lane, 32))
        return range_of(lane, chunk, 0, CHUNK);
    return range_of(lane, chunk, block, BLOCK);
}

static void check_all(struct lane *lane)
{
    for (uint64_t chunk = 0; chunk < lane->chunks; chunk++) {
        struct range range = range_of(lane, chunk, 0, CHUNK);
        bool known = false;
        for (uint32_t i = 0; i < CHUNK && !known; i++)
            known = lane->expected[range.own + i] != UNKNOWN;
        if (known)
            atomic_fetch_add(&counters.checked, request_compare(lane, range));
    }
}

static void one_step(struct lane *lane)
{
    const struct options *options = lane->options;

    if (one_in(lane, options->discard))
        request_discard(lane, some_range(lane));
    else
        request_write(lane, some_range(lane));
    if (one_in(lane, options->flush))
        request_flush(lane);
    if (one_in(lane, options->verify)) {
        request_compare(lane, some_range(lane));
        atomic_fetch_add(&counters.reads, 1);
    }
}

/* Wait until the next write is due or something else is asked; returns whether to check. */
static bool await_orders(struct lane *lane, uint64_t *due)
{
    bool check;

    pthread_mutex_lock(&orders.lock);
    for (;;) {
        uint64_t now = nanoseconds(CLOCK_MONOTONIC);
        check = lane->checks != orders.checks;
        if (check || orders.rate == RATE_MAX)
            break;
        if (orders.rate == 0) {
            pthread_cond_wait(&orders.changed, &orders.lock);
            *due = 0;
            continue;
        }
        uint64_t pause = 1000000000ull * orders.lanes / orders.rate;
        if (*due + pause + 1000000000u < now) /* far behind: do not catch up in a burst */
            *due = now - pause;
        if (*due + pause <= now) {
            *due += pause;
            break;
        }
        uint64_t until = *due + pause;
        struct timespec time = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
        pthread_cond_timedwait(&orders.changed, &orders.lock, &time);
    }
    pthread_mutex_unlock(&orders.lock);
    return check;
}

static void finished(void)
{
    pthread_mutex_lock(&orders.lock);
    orders.busy--;
    pthread_mutex_unlock(&orders.lock);
}

static void *run(void *argument)
{
    struct lane *lane = argument;
    uint64_t due = 0, fill = (uint64_t)lane->options->prefill * 2048 / CHUNK / lane->step;

    for (uint64_t chunk = 0; chunk < lane->chunks && chunk < fill; chunk++)
        request_write(lane, range_of(lane, chunk, 0, CHUNK));
    finished();
    for (;;) {
        if (await_orders(lane, &due)) {
            check_all(lane);
            lane->checks++;
            finished();
        } else {
            one_step(lane);
        }
    }
    return NULL;
}

static bool prepare(struct lane *lane, uint64_t bytes)
{
    lane->chunks = bytes / SECTOR / CHUNK / lane->step;
    lane->expected = calloc(lane->chunks * CHUNK, sizeof *lane->expected);
    lane->random = (lane->options->seed + 1) * 0x9e3779b97f4a7c15ULL + lane->disk * 8191 + lane->index;
    return lane->chunks && lane->expected &&
           !posix_memalign((void **)&lane->buffer, 4096, CHUNK * SECTOR);
}

unsigned lanes_start(const struct options *options, unsigned number, const char *name)
{
    char path[64];
    uint64_t bytes = 0;
    int least = SECTOR;
    unsigned count = options->lanes ? options->lanes : 1;

    snprintf(path, sizeof path, "/dev/%s", name);
    int file = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (file < 0 || ioctl(file, BLKGETSIZE64, &bytes) || ioctl(file, BLKSSZGET, &least)) {
        printf("FATAL {\"disk\": \"%s\", \"reason\": \"%s\"}\n", name, strerror(errno));
        return 0;
    }
    for (unsigned i = 0; i < count; i++) {
        struct lane *lane = calloc(1, sizeof *lane);
        pthread_t thread;
        *lane = (struct lane){.options = options, .file = file, .disk = number, .index = i,
                              .step = count, .name = strdup(name),
                              .granule = (uint32_t)least / SECTOR};
        if (!prepare(lane, bytes)) {
            printf("FATAL {\"disk\": \"%s\", \"reason\": \"too small, or memory too small\"}\n", name);
            return 0;
        }
        pthread_mutex_lock(&orders.lock);
        orders.lanes++;
        orders.busy++;
        pthread_mutex_unlock(&orders.lock);
        if (pthread_create(&thread, NULL, run, lane))
            abort();
    }
    return count;
}

void lanes_rate(uint32_t rate)
{
    pthread_mutex_lock(&orders.lock);
    orders.rate = rate;
    pthread_cond_broadcast(&orders.changed);
    pthread_mutex_unlock(&orders.lock);
}

void lanes_check(void)
{
    pthread_mutex_lock(&orders.lock);
    orders.checks++;
    orders.busy += orders.lanes;
    pthread_cond_broadcast(&orders.changed);
    pthread_mutex_unlock(&orders.lock);
}

unsigned lanes_busy(void)
{
    pthread_mutex_lock(&orders.lock);
    unsigned busy = orders.busy;
    pthread_mutex_unlock(&orders.lock);
    return busy;
}

__attribute__((constructor)) static void use_monotonic_clock(void)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&orders.changed, &attributes);
}

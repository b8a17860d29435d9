#define _GNU_SOURCE
#include "request.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "lane.h"

#define SHOWN 20 /* bad sectors and errors that are printed; all are counted */

struct counters counters;

static atomic_uint printed;

uint64_t nanoseconds(int clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void failed(const struct lane *lane, const char *what, struct range range)
{
    atomic_fetch_add(&counters.errors, 1);
    if (atomic_fetch_add(&printed, 1) < SHOWN)
        printf("ERROR {\"disk\": \"%s\", \"request\": \"%s\", \"sector\": %llu, \"count\": %u, "
               "\"reason\": \"%s\"}\n",
               lane->name, what, (unsigned long long)range.first, range.count, strerror(errno));
}

static void mismatch(const struct lane *lane, uint64_t sector, content expected, const void *data)
{
    struct label label = sector_label(data);

    atomic_fetch_add(&counters.bad, 1);
    if (atomic_fetch_add(&printed, 1) < SHOWN)
        printf("BAD {\"disk\": \"%s\", \"sector\": %llu, \"expected\": %u, \"discarded\": %s, "
               "\"found\": %llu, \"found_disk\": %llu, \"found_sector\": %llu}\n",
               lane->name, (unsigned long long)sector, expected & ~DISCARDED,
               expected & DISCARDED ? "true" : "false", (unsigned long long)label.sequence,
               (unsigned long long)label.disk, (unsigned long long)label.sector);
}

static void took(uint64_t since)
{
    unsigned long long spent = nanoseconds(CLOCK_BOOTTIME) - since;
    unsigned long long slowest = atomic_load(&counters.slowest);

    while (spent > slowest && !atomic_compare_exchange_weak(&counters.slowest, &slowest, spent))
        ;
}

static void expect(struct lane *lane, struct range range, content expected)
{
    for (uint32_t i = 0; i < range.count; i++)
        lane->expected[range.own + i] = expected;
}

void request_write(struct lane *lane, struct range range)
{
    uint64_t since;
    ssize_t bytes = (ssize_t)range.count * SECTOR;

    lane->sequence++;
    for (uint32_t i = 0; i < range.count; i++)
        sector_fill(lane->buffer + i * SECTOR, lane->disk, range.first + i, lane->sequence);
    since = nanoseconds(CLOCK_BOOTTIME);
    if (pwrite(lane->file, lane->buffer, (size_t)bytes, (off_t)(range.first * SECTOR)) != bytes) {
        failed(lane, "write", range);
        expect(lane, range, UNKNOWN);
        return;
    }
    took(since);
    expect(lane, range, lane->sequence);
    atomic_fetch_add(&counters.writes, 1);
}

uint32_t request_compare(struct lane *lane, struct range range)
{
    uint64_t since = nanoseconds(CLOCK_BOOTTIME);
    ssize_t bytes = (ssize_t)range.count * SECTOR;
    uint32_t known = 0;

    if (pread(lane->file, lane->buffer, (size_t)bytes, (off_t)(range.first * SECTOR)) != bytes) {
        failed(lane, "read", range);
        return 0;
    }
    took(since);
    for (uint32_t i = 0; i < range.count; i++) {
        content expected = lane->expected[range.own + i];
        known += expected != UNKNOWN;
        if (!sector_matches(lane->buffer + i * SECTOR, lane->disk, range.first + i, expected))
            mismatch(lane, range.first + i, expected, lane->buffer + i * SECTOR);
    }
    return known;
}

void request_discard(struct lane *lane, struct range range)
{
    uint64_t bytes[2] = {range.first * SECTOR, (uint64_t)range.count * SECTOR};
    static _Thread_local bool refused;

    if (refused)
        return;
    if (ioctl(lane->file, BLKDISCARD, bytes)) {
        refused = errno == EOPNOTSUPP;
        if (refused)
            atomic_fetch_add(&counters.discards_refused, 1);
        else
            failed(lane, "discard", range);
        return;
    }
    atomic_fetch_add(&counters.discards, 1);
    for (uint32_t i = 0; i < range.count; i++)
        if (lane->expected[range.own + i] != UNKNOWN)
            lane->expected[range.own + i] |= DISCARDED;
}

void request_flush(struct lane *lane)
{
    if (fdatasync(lane->file))
        failed(lane, "flush", (struct range){0, 0, 0});
    else
        atomic_fetch_add(&counters.flushes, 1);
}

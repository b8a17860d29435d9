/* A lane writes, reads and checks its own part of a disk, one request at a time. */
#ifndef LANE_H
#define LANE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "options.h"

/* What all lanes counted since the start; the two longest since the last reset. */
struct counters {
    atomic_ullong writes;       /* acknowledged writes */
    atomic_ullong reads;        /* verifying reads */
    atomic_ullong flushes;      /* acknowledged flushes */
    atomic_ullong discards;     /* acknowledged discards */
    atomic_ullong errors;       /* requests that failed */
    atomic_ullong bad;          /* sectors that did not hold what they should */
    atomic_ullong checked;      /* sectors compared by the full checks */
    atomic_ullong slowest;      /* nanoseconds of the longest request, by CLOCK_BOOTTIME */
    atomic_uint discards_refused; /* lanes whose disk knows no discard */
};

extern struct counters counters;

/* Start the lanes of the disk that is number `number` and called `name`; returns how many, or 0
 * after saying why it cannot be used. */
unsigned lanes_start(const struct options *options, unsigned number, const char *name);

/* Change the rate of all lanes together. */
void lanes_rate(uint32_t rate);

/* Have every lane compare all it wrote, between two of its writes. */
void lanes_check(void);

/* How many lanes have not finished the check, or their first fill. */
unsigned lanes_busy(void);

uint64_t nanoseconds(int clock);

#endif

/* Single requests of a lane, and what is known of the sectors they touch. */
#ifndef REQUEST_H
#define REQUEST_H

#include <stdint.h>

#include "options.h"
#include "sectors.h"

#define CHUNK 128u  /* sectors; the largest request; chunks go to the lanes of a disk in turn */

struct lane {
    const struct options *options;
    int file;
    unsigned disk, index, step; /* chunks index, index + step, ... are this lane's */
    const char *name;
    uint64_t chunks;            /* of this lane */
    uint64_t random;
    uint32_t sequence, granule; /* granule: sectors, the least the disk takes */
    content *expected;          /* of every sector of this lane */
    unsigned char *buffer;
    unsigned checks;            /* done */
};

struct range {
    uint64_t own;   /* where it is among the lane's own sectors */
    uint64_t first; /* where it is on the disk */
    uint32_t count;
};

/* A write that failed may have reached the disk or not: its sectors are unknown from then on. */
void request_write(struct lane *lane, struct range range);

/* Read and compare; returns how many of the sectors had a known content. */
uint32_t request_compare(struct lane *lane, struct range range);

void request_discard(struct lane *lane, struct range range);

void request_flush(struct lane *lane);

#endif

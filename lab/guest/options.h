/* What the kernel's command line asks of the writer, as writer.NAME=VALUE. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdint.h>

#define MAX_DISKS 8
#define RATE_MAX UINT32_MAX

struct options {
    char disks[128];    /* names under /dev, with commas between */
    uint32_t rate;      /* writes a second, all disks together; 0 is none, RATE_MAX unthrottled */
    uint32_t lanes;     /* writes under way at once, on each disk */
    uint32_t partial;   /* one write in so many is of less than a 4 KiB block; 0 is none */
    uint32_t discard;   /* one write in so many is a discard instead; 0 is none */
    uint32_t flush;     /* a flush after so many writes; 0 is never */
    uint32_t verify;    /* a verifying read after so many writes; 0 is never */
    uint32_t hot;       /* MiB at a disk's start that get 15 of 16 writes; 0 is the whole disk */
    uint32_t prefill;   /* MiB at a disk's start that are written once, first */
    uint32_t check;     /* seconds between full checks; 0 is only when asked */
    uint32_t tick;      /* milliseconds between lines that only say that it runs; 0 is none */
    uint64_t seed;      /* of the choice of blocks */
};

struct options options_read(void);

/* "idle", "max" or writes a second; anything else is as "idle". */
uint32_t options_rate(const char *text);

#endif

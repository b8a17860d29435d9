/* What is written: sectors that say where they belong and which write they are from. */
#ifndef SECTORS_H
#define SECTORS_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR 512u

/* What a sector is known to hold: 0 is "never written here", else the sequence number of its last
 * acknowledged write, with DISCARDED if it was discarded since. */
typedef uint32_t content;
#define UNKNOWN 0u
#define DISCARDED 0x80000000u

/* Who a sector says it is; zero in `magic` if it says nothing that can be understood. */
struct label {
    uint64_t magic, disk, sector, sequence;
};

/* Fill the SECTOR bytes at `data` for write `sequence` of a sector of a disk. */
void sector_fill(void *data, unsigned disk, uint64_t sector, uint32_t sequence);

/* Whether the SECTOR bytes at `data` are what `expected` says, every bit of them. A discarded
 * sector may hold zeroes or what was last written; an unknown one anything. */
bool sector_matches(const void *data, unsigned disk, uint64_t sector, content expected);

struct label sector_label(const void *data);

#endif

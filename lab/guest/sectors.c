#include "sectors.h"

#include <string.h>

#define MAGIC 0x766d66657272790aULL
#define WORDS (SECTOR / sizeof(uint64_t))

/* The finaliser of MurmurHash3: every bit of the input changes half of the output's. */
static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 33) * 0xff51afd7ed558ccdULL;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}

void sector_fill(void *data, unsigned disk, uint64_t sector, uint32_t sequence)
{
    uint64_t words[WORDS];
    struct label label = {MAGIC, disk, sector, sequence};
    uint64_t key = mixed(mixed((uint64_t)disk << 56 | sector) + sequence);

    memcpy(words, &label, sizeof label);
    for (unsigned i = sizeof label / sizeof words[0]; i < WORDS; i++)
        words[i] = key += 0x9e3779b97f4a7c15ULL;
    memcpy(data, words, SECTOR);
}

bool sector_matches(const void *data, unsigned disk, uint64_t sector, content expected)
{
    static const unsigned char zeroes[SECTOR];
    unsigned char wanted[SECTOR];

    if (expected == UNKNOWN || (expected & DISCARDED && !memcmp(data, zeroes, SECTOR)))
        return true;
    sector_fill(wanted, disk, sector, expected & ~DISCARDED);
    return !memcmp(data, wanted, SECTOR);
}

struct label sector_label(const void *data)
{
    struct label label;

    memcpy(&label, data, sizeof label);
    if (label.magic != MAGIC)
        memset(&label, 0, sizeof label);
    return label;
}

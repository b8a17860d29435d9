#define _GNU_SOURCE
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char line[4096];

static const char *value(const char *name, const char *otherwise)
{
    static char found[128];
    char key[32];
    int length = snprintf(key, sizeof key, "writer.%s=", name);
    const char *at = strstr(line, key);

    if (!at)
        return otherwise;
    snprintf(found, sizeof found, "%.*s", (int)strcspn(at + length, " \n"), at + length);
    return found;
}

static uint32_t number(const char *name, const char *otherwise)
{
    return (uint32_t)strtoul(value(name, otherwise), NULL, 10);
}

uint32_t options_rate(const char *text)
{
    return strncmp(text, "max", 3) ? (uint32_t)strtoul(text, NULL, 10) : RATE_MAX;
}

struct options options_read(void)
{
    struct options options;
    FILE *file = fopen("/proc/cmdline", "r");

    if (file) {
        if (!fgets(line, sizeof line, file))
            line[0] = 0;
        fclose(file);
    }
    options.rate = options_rate(value("rate", "100"));
    options.lanes = number("lanes", "1");
    options.partial = number("partial", "8");
    options.discard = number("discard", "0");
    options.flush = number("flush", "0");
    options.verify = number("verify", "4");
    options.hot = number("hot", "0");
    options.prefill = number("prefill", "0");
    options.check = number("check", "0");
    options.tick = number("tick", "0");
    options.seed = number("seed", "1");
    snprintf(options.disks, sizeof options.disks, "%s", value("disks", "xvda"));
    return options;
}

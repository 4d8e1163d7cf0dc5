/* The device tree: the command line and the memory. Addresses and sizes are two cells each, as on every `virt`. */
#include "aarch64.h"

#define MAGIC 0xd00dfeed
enum token { BEGIN_NODE = 1, END_NODE = 2, PROPERTY = 3, NOP = 4, END = 9 };

__attribute__((section(".data"))) const uint8_t *device_tree;

static uint32_t be32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint64_t be64(const uint8_t *at) { return (uint64_t)be32(at) << 32 | be32(at + 4); }

static int begins(const char *text, const char *prefix) {
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return 1;
}

static int equal(const char *one, const char *other) { return begins(one, other) && begins(other, one); }

/* The value of the `number`th property `property` in nodes whose name begins with `node`, its length in *length; null if
 * there is none. */
static const uint8_t *find(const char *node, const char *property, unsigned number, uint32_t *length) {
    if (!device_tree || be32(device_tree) != MAGIC)
        return 0;
    const uint8_t *at = device_tree + be32(device_tree + 8);
    const char *names = (const char *)device_tree + be32(device_tree + 12);
    int inside = 0;
    for (;;) {
        uint32_t token = be32(at);
        at += 4;
        if (token == BEGIN_NODE) {
            const char *name = (const char *)at;
            inside = begins(name, node);
            while (*at)
                at++;
            at = (const uint8_t *)(((uint64_t)at + 4) & ~3ull);
        } else if (token == PROPERTY) {
            *length = be32(at);
            const char *name = names + be32(at + 4);
            if (inside && equal(name, property) && !number--)
                return at + 8;
            at = (const uint8_t *)(((uint64_t)at + 8 + *length + 3) & ~3ull);
        } else if (token == END_NODE) {
            inside = 0;
        } else if (token != NOP) {
            return 0;
        }
    }
}

const char *loader_command_line(void) {
    uint32_t length;
    return (const char *)find("chosen", "bootargs", 0, &length);
}

void add_loader_ranges(void) {
    const uint8_t *reg;
    uint32_t length;
    for (unsigned number = 0; (reg = find("memory", "reg", number, &length)); number++)
        for (; length >= 16; reg += 16, length -= 16)
            add_range(be64(reg), be64(reg) + be64(reg + 8));
}

void clear_loader(void) {
    if (device_tree && be32(device_tree) == MAGIC)
        memset((void *)device_tree, 0, be32(device_tree + 4));
    device_tree = 0;
}

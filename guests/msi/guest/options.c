#include "options.h"

#include "cpu.h"

enum token { BEGIN_NODE = 1, END_NODE = 2, PROPERTY = 3, NOTHING = 4 };

static uint32_t word(uint64_t at)
{
    return __builtin_bswap32(read32(at));
}

static char byte(uint64_t at)
{
    return *(volatile char *)at;
}

static int is(uint64_t at, const char *text)
{
    while (*text && byte(at) == *text)
        at++, text++;
    return *text == 0 && byte(at) == 0;
}

static uint64_t find_command_line(uint64_t tree)
{
    uint64_t at = tree + word(tree + 8), strings = tree + word(tree + 12);
    for (;;) {
        uint32_t token = word(at);
        at += 4;
        if (token == BEGIN_NODE) {
            while (byte(at))
                at++;
            at = (at + 4) & ~3ul;
        } else if (token == PROPERTY) {
            uint32_t length = word(at), name = word(at + 4);
            if (is(strings + name, "bootargs"))
                return at + 8;
            at = (at + 8 + length + 3) & ~3ul;
        } else if (token != END_NODE && token != NOTHING) {
            return 0;
        }
    }
}

uint64_t option(uint64_t device_tree, const char *name, uint64_t otherwise)
{
    uint64_t at = find_command_line(device_tree);
    while (at && byte(at)) {
        const char *wanted = name;
        while (*wanted && byte(at) == *wanted)
            at++, wanted++;
        if (*wanted == 0 && byte(at) == '=') {
            uint64_t value = 0;
            for (at++; byte(at) >= '0' && byte(at) <= '9'; at++)
                value = value * 10 + (byte(at) - '0');
            return value;
        }
        while (byte(at) && byte(at) != ' ')
            at++;
        while (byte(at) == ' ')
            at++;
    }
    return otherwise;
}

#include "options.h"
#include "layout.h"
#include "say.h"

#define UNSET (~0ull)

struct options options;

static const struct options defaults = {
    .heartbeat_port = 0xe9,
    .heartbeat_usec = 1000,
    .say = SERIAL,
    .seed = 0x5eed,
    .set = 16,
    .rate = 64,
    .scan = UNSET,
    .cpus = 1,
    .tick = 10000,
    .serial = 1,
    .hold = 1,
    .avx = 2,
};

static const struct {
    const char *name;
    uint64_t *value;
} numbers[] = {
    {"say", &options.say},   {"seed", &options.seed},   {"mem", &options.mem},     {"set", &options.set},
    {"rate", &options.rate}, {"scan", &options.scan},   {"cpus", &options.cpus},   {"sleep", &options.sleep},
    {"wait", &options.wait}, {"tick", &options.tick},   {"pend", &options.pend},   {"serial", &options.serial},
    {"echo", &options.echo}, {"hold", &options.hold},   {"avx", &options.avx},       {"tsc_khz", &options.tsc_khz},
};

/* If `text` begins with `prefix`, what follows it; else null. */
static const char *after(const char *text, const char *prefix) {
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return text;
}

/* The number at *text, which moves behind it. */
static uint64_t number(const char **text) {
    const char *hexadecimal = after(*text, "0x");
    uint64_t base = hexadecimal ? 16 : 10, value = 0;
    if (hexadecimal)
        *text = hexadecimal;
    for (;; (*text)++) {
        char c = **text;
        uint64_t digit = c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' ? (c | 0x20) - 'a' + 10 : 99;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

/* One word, ended by NUL. Returns whether it was understood to its end. */
static int parse(const char *word) {
    const char *text;
    if ((text = after(word, "fill="))) {
        options.fill_random = *text == 'r';
        text = after(text, options.fill_random ? "random" : "zero");
        return text && !*text;
    }
    if ((text = after(word, "at="))) {
        options.high = *text == 'h';
        text = after(text, options.high ? "high" : "low");
        return text && !*text;
    }
    if ((text = after(word, "hb="))) {
        options.heartbeat_port = number(&text);
        if (*text++ != ',')
            return 0;
        options.heartbeat_usec = number(&text);
        return !*text;
    }
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        text = after(word, numbers[i].name);
        if (text && *text == '=') {
            text++;
            uint64_t value = number(&text);
            if (*text)
                return 0;
            *numbers[i].value = value;
            return 1;
        }
    }
    return 0;
}

void parse_options(const char *text) {
    options = defaults;
    while (*text) {
        char word[64];
        unsigned length = 0;
        int foreign = 0; /* virtio_mmio.device=… and the like, which a VMM adds for Linux */
        while (*text == ' ')
            text++;
        for (; *text && *text != ' '; text++) {
            foreign |= *text == '.';
            if (length < sizeof word - 1)
                word[length++] = *text;
        }
        word[length] = 0;
        if (length && !foreign && !parse(word))
            say("option not understood: %s", word);
    }
    if (options.scan == UNSET)
        options.scan = options.fill_random ? 16 : 0;
    if (options.cpus < 1)
        options.cpus = 1;
    if (options.cpus > MAX_VCPUS - 2)
        options.cpus = MAX_VCPUS - 2;
}

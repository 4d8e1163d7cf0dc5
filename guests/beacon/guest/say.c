#include "say.h"
#include "guest.h"
#include <stdarg.h>

static volatile uint32_t lock;

struct line {
    char text[200];
    unsigned length;
};

static void put(struct line *line, char c) {
    if (line->length < sizeof line->text)
        line->text[line->length++] = c;
}

static void put_text(struct line *line, const char *text) {
    while (*text)
        put(line, *text++);
}

static void put_number(struct line *line, uint64_t value, unsigned base) {
    char digits[20];
    unsigned n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n)
        put(line, digits[--n]);
}

void say(const char *format, ...) {
    if (!options.say)
        return;
    struct line line = {.length = 0};
    va_list arguments;
    va_start(arguments, format);
    put_text(&line, "beacon: ");
    for (; *format; format++) {
        if (*format != '%') {
            put(&line, *format);
            continue;
        }
        switch (*++format) {
        case 's': put_text(&line, va_arg(arguments, const char *)); break;
        case 'd': put_number(&line, va_arg(arguments, uint64_t), 10); break;
        case 'x':
            put_text(&line, "0x");
            put_number(&line, va_arg(arguments, uint64_t), 16);
            break;
        }
    }
    va_end(arguments);
    line.length = line.length < sizeof line.text ? line.length : sizeof line.text - 1;
    put(&line, '\n');

    /* A vCPU that died while speaking holds the lock: then speak anyway. */
    for (int tries = 0; tries < 100000000 && __atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE); tries++)
        pause();
    for (unsigned i = 0; i < line.length; i++)
        put_byte(options.say, line.text[i]);
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

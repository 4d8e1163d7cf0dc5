/* Bytes a C compiler may ask for. */
#include <stddef.h>
#include <stdint.h>

void *memset(void *to, int value, size_t size) {
    uint8_t *at = to;
    while (size--)
        *at++ = value;
    return to;
}

void *memcpy(void *to, const void *from, size_t size) {
    uint8_t *at = to;
    const uint8_t *source = from;
    while (size--)
        *at++ = *source++;
    return to;
}

/* The content of a page as a function of (seed, page, generation). src/page.rs is its definition in words. */
#pragma once
#include <stdint.h>

#define PAGE_WORDS 512
#define GOLDEN 0x9e3779b97f4a7c15ull

static inline uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline uint64_t page_key(uint64_t seed, uint64_t page, uint64_t generation) {
    return mix(mix(mix(seed + GOLDEN) + page) + generation);
}

/* Word `index` (2 to 511) of the page with `key`. Words 0 and 1 are the page number and the generation in clear. */
static inline uint64_t page_word(uint64_t key, uint64_t index) {
    uint64_t z = key + index * GOLDEN;
    z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ull;
    return z ^ (z >> 29);
}

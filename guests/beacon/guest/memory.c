/* The guest's pages: which there are, their first stamping, the dirtying of the working set and the re-reading of the
 * fill. Progress is one counter, so that the host can always tell every page's generation from it. */
#include "guest.h"

#define PAGES_PER_MIB 256

/* RAM from `from` up to `to`, but for what the guest itself takes of it. */
void add_range(uint64_t from, uint64_t to) {
    if (from < DATA_START)
        from = DATA_START;
    if (to > MAPPED_END)
        to = MAPPED_END;
    uint64_t first = (from + 0xfff) >> 12, end = to >> 12;
    if (end <= first || control.ranges == MAX_RANGES)
        return;
    control.range[control.ranges].first_page = first;
    control.range[control.ranges].pages = end - first;
    control.ranges++;
    control.data_pages += end - first;
}

/* Data pages are numbered through all ranges; working set and fill are two runs of these numbers. */
void lay_out_memory(void) {
    add_loader_ranges();
    uint64_t pages = options.mem * PAGES_PER_MIB, set = options.set * PAGES_PER_MIB;
    if (!pages || pages > control.data_pages)
        pages = control.data_pages;
    if (set > pages)
        set = pages;
    control.set_pages = set;
    control.fill_pages = pages - set;
    control.set_first = options.high ? control.data_pages - set : 0;
    control.fill_first = options.high ? control.data_pages - pages : set;
    for (uint64_t i = 0; i < options.cpus; i++) {
        vcpu_t vcpu = &control.vcpu[i];
        vcpu->writing = NONE_PAGE;
        vcpu->set_first = control.set_first + set * i / options.cpus;
        vcpu->set_pages = control.set_first + set * (i + 1) / options.cpus - vcpu->set_first;
        vcpu->fill_first = control.fill_first + control.fill_pages * i / options.cpus;
        vcpu->fill_pages = control.fill_first + control.fill_pages * (i + 1) / options.cpus - vcpu->fill_first;
    }
}

/* The page number (guest-physical address / 4096) of a data page. */
uint64_t data_page(uint64_t index) {
    volatile struct range *range = control.range;
    for (; index >= range->pages; range++)
        index -= range->pages;
    return range->first_page + index;
}

static void write_page(uint64_t page, uint64_t generation) {
    volatile uint64_t *words = (volatile uint64_t *)(page << 12);
    uint64_t key = page_key(control.seed, page, generation);
    words[0] = page;
    words[1] = generation;
    for (uint64_t i = 2; i < PAGE_WORDS; i++)
        words[i] = page_word(key, i);
}

static int holds(uint64_t page, uint64_t generation) {
    const uint64_t *words = (const uint64_t *)(page << 12);
    uint64_t key = page_key(control.seed, page, generation);
    uint64_t wrong = (words[0] ^ page) | (words[1] ^ generation);
    for (uint64_t i = 2; i < PAGE_WORDS; i++)
        wrong |= words[i] ^ page_word(key, i);
    return !wrong;
}

static int is_zero(uint64_t page) {
    const uint64_t *words = (const uint64_t *)(page << 12);
    uint64_t bits = 0;
    for (uint64_t i = 0; i < PAGE_WORDS; i++)
        bits |= words[i];
    return !bits;
}

/* This vCPU's part of the working set, and of the fill. */
void fill_share(vcpu_t me) {
    for (uint64_t i = 0; i < me->set_pages; i++)
        write_page(data_page(me->set_first + i), 0);
    if (options.fill_random)
        for (uint64_t i = 0; i < me->fill_pages; i++)
            write_page(data_page(me->fill_first + i), 0);
}

/* At most one edge: behind the cursor all pages have this pass's generation, ahead the last one's. One page at random
 * is looked at for it, by its first words and one more. */
static void check_edge(vcpu_t me, uint64_t cursor, uint64_t generation) {
    uint64_t dice = mix(me->progress + 1);
    uint64_t at = dice % me->set_pages;
    if (at == cursor)
        return;
    uint64_t page = data_page(me->set_first + at), expected = at < cursor ? generation : generation - 1;
    uint64_t word = 2 + (dice >> 48) % (PAGE_WORDS - 2);
    const volatile uint64_t *words = (const volatile uint64_t *)(page << 12);
    count(&me->edges);
    if (words[0] != page || words[1] != expected ||
        words[word] != page_word(page_key(control.seed, page, expected), word))
        record_page(me, page, expected);
}

/* The next page of the working set: its whole content is checked, then rewritten a generation on. */
void visit_page(vcpu_t me) {
    uint64_t progress = me->progress, cursor = progress % me->set_pages, generation = progress / me->set_pages + 1;
    uint64_t page = data_page(me->set_first + cursor);
    if (!holds(page, generation - 1))
        record_page(me, page, generation - 1);
    check_edge(me, cursor, generation);
    me->writing = page;
    write_page(page, generation);
    me->progress = progress + 1;
    me->writing = NONE_PAGE;
}

/* The next page of the fill, which nobody writes. */
void scan_page(vcpu_t me) {
    uint64_t page = data_page(me->fill_first + me->scanned % me->fill_pages);
    if (options.fill_random ? !holds(page, 0) : !is_zero(page))
        record_page(me, page, 0);
    count(&me->scanned);
}

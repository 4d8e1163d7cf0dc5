/* Faults: counted in the control block, the first of each vCPU recorded there, and announced as text. Handlers of
 * interrupts only record; the main loop announces. */
#include "guest.h"

static struct record *new_record(vcpu_t me, enum kind kind, uint32_t what) {
    static struct record spare;
    if (kind <= REGISTER)
        count(&me->mismatches[kind - 1]);
    uint64_t slot = take(&me->records);
    struct record *record = slot < MAX_RECORDS ? (struct record *)&me->record[slot] : &spare;
    record->what = what;
    record->progress = me->progress;
    record->tsc = cycles();
    record->kind = kind;
    return record;
}

/* The page at `page` should hold `generation` and does not: what does it hold? */
void record_page(vcpu_t me, uint64_t page, uint64_t generation) {
    const volatile uint64_t *words = (const volatile uint64_t *)(page << 12);
    uint64_t key = page_key(control.seed, words[0], words[1]);
    uint64_t expected_key = page_key(control.seed, page, generation);
    uint64_t bits = words[0] | words[1], first_wrong = 0;
    int whole = 1;
    if (words[0] == page)
        first_wrong = words[1] == generation ? PAGE_WORDS : 1;
    for (uint64_t i = 2; i < PAGE_WORDS; i++) {
        uint64_t word = words[i];
        bits |= word;
        whole &= word == page_word(key, i);
        if (first_wrong == PAGE_WORDS && word != page_word(expected_key, i))
            first_wrong = i;
    }
    enum kind kind = !bits ? BLANK : !whole ? CORRUPT : words[0] == page ? STALE : FOREIGN;
    struct record *record = new_record(me, kind, 0);
    record->page = page;
    record->expected = generation;
    record->found[0] = kind == CORRUPT ? first_wrong : words[0];
    record->found[1] = kind == CORRUPT ? words[first_wrong % PAGE_WORDS] : words[1];
}

void record_register(vcpu_t me, enum class class, uint64_t index, uint64_t expected, uint64_t found_value) {
    count(&me->failures[class]);
    struct record *record = new_record(me, REGISTER, class << 8 | index);
    record->expected = expected;
    record->found[0] = found_value;
}

void record_interrupt(vcpu_t me, enum interrupt_fault fault, uint64_t expected, uint64_t found_value) {
    struct record *record = new_record(me, INTERRUPT, fault);
    record->expected = expected;
    record->found[0] = found_value;
}

static const char *const page_kinds[] = {"", "stale", "foreign", "corrupt", "blank"};
static const char *const faults[] = {"", "interrupt lost", "interrupt duplicated", "interrupt early", "timer lost",
                                     "serial interrupt lost"};

/* `prefix` and a number in decimal, or a name of its own. */
static const char *register_name(uint32_t what, char name[16]) {
    struct register_names names = register_names(what >> 8);
    uint32_t index = what & 0xff;
    if (index < names.first)
        return names.names[index];
    index -= names.first;
    unsigned n = 0;
    for (; names.prefix && names.prefix[n]; n++)
        name[n] = names.prefix[n];
    if (index >= 10)
        name[n++] = '0' + index / 10;
    name[n++] = '0' + index % 10;
    name[n] = 0;
    return name;
}

static void announce_one(uint64_t vcpu, const struct record *record) {
    char name[16];
    switch (record->kind) {
    case REGISTER:
        say("register %s vcpu=%d expected=%x found=%x", register_name(record->what, name), vcpu, record->expected,
            record->found[0]);
        break;
    case INTERRUPT:
        say("%s vcpu=%d expected=%d found=%d", faults[record->what], vcpu, record->expected, record->found[0]);
        break;
    case STALE:
        say("stale page=%x expected=%d found=%d vcpu=%d", record->page, record->expected, record->found[1], vcpu);
        break;
    case FOREIGN:
        say("foreign page=%x expected=%d found=%x/%d vcpu=%d", record->page, record->expected, record->found[0],
            record->found[1], vcpu);
        break;
    default:
        say("%s page=%x expected=%d found=%d:%x vcpu=%d", page_kinds[record->kind], record->page, record->expected,
            record->found[0], record->found[1], vcpu);
    }
}

void announce(vcpu_t me) {
    static uint64_t said[MAX_VCPUS];
    uint64_t vcpu = vcpu_number(me);
    for (; said[vcpu] < me->records; said[vcpu]++)
        if (said[vcpu] < MAX_RECORDS)
            announce_one(vcpu, (const struct record *)&me->record[said[vcpu]]);
        else if (said[vcpu] == MAX_RECORDS)
            say("more faults vcpu=%d: counted, not listed", vcpu);
}

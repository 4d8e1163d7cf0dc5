/* Values unique to a vCPU and a register, so that one found elsewhere, or not at all, is told from any other. */
#include "guest.h"

uint64_t tag(uint64_t vcpu, enum class class, uint64_t index) {
    return mix(vcpu << 32 | (uint64_t)class << 16 | (index + 1));
}

int differs(vcpu_t me, enum class class, uint64_t index, uint64_t expected, uint64_t found) {
    if (expected == found)
        return 0;
    record_register(me, class, index, expected, found);
    return 1;
}

/* Of a 16-byte register the half that differs is recorded. */
int differs_wide(vcpu_t me, enum class class, uint64_t index, const uint64_t expected[2], const uint64_t found[2]) {
    return differs(me, class, index, expected[0], found[0]) || differs(me, class, index, expected[1], found[1]);
}

static uint64_t general_held[MAX_VCPUS][GENERAL_HELD];

void choose_general(uint64_t vcpu) {
    for (unsigned i = 0; i < GENERAL_HELD; i++)
        general_held[vcpu][i] = tag(vcpu, CLASS_GENERAL, i);
}

/* Spends idle time with known values in the general registers and flags. */
void hold_general(vcpu_t me, uint64_t until) {
    uint64_t vcpu = vcpu_number(me), now[GENERAL_HELD + 1];
    spin_holding(general_held[vcpu], until, now);
    if (!options.hold)
        return;
    for (unsigned i = 0; i < GENERAL_HELD; i++)
        differs(me, CLASS_GENERAL, i, general_held[vcpu][i], now[i]);
    differs(me, CLASS_FLAGS, 0, FLAGS_HELD, now[GENERAL_HELD] & FLAGS_COMPARED);
    count(&me->checks[CLASS_GENERAL]);
    count(&me->checks[CLASS_FLAGS]);
}

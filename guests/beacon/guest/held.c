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

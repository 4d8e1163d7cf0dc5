/* The self-IPI, and the TPR that holds it back in the IRR. */
#include "x86.h"

void hold_interrupts_back(int held) { mmio_write(LAPIC_TPR, held ? TPR_HOLDING_IPI : 0); }

void interrupt_oneself(vcpu_t me) {
    (void)me;
    mmio_write(LAPIC_ICR, ICR_SELF | VECTOR_IPI);
}

#include "gic.h"

#include "cpu.h"
#include "layout.h"

#define GICD_CTLR (GICD + 0x0)
#define GICR_CTLR 0x0
#define GICR_WAKER 0x14
#define GICR_PROPBASER 0x70
#define GICR_PENDBASER 0x78

static const uint32_t AFFINITY_ROUTING_GROUP_1 = 0x12;
static const uint32_t ENABLE_LPIS = 1;
static const uint32_t PROCESSOR_SLEEP = 2, CHILDREN_ASLEEP = 4;
// Normal memory, write-back, inner shareable: KVM and emulators look at it with caches on.
static const uint64_t WRITE_BACK = 7ul << 7 | 1ul << 10;
static const uint64_t PENDING_TABLE_IS_ZERO = 1ul << 62;

void gic_prepare_tables(void)
{
    // A byte an LPI: priority, enabled.
    for (uint64_t at = 0; at < (1ul << LPI_BITS) - FIRST_LPI; at += 4)
        write32(LPI_CONFIGURATION + at, 0xa1a1a1a1);
    barrier();
    write32(GICD_CTLR, AFFINITY_ROUTING_GROUP_1);
}

void gic_prepare_cpu(uint64_t cpu)
{
    uint64_t redistributor = GICR + cpu * GICR_STRIDE;
    write32(redistributor + GICR_WAKER, read32(redistributor + GICR_WAKER) & ~PROCESSOR_SLEEP);
    while (read32(redistributor + GICR_WAKER) & CHILDREN_ASLEEP)
        ;
    write64(redistributor + GICR_PROPBASER, LPI_CONFIGURATION | WRITE_BACK | (LPI_BITS - 1));
    write64(redistributor + GICR_PENDBASER, (LPI_PENDING + cpu * 0x10000) | WRITE_BACK | PENDING_TABLE_IS_ZERO);
    barrier();
    write32(redistributor + GICR_CTLR, ENABLE_LPIS);
    write_register("s3_0_c12_c12_5", 7);        // ICC_SRE_EL1
    write_register("s3_0_c4_c6_0", 0xff);       // ICC_PMR_EL1
    write_register("s3_0_c12_c12_3", 0);        // ICC_BPR1_EL1
    write_register("s3_0_c12_c12_7", 1);        // ICC_IGRPEN1_EL1
}

uint32_t gic_acknowledge(void)
{
    uint32_t intid = read_register("s3_0_c12_c12_0") & 0xffffff;     // ICC_IAR1_EL1
    barrier();
    return intid;
}

void gic_end(uint32_t intid)
{
    write_register("s3_0_c12_c12_1", intid);    // ICC_EOIR1_EL1
}

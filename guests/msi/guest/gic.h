// The GICv3's distributor, redistributors and CPU interface (Arm IHI 0069).
#pragma once

#include <stdint.h>

// Tables of the LPIs: all enabled, none pending.
void gic_prepare_tables(void);
// This CPU's redistributor and interface; LPIs on.
void gic_prepare_cpu(uint64_t cpu);
uint32_t gic_acknowledge(void);
void gic_end(uint32_t intid);

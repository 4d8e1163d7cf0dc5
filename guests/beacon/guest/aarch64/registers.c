/* Values unique to a vCPU that stay loaded in its registers while the page loop runs (which is compiled to use general
 * registers only), and their re-checks. What differs is recorded and loaded anew, so each loss counts once. */
#include "aarch64.h"

void load_vectors(const void *values), store_vectors(void *values);

/* System registers without an effect on this guest, each with the bits it has for sure. */
#define SYSTEM_REGISTERS(each)                        \
    each(0, "tpidr_el1", ~0ull)                       \
    each(1, "sp_el0", ~0ull)                          \
    each(2, "far_el1", ~0ull)                         \
    each(3, "contextidr_el1", 0xffffffff)             \
    each(4, "ttbr1_el1", 0xfffff000) /* walks there are off */
#define SYSTEMS 5
static const char *const system_names[SYSTEMS] = {"tpidr_el1", "sp_el0", "far_el1", "contextidr_el1", "ttbr1_el1"};

/* Breakpoints and watchpoints that nothing arms. */
#define DEBUG_REGISTERS(each)                         \
    each(0, "dbgbvr0_el1", 0x7ffffffffffc)            \
    each(1, "dbgbvr1_el1", 0x7ffffffffffc)            \
    each(2, "dbgwvr0_el1", 0x7ffffffffffc)            \
    each(3, "dbgwvr1_el1", 0x7ffffffffffc)
#define DEBUGS 4
static const char *const debug_names[DEBUGS] = {"dbgbvr0_el1", "dbgbvr1_el1", "dbgwvr0_el1", "dbgwvr1_el1"};

#define THREAD_REGISTERS(each)                        \
    each(0, "tpidr_el0", ~0ull)                       \
    each(1, "tpidrro_el0", ~0ull)
static const char *const thread_names[] = {"tpidr_el0", "tpidrro_el0"};

static uint64_t vectors_held[MAX_VCPUS][32][2];

static uint64_t fpcr_held(uint64_t vcpu) { return (1 + vcpu % 3) << 22 | 1 << 24; } /* a rounding mode; flush to zero */
static uint64_t fpsr_held(uint64_t vcpu) { return 0x0800001f & ~(1ull << vcpu % 5); } /* saturated; all but one flag */

#define LOAD(index, name, bits) write_register(name, tag(vcpu, class, index) & (bits));
#define CHECK(index, name, bits) \
    changed |= differs(me, class, index, tag(vcpu, class, index) & (bits), read_register(name) & (bits));

void prepare_registers(void) {}

void load_registers(vcpu_t me) {
    uint64_t vcpu = vcpu_number(me);
    choose_general(vcpu);
    if (!options.hold)
        return;
    if (vcpu == 0)
        control.classes |= 1 << CLASS_SSE | 1 << CLASS_SEGMENT_BASE | 1 << CLASS_DEBUG | 1 << CLASS_FLAGS |
                           1 << CLASS_GENERAL | 1 << CLASS_MSR;
    for (unsigned i = 0; i < 32; i++)
        for (unsigned half = 0; half < 2; half++)
            vectors_held[vcpu][i][half] = tag(vcpu, CLASS_SSE, 2 * i + half);
    load_vectors(vectors_held[vcpu]);
    write_register("fpcr", fpcr_held(vcpu));
    write_register("fpsr", fpsr_held(vcpu));
    enum class class = CLASS_SEGMENT_BASE;
    THREAD_REGISTERS(LOAD)
    class = CLASS_DEBUG;
    DEBUG_REGISTERS(LOAD)
    class = CLASS_MSR;
    SYSTEM_REGISTERS(LOAD)
}

void check_registers(vcpu_t me) {
    check_clock(me);
    if (!options.hold)
        return;
    uint64_t vcpu = vcpu_number(me), now[32][2];
    int changed = 0;
    store_vectors(now);
    changed |= differs(me, CLASS_SSE, 0, fpcr_held(vcpu), read_register("fpcr"));
    changed |= differs(me, CLASS_SSE, 1, fpsr_held(vcpu), read_register("fpsr"));
    for (unsigned i = 0; i < 32; i++)
        changed |= differs_wide(me, CLASS_SSE, 2 + i, vectors_held[vcpu][i], now[i]);
    enum class class = CLASS_SEGMENT_BASE;
    THREAD_REGISTERS(CHECK)
    class = CLASS_DEBUG;
    DEBUG_REGISTERS(CHECK)
    class = CLASS_MSR;
    SYSTEM_REGISTERS(CHECK)
    static const enum class checked[] = {CLASS_SSE, CLASS_SEGMENT_BASE, CLASS_DEBUG, CLASS_MSR};
    for (unsigned i = 0; i < sizeof checked / sizeof *checked; i++)
        count(&me->checks[checked[i]]);
    if (changed)
        load_registers(me);
}

struct register_names register_names(enum class class) {
    static const char *const floating[] = {"fpcr", "fpsr"};
    static const char *const flags[] = {"nzcv"};
    static const char *const general[] = {"x3",  "x4",  "x5",  "x6",  "x7",  "x9",
                                          "x10", "x11", "x12", "x13", "x14", "x15"};
    static const char *const clock[] = {"cntvct_el0"};
    switch (class) {
    case CLASS_SSE: return (struct register_names){"v", floating, 2};
    case CLASS_SEGMENT_BASE: return (struct register_names){0, thread_names, 2};
    case CLASS_DEBUG: return (struct register_names){0, debug_names, DEBUGS};
    case CLASS_FLAGS: return (struct register_names){0, flags, 1};
    case CLASS_GENERAL: return (struct register_names){0, general, 12};
    case CLASS_MSR: return (struct register_names){0, system_names, SYSTEMS};
    case CLASS_CLOCK: return (struct register_names){0, clock, 1};
    default: return (struct register_names){"?", 0, 0};
    }
}

/* Values unique to a vCPU that stay loaded in its registers while the page loop runs (which is compiled to use general
 * registers only), and their re-checks. What differs is recorded and loaded anew, so each loss counts once. */
#include "x86.h"

void load_fxsave(const void *image), store_fxsave(void *image);
void load_ymm_high(const void *values), store_ymm_high(void *values);
void load_avx512(const void *values), store_avx512(void *values);

static const uint32_t msrs[] = {
    0xc0000102, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0x174, 0x175, 0x176,
};
#define MSRS (sizeof msrs / sizeof *msrs)
/* MSRs that read back what was written, a bit each. */
__attribute__((section(".data"))) static uint32_t msrs_kept[MAX_VCPUS];

struct fxsave {
    uint16_t fcw, fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint64_t st[8][2], xmm[16][2];
    uint64_t unused[12];
} __attribute__((aligned(16)));
_Static_assert(sizeof(struct fxsave) == 512, "");

static struct fxsave fxsave_held[MAX_VCPUS];
static uint64_t ymm_held[MAX_VCPUS][16][2] __attribute__((aligned(16)));
static union avx512 {
    struct {
        uint64_t k[8], zmm_high[16][4], zmm[16][8];
    };
    uint64_t words[8 + 16 * 4 + 16 * 8];
} avx512_held[MAX_VCPUS];
static volatile uint64_t base_tags[MAX_VCPUS][2]; /* where FS and GS point */

static uint64_t held_value(uint64_t vcpu, enum class class, uint64_t index) {
    uint64_t value = tag(vcpu, class, index);
    switch (class) {
    case CLASS_DEBUG: return value & 0x7fffffffff;
    case CLASS_MSR: return index == 1 ? value : index >= 4 ? value & 0x7fffffff : value & 0x7fffffffffff;
    case CLASS_AVX512: return index < 8 ? value & 0xffff : value; /* kmovw */
    default: return value;
    }
}

/* Ring 0: DR0–3 (armed by nothing), MSRs, and the bases of FS and GS. */
void load_ring0_registers(uint64_t vcpu) {
    __asm__ volatile("mov %0, %%dr0; mov %1, %%dr1; mov %2, %%dr2; mov %3, %%dr3" ::"r"(held_value(vcpu, CLASS_DEBUG, 0)),
                     "r"(held_value(vcpu, CLASS_DEBUG, 1)), "r"(held_value(vcpu, CLASS_DEBUG, 2)),
                     "r"(held_value(vcpu, CLASS_DEBUG, 3)));
    for (unsigned i = 0; i < MSRS; i++)
        wrmsr(msrs[i], held_value(vcpu, CLASS_MSR, i));
    uint16_t none = 0;
    __asm__ volatile("mov %0, %%fs; mov %0, %%gs" ::"r"(none));
    wrmsr(0xc0000100, (uint64_t)&base_tags[vcpu][0]);
    wrmsr(0xc0000101, (uint64_t)&base_tags[vcpu][1]);
}

/* Ring 0, at the start: some hypervisors keep fewer bits of an MSR or ignore the write. */
void find_msrs_kept(uint64_t vcpu) {
    for (unsigned i = 0; i < MSRS; i++)
        msrs_kept[vcpu] |= (rdmsr(msrs[i]) == held_value(vcpu, CLASS_MSR, i)) << i;
}

/* Ring 0, from the timer interrupt. */
void check_ring0_registers(vcpu_t me) {
    if (!options.hold)
        return;
    uint64_t vcpu = vcpu_number(me), dr[4];
    int changed = 0;
    __asm__ volatile("mov %%dr0, %0; mov %%dr1, %1; mov %%dr2, %2; mov %%dr3, %3"
                     : "=r"(dr[0]), "=r"(dr[1]), "=r"(dr[2]), "=r"(dr[3]));
    for (unsigned i = 0; i < 4; i++)
        changed |= differs(me, CLASS_DEBUG, i, held_value(vcpu, CLASS_DEBUG, i), dr[i]);
    count(&me->checks[CLASS_DEBUG]);

    for (unsigned i = 0; i < MSRS; i++)
        if (msrs_kept[vcpu] & 1 << i)
            changed |= differs(me, CLASS_MSR, i, held_value(vcpu, CLASS_MSR, i), rdmsr(msrs[i]));
    if (msrs_kept[vcpu])
        count(&me->checks[CLASS_MSR]);
    if (changed)
        load_ring0_registers(vcpu);

    if (vcpu == 0 && control.classes & 1 << CLASS_CLOCK)
        check_clock_msr(me);
}

void prepare_registers(void) {
    if (options.hold && options.avx)
        ring0_call(CALL_ENABLE_AVX);
}

/* Rounding modes, precision and the stack's top differ from the reset values and between vCPUs. */
void load_registers(vcpu_t me) {
    uint64_t vcpu = vcpu_number(me);
    if (vcpu == 0)
        control.classes |= options.hold ? 1 << CLASS_X87 | 1 << CLASS_SSE | (found.avx > 0) << CLASS_AVX |
                                              (found.avx > 1) << CLASS_AVX512 |
                                              1 << CLASS_SEGMENT_BASE | (options.tick ? 1 << CLASS_DEBUG : 0) |
                                              1 << CLASS_FLAGS | 1 << CLASS_GENERAL |
                                              (options.tick && msrs_kept[0] ? 1 << CLASS_MSR : 0)
                                        : 0;
    base_tags[vcpu][0] = held_value(vcpu, CLASS_SEGMENT_BASE, 0);
    base_tags[vcpu][1] = held_value(vcpu, CLASS_SEGMENT_BASE, 1);
    choose_general(vcpu);
    if (!options.hold)
        return;

    struct fxsave *image = &fxsave_held[vcpu];
    store_fxsave(image);
    image->fcw = 0x027f | (1 + vcpu % 3) << 10;
    image->fsw = 3 << 11; /* five values on the stack */
    image->ftw = 0xf8;
    image->mxcsr = 0x9f80 | (1 + vcpu % 3) << 13; /* FZ, a rounding mode, all exceptions masked */
    for (unsigned i = 0; i < 8; i++) {
        image->st[i][0] = i < 5 ? held_value(vcpu, CLASS_X87, i) | 1ull << 63 : 0;
        image->st[i][1] = i < 5 ? 0x3fff + i : 0;
    }
    for (unsigned i = 0; i < 16; i++) {
        image->xmm[i][0] = held_value(vcpu, CLASS_SSE, 2 * i);
        image->xmm[i][1] = held_value(vcpu, CLASS_SSE, 2 * i + 1);
        ymm_held[vcpu][i][0] = held_value(vcpu, CLASS_AVX, 2 * i);
        ymm_held[vcpu][i][1] = held_value(vcpu, CLASS_AVX, 2 * i + 1);
    }
    for (unsigned i = 0; i < sizeof(union avx512) / 8; i++)
        avx512_held[vcpu].words[i] = held_value(vcpu, CLASS_AVX512, i);
    load_fxsave(image);
    if (found.avx)
        load_ymm_high(ymm_held[vcpu]);
    if (found.avx > 1)
        load_avx512(&avx512_held[vcpu]);
}

/* Numbers: 0 to 7 for k0–7, 8 and on for zmm0–31. Of each the first word that differs is recorded. */
static int check_avx512(vcpu_t me) {
    const union avx512 *held = &avx512_held[vcpu_number(me)];
    union avx512 now = {0}; /* kmovw stores two bytes */
    store_avx512(&now);
    int changed = 0;
    for (unsigned i = 0; i < 8; i++)
        changed |= differs(me, CLASS_AVX512, i, held->k[i], now.k[i]);
    for (unsigned i = 0; i < 32; i++) {
        const uint64_t *expected = i < 16 ? held->zmm_high[i] : held->zmm[i - 16];
        const uint64_t *words = i < 16 ? now.zmm_high[i] : now.zmm[i - 16];
        int differing = 0;
        for (unsigned word = 0; word < (i < 16 ? 4 : 8) && !differing; word++)
            differing = differs(me, CLASS_AVX512, 8 + i, expected[word], words[word]);
        changed |= differing;
    }
    count(&me->checks[CLASS_AVX512]);
    return changed;
}

void check_registers(vcpu_t me) {
    check_clock(me);
    if (!options.hold)
        return;
    uint64_t vcpu = vcpu_number(me);
    const struct fxsave *held = &fxsave_held[vcpu];
    struct fxsave now;
    int changed = 0;
    store_fxsave(&now);
    changed |= differs(me, CLASS_X87, 0, held->fcw, now.fcw);
    changed |= differs(me, CLASS_X87, 1, held->fsw, now.fsw);
    changed |= differs(me, CLASS_X87, 2, held->ftw, now.ftw);
    for (unsigned i = 0; i < 5; i++) {
        now.st[i][1] &= 0xffff;
        changed |= differs_wide(me, CLASS_X87, 3 + i, held->st[i], now.st[i]);
    }
    changed |= differs(me, CLASS_SSE, 0, held->mxcsr, now.mxcsr);
    for (unsigned i = 0; i < 16; i++)
        changed |= differs_wide(me, CLASS_SSE, 1 + i, held->xmm[i], now.xmm[i]);
    count(&me->checks[CLASS_X87]);
    count(&me->checks[CLASS_SSE]);

    if (found.avx) {
        uint64_t ymm[16][2];
        store_ymm_high(ymm);
        for (unsigned i = 0; i < 16; i++)
            changed |= differs_wide(me, CLASS_AVX, i, ymm_held[vcpu][i], ymm[i]);
        count(&me->checks[CLASS_AVX]);
    }
    if (found.avx > 1)
        changed |= check_avx512(me);
    if (changed)
        load_registers(me);

    /* A lost base points elsewhere: then the tag is not there. */
    uint64_t fs, gs;
    __asm__ volatile("mov %%fs:0, %0; mov %%gs:0, %1" : "=r"(fs), "=r"(gs)::"memory");
    changed = differs(me, CLASS_SEGMENT_BASE, 0, held_value(vcpu, CLASS_SEGMENT_BASE, 0), fs);
    changed |= differs(me, CLASS_SEGMENT_BASE, 1, held_value(vcpu, CLASS_SEGMENT_BASE, 1), gs);
    count(&me->checks[CLASS_SEGMENT_BASE]);
    if (changed)
        ring0_call(CALL_LOAD_REGISTERS);
}

struct register_names register_names(enum class class) {
    static const char *const fpu[] = {"fcw", "fsw", "ftw"};
    static const char *const sse[] = {"mxcsr"};
    static const char *const bases[] = {"fs_base", "gs_base"};
    static const char *const masks[] = {"k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"};
    static const char *const flags[] = {"rflags"};
    static const char *const general[] = {"rbx", "rbp", "rsi", "rcx", "r8",  "r9",
                                          "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const msr[] = {"kernel_gs_base", "star",       "lstar",       "cstar",
                                      "fmask",          "sysenter_cs", "sysenter_esp", "sysenter_eip"};
    static const char *const clock[] = {"kvmclock", "kvmclock_msr"};
    switch (class) {
    case CLASS_X87: return (struct register_names){"st", fpu, 3};
    case CLASS_SSE: return (struct register_names){"xmm", sse, 1};
    case CLASS_AVX: return (struct register_names){"ymm", 0, 0};
    case CLASS_SEGMENT_BASE: return (struct register_names){0, bases, 2};
    case CLASS_DEBUG: return (struct register_names){"dr", 0, 0};
    case CLASS_AVX512: return (struct register_names){"zmm", masks, 8};
    case CLASS_FLAGS: return (struct register_names){0, flags, 1};
    case CLASS_GENERAL: return (struct register_names){0, general, 12};
    case CLASS_MSR: return (struct register_names){0, msr, 8};
    case CLASS_CLOCK: return (struct register_names){0, clock, 2};
    default: return (struct register_names){"?", 0, 0};
    }
}

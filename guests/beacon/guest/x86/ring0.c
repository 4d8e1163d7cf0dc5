/* What has to be done in ring 0: tables, feature bits, the way down to ring 3, and exceptions. Kept short, see boot.S. */
#include "x86.h"

#define IN_FILE __attribute__((section(".data"))) /* survives main's clearing of bss */

#define IO_PORTS 0x1000

struct tss {
    uint32_t reserved0;
    uint64_t rsp[3], reserved1, ist[7], reserved2;
    uint16_t reserved3, io_bitmap_offset;
    uint8_t io_bitmap[IO_PORTS / 8 + 1]; /* zero: ring 3 may use the port (iretq may drop IOPL) */
} __attribute__((packed, aligned(16)));

IN_FILE static struct tss tss[MAX_VCPUS];
IN_FILE static uint64_t idt[256 * 2] __attribute__((aligned(16)));
IN_FILE struct found found;

static const struct {
    uint16_t limit;
    const void *base;
} __attribute__((packed)) idt_pointer = {sizeof idt - 1, idt}, null_idt = {0, 0};

struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

static void set_gate(unsigned vector, const void *handler) {
    uint64_t address = (uint64_t)handler;
    idt[vector * 2] = (address & 0xffff) | CODE_RING0 << 16 | 0x8e00ull << 32 | (address >> 16 & 0xffff) << 48;
}

static void load_tables(uint64_t vcpu) {
    struct tss *own = &tss[vcpu];
    uint64_t base = (uint64_t)own, limit = sizeof *own - 1;
    own->rsp[0] = (uint64_t)ring0_stacks + (vcpu + 1) * RING0_STACK_SIZE;
    own->io_bitmap_offset = offsetof(struct tss, io_bitmap);
    own->io_bitmap[IO_PORTS / 8] = 0xff;
    unsigned selector = TSS_FIRST + vcpu * 16;
    gdt[selector / 8] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[selector / 8 + 1] = base >> 32;
    __asm__ volatile("lgdt %0; ltr %w1" ::"m"(gdt_pointer), "r"(selector) : "memory");

    if (vcpu == 0) {
        for (unsigned vector = 0; vector < 32; vector++)
            set_gate(vector, exception_stubs + vector * 16);
        set_gate(VECTOR_TICK, tick_stub);
        set_gate(VECTOR_IPI, ipi_stub);
        set_gate(VECTOR_SERIAL, serial_stub);
        set_gate(VECTOR_SPURIOUS, spurious_stub);
    }
    __asm__ volatile("lidt %0" ::"m"(idt_pointer));
}

/* Where CPUID offers AVX and AVX-512. A hypervisor may refuse all the same: the fault on xsetbv is then stepped over. */
static void enable_avx(void) {
    uint32_t features = cpuid(1).ecx, xcr0 = 7;
    if (!(features & 1 << 26) || !(features & 1 << 28))
        return;
    found.avx = 1;
    if (options.avx > 1 && cpuid(7).ebx & 1 << 16 && (cpuid(0xd).eax & 0xe0) == 0xe0) {
        found.avx = 2;
        xcr0 |= 0xe0;
    }
    uint64_t cr4 = CR4_VALUE | CR4_OSXSAVE;
    __asm__ volatile("mov %0, %%cr4\nxsetbv_site: xsetbv" ::"r"(cr4), "a"(xcr0), "d"(0), "c"(0) : "memory");
}

static void find_clocks(void) {
    if (cpuid(0).eax >= 0x15) {
        struct cpuid crystal = cpuid(0x15);
        if (crystal.eax && crystal.ebx && crystal.ecx)
            found.tsc_khz_cpuid = (uint64_t)crystal.ecx * crystal.ebx / crystal.eax / 1000;
    }
    struct cpuid hypervisor = cpuid(0x40000000);
    if (!(cpuid(1).ecx & 1u << 31) || hypervisor.ebx != 0x4b4d564b) /* "KVMK" */
        return;
    if (hypervisor.eax >= 0x40000010 && cpuid(0x40000010).eax)
        found.tsc_khz_cpuid = cpuid(0x40000010).eax;
    if (cpuid(0x40000001).eax & 1 << 3) {
        wrmsr(MSR_KVM_SYSTEM_TIME, (uint64_t)&clock_page | 1);
        found.kvmclock = 1;
    }
}

/* Firmware may have left the 8259s on, with a timer behind them, at vectors that are exceptions here. */
static void mask_legacy_interrupts(void) {
    out8(PIC_MASTER_MASK, 0xff);
    out8(PIC_SLAVE_MASK, 0xff);
}

void ring0_start(uint32_t vcpu) {
    vcpu_t me = &control.vcpu[vcpu];
    *(vcpu_t *)(ring0_stacks + vcpu * RING0_STACK_SIZE) = me;
    load_tables(vcpu);
    load_ring0_registers(vcpu);
    find_msrs_kept(vcpu);
    if (vcpu == 0) {
        mask_legacy_interrupts();
        find_clocks();
    } else if (me->role == SLEEPER) {
        start_interrupts();
        me->started = 1;
        sleep_ring0(&me->wakeups);
    }
    enter_ring3(vcpu == 0 ? main : work, ring3_stacks + (vcpu + 1) * RING3_STACK_SIZE - 8, me);
}

static void obey(uint64_t call, uint64_t vcpu) {
    switch (call) {
    case CALL_ENABLE_AVX: enable_avx(); break;
    case CALL_LOAD_REGISTERS: load_ring0_registers(vcpu); break;
    default: __asm__ volatile("lidt %0; ud2" ::"m"(null_idt));
    }
}

/* Two exceptions are expected: ring 3's calls, and a refused xsetbv. All others are a panic. */
void exception(struct frame *frame) {
    extern uint8_t xsetbv_site[];
    if (frame->vector == 6 && frame->rip == (uint64_t)ring0_call_site) {
        obey(frame->rax, ((uint64_t)frame - (uint64_t)ring0_stacks) / RING0_STACK_SIZE);
        frame->rip += 2;
        return;
    }
    if (frame->vector == 13 && frame->rip == (uint64_t)xsetbv_site) {
        found.avx = 0;
        frame->rip += 3;
        return;
    }
    uint64_t cr2;
    __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
    count(&control.panics);
    say("panic vector=%d error=%x rip=%x rsp=%x cr2=%x ring=%d", frame->vector, frame->error, frame->rip, frame->rsp, cr2,
        frame->cs & 3);
    for (;;)
        __asm__ volatile("cli; hlt");
}

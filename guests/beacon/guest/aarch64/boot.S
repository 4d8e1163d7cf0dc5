/* From the loader (an arm64 Image, x0 = device tree) or from PSCI CPU_ON (x0 = the vCPU's number) to C, at EL1, with all
 * memory mapped one to one: the first GiB as devices, the rest as ordinary memory. */
#include "layout.h"

#define MAIR 0xff00            /* 0: device, 1: write-back */
#define TCR 0x200803519        /* 39 bits below; nothing above; write-back, inner shareable; 40 bits of address out */
#define SCTLR 0x30d01805       /* MMU, caches */
#define CPACR 0x300000         /* FP and SIMD */

    .section .head, "ax"
    .globl image
image:
    b start
    .long 0
    .quad IMAGE_OFFSET
    .quad image_end - image
    .quad 0x2                  /* little-endian, 4 KiB pages, near the start of RAM */
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0

start:
    mov x20, x0
    mov x19, #0
    bl enter
    ldr x1, =device_tree
    str x20, [x1]
    b el1_start

    .globl secondary
secondary:
    mov x19, x0
    bl enter
    b el1_start

/* x19 = the vCPU's number. Returns with its block in x0. */
enter:
    ldr x1, =MAIR
    msr mair_el1, x1
    ldr x1, =TCR
    msr tcr_el1, x1
    ldr x1, =level1
    msr ttbr0_el1, x1
    ldr x1, =vectors
    msr vbar_el1, x1
    mov x1, #CPACR
    msr cpacr_el1, x1
    tlbi vmalle1
    ic iallu
    dsb sy
    isb
    ldr x1, =SCTLR
    msr sctlr_el1, x1
    isb
    ldr x1, =stacks
    mov x2, #STACK_SIZE
    madd x1, x19, x2, x1
    ldr x0, =CONTROL + 0x1000
    add x0, x0, x19, lsl #12
    str x0, [x1]
    add sp, x1, x2
    ret

/* sleep(counter): an idle loop that counts its wakeups; never returns. */
    .globl sleep
sleep:
    msr daifclr, #2
1:  wfi
    ldr x1, [x0]
    add x1, x1, #1
    str x1, [x0]
    b 1b

/* psci(function, argument 1, 2, 3): its answer. */
    .globl psci
psci:
    hvc #0
    ret

    .section .tables, "aw"
    .balign 4096
level1:
    .quad 0x0060000000000401   /* never executed, accessed, device */
    .set i, 1
    .rept 511
    .quad i << 30 | 0x705      /* accessed, inner shareable, write-back */
    .set i, i + 1
    .endr

    .section .stacks, "aw", @nobits
    .balign STACK_SIZE
stacks:
    .skip MAX_VCPUS * STACK_SIZE

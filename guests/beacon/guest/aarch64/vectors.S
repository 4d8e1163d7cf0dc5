/* Exception entry. The vCPU's block is found from the stack, not from a thread pointer: one lost on the way must be
 * reported, not crash the guest. */
#include "layout.h"

    .macro entry number
    .balign 0x80
    sub sp, sp, #176
    stp x0, x1, [sp]
    mov x0, #\number
    b unexpected
    .endm

    .text
    .balign 0x800
    .globl vectors
vectors:
    .irp number, 0, 1, 2, 3, 4
    entry \number
    .endr
    .balign 0x80               /* 5: an interrupt at EL1 */
    b interrupted
    .irp number, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    entry \number
    .endr

/* interrupt(block), with all registers a C function may change kept; those of FP and SIMD it never touches. */
interrupted:
    sub sp, sp, #176
    stp x0, x1, [sp]
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x29, [sp, #144]
    str x30, [sp, #160]
    mov x0, sp
    and x0, x0, #-STACK_SIZE
    ldr x0, [x0]
    bl interrupt
    ldr x30, [sp, #160]
    ldp x18, x29, [sp, #144]
    ldp x16, x17, [sp, #128]
    ldp x14, x15, [sp, #112]
    ldp x12, x13, [sp, #96]
    ldp x10, x11, [sp, #80]
    ldp x8, x9, [sp, #64]
    ldp x6, x7, [sp, #48]
    ldp x4, x5, [sp, #32]
    ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp]
    add sp, sp, #176
    eret

unexpected:
    mrs x1, esr_el1
    mrs x2, elr_el1
    mrs x3, far_el1
    b panic

// An arm64 Linux Image: its header, the entry of the first CPU and of the second, the exception vectors.
//
// EL1, MMU and caches off: what the guest writes is in RAM at once, and every access must be aligned.

    .section .head, "ax"
    .global _start
_start:
    b       first                   // code0
    .long   0                       // code1
    .quad   0                       // text_offset
    .quad   _end - _start           // image_size
    .quad   0xa                     // flags: little endian, 4 KiB pages, anywhere
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

first:
    adrp    x1, stack_0_top
    add     x1, x1, :lo12:stack_0_top
    mov     sp, x1
    bl      prepare
    bl      main_first              // x0: the device tree
1:  wfi
    b       1b

    .global second
second:                             // PSCI CPU_ON enters here
    adrp    x1, stack_1_top
    add     x1, x1, :lo12:stack_1_top
    mov     sp, x1
    bl      prepare
    bl      main_second
1:  wfi
    b       1b

prepare:
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    isb
    ret

    .section .text, "ax"
    .balign 2048
vectors:
    .macro  fatal number
    .balign 128
    mov     x0, #\number
    b       died
    .endm
    fatal   0
    fatal   1
    fatal   2
    fatal   3
    fatal   4
    .balign 128                     // IRQ at EL1 with its own stack
    b       interrupted
    fatal   6
    fatal   7
    .rept   8
    fatal   8
    .endr

interrupted:
    sub     sp, sp, #192
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    bl      on_interrupt
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x30, [sp, #144]
    add     sp, sp, #192
    eret

died:
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, far_el1
    bl      on_death
1:  wfi
    b       1b

    .bss
    .balign 16
    .skip   8192
stack_0_top:
    .skip   8192
stack_1_top:

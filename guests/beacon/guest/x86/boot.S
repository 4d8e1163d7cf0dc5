/* From PVH entry (32-bit protected mode, ebx = hvm_start_info) or from SIPI (real mode) to 64-bit C in ring 0.
 * Ring 0 may be emulated at a million instructions a second: tables are static and every step is short. */
#include "layout.h"

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

    .text
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    mov %ebx, start_info
    movl $0, starting_vcpu /* a reset may come without reloading */
    lgdt gdt_pointer
    mov $CR4_VALUE, %eax
    mov %eax, %cr4
    mov $level4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0_VALUE, %eax
    mov %eax, %cr0
    ljmp $CODE_RING0, $start64

/* Copied to TRAMPOLINE; enters long mode straight from real mode. */
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl TRAMPOLINE + trampoline_gdt - trampoline
    mov $CR4_VALUE, %eax
    mov %eax, %cr4
    mov $level4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0_VALUE, %eax
    mov %eax, %cr0
    ljmpl $CODE_RING0, $start64
    .balign 4
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code64
start64:
    mov $DATA_RING0, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov starting_vcpu, %edi
    mov %edi, %eax
    shl $12, %eax /* RING0_STACK_SIZE */
    lea ring0_stacks + RING0_STACK_SIZE(%eax), %esp
    call ring0_start
    ud2

/* enter_ring3(start, stack, argument): never returns. */
    .globl enter_ring3
enter_ring3:
    pushq $DATA_RING3
    push %rsi
    pushq $0x202 /* IF */
    pushq $CODE_RING3
    push %rdi
    mov %rdx, %rdi
    iretq

/* sleep_ring0(counter): an idle loop that counts its wakeups; never returns. */
    .globl sleep_ring0
sleep_ring0:
    sti
    hlt
    incq (%rdi)
    jmp sleep_ring0

    .section .tables, "aw"
    .balign 4096
    .globl level4
level4: /* 0x67: present, writable, user, accessed, dirty */
    .quad level3 + 0x67
    .fill 511, 8, 0
level3:
    .set i, 0
    .rept MAPPED_GIB
    .quad level2 + i * 4096 + 0x67
    .set i, i + 1
    .endr
    .fill 512 - MAPPED_GIB, 8, 0
level2: /* 2 MiB pages; from 0xfec00000 to 4 GiB uncached */
    .set i, 0
    .rept MAPPED_GIB * 512
    .if i >= 0xfec00000 && i < 0x100000000
    .quad i + 0xff
    .else
    .quad i + 0xe7
    .endif
    .set i, i + 0x200000
    .endr

    .balign 16
    .globl gdt
gdt: /* accessed bits set, so that loading a selector writes nothing */
    .quad 0
    .quad 0x00af9b000000ffff /* CODE_RING0 */
    .quad 0x00cf93000000ffff /* DATA_RING0 */
    .quad 0x00cff3000000ffff /* DATA_RING3 */
    .quad 0x00affb000000ffff /* CODE_RING3 */
    .quad 0
    .fill MAX_VCPUS * 2, 8, 0
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .balign 8
    .globl start_info, starting_vcpu
start_info:
    .quad 0
starting_vcpu:
    .quad 0

    .section .stacks, "aw", @nobits
    .balign 4096
    .globl ring0_stacks, ring3_stacks
ring0_stacks:
    .skip MAX_VCPUS * RING0_STACK_SIZE
ring3_stacks:
    .skip MAX_VCPUS * RING3_STACK_SIZE

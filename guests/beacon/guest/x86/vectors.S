/* Interrupt and exception entry. Ring 0 may be slow, so an interrupt counts itself and returns. The vCPU's block is
 * found from the stack, not from GS: a GS base lost on the way must be reported, not crash the guest. */
#include "layout.h"

    .text
    .code64

/* One stub of 16 bytes for each exception; those without an error code push 0. */
    .balign 16
    .globl exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
    .endr

/* exception(frame) may change the frame, rip above all. */
exception_common:
    cld
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    call exception
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/* The LAPIC timer. Every 32nd tick also checks the registers that only ring 0 can read. */
    .globl tick_stub
tick_stub:
    push %rax
    push %rcx
    mov %rsp, %rax
    and $-RING0_STACK_SIZE, %rax
    mov (%rax), %rax
    mov VCPU_TICKS(%rax), %rcx
    inc %rcx
    mov %rcx, VCPU_TICKS(%rax)
    test $31, %cl
    jz 1f
    mov $LAPIC_EOI, %ecx
    movl $0, (%rcx)
    pop %rcx
    pop %rax
    iretq
1:  push %rdi
    mov %rax, %rdi
    mov $check_ring0_registers, %eax
    jmp call_and_return

/* The self-IPI of pend.c. */
    .globl ipi_stub
ipi_stub:
    push %rax
    push %rcx
    mov %rsp, %rax
    and $-RING0_STACK_SIZE, %rax
    mov (%rax), %rax
    incq VCPU_IPIS_TAKEN(%rax)
    mov $LAPIC_EOI, %ecx
    movl $0, (%rcx)
    pop %rcx
    pop %rax
    iretq

/* The LAPIC's spurious vector: no EOI. */
    .globl spurious_stub
spurious_stub:
    push %rax
    mov %rsp, %rax
    and $-RING0_STACK_SIZE, %rax
    mov (%rax), %rax
    incq VCPU_SPURIOUS(%rax)
    pop %rax
    iretq

/* Serial receive. */
    .globl serial_stub
serial_stub:
    push %rax
    push %rcx
    mov %rsp, %rax
    and $-RING0_STACK_SIZE, %rax
    mov (%rax), %rax
    push %rdi
    mov %rax, %rdi
    mov $serial_received, %eax

/* Calls the C function in rax with the vCPU's block in rdi; rax, rcx and rdi are on the stack already. */
call_and_return:
    cld
    push %rdx
    push %rsi
    push %r8
    push %r9
    push %r10
    push %r11
    call *%rax
    mov $LAPIC_EOI, %ecx
    movl $0, (%rcx)
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rsi
    pop %rdx
    pop %rdi
    pop %rcx
    pop %rax
    iretq

/* ring0_call(number): from ring 3, by the one exception that reaches ring 0 everywhere. */
    .globl ring0_call, ring0_call_site
ring0_call: /* a C function to its caller: the registers come back as they were */
    mov %rdi, %rax
ring0_call_site:
    ud2
    ret

/* Loading and reading the registers that C code here never touches, and holding those it does. */
#include "layout.h"
    .text
    .code64

    .globl load_fxsave, store_fxsave, load_ymm_high, store_ymm_high
load_fxsave: /* (image) */
    fxrstor64 (%rdi)
    ret
store_fxsave: /* (image) */
    fxsave64 (%rdi)
    ret

load_ymm_high: /* (16 × 16 bytes); the low halves stay */
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinsertf128 $1, \n * 16(%rdi), %ymm\n, %ymm\n
    .endr
    ret
store_ymm_high: /* (16 × 16 bytes) */
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextractf128 $1, %ymm\n, \n * 16(%rdi)
    .endr
    ret

    .globl load_avx512, store_avx512
load_avx512: /* (8 × 8 bytes: k0–7; 16 × 32: upper halves of zmm0–15; 16 × 64: zmm16–31); the lower halves stay */
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovw \n * 8(%rdi), %k\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinserti64x4 $1, 64 + \n * 32(%rdi), %zmm\n, %zmm\n
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 576 + (\n - 16) * 64(%rdi), %zmm\n
    .endr
    ret
store_avx512: /* (as above) */
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovw %k\n, \n * 8(%rdi)
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextracti64x4 $1, %zmm\n, 64 + \n * 32(%rdi)
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 %zmm\n, 576 + (\n - 16) * 64(%rdi)
    .endr
    ret

/* spin_holding(values, until, found): keeps values[0..11] in the general registers and ID and DF set in the flags until
 * the TSC reaches `until`, then stores what it finds there to found[0..11] and the flags to found[12]. */
    .globl spin_holding
spin_holding:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    push %rdx
    push %rsi
    mov 8(%rdi), %rbp
    mov 16(%rdi), %rsi
    mov 24(%rdi), %rcx
    mov 32(%rdi), %r8
    mov 40(%rdi), %r9
    mov 48(%rdi), %r10
    mov 56(%rdi), %r11
    mov 64(%rdi), %r12
    mov 72(%rdi), %r13
    mov 80(%rdi), %r14
    mov 88(%rdi), %r15
    mov (%rdi), %rbx
    pushfq
    orq $0x200400, (%rsp)
    popfq
1:  pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp (%rsp), %rax
    jb 1b
    pushfq
    pop %rax
    pushfq
    andq $~0x200400, (%rsp)
    popfq
    mov 8(%rsp), %rdx
    mov %rbx, (%rdx)
    mov %rbp, 8(%rdx)
    mov %rsi, 16(%rdx)
    mov %rcx, 24(%rdx)
    mov %r8, 32(%rdx)
    mov %r9, 40(%rdx)
    mov %r10, 48(%rdx)
    mov %r11, 56(%rdx)
    mov %r12, 64(%rdx)
    mov %r13, 72(%rdx)
    mov %r14, 80(%rdx)
    mov %r15, 88(%rdx)
    mov %rax, 96(%rdx)
    pop %rsi
    pop %rdx
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* A guest that tells what CPU it sees: CPUID leaves and MSRs to the debug console (port 0xe9), once at its start and again for
 * every byte it receives on COM1; `M` and `m` set MSR 0x140 to 1 and 0 before that. src/cpu_dump.rs has the format. It stays where PVH puts it, in flat 32-bit ring 0: there RDMSR
 * works, and CPUID is what KVM was told even where ring 3 sees the host's own. Ring 0 may be emulated: no instruction here is
 * more than plain ones (no IRET). */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad start

    .text
    .code32
    .globl start
start:
    cli
    cld
    mov $stack_end, %esp
    lgdt gdt_pointer
    ljmp $8, $1f
1:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $refused, %eax
    mov %ax, idt + 13 * 8
    shr $16, %eax
    mov %ax, idt + 13 * 8 + 6
    lidt idt_pointer

dump:
    mov $leaves, %esi
next_leaf:
    lodsl
    mov %eax, %edi /* leaf */
    lodsl
    mov %eax, %ebp /* how many sub-leaves; 0: the end */
    test %ebp, %ebp
    jz msrs
    xor %ecx, %ecx
next_subleaf:
    mov %edi, record
    mov %ecx, record + 4
    push %ecx
    mov %edi, %eax
    cpuid
    mov %eax, record + 8
    mov %ebx, record + 12
    mov %ecx, record + 16
    mov %edx, record + 20
    call put
    pop %ecx
    inc %ecx
    cmp %ebp, %ecx
    jb next_subleaf
    jmp next_leaf

msrs:
    mov $msr_list, %esi
    movl $-1, record + 4
    movl $0, record + 20
next_msr:
    lodsl
    cmp $-1, %eax
    je done
    mov %eax, %ecx
    mov %eax, record
    movl $1, record + 16
    rdmsr
    mov %eax, record + 8
    mov %edx, record + 12
    call put
    jmp next_msr
refused: /* #GP: there is no such MSR. The loop is all there is to go back to. */
    mov $stack_end, %esp
    movl $0, record + 8
    movl $0, record + 12
    movl $0, record + 16
    call put
    jmp next_msr

done:
    movl $-1, record
    call put
wait:
    mov $0x3fd, %edx
    in %dx, %al
    test $1, %al
    jz wait
    mov $0x3f8, %edx
    in %dx, %al
    xor %edx, %edx
    mov $1, %ebx
    cmp $'M', %al
    je write
    dec %ebx
    cmp $'m', %al
    jne dump
write: /* MISC_FEATURES_ENABLES; a #GP goes on at the end of the list */
    mov $msr_list_end, %esi
    mov $0x140, %ecx
    mov %ebx, %eax
    wrmsr
    jmp dump

put:
    push %esi
    mov $record, %esi
    mov $24, %ecx
    mov $0xe9, %edx
    rep outsb
    pop %esi
    ret

    .data
    .balign 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt
    .balign 8
idt: /* interrupt gates into segment 8; only #GP is pointed anywhere */
    .rept 14
    .quad 0x00008e0000080000
    .endr
idt_pointer:
    .word 14 * 8 - 1
    .long idt
    .balign 8
record:
    .fill 6, 4, 0
leaves: /* leaf, how many sub-leaves */
    .set i, 0
    .rept 0x22
    .if i == 4 || i == 7 || i == 0xb || i == 0x12 || i == 0x14 || i == 0x1f
    .long i, 6
    .elseif i == 0xd
    .long i, 64
    .else
    .long i, 2
    .endif
    .set i, i + 1
    .endr
    .set i, 0x80000000
    .rept 0x24
    .if i == 0x8000001d
    .long i, 6
    .else
    .long i, 1
    .endif
    .set i, i + 1
    .endr
    .long 0x40000000, 1, 0x40000001, 1, 0x40000002, 1, 0x40000010, 1, 0x40000100, 1
    .long 0xc0000000, 1, 0x12345678, 1, 0, 0
msr_list: /* what describes the CPU, not what firmware or a clock writes */
    .long 0x17, 0x1b, 0x34, 0x3a, 0x3b, 0x48, 0x8b, 0xc1, 0xcd, 0xce, 0xe1, 0xfe, 0x10a, 0x10b, 0x122, 0x140
    .long 0x179, 0x17a, 0x17b, 0x186, 0x198, 0x1a0, 0x1c4, 0x1c5, 0x277, 0x345, 0x38d, 0x38f
    .long 0x400, 0x401, 0x480, 0x491, 0x4d0, 0x560, 0x606, 0x611, 0x6e0, 0x6e1, 0x770, 0xda0
    .long 0x40000000, 0x40000020, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05, 0x4b564d06, 0x4b564d08
    .long 0xc0000080, 0xc0000103, 0xc0000104, 0xc0010015, 0xc001001f, 0xc0010055, 0xc0010058, 0xc0010114
    .long 0xc0010117, 0xc001011f, 0xc0011020, 0xc0011022, 0xc0011029, 0xc001102a
msr_list_end:
    .long -1

    .bss
    .balign 16
    .skip 4096
stack_end:

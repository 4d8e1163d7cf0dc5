/* Numbers shared by the assembler and the C sources: selectors, vectors, addresses. Never a declaration. */
#pragma once

/* Global descriptor table. Ring 3 selectors carry their RPL. */
#define CODE_RING0 0x08
#define DATA_RING0 0x10
#define DATA_RING3 0x1b
#define CODE_RING3 0x23
#define TSS_FIRST 0x30 /* one 16-byte descriptor a vCPU */

/* Interrupt vectors. The priority class (vector / 16) is what a raised TPR holds back: see pend.c. */
#define VECTOR_SERIAL 0x31
#define VECTOR_IPI 0x41
#define VECTOR_TICK 0x61
#define VECTOR_SPURIOUS 0xff
#define TPR_HOLDING_IPI 0x50

#define MAX_VCPUS 16        /* as in src/control.rs */
#define RING0_STACK_SIZE 4096 /* aligned to its size; its lowest 8 bytes point to the vCPU's block */
#define RING3_STACK_SIZE 16384

#define TRAMPOLINE 0x8000   /* start address of the application processors, below 1 MiB */
#define CONTROL 0x110000    /* the control block: src/control.rs */
#define CONTROL_END 0x121000
#define DATA_START 0x200000 /* first byte of memory the guest fills and dirties */
#define MAPPED_GIB 16       /* the static page tables map this much, one to one */
#define MAPPED_END ((uint64_t)MAPPED_GIB << 30)

#define LAPIC 0xfee00000
#define LAPIC_EOI 0xfee000b0
#define IOAPIC 0xfec00000
#define SERIAL 0x3f8
#define PIC_MASTER_MASK 0x21
#define PIC_SLAVE_MASK 0xa1

/* Offsets into struct vcpu that the interrupt stubs use; checked in x86.h. */
#define VCPU_TICKS 0x058
#define VCPU_IPIS_TAKEN 0x098
#define VCPU_SPURIOUS 0x088

#define CR0_VALUE 0x80010033 /* PG WP NE ET MP PE */
#define CR4_VALUE 0x620      /* OSXMMEXCPT OSFXSR PAE */
#define CR4_OSXSAVE 0x40000
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

/* What ring 3 asks ring 0 for, by ud2 with the number in rax: see vectors.S. */
#define CALL_TRIPLE_FAULT 1
#define CALL_ENABLE_AVX 2
#define CALL_LOAD_REGISTERS 3

/* Numbers shared by the assembler and the C sources: addresses and interrupts of the machine `virt`. Never a declaration. */
#pragma once

#define MAX_VCPUS 16     /* as in src/control.rs; and all in one cluster, so that a number is the lowest affinity */
#define STACK_SIZE 16384 /* aligned to its size; its lowest 8 bytes point to the vCPU's block */

#define IMAGE 0x40200000     /* RAM begins at 1 GiB; a loader leaves the first 2 MiB alone */
#define IMAGE_OFFSET 0x200000
#define CONTROL 0x40310000   /* the control block: src/control.rs */
#define CONTROL_END 0x40321000
#define DATA_START 0x40400000 /* first byte of memory the guest fills and dirties */
#define MAPPED_END (512ull << 30)

#define GICD 0x08000000
#define GICR 0x080a0000
#define GICR_STRIDE 0x20000
#define PL011 0x09000000
#define DEBUGCON 0x0b000000 /* whimbrel's own, in a hole of the map: every byte written goes out */
#define SERIAL 0x3f8        /* what the command line calls the serial port, whatever the machine */

/* Interrupts. Lower numbers of priority go first; the mask that holds the one to oneself back lets the timer through. */
#define INTID_SELF 1
#define INTID_TICK 27   /* the virtual timer */
#define INTID_SERIAL 33
#define INTID_SPURIOUS 1020
#define PRIORITY 0x40
#define PRIORITY_SELF 0xa0
#define MASK_NONE 0xf0
#define MASK_SELF 0x80

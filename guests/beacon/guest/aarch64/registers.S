/* Loading and reading the registers that C code here never touches, and holding those it does. */
    .text

    .globl load_vectors, store_vectors
load_vectors: /* (32 × 16 bytes) */
    ldp q0, q1, [x0, #0]
    ldp q2, q3, [x0, #32]
    ldp q4, q5, [x0, #64]
    ldp q6, q7, [x0, #96]
    ldp q8, q9, [x0, #128]
    ldp q10, q11, [x0, #160]
    ldp q12, q13, [x0, #192]
    ldp q14, q15, [x0, #224]
    ldp q16, q17, [x0, #256]
    ldp q18, q19, [x0, #288]
    ldp q20, q21, [x0, #320]
    ldp q22, q23, [x0, #352]
    ldp q24, q25, [x0, #384]
    ldp q26, q27, [x0, #416]
    ldp q28, q29, [x0, #448]
    ldp q30, q31, [x0, #480]
    ret
store_vectors: /* (32 × 16 bytes) */
    stp q0, q1, [x0, #0]
    stp q2, q3, [x0, #32]
    stp q4, q5, [x0, #64]
    stp q6, q7, [x0, #96]
    stp q8, q9, [x0, #128]
    stp q10, q11, [x0, #160]
    stp q12, q13, [x0, #192]
    stp q14, q15, [x0, #224]
    stp q16, q17, [x0, #256]
    stp q18, q19, [x0, #288]
    stp q20, q21, [x0, #320]
    stp q22, q23, [x0, #352]
    stp q24, q25, [x0, #384]
    stp q26, q27, [x0, #416]
    stp q28, q29, [x0, #448]
    stp q30, q31, [x0, #480]
    ret

/* spin_holding(values, until, found): keeps values[0..11] in general registers and N, Z and C set in the flags until the
 * counter reaches `until`, then stores what it finds there to found[0..11] and the flags to found[12]. */
    .globl spin_holding
spin_holding:
    ldp x3, x4, [x0, #0]
    ldp x5, x6, [x0, #16]
    ldp x7, x9, [x0, #32]
    ldp x10, x11, [x0, #48]
    ldp x12, x13, [x0, #64]
    ldp x14, x15, [x0, #80]
    ldr x8, =0xe0000000
    msr nzcv, x8
1:  isb
    mrs x8, cntvct_el0
    sub x8, x8, x1
    tbnz x8, #63, 1b           /* no comparison: the flags are held */
    mrs x8, nzcv
    stp x3, x4, [x2, #0]
    stp x5, x6, [x2, #16]
    stp x7, x9, [x2, #32]
    stp x10, x11, [x2, #48]
    stp x12, x13, [x2, #64]
    stp x14, x15, [x2, #80]
    str x8, [x2, #96]
    ret

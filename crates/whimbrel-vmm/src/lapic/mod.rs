//! The local APIC, which is KVM's: between its register page and the section `apic`.
//!
//! The section tells the timer by its expiry on the virtual clock. KVM counts the timer in nanoseconds (its APIC bus runs at 1 GHz), so
//! the current count is what is left until the expiry, divided by the timer's divisor: a timer goes on where it stood.
//! (QEMU itself writes a full period as what is left; such a timer begins anew.)

use kvm_bindings::kvm_lapic_state;

use crate::state::Apic;

const ID: usize = 0x20;
const TPR: usize = 0x80;
const ARBITRATION: usize = 0x90;
const LOGICAL_DESTINATION: usize = 0xd0;
const DESTINATION_FORMAT: usize = 0xe0;
const SPURIOUS: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const LVT_CMCI: usize = 0x2f0;
const ICR: [usize; 2] = [0x300, 0x310];
/// Timer, thermal, performance, LINT0, LINT1, error.
const LVT: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

const LVT_MASKED: u32 = 1 << 16;
/// Of the timer's vector: 0 one-shot, 1 periodic, 2 TSC deadline.
const TIMER_MODE: u32 = 3 << 17;
const TIMER_DEADLINE: u32 = 2 << 17;

/// A LAPIC that takes no interrupts through LINT0: no 8259 is wired to it.
pub fn power_on(mut page: kvm_lapic_state) -> kvm_lapic_state {
    put(&mut page, LVT[3], LVT_MASKED);
    page
}

/// A register page as its section. `now` is the virtual clock.
///
/// # Errors
/// Names the register the section has no place for.
pub fn save(page: &kvm_lapic_state, apic_base: u64, now: i64) -> Result<Apic, String> {
    let cmci = get(page, LVT_CMCI);
    if cmci & !LVT_MASKED != 0 {
        return Err(format!("the LAPIC's CMCI vector is {cmci:#x}, and the section has no place for it"));
    }
    let divide_conf = get(page, DIVIDE);
    let count_shift = shift(divide_conf);
    let lvt = LVT.map(|at| get(page, at));
    let (initial, current) = (get(page, INITIAL_COUNT), get(page, CURRENT_COUNT));
    let left = i64::from(current) << count_shift;
    let next_time = if initial == 0 { 0 } else { now.saturating_add(left) };
    let armed = initial != 0 && (current != 0 || lvt[0] & TIMER_MODE != 0);
    Ok(Apic {
        apicbase: apic_base as u32,
        id: (get(page, ID) >> 24) as u8,
        arb_id: (get(page, ARBITRATION) >> 24) as u8,
        tpr: get(page, TPR) as u8,
        spurious_vec: get(page, SPURIOUS),
        log_dest: (get(page, LOGICAL_DESTINATION) >> 24) as u8,
        dest_mode: (get(page, DESTINATION_FORMAT) >> 28) as u8,
        isr: bank(page, ISR),
        tmr: bank(page, TMR),
        irr: bank(page, IRR),
        lvt,
        esr: get(page, ESR),
        icr: ICR.map(|at| get(page, at)),
        divide_conf,
        count_shift: count_shift as i32,
        initial_count: initial,
        initial_count_load_time: if initial == 0 { 0 } else { now },
        next_time,
        timer_expiry: if armed { next_time } else { -1 },
        sipi: None,
    })
}

/// A section as a register page; what it doesn't speak of stays as in `page`. `now` is the virtual clock.
pub fn load(apic: &Apic, mut page: kvm_lapic_state, now: i64) -> kvm_lapic_state {
    put(&mut page, ID, u32::from(apic.id) << 24);
    put(&mut page, ARBITRATION, u32::from(apic.arb_id) << 24);
    put(&mut page, TPR, apic.tpr.into());
    put(&mut page, SPURIOUS, apic.spurious_vec);
    put(&mut page, LOGICAL_DESTINATION, u32::from(apic.log_dest) << 24);
    put(&mut page, DESTINATION_FORMAT, u32::from(apic.dest_mode) << 28 | 0x0fff_ffff);
    for (base, words) in [(ISR, apic.isr), (TMR, apic.tmr), (IRR, apic.irr)] {
        for (index, word) in words.into_iter().enumerate() {
            put(&mut page, base + 16 * index, word);
        }
    }
    for (at, vector) in LVT.into_iter().zip(apic.lvt) {
        put(&mut page, at, vector);
    }
    put(&mut page, ESR, apic.esr);
    for (at, word) in ICR.into_iter().zip(apic.icr) {
        put(&mut page, at, word);
    }
    put(&mut page, DIVIDE, apic.divide_conf);
    put(&mut page, INITIAL_COUNT, apic.initial_count);
    put(&mut page, CURRENT_COUNT, current_count(apic, now));
    page
}

/// What is left of the timer; 0: nothing, which KVM takes as "has just expired" for a one-shot timer.
fn current_count(apic: &Apic, now: i64) -> u32 {
    if apic.timer_expiry == -1 || apic.initial_count == 0 || apic.lvt[0] & TIMER_MODE == TIMER_DEADLINE {
        return 0;
    }
    let left = apic.timer_expiry.saturating_sub(now).max(1) >> shift(apic.divide_conf);
    u32::try_from(left.max(1)).unwrap_or(u32::MAX).min(apic.initial_count)
}

/// The divisor as a power of two, by the divide configuration register.
fn shift(divide_conf: u32) -> u32 {
    ((divide_conf & 3 | divide_conf >> 1 & 4) + 1) & 7
}

fn bank(page: &kvm_lapic_state, base: usize) -> [u32; 8] {
    std::array::from_fn(|index| get(page, base + 16 * index))
}

fn get(page: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| page.regs[at + index] as u8))
}

fn put(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (register, byte) in page.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with a periodic timer, a pending and a served interrupt.
    fn page() -> kvm_lapic_state {
        let mut page = kvm_lapic_state::default();
        let registers = [
            (ID, 0x0300_0000),
            (TPR, 0x50),
            (LOGICAL_DESTINATION, 0x0800_0000),
            (DESTINATION_FORMAT, 0xffff_ffff),
            (SPURIOUS, 0x1ff),
            (ISR + 0x20, 2),
            (IRR + 0x30, 0x8000_0001),
            (TMR + 0x70, 0x10),
            (ICR[0], 0x4_0041),
            (ICR[1], 0x0200_0000),
            (LVT[0], 0x2_0061),
            (LVT[5], 0x1_0000),
            (INITIAL_COUNT, 10_000),
            (CURRENT_COUNT, 1_234),
            (DIVIDE, 0x3),
        ];
        for (at, value) in registers {
            put(&mut page, at, value);
        }
        page
    }

    #[test]
    fn a_page_comes_back_as_it_was() {
        let apic = save(&page(), 0xfee0_0800, 77_000).unwrap();
        assert_eq!((apic.apicbase, apic.id, apic.count_shift), (0xfee0_0800, 3, 4));
        assert_eq!(load(&apic, kvm_lapic_state::default(), 77_000).regs, page().regs);
    }

    #[test]
    fn the_timer_goes_on_by_the_virtual_clock() {
        let apic = save(&page(), 0, 1_000_000).unwrap();
        assert_eq!(apic.timer_expiry, 1_000_000 + (1_234 << 4));
        let left = |now| get(&load(&apic, kvm_lapic_state::default(), now), CURRENT_COUNT);
        assert_eq!(left(1_000_000 + (34 << 4)), 1_200);
        assert_eq!(left(9_000_000), 1, "an expiry in the past is due at once");
        assert_eq!(left(0), 10_000, "never more than a period");
    }

    #[test]
    fn every_divisor_is_read_right() {
        let divisors: Vec<u32> =
            [0, 1, 2, 3, 8, 9, 10, 11].into_iter().map(|conf| 1 << shift(conf)).collect();
        assert_eq!(divisors, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn a_machine_check_vector_is_refused_by_name() {
        let mut page = page();
        put(&mut page, LVT_CMCI, 0xf2);
        assert!(save(&page, 0, 0).unwrap_err().contains("CMCI"));
    }
}

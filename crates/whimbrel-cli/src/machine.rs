//! QEMU's `-machine microvm,NAME=VALUE,…`: which devices to build, and what is so anyway.

use whimbrel_vmm::MachineOptions;

/// A machine as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its devices.
    pub(crate) options: MachineOptions,
    /// It has a serial port.
    pub(crate) serial: bool,
}

impl Default for Machine {
    /// If nothing is said: the plain one.
    fn default() -> Self {
        Self { options: MachineOptions::PLAIN, serial: true }
    }
}

/// Parses the option's value.
///
/// # Errors
/// What is asked for that cannot be.
pub(crate) fn parse(value: &str) -> Result<Machine, String> {
    let mut machine = Machine { options: MachineOptions::QEMU, serial: true };
    let mut second_ioapic = None;
    for (place, part) in value.split(',').enumerate() {
        let (name, value) = match part.split_once('=') {
            None if place == 0 => ("type", part),
            Some(pair) => pair,
            None => return Err(format!("{part}: not built")),
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("{part}: on or off")),
        };
        match (name, value) {
            ("type", "microvm") => {}
            ("type", other) => return Err(format!("{other}: the one machine is microvm")),
            ("accel", "kvm") => {}
            ("accel", other) => return Err(format!("{other}: guests run on kvm and nothing else")),
            ("acpi", _) => machine.options.acpi = switch()?,
            ("pic", "auto") => machine.options.pic = true,
            ("pic", _) => machine.options.pic = switch()?,
            ("pit", "auto") => machine.options.pit = true,
            ("pit", _) => machine.options.pit = switch()?,
            // Under KVM a guest has a better clock.
            ("rtc", "auto") => machine.options.rtc = false,
            ("rtc", _) => machine.options.rtc = switch()?,
            ("isa-serial", _) => machine.serial = switch()?,
            ("ioapic2", "auto") => {}
            ("ioapic2", _) => second_ioapic = Some(switch()?),
            ("auto-kernel-cmdline" | "usb" | "pcie" | "graphics", "off") => {}
            _ => return Err(format!("{part}: not built")),
        }
    }
    match second_ioapic {
        Some(wanted) if wanted != machine.options.acpi => {
            Err("ioapic2: the second IOAPIC is there with acpi=on, and only then".into())
        }
        _ => Ok(machine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_default_and_the_plain_machine() {
        assert_eq!(parse("microvm"), Ok(Machine { options: MachineOptions::QEMU, serial: true }));
        for plain in [
            "microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=on",
            "type=microvm,accel=kvm,rtc=auto,pit=off,pic=off,acpi=off,ioapic2=off,pcie=off",
        ] {
            assert_eq!(parse(plain), Ok(Machine::default()), "{plain}");
        }
    }

    #[test]
    fn each_property_is_its_device() {
        let qemu = MachineOptions::QEMU;
        for (text, options) in [
            ("microvm,acpi=off", MachineOptions { acpi: false, ..qemu }),
            ("microvm,pic=off", MachineOptions { pic: false, ..qemu }),
            ("microvm,pit=off,pit=auto,pit=off", MachineOptions { pit: false, ..qemu }),
            ("microvm,rtc=on", MachineOptions { rtc: true, ..qemu }),
        ] {
            assert_eq!(parse(text), Ok(Machine { options, serial: true }), "{text}");
        }
        assert!(!parse("microvm,isa-serial=off").unwrap().serial);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, names) in [
            ("q35", "q35"),
            ("microvm,accel=tcg", "tcg"),
            ("microvm,acpi=maybe", "acpi=maybe"),
            ("microvm,pcie=on", "pcie=on"),
            ("microvm,memory-backend=ram", "memory-backend=ram"),
            ("microvm,ioapic2=off", "ioapic2"),
            ("microvm,acpi=off,ioapic2=on", "ioapic2"),
            ("microvm,acpi", "acpi"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(names), "{text}: {why}");
        }
    }
}

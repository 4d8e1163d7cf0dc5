//! QEMU's `-machine microvm,NAME=VALUE,…`, on aarch64 `-machine virt,…`: which devices to build, and what is so anyway.

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

/// Parses the option's value, of the machine that this architecture has.
///
/// # Errors
/// What is asked for that cannot be.
pub(crate) fn parse(value: &str) -> Result<Machine, String> {
    if cfg!(target_arch = "aarch64") { virt(value) } else { microvm(value) }
}

fn microvm(value: &str) -> Result<Machine, String> {
    let mut machine = Machine { options: MachineOptions::QEMU, serial: true };
    let mut second_ioapic = None;
    for property in properties(value) {
        let property = property?;
        match (property.name, property.value) {
            ("type", "microvm") => {}
            ("type", other) => return Err(format!("{other}: the one machine is microvm")),
            ("accel", _) => property.accelerator()?,
            ("acpi", _) => machine.options.acpi = property.switch()?,
            ("pic", "auto") => machine.options.pic = true,
            ("pic", _) => machine.options.pic = property.switch()?,
            ("pit", "auto") => machine.options.pit = true,
            ("pit", _) => machine.options.pit = property.switch()?,
            // Under KVM a guest has a better clock.
            ("rtc", "auto") => machine.options.rtc = false,
            ("rtc", _) => machine.options.rtc = property.switch()?,
            ("isa-serial", _) => machine.serial = property.switch()?,
            ("ioapic2", "auto") => {}
            ("ioapic2", _) => second_ioapic = Some(property.switch()?),
            ("auto-kernel-cmdline" | "usb" | "pcie" | "graphics", "off") => {}
            _ => return Err(property.not_built()),
        }
    }
    match second_ioapic {
        Some(wanted) if wanted != machine.options.acpi => {
            Err("ioapic2: the second IOAPIC is there with acpi=on, and only then".into())
        }
        _ => Ok(machine),
    }
}

/// There is one `virt`: its properties are checked to say so.
fn virt(value: &str) -> Result<Machine, String> {
    for property in properties(value) {
        let property = property?;
        match (property.name, property.value) {
            ("type", "virt") => {}
            ("type", other) => {
                return Err(format!("{other}: the one machine is virt; of which version, --compat says"));
            }
            ("accel", _) => property.accelerator()?,
            ("gic-version", "3") => {}
            ("gic-version", _) => {
                return Err(format!("{}: its controller is a GICv3; say gic-version=3", property.text));
            }
            ("its", _) if property.switch()? => {}
            ("its", _) => return Err(format!("{}: it always has an ITS; say its=on", property.text)),
            ("acpi" | "mte" | "ras" | "secure" | "usb" | "virtualization", "off") | ("iommu", "none") => {}
            _ => return Err(property.not_built()),
        }
    }
    Ok(Machine::default())
}

/// `NAME=VALUE`, as it stands and taken apart.
struct Property<'a> {
    text: &'a str,
    name: &'a str,
    value: &'a str,
}

/// Those of an option's value. The first may be the machine's type, without its name.
fn properties(value: &str) -> impl Iterator<Item = Result<Property<'_>, String>> {
    value.split(',').enumerate().map(|(place, text)| match text.split_once('=') {
        Some((name, value)) => Ok(Property { text, name, value }),
        None if place == 0 => Ok(Property { text, name: "type", value: text }),
        None => Err(format!("{text}: not built")),
    })
}

impl Property<'_> {
    fn switch(&self) -> Result<bool, String> {
        match self.value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("{}: on or off", self.text)),
        }
    }

    fn accelerator(&self) -> Result<(), String> {
        match self.value {
            "kvm" => Ok(()),
            other => Err(format!("{other}: guests run on kvm and nothing else")),
        }
    }

    fn not_built(&self) -> String {
        format!("{}: not built", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_default_and_the_plain_machine() {
        assert_eq!(microvm("microvm"), Ok(Machine { options: MachineOptions::QEMU, serial: true }));
        for plain in [
            "microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=on",
            "type=microvm,accel=kvm,rtc=auto,pit=off,pic=off,acpi=off,ioapic2=off,pcie=off",
        ] {
            assert_eq!(microvm(plain), Ok(Machine::default()), "{plain}");
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
            assert_eq!(microvm(text), Ok(Machine { options, serial: true }), "{text}");
        }
        assert!(!microvm("microvm,isa-serial=off").unwrap().serial);
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
            let why = microvm(text).unwrap_err();
            assert!(why.contains(names), "{text}: {why}");
        }
    }

    #[test]
    fn virt_is_one_machine_and_says_so() {
        for text in [
            "virt",
            "virt,gic-version=3,its=on",
            "type=virt,accel=kvm,gic-version=3,virtualization=off,secure=off,acpi=off,iommu=none",
        ] {
            assert_eq!(virt(text), Ok(Machine::default()), "{text}");
        }
        for (text, why) in [
            ("microvm", "microvm: the one machine is virt; of which version, --compat says"),
            ("virt-9.0", "virt-9.0: the one machine is virt; of which version, --compat says"),
            ("virt,gic-version=2", "gic-version=2: its controller is a GICv3; say gic-version=3"),
            ("virt,gic-version=max", "gic-version=max: its controller is a GICv3; say gic-version=3"),
            ("virt,its=off", "its=off: it always has an ITS; say its=on"),
            ("virt,its=auto", "its=auto: on or off"),
            ("virt,accel=tcg", "tcg: guests run on kvm and nothing else"),
            ("virt,secure=on", "secure=on: not built"),
            ("virt,iommu=smmuv3", "iommu=smmuv3: not built"),
            ("virt,its", "its: not built"),
        ] {
            assert_eq!(virt(text), Err(why.to_owned()));
        }
    }

    #[test]
    fn an_architecture_has_its_own() {
        let (ours, other) =
            if cfg!(target_arch = "aarch64") { ("virt", "microvm") } else { ("microvm", "virt") };
        assert!(parse(ours).is_ok() && parse(other).is_err());
    }
}

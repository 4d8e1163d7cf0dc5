//! An in-kernel device, by its groups of attributes: registers that are read and written, commands that are given.

use kvm_bindings::{kvm_create_device, kvm_device_attr};
use kvm_ioctls::{DeviceFd, VmFd};
use whimbrel::machine::MachineError;

use crate::error::Error;

/// A device of KVM's.
pub(super) struct KvmDevice {
    fd: DeviceFd,
    name: &'static str,
}

impl KvmDevice {
    /// Creates a device of `kind`, a `KVM_DEV_TYPE_…`; `name` is for errors.
    ///
    /// # Errors
    /// If this host's KVM has none.
    pub(super) fn new(vm: &VmFd, kind: u32, name: &'static str) -> Result<Self, Error> {
        let mut request = kvm_create_device { type_: kind, fd: 0, flags: 0 };
        let fd = vm.create_device(&mut request).map_err(|error| {
            Error::Config(format!("this host's KVM gives no {name}: KVM_CREATE_DEVICE: {error}"))
        })?;
        Ok(Self { fd, name })
    }

    /// Whether it knows an attribute.
    pub(super) fn has(&self, group: u32, attr: u64) -> bool {
        self.fd.has_device_attr(&kvm_device_attr { group, attr, addr: 0, flags: 0 }).is_ok()
    }

    /// Gives a command: an attribute that takes no value. `what` is its name in the kernel's documentation.
    ///
    /// # Errors
    /// Names ioctl, command and errno.
    pub(super) fn command(&self, group: u32, attr: u32, what: &str) -> Result<(), MachineError> {
        let request = kvm_device_attr { group, attr: attr.into(), addr: 0, flags: 0 };
        self.fd
            .set_device_attr(&request)
            .map_err(|error| format!("{}: KVM_SET_DEVICE_ATTR {what}: {error}", self.name).into())
    }

    pub(super) fn get_u32(&self, group: u32, attr: u64) -> Result<u32, MachineError> {
        let mut value = 0u32;
        self.get(group, attr, &raw mut value as u64)?;
        Ok(value)
    }

    pub(super) fn get_u64(&self, group: u32, attr: u64) -> Result<u64, MachineError> {
        let mut value = 0u64;
        self.get(group, attr, &raw mut value as u64)?;
        Ok(value)
    }

    pub(super) fn set_u32(&self, group: u32, attr: u64, value: u32) -> Result<(), MachineError> {
        self.set(group, attr, &raw const value as u64, value.into())
    }

    pub(super) fn set_u64(&self, group: u32, attr: u64, value: u64) -> Result<(), MachineError> {
        self.set(group, attr, &raw const value as u64, value)
    }

    /// `addr` points to a value of the attribute's width.
    fn get(&self, group: u32, attr: u64, addr: u64) -> Result<(), MachineError> {
        let mut request = kvm_device_attr { group, attr, addr, flags: 0 };
        // SAFETY: KVM writes a value of the attribute's width, four or eight bytes, which is what the callers above lend it; it keeps
        // no pointer.
        unsafe { self.fd.get_device_attr(&mut request) }.map_err(|error| {
            format!("{}: KVM_GET_DEVICE_ATTR group {group} {attr:#x}: {error}", self.name).into()
        })
    }

    fn set(&self, group: u32, attr: u64, addr: u64, value: u64) -> Result<(), MachineError> {
        self.fd.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 }).map_err(|error| {
            let name = self.name;
            format!("{name}: KVM_SET_DEVICE_ATTR group {group} {attr:#x} to {value:#x}: {error}").into()
        })
    }
}

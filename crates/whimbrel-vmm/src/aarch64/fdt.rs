//! The flattened device tree: what the machine consists of, told to its guest. A function of the configuration alone.

use vm_fdt::{Error as FdtError, FdtWriter};

use super::map::{self, TIMER_PPIS};

/// What varies between machines.
pub(super) struct Tree<'a> {
    /// Bytes of RAM.
    pub(super) memory: u64,
    /// The vCPUs' affinities, in their order.
    pub(super) cpus: &'a [u64],
    /// The kernel's command line.
    pub(super) command_line: &'a str,
    /// Where the initrd lies: begin and end.
    pub(super) initrd: Option<(u64, u64)>,
}

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;
const ITS_PHANDLE: u32 = 3;
/// An interrupt's first cell.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// And its third.
const LEVEL_HIGH: u32 = 4;

impl Tree<'_> {
    /// The tree's bytes.
    ///
    /// # Errors
    /// If the command line has a zero byte.
    pub(super) fn build(&self) -> Result<Vec<u8>, FdtError> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "linux,dummy-virt")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;
        fdt.property_null("dma-coherent")?;
        self.chosen(&mut fdt)?;
        self.cpus(&mut fdt)?;
        psci(&mut fdt)?;
        let node = fdt.begin_node(&format!("memory@{:x}", map::RAM))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[map::RAM, self.memory])?;
        fdt.end_node(node)?;
        interrupt_controllers(&mut fdt)?;
        timer(&mut fdt)?;
        uart(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), FdtError> {
        let node = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.command_line)?;
        fdt.property_string("stdout-path", &uart_path())?;
        if let Some((begin, end)) = self.initrd {
            fdt.property_u64("linux,initrd-start", begin)?;
            fdt.property_u64("linux,initrd-end", end)?;
        }
        fdt.end_node(node)
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), FdtError> {
        let node = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for affinity in self.cpus {
            let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u64("reg", *affinity)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(node)
    }
}

fn psci(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn interrupt_controllers(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let gic = fdt.begin_node(&format!("intc@{:x}", map::GICD))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_array_u64("reg", &[map::GICD, map::GICD_SIZE, map::GICR, map::GICR_SIZE])?;
    fdt.property_phandle(GIC_PHANDLE)?;
    let its = fdt.begin_node(&format!("its@{:x}", map::ITS))?;
    fdt.property_string("compatible", "arm,gic-v3-its")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    fdt.property_array_u64("reg", &[map::ITS, map::ITS_SIZE])?;
    fdt.property_phandle(ITS_PHANDLE)?;
    fdt.end_node(its)?;
    fdt.end_node(gic)
}

fn timer(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string_list("compatible", vec!["arm,armv8-timer".into(), "arm,armv7-timer".into()])?;
    let interrupts: Vec<u32> = TIMER_PPIS.iter().flat_map(|ppi| [PRIVATE, *ppi, LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn uart(fdt: &mut FdtWriter) -> Result<(), FdtError> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", map::UART_CLOCK)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK_PHANDLE)?;
    fdt.end_node(clock)?;
    let node = fdt.begin_node(&uart_path()[1..])?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[map::UART, map::UART_SIZE])?;
    fdt.property_array_u32("interrupts", &[SHARED, map::UART_SPI, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(node)
}

fn uart_path() -> String {
    format!("/pl011@{:x}", map::UART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_the_same_on_two_hosts_and_holds_what_was_asked_for() {
        let tree = Tree { memory: 64 << 20, cpus: &[0, 1], command_line: "hold=1 x", initrd: Some((5, 9)) };
        let bytes = tree.build().unwrap();
        assert_eq!(bytes, tree.build().unwrap());
        assert_eq!(bytes[..4], 0xd00d_feed_u32.to_be_bytes());
        for text in ["hold=1 x\0", "cpu@1\0", "arm,gic-v3-its\0", "linux,initrd-end\0", "/pl011@9000000\0"] {
            assert!(bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
        }
        assert!(Tree { command_line: "a\0b", ..tree }.build().is_err());
    }
}

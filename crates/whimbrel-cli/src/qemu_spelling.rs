//! QEMU's spellings for `whimbrel run`, where they don't clash: long options with one dash, and values with QEMU's
//! sub-options, rewritten to our own before they are parsed.
//!
//! What QEMU's option asks for and this machine cannot do is refused by name, never dropped. `docs/run.md` has the table.

use std::ffi::{OsStr, OsString};

/// One of QEMU's options.
struct Spelling {
    /// With its dash.
    name: &'static str,
    becomes: Becomes,
}

/// What it is to us.
enum Becomes {
    /// Our option, with the same value.
    Same(&'static str),
    /// Our option, with the value rewritten.
    Value(&'static str, fn(&str) -> Result<String, String>),
    /// Our option, with the part of the value that is not so anyway, if there is one.
    Part(&'static str, fn(&str) -> Result<Option<String>, String>),
    /// Our switch.
    Switch(&'static str),
    /// A switch that says what is so anyway.
    Already,
    /// A value that is checked to say what is so anyway.
    Checked(fn(&str) -> Result<(), String>),
}

use Becomes::{Already, Checked, Part, Same, Switch, Value};

const SPELLINGS: &[Spelling] = &[
    Spelling { name: "-m", becomes: Value("--memory", memory) },
    Spelling { name: "-smp", becomes: Value("--cpus", cpus) },
    Spelling { name: "-kernel", becomes: Same("--kernel") },
    Spelling { name: "-append", becomes: Same("--append") },
    Spelling { name: "-initrd", becomes: Same("--initrd") },
    Spelling { name: "-bios", becomes: Same("--bios") },
    Spelling { name: "-incoming", becomes: Same("--incoming") },
    Spelling { name: "-serial", becomes: Value("--serial", chardev) },
    Spelling { name: "-debugcon", becomes: Value("--debugcon", chardev) },
    Spelling { name: "-qmp", becomes: Value("--qmp", monitor) },
    Spelling { name: "-name", becomes: Value("--name", name) },
    Spelling { name: "-uuid", becomes: Same("--uuid") },
    Spelling { name: "-no-reboot", becomes: Switch("--no-reboot") },
    Spelling { name: "-no-shutdown", becomes: Switch("--no-shutdown") },
    Spelling { name: "-M", becomes: Same("--machine") },
    Spelling { name: "-machine", becomes: Same("--machine") },
    Spelling { name: "-accel", becomes: Part("--dirty", accelerator) },
    Spelling { name: "-enable-kvm", becomes: Already },
    Spelling { name: "-cpu", becomes: Same("--cpu") },
    Spelling { name: "-nodefaults", becomes: Already },
    Spelling { name: "-no-user-config", becomes: Already },
    Spelling { name: "-display", becomes: Checked(none) },
    Spelling { name: "-vga", becomes: Checked(none) },
    Spelling { name: "-monitor", becomes: Checked(none) },
    Spelling { name: "-parallel", becomes: Checked(none) },
    Spelling { name: "-net", becomes: Checked(none) },
    Spelling { name: "-nic", becomes: Checked(none) },
];

/// Rewrites the arguments of `whimbrel run`, and leaves those of every other subcommand alone.
///
/// # Errors
/// What is asked for that this machine cannot do, and what it can.
pub(crate) fn translate(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut arguments = arguments.into_iter();
    let mut translated: Vec<_> = arguments.next().into_iter().collect();
    // The subcommand is the first word that is no option.
    while let Some(argument) = arguments.next() {
        let is_option = argument.as_encoded_bytes().starts_with(b"-");
        let is_run = argument == "run";
        translated.push(argument);
        if is_run {
            break;
        }
        if !is_option {
            translated.extend(arguments.by_ref());
        }
    }
    while let Some(argument) = arguments.next() {
        let known = argument.to_str().and_then(|text| SPELLINGS.iter().find(|known| known.name == text));
        match known {
            Some(known) => translated.extend(known.translate(|| arguments.next())?),
            None if argument == "--" => {
                translated.push(argument);
                translated.extend(arguments.by_ref());
            }
            None => {
                refuse_unknown(&argument)?;
                translated.push(argument);
            }
        }
    }
    Ok(translated)
}

impl Spelling {
    fn translate(&self, mut next: impl FnMut() -> Option<OsString>) -> Result<Option<OsString>, String> {
        let mut value = || next().ok_or_else(|| format!("'{}' needs a value", self.name));
        let text = |value: &OsStr| {
            value
                .to_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("'{}': the value is not UTF-8", self.name))
        };
        let explain = |why: String| format!("'{}': {why}", self.name);
        match self.becomes {
            // One word each: a value that begins with a dash stays a value.
            Same(ours) => Ok(Some(join(ours, &value()?))),
            Value(ours, rewrite) => {
                let rewritten = rewrite(&text(&value()?)?).map_err(explain)?;
                Ok(Some(join(ours, rewritten.as_ref())))
            }
            Part(ours, rewrite) => {
                let part = rewrite(&text(&value()?)?).map_err(explain)?;
                Ok(part.map(|part| join(ours, part.as_ref())))
            }
            Switch(ours) => Ok(Some(ours.into())),
            Already => Ok(None),
            Checked(check) => check(&text(&value()?)?).map_err(explain).map(|()| None),
        }
    }
}

fn join(option: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(option);
    word.push("=");
    word.push(value);
    word
}

/// A long option with one dash is QEMU's: read as short ones in a row it would mean something else.
fn refuse_unknown(argument: &OsStr) -> Result<(), String> {
    let Some(name) = argument.to_str().and_then(|text| text.strip_prefix('-')) else { return Ok(()) };
    let is_long = name.len() > 1
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let is_ours = name.chars().all(|c| c == 'v')
        || name.strip_prefix('m').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if is_long && !is_ours {
        return Err(format!(
            "QEMU's option '-{name}' asks for what this machine does not have; `whimbrel run --help` lists what it has"
        ));
    }
    Ok(())
}

/// `1G`, `size=1G`.
fn memory(value: &str) -> Result<String, String> {
    sole(value, "size", "memory that can be plugged in is not built")
}

/// `2`, `cpus=2`.
fn cpus(value: &str) -> Result<String, String> {
    sole(value, "cpus", "each vCPU is a core of one package, and none can be plugged in")
}

/// `web`, `guest=web`.
fn name(value: &str) -> Result<String, String> {
    sole(value, "guest", "only the guest's name can be given")
}

/// A value that may be named, and has nothing beside it.
fn sole(value: &str, member: &str, why: &str) -> Result<String, String> {
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    let first = match first.split_once('=') {
        Some((name, rest)) if name == member => rest,
        Some((name, _)) => return Err(format!("{name}: {why}")),
        None => first,
    };
    match parts.next() {
        Some(other) => Err(format!("{other}: {why}")),
        None => Ok(first.to_owned()),
    }
}

/// `unix:PATH,server=on,wait=off` is `unix:PATH,server` here; the others are spelt alike.
fn chardev(value: &str) -> Result<String, String> {
    for (what, remedy) in [
        ("chardev:", "name the backend itself: unix:PATH, file:PATH …"),
        ("mon:", "the monitor has a socket of its own: -qmp unix:PATH,server=on,wait=off"),
    ] {
        if value.starts_with(what) {
            return Err(format!("'{what}' is not built; {remedy}"));
        }
    }
    let (address, server) = socket(value)?;
    Ok(if server { format!("{address},server") } else { address })
}

/// A monitor always listens.
fn monitor(value: &str) -> Result<String, String> {
    if value.split(',').any(|option| option == "server=off") {
        return Err("server=off: a monitor listens, it does not connect".into());
    }
    socket(value).map(|(address, _)| address)
}

/// The address, and whether it listens.
fn socket(value: &str) -> Result<(String, bool), String> {
    let (mut address, mut server) = (value, false);
    while let Some((rest, option)) = address.rsplit_once(',') {
        match option {
            "server" | "server=on" => server = true,
            "nowait" | "wait=off" | "wait=no" | "server=off" => {}
            "wait" | "wait=on" | "wait=yes" => {
                return Err(format!(
                    "{option}: the machine does not wait for a client; start it with -S and `cont` it"
                ));
            }
            // A comma in a path.
            _ if rest.starts_with("unix:") && !option.contains('=') => break,
            _ => return Err(format!("{option}: this option of a socket is not built")),
        }
        address = rest;
    }
    Ok((address.to_owned(), server))
}

/// `kvm`, `kvm,dirty-ring-size=4096`; the size 0 is no ring.
fn accelerator(value: &str) -> Result<Option<String>, String> {
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    if first.strip_prefix("accel=").unwrap_or(first) != "kvm" {
        return Err(format!("{first}: guests run on kvm and nothing else"));
    }
    let mut dirty = None;
    for part in parts {
        dirty = Some(match part.split_once('=') {
            Some(("dirty-ring-size", "0")) => "bitmap".to_owned(),
            Some(("dirty-ring-size", entries)) => format!("ring,{entries}"),
            _ => return Err(format!("{part}: not built; of kvm's properties only dirty-ring-size is")),
        });
    }
    Ok(dirty)
}

fn none(value: &str) -> Result<(), String> {
    if value == "none" { Ok(()) } else { Err(format!("{value}: there is none; say none")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Result<String, String> {
        let words = translate(line.split(' ').map(OsString::from))?;
        Ok(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[track_caller]
    fn becomes(theirs: &str, ours: &str) {
        assert_eq!(translated(&format!("whimbrel run {theirs}")), Ok(format!("whimbrel run {ours}")));
    }

    #[track_caller]
    fn refused(theirs: &str, names: &str) {
        let why = translated(&format!("whimbrel run {theirs}")).unwrap_err();
        assert!(why.contains(names), "{why}");
    }

    #[test]
    fn qemus_spellings_become_ours() {
        becomes("-m 1G -smp 2 -S", "--memory=1G --cpus=2 -S");
        becomes("-m size=512M -smp cpus=4", "--memory=512M --cpus=4");
        becomes("-kernel k -append -x -initrd i -bios b", "--kernel=k --append=-x --initrd=i --bios=b");
        becomes(
            "-incoming tcp:0:4444 -no-reboot -no-shutdown",
            "--incoming=tcp:0:4444 --no-reboot --no-shutdown",
        );
        becomes("-qmp unix:/q,server=on,wait=off", "--qmp=unix:/q");
        becomes("-serial unix:/s,server=on,wait=off", "--serial=unix:/s,server");
        becomes("-serial unix:/s,t -debugcon file:/d", "--serial=unix:/s,t --debugcon=file:/d");
        becomes("-name guest=web -uuid u", "--name=web --uuid=u");
        becomes("-M microvm -machine microvm,rtc=on", "--machine=microvm --machine=microvm,rtc=on");
    }

    #[test]
    fn what_is_so_anyway_is_checked_and_needs_nothing() {
        becomes("-nodefaults -display none -enable-kvm -accel kvm -cpu host -S", "--cpu=host -S");
    }

    #[test]
    fn the_dirty_ring_is_a_property_of_kvm() {
        becomes("-accel kvm,dirty-ring-size=4096 -S", "--dirty=ring,4096 -S");
        becomes("-accel accel=kvm,dirty-ring-size=0", "--dirty=bitmap");
        refused("-accel kvm,kernel-irqchip=split", "kernel-irqchip=split");
        refused("-accel tcg,dirty-ring-size=4096", "tcg");
    }

    #[test]
    fn what_this_machine_cannot_do_is_refused_by_name() {
        refused("-accel tcg", "tcg");
        refused("-display gtk", "gtk");
        refused("-smp 2,sockets=2", "sockets=2");
        refused("-m 1G,maxmem=2G", "maxmem=2G");
        refused("-serial chardev:c", "chardev:");
        refused("-qmp unix:/q,server=on,wait=on", "wait=on");
        refused("-qmp unix:/q,server=off", "server=off");
        refused("-device virtio-net", "-device");
        refused("-kernel-irqchip x", "-kernel-irqchip");
        refused("-kernel", "needs a value");
    }

    #[test]
    fn our_own_spellings_and_other_subcommands_stay_as_they_are() {
        for line in [
            "whimbrel run -m1G -k /k --qmp unix:/a -vv",
            "whimbrel -v migrate -kernel",
            "whimbrel demo -device",
            "whimbrel",
            "whimbrel --help",
        ] {
            let ours = line.replace("-m 1G", "--memory=1G");
            assert_eq!(translated(line), Ok(ours));
        }
        assert_eq!(translated("whimbrel -v run -smp 2"), Ok("whimbrel -v run --cpus=2".into()));
    }

    #[test]
    fn every_spelling_is_in_the_documentation() {
        let table = include_str!("../../../docs/run.md");
        for known in SPELLINGS {
            assert!(table.contains(&format!("`{}", known.name)), "{} is not in docs/run.md", known.name);
        }
    }
}

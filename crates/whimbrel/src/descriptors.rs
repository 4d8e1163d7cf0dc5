//! File descriptors that were handed to this process: by name (`getfd`) for `fd:NAME`, in sets (`add-fd`) for `/dev/fdset/N`, and
//! by number, inherited, for `fd:NUMBER`.
//!
//! | address | which descriptor | afterwards |
//! |---|---|---|
//! | `fd:NAME` | the one of that name | it is the migration's: the name is free |
//! | `fd:NUMBER` | one that this process inherited | it is the migration's |
//! | `file:/dev/fdset/N` | the first of set N with just that access | the set keeps it; the migration has a duplicate |
//!
//! What is held is bounded, in number and in the length of names.
//!
//! One of the named modules with `unsafe`: an inherited descriptor is a number until it is taken.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::OFlags;
use rustix::io::FdFlags;
use whimbrel_wire::qemu_texts;

use crate::error::CommandError;
use crate::lock;

/// How many descriptors are held at one time; a process has some thousand.
const HELD: usize = 128;
/// Bytes of a name or of what a client notes beside a descriptor.
const NAME: usize = 4096;
/// Paths that mean a set.
const SETS: &str = "/dev/fdset/";

/// The descriptors that are held for later.
#[derive(Default)]
pub struct Descriptors {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    named: BTreeMap<String, OwnedFd>,
    sets: BTreeMap<i64, Vec<Member>>,
}

struct Member {
    fd: OwnedFd,
    note: Option<String>,
}

/// A set of descriptors, as `query-fdsets` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorSet {
    /// Its number.
    pub id: i64,
    /// Each descriptor's number in this process, and what was noted with it; in the order in which they came.
    pub descriptors: Vec<(RawFd, Option<String>)>,
}

impl Descriptors {
    /// `getfd`: holds `fd` under a name; an older one of that name is closed.
    ///
    /// # Errors
    /// QEMU's text for a name that begins with a digit; or too much is held.
    pub fn name(&self, name: String, fd: OwnedFd) -> Result<(), CommandError> {
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(CommandError::generic(qemu_texts::FDNAME_STARTS_WITH_DIGIT));
        }
        let mut held = lock(&self.held);
        if !held.named.contains_key(&name) {
            held.check_room(&name)?;
        }
        held.named.insert(name, fd);
        Ok(())
    }

    /// `closefd`.
    ///
    /// # Errors
    /// QEMU's text if there is none of that name.
    pub fn close(&self, name: &str) -> Result<(), CommandError> {
        let found = lock(&self.held).named.remove(name).map(drop);
        found.ok_or_else(|| CommandError::generic(qemu_texts::descriptor_not_found(name)))
    }

    /// `add-fd`: holds `fd` in the set, or in a new one; the set's number and the descriptor's own.
    ///
    /// # Errors
    /// QEMU's text for a negative set; or too much is held.
    pub fn add(
        &self,
        set: Option<i64>,
        fd: OwnedFd,
        note: Option<String>,
    ) -> Result<(i64, RawFd), CommandError> {
        if set.is_some_and(|set| set < 0) {
            return Err(CommandError::generic(qemu_texts::FDSET_ID_NEGATIVE));
        }
        let mut held = lock(&self.held);
        held.check_room(note.as_deref().unwrap_or_default())?;
        let free = (0..).find(|id| !held.sets.contains_key(id)).unwrap_or_default();
        let (id, number) = (set.unwrap_or(free), fd.as_raw_fd());
        held.sets.entry(id).or_default().push(Member { fd, note });
        Ok((id, number))
    }

    /// `remove-fd`: closes one descriptor of a set, or all; an empty set is no set.
    ///
    /// # Errors
    /// QEMU's text if there is no such set, or no such descriptor in it.
    pub fn remove(&self, id: i64, number: Option<i64>) -> Result<(), CommandError> {
        let mut held = lock(&self.held);
        let missing = || {
            let name = match number {
                Some(number) => format!("fdset-id:{id}, fd:{number}"),
                None => format!("fdset-id:{id}"),
            };
            CommandError::generic(qemu_texts::descriptor_not_found(&name))
        };
        let members = held.sets.get_mut(&id).ok_or_else(missing)?;
        let before = members.len();
        members.retain(|member| number.is_some_and(|number| i64::from(member.fd.as_raw_fd()) != number));
        if members.len() == before {
            return Err(missing());
        }
        if members.is_empty() {
            held.sets.remove(&id);
        }
        Ok(())
    }

    /// `query-fdsets`: the set with the highest number first.
    pub fn sets(&self) -> Vec<DescriptorSet> {
        let shown = |member: &Member| (member.fd.as_raw_fd(), member.note.clone());
        let held = lock(&self.held);
        let sets = held.sets.iter().rev();
        sets.map(|(&id, members)| DescriptorSet { id, descriptors: members.iter().map(shown).collect() })
            .collect()
    }

    /// What `fd:NAME-or-NUMBER` means. It is the caller's from now on.
    pub(crate) fn take(&self, name: &str) -> Result<OwnedFd, CommandError> {
        let missing = || CommandError::generic(qemu_texts::descriptor_has_not_been_found(name));
        match name.parse::<RawFd>() {
            Ok(number) => take_inherited(number).ok_or_else(missing),
            Err(_) => lock(&self.held).named.remove(name).ok_or_else(missing),
        }
    }

    /// A duplicate of the set's descriptor with this access, if the path means a set.
    pub(crate) fn open(&self, path: &Path, access: Access) -> Option<Result<OwnedFd, CommandError>> {
        let id = path.to_str()?.strip_prefix(SETS)?;
        let held = lock(&self.held);
        let members = id.parse().ok().and_then(|id: i64| held.sets.get(&id));
        Some(match members {
            None => Err(CommandError::generic(qemu_texts::fdset_not_found(&path.display().to_string()))),
            Some(members) => {
                let fitting = members.iter().find(|member| access.is_of(&member.fd));
                let duplicate =
                    fitting.and_then(|member| rustix::io::fcntl_dupfd_cloexec(&member.fd, 3).ok());
                duplicate
                    .ok_or_else(|| CommandError::generic(qemu_texts::no_matching_descriptor(access.flags())))
            }
        })
    }
}

impl Held {
    fn check_room(&self, text: &str) -> Result<(), CommandError> {
        if text.len() > NAME {
            return Err(CommandError::generic(format!("A descriptor's name has at most {NAME} bytes")));
        }
        let count = self.named.len() + self.sets.values().map(Vec::len).sum::<usize>();
        if count >= HELD {
            let text = format!("{HELD} file descriptors are held already: closefd or remove-fd some");
            return Err(CommandError::generic(text));
        }
        Ok(())
    }
}

/// What a stream is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Access {
    /// As `open` takes them; QEMU's text shows them.
    fn flags(self) -> OFlags {
        match self {
            Self::Read => OFlags::RDONLY,
            Self::Write => OFlags::WRONLY | OFlags::CREATE,
        }
    }

    /// One for both would do as well, but QEMU takes none.
    fn is_of(self, fd: &OwnedFd) -> bool {
        rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::RWMODE == self.flags() & OFlags::RWMODE)
    }
}

/// Takes a descriptor that this process was started with. All of our own are close-on-exec from birth and an inherited one is
/// not, so that nobody can make us write a stream into what is ours; from here on this one is ours.
fn take_inherited(number: RawFd) -> Option<OwnedFd> {
    /// One that is taken is not inherited any more: the look and the taking are one.
    static TAKING: Mutex<()> = Mutex::new(());
    if number <= 2 {
        return None;
    }
    let _alone = lock(&TAKING);
    // SAFETY: used for two `fcntl`s on the number, here; of a number that is no open descriptor they say so.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(fd).ok()?.contains(FdFlags::CLOEXEC) {
        return None;
    }
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    // SAFETY: an open descriptor without close-on-exec was made by no part of this process, so that nobody else owns it; and
    // nobody takes it again, since now it has that flag.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn text<T>(result: Result<T, CommandError>) -> String {
        result.err().unwrap().desc
    }

    #[test]
    fn a_named_descriptor_is_taken_once() {
        let held = Descriptors::default();
        held.name("a".into(), null()).unwrap();
        held.name("a".into(), null()).unwrap();
        assert!(held.take("a").is_ok());
        assert_eq!(text(held.take("a")), "File descriptor named 'a' has not been found");
        assert_eq!(text(held.close("a")), "File descriptor named 'a' not found");
        assert_eq!(
            text(held.name("5".into(), null())),
            "Parameter 'fdname' expects a name not starting with a digit"
        );
    }

    #[test]
    fn sets_are_numbered_shown_and_emptied_as_in_qemu() {
        let held = Descriptors::default();
        assert_eq!(held.add(None, null(), None).unwrap().0, 0);
        let (_, first) = held.add(Some(7), null(), Some("x".into())).unwrap();
        held.add(Some(7), null(), None).unwrap();
        let sets = held.sets();
        assert_eq!(sets.iter().map(|set| set.id).collect::<Vec<_>>(), [7, 0]);
        assert_eq!(sets[0].descriptors[0], (first, Some("x".into())));
        assert_eq!(text(held.remove(9, None)), "File descriptor named 'fdset-id:9' not found");
        assert_eq!(text(held.remove(7, Some(9999))), "File descriptor named 'fdset-id:7, fd:9999' not found");
        held.remove(7, Some(first.into())).unwrap();
        assert_eq!(held.sets()[0].descriptors.len(), 1);
        held.remove(7, None).unwrap();
        held.remove(0, None).unwrap();
        assert_eq!(held.sets(), []);
        assert_eq!(
            text(held.add(Some(-1), null(), None)),
            "Parameter 'fdset-id' expects a non-negative value"
        );
    }

    #[test]
    fn a_set_gives_a_duplicate_with_the_access_asked_for() {
        let held = Descriptors::default();
        held.add(Some(1), null(), None).unwrap();
        let open = |path: &str, access| held.open(Path::new(path), access);
        assert!(open("/dev/fdset/1", Access::Read).unwrap().is_ok());
        assert_eq!(
            text(open("/dev/fdset/1", Access::Write).unwrap()),
            "Failed to find file descriptor with matching flags=0x41"
        );
        assert_eq!(text(open("/dev/fdset/2", Access::Read).unwrap()), "Failed to find fdset /dev/fdset/2");
        assert!(open("/dev/null", Access::Read).is_none(), "an ordinary path");
    }

    #[test]
    fn no_client_can_have_more_held_than_a_bound() {
        let held = Descriptors::default();
        for _ in 0..HELD {
            held.add(None, null(), None).unwrap();
        }
        assert!(text(held.add(None, null(), None)).contains("held already"));
        assert!(text(held.name("a".into(), null())).contains("held already"));
        held.remove(0, None).unwrap();
        assert!(text(held.name("a".repeat(NAME + 1), null())).contains("bytes"));
        held.name("a".into(), null()).unwrap();
    }

    #[test]
    fn an_inherited_descriptor_is_taken_once_and_our_own_never() {
        let ours = null();
        assert_eq!(
            text(Descriptors::default().take(&ours.as_raw_fd().to_string())),
            format!("File descriptor named '{}' has not been found", ours.as_raw_fd())
        );
        // As one that came with the process: without the flag, and owned by nobody.
        let inherited = rustix::io::dup(&ours).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(inherited);
        let held = Descriptors::default();
        let taken = held.take(&number.to_string()).unwrap();
        assert!(held.take(&number.to_string()).is_err());
        drop(taken);
        assert!(held.take("1").is_err() && held.take("99999").is_err());
    }
}

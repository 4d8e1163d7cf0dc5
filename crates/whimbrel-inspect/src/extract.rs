//! One block of RAM as it is at the end of a stream, written to a file while the stream is walked. Pages that are zero, or
//! never came, are holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use whimbrel_wire::WireError;
use whimbrel_wire::ram::xbzrle;

use crate::visitor::{Content, Page, PageVisitor};
use crate::{Block, Fault, PageSet};

/// Writes the pages of one block to a file. The file is made when the block is announced, not before.
#[derive(Debug)]
pub struct Extract {
    name: String,
    path: PathBuf,
    target: Option<Target>,
}

#[derive(Debug)]
struct Target {
    index: usize,
    file: File,
    written: PageSet,
}

impl Extract {
    /// Will write the block `name` to `path`, over what is there.
    pub fn new(name: &str, path: &Path) -> Self {
        Extract { name: name.to_owned(), path: path.to_owned(), target: None }
    }

    /// Whether the stream had the block.
    pub fn found(&self) -> bool {
        self.target.is_some()
    }
}

impl PageVisitor for Extract {
    fn block(&mut self, index: usize, block: &Block) -> Result<(), Fault> {
        if block.name != self.name {
            return Ok(());
        }
        let what = || format!("writing {}", self.path.display());
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&self.path);
        let file = file.map_err(Fault::io(what()))?;
        file.set_len(block.length).map_err(Fault::io(what()))?;
        self.target = Some(Target { index, file, written: PageSet::default() });
        Ok(())
    }

    fn wants_bytes(&self, index: usize) -> bool {
        self.target.as_ref().is_some_and(|target| target.index == index)
    }

    fn page(&mut self, page: Page<'_>) -> Result<(), Fault> {
        let Some(target) = self.target.as_mut().filter(|target| target.index == page.block) else {
            return Ok(());
        };
        let number = page.offset.checked_div(page.size).unwrap_or(0);
        if matches!(page.content, Content::Filled(0)) && !target.written.contains(number) {
            return Ok(());
        }
        target.written.insert(number);
        let what = || format!("writing {}", self.path.display());
        let filled;
        let bytes = match page.content {
            Content::Bytes(bytes) => bytes,
            Content::Filled(fill) => {
                filled = vec![fill; usize::try_from(page.size).unwrap_or(0)];
                &filled
            }
            Content::Xbzrle(encoded) => {
                let mut before = vec![0; usize::try_from(page.size).unwrap_or(0)];
                target.file.read_exact_at(&mut before, page.offset).map_err(Fault::io(what()))?;
                xbzrle::apply(encoded, &mut before)
                    .map_err(|why| WireError::Xbzrle { offset: page.at, why })?;
                filled = before;
                &filled
            }
        };
        target.file.write_all_at(bytes, page.offset).map_err(Fault::io(what()))
    }
}

//! What of a directory tree is on the disk, and what a power cut may leave of the rest.
//!
//! The tree that programs see (the *volatile* state, the page cache) is a real one, on a real file system, so that
//! mmap, preadv2 and mincore work on it as ever. Beside it this module keeps the *durable* state and the changes that
//! are not in it yet:
//!
//! - **Data.** A file has its bytes as of its last successful sync, and the writes and truncations since. At a cut each
//!   sector (512 or 4,096 bytes) of the file holds what it held after *any* of these changes, chosen apart from its
//!   neighbours: writes are torn, dropped and reordered. The length is that after any of the changes, chosen apart from
//!   the data; where it covers what was never written there are zeros or garbage. A sync of the file makes all of it
//!   durable, and nothing else: not the file's name.
//! - **Names.** Creations, renames, unlinks and new directories wait for an fsync of the directory they are in (of either
//!   directory of a rename). At a cut, by history, either a *prefix* of all that wait is kept, as a journaling file
//!   system does (ext4, XFS), or any *subset* in which what happened to one name stays in order, as POSIX would allow.
//!   A rename is never half done: ext4, XFS and btrfs promise that much, and the store relies on it.
//! - **A failed sync** of a file drops its waiting changes and calls the file clean (fsyncgate): programs go on seeing
//!   what is not on the disk, and the next sync succeeds. A failed fsync of a directory either makes the file system
//!   read-only, as ext4 and XFS do, or loses the waiting names in the same silent way, by history.
//! - **A sync of everything** makes all data and all names durable that there were when it began, and nothing that came
//!   while it ran. When it fails, some files have lost what waited, or
//!   none of ours has (the error was another program's); the others still wait. The failure was told once: the next sync
//!   of everything may succeed. A file that lost something says so at its own next sync, once, as Linux does.
//!
//! Not modelled: names that are not UTF-8, hard and symbolic links, renamed directories, two file systems under one tree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::random::Random;

/// How the names that wait may survive a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Prefix,
    Subset,
}

/// What becomes of the names that wait when their directory's fsync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterDirectoryFailure {
    ReadOnly,
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FileId(usize);

#[derive(Clone, Copy)]
enum Node {
    File(FileId),
    Directory,
}

/// One file's bytes.
#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    waiting: Vec<Change>,
    /// How many of these there were when the sync of everything under way began.
    before: usize,
    /// As programs see it.
    len: u64,
    allocated: u64,
    linked: bool,
    /// The error of a write-back that its own descriptors have not been told.
    untold: Option<i32>,
}

enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate { len: u64 },
}

enum NameChange {
    Make { path: PathBuf, node: Node },
    Rename { from: PathBuf, to: PathBuf, node: Node },
    Unlink { path: PathBuf },
}

pub(crate) struct Disk {
    /// Paths are kept relative to it: each power cut moves the tree to a new place.
    root: PathBuf,
    sector: usize,
    order: Order,
    after_directory_failure: AfterDirectoryFailure,
    /// Bytes that all files together may have.
    pub(crate) capacity: u64,
    contents: Vec<Content>,
    /// By device and inode of the real file.
    by_inode: HashMap<(u64, u64), FileId>,
    names: BTreeMap<PathBuf, Node>,
    waiting: Vec<NameChange>,
    /// As for a file's data.
    before: usize,
    read_only: bool,
    /// A directory's fsync failed: until the next cut the tree that programs see is no guide.
    pub(crate) poisoned: bool,
}

impl Disk {
    /// What is below `root` now counts as durable.
    pub(crate) fn new(root: &Path, random: &mut Random) -> Disk {
        let mut disk = Disk {
            root: root.into(),
            sector: if random.chance(500) { 512 } else { 4096 },
            order: if random.chance(500) { Order::Prefix } else { Order::Subset },
            after_directory_failure: if random.chance(500) {
                AfterDirectoryFailure::ReadOnly
            } else {
                AfterDirectoryFailure::Lost
            },
            capacity: u64::MAX,
            contents: Vec::new(),
            by_inode: HashMap::new(),
            names: BTreeMap::new(),
            waiting: Vec::new(),
            before: 0,
            read_only: false,
            poisoned: false,
        };
        disk.adopt_below(root);
        disk
    }

    fn adopt_below(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).expect("the tree can be listed") {
            let path = entry.expect("the tree can be listed").path();
            self.adopt(&path);
            if path.is_dir() {
                self.adopt_below(&path);
            }
        }
    }

    /// Takes a name made behind the engine's back for a durable one.
    pub(crate) fn adopt(&mut self, path: &Path) {
        let name = self.name(path);
        if self.names.contains_key(&name) || self.waiting.iter().any(|change| change.touches(&name)) {
            return;
        }
        let Ok(meta) = fs::symlink_metadata(path) else { return };
        let node = if meta.is_dir() {
            Node::Directory
        } else {
            Node::File(self.file_of(&File::open(path).expect("an adopted file can be read")))
        };
        self.names.insert(name, node);
    }

    fn name(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    fn file_of(&mut self, file: &File) -> FileId {
        let meta = file.metadata().expect("an open file has an inode");
        if let Some(id) = self.by_inode.get(&(meta.dev(), meta.ino())) {
            return *id;
        }
        let mut durable = vec![0; meta.len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut durable, 0).expect("an adopted file can be read");
        self.add(file, Content { durable, len: meta.len(), linked: true, ..Content::default() })
    }

    fn add(&mut self, file: &File, content: Content) -> FileId {
        let meta = file.metadata().expect("an open file has an inode");
        let id = FileId(self.contents.len());
        self.contents.push(content);
        // Replaces what an unlinked file may have left there: inodes are used again.
        self.by_inode.insert((meta.dev(), meta.ino()), id);
        id
    }

    fn content(&mut self, file: &File) -> &mut Content {
        let id = self.file_of(file);
        &mut self.contents[id.0]
    }

    /// Refuses changes of names once the file system has given up.
    pub(crate) fn check_names(&self) -> io::Result<()> {
        if self.read_only { Err(io::Error::from_raw_os_error(libc::EROFS)) } else { Ok(()) }
    }

    /// How many of `len` bytes at `offset` find room.
    pub(crate) fn room(&mut self, file: &File, offset: u64, len: u64) -> u64 {
        if self.capacity == u64::MAX {
            return len;
        }
        let used: u64 = self.contents.iter().filter(|c| c.linked).map(|c| c.len.max(c.allocated)).sum();
        let free = self.capacity.saturating_sub(used);
        let content = self.content(file);
        (content.len.max(content.allocated) + free).saturating_sub(offset).min(len)
    }

    pub(crate) fn wrote(&mut self, file: &File, offset: u64, bytes: &[u8]) {
        let content = self.content(file);
        content.len = content.len.max(offset + bytes.len() as u64);
        content.waiting.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    pub(crate) fn truncated(&mut self, file: &File, len: u64) {
        let content = self.content(file);
        (content.len, content.allocated) = (len, content.allocated.min(len));
        content.waiting.push(Change::Truncate { len });
    }

    pub(crate) fn allocated(&mut self, file: &File, len: u64) {
        let content = self.content(file);
        content.allocated = content.allocated.max(len);
    }

    pub(crate) fn made_file(&mut self, path: &Path, file: &File) {
        let id = self.add(file, Content { linked: true, ..Content::default() });
        self.waiting.push(NameChange::Make { path: self.name(path), node: Node::File(id) });
    }

    pub(crate) fn made_directory(&mut self, path: &Path) {
        self.waiting.push(NameChange::Make { path: self.name(path), node: Node::Directory });
    }

    /// To be called before the real rename or unlink, with the names it touches.
    pub(crate) fn about_to_change(&mut self, paths: &[&Path]) {
        // After a loss a name that is seen and not known is a lost one.
        if !self.poisoned {
            paths.iter().for_each(|path| self.adopt(path));
        }
    }

    pub(crate) fn renamed(&mut self, from: &Path, to: &Path) {
        let file = File::open(to).expect("what was renamed can be opened");
        let node = Node::File(self.file_of(&file));
        self.waiting.push(NameChange::Rename { from: self.name(from), to: self.name(to), node });
    }

    pub(crate) fn unlinked(&mut self, path: &Path, file: &File) {
        self.content(file).linked = false;
        self.waiting.push(NameChange::Unlink { path: self.name(path) });
    }

    /// A successful fdatasync or fsync of a file.
    pub(crate) fn synced(&mut self, file: &File) {
        let content = self.content(file);
        content.settle(content.waiting.len());
    }

    /// What the last sync of everything did to the file, told once.
    pub(crate) fn take_untold(&mut self, file: &File) -> Option<i32> {
        self.content(file).untold.take()
    }

    /// A sync of everything sets out. There is one at a time.
    pub(crate) fn all_sync_begun(&mut self) {
        self.contents.iter_mut().for_each(|content| content.before = content.waiting.len());
        self.before = self.waiting.len();
    }

    /// It succeeded.
    pub(crate) fn all_synced(&mut self) {
        self.contents.iter_mut().for_each(|content| content.settle(content.before));
        for change in self.waiting.drain(..std::mem::take(&mut self.before)) {
            change.apply(&mut self.names);
        }
    }

    /// A sync of everything that failed with `code`: each file that waits may have lost what waited, or none has.
    pub(crate) fn all_sync_failed(&mut self, code: i32, random: &mut Random) {
        let loses = if random.chance(300) { 0 } else { 600 };
        for content in self.contents.iter_mut().filter(|content| !content.waiting.is_empty()) {
            if random.chance(loses) {
                content.forget();
                content.untold = Some(code);
            }
        }
    }

    /// The process is gone, and with it all descriptors.
    pub(crate) fn closed_all(&mut self) {
        self.contents.iter_mut().for_each(|content| content.untold = None);
    }

    /// A sync of a file that failed: what waited is forgotten.
    pub(crate) fn sync_failed(&mut self, file: &File) {
        self.content(file).forget();
    }

    /// A successful fsync of a directory.
    pub(crate) fn directory_synced(&mut self, path: &Path) {
        let kept = self.covered(&self.name(path), self.order);
        self.before -= kept[..self.before].iter().filter(|kept| **kept).count();
        let changes = std::mem::take(&mut self.waiting);
        for (change, kept) in changes.into_iter().zip(kept) {
            if kept {
                change.apply(&mut self.names);
            } else {
                self.waiting.push(change);
            }
        }
    }

    pub(crate) fn directory_sync_failed(&mut self, path: &Path) {
        self.poisoned = true;
        match self.after_directory_failure {
            AfterDirectoryFailure::ReadOnly => self.read_only = true,
            AfterDirectoryFailure::Lost => {
                let lost = self.covered(&self.name(path), Order::Subset);
                self.before -= lost[..self.before].iter().filter(|lost| **lost).count();
                let mut lost = lost.into_iter();
                self.waiting.retain(|_| !lost.next().expect("an answer for each change"));
            }
        }
    }

    /// Which of the waiting changes an fsync of `directory` covers: those in it, and what they build on.
    fn covered(&self, directory: &Path, order: Order) -> Vec<bool> {
        let mut kept = vec![false; self.waiting.len()];
        let mut needed: HashSet<&Path> = HashSet::new();
        for (change, kept) in self.waiting.iter().zip(&mut kept).rev() {
            let inside = change.paths().any(|path| path.parent() == Some(directory));
            let before_kept = order == Order::Prefix && !needed.is_empty();
            if inside || before_kept || change.paths().any(|path| needed.contains(path)) {
                *kept = true;
                needed.extend(change.paths());
            }
        }
        kept
    }

    /// The power goes. What is left is written to `to`, an empty directory, which is the root from now on.
    pub(crate) fn cut(&mut self, to: &Path, random: &mut Random) {
        self.lose_names(random);
        let files: Vec<Vec<u8>> =
            self.contents.iter().map(|content| content.after_a_cut(self.sector, random)).collect();
        self.root = to.into();
        let names = std::mem::take(&mut self.names);
        (self.contents, self.by_inode) = (Vec::new(), HashMap::new());
        (self.read_only, self.poisoned) = (false, false);
        // A directory comes before what is in it; what is in none is out of reach.
        for (name, node) in names {
            let path = to.join(&name);
            match node {
                _ if !path.parent().is_some_and(Path::is_dir) => {}
                Node::Directory => fs::create_dir(&path).expect("the tree can be built"),
                Node::File(id) => fs::write(&path, &files[id.0]).expect("the tree can be built"),
            }
        }
        self.adopt_below(to);
    }

    fn lose_names(&mut self, random: &mut Random) {
        let waiting = std::mem::take(&mut self.waiting);
        self.before = 0;
        let all = waiting.len();
        let keep_first = match random.below(4) {
            0 => 0,
            1 => all,
            _ => random.below(all + 1),
        };
        let keep_each = [0, 100, 500, 900, 1000][random.below(5)];
        let mut lost: HashSet<PathBuf> = HashSet::new();
        for (at, change) in waiting.into_iter().enumerate() {
            let kept = match self.order {
                Order::Prefix => at < keep_first,
                Order::Subset => random.chance(keep_each) && !change.paths().any(|path| lost.contains(path)),
            };
            if kept {
                change.apply(&mut self.names);
            } else {
                lost.extend(change.paths().map(Path::to_owned));
            }
        }
    }

    /// Flips one bit of a file at rest, in the page cache and on the disk alike.
    pub(crate) fn flip(&mut self, path: &Path, random: &mut Random) {
        let mut bytes = fs::read(path).expect("the file can be read");
        if bytes.is_empty() {
            return;
        }
        let (at, bit) = (random.below(bytes.len()), random.below(8));
        bytes[at] ^= 1 << bit;
        let file = fs::OpenOptions::new().write(true).open(path).expect("the file can be written");
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], at as u64).expect("the file can be written");
        if let Some(byte) = self.content(&file).durable.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }

    /// A file was written past the engine; the change waits like any other.
    pub(crate) fn written_behind_our_back(&mut self, path: &Path) {
        let bytes = fs::read(path).expect("the file can be read");
        let file = File::open(path).expect("the file can be read");
        self.wrote(&file, 0, &bytes);
    }
}

impl Content {
    /// The first `count` of what waits are on the disk.
    fn settle(&mut self, count: usize) {
        for change in self.waiting.drain(..count) {
            change.apply(&mut self.durable);
        }
        self.before = self.before.saturating_sub(count);
    }

    fn forget(&mut self) {
        self.waiting.clear();
        self.before = 0;
    }

    fn after_a_cut(&self, sector: usize, random: &mut Random) -> Vec<u8> {
        if self.waiting.is_empty() {
            return self.durable.clone();
        }
        // Every state the file went through.
        let mut states = vec![self.durable.clone()];
        for change in &self.waiting {
            let mut next = states[states.len() - 1].clone();
            change.apply(&mut next);
            states.push(next);
        }
        let len = states[random.below(states.len())].len();
        // Mostly old, mostly new, or a wild mixture.
        let newest = [0, 100, 500, 900, 1000][random.below(5)];
        let garbage = random.chance(300);
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = bytes.len();
            let end = (at + sector).min(len);
            let state = match random.chance(newest) {
                true => states.len() - 1,
                false => random.below(states.len()),
            };
            let there = states[state].get(at..).unwrap_or(&[]);
            bytes.extend_from_slice(&there[..there.len().min(end - at)]);
            let hole = end - bytes.len();
            if garbage && bytes.len() == at {
                bytes.extend(random.bytes(hole));
            } else {
                bytes.resize(end, 0);
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[start..end].copy_from_slice(bytes);
            }
            Change::Truncate { len } => to.resize(*len as usize, 0),
        }
    }
}

impl NameChange {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let (first, second) = match self {
            NameChange::Make { path, .. } | NameChange::Unlink { path } => (path, None),
            NameChange::Rename { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second).map(PathBuf::as_path)
    }

    fn touches(&self, name: &Path) -> bool {
        self.paths().any(|path| path == name)
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            NameChange::Make { path, node } => drop(names.insert(path, node)),
            NameChange::Rename { from, to, node } => {
                names.remove(&from);
                names.insert(to, node);
            }
            NameChange::Unlink { path } => drop(names.remove(&path)),
        }
    }
}

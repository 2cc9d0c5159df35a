//! Backup: a copy of the store in a folder of its own, made while the node runs or while nobody does.
//!
//! Owns which folders are refused, the layout of a copy (a data folder without keys: `DIR/store`), and that a copy
//! appears whole or not at all: it is made under another name beside its place, proven by reading it back, made durable,
//! and only then given its name. Leaves the checkpoint itself to [`super::rocks`] and the keys to whoever keeps them.
//!
//! A copy says of itself that it is one, until a node is started on it: what that node was about to do, another one may have
//! done since.
//!
//! Always: nothing that is there is ever replaced; what a copy holds is readable by this user only; a copy that could
//! not be finished is removed, also one whose maker was killed, at the next attempt to make the same copy.

use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{OpenError, Reader, StoreError, rocks};
use crate::ledger::audit::Audit;

/// The name of the store's folder in a data folder, and so in a copy.
pub const STORE_FOLDER: &str = "store";

/// A file in the store's folder, which goes wherever the store goes. RocksDB leaves alone what it has not made.
const COPY_MARK: &str = "COPY";

/// Whether this store is a copy on which no node was started yet.
pub fn is_copy(store: &Path) -> bool {
    store.join(COPY_MARK).exists()
}

/// A node has taken this store over, durably, and goes on from what is in it.
pub fn taken_over(store: &Path) -> io::Result<()> {
    fs::remove_file(store.join(COPY_MARK))?;
    File::open(store)?.sync_all()
}

/// Why there is no copy. Nothing of it is left, and nothing else was touched.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackupError {
    /// The folder cannot be a copy's.
    #[error("{0}")]
    Directory(String),
    #[error("it is there already, and nothing is ever replaced")]
    Exists,
    #[error("another copy is being made: wait for it")]
    Busy,
    /// The disk or the system refused.
    #[error("the copy could not be made: {0}")]
    Failed(String),
    /// The store that should be copied.
    #[error(transparent)]
    Open(OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies a store that nobody has open into the new folder `directory`, and proves the copy. Needs no seed: nothing in
/// it is decrypted.
pub fn copy_closed(store: &Path, directory: &Path) -> Result<Audit, BackupError> {
    rocks::open_to_copy(store)
        .map_err(BackupError::Open)?
        .copy_to(directory)
}

/// Makes the folder `directory` with what `checkpoint` puts into the folder it is given, which does not exist yet.
/// `original` is what is copied. Gives the proof of the copy, read back from the copy.
pub(super) fn make(
    original: &Path,
    directory: &Path,
    checkpoint: impl FnOnce(&Path) -> Result<(), BackupError>,
) -> Result<Audit, BackupError> {
    let place = Place::check(original, directory)?;
    let unfinished = Unfinished::claim(&place)?;
    let copy = unfinished.path.join(STORE_FOLDER);
    checkpoint(&copy)?;
    let marked = File::create(copy.join(COPY_MARK)).and_then(|mark| mark.sync_all());
    marked.map_err(|error| BackupError::Failed(error.to_string()))?;
    let audit = rocks::audit_closed(&copy).map_err(|error| BackupError::Failed(error.to_string()))?;
    unfinished.finish(&place)?;
    Ok(audit)
}

/// Where a copy is to be, checked as far as it can be before it is made.
struct Place {
    parent: PathBuf,
    name: OsString,
}

impl Place {
    fn check(original: &Path, directory: &Path) -> Result<Self, BackupError> {
        let refused = |rule: String| Err(BackupError::Directory(rule));
        if !directory.is_absolute() {
            return refused("expected a path from the root of the file system".to_owned());
        }
        let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
            return refused("expected the name of a new folder at the end of the path".to_owned());
        };
        if directory.as_os_str().as_bytes().contains(&0) {
            return refused("a path has no NUL".to_owned());
        }
        // Links in the way are followed now, so that all that follows is about one and the same folder.
        let parent = match fs::canonicalize(parent) {
            Ok(parent) if parent.is_dir() => parent,
            Ok(_) => return refused(format!("{} is no folder", parent.display())),
            Err(error) => return refused(format!("{}: {error}", parent.display())),
        };
        if fs::canonicalize(original).is_ok_and(|original| parent.starts_with(original)) {
            return refused("it would lie in the store that it is a copy of".to_owned());
        }
        let place = Self {
            parent,
            name: name.to_owned(),
        };
        // A link that leads nowhere is in the way as well.
        match fs::symlink_metadata(place.path()) {
            Ok(_) => Err(BackupError::Exists),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(place),
            Err(error) => refused(error.to_string()),
        }
    }

    fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Hidden, and on the same file system.
    fn unfinished_path(&self) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(".unfinished");
        self.parent.join(name)
    }
}

/// A copy on its way; removed unless it is finished.
struct Unfinished {
    path: PathBuf,
    /// Locked while its maker lives: this tells a copy that is being made from what a killed process left.
    folder: File,
    finished: bool,
}

impl Unfinished {
    fn claim(place: &Place) -> Result<Self, BackupError> {
        let path = place.unfinished_path();
        let create = || DirBuilder::new().mode(0o700).create(&path);
        let created = create().or_else(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            // Locked until it is gone, so that only one of two who find it removes it.
            let left = File::open(&path)?;
            lock(&left).map_err(|_| error)?;
            fs::remove_dir_all(&path)?;
            create()
        });
        match created {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Busy),
            Err(error) => return Err(BackupError::Directory(format!("cannot be made: {error}"))),
        }
        let folder = File::open(&path).and_then(|folder| lock(&folder).map(|()| folder));
        match folder {
            Ok(folder) => Ok(Self {
                path,
                folder,
                finished: false,
            }),
            // Between the two calls somebody else took it for left behind.
            Err(_) => Err(BackupError::Busy),
        }
    }

    fn finish(mut self, place: &Place) -> Result<(), BackupError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists,
            _ => BackupError::Failed(error.to_string()),
        };
        // RocksDB has synced the files; their names are ours to make durable.
        File::open(self.path.join(STORE_FOLDER))
            .and_then(|store| store.sync_all())
            .and_then(|()| self.folder.sync_all())
            .map_err(failed)?;
        rename_new(&self.path, &place.path()).map_err(failed)?;
        self.finished = true;
        File::open(&place.parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed now is removed by the next attempt, if it can be removed at all.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Takes the lock of a folder, which its process keeps until it closes the file or ends.
fn lock(folder: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and flock takes no pointers.
    match unsafe { libc::flock(folder.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Renames, unless the new name is taken. The usual call would replace an empty folder.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (
        CString::new(from.as_os_str().as_bytes())?,
        CString::new(to.as_os_str().as_bytes())?,
    );
    // SAFETY: both are text that ends with a NUL and lives until the call returns.
    let renamed = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    match renamed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::ledger::{AccountId, Asset, AssetId, Transfer};
    use crate::store::tests::{Folder, account, assets};
    use crate::store::{Durability, Mutation, RocksStore, TransferSender, Writer, WriterHandle, recover};

    const SEED: [u8; 32] = [7; 32];

    impl Folder {
        fn made() -> Self {
            let folder = Self::new();
            fs::create_dir(&folder.0).unwrap();
            folder
        }

        fn store(&self) -> PathBuf {
            self.0.join(STORE_FOLDER)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    /// Two accounts in the first asset.
    fn start(folder: &Folder) -> (WriterHandle, TransferSender) {
        let mut store = RocksStore::open(&folder.store(), &SEED).unwrap();
        let book = recover(&mut store).unwrap();
        let interval = Duration::from_millis(100);
        let (settlements, _) = crossbeam::channel::unbounded();
        let (handle, mut senders) =
            Writer::start(Box::new(store), &book, 1, Durability::Commit, interval, settlements).unwrap();
        let asset: Asset = assets()[0].clone();
        handle
            .apply(vec![
                Mutation::PutAsset(AssetId::new(0), asset),
                Mutation::PutAccount(Arc::new(account(0, 0))),
                Mutation::PutAccount(Arc::new(account(1, 0))),
            ])
            .unwrap();
        (handle, senders.remove(0))
    }

    fn pay(sender: &mut TransferSender, amount: u64) {
        sender.push(Transfer {
            from: AccountId::new(0),
            to: AccountId::new(1),
            incoming_amount: amount,
            outgoing_amount: amount,
            payment: None,
        });
    }

    fn balance(copy: &Path) -> i128 {
        let mut store = RocksStore::open(&copy.join(STORE_FOLDER), &SEED).unwrap();
        recover(&mut store).unwrap().accounts[1].1.booked
    }

    #[test]
    fn copies_hold_what_was_handed_over_before_and_are_stores() {
        let folder = Folder::made();
        let (handle, mut sender) = start(&folder);
        let mut paid = 0;
        for amount in 1..=20 {
            pay(&mut sender, amount);
            paid += i128::from(amount);
            let copy = folder.0.join(format!("copy {amount}"));
            let audit = handle.backup(&copy).unwrap();
            assert!(audit.adds_up());
            assert_eq!((audit.assets[0].accounts, audit.assets[0].balances), (2, 0));
            assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o700);
            assert_eq!(balance(&copy), paid);
        }
        handle.stop();
        assert_eq!(
            balance(&folder.0.join("copy 7")),
            (1..=7).sum::<i128>(),
            "copies do not change"
        );
        // The node was started on none of them, and on the original.
        assert!(is_copy(&folder.0.join("copy 7/store")) && !is_copy(&folder.store()));
        taken_over(&folder.0.join("copy 8/store")).unwrap();
        assert!(!is_copy(&folder.0.join("copy 8/store")));
        // A copy is a whole store: it can be copied in turn, and that without its seed.
        let second = folder.0.join("copy of a copy");
        assert!(copy_closed(&folder.0.join("copy 7/store"), &second).unwrap().adds_up());
        assert_eq!(balance(&second), 28);
        assert!(is_copy(&second.join(STORE_FOLDER)));
        assert!(
            folder.names().iter().all(|name| !name.starts_with('.')),
            "nothing unfinished"
        );
    }

    #[test]
    fn folders_that_are_refused_are_left_as_they_are() {
        let folder = Folder::made();
        let (handle, _sender) = start(&folder);
        fs::write(folder.0.join("file"), "text").unwrap();
        fs::create_dir(folder.0.join("empty")).unwrap();
        symlink("nowhere", folder.0.join("link")).unwrap();
        let before = folder.names();
        for (path, expected) in [
            ("relative".into(), Err("from the root")),
            ("/".into(), Err("new folder")),
            (folder.0.join("x/.."), Err("new folder")),
            (folder.0.join("missing/copy"), Err("missing: No such file")),
            (folder.0.join("file/copy"), Err("file is no folder")),
            (folder.0.join("a\0b"), Err("NUL")),
            (folder.0.join("store/copy"), Err("lie in the store")),
            (folder.0.join("n".repeat(300)), Err("too long")),
            (folder.0.join("file"), Ok(())),
            (folder.0.join("empty"), Ok(())),
            (folder.0.join("empty/"), Ok(())),
            (folder.0.join("link"), Ok(())),
            (folder.store(), Ok(())),
        ] {
            let error = handle.backup(&path).unwrap_err();
            match expected {
                Ok(()) => assert_eq!(error, BackupError::Exists, "{}", path.display()),
                Err(words) => assert!(
                    matches!(&error, BackupError::Directory(rule) if rule.contains(words)),
                    "{}: {error}",
                    path.display()
                ),
            }
        }
        assert_eq!(folder.names(), before);
        assert_eq!(fs::read_to_string(folder.0.join("file")).unwrap(), "text");
        handle.stop();
        assert!(matches!(
            handle.backup(&folder.0.join("late")),
            Err(BackupError::Store(StoreError::Stopped))
        ));
    }

    #[test]
    fn what_a_killed_process_left_is_made_anew_and_a_living_one_is_waited_for() {
        let folder = Folder::made();
        let (handle, mut sender) = start(&folder);
        pay(&mut sender, 5);
        let copy = folder.0.join("copy");
        let left = folder.0.join(".copy.unfinished");
        fs::create_dir_all(left.join("store.tmp")).unwrap();
        fs::write(left.join("store.tmp/000001.sst"), "half").unwrap();
        let living = File::open(&left).unwrap();
        lock(&living).unwrap();
        assert_eq!(handle.backup(&copy), Err(BackupError::Busy));
        assert!(left.join("store.tmp/000001.sst").exists(), "it is another's");
        drop(living);
        handle.backup(&copy).unwrap();
        assert_eq!(balance(&copy), 5);
        assert!(!left.exists());
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        let folder = Folder::made();
        let copy = folder.0.join("copy");
        let halfway = |store: &Path| {
            fs::create_dir(store).unwrap();
            fs::write(store.join("CURRENT"), "MANIFEST-000001\n").unwrap();
            Err(BackupError::Failed("No space left on device".into()))
        };
        let error = make(&folder.store(), &copy, halfway).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        // Something that is no store, and a name that was taken meanwhile.
        let broken = |store: &Path| {
            fs::create_dir(store).unwrap();
            fs::write(store.join("CURRENT"), "MANIFEST-000001\n")
                .map_err(|error| BackupError::Failed(error.to_string()))
        };
        assert!(matches!(
            make(&folder.store(), &copy, broken),
            Err(BackupError::Failed(_))
        ));
        assert_eq!(folder.names(), Vec::<String>::new());
        let (handle, _sender) = start(&folder);
        handle.stop();
        drop(handle);
        let late = |store: &Path| {
            fs::create_dir(&copy).unwrap();
            fs::rename(folder.store(), store).map_err(|error| BackupError::Failed(error.to_string()))
        };
        assert_eq!(make(&folder.store(), &copy, late), Err(BackupError::Exists));
        assert_eq!(folder.names(), ["copy"]);
        assert_eq!(fs::read_dir(&copy).unwrap().count(), 0);
    }

    #[test]
    fn a_closed_store_is_copied_and_one_that_is_none_is_named() {
        let folder = Folder::made();
        let copy = folder.0.join("copy");
        let missing = copy_closed(&folder.store(), &copy).unwrap_err();
        assert!(missing.to_string().contains("no store"), "{missing}");
        assert!(!folder.store().exists(), "and none is made");
        let (handle, mut sender) = start(&folder);
        pay(&mut sender, 9);
        assert_eq!(
            copy_closed(&folder.store(), &copy),
            Err(BackupError::Open(OpenError::Locked))
        );
        handle.stop();
        assert!(copy_closed(&folder.store(), &copy).unwrap().adds_up());
        assert_eq!((balance(&copy), balance(&folder.0)), (9, 9));
    }
}

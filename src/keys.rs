//! The two secrets that a node needs before it can start: the seed and the operator's token.
//!
//! Owns keeping them in the data folder when nobody configured them: made at the first start, read at every other.
//! Leaves encryption to `store` and comparison to `api`.
//!
//! Always: a file appears whole or not at all, is on disk before it is used, and was never readable by others, unless
//! somebody made it so, which is a warning.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::{read_seed, read_token};

/// The name of the seed's file in the data folder.
pub const SEED_FILE: &str = "secret_seed";
/// The name of the store's folder in the data folder. A store needs the seed it was begun with.
pub use crate::store::backup::STORE_FOLDER;
/// The name of the token's file in the data folder.
pub const TOKEN_FILE: &str = "admin_auth_token";

/// A key file holds one line; no more than this is read of it.
const KEY_BYTES_MAX: u64 = 4_096;

/// Where a secret came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    Configured,
    /// Read from this file.
    Kept(PathBuf),
    /// Made just now, and kept in this file.
    Made(PathBuf),
}

/// Both secrets. Has no `Debug`: it would print them.
pub struct Keys {
    pub secret_seed: [u8; 32],
    pub seed_origin: Origin,
    pub admin_auth_token: Box<str>,
    pub token_origin: Origin,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Why a node has no secrets. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("data_dir: the folder {path} cannot be made: {error}")]
    Folder { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("{path}: {rule}; restore it, or configure {option}")]
    Content {
        path: PathBuf,
        rule: String,
        option: &'static str,
    },
    #[error("{path} is missing, and the store beside it was written under it: restore it, or configure secret_seed")]
    SeedLost { path: PathBuf },
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Takes what is configured, reads what is kept, makes what is missing. The data folder is made if it is not there.
pub fn load_or_create(
    data_dir: &Path,
    secret_seed: Option<[u8; 32]>,
    admin_auth_token: Option<&str>,
) -> Result<Keys, KeysError> {
    let folder_error = |error| KeysError::Folder {
        path: data_dir.to_owned(),
        error,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(folder_error)?;
    let mut warnings = Vec::new();
    let (secret_seed, seed_origin) = match secret_seed {
        Some(seed) => (seed, Origin::Configured),
        None => {
            let (text, origin) = keep(data_dir, SEED_FILE, &mut warnings, || make_seed(data_dir))?;
            (
                read_seed(&text).map_err(|rule| content_error(data_dir, SEED_FILE, rule))?,
                origin,
            )
        }
    };
    let (admin_auth_token, token_origin) = match admin_auth_token {
        Some(token) => (token.into(), Origin::Configured),
        None => {
            // 128 bits: nobody guesses it, and it can still be copied by hand.
            let (text, origin) = keep(data_dir, TOKEN_FILE, &mut warnings, || random_hex(16))?;
            (
                read_token(&text).map_err(|rule| content_error(data_dir, TOKEN_FILE, rule))?,
                origin,
            )
        }
    };
    Ok(Keys {
        secret_seed,
        seed_origin,
        admin_auth_token,
        token_origin,
        warnings,
    })
}

/// What is there, when nothing is to be made.
pub struct Found {
    /// `None`: it would be made at the start.
    pub secret_seed: Option<([u8; 32], Origin)>,
    pub admin_auth_token: Option<Origin>,
    pub warnings: Vec<String>,
}

/// What [`load_or_create`] would find, and the error it would end with. Makes nothing.
pub fn look(
    data_dir: &Path,
    secret_seed: Option<[u8; 32]>,
    admin_auth_token: Option<&str>,
) -> Result<Found, KeysError> {
    let mut warnings = Vec::new();
    let mut kept = |name: &'static str| {
        let path = data_dir.join(name);
        match read_line(&path, &mut warnings) {
            Ok(line) => Ok(line.map(|line| (line, Origin::Kept(path)))),
            Err(error) => Err(KeysError::File { path, error }),
        }
    };
    let secret_seed = match secret_seed {
        Some(seed) => Some((seed, Origin::Configured)),
        None => match kept(SEED_FILE)? {
            Some((line, origin)) => {
                let seed = read_seed(&line).map_err(|rule| content_error(data_dir, SEED_FILE, rule))?;
                Some((seed, origin))
            }
            None => {
                check_no_store(data_dir)?;
                None
            }
        },
    };
    let admin_auth_token = match admin_auth_token {
        Some(_) => Some(Origin::Configured),
        None => match kept(TOKEN_FILE)? {
            Some((line, origin)) => {
                read_token(&line).map_err(|rule| content_error(data_dir, TOKEN_FILE, rule))?;
                Some(origin)
            }
            None => None,
        },
    };
    Ok(Found {
        secret_seed,
        admin_auth_token,
        warnings,
    })
}

/// Copies the keys that one data folder keeps into another, for this user only, and durably. Never replaces a file.
/// Gives the names of those that are there.
pub fn copy(from: &Path, to: &Path) -> Result<Vec<&'static str>, KeysError> {
    let mut copied = Vec::new();
    for name in [SEED_FILE, TOKEN_FILE] {
        let path = from.join(name);
        match read_line(&path, &mut Vec::new()) {
            Err(error) => return Err(KeysError::File { path, error }),
            Ok(None) => continue,
            Ok(Some(line)) => create_whole(to, name, &line).map_err(|error| KeysError::File {
                path: to.join(name),
                error,
            })?,
        }
        copied.push(name);
    }
    Ok(copied)
}

fn content_error(data_dir: &Path, name: &'static str, rule: String) -> KeysError {
    KeysError::Content {
        path: data_dir.join(name),
        rule,
        option: name,
    }
}

/// The line in a key file, which is made if it is not there.
fn keep(
    data_dir: &Path,
    name: &str,
    warnings: &mut Vec<String>,
    make: impl FnOnce() -> Result<String, KeysError>,
) -> Result<(String, Origin), KeysError> {
    let path = data_dir.join(name);
    let file_error = |error| KeysError::File {
        path: path.clone(),
        error,
    };
    if let Some(line) = read_line(&path, warnings).map_err(file_error)? {
        return Ok((line, Origin::Kept(path)));
    }
    let line = make()?;
    match create_whole(data_dir, name, &line) {
        Ok(()) => Ok((line, Origin::Made(path))),
        // Another process was faster: its line counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let line = read_line(&path, warnings).map_err(file_error)?;
            line.map(|line| (line, Origin::Kept(path.clone())))
                .ok_or_else(|| file_error(error))
        }
        Err(error) => Err(file_error(error)),
    }
}

fn read_line(path: &Path, warnings: &mut Vec<String>) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        warnings.push(format!("{} can be read by other users: chmod 600 it", path.display()));
    }
    let mut text = String::new();
    file.take(KEY_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// Writes a file under another name, makes it durable, and gives it its name only then. Never replaces a file.
fn create_whole(folder: &Path, name: &str, line: &str) -> io::Result<()> {
    let unfinished = folder.join(format!(".{name}.{}", std::process::id()));
    let result = write_line(&unfinished, line).and_then(|()| fs::hard_link(&unfinished, folder.join(name)));
    // Whatever became of it, the second name goes; one that was never made is no error.
    let _ = fs::remove_file(&unfinished);
    result?;
    File::open(folder)?.sync_all()
}

fn write_line(path: &Path, line: &str) -> io::Result<()> {
    // What a process that was killed here may have left under our number.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{line}")?;
    file.sync_all()
}

/// A new seed for a new store. A new one beside an old store would open nothing, and hide that the right one is lost.
fn make_seed(data_dir: &Path) -> Result<String, KeysError> {
    check_no_store(data_dir)?;
    random_hex(32)
}

fn check_no_store(data_dir: &Path) -> Result<(), KeysError> {
    if data_dir.join(STORE_FOLDER).exists() {
        return Err(KeysError::SeedLost {
            path: data_dir.join(SEED_FILE),
        });
    }
    Ok(())
}

fn random_hex(bytes: usize) -> Result<String, KeysError> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(KeysError::Random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("clearway-keys-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn made_once_and_kept() {
        let folder = Folder::new("kept");
        let first = load_or_create(&folder.0, None, None).unwrap();
        assert_eq!(first.seed_origin, Origin::Made(folder.0.join(SEED_FILE)));
        assert_eq!(first.token_origin, Origin::Made(folder.0.join(TOKEN_FILE)));
        assert_eq!(mode(&folder.0), 0o700);
        for name in [SEED_FILE, TOKEN_FILE] {
            assert_eq!(mode(&folder.0.join(name)), 0o600, "{name}");
        }
        assert_eq!(
            fs::read_dir(&folder.0).unwrap().count(),
            2,
            "nothing unfinished is left"
        );
        let second = load_or_create(&folder.0, None, None).unwrap();
        assert!(first.secret_seed == second.secret_seed && first.admin_auth_token == second.admin_auth_token);
        assert_eq!(second.token_origin, Origin::Kept(folder.0.join(TOKEN_FILE)));
        assert!(second.warnings.is_empty());

        let other = Folder::new("other");
        assert!(load_or_create(&other.0, None, None).unwrap().secret_seed != first.secret_seed);
    }

    #[test]
    fn what_is_configured_wins_and_is_not_kept() {
        let folder = Folder::new("configured");
        let keys = load_or_create(&folder.0, Some([7; 32]), Some("token")).unwrap();
        assert!(keys.secret_seed == [7; 32] && &*keys.admin_auth_token == "token");
        assert_eq!(keys.seed_origin, Origin::Configured);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn files_that_are_wrong() {
        let folder = Folder::new("wrong");
        fs::create_dir_all(&folder.0).unwrap();
        let seed = folder.0.join(SEED_FILE);
        for (content, valid) in [
            ("", false),
            ("12zz", false),
            (&"ab".repeat(32), true),
            (&("ab".repeat(32) + "\r\n"), true),
        ] {
            fs::write(&seed, content).unwrap();
            fs::set_permissions(&seed, fs::Permissions::from_mode(0o640)).unwrap();
            match load_or_create(&folder.0, None, Some("token")) {
                Ok(keys) => {
                    assert!(valid, "{content}");
                    assert!(keys.warnings[0].contains("chmod 600"), "{:?}", keys.warnings);
                }
                Err(error) => {
                    assert!(!valid, "{content}");
                    let message = error.to_string();
                    assert!(
                        message.contains("secret_seed") && !message.contains("12zz"),
                        "{message}"
                    );
                }
            }
        }
        assert_eq!(
            fs::read_to_string(&seed).unwrap(),
            "ab".repeat(32) + "\r\n",
            "a file is never replaced"
        );
    }

    #[test]
    fn a_lost_seed_is_not_replaced() {
        let folder = Folder::new("lost");
        fs::create_dir_all(folder.0.join(STORE_FOLDER)).unwrap();
        for _ in 0..2 {
            let error = load_or_create(&folder.0, None, Some("token")).err().unwrap();
            assert!(error.to_string().contains("secret_seed is missing"), "{error}");
        }
        assert!(load_or_create(&folder.0, Some([7; 32]), Some("token")).is_ok());
    }

    #[test]
    fn looking_makes_nothing_and_finds_what_a_start_would() {
        let folder = Folder::new("look");
        let found = look(&folder.0, None, None).unwrap();
        assert!(found.secret_seed.is_none() && found.admin_auth_token.is_none());
        assert!(!folder.0.exists());
        let made = load_or_create(&folder.0, None, None).unwrap();
        let found = look(&folder.0, None, Some("token")).unwrap();
        let (seed, origin) = found.secret_seed.unwrap();
        assert!(seed == made.secret_seed && origin == Origin::Kept(folder.0.join(SEED_FILE)));
        assert_eq!(found.admin_auth_token, Some(Origin::Configured));
        fs::set_permissions(folder.0.join(TOKEN_FILE), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(look(&folder.0, None, None).unwrap().warnings.len(), 1);
        fs::write(folder.0.join(TOKEN_FILE), "\u{7f}").unwrap();
        assert!(matches!(look(&folder.0, None, None), Err(KeysError::Content { .. })));
        fs::remove_file(folder.0.join(SEED_FILE)).unwrap();
        fs::create_dir(folder.0.join(STORE_FOLDER)).unwrap();
        assert!(matches!(look(&folder.0, None, None), Err(KeysError::SeedLost { .. })));
        assert!(look(&folder.0, Some([7; 32]), Some("token")).is_ok());
    }

    #[test]
    fn copies_are_for_their_owner_only_and_replace_nothing() {
        let (from, to) = (Folder::new("from"), Folder::new("to"));
        fs::create_dir_all(&to.0).unwrap();
        assert!(copy(&from.0, &to.0).unwrap().is_empty());
        let made = load_or_create(&from.0, None, None).unwrap();
        assert_eq!(copy(&from.0, &to.0).unwrap(), [SEED_FILE, TOKEN_FILE]);
        for name in [SEED_FILE, TOKEN_FILE] {
            assert_eq!(mode(&to.0.join(name)), 0o600, "{name}");
        }
        let copied = load_or_create(&to.0, None, None).unwrap();
        assert!(copied.secret_seed == made.secret_seed && copied.admin_auth_token == made.admin_auth_token);
        assert!(copy(&from.0, &to.0).is_err(), "they are there already");
    }

    #[test]
    fn two_processes_agree() {
        let folder = Folder::new("race");
        fs::create_dir_all(&folder.0).unwrap();
        create_whole(&folder.0, TOKEN_FILE, "one").unwrap();
        let error = create_whole(&folder.0, TOKEN_FILE, "other").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(&*load_or_create(&folder.0, None, None).unwrap().admin_auth_token, "one");
    }
}

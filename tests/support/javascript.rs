//! Other people's packages on Node.js: the scripts that use them, and where they are installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A copy of the scripts with their packages, below the target folder; made once.
pub fn scripts() -> &'static Path {
    static SCRIPTS: OnceLock<PathBuf> = OnceLock::new();
    SCRIPTS.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("javascript");
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        let copy = |from: &str, name: &str| {
            let bytes = std::fs::read(source.join(from).join(name)).expect("part of the project");
            std::fs::write(folder.join(name), &bytes).expect("the target folder is writable");
            bytes
        };
        copy("tests/js", "package.json");
        copy("tests/js", ".npmrc");
        copy("tests/js", "peer.js");
        copy("docs/walkthrough", "send.js");
        copy("docs/walkthrough", "receive.js");
        let lock = copy("tests/js", "package-lock.json");
        // Written last, so it is there only when all packages are.
        let installed = folder.join("node_modules/installed-from.json");
        if std::fs::read(&installed).is_ok_and(|from| from == lock) {
            return folder;
        }
        let npm = Command::new("npm")
            .args(["ci", "--ignore-scripts"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .output();
        let npm = npm.unwrap_or_else(|error| panic!("npm cannot be run ({error}): install Node.js 18 or later"));
        assert!(
            npm.status.success(),
            "npm ci failed: {}",
            String::from_utf8_lossy(&npm.stderr)
        );
        std::fs::write(&installed, &lock).expect("the target folder is writable");
        folder
    })
}

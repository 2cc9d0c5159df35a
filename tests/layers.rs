//! Imports run downward only: a folder of `src` may use what stands before it in the list, and nothing else of ours.
//! The list is the map in `src/lib.rs`; change both together.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up: a floor, and what it may import.
const FLOORS: [(&str, &[&str]); 16] = [
    ("wire", &[]),
    ("ledger", &["wire"]),
    ("routing", &["wire", "ledger"]),
    ("pipeline", &["wire", "ledger", "routing"]),
    ("link", &["wire"]),
    ("stream", &["wire"]),
    ("store", &["wire", "ledger", "routing"]),
    ("net", &[]),
    ("client", &["wire", "pipeline", "stream"]),
    (
        "shard",
        &[
            "wire", "ledger", "routing", "pipeline", "link", "stream", "store", "net",
        ],
    ),
    ("logs", &[]),
    (
        "control",
        &[
            "wire", "ledger", "routing", "pipeline", "stream", "store", "client", "shard",
        ],
    ),
    (
        "api",
        &[
            "wire", "ledger", "routing", "pipeline", "stream", "client", "shard", "logs", "control",
        ],
    ),
    ("config", &["wire", "ledger", "pipeline", "store", "logs"]),
    ("keys", &["store", "config"]),
    ("cli", &["ledger", "store", "net", "control", "api", "config", "keys"]),
];

/// Floors without sockets, disks, clocks or waiting.
const PURE: [&str; 6] = ["wire", "ledger", "routing", "pipeline", "link", "stream"];
const IMPURE: [&str; 9] = [
    "std::net",
    "std::fs",
    "std::io",
    "std::time",
    "std::thread",
    "glommio",
    "io_uring",
    "rocksdb",
    "async ",
];

/// Every line of code of a floor, without comments and tests, with its file and number.
fn code_of(floor: &str) -> Vec<(PathBuf, usize, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join(format!("{floor}.rs"))];
    let mut folders = vec![src.join(floor)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    let mut code = Vec::new();
    for file in files {
        let is_test = file.file_stem().is_some_and(|stem| stem == "tests" || stem == "fake");
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if is_test {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("#[cfg(test)]")
                && text
                    .lines()
                    .nth(number + 1)
                    .is_some_and(|next| next.contains("mod tests"))
            {
                break;
            }
            let line = line.trim_start();
            if !line.starts_with("//") {
                code.push((file.clone(), number + 1, line.to_owned()));
            }
        }
    }
    assert!(!code.is_empty(), "there is a floor {floor}");
    code
}

/// The floors that a line names, as `crate::floor`.
fn floors_named(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(|(at, found)| {
        let rest = &line[at + found.len()..];
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .filter(|name| !name.is_empty())
    })
}

#[test]
fn imports_run_downward() {
    let mut wrong = Vec::new();
    for (floor, allowed) in FLOORS {
        for (file, number, line) in code_of(floor) {
            for named in floors_named(&line) {
                if named != floor && !allowed.contains(&named) {
                    wrong.push(format!(
                        "{}:{number}: {floor} may not use {named}: {line}",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_lower_floors_touch_nothing_outside() {
    let mut wrong = Vec::new();
    for floor in PURE {
        for (file, number, line) in code_of(floor) {
            if let Some(named) = IMPURE.iter().find(|named| line.contains(**named)) {
                wrong.push(format!(
                    "{}:{number}: {floor} may not use {named}: {line}",
                    file.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `floors_named` sees what it is there to see.
#[test]
fn a_forbidden_import_would_be_seen() {
    assert_eq!(
        floors_named("use crate::{x};").count(),
        0,
        "grouped imports of floors would hide them"
    );
    assert_eq!(
        floors_named("use crate::shard::mesh; crate::net::Ring").collect::<Vec<_>>(),
        ["shard", "net"]
    );
    for (floor, _) in FLOORS {
        for (file, number, line) in code_of(floor) {
            assert!(
                !line.contains("use crate::{"),
                "{}:{number}: name the floor first: {line}",
                file.display()
            );
        }
    }
}

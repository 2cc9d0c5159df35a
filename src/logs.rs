//! Log lines: which are written, and changing that while the node runs.
//!
//! Owns the directives in force, their text, and the process's one subscriber, which writes a line per event to standard
//! output: time in UTC (RFC 3339), level, spans, target, message. Leaves to [`crate::config`] where the first directives
//! come from, and to the API who may change them.
//!
//! A directive is a level for all that no other names (`debug`), or a level for a target (`ledger=debug`). Targets are
//! our rooms by their short or long names (`ledger`, `clearway::ledger`), the whole program (`clearway`, or a crate of
//! another node in a unit file written for it), or crates of others. The longest target that an event's begins with
//! decides. Filters on spans and their fields are refused: with one of them a disabled line is no longer free.
//!
//! Always: a text that is refused has changed nothing; of a level that is off, a line on the packet path costs the
//! comparison of one number, because levels are decided per line of code when they change and not when it runs.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt as lines, reload};

/// Directives in force at the same time. There are some twenty rooms.
pub const DIRECTIVES_MAX: usize = 256;
/// A target is the path of a module.
pub const TARGET_BYTES_MAX: usize = 128;

/// The name of the whole program.
const PROGRAM: &str = env!("CARGO_CRATE_NAME");
/// Our rooms: the folders of `src`.
const ROOMS: [&str; 17] = [
    "wire",
    "ledger",
    "routing",
    "pipeline",
    "link",
    "stream",
    "store",
    "net",
    "client",
    "shard",
    "control",
    "api",
    "logs",
    "config",
    "keys",
    "cli",
    "connector",
];
/// The targets that lines name themselves, because what an operator looks for is spread over several rooms.
const NAMED_TARGETS: [&str; 12] = [
    "api",
    "btp",
    "config",
    "http",
    "ledger",
    "net",
    "packets",
    "payments",
    "rates",
    "routes",
    "settlements",
    "shard",
];

/// Which lines are written: one level per target, and one for all others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directives {
    /// In the order in which targets were first named. The default has the empty target.
    levels: Vec<(Box<str>, LevelFilter)>,
}

/// Why a text is no list of directives.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidDirectives {
    #[error("names no level: expected for instance info, or ledger=debug,packets=off")]
    Empty,
    #[error("{0:?} is no level: expected error, warn, info, debug, trace or off")]
    Level(Box<str>),
    #[error("{0:?} is neither a level nor a part of this program: expected LEVEL or TARGET=LEVEL")]
    Name(Box<str>),
    #[error("filters on spans and fields are not supported: expected LEVEL or TARGET=LEVEL")]
    Span,
    #[error("a target has 1 to {TARGET_BYTES_MAX} ASCII letters, digits and any of _ - : .")]
    Target,
    #[error("more than {DIRECTIVES_MAX} targets")]
    TooMany,
}

impl Default for Directives {
    /// `info`.
    fn default() -> Self {
        Self {
            levels: vec![("".into(), LevelFilter::INFO)],
        }
    }
}

impl Directives {
    /// Reads a list separated by commas. What it does not name is not written.
    pub fn parse(text: &str) -> Result<Self, InvalidDirectives> {
        Self { levels: vec![] }.merged(text)
    }

    /// These, with a list laid over them: its targets get its levels, all others keep theirs.
    pub fn merged(&self, text: &str) -> Result<Self, InvalidDirectives> {
        let mut merged = self.clone();
        let mut named = text.split(',').map(str::trim).filter(|directive| !directive.is_empty());
        let first = named.next().ok_or(InvalidDirectives::Empty)?;
        for directive in std::iter::once(first).chain(named) {
            let (target, level) = read_directive(directive)?;
            if let Some((_, known)) = merged.levels.iter_mut().find(|(known, _)| *known == target) {
                *known = level;
            } else if merged.levels.len() < DIRECTIVES_MAX {
                merged.levels.push((target, level));
            } else {
                return Err(InvalidDirectives::TooMany);
            }
        }
        Ok(merged)
    }

    /// As the subscriber knows them: a room is the module of that name and what lines name so themselves.
    fn to_targets(&self) -> Targets {
        let level_of = |wanted: &str| self.levels.iter().find(|(target, _)| **target == *wanted);
        let mut targets = Targets::new();
        if let Some((_, level)) = level_of("") {
            targets = targets.with_default(*level);
        }
        // First, so that a room's own level replaces it.
        if let Some((_, level)) = level_of(PROGRAM) {
            targets = targets.with_target(PROGRAM, *level);
            targets = targets.with_targets(NAMED_TARGETS.map(|name| (name, *level)));
        }
        for (target, level) in &self.levels {
            if !target.is_empty() && **target != *PROGRAM {
                targets = targets.with_target(&**target, *level);
                if is_ours(target) {
                    targets = targets.with_target(format!("{PROGRAM}::{target}"), *level);
                }
            }
        }
        targets
    }
}

impl FromStr for Directives {
    type Err = InvalidDirectives;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Directives {
    /// As [`Directives::parse`] reads it back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (target, level)) in self.levels.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let equals = if target.is_empty() { "" } else { "=" };
            write!(f, "{comma}{target}{equals}{level}")?;
        }
        Ok(())
    }
}

/// The target of one directive, empty for the default, and its level. A name of our own alone means every level.
fn read_directive(directive: &str) -> Result<(Box<str>, LevelFilter), InvalidDirectives> {
    if directive.contains(['[', '{']) {
        return Err(InvalidDirectives::Span);
    }
    let Some((target, level)) = directive.split_once('=') else {
        if let Ok(level) = directive.parse() {
            return Ok(("".into(), level));
        }
        let target = read_target(directive).map_err(|_| InvalidDirectives::Name(shortened(directive)))?;
        return if target == PROGRAM || is_ours(target) {
            Ok((target.into(), LevelFilter::TRACE))
        } else {
            Err(InvalidDirectives::Name(shortened(directive)))
        };
    };
    let (target, level) = (target.trim(), level.trim());
    let target = read_target(target)?;
    // The parser takes no text at all for a level, too.
    let level = Some(level)
        .filter(|level| !level.is_empty())
        .and_then(|level| level.parse().ok());
    let level = level.ok_or_else(|| InvalidDirectives::Level(shortened(directive)))?;
    Ok((target.into(), level))
}

/// The target in our own words.
fn read_target(text: &str) -> Result<&str, InvalidDirectives> {
    let is_target = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:.".contains(&byte);
    if !(1..=TARGET_BYTES_MAX).contains(&text.len()) || !text.bytes().all(is_target) {
        return Err(InvalidDirectives::Target);
    }
    if let Some(room) = text.strip_prefix(PROGRAM).and_then(|rest| rest.strip_prefix("::")) {
        return Ok(if is_ours(room) { room } else { text });
    }
    // Unit files written for another node name its crates, and mean the whole program.
    let its_crate = text.split("::").next().unwrap_or_default().replace('-', "_");
    let is_other_node = matches!(its_crate.as_str(), "ilp" | "ilp_node" | "interledger");
    Ok(if is_other_node || its_crate.starts_with("interledger_") {
        PROGRAM
    } else {
        text
    })
}

/// Whether the target is one of our rooms, or in one, or one that our lines name themselves.
fn is_ours(target: &str) -> bool {
    let room = target.split("::").next().unwrap_or_default();
    ROOMS.contains(&room) || NAMED_TARGETS.contains(&room)
}

/// What a message shows of a text that may be of any length.
fn shortened(text: &str) -> Box<str> {
    const CHARS_SHOWN: usize = 40;
    text.chars().take(CHARS_SHOWN).collect::<String>().into()
}

/// Changes the log of this process, or says why not. See [`LogFilter::change`].
pub type Change = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The log of this process, and how to change it. Changes last until the process ends.
pub struct LogFilter {
    in_force: Mutex<Directives>,
    running: reload::Handle<Targets, Registry>,
}

impl LogFilter {
    /// Begins to write log lines. An error: this process has a log already.
    pub fn start(directives: Directives) -> Result<Self, String> {
        let (filter, running) = reload::Layer::new(directives.to_targets());
        tracing_subscriber::registry()
            .with(filter)
            .with(lines::layer().with_ansi(false))
            .try_init()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            in_force: Mutex::new(directives),
            running,
        })
    }

    /// Lays a list of directives over those in force. An error says what is wrong with the text; nothing has changed then.
    pub fn change(&self, text: &str) -> Result<(), String> {
        // Kept until the change is in force: of two at the same time, neither may be lost.
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let merged = in_force.merged(text).map_err(|error| error.to_string())?;
        self.running
            .reload(merged.to_targets())
            .map_err(|error| error.to_string())?;
        *in_force = merged;
        Ok(())
    }

    /// [`Self::change`] for those who need not know of this type.
    pub fn into_change(self) -> Change {
        Arc::new(move |text| self.change(text))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use tracing_subscriber::filter::LevelFilter as Level;

    use super::*;

    #[test]
    fn texts_and_what_they_mean() {
        for (text, meaning) in [
            ("info", "info"),
            (" Debug ", "debug"),
            ("3", "info"),
            ("info,debug", "debug"),
            ("info,,packets=debug,", "info,packets=debug"),
            ("ledger = debug , NET=off", "ledger=debug,NET=off"),
            ("clearway::ledger=debug", "ledger=debug"),
            ("clearway::shard::peers=info", "shard::peers=info"),
            ("clearway::nothing=info", "clearway::nothing=info"),
            ("ledger=debug,clearway::ledger=warn", "ledger=warn"),
            ("clearway=trace", "clearway=trace"),
            ("clearway", "clearway=trace"),
            ("packets", "packets=trace"),
            ("h2=off,glommio=warn", "h2=off,glommio=warn"),
            ("interledger=debug,h2=off", "clearway=debug,h2=off"),
            ("interledger::ccp=debug", "clearway=debug"),
            ("interledger-api=debug", "clearway=debug"),
            ("interledger_ccp=debug,ilp_node=info", "clearway=info"),
            ("ilp=trace", "clearway=trace"),
            ("interledger", "clearway=trace"),
            ("ilpx=debug", "ilpx=debug"),
        ] {
            let directives = Directives::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(directives.to_string(), meaning, "{text}");
            assert_eq!(meaning.parse(), Ok(directives), "{text}: it is read back");
        }
        assert_eq!(Directives::default().to_string(), "info");
    }

    #[test]
    fn what_is_refused() {
        use InvalidDirectives::{Empty, Level, Name, Span, Target, TooMany};
        let long = "x".repeat(TARGET_BYTES_MAX);
        let many: Vec<String> = (0..=DIRECTIVES_MAX).map(|number| format!("t{number}=info")).collect();
        for (text, error) in [
            ("", Empty),
            (" , ,", Empty),
            ("verbose", Name("verbose".into())),
            ("h2", Name("h2".into())),
            ("two words", Name("two words".into())),
            ("info,ledger=loud", Level("ledger=loud".into())),
            ("ledger=", Level("ledger=".into())),
            ("ledger=6", Level("ledger=6".into())),
            ("a=b=info", Level("a=b=info".into())),
            ("=info", Target),
            ("\"info\"", Name("\"info\"".into())),
            ("le dger=info", Target),
            ("l\u{e9}=info", Target),
            ("\u{0}=info", Target),
            (&format!("{long}x=info"), Target),
            (&long, Name("x".repeat(40).into())),
            ("[span]=info", Span),
            ("ledger[span{a=1}]=info", Span),
            (&many.join(","), TooMany),
        ] {
            assert_eq!(Directives::parse(text), Err(error), "{text}");
        }
        assert!(Directives::parse(&format!("{long}=info")).is_ok());
        assert!(Directives::parse(&many[1..].join(",")).is_ok());
    }

    #[test]
    fn a_change_is_laid_over_what_is_in_force() {
        let mut directives = Directives::default();
        for (change, in_force) in [
            ("ledger=debug", "info,ledger=debug"),
            ("warn", "warn,ledger=debug"),
            ("clearway::ledger=off,net=trace", "warn,ledger=off,net=trace"),
            ("error,error", "error,ledger=off,net=trace"),
        ] {
            directives = directives.merged(change).unwrap();
            assert_eq!(directives.to_string(), in_force, "{change}");
        }
        assert!(directives.merged("info,ledger=loud").is_err(), "all or nothing");
    }

    #[test]
    fn the_lines_that_are_written() {
        for (text, target, highest) in [
            ("info", "clearway::shard", Level::INFO),
            ("info", "packets", Level::INFO),
            ("info", "rustls::conn", Level::INFO),
            ("packets=debug", "packets", Level::DEBUG),
            ("packets=debug", "btp", Level::OFF),
            ("info,ledger=debug", "ledger", Level::DEBUG),
            ("info,ledger=debug", "clearway::ledger::journal", Level::DEBUG),
            ("info,ledger=debug", "clearway::store", Level::INFO),
            ("warn,shard::peers=trace", "clearway::shard::peers", Level::TRACE),
            ("warn,shard::peers=trace", "clearway::shard", Level::WARN),
            ("interledger=debug", "packets", Level::DEBUG),
            ("interledger=debug", "clearway::shard", Level::DEBUG),
            ("interledger=debug", "rustls::conn", Level::OFF),
            ("packets=off,clearway=debug", "packets", Level::OFF),
            ("packets=off,clearway=debug", "btp", Level::DEBUG),
            ("off", "api", Level::OFF),
        ] {
            let targets = Directives::parse(text).unwrap().to_targets();
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                let event = level.into_level().expect("not off");
                assert_eq!(
                    targets.would_enable(target, &event),
                    level <= highest,
                    "{text}: {target} {level}"
                );
            }
        }
    }

    /// A level that is off is decided once per line of code, and again at each change.
    #[test]
    fn a_change_reaches_lines_that_were_decided() {
        let (filter, running) = reload::Layer::new(Directives::default().to_targets());
        let subscriber = tracing_subscriber::registry().with(filter);
        tracing::subscriber::with_default(subscriber, || {
            let log = LogFilter {
                in_force: Mutex::default(),
                running,
            };
            let is_written = || tracing::enabled!(target: "packets", tracing::Level::DEBUG);
            assert!(!is_written());
            log.change("packets=debug").unwrap();
            assert!(is_written());
            assert!(log.change("packets=off,nonsense").is_err());
            assert!(is_written(), "a refused text changes nothing");
            let change = log.into_change();
            change("packets=info").unwrap();
            assert!(!is_written());
        });
    }

    #[test]
    fn our_names_are_those_of_the_source() {
        fn texts(folder: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    texts(&path, found);
                } else if !path.ends_with("logs.rs") {
                    found.push(std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let rooms = std::fs::read_to_string(src.join("lib.rs")).unwrap();
        let rooms = rooms
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        assert_eq!(rooms.collect::<BTreeSet<_>>(), ROOMS.into());

        let mut found = Vec::new();
        texts(&src, &mut found);
        let targets = found.iter().flat_map(|text| {
            text.split("target: \"")
                .skip(1)
                .filter_map(|rest| Some(rest.split_once('"')?.0))
        });
        assert_eq!(targets.collect::<BTreeSet<_>>(), NAMED_TARGETS.into());
    }
}

//! Which requests on the HTTP port are packets and links, and so belong to the shards; all others go to the API, as do all
//! on the port of settlement engines.

use std::borrow::Cow;

use crate::wire::http::percent::percent_decode;

/// What a request path names. User names are percent-decoded; a name that cannot be decoded is no one's.
#[derive(PartialEq, Eq, Debug)]
pub enum Target<'a> {
    /// `POST /accounts/:username/ilp`, or `/ilp` where the credentials name the account.
    Packet {
        username: Option<Cow<'a, str>>,
    },
    /// `/accounts/:username/ilp/btp`, or `/ilp/btp` where the auth frame names the account.
    Btp {
        username: Option<Cow<'a, str>>,
    },
    Api,
}

/// One trailing slash is ignored.
pub fn classify(path: &str) -> Target<'_> {
    let path = path.strip_suffix('/').unwrap_or(path);
    match path {
        "/ilp" => return Target::Packet { username: None },
        "/ilp/btp" => return Target::Btp { username: None },
        _ => {}
    }
    let Some((name, rest)) = path.strip_prefix("/accounts/").and_then(|rest| rest.split_once('/')) else {
        return Target::Api;
    };
    // What cannot be decoded, or hides a slash, could be nobody's name.
    let decoded = || percent_decode(name).filter(|name| !name.contains('/'));
    let username = || Some(decoded().unwrap_or(Cow::Borrowed("")));
    match rest {
        "ilp" => Target::Packet { username: username() },
        "ilp/btp" => Target::Btp { username: username() },
        _ => Target::Api,
    }
}

/// Whether the path on the port of settlement engines is one that messages for other engines come to.
pub fn is_settlement_message(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix("/accounts/")
        .and_then(|rest| rest.strip_suffix("/messages"))
        .is_some_and(|id| !id.is_empty() && !id.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_links_are_told_from_the_rest() {
        let packet = |name: Option<&'static str>| Target::Packet {
            username: name.map(Cow::Borrowed),
        };
        let btp = |name: Option<&'static str>| Target::Btp {
            username: name.map(Cow::Borrowed),
        };
        for (path, target) in [
            ("/ilp", packet(None)),
            ("/ilp/", packet(None)),
            ("/ilp/btp", btp(None)),
            ("/accounts/alice/ilp", packet(Some("alice"))),
            ("/accounts/%61lice/ilp", packet(Some("alice"))),
            ("/accounts/alice/ilp/", packet(Some("alice"))),
            ("/accounts/alice/ilp/btp", btp(Some("alice"))),
            ("/accounts/%zz/ilp", packet(Some(""))),
            ("/accounts/a%2Fb/ilp", packet(Some(""))),
            ("/accounts/%ff/ilp", packet(Some(""))),
            ("/accounts/alice", Target::Api),
            ("/accounts/alice/ilp/other", Target::Api),
            ("/accounts/ilp", Target::Api),
            ("/", Target::Api),
            ("", Target::Api),
            ("/ilpx", Target::Api),
        ] {
            assert_eq!(classify(path), target, "{path}");
        }
    }

    #[test]
    fn messages_of_engines_are_told_from_the_rest() {
        for (path, expected) in [
            ("/accounts/5f0c7a52-0000-4000-8000-2b6c1d9e8f10/messages", true),
            ("/accounts/x/messages/", true),
            ("/accounts/x/settlements", false),
            ("/accounts//messages", false),
            ("/accounts/messages", false),
            ("/accounts/x/y/messages", false),
            ("/x/messages", false),
            ("/messages", false),
            ("", false),
        ] {
            assert_eq!(is_settlement_message(path), expected, "{path}");
        }
    }
}

//! Which requests on the HTTP port are packets and links, and so belong to the shards; all others go to the API.

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
}

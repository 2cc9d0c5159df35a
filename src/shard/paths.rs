//! Which requests on the HTTP port are packets and links, and so belong to the shards; all others go to the API.

use std::borrow::Cow;

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
    let username = || Some(percent_decode(name).unwrap_or(Cow::Borrowed("")));
    match rest {
        "ilp" => Target::Packet { username: username() },
        "ilp/btp" => Target::Btp { username: username() },
        _ => Target::Api,
    }
}

/// Decodes `%XX` once. `None`: an incomplete escape, no UTF-8, or a slash that was hidden.
pub fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push((high << 4 | low) as u8);
    }
    if bytes.contains(&b'/') {
        return None;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
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

//! The fields of an account as options.
//!
//! Owns one table from which options, help, completions and the body of a call are made. Whether a value is valid is the
//! node's to say: all go to it as texts, just as they were typed.

use clap::{Arg, ArgMatches, Args, FromArgMatches};
use serde_json::{Map, Value};

use super::CliError;
use super::input;

/// One field that may be set.
struct FieldSpec {
    /// The option; the field has underscores in place of the hyphens.
    option: &'static str,
    /// What stands for the value in the help text.
    value: &'static str,
    /// Whether the holder of an account may change it too.
    of_holder: bool,
    is_secret: bool,
    help: &'static str,
}

/// A field that only the operator may change.
const fn field(option: &'static str, value: &'static str, help: &'static str) -> FieldSpec {
    FieldSpec {
        option,
        value,
        of_holder: false,
        is_secret: false,
        help,
    }
}

/// A field that the holder may change as well.
const fn setting(option: &'static str, value: &'static str, help: &'static str) -> FieldSpec {
    FieldSpec {
        of_holder: true,
        ..field(option, value, help)
    }
}

const fn secret(option: &'static str, help: &'static str) -> FieldSpec {
    FieldSpec {
        is_secret: true,
        ..setting(option, "TOKEN", help)
    }
}

/// Every field that has a default or may be empty, in the order of the help text. Amounts are integers in units of the
/// account's asset at its scale.
const FIELDS: [FieldSpec; 18] = [
    field(
        "ilp-address",
        "ADDRESS",
        "Its ILP address [default: the node's and the user name]",
    ),
    field(
        "routing-relation",
        "RELATION",
        "NonRoutingAccount, Parent, Peer or Child [default: NonRoutingAccount]",
    ),
    field(
        "max-packet-amount",
        "UNITS",
        "The largest packet it may send [default: 2^64-1]",
    ),
    field(
        "min-balance",
        "UNITS",
        "How low its balance may fall; negative is credit given [default: no limit]",
    ),
    field(
        "max-balance",
        "UNITS",
        "How much the node may owe it [default: no limit]",
    ),
    field(
        "packets-per-minute-limit",
        "NUMBER",
        "How many packets it may send in a minute [default: no limit]",
    ),
    field(
        "amount-per-minute-limit",
        "UNITS",
        "The sum of what it may send in a minute [default: no limit]",
    ),
    field(
        "spread",
        "SHARE",
        "The share of every packet from it that the node keeps; 0.001 is one thousandth [default: 0]",
    ),
    field(
        "round-trip-time",
        "MS",
        "A round trip to the peer in milliseconds [default: 500]",
    ),
    setting("ilp-over-http-url", "URL", "Where its packets are posted to"),
    secret(
        "ilp-over-http-incoming-token",
        "The holder's password, for the API and for packets over HTTP",
    ),
    secret(
        "ilp-over-http-outgoing-token",
        "What the node authenticates with over HTTP",
    ),
    setting("ilp-over-btp-url", "URL", "Where the node connects to over BTP"),
    secret("ilp-over-btp-incoming-token", "The peer's password over BTP"),
    secret(
        "ilp-over-btp-outgoing-token",
        "What the node authenticates with over BTP",
    ),
    field(
        "settlement-engine-url",
        "URL",
        "Its settlement engine [default: the one of its asset]",
    ),
    setting(
        "settle-threshold",
        "UNITS",
        "At which balance the node settles [default: never]",
    ),
    setting(
        "settle-to",
        "UNITS",
        "Which balance is left after settling [default: never settles]",
    ),
];

/// What stands below the options wherever there are tokens among them.
pub const SECRETS_HELP: &str = "An argument can be seen by whoever may list the processes of this machine. A TOKEN is therefore also
\
                                read from a file, as @FILE, or from standard input, as - (one of them). No token is ever shown.";

/// The fields that were given: those that an operator may set, or with `OF_HOLDER` those that the holder may set too.
/// Values are as typed: a secret may still be in a file.
pub struct Fields<const OF_HOLDER: bool>(Vec<(&'static FieldSpec, String)>);

/// The member of an account that an option sets.
fn member(option: &str) -> String {
    option.replace('-', "_")
}

/// The options of the fields that may be cleared.
pub fn names<const OF_HOLDER: bool>() -> Vec<&'static str> {
    specs::<OF_HOLDER>().map(|spec| spec.option).collect()
}

fn specs<const OF_HOLDER: bool>() -> impl Iterator<Item = &'static FieldSpec> {
    FIELDS.iter().filter(|spec| spec.of_holder || !OF_HOLDER)
}

impl<const OF_HOLDER: bool> Args for Fields<OF_HOLDER> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .next_help_heading("Fields")
            .args(specs::<OF_HOLDER>().map(|spec| {
                Arg::new(spec.option)
                    .long(spec.option)
                    .value_name(spec.value)
                    .help(spec.help)
                    .allow_negative_numbers(true)
            }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<const OF_HOLDER: bool> FromArgMatches for Fields<OF_HOLDER> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given =
            specs::<OF_HOLDER>().filter_map(|spec| Some((spec, matches.get_one::<String>(spec.option)?.clone())));
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<const OF_HOLDER: bool> Fields<OF_HOLDER> {
    /// The body of a call that sets them, and takes those in `clear` back to their default or to none.
    pub fn body(&self, clear: &[String]) -> Result<Map<String, Value>, CliError> {
        let mut body = Map::new();
        for option in clear {
            if self.0.iter().any(|(spec, _)| spec.option == option) {
                return Err(CliError::Invalid(format!("--{option} is given, and cleared as well")));
            }
            body.insert(member(option), Value::Null);
        }
        for (spec, given) in &self.0 {
            let value = if spec.is_secret {
                input::secret(&format!("--{}", spec.option), given)?
            } else {
                given.clone()
            };
            body.insert(member(spec.option), value.into());
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given<const OF_HOLDER: bool>(line: &str) -> Result<Fields<OF_HOLDER>, clap::Error> {
        let command = Fields::<OF_HOLDER>::augment_args(clap::Command::new("test").no_binary_name(true));
        Fields::from_arg_matches(&command.try_get_matches_from(line.split_whitespace())?)
    }

    #[test]
    fn values_are_sent_as_typed() {
        for (line, clear, expected) in [
            ("", "", Ok("{}")),
            (
                "--min-balance -100 --settle-to=-5",
                "",
                Ok(r#"{"min_balance":"-100","settle_to":"-5"}"#),
            ),
            ("--max-balance 12x", "", Ok(r#"{"max_balance":"12x"}"#)),
            (
                "--settle-to 0",
                "settle-threshold",
                Ok(r#"{"settle_threshold":null,"settle_to":"0"}"#),
            ),
            (
                "--ilp-over-btp-incoming-token x",
                "",
                Ok(r#"{"ilp_over_btp_incoming_token":"x"}"#),
            ),
            (
                "--settle-to 0",
                "settle-to",
                Err("--settle-to is given, and cleared as well"),
            ),
            (
                "--ilp-over-http-incoming-token @/no/such/file",
                "",
                Err("--ilp-over-http-incoming-token: /no/such/file: No such file or directory (os error 2)"),
            ),
        ] {
            let clear: Vec<String> = clear.split_whitespace().map(str::to_owned).collect();
            let body = given::<false>(line).unwrap().body(&clear);
            let body = body
                .map(|body| Value::Object(body).to_string())
                .map_err(|error| error.to_string());
            assert_eq!(body.as_deref().map_err(String::as_str), expected, "{line}");
        }
    }

    #[test]
    fn a_holder_has_a_holders_fields() {
        assert_eq!(
            names::<true>().len(),
            8,
            "two URLs, four tokens, when to settle and to what"
        );
        assert!(given::<true>("--settle-to 0").is_ok());
        assert!(given::<true>("--min-balance 0").is_err());
        assert_eq!(names::<false>().len(), FIELDS.len());
    }
}

//! What a command reads beside its arguments: secrets, and maps from arguments, files or standard input.
//!
//! A secret on the command line is visible to everybody on the machine who may list processes, so each can also come
//! from a file or from standard input. No message here holds a secret.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::CliError;

/// More than any secret has.
const SECRET_BYTES_MAX: u64 = 4 << 10;
/// What a node takes as a map of routes or rates.
const MAP_BYTES_MAX: u64 = 4 << 20;

/// The value of a secret's option: `@FILE`, `-` for standard input, or the secret itself.
pub fn secret(option: &str, given: &str) -> Result<String, CliError> {
    let read = match (given, given.strip_prefix('@')) {
        ("-", _) => secret_in(io::stdin()),
        (_, Some(path)) => secret_in_file(Path::new(path)),
        ("", _) => Err("is empty".to_owned()),
        _ => return Ok(given.to_owned()),
    };
    read.map_err(|reason| match given.strip_prefix('@') {
        Some(path) => CliError::Invalid(format!("{option}: {path}: {reason}")),
        None if given == "-" => CliError::Invalid(format!("{option}: standard input: {reason}")),
        None => CliError::Invalid(format!("{option}: {reason}")),
    })
}

/// The secret in a file, without the line end behind it.
pub fn secret_in_file(path: &Path) -> Result<String, String> {
    secret_in(File::open(path).map_err(|error| error.to_string())?)
}

fn secret_in(source: impl Read) -> Result<String, String> {
    let bytes = read_bounded(source, SECRET_BYTES_MAX)?;
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    match text.trim_end_matches(['\r', '\n']) {
        // Also what is left of standard input for a second secret.
        "" => Err("is empty".to_owned()),
        secret => Ok(secret.to_owned()),
    }
}

/// The bytes of a file, or of standard input if its name is `-`, for a node to read as a map.
pub fn map_file(path: &str) -> Result<Vec<u8>, CliError> {
    let read = match path {
        "-" => read_bounded(io::stdin(), MAP_BYTES_MAX),
        _ => File::open(path)
            .map_err(|error| error.to_string())
            .and_then(|file| read_bounded(file, MAP_BYTES_MAX)),
    };
    let place = if path == "-" { "standard input" } else { path };
    read.map_err(|reason| CliError::Invalid(format!("{place}: {reason}")))
}

/// A map in JSON: from arguments such as `ABC=1.5`, or from the file that the only argument names. `of_nothing` is what
/// `ABC=` stands for.
pub fn map(arguments: &[String], of_nothing: &Value) -> Result<Vec<u8>, CliError> {
    if let [only] = arguments
        && !only.contains('=')
    {
        return map_file(only);
    }
    let mut members = Map::new();
    for argument in arguments {
        let (name, value) = argument
            .split_once('=')
            .ok_or_else(|| CliError::Invalid(format!("{argument}: expected CODE=VALUE, or one file alone")))?;
        // A text, so that no digit is lost here; the node reads numbers as texts.
        let value = match value {
            "" => of_nothing.clone(),
            value => value.into(),
        };
        if members.insert(name.to_owned(), value).is_some() {
            return Err(CliError::Invalid(format!("{name} is there twice")));
        }
    }
    Ok(serde_json::to_vec(&members).expect("a map of texts can be written as JSON"))
}

fn read_bounded(source: impl Read, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    source
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is longer than {bytes_max} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_lose_their_line_end_and_nothing_else() {
        let long = "x".repeat(5_000);
        for (content, expected) in [
            ("token", Ok("token")),
            ("token\n", Ok("token")),
            ("token\r\n", Ok("token")),
            (" to:ken \n", Ok(" to:ken ")),
            ("", Err("is empty")),
            ("\n", Err("is empty")),
            (&*long, Err("is longer than 4096 bytes")),
        ] {
            let read = secret_in(content.as_bytes());
            assert_eq!(read.as_deref().map_err(String::as_str), expected);
        }
        assert_eq!(secret_in(&b"\xff"[..]).unwrap_err(), "is not UTF-8");
    }

    #[test]
    fn messages_name_the_option_and_never_the_secret() {
        assert_eq!(secret("--auth", "a-token").unwrap(), "a-token");
        assert_eq!(secret("--auth", "").unwrap_err().to_string(), "--auth: is empty");
        let missing = secret("--auth", "@/no/such/file").unwrap_err().to_string();
        assert!(missing.starts_with("--auth: /no/such/file: No such file"), "{missing}");
    }

    #[test]
    fn maps_from_arguments() {
        let read = |line: &str| {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            match map(&arguments, &Value::Null) {
                Ok(bytes) => String::from_utf8(bytes).unwrap(),
                Err(error) => error.to_string(),
            }
        };
        for (line, expected) in [
            ("ABC=1.0 XYZ=2.517", r#"{"ABC":"1.0","XYZ":"2.517"}"#),
            (
                "ABC=0.1000000000000000000000000001",
                r#"{"ABC":"0.1000000000000000000000000001"}"#,
            ),
            ("ABC=http://h/?a=b XYZ=", r#"{"ABC":"http://h/?a=b","XYZ":null}"#),
            (r#"A"B=1"#, r#"{"A\"B":"1"}"#),
            ("ABC=1 ABC=2", "ABC is there twice"),
            ("ABC=1 XYZ", "XYZ: expected CODE=VALUE, or one file alone"),
            ("/no/such/file", "/no/such/file: No such file or directory (os error 2)"),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }
}

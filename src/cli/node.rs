//! `clearway status` and `clearway log-level`: the node itself.

use serde::Deserialize;

use super::client::{Answer, Body, Client, NodeArgs};
use super::show::{Members, cell, label, list, plain, table};
use super::{CliError, print_text, warn, write_out};

/// The proof that every unit in the book is accounted for, as the node gives it.
#[derive(Deserialize)]
struct Audit {
    adds_up: bool,
    assets: Vec<AssetAudit>,
}

/// Amounts in units of the asset. Positive `balances` are owed to the holders, a positive `position` is our gain; `pending`
/// is on its way to settlement engines.
#[derive(Deserialize)]
struct AssetAudit {
    asset_code: String,
    asset_scale: u8,
    accounts: u64,
    balances: i128,
    position: i128,
    pending: i128,
    adds_up: bool,
}

impl Audit {
    /// Why the book is not in order. Added up here once more.
    fn fault(&self) -> Option<String> {
        let asset = self.assets.iter().find(|asset| !asset.is_in_order());
        if let Some(asset) = asset {
            let (code, scale) = (plain(&asset.asset_code), asset.asset_scale);
            let found = if asset.sums_to_zero() {
                format!(
                    "settlements of {} under way that it does not account for",
                    asset.pending
                )
            } else {
                format!("balances of {} and a position of {}", asset.balances, asset.position)
            };
            return Some(format!("the book does not add up: {code} at scale {scale} has {found}"));
        }
        (!self.adds_up).then(|| "the book does not add up".to_owned())
    }

    fn show(&self) -> String {
        let rows = self.assets.iter().map(|asset| {
            vec![
                plain(&asset.asset_code),
                asset.asset_scale.to_string(),
                asset.accounts.to_string(),
                asset.balances.to_string(),
                asset.position.to_string(),
                asset.pending.to_string(),
                if asset.is_in_order() { "yes" } else { "NO" }.to_owned(),
            ]
        });
        let header = [
            "ASSET", "SCALE", "ACCOUNTS", "BALANCES", "POSITION", "PENDING", "ADDS UP",
        ];
        table(&header, rows)
    }
}

impl AssetAudit {
    fn is_in_order(&self) -> bool {
        self.adds_up && self.sums_to_zero()
    }

    fn sums_to_zero(&self) -> bool {
        self.balances.checked_add(self.position) == Some(0)
    }
}

pub fn status(node: &NodeArgs) -> Result<(), CliError> {
    let client = Client::new(node)?;
    let (body, health, not_ready) = match client.get("/") {
        Ok(answer) => {
            warn(&answer);
            let health: Members = answer.json()?;
            (answer.body, health, None)
        }
        Err(error) => {
            // The same object, with the reason in it.
            let CliError::Refused { status: 503, body, .. } = &error else {
                return Err(error);
            };
            let Ok(health) = serde_json::from_str(body) else {
                return Err(error);
            };
            (body.clone(), health, Some(error.to_string()))
        }
    };
    let audit = match not_ready {
        Some(reason) => Err(CliError::Failed(reason)),
        None => ask_audit(&client),
    };
    let (answer, book, verdict) = match audit {
        Ok(None) => (None, "not checked: this takes the admin's token".to_owned(), Ok(())),
        Ok(Some((answer, audit))) => match audit.fault() {
            None => (Some((answer, audit)), "adds up".to_owned(), Ok(())),
            Some(fault) => (
                Some((answer, audit)),
                "DOES NOT ADD UP".to_owned(),
                Err(CliError::Failed(fault)),
            ),
        },
        Err(error) => (None, "not checked".to_owned(), Err(CliError::Failed(error.to_string()))),
    };
    let text = if node.json {
        let audit = answer.as_ref().map_or("null", |(answer, _)| answer.body.trim());
        format!("{{\"node\":{},\"audit\":{audit}}}", body.trim())
    } else {
        let rows = health.0.iter().map(|(name, value)| (label(name), cell(value)));
        let rows = rows.chain([("book".to_owned(), book)]);
        let assets = answer.map_or(String::new(), |(_, audit)| format!("\n\n{}", audit.show()));
        format!("{}{assets}", list(rows))
    };
    let written = write_out(&text);
    // Also if nobody reads on: the exit code is what a monitor looks at.
    verdict.and(written)
}

/// The audit, if we may ask for it.
fn ask_audit(client: &Client) -> Result<Option<(Answer, Audit)>, CliError> {
    if !client.has_token() {
        return Ok(None);
    }
    match client.get("/ledger/audit") {
        Ok(answer) => {
            let audit = answer.json()?;
            Ok(Some((answer, audit)))
        }
        // A holder's token, which is good for other calls.
        Err(CliError::Refused { status: 401, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn log_level(node: &NodeArgs, filter: &str) -> Result<(), CliError> {
    let answer = Client::new(node)?.call("PUT", "/tracing-level", Body::Text(filter))?;
    print_text(node, &answer, str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_is_added_up_here_as_well() {
        let line = |balances: &str, position: &str, adds_up: bool| {
            format!(
                r#"{{"asset_code":"ABC","asset_scale":9,"accounts":2,"balances":{balances},"position":{position},"pending":7,"adds_up":{adds_up}}}"#
            )
        };
        let asset = "the book does not add up: ABC at scale 9 has";
        let fault = format!("{asset} balances of");
        for (adds_up, assets, expected) in [
            (true, String::new(), None),
            (true, line("-5", "5", true), None),
            (
                true,
                line(
                    "170141183460469231731687303715884105727",
                    "-170141183460469231731687303715884105727",
                    true,
                ),
                None,
            ),
            (false, String::new(), Some("the book does not add up".to_owned())),
            (
                true,
                line("-5", "4", true),
                Some(format!("{fault} -5 and a position of 4")),
            ),
            (
                true,
                line("-5", "5", false),
                Some(format!(
                    "{asset} settlements of 7 under way that it does not account for"
                )),
            ),
            (
                true,
                line("170141183460469231731687303715884105727", "1", true),
                Some(format!(
                    "{fault} 170141183460469231731687303715884105727 and a position of 1"
                )),
            ),
        ] {
            let json = format!(r#"{{"adds_up":{adds_up},"assets":[{assets}]}}"#);
            let audit: Audit = serde_json::from_str(&json).unwrap();
            assert_eq!(audit.fault(), expected, "{json}");
        }
    }
}

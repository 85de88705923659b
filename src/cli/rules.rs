//! `skerry rules`: how many requests each rule of each site matched.

use clap::Args;
use serde_json::Value;

use super::CommandError;
use super::client::{AdminArguments, AdminCall, percent_encode};
use super::output::{aligned, print};

/// The arguments of `skerry rules`.
#[derive(Debug, Args)]
pub struct RulesArguments {
    /// Only the rules of this site.
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// Only rules that no request matched, of sites that had requests.
    #[arg(long)]
    unmatched: bool,
    /// Print the JSON response of the admin API instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs `skerry rules`.
///
/// # Errors
/// Why the call failed, in one line.
pub fn run(arguments: &RulesArguments) -> Result<(), CommandError> {
    let mut path = format!("/rules?unmatched={}", arguments.unmatched);
    if let Some(site) = &arguments.site {
        path.push_str(&format!("&site={}", percent_encode(site)));
    }
    let answer = arguments.admin.call_json(&AdminCall::get(&path))?;
    Ok(print(&if arguments.json { format!("{answer:#}\n") } else { table(&answer) })?)
}

/// The rules in the order in which they are tried.
fn table(answer: &Value) -> String {
    let rules: Vec<&Value> = answer["rules"].as_array().into_iter().flatten().collect();
    if rules.is_empty() {
        return "no rule\n".to_owned();
    }
    let rows = rules.iter().map(|rule| {
        let word = |at: usize| rule[at].as_str().unwrap_or("?").to_owned();
        let matches = rule[2].as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string());
        vec![word(0), word(1), matches]
    });
    aligned(&["site", "rule", "requests since the start"], &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_in_their_order_with_their_counts() {
        let answer = serde_json::json!({"rules": [["www", "api", 12], ["www", "default", null]]});
        let expected = "site  rule     requests since the start\n\
                        www   api      12\n\
                        www   default  -\n";
        assert_eq!(table(&answer), expected);
        assert_eq!(table(&serde_json::json!({"rules": []})), "no rule\n");
    }
}

//! `skerry explain`: how a node would handle a request for a URL, and why.

use std::net::IpAddr;

use clap::Args;

use super::CommandError;
use super::client::{AdminArguments, AdminCall, percent_encode};
use super::explain_text::explanation_text;
use super::output::{print, print_json};

/// The arguments of `skerry explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// The URL to explain, with scheme and host.
    url: String,
    /// Add a request header field, `Name: value`; repeatable.
    #[arg(short = 'H', long = "header", value_name = "FIELD", value_parser = parse_field)]
    headers: Vec<String>,
    /// Assume this client address (for access rules, country rules and rate limits).
    #[arg(long, value_name = "ADDRESS", value_parser = super::client::parse_ip)]
    client: Option<IpAddr>,
    /// Assume this client country, a two-letter code, instead of the one found for the address.
    #[arg(long)]
    country: Option<geo::Country>,
    /// Print the JSON response of the admin API instead of the steps.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Prints the steps of the request path, or the explanation as JSON.
///
/// # Errors
/// Why the call failed, in one line.
pub fn run(arguments: &ExplainArguments) -> Result<(), CommandError> {
    let fields: Vec<String> =
        arguments.headers.iter().map(|field| format!("X-Explain-{field}")).collect();
    let mut target = format!("/explain?url={}", percent_encode(&arguments.url));
    if let Some(client) = arguments.client {
        target.push_str(&format!("&client={client}"));
    }
    if let Some(country) = arguments.country {
        target.push_str(&format!("&country={}", country.as_str()));
    }
    let call = AdminCall { fields: &fields, ..AdminCall::get(&target) };
    let explanation = arguments.admin.call_json(&call)?;
    match arguments.json {
        true => print_json(&explanation),
        false => Ok(print(&explanation_text(&explanation))?),
    }
}

/// A field line whose name and value are valid (RFC 9110 §5).
fn parse_field(text: &str) -> Result<String, &'static str> {
    let expected = "expected \"Name: value\", such as \"Accept-Language: de\"";
    let (name, value) = text.split_once(':').ok_or(expected)?;
    http::HeaderName::try_from(name).map_err(|_| expected)?;
    http::HeaderValue::try_from(value.trim()).map_err(|_| expected)?;
    if name.eq_ignore_ascii_case("host") {
        return Err("the host comes from the URL: leave this field out");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_field_has_a_name_and_a_value() {
        assert_eq!(parse_field("Accept: */*").as_deref(), Ok("Accept: */*"));
        for invalid in ["foo", ":foo", "a b: foo", "a: b\r\nc: d"] {
            assert!(parse_field(invalid).unwrap_err().contains("Name: value"), "{invalid}");
        }
        assert!(parse_field("Host: other").unwrap_err().contains("leave this field out"));
    }
}

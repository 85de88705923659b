//! Access limits of a rule: networks, countries, methods, length of the request content, and the
//! protocols that a client may switch to. Pure functions over the rule's [`Settings`].

use std::net::IpAddr;

use geo::Country;
use http::header::HeaderMap;
use http::{HeaderValue, Method};
use ipnet::IpNet;

use super::Refusal;
use super::upgrade::UpgradeProtocol;
use crate::fields::content_length;

/// A rule's access limits. An empty list allows everything, except `upgrade`, where it allows
/// nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// If not empty, only clients in these networks are allowed.
    pub allow_addresses: Vec<IpNet>,
    /// Clients in these networks are refused. Takes precedence over `allow_addresses`.
    pub deny_addresses: Vec<IpNet>,
    /// If not empty, only clients in these countries are allowed. A client of unknown country is in
    /// none.
    pub allow_countries: Vec<Country>,
    /// Clients in these countries are refused.
    pub deny_countries: Vec<Country>,
    /// If not empty, only these methods are allowed.
    pub methods: Vec<Method>,
    /// Longest request content in bytes. `None`: no limit.
    pub content_bytes_max: Option<u64>,
    /// Protocols that a client may switch to with `Upgrade` (RFC 9110 §7.8). Requests for other
    /// protocols are answered as if they had no `Upgrade` field.
    pub upgrade: Vec<UpgradeProtocol>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_addresses: Vec::new(),
            deny_addresses: Vec::new(),
            allow_countries: Vec::new(),
            deny_countries: Vec::new(),
            methods: Vec::new(),
            content_bytes_max: None,
            upgrade: vec![UpgradeProtocol::websocket()],
        }
    }
}

/// Whether the limits allow a request; if not, the first limit that refuses it.
pub(crate) fn admit(
    settings: &Settings,
    client: IpAddr,
    country: Option<Country>,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let within = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&client));
    let any = |countries: &[Country]| country.is_some_and(|country| countries.contains(&country));
    if within(&settings.deny_addresses)
        || (!settings.allow_addresses.is_empty() && !within(&settings.allow_addresses))
    {
        return Err(Refusal::AddressDenied);
    }
    if any(&settings.deny_countries)
        || (!settings.allow_countries.is_empty() && !any(&settings.allow_countries))
    {
        return Err(Refusal::CountryDenied);
    }
    if !settings.methods.is_empty() && !settings.methods.contains(method) {
        return Err(Refusal::MethodDenied);
    }
    match settings.content_bytes_max {
        Some(max) if content_length(headers).is_some_and(|length| length > max) => {
            Err(Refusal::ContentTooLong)
        }
        _ => Ok(()),
    }
}

/// The option that caused a refusal of [`admit`], and the entry of its list that matched. No entry:
/// the list allows only others.
pub(crate) fn cause(
    settings: &Settings,
    refusal: Refusal,
    client: Option<IpAddr>,
    country: Option<Country>,
) -> (&'static str, Option<String>) {
    let network = || {
        let denied = |network: &&IpNet| client.is_some_and(|client| network.contains(&client));
        settings.deny_addresses.iter().find(denied)
    };
    let country = || country.filter(|country| settings.deny_countries.contains(country));
    match refusal {
        Refusal::AddressDenied => match network() {
            Some(network) => ("access.deny", Some(network.to_string())),
            None => ("access.allow", None),
        },
        Refusal::CountryDenied => match country() {
            Some(country) => ("access.deny_countries", Some(country.as_str().to_owned())),
            None => ("access.allow_countries", None),
        },
        Refusal::MethodDenied => ("access.methods", None),
        _ => ("access.content_max", None),
    }
}

impl Settings {
    /// The value of the `Allow` field that a 405 must have (RFC 9110 §15.5.6).
    pub(crate) fn allow_field(&self) -> HeaderValue {
        let names: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        HeaderValue::from_str(&names.join(", ")).expect("methods are tokens")
    }
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_LENGTH;

    use super::*;

    #[track_caller]
    fn check(
        settings: &Settings,
        client: &str,
        country: Option<&str>,
        expected: Result<(), Refusal>,
    ) {
        let country = country.map(|code| code.parse().unwrap());
        let client = client.parse().unwrap();
        let found = admit(settings, client, country, &Method::GET, &HeaderMap::new());
        assert_eq!(found, expected, "{client} {country:?}");
    }

    #[test]
    fn deny_beats_allow_and_an_empty_list_allows() {
        check(&Settings::default(), "192.0.2.1", None, Ok(()));
        let settings = Settings {
            allow_addresses: vec!["192.0.2.0/24".parse().unwrap()],
            deny_addresses: vec!["192.0.2.128/25".parse().unwrap()],
            ..Settings::default()
        };
        check(&settings, "192.0.2.1", None, Ok(()));
        check(&settings, "192.0.2.200", None, Err(Refusal::AddressDenied));
        check(&settings, "198.51.100.1", None, Err(Refusal::AddressDenied));
    }

    #[test]
    fn an_unknown_country_is_in_no_list() {
        let only = Settings { allow_countries: vec!["DE".parse().unwrap()], ..Settings::default() };
        check(&only, "192.0.2.1", Some("DE"), Ok(()));
        check(&only, "192.0.2.1", Some("FR"), Err(Refusal::CountryDenied));
        check(&only, "192.0.2.1", None, Err(Refusal::CountryDenied));
        let never = Settings { deny_countries: vec!["DE".parse().unwrap()], ..Settings::default() };
        check(&never, "192.0.2.1", Some("DE"), Err(Refusal::CountryDenied));
        check(&never, "192.0.2.1", None, Ok(()));
    }

    #[test]
    fn a_refusal_has_an_option_and_an_entry() {
        let settings = Settings {
            allow_addresses: vec!["192.0.2.0/24".parse().unwrap()],
            deny_addresses: vec!["192.0.2.128/25".parse().unwrap()],
            allow_countries: vec!["DE".parse().unwrap(), "FR".parse().unwrap()],
            deny_countries: vec!["FR".parse().unwrap()],
            ..Settings::default()
        };
        let check = |client: &str, country: &str, option: &str, entry: Option<&str>| {
            let (client, country) = (client.parse().unwrap(), country.parse().ok());
            let refusal = admit(&settings, client, country, &Method::GET, &HeaderMap::new());
            let found = cause(&settings, refusal.unwrap_err(), Some(client), country);
            assert_eq!((found.0, found.1.as_deref()), (option, entry), "{client} {country:?}");
        };
        check("192.0.2.200", "DE", "access.deny", Some("192.0.2.128/25"));
        check("198.51.100.1", "DE", "access.allow", None);
        check("192.0.2.1", "FR", "access.deny_countries", Some("FR"));
        check("192.0.2.1", "US", "access.allow_countries", None);
    }

    #[test]
    fn methods_and_content_have_limits() {
        let settings = Settings {
            methods: vec![Method::GET, Method::POST],
            content_bytes_max: Some(10),
            ..Settings::default()
        };
        let ask = |method: Method, length: &'static str| {
            let headers =
                HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static(length))]);
            admit(&settings, "192.0.2.1".parse().unwrap(), None, &method, &headers)
        };
        assert_eq!(ask(Method::POST, "10"), Ok(()));
        assert_eq!(ask(Method::POST, "11"), Err(Refusal::ContentTooLong));
        assert_eq!(ask(Method::PUT, "1"), Err(Refusal::MethodDenied));
        assert_eq!(settings.allow_field(), "GET, POST");
    }
}

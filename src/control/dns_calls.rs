//! `GET /dns` and `GET /dns/export`: what the name server holds, and what it answers to whom.

use std::net::IpAddr;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::admin::Admin;
use super::http::{Problem, check_parameters, json_response, parameter};

impl Admin {
    /// `GET /dns`: zones, edge names and nodes. `GET /dns?name=…&type=…&client=…`: the response to a query, and why.
    pub(super) fn dns(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["name", "type", "client"])?;
        let (kind, client) = (parameter(query, "type")?, client(query)?);
        let report = match parameter(query, "name")? {
            Some(name) => self.node.explain_dns(&name, kind.as_deref(), client),
            None if kind.is_some() || client.is_some() => {
                Err("parameter \"name\" is missing: expected /dns?name=www.example.org".to_owned())
            }
            None => Ok(self.node.dns()),
        };
        Ok(json_response(StatusCode::OK, &report.map_err(Problem::bad_request)?))
    }

    /// `GET /dns/export?zone=…&client=…`: the zones as zone files.
    pub(super) fn dns_export(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["zone", "client"])?;
        let (zone, client) = (parameter(query, "zone")?, client(query)?);
        let exported = self.node.export_dns(zone.as_deref(), client);
        Ok(json_response(StatusCode::OK, &exported.map_err(Problem::bad_request)?))
    }
}

fn client(query: &str) -> Result<Option<IpAddr>, Problem> {
    let client = parameter(query, "client")?.map(|client| client.parse()).transpose();
    client.map_err(|_| Problem::bad_request("parameter \"client\": expected an IP address"))
}

//! Advice for an option that its table does not have: the option with another server's name, an option of nearly this
//! name, or the table that has it.

use std::collections::BTreeSet;

use super::mistakes::{distance, near};

/// An option that no module has read.
pub(super) struct Unknown<'a> {
    /// As it is written.
    pub name: &'a str,
    /// The path of its table, such as `sites.www.rules[0]`; empty for the top level.
    pub path: &'a str,
    /// The path with `*` in place of user-chosen names and numbers.
    pub pattern: &'a str,
    /// The options of its table.
    pub siblings: &'a BTreeSet<&'static str>,
}

/// All options and tables that there are, by pattern.
pub(super) struct Known {
    names: BTreeSet<String>,
    lists: BTreeSet<String>,
    /// Options that stand in no table.
    at_the_top: BTreeSet<String>,
}

impl Unknown<'_> {
    /// Whether an option or a table stands below the table of this option.
    fn is_above(&self, pattern: &str) -> bool {
        pattern.strip_prefix(self.pattern).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl Known {
    /// `options`: the patterns of all options; `lists`: those of the lists of tables.
    pub(super) fn new(options: BTreeSet<String>, lists: BTreeSet<String>) -> Self {
        let at_the_top = options.iter().filter(|name| !name.contains('.')).cloned().collect();
        let tables: Vec<String> = options.iter().flat_map(|name| tables_above(name)).collect();
        let mut names = options;
        names.extend(tables);
        Self { names, lists, at_the_top }
    }

    /// The patterns of tables that have an option or a table of this name. Sites and rules have the tables of
    /// `[defaults]`: those of sites stand for all.
    fn tables_with(&self, name: &str) -> Vec<&str> {
        let split = |pattern: &'_ String| match pattern.rsplit_once('.') {
            Some((_, option)) => option == name,
            None => pattern == name,
        };
        let tables = self.names.iter().filter(|pattern| split(pattern));
        let tables = tables.map(|pattern| pattern.rsplit_once('.').map_or("", |(table, _)| table));
        let of_site = |table: &str| {
            table.strip_prefix("defaults").map(|rest| format!("sites.*{rest}.{name}"))
        };
        let is_shown =
            |table: &&str| !of_site(table).is_some_and(|site| self.names.contains(&site));
        let mut tables: Vec<&str> = tables.filter(is_shown).collect();
        let is_rule = |table: &str| table.starts_with("sites.*.rules.*");
        if tables.iter().any(|table| !is_rule(table)) {
            tables.retain(|table| !is_rule(table));
        }
        tables.sort_by_key(|table| (table.matches('.').count(), *table));
        tables
    }

    /// The name of a table as a file has it: below the table of the unknown option with the names of its path.
    fn shown(&self, table: &str, unknown: &Unknown<'_>) -> String {
        let below = table.strip_prefix(unknown.pattern).filter(|_| !unknown.pattern.is_empty());
        let below = below.filter(|rest| rest.starts_with('.'));
        if let Some(below) = below {
            // A table of a rule follows its [[sites.NAME.rules]].
            let path = unknown.path.split('[').next().unwrap_or_default();
            return format!("[{path}{}]", below.replace(".*", ""));
        }
        if let Some(list) = table.strip_suffix(".*")
            && self.lists.contains(list)
        {
            return format!("[[{}]]", list.replace('*', "NAME"));
        }
        format!("[{}]", table.replace('*', "NAME"))
    }

    /// `[a]`, `[b] and [c]`, or some of more.
    fn list(&self, tables: &[&str], unknown: &Unknown<'_>) -> String {
        let shown: Vec<String> = tables.iter().map(|table| self.shown(table, unknown)).collect();
        match &shown[..] {
            [one] => one.clone(),
            [one, other] => format!("{one} and {other}"),
            [one, other, third] => format!("{one}, {other} and {third}"),
            [one, other, rest @ ..] => format!("{one}, {other} and {} more tables", rest.len()),
            [] => "no table".to_owned(),
        }
    }

    /// The name of an option of other tables that a typing error explains; of tables below this one first.
    fn near_elsewhere(&self, unknown: &Unknown<'_>) -> Option<(&str, Vec<&str>)> {
        let bound = (unknown.name.chars().count() / 4).min(2);
        let last =
            |pattern: &'_ str| pattern.rsplit_once('.').map_or(0, |(table, _)| table.len() + 1);
        let distances = self.names.iter().map(|pattern| {
            let option = &pattern[last(pattern)..];
            (distance(unknown.name, option), !unknown.is_above(pattern), option)
        });
        let (_, is_elsewhere, name) =
            distances.filter(|(steps, ..)| (1..=bound).contains(steps)).min()?;
        let mut tables = self.tables_with(name);
        if !is_elsewhere && tables.iter().any(|table| unknown.is_above(table)) {
            tables.retain(|table| unknown.is_above(table));
        }
        Some((name, tables))
    }
}

/// The tables that an option stands in, by pattern.
fn tables_above(pattern: &str) -> impl Iterator<Item = String> {
    let ends = pattern.match_indices('.').map(|(end, _)| &pattern[..end]);
    ends.filter(|table| !table.ends_with('*')).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// The advice, with its leading `; `.
pub(super) fn advice(unknown: &Unknown<'_>, known: &Known) -> String {
    let Unknown { name, pattern, siblings, .. } = unknown;
    let with_table = format!("{pattern}.{name}");
    let foreign = FOREIGN.iter().find(|(foreign, _)| *foreign == *name || *foreign == with_table);
    if let Some((_, option)) = foreign {
        return format!("; set {option}");
    }
    let tables = known.tables_with(name);
    if let Some(near) = near(name, siblings.iter().copied()) {
        // Sites and pools are easily taken for each other.
        let swapped = tables.iter().find(|table| ["sites.*", "pools.*"].contains(table));
        let swapped = swapped
            .map(|table| format!(" {name:?} is an option of {}", known.shown(table, unknown)));
        return format!("; did you mean {near:?}?{}", swapped.unwrap_or_default());
    }
    if let Some((first, rest)) =
        name.split_once('.').filter(|(first, _)| known.names.contains(*first))
    {
        return format!("; without quotation marks it is the table [{first}.{rest}]");
    }
    match &tables[..] {
        [] => {}
        [""] if known.at_the_top.contains(*name) => {
            return "; it stands at the top of a file, before the first [table]".to_owned();
        }
        [""] => return format!("; [{name}] is a table at the top level"),
        tables => {
            let below: Vec<&str> =
                tables.iter().copied().filter(|it| unknown.is_above(it)).collect();
            let tables = if below.is_empty() { tables } else { &below };
            return format!("; it is an option of {}", known.list(tables, unknown));
        }
    }
    if let Some((name, tables)) = known.near_elsewhere(unknown) {
        return format!("; did you mean {name:?} in {}?", known.list(&tables, unknown));
    }
    match siblings.len() <= LISTED_MAX {
        true => {
            let names: Vec<&str> = siblings.iter().copied().collect();
            format!("; known options: {}", names.join(", "))
        }
        false => "; config/edge.toml lists the options".to_owned(),
    }
}

/// The known options are listed if there are no more than these.
const LISTED_MAX: usize = 16;

/// A condition that rules do not have.
const NO_FIELDS: &str = "cache.bypass_headers or cache.bypass_cookies, or cache.key: rules have no conditions on header fields";

/// Names of other servers, and the option here. A name with dots is that of an option in one table only.
const FOREIGN: &[(&str, &str)] = &[
    ("bus.url", "\"redis\""),
    ("bus.host", "\"redis\", such as redis = \"redis://host:6379\""),
    ("bus.address", "\"redis\", such as redis = \"redis://host:6379\""),
    ("bus.password", "\"password_file\", or the password in the URL of \"redis\""),
    ("sites.*.compression.enabled", "codings = [] to compress nothing"),
    ("sites.*.rules.*.compression.enabled", "codings = [] to compress nothing"),
    ("defaults.compression.enabled", "codings = [] to compress nothing"),
    ("pools.*.tls.ca", "\"ca_files\""),
    ("sites.*.respond.body", "\"content\""),
    ("sites.*.rules.*.respond.body", "\"content\""),
    ("dns.address", "\"addresses\" of [dns.server]"),
    ("sites.*.rules.*.header", NO_FIELDS),
    ("sites.*.rules.*.headers", NO_FIELDS),
    ("sites.*.rules.*.cookie", NO_FIELDS),
    ("sites.*.rules.*.cookies", NO_FIELDS),
    ("ttl", "cache.lifetimes.fixed, or cache.lifetimes.by_status"),
    ("max_age", "cache.lifetimes.fixed, or cache.lifetimes.lifetime_max"),
    ("default_ttl", "cache.lifetimes.by_status"),
    ("grace", "cache.stale.while_revalidate"),
    ("listen", "[[listeners]] with \"address\""),
    ("port", "\"address\" of [[listeners]], such as \"0.0.0.0:443\""),
    ("ssl", "\"tls\" of [[listeners]], and [[tls.certificates]]"),
    ("ssl_certificate", "\"certificate\" of [[tls.certificates]]"),
    ("server_name", "\"hosts\" of [sites.NAME]"),
    ("domain", "\"hosts\" of [sites.NAME]"),
    ("domains", "\"hosts\" of [sites.NAME]"),
    ("proxy_pass", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("backend", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("backends", "\"origins\" of [pools.NAME]"),
    ("upstream", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("upstreams", "[pools.NAME] with \"origins\""),
    ("origin", "\"origins\" of [pools.NAME]"),
    ("servers", "\"origins\" of [pools.NAME]"),
    ("url", "\"origins\" of [pools.NAME]"),
    ("gzip", "compression.codings"),
    ("headers", "response_fields.set or request_fields.set"),
    ("add_header", "response_fields.set"),
    ("timeout", "[pools.NAME.deadlines]"),
    ("workers_processes", "node.workers"),
    ("worker_processes", "node.workers"),
    ("access_log", "log.access"),
    ("error_log", "log.level; the error log goes to standard error"),
    ("storage", "store.memory and store.disk"),
    ("health_check", "[pools.NAME.check]"),
    ("rate_limit", "rate.per_second"),
    ("limit_req", "rate.per_second"),
    ("status", "respond.status, or redirect.status"),
    ("deny", "respond.status = 403, or access"),
    ("return", "respond.status, or redirect.location"),
    ("location", "\"path\" of [[sites.NAME.rules]], or redirect.location"),
    ("rewrite", "replace_prefix, strip_prefix or add_prefix"),
    ("cors", "response_fields.set"),
    ("proxy_cache_valid", "cache.lifetimes.by_status"),
    ("proxy_cache_path", "store.disk"),
    ("proxy_cache_key", "[sites.NAME.cache.key]"),
    ("proxy_set_header", "request_fields.set"),
    ("proxy_read_timeout", "first_byte and between_bytes of [pools.NAME.deadlines]"),
    ("proxy_connect_timeout", "connect of [pools.NAME.deadlines]"),
    ("client_max_body_size", "access.content_max"),
    ("keepalive_timeout", "idle_timeout of [limits]"),
    ("ssl_certificate_key", "\"key\" of [[tls.certificates]]"),
    ("ssl_protocols", "version_min of [tls]"),
    ("min_version", "version_min of [tls]"),
    ("beresp", "cache.lifetimes.fixed, or cache.stale.while_revalidate"),
    ("bind", "\"address\" of [[listeners]]"),
    ("maxconn", "connections_max of [limits] or [pools.NAME]"),
    ("default_backend", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("timeout_client", "idle_timeout of [limits]"),
    ("timeout_server", "[pools.NAME.deadlines]"),
    ("timeout_connect", "connect of [pools.NAME.deadlines]"),
    ("option", "the option itself: config/edge.toml lists them"),
    ("entryPoints", "[[listeners]] with \"address\""),
    ("entrypoints", "[[listeners]] with \"address\""),
    ("http", "[sites.NAME] with \"hosts\", and [pools.NAME] with \"origins\""),
    ("routers", "[sites.NAME] with \"hosts\""),
    ("services", "[pools.NAME] with \"origins\""),
    ("service", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("certificatesResolvers", "[[tls.certificates]]: certificates are not fetched by ACME"),
    (
        "auto_https",
        "https_redirect, and [[tls.certificates]]: certificates are not fetched by ACME",
    ),
    ("acme", "[[tls.certificates]]: certificates are not fetched by ACME"),
    ("reverse_proxy", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("encode", "compression.codings"),
    ("route_config", "[[sites.NAME.rules]]"),
    ("routes", "[[sites.NAME.rules]]"),
    ("clusters", "[pools.NAME] with \"origins\""),
    ("cluster", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("http_port", "\"address\" of [[listeners]]"),
    ("https_port", "\"address\" of [[listeners]], and tls = true"),
    ("cache_mem", "store.memory"),
    ("cache_dir", "store.disk, and node.data_directory"),
    ("cache_peer", "\"origins\" of [pools.NAME]"),
    ("path_regex", "path_prefix or path_glob: there are no regular expressions"),
    ("regex", "path_prefix or path_glob: there are no regular expressions"),
    ("try_files", "\"origins\" of [pools.NAME]: files on disk are not served"),
    ("root", "\"origins\" of [pools.NAME]: files on disk are not served"),
];

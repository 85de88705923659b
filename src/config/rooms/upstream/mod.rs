//! Reads `[resolver]` and `[pools.NAME]`, a file for the options of one idea.

mod access;
mod balance;
mod connection;
mod health;
mod hedge;
mod members;
mod resolver;
mod retry;
mod sticky;

use geo::Coordinates;

use crate::config::names::check_plain_name;
use crate::config::reader::Section;
use crate::upstream::PoolDefinition;

use access::read_access;
use balance::{read_balance, read_policy};
use connection::read_connection;
use health::{read_check, read_health};
use hedge::read_hedge;
use members::read_origins;
use retry::read_retry;
use sticky::read_sticky;

pub(crate) use resolver::{read_resolver, refuse_resolver_options};

/// Reads the pools of a node at `node`.
pub(crate) fn read_pools(root: &Section<'_>, node: Option<Coordinates>) -> Vec<PoolDefinition> {
    let pools = root.named("pools").into_iter();
    pools.map(|(name, section)| read_pool(&name, &section, node)).collect()
}

fn read_pool(name: &str, section: &Section<'_>, node: Option<Coordinates>) -> PoolDefinition {
    let PoolDefinition { settings: mut pool, .. } = PoolDefinition::new(name, Vec::new());
    check_plain_name(section, "", name);
    pool.node = node;
    let (origins, sources) = read_origins(name, section);
    read_policy(section, &mut pool, &origins, &sources);
    read_balance(section, &mut pool);
    read_connection(section, &mut pool);
    read_retry(&section.section("retry"), &pool.deadlines, &mut pool.retry);
    read_hedge(&section.section("hedge"), &mut pool.hedge);
    read_health(&section.section("health"), &mut pool.health);
    pool.check = read_check(&section.section("check"));
    pool.sticky = read_sticky(&section.section("sticky"));
    read_access(section, &mut pool);
    PoolDefinition { settings: pool, origins, sources }
}

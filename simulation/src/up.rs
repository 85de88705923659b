//! The command `up`: prints a description of the running fleet with commands to try, and runs load.

use crate::fleet::Fleet;
use crate::plan::object::Class;
use crate::plan::place::{COUNTRIES, REGIONS, address_of};
use crate::plan::scenario::Scenario;
use crate::plan::{Plan, PlanStep};
use crate::run::send_request;
use std::fmt::Write as _;
use tokio::sync::Semaphore;
use tokio::time::sleep_until;

/// A description of the fleet: nodes, ports, origins, files, and commands to try.
pub async fn describe(fleet: &Fleet) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_fleet(&mut text, fleet).await;
    text
}

async fn write_fleet(text: &mut String, fleet: &Fleet) -> std::fmt::Result {
    writeln!(text, "\nA CDN of {} nodes is up. Press Ctrl-C to stop it.\n", fleet.nodes.len())?;
    writeln!(text, "  {:<16}{:<14}{:>7}{:>7}{:>7}", "node", "region", "http", "https", "admin")?;
    for node in &fleet.nodes {
        let (spec, ports) = (&node.spec, node.spec.ports);
        let region = REGIONS[spec.region].label;
        let (http, https, admin) = (ports.http, ports.https, ports.admin);
        writeln!(text, "  {:<16}{region:<14}{http:>7}{https:>7}{admin:>7}", spec.name)?;
    }
    writeln!(text)?;
    for (origin, region) in fleet.origins.iter().zip(&fleet.origin_regions) {
        writeln!(text, "  {:<30}in {}", origin.name, REGIONS[*region].label)?;
    }
    if let Some(port) = fleet.redis_port().await {
        writeln!(text, "  {:<30}redis-cli -p {port}", "redis")?;
    }
    let folder = fleet.folder().display();
    writeln!(text, "  {:<30}{folder}/NODE/{{edge.toml,log,data}}", "files")?;
    write_examples(text, fleet)
}

fn write_examples(text: &mut String, fleet: &Fleet) -> std::fmt::Result {
    let Some(first) = fleet.nodes.first() else { return Ok(()) };
    let last = fleet.nodes.last().unwrap_or(first);
    let path_of = |class| {
        let objects = &fleet.content.catalog.objects;
        objects.iter().find(|object| object.class == class).map(|object| object.path())
    };
    let page = path_of(Class::Static).unwrap_or_default();
    let world = path_of(Class::World).unwrap_or_default();
    let tokyo = COUNTRIES.iter().position(|country| country.code == "JP").unwrap_or(0);
    let address = address_of(tokyo, 1);
    let authority = fleet.folder().join("authority.pem");
    let authority = authority.display();
    let (last_https, first_https, admin) =
        (last.spec.ports.https, first.spec.ports.https, first.spec.ports.admin);
    writeln!(
        text,
        "\nTry these commands in another terminal:\n\n\
         \x20 # request a page from a node in Tokyo, twice: a miss, then a hit (see Cache-Status)\n\
         \x20 curl -so /dev/null -D - --cacert {authority} --connect-to ::127.0.0.1:{last_https} https://shop.test{page}\n\n\
         \x20 # ask Frankfurt as a client from Japan: X-Origin names the origin chosen for that country\n\
         \x20 curl -so /dev/null -D - --cacert {authority} --connect-to ::127.0.0.1:{first_https} \
         -H 'X-Forwarded-For: {address}' https://world.test{world}\n\n\
         \x20 # purge the page on all nodes, with a receipt from each; then request it in Tokyo again\n\
         \x20 curl -s '127.0.0.1:{admin}/purge?wait=all&timeout=2s' -d '{{\"url\": \"https://shop.test{page}\"}}'\n\n\
         \x20 # a node's dashboard (open it in a browser) and its metrics\n\
         \x20 http://127.0.0.1:{admin}/\n\
         \x20 curl -s 127.0.0.1:{admin}/metrics\n\n\
         Then run a scenario with faults and read its report (see docs/how-to):\n\n\
         \x20 cargo run --release -p simulation -- list\n\
         \x20 cargo run --release -p simulation -- run everything\n"
    )
}

/// Runs the scenario's load until the task is aborted. Each minute has its own plan.
pub async fn run_load(fleet: std::sync::Arc<Fleet>, scenario: Scenario, seed: u64) {
    let permits = std::sync::Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    for minute in 0.. {
        let catalog = &fleet.content.catalog;
        let plan = Plan::new(&scenario, catalog, seed.wrapping_add(minute), 60);
        let start = fleet.journal.now();
        for (number, (at, step)) in plan.steps.into_iter().enumerate() {
            sleep_until(fleet.journal.instant(start + at)).await;
            match step {
                PlanStep::Change(object) => fleet.content.change(catalog.get(object)),
                PlanStep::Request(request) => {
                    let Ok(permit) = permits.clone().acquire_owned().await else { return };
                    let fleet = fleet.clone();
                    tokio::spawn(async move {
                        drop((send_request(&fleet, number, request).await, permit));
                    });
                }
                _ => {}
            }
        }
        // `up` does not evaluate the journal, which would grow for as long as the fleet runs.
        *fleet.journal.facts() = crate::journal::Facts::default();
    }
}

const IN_FLIGHT_MAX: usize = 200;

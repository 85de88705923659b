//! `skerry geo update`: verifies a GeoIP database and puts it in the place of the one in use. Nodes notice the new
//! file and load it within seconds.
//!
//! ```text
//! FILE ── verify ──▶ copy to .NAME.new beside the target ── verify, sync ──▶ rename to NAME
//!                    the database of before stays as NAME.old
//! ```

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use geo::{Facts, Geo, Source};
use serde_json::{Value, json};

use super::output::{date_of, print, text_with_causes};

/// The arguments of `skerry geo update`.
#[derive(Debug, Args)]
pub(super) struct UpdateArguments {
    /// The new database, in mmdb format.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The configuration whose [geo] table names the database to replace.
    #[arg(long, value_name = "FILE", env = "SKERRY_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// The database to replace, or the place of the first one [default: the file in [geo]; of several, the one of the
    /// same type].
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Also replace a newer database, one of another type, or one that knows more.
    #[arg(long)]
    force: bool,
    /// Verify the new database, and replace nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Verifies the new database and puts it in place. `settings`: the [geo] table, if there is a configuration.
///
/// # Errors
/// Why the database is not put in place, in one line.
pub(super) fn run(
    arguments: &UpdateArguments,
    settings: Option<&geo::Settings>,
    now: SystemTime,
) -> Result<(), String> {
    let file = &arguments.file;
    let next = Examined::open(file)?;
    let target = target(arguments, settings, &next.facts)?;
    if same_file(file, &target) {
        let target = target.display();
        return Err(format!(
            "{target} is the database in use: name another file, which then replaces it"
        ));
    }
    // A database that cannot be read is no reason to keep it.
    let before = target.exists().then(|| Examined::open(&target).ok()).flatten();
    if let Some(before) = before.as_ref().filter(|_| !arguments.force) {
        next.check_against(before, file, &target)?;
    }
    let kept = match arguments.dry_run {
        true => None,
        false => put_in_place(file, &target)?,
    };
    let report = Report { arguments, target: &target, next: &next, kept: kept.as_deref(), now };
    print(&if arguments.json { format!("{:#}\n", report.json()) } else { report.text() })
}

/// A database that was read and verified.
struct Examined {
    facts: Facts,
    /// How many of [`KNOWN`] it has at their places.
    known: usize,
}

impl Examined {
    /// Reads the whole file and each of its records.
    fn open(path: &Path) -> Result<Self, String> {
        let databases = vec![Source::File(path.to_owned())];
        let geo = Geo::open(&geo::Settings { databases, locate_private: false });
        let geo = geo.map_err(|error| text_with_causes(&error))?;
        let is_known = |(address, country): &&(&str, &str)| {
            let address: IpAddr = address.parse().expect("the list has addresses");
            geo.locate(address).country.is_some_and(|found| found.as_str() == *country)
        };
        let facts = geo.facts().remove(0);
        Ok(Self { facts, known: KNOWN.iter().filter(is_known).count() })
    }

    /// # Errors
    /// The database is no successor of the one that it would replace.
    fn check_against(&self, before: &Self, file: &Path, target: &Path) -> Result<(), String> {
        let (file, target) = (file.display(), target.display());
        let (next_type, type_before) = (&self.facts.database_type, &before.facts.database_type);
        if next_type != type_before {
            return Err(format!(
                "{file} is a database of type {next_type:?}, and {target} one of type {type_before:?}: rules may lose the \
                 facts that they need; name the right file, or use --force"
            ));
        }
        if let (Some(next), Some(built)) = (self.facts.built, before.facts.built)
            && next < built
        {
            let (next, built) = (date_of(next), date_of(built));
            return Err(format!(
                "{file} was made on {next}, and {target} on {built}: download a newer one, or use --force"
            ));
        }
        if self.known * 2 < before.known {
            let (all, found, before) = (KNOWN.len(), self.known, before.known);
            return Err(format!(
                "{file} has {found} of {all} known addresses at their places, and {target} {before}: it is incomplete or \
                 about something else; download it again, or use --force"
            ));
        }
        Ok(())
    }
}

/// The database to replace.
fn target(
    arguments: &UpdateArguments,
    settings: Option<&geo::Settings>,
    next: &Facts,
) -> Result<PathBuf, String> {
    if let Some(into) = &arguments.into {
        return Ok(into.clone());
    }
    let settings = settings.ok_or("name the database to replace: --config FILE, or --into FILE")?;
    let files: Vec<&PathBuf> = settings.databases.iter().filter_map(file_of).collect();
    let is_alike = |path: &&&PathBuf| {
        Examined::open(path).is_ok_and(|it| it.facts.database_type == next.database_type)
    };
    match files[..] {
        [] => Err("geo.databases names no file: add the path at which the database is to be, or use --into FILE".to_owned()),
        [only] => Ok(only.clone()),
        _ => {
            let alike: Vec<_> = files.iter().filter(is_alike).collect();
            match alike[..] {
                [one] => Ok((*one).clone()),
                _ => Err(format!(
                    "geo.databases names {} files, {} of type {:?}: say with --into which one to replace",
                    files.len(),
                    alike.len(),
                    next.database_type
                )),
            }
        }
    }
}

fn file_of(source: &Source) -> Option<&PathBuf> {
    match source {
        Source::BuiltIn => None,
        Source::File(path) => Some(path),
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    let (one, other) = (one.canonicalize(), other.canonicalize());
    one.is_ok_and(|one| other.is_ok_and(|other| one == other))
}

/// Replaces `target` in one step. Returns the place of the database of before, if there was one.
fn put_in_place(file: &Path, target: &Path) -> Result<Option<PathBuf>, String> {
    let next = beside(target, ".", ".new");
    let failed = |act: &str, path: &Path, error: io::Error| {
        let (path, target) = (path.display(), target.display());
        format!("cannot {act} {path}: {error}; {target} is as before")
    };
    fs::copy(file, &next).map_err(|error| failed("write", &next, error))?;
    let verified = Examined::open(&next).and_then(|_| {
        let synced = File::open(&next).and_then(|written| written.sync_all());
        synced.map_err(|error| failed("write", &next, error))
    });
    let placed = verified.and_then(|()| {
        let old = keep_old(target)?;
        fs::rename(&next, target).map_err(|error| failed("rename", &next, error))?;
        Ok(old)
    });
    if placed.is_err() {
        // The file of this attempt; the error that matters is the one above.
        let _ = fs::remove_file(&next);
    }
    let old = placed?;
    let directory = target.parent().filter(|directory| !directory.as_os_str().is_empty());
    // The database is in place; a crash of the machine could still take the rename back.
    let _ = File::open(directory.unwrap_or(Path::new("."))).and_then(|it| it.sync_all());
    Ok(old)
}

/// Keeps the database of before under another name, while it stays in place.
fn keep_old(target: &Path) -> Result<Option<PathBuf>, String> {
    if !target.exists() {
        return Ok(None);
    }
    let old = beside(target, "", ".old");
    let removed = match fs::remove_file(&old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let linked = removed.and_then(|()| fs::hard_link(target, &old));
    linked.map_err(|error| {
        format!("cannot keep {} as {}: {error}", target.display(), old.display())
    })?;
    Ok(Some(old))
}

/// A path in the same directory.
fn beside(path: &Path, before: &str, after: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{before}{name}{after}"))
}

/// The outcome for people and programs.
struct Report<'a> {
    arguments: &'a UpdateArguments,
    target: &'a Path,
    next: &'a Examined,
    kept: Option<&'a Path>,
    now: SystemTime,
}

impl Report<'_> {
    fn json(&self) -> Value {
        let Self { arguments, target, next, kept, .. } = self;
        json!({
            "file": arguments.file,
            "target": target,
            "type": next.facts.database_type,
            "made": next.facts.built.map(date_of),
            "known_addresses": { "found": next.known, "all": KNOWN.len() },
            "replaced": !arguments.dry_run,
            "kept": kept,
        })
    }

    fn text(&self) -> String {
        let Self { arguments, target, next, kept, now } = self;
        let (file, target) = (arguments.file.display(), target.display());
        let made = next.facts.built.map(|built| format!(", made on {}", date_of(built)));
        let (found, all) = (next.known, KNOWN.len());
        let mut text = format!(
            "{file}: {}{}; {found} of {all} known addresses at their places\n",
            next.facts.database_type,
            made.unwrap_or_default()
        );
        let age = |built| now.duration_since(built).unwrap_or_default();
        if next.facts.built.is_some_and(|built| age(built) > AGE_MAX) {
            text.push_str(
                "warning: it is older than 90 days: networks move, so look for a newer one\n",
            );
        }
        let kept = kept.map(|kept| format!("; the one of before is {}", kept.display()));
        text.push_str(&match arguments.dry_run {
            true => format!("would replace {target}\n"),
            false => format!(
                "replaced {target}{}; running nodes load it within 5 s\n",
                kept.unwrap_or_default()
            ),
        });
        text
    }
}

/// Networks of universities and registries that have been where they are for decades.
const KNOWN: [(&str, &str); 7] = [
    ("193.0.6.139", "NL"),
    ("133.11.0.1", "JP"),
    ("143.248.1.1", "KR"),
    ("137.132.0.1", "SG"),
    ("202.12.29.1", "AU"),
    ("130.216.0.1", "NZ"),
    ("18.0.0.1", "US"),
];

/// Makers publish new databases every week or month.
const AGE_MAX: Duration = Duration::from_secs(90 * 86_400);

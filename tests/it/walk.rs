//! Types every command of the documentation as it is written, page by page.
//!
//! A page's `sh` blocks run in order in one shell, and a `text` block after one of them lists lines that its output
//! must contain in this order (`…` stands for anything). The shell has namespaces of its own for users, network,
//! processes and mounts: it is root there, its ports are all free, and what it starts ends with it. It has an empty
//! folder with the checkout's `config`, the binary of this build on its path, an origin at 127.0.0.1:8000 (walk/origin.py), and `/etc/hosts`
//! with the names below.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::markdown::{self, Block, Mark, blocks};

/// Names that the pages use for a site and its origin. They lead to loopback.
const HOSTS: &str = "127.0.0.1 localhost www.example.org example.org shop.example.org \
    static.example.org api.example.org origin.example.org";

#[test]
fn every_command_of_the_documentation_works_as_written() {
    if !namespaces_are_permitted() {
        eprintln!("skipped: this system permits no user namespaces (unshare --user)");
        return;
    }
    let mut pages = markdown::pages();
    // SKERRY_PAGE=quickstart walks the pages with this word in their path.
    let word = std::env::var("SKERRY_PAGE").unwrap_or_default();
    pages.retain(|page| page.to_string_lossy().contains(&word) && blocks(page).iter().any(is_run));
    // A few at a time: each page has a node.
    let failures: Vec<String> = pages
        .chunks(3)
        .flat_map(|chunk| {
            std::thread::scope(|scope| {
                let walks: Vec<_> = chunk.iter().map(|page| scope.spawn(|| walk(page))).collect();
                walks.into_iter().filter_map(|walk| walk.join().unwrap().err()).collect::<Vec<_>>()
            })
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn is_run(block: &Block) -> bool {
    block.language == "sh" && block.mark != Some(Mark::NotRun)
}

/// Prepares the namespaces: the loopback device, and folders that are the page's own.
const MOUNTS: &str = "set -eu
ip link set lo up
mount -t proc proc /proc
mkdir -p \"$1/etc\" \"$1/overlay\"
mount -t overlay -o lowerdir=/etc,upperdir=\"$1/etc\",workdir=\"$1/overlay\" overlay /etc
mount -t tmpfs tmpfs /var/cache
mount -t tmpfs tmpfs /var/log
";

fn namespaces_are_permitted() -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = unshare().args(["bash", "-c", MOUNTS, "bash"]).arg(folder.path()).output();
    output.is_ok_and(|output| output.status.success())
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    let namespaces = ["--user", "--map-root-user", "--net", "--mount", "--pid"];
    command.args(namespaces).args(["--fork", "--kill-child"]);
    command
}

/// Runs the commands of a page.
///
/// # Errors
/// The command that failed or whose output is not as written, with its line and output.
fn walk(page: &Path) -> Result<(), String> {
    let blocks = blocks(page);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let results = folder.path().join("results");
    fs::create_dir_all(&results).expect("a folder");
    fs::create_dir_all(folder.path().join("work")).expect("a folder");
    let file = folder.path().join("script");
    fs::write(&file, script(&blocks, folder.path())).expect("a script");
    let status = unshare()
        .args(["timeout", "120", "bash"])
        .args([&file, folder.path()])
        .current_dir(folder.path().join("work"))
        .stdin(Stdio::null())
        .status()
        .expect("unshare runs");
    let output =
        |index: usize| fs::read_to_string(results.join(index.to_string())).unwrap_or_default();
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| is_run(block)) {
        let place = format!("{}:{}", page.display(), block.line);
        let was_run = results.join(index.to_string()).exists();
        let has_ended = results.join(format!("{index}.ended")).exists();
        if !was_run || !has_ended {
            let output = output(index);
            return Err(format!("{place}: failed\n{}\n{output}", block.content));
        }
        if let Some(expected) = blocks.get(index + 1).filter(|next| next.language == "text") {
            missing_line(&expected.content, &output(index)).map_or(Ok(()), |line| {
                Err(format!(
                    "{place}: the output has no line\n  {line}\nafter those above it:\n{}",
                    output(index)
                ))
            })?;
        }
    }
    match status.success() {
        true => Ok(()),
        false => Err(format!("{}: the shell ended with {status}", page.display())),
    }
}

/// The first expected line that the output does not have after the ones before it.
fn missing_line<'a>(expected: &'a str, output: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    expected
        .lines()
        .filter(|line| !line.trim().is_empty() && line.trim() != "…")
        .find(|line| !lines.any(|found| is_like(line.trim(), found.trim())))
}

/// The line without the number behind `ttl=`, and that number.
fn split_ttl(line: &str) -> (String, Option<i64>) {
    let Some((before, after)) = line.split_once("ttl=") else { return (line.to_owned(), None) };
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    let number = after[..after.len() - rest.len()].parse().ok();
    (format!("{before}ttl={rest}"), number)
}

/// Whether a line is as the page shows it. A time to live may be some seconds less: the machine may be slow.
fn is_like(pattern: &str, line: &str) -> bool {
    if let (pattern, Some(shown)) = split_ttl(pattern) {
        let (line, found) = split_ttl(line);
        return found.is_some_and(|found| (found - shown).abs() <= SLOW_S)
            && has_pieces(&pattern, &line);
    }
    has_pieces(pattern, line)
}

/// Seconds that a command of a page may take longer than on a fast machine.
const SLOW_S: i64 = 20;

/// Whether a line has the pieces around each `…` in order; the first at its begin, the last at its end.
fn has_pieces(pattern: &str, line: &str) -> bool {
    let pieces: Vec<&str> = pattern.split('…').collect();
    let Some(mut rest) = line.strip_prefix(pieces[0]) else { return false };
    let [_, middle @ .., last] = &pieces[..] else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// The script of a page: each block writes its output to `results/INDEX`, and `results/INDEX.ended` if it ended
/// as it should.
fn script(blocks: &[Block], folder: &Path) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let binaries = Path::new(env!("CARGO_BIN_EXE_skerry")).parent().expect("a folder").display();
    let results = folder.join("results").display().to_string();
    let mut script = format!(
        "{MOUNTS}echo {HOSTS} >/etc/hosts\n\
         export PATH={binaries}:$PATH HOME=$PWD\n\
         ln -s {root}/config config\n\
         python3 {root}/tests/it/walk/origin.py 8000 >/dev/null 2>&1 &\n\
         until curl -s -o /dev/null http://127.0.0.1:8000/; do sleep 0.05; done\n"
    );
    for (index, block) in blocks.iter().enumerate() {
        let Block { content, mark, language, .. } = block;
        let to = format!("{results}/{index}");
        let shown = blocks.get(index + 1).filter(|next| next.language == "text");
        match mark {
            Some(Mark::File(name)) => {
                write!(script, "cat >{name} <<'THE_END'\n{content}THE_END\n").expect("a String");
            }
            Some(Mark::KeepsRunning) if language == "sh" => {
                writeln!(script, "{{ {content}}} >{to} 2>&1 &").expect("a String");
                let last = shown.and_then(|next| next.content.lines().last()).unwrap_or_default();
                let longest = last.split('…').max_by_key(|piece| piece.len()).unwrap_or_default();
                let quoted = longest.trim().replace('\'', "'\\''");
                write!(
                    script,
                    "until grep -qF -- '{quoted}' {to}; do sleep 0.05; done\n:>{to}.ended\n"
                )
                .expect("a String");
            }
            Some(Mark::Before) => {
                write!(
                    script,
                    "{{ {content}}} >{to} 2>&1 &\n\
                     until curl -sf -o /dev/null http://127.0.0.1:9180/readyz; do sleep 0.05; done\n\
                     :>{to}.ended\n"
                )
                .expect("a String");
            }
            Some(Mark::Fails) if language == "sh" => {
                write!(script, "if {{ {content}}} >{to} 2>&1; then exit 1; fi\n:>{to}.ended\n")
                    .expect("a String");
            }
            _ if is_run(block) => {
                write!(script, "{{ {content}}} >{to} 2>&1\n:>{to}.ended\n").expect("a String");
            }
            _ => {}
        }
    }
    script
}

//! Reads the fenced blocks of a Markdown page, each with the HTML comment before it.

use std::fs;
use std::path::{Path, PathBuf};

/// The pages of `docs` and those beside it.
pub fn pages() -> Vec<PathBuf> {
    let others = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "deploy/README.md",
        "deploy/ansible/README.md",
        "tests/README.md",
    ];
    others.iter().map(PathBuf::from).chain(pages_in(Path::new("docs"))).collect()
}

/// All Markdown files of a folder and the folders in it, sorted.
pub fn pages_in(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.expect("a folder that can be read").path();
        match path.is_dir() {
            true => pages.extend(pages_in(&path)),
            false if path.extension().is_some_and(|end| end == "md") => pages.push(path),
            false => {}
        }
    }
    pages.sort();
    pages
}

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// The first word after the fence: `sh`, `text`, `toml`, …
    pub language: String,
    pub content: String,
    pub mark: Option<Mark>,
    /// The number of the fence's line, from 1.
    pub line: usize,
}

/// Tells the tests how to treat the block that follows. Readers do not see it.
#[derive(Debug, PartialEq, Eq)]
pub enum Mark {
    /// `<!-- file: NAME -->`: the reader saves the block as this file.
    File(String),
    /// `<!-- keeps running -->`: the command of a terminal of its own.
    KeepsRunning,
    /// `<!-- fails -->`: the command is shown because it fails.
    Fails,
    /// `<!-- not run: REASON -->`.
    NotRun,
    /// `<!-- before: COMMAND -->`: starts a node that the page takes for granted; a block of its own.
    Before,
}

/// The blocks of a page, in order.
///
/// # Panics
/// The page cannot be read, has a fence without an end, or a comment before a fence that is no [`Mark`].
pub fn blocks(page: &Path) -> Vec<Block> {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
    let (mut blocks, mut mark) = (Vec::new(), None);
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let place = format!("{}:{}", page.display(), number + 1);
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            let mut content = String::new();
            loop {
                let (_, line) = lines.next().unwrap_or_else(|| panic!("{place}: no end"));
                if line.trim() == "```" {
                    break;
                }
                let is_indented = line.len() >= indent && line.is_char_boundary(indent);
                content.push_str(if is_indented { &line[indent..] } else { line });
                content.push('\n');
            }
            let mark = mark.take().map(|comment: &str| read_mark(comment, &place));
            blocks.push(Block { language: language.to_owned(), content, mark, line: number + 1 });
        } else if let Some(comment) = line.strip_prefix("<!--") {
            mark = comment.strip_suffix("-->").map(str::trim);
            if let Some(command) = mark.and_then(|comment| comment.strip_prefix("before: ")) {
                let (language, content) = ("sh".to_owned(), format!("{command}\n"));
                let before = Some(Mark::Before);
                blocks.push(Block { language, content, mark: before, line: number + 1 });
                mark = None;
            }
        } else if !line.is_empty() {
            mark = None;
        }
    }
    blocks
}

fn read_mark(comment: &str, place: &str) -> Mark {
    match comment.split_once(": ").unwrap_or((comment, "")) {
        ("file", name) if !name.is_empty() => Mark::File(name.to_owned()),
        ("keeps running", "") => Mark::KeepsRunning,
        ("fails", "") => Mark::Fails,
        ("not run", reason) if !reason.is_empty() => Mark::NotRun,
        _ => panic!("{place}: unknown mark {comment:?}: expected one of harness/markdown.rs"),
    }
}

//! The files of a configuration: the main file and those that its `include` names.
//!
//! They are joined to one text, in which TOML itself finds a table that two files set. Each place in the
//! text belongs to one file, so that a mistake is reported in its own file, and a relative path starts at
//! the directory of the file that has it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use super::mistakes::{self, Mistake, Mistakes};
use super::{environment, syntax};

/// The files as they were read, the main file first. Without a `--config`, none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sources(Vec<SourceFile>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SourceFile {
    path: PathBuf,
    text: String,
}

/// The files joined to one text of valid TOML, with the environment variables filled in.
#[derive(Clone, Debug)]
pub(super) struct Document {
    text: String,
    parts: Vec<Part>,
}

/// A file's part of the text, from `start` to the next part.
#[derive(Clone, Debug)]
struct Part {
    start: usize,
    /// The file's name in messages.
    name: String,
    /// Where its relative paths start.
    base: PathBuf,
}

impl Sources {
    /// Reads the file and, if it can be parsed, those that it includes.
    ///
    /// # Errors
    /// A file cannot be read, or an `include` names none.
    pub(crate) fn read(main: &Path) -> Result<Self, Mistakes> {
        let mut files = vec![SourceFile::read(main, None)?];
        let text = &files[0].text;
        let (table, _) = DeTable::parse_recoverable(text);
        let mut wrong = Vec::new();
        let mut included = Vec::new();
        if let Some(value) = table.get_ref().get("include") {
            let patterns = match value.get_ref() {
                DeValue::Array(patterns) => patterns.iter().collect(),
                _ => vec![value],
            };
            for value in patterns {
                // Another type is reported by the reader.
                let DeValue::String(pattern) = value.get_ref() else { continue };
                match matching(main, pattern) {
                    Ok(paths) => {
                        included.extend(paths.into_iter().map(|path| (path, value.span())))
                    }
                    Err(message) => wrong.push(mistake(main, text, &value.span(), message)),
                }
            }
        }
        included.sort_by(|one, other| one.0.cmp(&other.0));
        included.dedup_by(|one, other| one.0 == other.0);
        if included.len() > INCLUDED_MAX {
            let message =
                format!("include: {} files match, at most {INCLUDED_MAX} are read", included.len());
            return Err(Mistakes(vec![mistake(main, text, &included[0].1, message)]));
        }
        let here = main.canonicalize().ok();
        included.retain(|(path, _)| path.canonicalize().ok() != here);
        let mut more = Vec::new();
        for (path, span) in included {
            match SourceFile::read(&path, Some((main, text, &span))) {
                Ok(file) => more.push(file),
                Err(Mistakes(mistakes)) => wrong.extend(mistakes),
            }
        }
        files.append(&mut more);
        if wrong.is_empty() { Ok(Self(files)) } else { Err(Mistakes(wrong)) }
    }

    /// The names of the files, the main file first.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|file| file.path.display().to_string()).collect()
    }

    /// Fills in the environment variables and joins the files.
    ///
    /// # Errors
    /// Every variable that cannot be filled in, and every mistake of TOML syntax.
    pub(super) fn document(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Document, Mistakes> {
        let mut document = Document { text: String::new(), parts: Vec::new() };
        let mut wrong = Vec::new();
        for SourceFile { path, text } in &self.0 {
            let name = path.display().to_string();
            match environment::fill_in(text, &name, &variable) {
                Ok(filled) => {
                    wrong.extend(file_mistakes(&name, &filled, !document.parts.is_empty()));
                    let base = path.parent().unwrap_or(Path::new("")).to_owned();
                    document.push(name, base, &filled);
                }
                Err(Mistakes(mistakes)) => wrong.extend(mistakes),
            }
        }
        if wrong.is_empty() {
            wrong = document.mistakes();
        }
        if wrong.is_empty() { Ok(document) } else { Err(Mistakes(wrong)) }
    }
}

impl SourceFile {
    /// Reads a file that `include` at this place of another file names, or the main file.
    fn read(path: &Path, included: Option<(&Path, &str, &Range<usize>)>) -> Result<Self, Mistakes> {
        let name = path.display().to_string();
        let wrong = |message: String| Mistakes(vec![Mistake::without_place(&name, message)]);
        let bytes = std::fs::read(path).map_err(|error| match included {
            None => wrong(format!("cannot read the file: {}", unreadable(&error))),
            Some((main, text, span)) => {
                let message = format!("include: cannot read {name}: {}", unreadable(&error));
                Mistakes(vec![mistake(main, text, span, message)])
            }
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
            let kind = match error.as_bytes() {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it is UTF-16".to_owned(),
                _ => format!("line {line} has an invalid byte"),
            };
            wrong(format!("the file is not UTF-8 text: {kind}; save it as UTF-8"))
        })?;
        Ok(Self { path: path.to_owned(), text })
    }
}

/// Why a file cannot be read, and what to do.
pub(super) fn unreadable(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "create it, or correct the path",
        io::ErrorKind::PermissionDenied => "let the user of the node read it",
        io::ErrorKind::IsADirectory => "name a file in this directory",
        _ => "choose another file",
    };
    format!("{error}; {remedy}")
}

/// The files that a pattern of `include` names, sorted.
fn matching(main: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let base = main.parent().unwrap_or(Path::new(""));
    let whole = base.join(pattern).display().to_string();
    let paths = glob::glob(&whole)
        .map_err(|error| format!("include: {pattern:?} is no pattern of paths: {}", error.msg))?;
    let paths: Vec<PathBuf> = paths.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    // As in other servers, a directory without files is no mistake, and one that is not there is one.
    let missing = match whole.find(['*', '?', '[']) {
        None => paths.is_empty().then_some(("file", &*whole)),
        Some(at) => {
            let directory = &whole[..whole[..at].rfind('/').unwrap_or(0)];
            let is_missing = !directory.is_empty() && !Path::new(directory).is_dir();
            is_missing.then_some(("directory", directory))
        }
    };
    match missing {
        Some((_, path)) if Path::new(path).is_dir() => Err(format!(
            "include: {path} is a directory: write {:?} for the files in it",
            format!("{}/*.toml", pattern.trim_end_matches('/'))
        )),
        Some((kind, path)) => {
            Err(format!("include: no {kind} {path}: create it, or remove it from \"include\""))
        }
        None => Ok(paths),
    }
}

fn mistake(path: &Path, text: &str, span: &Range<usize>, message: String) -> Mistake {
    let place = Some(mistakes::place(text, span));
    Mistake { source: path.display().to_string(), place, message }
}

/// Mistakes of syntax within one file, and options of an included file that would belong to no table.
fn file_mistakes(name: &str, text: &str, is_included: bool) -> Vec<Mistake> {
    let at = |span: &Range<usize>, message: String| Mistake {
        source: name.to_owned(),
        place: Some(mistakes::place(text, span)),
        message,
    };
    let line_of = |offset: usize| format!("line {}", mistakes::place(text, &(offset..offset)).0);
    let mut wrong: Vec<Mistake> = syntax::mistakes(text, line_of)
        .iter()
        .map(|(span, message)| at(span, message.clone()))
        .collect();
    let mut offset = 0;
    let first = text.split_inclusive('\n').find_map(|line| {
        let start = offset + line.len() - line.trim_start().len();
        offset += line.len();
        let line = line.trim();
        (!line.is_empty() && !line.starts_with('#')).then_some((start, line))
    });
    if is_included
        && wrong.is_empty()
        && let Some((start, line)) = first
        && !line.starts_with('[')
    {
        let message = match line.split('=').next().map(str::trim) {
            Some("include") => {
                "an included file includes no other files: list them in the main file"
            }
            _ => {
                "an included file begins with a table, such as [sites.NAME]: options without a table belong in the main file"
            }
        };
        wrong.push(at(&(start..start), message.to_owned()));
    }
    wrong
}

impl Document {
    /// A text that comes from one file or from none.
    pub(super) fn single(name: &str, base: &Path, text: &str) -> Self {
        let mut document = Self { text: String::new(), parts: Vec::new() };
        document.push(name.to_owned(), base.to_owned(), text);
        document
    }

    fn push(&mut self, name: String, base: PathBuf, text: &str) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.parts.push(Part { start: self.text.len(), name, base });
        self.text.push_str(text);
    }

    /// The joined text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The name of the main file, or of what stands for it.
    pub(super) fn name(&self) -> &str {
        self.parts.first().map_or("flags", |part| &part.name)
    }

    /// A mistake at a place in the text.
    pub(super) fn mistake(&self, span: &Range<usize>, message: String) -> Mistake {
        let part = self.part(span.start);
        let end = self.text.len();
        let within =
            span.start.min(end) - part.start..span.end.min(end).max(part.start) - part.start;
        let place = Some(mistakes::place(&self.text[part.start..], &within));
        Mistake { source: part.name.clone(), place, message }
    }

    /// Resolves a path that is written at this place.
    pub(super) fn resolve(&self, span: &Range<usize>, path: &str) -> PathBuf {
        self.part(span.start).base.join(path)
    }

    /// Mistakes of syntax in the whole text, such as a table that two files have.
    pub(super) fn mistakes(&self) -> Vec<Mistake> {
        let first_at = |at: usize| {
            let Mistake { source, place, .. } = self.mistake(&(at..at), String::new());
            let line = place.map_or(1, |(line, _)| line);
            if self.parts.len() > 1 { format!("{source}:{line}") } else { format!("line {line}") }
        };
        let wrong = syntax::mistakes(&self.text, first_at);
        wrong.into_iter().map(|(span, message)| self.mistake(&span, message)).collect()
    }

    fn part(&self, at: usize) -> &Part {
        let after = self.parts.partition_point(|part| part.start <= at);
        &self.parts[after.saturating_sub(1)]
    }
}

/// Files that `include` may name: one for each of many sites.
const INCLUDED_MAX: usize = 4096;

//! The size of the repository, the length of its files, and where unsafe code may be.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::{self, Package};
use crate::{Error, Report};

/// All files of the repository together, history aside. A clone should take seconds.
const MOST_BYTES: u64 = 40_000_000;

/// A file beyond this many lines wants to be two.
const WARN_LINES: usize = 700;

/// A file beyond this many lines is refused.
const MOST_LINES: usize = 1200;

/// Files that are long because they are tables, each with the reason why the table is not split.
const TABLES: &[(&str, &str)] = &[];

/// What people write by hand. Data (JSON, model samples, lock files) may be as long as it needs.
const SOURCE_EXTENSIONS: &[&str] = &["rs", "py", "sh", "comp", "glsl", "wgsl", "h", "c", "cpp", "s"];

/// The crates that may hold unsafe code: the memory map and aligned buffers, and the devices.
const MAY_BE_UNSAFE: &[&str] = &["tensor", "cpu", "vulkan", "xdna"];

const FORBID: &str = "#![forbid(unsafe_code)]";

/// Checks the files and the crates.
pub(crate) fn run() -> Result<Report, Error> {
    let files = workspace::files()?;
    let mut report = Report::default();
    let mut total_bytes = 0;
    let mut sources = 0;
    for path in &files {
        let bytes = read(path)?;
        total_bytes += bytes.len() as u64;
        if is_source(path, &bytes) {
            sources += 1;
            match judge_length(path, lines(&bytes), TABLES) {
                Length::Fine => {}
                Length::Long(line) => report.warnings.push(line),
                Length::TooLong(line) => report.errors.push(line),
            }
        }
    }
    report.errors.extend(judge_total(total_bytes));
    report.errors.extend(stale(TABLES, &files));
    let packages = workspace::members()?;
    for (package, root) in packages.iter().flat_map(|package| package.roots.iter().map(move |root| (package, root))) {
        report.errors.extend(judge_unsafe(package, root, &String::from_utf8_lossy(&read(root)?)));
    }
    let (count, megabytes) = (files.len(), total_bytes as f64 / 1e6);
    report.summary =
        format!("{count} files of {megabytes:.1} MB, {sources} of them source, none over {MOST_LINES} lines");
    Ok(report)
}

/// A path that is relative is relative to the root of the repository.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(workspace::root().join(path)).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Source by its name, or, for the scripts without an extension, by its first characters.
fn is_source(path: &Path, bytes: &[u8]) -> bool {
    let extension = path.extension().and_then(|it| it.to_str());
    extension.map_or(bytes.starts_with(b"#!"), |extension| SOURCE_EXTENSIONS.contains(&extension))
}

/// Lines, of which the last may lack its end.
fn lines(bytes: &[u8]) -> usize {
    bytes.split_inclusive(|byte| *byte == b'\n').count()
}

#[derive(Debug, PartialEq)]
enum Length {
    Fine,
    Long(String),
    TooLong(String),
}

fn judge_length(path: &Path, lines: usize, tables: &[(&str, &str)]) -> Length {
    if tables.iter().any(|(table, _)| Path::new(table) == path) {
        return Length::Fine;
    }
    let path = path.display();
    if lines > MOST_LINES {
        Length::TooLong(format!(
            "{path}: {lines} lines, {MOST_LINES} at most: split it, or list it in TABLES of xtask/src/repository.rs"
        ))
    } else if lines > WARN_LINES {
        Length::Long(format!("{path}: {lines} lines, more than {WARN_LINES}"))
    } else {
        Length::Fine
    }
}

fn judge_total(total_bytes: u64) -> Option<String> {
    (total_bytes >= MOST_BYTES).then(|| {
        let (total, most) = (total_bytes as f64 / 1e6, MOST_BYTES as f64 / 1e6);
        format!("the files of the repository have {total:.1} MB, and must stay under {most:.0} MB")
    })
}

/// Entries of the table whose file is gone.
fn stale(tables: &[(&str, &str)], files: &[PathBuf]) -> Vec<String> {
    let gone = tables.iter().filter(|(table, _)| !files.iter().any(|file| file == Path::new(table)));
    gone.map(|(table, _)| format!("{table} is in TABLES of xtask/src/repository.rs, and is not in the repository"))
        .collect()
}

/// The compiler does the work; this only makes sure that it was told to.
fn judge_unsafe(package: &Package, root: &Path, source: &str) -> Option<String> {
    if MAY_BE_UNSAFE.contains(&package.name.as_str()) || source.lines().any(|line| line.trim_end() == FORBID) {
        return None;
    }
    let root = root.strip_prefix(workspace::root()).unwrap_or(root);
    Some(format!("{}: crate {} must have {FORBID}", root.display(), package.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let tables = [("src/grid.rs", "constants of the format")];
        for (path, lines, expected) in [
            ("src/lib.rs", 0, "fine"),
            ("src/lib.rs", 700, "fine"),
            ("src/lib.rs", 701, "long"),
            ("src/lib.rs", 1200, "long"),
            ("src/lib.rs", 1201, "too long"),
            ("src/grid.rs", 9000, "fine"),
            ("other/src/grid.rs", 9000, "too long"),
        ] {
            let found = match judge_length(Path::new(path), lines, &tables) {
                Length::Fine => "fine",
                Length::Long(_) => "long",
                Length::TooLong(_) => "too long",
            };
            assert_eq!(found, expected, "{path} with {lines} lines");
        }
    }

    #[test]
    fn lines_are_counted_with_and_without_the_last_end() {
        for (text, expected) in [("", 0), ("a", 1), ("a\n", 1), ("a\nb", 2), ("\n\n", 2)] {
            assert_eq!(lines(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn sources() {
        for (path, start, expected) in [
            ("a/b.rs", "", true),
            ("shaders/gemv.comp", "", true),
            ("test", "#!/usr/bin/env bash", true),
            ("LICENSE-MIT", "MIT License", false),
            ("Cargo.lock", "", false),
            ("vectors.json", "{", false),
        ] {
            assert_eq!(is_source(Path::new(path), start.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn the_total_is_bounded() {
        assert_eq!(judge_total(MOST_BYTES - 1), None);
        assert!(judge_total(MOST_BYTES).is_some());
    }

    #[test]
    fn a_table_that_is_gone_is_reported() {
        let files = [PathBuf::from("src/grid.rs")];
        assert_eq!(stale(&[("src/grid.rs", "")], &files), [""; 0]);
        assert_eq!(stale(&[("src/gone.rs", "")], &files).len(), 1);
    }

    #[test]
    fn unsafe_code_is_forbidden_by_an_attribute() {
        for (name, source, expected) in [
            ("files", "//! Page.\n\n#![forbid(unsafe_code)]\nmod a;\n", true),
            ("files", "#![forbid(unsafe_code)]\r\n", true),
            ("files", "//! #![forbid(unsafe_code)]\n", false),
            ("files", "// #![forbid(unsafe_code)]\n", false),
            ("files", "#![deny(unsafe_code)]\n", false),
            ("files", "", false),
            ("cpu", "", true),
        ] {
            let (name, version) = (name.to_owned(), String::new());
            let package = Package { name, version, license: None, arrows: Vec::new(), roots: Vec::new() };
            let found = judge_unsafe(&package, Path::new("src/lib.rs"), source);
            assert_eq!(found.is_none(), expected, "{}: {source:?}", package.name);
        }
    }
}

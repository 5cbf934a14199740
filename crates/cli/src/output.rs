//! Printing: numbers for people, text that a terminal can be trusted with, files written whole or not at all.

use std::{
    borrow::Cow,
    fmt, fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
/// Bytes in binary units.
pub(crate) use engine::bytes_text as bytes;

/// Writes to stdout and flushes, so that text appears as it comes.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a value as indented JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(&(serde_json::to_string_pretty(value)? + "\n"))?)
}

/// Writes a line to stderr. Where nobody listens, nothing is lost.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A line on stderr that stands back behind the answer, where the terminal can show that.
pub(crate) fn note_dim(text: &str) {
    if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        note(format_args!("\x1b[2m{text}\x1b[0m"));
    } else {
        note(text);
    }
}

/// A count with its unit in thousands: `134.5 M`.
pub(crate) fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Bytes a second in decimal units, as memory is sold.
pub(crate) fn gb_per_s(bytes_per_s: f64) -> String {
    format!("{:.1} GB/s", bytes_per_s / 1e9)
}

/// A share of a physical limit, with what it is a share of. Beyond the limit it is the measurement that is wrong.
pub(crate) fn percent_of(percent: f64, roof: &str) -> String {
    let error = if percent > 100.0 { " (measuring error)" } else { "" };
    format!("{percent:.0} % of {roof}{error}")
}

/// Text from a model or a file on one line, without characters that steer a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// What a terminal may be sent of a text: everything but control characters other than line ends and tabs. A model can
/// write escape sequences as well as words, and some of them do more than colour.
pub(crate) fn for_terminal(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(steers) { Cow::Owned(text.replace(steers, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Whether a result can be written to `path`, asked before hours are spent on computing it.
pub(crate) fn check_writable(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    anyhow::ensure!(!path.is_dir(), "cannot write {shown}: it is a directory");
    anyhow::ensure!(path.file_name().is_some(), "cannot write {shown}: it names no file");
    let parent = parent(path);
    anyhow::ensure!(parent.is_dir(), "cannot write {shown}: there is no directory {}", parent.display());
    Ok(())
}

/// Writes a file through a temporary one beside it, so that the name never stands for half a file. `write` gets the path
/// to write to. What is no regular file (`/dev/stdout`) is written directly.
///
/// # Errors
/// What `write` and the file system report; the temporary file is removed.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    check_writable(path)?;
    let failed = || format!("cannot write {}", path.display());
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return write(path).with_context(failed);
    }
    // The file that a link points to is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = Temporary(parent(&target).join(format!(".{name}.{}.tmp", std::process::id())));
    write(&temporary.0).with_context(failed)?;
    fs::File::open(&temporary.0).and_then(|file| file.sync_all()).with_context(failed)?;
    fs::rename(&temporary.0, &target).with_context(failed)
}

/// Writes JSON and a line end to a file, whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    write_whole(path, |path| Ok(fs::write(path, text)?))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
}

/// A file that is removed unless it was renamed away.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed away when all went well; nothing more can be done when it did not.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(98_362_432), "93.8 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(count(134_515_008), "134.5 M");
        assert_eq!(count(999), "999");
        assert_eq!(gb_per_s(11.24e9), "11.2 GB/s");
        assert_eq!(percent_of(71.2, "it"), "71 % of it");
        assert_eq!(percent_of(131.0, "it"), "131 % of it (measuring error)");
    }

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(for_terminal("a\n\tb é"), "a\n\tb é");
        assert_eq!(for_terminal("\x1b]52;c;x\x07\r"), "\u{fffd}]52;c;x\u{fffd}\u{fffd}");
        assert_eq!(one_line("a\nb\x07"), "a b\u{fffd}");
    }

    #[test]
    fn files_are_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        let failed = write_whole(&path, |temporary| {
            fs::write(temporary, "half")?;
            anyhow::bail!("no power")
        });
        assert!(failed.unwrap_err().to_string().contains("a.json"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
        for wrong in [dir.path().join("none/a"), dir.path().to_path_buf()] {
            assert!(check_writable(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_json(&link, &1).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "1\n");
    }
}

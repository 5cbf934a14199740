//! Printing: numbers for people, text that a terminal can be trusted with, files written whole or not at all.

use std::{
    borrow::Cow,
    fmt, fs,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
/// Bytes in binary units.
pub(crate) use engine::bytes_text as bytes;

/// Standard output could not be written. A type of its own: that its reader went away is no failure, and of any other
/// file it is.
#[derive(Debug)]
pub(crate) struct StdoutError(pub(crate) io::Error);

impl fmt::Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for StdoutError {}

/// Writes to stdout and flushes, so that text appears as it comes.
pub(crate) fn print(text: &str) -> Result<(), StdoutError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(StdoutError)
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

/// A result on its way to a file: written to a temporary one beside it, which gets the name at the end, so that the name
/// never stands for half a file. It is made before the work whose result it takes, so that a place which cannot be
/// written is known then. Dropped, it leaves nothing. What is no regular file (`/dev/stdout`) is written directly.
pub(crate) struct Output {
    /// As the user named it.
    path: PathBuf,
    file: BufWriter<fs::File>,
    /// Where it becomes one by a new name: the temporary file and that name.
    rename: Option<(Unfinished, PathBuf)>,
}

impl Output {
    /// Makes the temporary file.
    ///
    /// # Errors
    /// Where the path cannot be written to.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Output> {
        let shown = path.display();
        anyhow::ensure!(!path.is_dir(), "cannot write {shown}: it is a directory");
        anyhow::ensure!(path.file_name().is_some(), "cannot write {shown}: it names no file");
        let failed = || format!("cannot write {shown}");
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let file = fs::File::options().write(true).open(path).with_context(failed)?;
            return Ok(Output { path: path.to_path_buf(), file: BufWriter::new(file), rename: None });
        }
        // The file that a link points to is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        anyhow::ensure!(parent.is_dir(), "cannot write {shown}: there is no directory {}", parent.display());
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let (unfinished, file) =
            Unfinished::create(parent.join(format!(".{name}.{}.tmp", std::process::id()))).with_context(failed)?;
        let rename = Some((unfinished, target));
        Ok(Output { path: path.to_path_buf(), file: BufWriter::new(file), rename })
    }

    /// Writes more of it.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// It is whole: gives it its name.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        self.file.flush().with_context(failed)?;
        if let Some((unfinished, target)) = self.rename.take() {
            self.file.get_ref().sync_all().with_context(failed)?;
            unfinished.rename(&target).with_context(failed)?;
        }
        Ok(())
    }

    /// JSON and a line end, and no more.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn finish_json(mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.write((serde_json::to_string_pretty(value)? + "\n").as_bytes())?;
        self.finish()
    }
}

/// Temporary files of this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A temporary file, removed when this is dropped and when Ctrl-C ends the program.
struct Unfinished(PathBuf);

impl Unfinished {
    fn create(path: PathBuf) -> io::Result<(Unfinished, fs::File)> {
        // Where there is no handler, Ctrl-C leaves the file, which hurts nobody.
        let _ = crate::interrupt::handle();
        let mut unfinished = unfinished();
        // Of a process of the same number that was killed.
        let _ = fs::remove_file(&path);
        let file = fs::File::options().write(true).create_new(true).open(&path)?;
        unfinished.push(path.clone());
        Ok((Unfinished(path), file))
    }

    fn rename(self, target: &Path) -> io::Result<()> {
        // Under the lock, so that Ctrl-C comes before or after.
        let mut unfinished = unfinished();
        fs::rename(&self.0, target)?;
        unfinished.retain(|path| *path != self.0);
        drop(unfinished);
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        if let Some(at) = unfinished.iter().position(|path| *path == self.0) {
            unfinished.remove(at);
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of this process, which is about to end: no other comes or goes from now on.
pub(crate) fn remove_unfinished() {
    let unfinished = unfinished();
    for path in unfinished.iter() {
        let _ = fs::remove_file(path);
    }
    std::mem::forget(unfinished);
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
        let files = || fs::read_dir(dir.path()).unwrap().count();
        Output::create(&path).unwrap().finish_json(&[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        let mut half = Output::create(&path).unwrap();
        half.write(b"half").unwrap();
        assert_eq!(files(), 2, "a temporary file beside the old one");
        drop(half);
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        assert_eq!(files(), 1, "a temporary file is left");
        for wrong in [dir.path().join("none/a"), dir.path().to_path_buf(), dir.path().join("..")] {
            assert!(Output::create(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Output::create(&link).unwrap().finish_json(&1).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "1\n");
    }
}

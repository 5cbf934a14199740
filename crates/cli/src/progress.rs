//! Progress bars that appear only where someone waits: on a terminal, after a second.

use std::{
    io::{self, IsTerminal},
    sync::mpsc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::note;

/// What is done in less is not announced.
const PATIENCE: Duration = Duration::from_millis(1000);

/// Does work that does not tell how far it is. Where it takes two seconds and someone watches, a line says what it is.
pub(crate) fn announced<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let (done, waits) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waits.recv_timeout(2 * PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                note(what);
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes.
    Bytes,
    /// Anything else; the message says what.
    Count,
}

/// A bar on stderr that draws itself once the work has lasted a second, and clears itself away.
pub(crate) struct Bar {
    what: &'static str,
    unit: Unit,
    start: Instant,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar named `what`, which is never drawn where nobody wants it.
    pub(crate) fn new(what: &'static str, unit: Unit, wanted: bool) -> Bar {
        Bar { what, unit, start: Instant::now(), terminal: wanted && io::stderr().is_terminal(), bar: None }
    }

    /// `done` of `total` are done.
    pub(crate) fn at(&mut self, done: u64, total: u64) {
        if !self.terminal || (self.bar.is_none() && self.start.elapsed() < PATIENCE) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| drawn(self.what, self.unit, total, self.start.elapsed()));
        bar.set_position(done);
    }

    /// Clears the bar away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar that is drawn at once, where stderr is a terminal, for work that began `elapsed` ago.
pub(crate) fn drawn(what: &str, unit: Unit, total: u64, elapsed: Duration) -> ProgressBar {
    let template = match unit {
        Unit::Bytes => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        Unit::Count => "{msg} {wide_bar} {pos}/{len} {eta}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_elapsed(elapsed);
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what.to_owned());
    bar
}

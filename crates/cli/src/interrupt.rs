//! Ctrl-C: while an answer is generated it asks the answer to stop; otherwise it ends the program.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use crate::exit::INTERRUPTED;

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
/// Asked to stop.
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// While this lives, Ctrl-C is a request that [`Answering::stop_asked`] reports.
pub(crate) struct Answering(());

/// What a second Ctrl-C does while an answer is about to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// Ends the program at once.
    Ends,
    /// Nothing: the first is still at work, and a conversation is not lost to impatience.
    Waits,
}

/// Handles Ctrl-C from now on. To be called once.
///
/// # Errors
/// Where the system refuses a handler.
pub(crate) fn install(second: Second) -> anyhow::Result<()> {
    Ok(ctrlc::set_handler(move || {
        let state = STATE.compare_exchange(ANSWERING, STOPPING, SeqCst, SeqCst);
        let ends = match state {
            Ok(_) => false,
            Err(STOPPING) => second == Second::Ends,
            Err(_) => true,
        };
        if ends {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })?)
}

impl Answering {
    /// An answer begins.
    pub(crate) fn begin() -> Answering {
        STATE.store(ANSWERING, SeqCst);
        Answering(())
    }

    /// Whether Ctrl-C was pressed since.
    pub(crate) fn stop_asked(&self) -> bool {
        STATE.load(SeqCst) == STOPPING
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        STATE.store(IDLE, SeqCst);
    }
}

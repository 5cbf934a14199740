//! Ctrl-C (SIGINT): while an answer is made it asks the answer to stop; otherwise it ends the program, unless a
//! conversation would be lost. SIGTERM ends the program. No half of a file is left either way.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicU8, Ordering::SeqCst},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    exit::INTERRUPTED,
    output::{note, remove_unfinished},
};

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
/// Asked to stop.
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);
static RULE: AtomicU8 = AtomicU8::new(Rule::Ends as u8);
/// Said where a signal ends the program.
static LAST_WORD: Mutex<Option<String>> = Mutex::new(None);

/// What Ctrl-C does besides stopping an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rule {
    /// Ends the program where there is no answer to stop, and at once where one is about to stop.
    Ends,
    /// Ends the program where there is no answer to stop. A second one waits: the first is still at work, and a
    /// conversation is not lost to impatience.
    EndsIdle,
    /// Nothing: a conversation on a terminal has other ways to leave, and its prompt sees Ctrl-C as a key.
    Stays,
}

/// Handles Ctrl-C by this rule from now on.
///
/// # Errors
/// Where the system refuses a handler.
pub(crate) fn install(rule: Rule) -> anyhow::Result<()> {
    RULE.store(rule as u8, SeqCst);
    handle()
}

/// Handles Ctrl-C by the rule in force, at first [`Rule::Ends`].
///
/// # Errors
/// Where the system refuses a handler.
pub(crate) fn handle() -> anyhow::Result<()> {
    static HANDLER: OnceLock<Result<(), String>> = OnceLock::new();
    let handler = HANDLER.get_or_init(|| listen(on_signal).map_err(|error| error.to_string()));
    handler.clone().map_err(anyhow::Error::msg)
}

/// Calls `heard` with each SIGINT and SIGTERM from now on, on a thread of its own.
fn listen(mut heard: impl FnMut(i32) + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().for_each(&mut heard))?;
    Ok(())
}

/// Handles Ctrl-C and SIGTERM by this call and nothing else. For a command that installs no rule.
///
/// # Errors
/// Where the system refuses a handler.
pub(crate) fn call(mut handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    Ok(listen(move |_| handler())?)
}

fn on_signal(signal: i32) {
    if signal == SIGTERM {
        end(128 + SIGTERM);
    }
    let state = STATE.compare_exchange(ANSWERING, STOPPING, SeqCst, SeqCst);
    if ends(RULE.load(SeqCst), state.unwrap_or_else(|state| state)) {
        end(i32::from(INTERRUPTED));
    }
}

/// While this lives, a signal that ends the program says what becomes of the work so far.
pub(crate) struct LastWord(());

impl LastWord {
    /// Says `text`, and handles signals by the rule in force.
    ///
    /// # Errors
    /// Where the system refuses a handler.
    pub(crate) fn is(text: String) -> anyhow::Result<LastWord> {
        *LAST_WORD.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        handle().map(|()| LastWord(()))
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        *LAST_WORD.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn end(code: i32) -> ! {
    remove_unfinished();
    if let Some(text) = &*LAST_WORD.lock().unwrap_or_else(PoisonError::into_inner) {
        note(format_args!("{text}"));
    }
    std::process::exit(code)
}

/// Whether Ctrl-C in this state ends the program.
fn ends(rule: u8, state: u8) -> bool {
    match state {
        ANSWERING => false,
        STOPPING => rule == Rule::Ends as u8,
        _ => rule != Rule::Stays as u8,
    }
}

/// While this lives, Ctrl-C is a request that [`Answering::stop_asked`] reports.
pub(crate) struct Answering(());

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_the_program() {
        for (rule, idle, answering, stopping) in
            [(Rule::Ends, true, false, true), (Rule::EndsIdle, true, false, false), (Rule::Stays, false, false, false)]
        {
            let found = [IDLE, ANSWERING, STOPPING].map(|state| ends(rule as u8, state));
            assert_eq!(found, [idle, answering, stopping], "{rule:?}");
        }
    }
}

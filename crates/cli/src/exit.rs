//! From an error to one line on stderr and an exit code: 2 for misuse, 1 for failure, 130 when interrupted.

use std::{fmt, io::ErrorKind::BrokenPipe, process::ExitCode};

use clap::error::ErrorKind;
use engine::{EngineError, quantize::QuantizeError};
use store::StoreError;

use crate::output::{StdoutError, note, one_line};

/// Ended by Ctrl-C: 128 and the number of SIGINT, as shells count.
pub(crate) const INTERRUPTED: u8 = 130;

const FAILURE: u8 = 1;
const MISUSE: u8 = 2;

/// The command line asks for something that cannot be.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A [`Usage`] as an error of any command.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(text.into()))
}

/// Prints an error and tells the exit code. A reader that went away (`unicorn ... | head`) is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if reader_left(error) {
        return ExitCode::SUCCESS;
    }
    note(format_args!("unicorn: {}", message(error)));
    ExitCode::from(if is_misuse(error) { MISUSE } else { FAILURE })
}

/// Whether all that went wrong is that nobody reads standard output any more.
fn reader_left(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<StdoutError>().is_some_and(|error| error.0.kind() == BrokenPipe))
}

/// Prints what clap has to say: help and version as they are, an error on one line.
pub(crate) fn report_clap(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that went away has seen enough of the help.
            let _ = error.print();
        }
        _ => note(format_args!("unicorn: {}", clap_message(error))),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(MISUSE))
}

/// What clap says of an error, tips included, on one line and without the usage it repeats.
pub(crate) fn clap_message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines.join("; ");
    // A list of what is missing follows a colon.
    text.strip_prefix("error: ").unwrap_or(&text).replace(":; ", ": ")
}

fn is_misuse(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.downcast_ref::<EngineError>().is_some_and(EngineError::is_misuse)
            || cause.downcast_ref::<QuantizeError>().is_some_and(QuantizeError::is_misuse)
            || cause.downcast_ref::<StoreError>().is_some_and(StoreError::is_misuse)
    })
}

/// The causes of an error on one line, outermost first; a cause that the message before it repeats is left out.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    one_line(&message)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn messages_are_one_line_without_repetition() {
        let inner = || anyhow::anyhow!("disk\nfull");
        for (error, want) in [
            (inner(), "disk full"),
            (inner().context("cannot write a.json"), "cannot write a.json: disk full"),
            (inner().context("cannot write a.json: disk\nfull"), "cannot write a.json: disk full"),
            (anyhow::anyhow!("\u{1b}[2Jgone"), "\u{fffd}[2Jgone"),
        ] {
            assert_eq!(message(&error), want);
        }
    }

    #[test]
    fn only_standard_output_may_lose_its_reader() {
        let gone = || std::io::Error::from(BrokenPipe);
        for (error, left) in [
            (StdoutError(gone()).into(), true),
            (anyhow::Error::new(StdoutError(gone())).context("model.gguf"), true),
            (StdoutError(std::io::ErrorKind::StorageFull.into()).into(), false),
            (anyhow::Error::new(gone()).context("cannot write out.json"), false),
        ] {
            assert_eq!(reader_left(&error), left, "{error:?}");
        }
    }

    #[test]
    fn misuse_is_found_below_its_context() {
        assert!(is_misuse(&usage("no")));
        assert!(is_misuse(&Err::<(), _>(usage("no")).context("config.toml").unwrap_err()));
        assert!(is_misuse(&EngineError::EmptyPrompt.into()));
        assert!(is_misuse(&StoreError::BadName { name: String::new(), reason: "" }.into()));
        assert!(!is_misuse(&StoreError::NoHome.into()));
        assert!(!is_misuse(&anyhow::anyhow!("no")));
    }
}

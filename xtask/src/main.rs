//! Chores of the repository that no off-the-shelf tool does: `cargo xtask help` lists them.
//!
//! Each chore is a module with a function from plain data to findings, tested on small samples, and a `run` that
//! feeds it from `cargo metadata`, `git` and the files. A chore prints what is wrong, one line a finding, and changes
//! nothing. This is no build script: the program is built by `cargo build`, and the checks run in `./test`.
//!
//! ```text
//! cargo xtask layers
//! ```
//!
//! Exit code: 0 nothing found, 1 something found or a check could not run, 2 misuse.

#![forbid(unsafe_code)]

mod error;
mod layers;
mod licenses;
mod repository;
mod shaders;
mod spdx;
mod workspace;

use std::process::ExitCode;

use error::Error;

/// What a chore found.
#[derive(Debug, Default)]
struct Report {
    /// Each fails the chore.
    errors: Vec<String>,
    /// Each is printed and fails nothing.
    warnings: Vec<String>,
    /// What was looked at, in one line, for the case that nothing is wrong.
    summary: String,
}

/// A chore by its name on the command line.
struct Chore {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Report, Error>,
}

const CHORES: &[Chore] = &[
    Chore { name: "layers", about: "dependencies between our crates point down", run: layers::run },
    Chore {
        name: "repository",
        about: "size of the repository, length of the files, unsafe code only where allowed",
        run: repository::run,
    },
    Chore {
        name: "licenses",
        about: "licences of all dependencies are among those of deny.toml; Cargo.lock is current",
        run: licenses::run,
    },
    Chore { name: "shaders", about: "the compiled shaders are those of the sources", run: shaders::run },
    #[cfg(feature = "glslang")]
    Chore { name: "compile-shaders", about: "compiles the shaders", run: shaders::compile },
];

fn help() -> String {
    let chores: Vec<String> = CHORES.iter().map(|chore| format!("  {:<16}{}", chore.name, chore.about)).collect();
    format!("usage: cargo xtask CHORE\n\n{}\n  {:<16}{}", chores.join("\n"), "help", "this text")
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|it| it.to_string_lossy().into_owned()).collect();
    let name = match arguments.as_slice() {
        [name] => name.as_str(),
        [] => return misuse("a chore is missing"),
        _ => return misuse("one chore at a time, without arguments"),
    };
    if matches!(name, "help" | "-h" | "--help") {
        println!("{}", help());
        return ExitCode::SUCCESS;
    }
    match CHORES.iter().find(|chore| chore.name == name) {
        Some(chore) => perform(chore),
        None => misuse(&format!("no chore {name:?}")),
    }
}

fn misuse(message: &str) -> ExitCode {
    eprintln!("error: {message}\n\n{}", help());
    ExitCode::from(2)
}

fn perform(chore: &Chore) -> ExitCode {
    let report = match (chore.run)() {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {}: {error}", chore.name);
            return ExitCode::FAILURE;
        }
    };
    report.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    report.errors.iter().for_each(|error| eprintln!("error: {error}"));
    if report.errors.is_empty() {
        println!("{}: {}", chore.name, report.summary);
        ExitCode::SUCCESS
    } else {
        eprintln!("{}: {} wrong", chore.name, report.errors.len());
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_chore() {
        for chore in CHORES {
            assert!(help().contains(chore.name), "{}", chore.name);
        }
    }
}

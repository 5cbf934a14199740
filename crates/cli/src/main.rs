//! The program `unicorn`: large language models in a terminal.
//!
//! It reads the command line and the config file, calls the `engine` and the `store`, and prints. It is not a server and
//! computes nothing: it knows no tensor, no HTTP route and no device.
//!
//! ```text
//!   arguments --args--> clap table --config--> values --commands/*--> engine, store
//!                                                           |
//!                       stdout: the result, and nothing else
//!                       stderr: one line on the model, progress, a footer with speeds, one line for an error
//! ```
//!
//! ```text
//! $ unicorn run --model smollm2-135m "What is the capital of France?"
//! The capital of France is Paris.
//! ```
#![forbid(unsafe_code)]

mod answer;
mod args;
mod commands;
mod config;
mod exit;
mod interrupt;
mod model;
mod output;
mod progress;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::Cli;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match config::parse(Cli::command(), &arguments).and_then(|matches| Ok(Cli::from_arg_matches(&matches)?)) {
        Ok(cli) => cli.command.execute().unwrap_or_else(|error| exit::report(&error)),
        Err(config::ParseError::Arguments(error)) => exit::report_clap(&error),
        Err(config::ParseError::File(error)) => exit::report(&error),
    }
}

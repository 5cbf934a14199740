//! `unicorn tokenize`: text to token ids.

use std::{fmt::Write, process::ExitCode};

use serde_json::json;

use crate::{
    args::ModelArg,
    exit::usage,
    model::{naming, open, read_stdin},
    output::print,
};

/// Turns the text on standard input into token ids
///
/// The text is taken exactly as it is, a line end at its end included. Names of special tokens in it become those tokens,
/// as in a rendered chat prompt, unless --no-special.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  printf 'Hello, world!' | unicorn tokenize -m smollm2-135m
  printf '<|im_start|>user' | unicorn tokenize -m smollm2-135m --no-special --json")]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Takes names of special tokens for plain text
    #[arg(long)]
    no_special: bool,
    /// Puts the begin token first
    #[arg(long)]
    bos: bool,
    /// Prints {"ids":[...]}
    #[arg(long)]
    json: bool,
}

impl TokenizeArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let file = open(self.model.model.as_deref())?;
        let tokenizer = file.tokenizer().map_err(|error| naming(error, file.short_name()))?;
        let text = read_stdin()?;
        let mut ids = tokenizer.encode(&text, !self.no_special)?;
        if self.bos {
            let missing = || usage(format!("--bos: {} has no begin token", file.short_name()));
            ids.insert(0, tokenizer.bos().ok_or_else(missing)?);
        }
        if self.json {
            print(&format!("{}\n", json!({ "ids": ids })))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut out = String::new();
        for id in ids {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            writeln!(out, "{id:>7}  \"{}\"", String::from_utf8_lossy(&bytes).escape_debug())?;
        }
        print(&out)?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `unicorn list`: the models that are here.

use std::{
    fmt::Write,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use store::{Entry, Store};

use crate::output::{bytes, note, one_line, print, print_json};

/// Lists the models that are here
///
/// The names are what --model and `unicorn rm` take. They lie in $UNICORN_HOME/models, by default
/// ~/.cache/unicorn/models. `partial` is a download that was cut: pulling it again goes on with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn list
  unicorn list --json")]
pub(crate) struct ListArgs {
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

impl ListArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let store = Store::open_default()?;
        let entries = store.list()?;
        if self.json {
            print_json(&entries.iter().map(object).collect::<Vec<_>>())?;
            return Ok(ExitCode::SUCCESS);
        }
        if entries.is_empty() {
            note(format_args!(
                "no models in {}: fetch one with ./quickstart or `unicorn pull org/repo`",
                store.dir().display()
            ));
            return Ok(ExitCode::SUCCESS);
        }
        let names: Vec<String> = entries.iter().map(|entry| one_line(&entry.name)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        writeln!(out, "{:<width$}  {:>10}  {:<12}  {:<14}  from", "name", "size", "kind", "changed")?;
        for (entry, name) in entries.iter().zip(names) {
            let (size, kind, source) = (bytes(entry.bytes), entry.kind.to_string(), entry.source.to_string());
            writeln!(
                out,
                "{name:<width$}  {size:>10}  {kind:<12}  {:<14}  {}",
                age(entry.modified),
                one_line(&source)
            )?;
        }
        print(&out)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn object(entry: &Entry) -> Value {
    let seconds = entry.modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    json!({
        "name": entry.name,
        "kind": entry.kind.to_string(),
        "source": entry.source.to_string(),
        "bytes": entry.bytes,
        "modified_unix_s": seconds,
    })
}

/// How long ago, in the largest unit that counts at least two.
fn age(modified: Option<SystemTime>) -> String {
    let Some(age) = modified.and_then(|time| SystemTime::now().duration_since(time).ok()) else {
        return "-".to_owned();
    };
    let seconds = age.as_secs();
    for (unit, length) in [("days", 86_400), ("hours", 3_600), ("minutes", 60)] {
        if seconds >= 2 * length {
            return format!("{} {unit} ago", seconds / length);
        }
    }
    "just now".to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages() {
        for (seconds, want) in
            [(5, "just now"), (125, "2 minutes ago"), (7_300, "2 hours ago"), (400_000, "4 days ago")]
        {
            assert_eq!(age(Some(SystemTime::now() - Duration::from_secs(seconds))), want);
        }
        assert_eq!(age(None), "-");
    }
}

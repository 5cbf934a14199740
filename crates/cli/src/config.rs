//! The config file: defaults for flags, by their long names.
//!
//! A key becomes the default value of its flag in the clap table, so it is checked and parsed as if it had been typed,
//! and whatever is typed wins.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{ArgAction, ArgMatches, Command, error::ErrorKind};
use toml::{Table, Value};

use crate::exit::{clap_message, usage};

/// Larger than anyone writes by hand.
const LARGEST_BYTES: u64 = 1 << 20;

/// Why arguments could not be understood.
#[derive(Debug)]
pub(crate) enum ParseError {
    /// What was typed, or a call for help or the version.
    Arguments(clap::Error),
    /// The config file.
    File(anyhow::Error),
}

impl From<clap::Error> for ParseError {
    fn from(error: clap::Error) -> ParseError {
        ParseError::Arguments(error)
    }
}

impl From<anyhow::Error> for ParseError {
    fn from(error: anyhow::Error) -> ParseError {
        ParseError::File(error)
    }
}

/// Parses the arguments with the defaults of the config file, where there is one.
///
/// # Errors
/// Where the arguments are wrong, a file that was named is missing, or any file has a key that is no flag or a value
/// that its flag refuses.
pub(crate) fn parse(command: Command, arguments: &[OsString]) -> Result<ArgMatches, ParseError> {
    let strict = |command: Command| command.try_get_matches_from(arguments);
    // What the file may supply is not asked for yet: this finds the command and the file, and passes errors over.
    let found = strict(command.clone().ignore_errors(true))?;
    let Some(name) = found.subcommand_name() else { return Ok(strict(command)?) };
    let typed = found.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let Some((path, text)) = read(typed)? else { return Ok(strict(command)?) };
    let in_file = |problem: String| usage(format!("{}: {problem}", path.display()));
    let table: Table = text.parse().map_err(|error: toml::de::Error| in_file(located(&text, &error)))?;
    let defaults = defaults(&command, &table, name).map_err(in_file)?;
    strict(with(command.clone(), name, defaults)).map_err(|error| match strict(command) {
        // Wrong without the file, and for more than the lack of it.
        Err(typed) if typed.kind() != ErrorKind::MissingRequiredArgument => typed.into(),
        Err(_) if error.kind() == ErrorKind::MissingRequiredArgument => error.into(),
        _ => in_file(clap_message(&error)).into(),
    })
}

/// The file's path and text; `None` where there is none and none was asked for.
fn read(typed: Option<PathBuf>) -> anyhow::Result<Option<(PathBuf, String)>> {
    let named = match (typed, env::var_os("UNICORN_CONFIG")) {
        (Some(path), _) => Some(path),
        // Set and empty: no config file at all.
        (None, Some(path)) if path.is_empty() => return Ok(None),
        (None, path) => path.map(PathBuf::from),
    };
    let path = match (&named, default_path()) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => path,
        (None, None) => return Ok(None),
    };
    let cannot = || format!("cannot read the config file {}", path.display());
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(None),
        Ok(metadata) if metadata.len() > LARGEST_BYTES => anyhow::bail!("{}: it is over 1 MiB", cannot()),
        other => other.with_context(cannot)?,
    };
    let text = fs::read_to_string(&path).with_context(cannot)?;
    Ok(Some((path, text)))
}

/// `$XDG_CONFIG_HOME/unicorn/config.toml`, else `~/.config/unicorn/config.toml`.
fn default_path() -> Option<PathBuf> {
    xdg_directory("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("unicorn").join("config.toml"))
}

/// A base directory of the XDG specification, which has relative values ignored.
pub(crate) fn xdg_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path(variable).filter(|path| path.is_absolute()).or_else(|| path("HOME").map(|home| home.join(below_home)))
}

fn located(text: &str, error: &toml::de::Error) -> String {
    let line =
        error.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// The values for the flags of the command `name`, by long name. Every key of the file is checked, those for other
/// commands too.
fn defaults(command: &Command, table: &Table, name: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut found = BTreeMap::new();
    // Common keys first: those of the command's own table take their place.
    for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        if !command.get_subcommands().any(|command| has_flag(command, key)) {
            return Err(format!("unknown key {key}: no command has a flag --{key}"));
        }
        if command.find_subcommand(name).is_some_and(|command| has_flag(command, key)) {
            found.insert(key.clone(), texts(key, value)?);
        }
    }
    for (section, value) in table {
        let Value::Table(section_table) = value else { continue };
        let Some(subcommand) = command.find_subcommand(section) else {
            return Err(format!("unknown table [{section}]: there is no such command"));
        };
        for (key, value) in section_table {
            if !has_flag(subcommand, key) {
                return Err(format!("unknown key {key} in [{section}]: `unicorn {section}` has no flag --{key}"));
            }
            if section == name {
                found.insert(key.clone(), texts(key, value)?);
            }
        }
    }
    Ok(found)
}

fn has_flag(command: &Command, long: &str) -> bool {
    let excluded = ["help", "version", "config"];
    !excluded.contains(&long) && command.get_arguments().any(|arg| arg.get_long() == Some(long))
}

/// A value as it would be typed.
fn texts(key: &str, value: &Value) -> Result<Vec<String>, String> {
    Ok(match value {
        Value::String(text) => vec![text.clone()],
        Value::Integer(number) => vec![number.to_string()],
        Value::Float(number) => vec![number.to_string()],
        Value::Boolean(on) => vec![on.to_string()],
        Value::Array(values) => {
            let texts: Result<Vec<_>, _> = values.iter().map(|value| texts(key, value)).collect();
            texts?.concat()
        }
        Value::Datetime(_) | Value::Table(_) => {
            return Err(format!("key {key}: expected text, a number, true, false or a list of them"));
        }
    })
}

/// The table with these values as defaults of one subcommand.
fn with(command: Command, name: &str, defaults: BTreeMap<String, Vec<String>>) -> Command {
    command.mut_subcommand(name, |subcommand| {
        defaults.into_iter().fold(subcommand, |subcommand, (long, values)| {
            let id =
                subcommand.get_arguments().find(|arg| arg.get_long() == Some(&long)).map(|arg| arg.get_id().clone());
            let Some(id) = id else { return subcommand };
            subcommand.mut_arg(id, |arg| {
                let many = matches!(arg.get_action(), ArgAction::Append);
                let arg = arg.required(false);
                // Of a flag that is given once the last value would win in silence.
                if many { arg.default_values(values) } else { arg.default_value(values.join(",")) }
            })
        })
    })
}

/// The path of the state of the program, such as the history of the chat.
pub(crate) fn state_file(name: &str) -> Option<PathBuf> {
    let dir = xdg_directory("XDG_STATE_HOME", ".local/state")?.join("unicorn");
    fs::create_dir_all(&dir).ok()?;
    Some(Path::new(&dir).join(name))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn of(text: &str, name: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
        defaults(&Cli::command(), &text.parse().unwrap(), name)
    }

    #[test]
    fn keys_reach_the_commands_that_have_them() {
        let text = "model = 'a'\nthreads = 3\ntemperature = 0.5\nstop = ['x', 'y']\n[chat]\ntemperature = 1\n";
        let keys = |name| of(text, name).unwrap();
        assert_eq!(keys("chat")["temperature"], ["1"]);
        assert_eq!(keys("run")["temperature"], ["0.5"]);
        assert_eq!(keys("run")["stop"], ["x", "y"]);
        assert_eq!(keys("inspect").into_keys().collect::<Vec<_>>(), ["model"]);
        assert!(keys("list").is_empty());
    }

    #[test]
    fn wrong_keys_are_named() {
        for (text, word) in [
            ("modle = 'a'", "modle"),
            ("config = 'a'", "config"),
            ("help = true", "help"),
            ("[runn]\nraw = true", "runn"),
            ("[list]\nmodel = 'a'", "model"),
            ("model = 1979-05-27", "model"),
        ] {
            let error = of(text, "run").unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn values_become_defaults_and_what_is_typed_wins() {
        let parse = |text: &str, arguments: &[&str]| {
            let name = arguments[1];
            with(Cli::command(), name, of(text, name).unwrap()).try_get_matches_from(arguments)
        };
        let matches = parse("threads = 3\nraw = true", &["unicorn", "run", "--threads", "2"]).unwrap();
        let run = matches.subcommand_matches("run").unwrap();
        assert_eq!(run.get_one::<u16>("threads"), Some(&2));
        assert!(run.get_flag("raw"));
        // A required flag is satisfied by the file, and a default conflicts with nothing.
        parse("file = 'x.txt'", &["unicorn", "perplexity"]).unwrap();
        parse("prompt = 'x'", &["unicorn", "run", "y"]).unwrap();
        let error = parse("threads = 'many'", &["unicorn", "run"]).unwrap_err();
        assert!(clap_message(&error).contains("--threads"), "{}", clap_message(&error));
    }
}

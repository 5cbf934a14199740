//! From `--model` to a running engine, with what the user is told on the way.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use engine::{Engine, EngineError, LoadOptions, ModelFile};
use store::{Kind, Store};

use crate::{
    exit::usage,
    output::{bytes, note, one_line},
    progress::{Bar, Unit},
};

/// Opens the model of this name; where none is given, the only one of the store, and says which that is.
///
/// # Errors
/// Where there is no such model, or its file breaks its format.
pub(crate) fn open(name: Option<&str>) -> anyhow::Result<ModelFile> {
    open_and_say(name, true)
}

/// As [`open`], and says which one it takes only where that is wanted.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_and_say(name: Option<&str>, says: bool) -> anyhow::Result<ModelFile> {
    let path = match name {
        Some(name) => resolve(name)?,
        None => only_one(says)?,
    };
    ModelFile::open(&path).map_err(|error| naming(error, &path.to_string_lossy()))
}

fn resolve(name: &str) -> anyhow::Result<PathBuf> {
    match Store::open_default() {
        Ok(store) => Ok(store.resolve(name)?),
        // Without a home there is no store, but there are paths.
        Err(_) if Path::new(name).is_file() || Path::new(name).is_dir() => Ok(PathBuf::from(name)),
        Err(error) => Err(error.into()),
    }
}

fn only_one(says: bool) -> anyhow::Result<PathBuf> {
    let store = Store::open_default()?;
    let whole: Vec<_> = store.list()?.into_iter().filter(|entry| entry.kind != Kind::Partial).collect();
    match &whole[..] {
        [] => Err(usage(format!(
            "no --model given, and {} holds none: fetch one with ./quickstart or `unicorn pull org/repo`",
            store.dir().display()
        ))),
        [entry] => {
            if says {
                note(format_args!("no --model given: taking {}, the only one there is", one_line(&entry.name)));
            }
            Ok(store.resolve(&entry.name)?)
        }
        entries => {
            let names: Vec<String> = entries.iter().map(|entry| one_line(&entry.name)).collect();
            Err(usage(format!("no --model given; there are: {}", names.join(", "))))
        }
    }
}

/// An error of the engine that says which file it is about. What the user asked for wrongly is not about the file.
pub(crate) fn naming(error: EngineError, file: &str) -> anyhow::Error {
    naming_for(error, file, "--ctx")
}

/// As [`naming`], where a context that the model does not have comes from the flag `context_flag`.
fn naming_for(error: EngineError, file: &str, context_flag: &str) -> anyhow::Error {
    let short = file.trim_end_matches('/').rsplit('/').next().unwrap_or(file);
    if let EngineError::ContextTooLong { asked, own } = error {
        let short = one_line(short);
        return usage(format!("{context_flag}: a context of {asked} tokens, and {short} was made for {own} at most"));
    }
    let named = error.is_misuse() || error.to_string().contains(short);
    let error = anyhow::Error::new(error);
    if named { error } else { error.context(one_line(short)) }
}

/// A loaded model.
pub(crate) struct Loaded {
    /// It.
    pub(crate) engine: Engine,
    /// Seconds that loading took.
    pub(crate) load_s: f64,
}

/// Loads a model behind a progress bar, and says in one line what it is and where it runs.
///
/// # Errors
/// What the engine reports, with the file's name.
pub(crate) fn load(file: &ModelFile, options: &LoadOptions, quiet: bool) -> anyhow::Result<Loaded> {
    load_for(file, options, "--ctx", quiet)
}

/// As [`load`], where the context comes from the flag `context_flag`.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_for(
    file: &ModelFile,
    options: &LoadOptions,
    context_flag: &str,
    quiet: bool,
) -> anyhow::Result<Loaded> {
    load_with(file, options, context_flag, quiet, &mut |_, _| ())
}

/// As [`load_for`]; `progress` hears (bytes of weights done, bytes of all) beside the bar.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_with(
    file: &ModelFile,
    options: &LoadOptions,
    context_flag: &str,
    quiet: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Loaded> {
    let start = Instant::now();
    let mut bar = Bar::new("loading", Unit::Bytes, !quiet);
    let engine = Engine::load(file, options, &mut |done, total| {
        bar.at(done, total);
        progress(done, total);
    });
    bar.clear();
    let engine = engine.map_err(|error| naming_for(error, file.short_name(), context_flag))?;
    let load_s = start.elapsed().as_secs_f64();
    if !quiet {
        note(describe(file, &engine, load_s));
        for notice in &engine.info().notices {
            note(format_args!("note: {}", one_line(notice)));
        }
        for fallback in &engine.plan().fallbacks {
            note(format_args!("fallback: {}", one_line(fallback)));
        }
    }
    Ok(Loaded { engine, load_s })
}

fn describe(file: &ModelFile, engine: &Engine, load_s: f64) -> String {
    let (info, plan) = (engine.info(), engine.plan());
    let line = plan.context_line();
    // What follows is for those who ask for the plan.
    let context = line.split_once(';').map_or(&*line, |(context, _)| context);
    format!(
        "{} ({}) on {}, {} of weights, loaded in {load_s:.2} s; {context}",
        one_line(&info.name),
        one_line(&info.architecture),
        plan.used_devices().join(", "),
        bytes(file.file_bytes()),
    )
}

/// Refuses a model without a tokenizer before its weights are read.
///
/// # Errors
/// Where it has none.
pub(crate) fn check_tokenizer(file: &ModelFile) -> anyhow::Result<()> {
    let name = file.short_name();
    match file.has_tokenizer().map_err(|error| naming(error, name))? {
        true => Ok(()),
        false => Err(naming(EngineError::NoTokenizer(name.to_owned()), name)),
    }
}

/// The text of a file, or of stdin where the path is `-`.
///
/// # Errors
/// Where it cannot be read or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return read_stdin();
    }
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    utf8(bytes, &shown.to_string())
}

/// All of stdin.
///
/// # Errors
/// Where it cannot be read or is not UTF-8.
pub(crate) fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    utf8(bytes, "standard input")
}

fn utf8(bytes: Vec<u8>, name: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| anyhow::anyhow!("{name} is not UTF-8 text (at byte {})", error.utf8_error().valid_up_to()))
}

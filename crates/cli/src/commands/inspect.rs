//! `unicorn inspect`: what a model file holds.

use std::{
    fmt::Write,
    io::{self, IsTerminal},
    process::ExitCode,
};

use engine::{ModelFile, ModelInfo, Tokenizer};
use serde_json::{Value, json};

use crate::{
    args::ModelArg,
    exit::usage,
    model::{naming, open},
    output::{bytes, count, for_terminal, one_line, print, print_json},
};

/// Shows what a model file holds
///
/// Architecture, parameters, context, types and bytes of each group of tensors, tokenizer and chat template. Reads the
/// headers, not the weights.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn inspect model.gguf
  unicorn inspect smollm2-135m --template
  unicorn inspect model.gguf --json -v")]
pub(crate) struct InspectArgs {
    /// GGUF file, Hugging Face directory, or a name that `unicorn list` shows
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    name: Option<String>,
    #[command(flatten)]
    model: ModelArg,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Prints the source of the chat template and nothing else
    #[arg(long, conflicts_with_all = ["json", "verbose"])]
    template: bool,
    /// Prints the metadata too
    #[arg(short, long)]
    verbose: bool,
}

impl InspectArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let file = open(self.name.as_deref().or(self.model.model.as_deref()))?;
        if self.template {
            return print_template(&file);
        }
        let name = file.short_name().to_owned();
        // A model that cannot be run can still be looked at: why it cannot is said last.
        let info = file.info();
        let tokenizer = file.tokenizer();
        if self.json {
            print_json(&self.object(&file, info.as_ref().ok(), tokenizer.as_ref().ok())?)?;
        } else {
            print(&self.text(&file, info.as_ref().ok(), tokenizer.as_ref())?)?;
        }
        info.map_err(|error| naming(error, &name).context("this model cannot be run"))?;
        Ok(ExitCode::SUCCESS)
    }

    fn object(
        &self,
        file: &ModelFile,
        info: Option<&ModelInfo>,
        tokenizer: Option<&Tokenizer>,
    ) -> anyhow::Result<Value> {
        let types: Vec<Value> = file
            .types()
            .into_iter()
            .map(|(dtype, (tensors, bytes))| json!({"type": dtype, "tensors": tensors, "bytes": bytes}))
            .collect();
        let mut object = json!({
            "path": file.path(),
            "format": file.format(),
            "file_bytes": file.file_bytes(),
            "parameters": file.parameters(),
            "tensors": file.tensor_count(),
            "model": info,
            "types": types,
            "groups": file.groups(),
            "tokenizer": tokenizer.map(|tokenizer| json!({
                "kind": tokenizer_kind(file),
                "size": tokenizer.vocab_size(),
                "bos": tokenizer.bos(),
                "eos": tokenizer.eos(),
                "unk": tokenizer.unk(),
                "add_bos": tokenizer.add_bos(),
                "add_eos": tokenizer.add_eos(),
                "end": tokenizer.end_tokens(),
            })),
            "template": file.template_source()?,
            "has_template": file.has_template().unwrap_or(false),
        });
        if self.verbose {
            object["metadata"] = file.metadata().into_iter().map(|(key, value)| (key, json!(value))).collect();
        }
        Ok(object)
    }

    fn text(
        &self,
        file: &ModelFile,
        info: Option<&ModelInfo>,
        tokenizer: Result<&Tokenizer, &engine::EngineError>,
    ) -> anyhow::Result<String> {
        let mut out = String::new();
        let mut line = |name: &str, value: String| writeln!(out, "{name:<14} {value}");
        line("file", format!("{} ({}, {})", file.path(), file.format(), bytes(file.file_bytes())))?;
        if let Some(info) = info {
            line("name", one_line(&info.name))?;
            line("architecture", one_line(&info.architecture))?;
            line("layers", info.layers.to_string())?;
            line("context", format!("{} tokens", info.context))?;
            line("vocabulary", info.vocab.to_string())?;
        }
        line("parameters", format!("{} in {} tensors", count(file.parameters()), file.tensor_count()))?;
        match tokenizer {
            Ok(tokenizer) => line("tokenizer", describe_tokenizer(file, tokenizer))?,
            Err(error) => line("tokenizer", format!("none ({})", one_line(&error.to_string())))?,
        }
        line("chat template", describe_template(file)?)?;
        for notice in info.map(|info| &info.notices[..]).unwrap_or_default() {
            line("note", one_line(notice))?;
        }
        writeln!(out)?;
        write_types(&mut out, file)?;
        writeln!(out)?;
        write_groups(&mut out, file)?;
        if self.verbose {
            writeln!(out)?;
            for (key, value) in file.metadata() {
                writeln!(out, "{} = {value}", one_line(&key))?;
            }
        }
        Ok(out)
    }
}

fn describe_template(file: &ModelFile) -> anyhow::Result<String> {
    let usable = file.has_template();
    Ok(match (file.template_source()?, usable) {
        (Some(source), Ok(_)) => format!("yes, {} characters (--template prints it)", source.chars().count()),
        (Some(_), Err(error)) => format!("unusable ({})", one_line(&error.to_string())),
        (None, Ok(true)) => "built in, for the file carries none".to_owned(),
        (None, _) => "no".to_owned(),
    })
}

fn print_template(file: &ModelFile) -> anyhow::Result<ExitCode> {
    let named = |error| naming(error, file.short_name());
    let source = file.template_source().map_err(named)?;
    let source = source.ok_or_else(|| usage(format!("{} carries no chat template", file.short_name())))?;
    let shown = if io::stdout().is_terminal() { for_terminal(&source) } else { source.as_str().into() };
    print(&format!("{shown}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn write_types(out: &mut String, file: &ModelFile) -> std::fmt::Result {
    writeln!(out, "{:<8} {:>8} {:>12}", "type", "tensors", "bytes")?;
    for (dtype, (tensors, size)) in file.types() {
        writeln!(out, "{dtype:<8} {tensors:>8} {:>12}", bytes(size))?;
    }
    Ok(())
}

fn write_groups(out: &mut String, file: &ModelFile) -> std::fmt::Result {
    let groups = file.groups();
    let names: Vec<String> = groups.iter().map(|group| one_line(&group.name)).collect();
    // Wide enough for the longest name, unless a stranger made it that.
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).clamp(6, 60);
    writeln!(out, "{:<width$} {:<8} {:>16} {:>6} {:>12}", "tensor", "type", "shape", "count", "bytes")?;
    for (group, name) in groups.iter().zip(names) {
        let shape = group.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        writeln!(out, "{name:<width$} {:<8} {shape:>16} {:>6} {:>12}", group.dtype, group.count, bytes(group.bytes))?;
    }
    Ok(())
}

/// What the file says of its tokenizer.
fn tokenizer_kind(file: &ModelFile) -> String {
    let metadata = file.metadata();
    let value = |key: &str| {
        let found = metadata.iter().find(|(name, _)| name == key)?;
        // Shown as Rust prints it, in quotes and the name of its type.
        found.1.split('"').nth(1).map(one_line)
    };
    match (value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")) {
        (Some(model), Some(pre)) => format!("{model} ({pre})"),
        (Some(model), None) => model,
        (None, _) => "tokenizer.json".to_owned(),
    }
}

fn describe_tokenizer(file: &ModelFile, tokenizer: &Tokenizer) -> String {
    let named = |id: u32| format!("{id} {}", one_line(tokenizer.token_text(id).unwrap_or("?")));
    let mut text = format!("{}, {} tokens", tokenizer_kind(file), tokenizer.vocab_size());
    for (name, id) in [("begin", tokenizer.bos()), ("end", tokenizer.eos()), ("unknown", tokenizer.unk())] {
        if let Some(id) = id {
            text += &format!("; {name} {}", named(id));
        }
    }
    let ends: Vec<String> = tokenizer.end_tokens().iter().map(|id| named(*id)).collect();
    let begins = if tokenizer.add_bos() { "; a text begins with the begin token" } else { "" };
    format!("{text}; answers end at {}{begins}", ends.join(", "))
}

//! `unicorn template`: the prompt that a chat template makes of messages.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use serde_json::Value;

use crate::{
    args::{ModelArg, TemplateOptions},
    exit::usage,
    model::{open, read_text},
    output::{note, print},
};

/// Prints the prompt that the model's chat template makes of messages
///
/// Exactly as the model gets it: no line end is added.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo '[{\"role\":\"user\",\"content\":\"Hi\"}]' | unicorn template -m smollm2-135m --messages -
  unicorn template -m qwen2.5-coder-1.5b --messages chat.json --tools tools.json

chat.json holds a list of messages, or an object with the list as `messages` (and tools as `tools`), as the OpenAI API \
takes it and as /save of `unicorn chat` writes it.")]
pub(crate) struct TemplateArgs {
    #[command(flatten)]
    model: ModelArg,
    /// JSON file of messages; - is standard input
    #[arg(long, value_name = "FILE")]
    messages: PathBuf,
    /// JSON file with a list of tools the model may call
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateOptions,
}

impl TemplateArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        if self.messages == Path::new("-") && self.tools.as_deref() == Some(Path::new("-")) {
            return Err(usage("--messages and --tools cannot both be standard input"));
        }
        let (messages, mut tools) = match json(&self.messages)? {
            Value::Object(mut object) => {
                let messages = object.remove("messages").unwrap_or_default();
                (list(messages, &self.messages, "messages")?, object.remove("tools").filter(|tools| !tools.is_null()))
            }
            value => (list(value, &self.messages, "messages")?, None),
        };
        if let Some(path) = &self.tools {
            tools = Some(json(path)?);
        }
        let tools_path = self.tools.as_ref().unwrap_or(&self.messages);
        let tools = tools.map(|tools| list(tools, tools_path, "tools")).transpose()?;
        let mut file = open(self.model.model.as_deref())?;
        self.template.apply(&mut file)?;
        let render = |tools| file.render(&messages, tools);
        let prompt = render(tools.as_deref()).map_err(|error| self.template.naming(error, file.short_name()))?;
        if tools.as_ref().is_some_and(|tools| !tools.is_empty()) && render(None).is_ok_and(|without| without == prompt)
        {
            note("note: the chat template does not read tools: the prompt is the same without them");
        }
        print(&prompt)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn json(path: &Path) -> anyhow::Result<Value> {
    let text = read_text(path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", shown(path)))
}

fn list(value: Value, path: &Path, what: &str) -> anyhow::Result<Vec<Value>> {
    match value {
        Value::Array(items) if items.iter().all(Value::is_object) => Ok(items),
        _ => anyhow::bail!("{}: expected a list of {what}, each an object", shown(path)),
    }
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}
